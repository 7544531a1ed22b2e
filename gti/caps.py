"""Caps of the ReLUs: which are usual, and the settings file that keeps the calibrated ones of a net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gti import files, names
from gti.chip.network.types import Network
from gti.chip.spec import CHIP
from gti.errors import FormatError, QuantizationError, UsageError

# Ranges that user guide section 5.3 calls extreme.
EXTREMELY_LARGE = 1e3
EXTREMELY_SMALL = 1e-6
# Caps beyond these come from a damaged file: codes are 0..31, and calibrated caps lie between 0.001 and 10000.
MIN_CAP, MAX_CAP = 1e-12, 1e12
SETTINGS_DIR = Path(__file__).parent / "model"


def is_extreme(cap: float) -> bool:
    """Return whether an activation range is one that user guide section 5.3 warns of."""
    return not EXTREMELY_SMALL < cap < EXTREMELY_LARGE


def names_of(net: str, network: Network) -> list[str]:
    """Return the variable name of every sublayer's cap, in network order."""
    return [names.cap(net, convolution.name) for convolution in network.convolutions]


def in_variables(arrays: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, float]:
    """Return those of the `wanted` caps that a checkpoint's variables hold."""
    return {name: float(np.reshape(arrays[name], ())) for name in wanted if name in arrays}


def settings_file(net: str, given: str | Path | None = None) -> Path:
    """Return the settings file of a net: the `given` one, or `gti/model/<net>_settings.json`."""
    return Path(given) if given else SETTINGS_DIR / f"{net}_settings.json"


def load(path: str | Path, net: str = "") -> dict[str, float]:
    """Return the calibrated caps of a settings file: variable name -> cap, for example `digits/conv1_1/relu_cap`.

    The old kit's form, `{"relu_cap": {"conv1_1": 5.2}, ...}`, is that of the net `net`.

    Raises FormatError where the file is missing, is not JSON or holds anything but numbers of a usable size.
    """
    value = files.read_json(path)
    caps = value.get("relu_caps") if isinstance(value, dict) else None
    if caps is None and isinstance(value, dict) and isinstance(value.get("relu_cap"), dict):
        caps = {_full_name(net, layer): cap for layer, cap in value["relu_cap"].items()}
    if not isinstance(caps, dict) or not all(
        files.is_number(cap) and MIN_CAP <= cap <= MAX_CAP for cap in caps.values()
    ):
        raise FormatError(
            str(path),
            "does not hold calibrated caps",
            expected='{"relu_caps": {variable name: number from 1e-12 to 1e12}}',
            fix="write it with set_relu_caps.py",
        )
    return {name: float(cap) for name, cap in caps.items()}


def _full_name(net: str, layer: str) -> str:
    # `conv1_1`, `vgg16/conv1_1` and the whole name alike.
    layer = layer.removeprefix(f"{net}/").removesuffix(f"/{names.CAP}")
    return names.cap(net, layer)


def calibrated(net: str, given: str | Path | None = None) -> dict[str, float]:
    """Return the caps of the net's settings file. Raises UsageError where there is none yet, and as `load` does."""
    path = settings_file(net, given)
    if not path.exists():
        raise UsageError(
            str(path),
            "there are no calibrated caps yet, which quantized activations need",
            fix=f"run set_relu_caps.py --net {net} --chip {CHIP} --quant_w on the quant_w checkpoint",
        )
    return load(path, net)


def check_complete(given: Mapping[str, float], net: str, network: Network, source: str) -> None:
    """Raise QuantizationError, naming `source`, where `given` holds no cap for a sublayer of the net's `network`."""
    missing = [c.path for c in network.convolutions if names.cap(net, c.name) not in given]
    if missing:
        raise QuantizationError(
            source,
            f"holds no cap of net {net} for " + ", ".join(missing),
            expected="a calibrated cap for every sublayer",
            fix="run set_relu_caps.py on the checkpoint with quantized weights",
        )
