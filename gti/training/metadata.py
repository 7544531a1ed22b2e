"""What a checkpoint knows about itself: `gti/metadata` beside its variables, as JSON."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from gti import __version__, files
from gti.errors import CheckpointError
from gti.stage import FILTER_STEPS, Stage

METADATA_NAME = "gti/metadata"
Loss: TypeAlias = float | None


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint knows about itself."""

    net: str
    chip: str
    stage: Stage
    epoch: int  # epochs trained in this stage
    step: int  # batches trained in this stage
    classes: int
    image_size: int
    ten_bit: bool = False
    accuracy: float | None = None  # top-1 of the validation set
    best_accuracy: float | None = None  # best so far in this stage
    loss: Loss = None  # mean cross entropy of the validation set
    best_loss: Loss = None  # of the best so far in this stage
    optimizer: str = ""
    seed: int = 0
    parent: str = ""  # digest of the checkpoint that the stage began from
    network: tuple[str, ...] = ()  # what of the dat.json it was trained for, from quant_w on; () where not known
    filter_step: str = ""  # rule of 3-bit filters that it was trained with, from quant_w on; "" is mean
    labels: tuple[str, ...] = ()  # names of the classes, index = label; () where not known
    data_dirs: tuple[str, ...] = ()  # folders of the training and the validation set
    crop_fraction: float | None = None  # of the pictures that it was trained with
    kit_version: str = __version__

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "stage": self.stage.label}, allow_nan=False)

    @classmethod
    def from_json(cls, text: bytes, prefix: str) -> Metadata:
        """Parse the text of `gti/metadata`. Raises CheckpointError."""
        name = f"{prefix} ({METADATA_NAME})"
        value = files.parse_json(text, name, error=_JsonError)
        if not isinstance(value, dict):
            raise CheckpointError(name, "is not a JSON object")
        known = {}
        for field in fields(cls):
            if field.name in value:
                known[field.name] = _checked(field.name, str(field.type), value[field.name], name)
        missing = [f.name for f in fields(cls)[:7] if f.name not in known]
        if missing:
            raise CheckpointError(name, f"lacks {', '.join(missing)}", fix="train the checkpoint again")
        return cls(**known)


_KINDS = {
    "str": "a text",
    "bool": "true or false",
    "int": "a whole number of at least 0",
    "float | None": "a number 0..1 or null",
    "Loss": "a number of at least 0 or null",
    "tuple[str, ...]": "a list of texts",
    "filter_step": "one of " + ", ".join(FILTER_STEPS),
    "Stage": "one of " + ", ".join(stage.label for stage in Stage),
}


class _JsonError(files.FormatError, CheckpointError):
    """Metadata that is no JSON."""


def _checked(key: str, kind: str, value: Any, name: str) -> Any:
    if key == "filter_step":
        if value in ("", *FILTER_STEPS):
            return value
        kind = key
    elif key == "stage":
        if isinstance(value, str):
            with suppress(ValueError):
                return Stage.from_label(value)
    elif kind == "tuple[str, ...]":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif (
        (kind == "str" and isinstance(value, str))
        or (kind == "bool" and isinstance(value, bool))
        or (kind == "int" and files.is_whole(value) and 0 <= value < 2**53)
        or (kind == "Loss" and (value is None or (files.is_number(value) and 0 <= value < math.inf)))
        or (kind == "float | None" and (value is None or (files.is_number(value) and 0 <= value <= 1)))
    ):
        return value
    raise CheckpointError(name, f"{key} is wrong", expected=_KINDS[kind], received=json.dumps(value)[:80])
