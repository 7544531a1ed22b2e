"""What users of the old kit type, and what is in its place: scripts, functions, variables; imports nothing heavy.

Flags stand with the parsers that they belonged to. docs/old_kit.md tells people the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from gti.errors import UsageError

# Each has a file of its name, which says this.
SCRIPTS = {
    "addon/vgg16_convert_full.py": "python addon/convert_full.py --net vgg16 --chip 2801 --checkpoint PREFIX",
    "addon/vgg16_infer_full.py": "python addon/infer_full.py MODEL IMAGE..., or addon/classify.py MODEL FOLDER",
    "scripts/init_checkpoint.py": "python scripts/port_weights.py --net vgg16 --chip 2801 --weights FILE.npz"
    " --input bgr --checkpoint_dir DIR",
}
# Of gti.layers -> the Keras layer there.
FUNCTIONS = {
    "conv2d": "ChipConv2D(output_channels, coef_bits)",
    "batch_norm": "ChipConv2D(output_channels, coef_bits, batch_norm=True)",
    "relu": "ChipConv2D, which ends with its ReLU",
    "max_pool": "ChipPooling(0)",
    "topleft_pool": "ChipPooling(1)",
    "fully_connected": "HostDense(units)",
}
VARIABLES = {
    "GTI_CLIP_BIAS": "pass --clip_bias to train.py",
    "GTI_DEBUG_LAYERS": "chip_infer.py --layer_outputs DIR and scripts/compare.py show the maps of all layers",
}
# What this kit reads, and what it tells the programs that it starts.
VARIABLES_OF_TODAY = {"GTI_DEBUG_CONVERSION", "GTI_LABEL", "GTI_LOCK_DIR", "GTI_PROBABILITY", "GTI_TOKEN"}
_PREFIX = "GTI_"
_OFF = ("", "0", "false", "no", "off")


def refuse_script(path: str) -> NoReturn:
    """Raise UsageError that names what is in place of the old script `path`."""
    name = "/".join(Path(path).parts[-2:])
    raise UsageError(name, "is a script of the old kit", fix=f"{SCRIPTS[name]} (docs/old_kit.md)")


def refuse_function(name: str) -> None:
    """Raise UsageError for a function that gti.layers had, and do nothing for other names."""
    if name in FUNCTIONS:
        raise UsageError(
            f"gti.layers.{name}", "is a function of the old kit", fix=f"use {FUNCTIONS[name]} (docs/old_kit.md)"
        )


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Return whether a switch of the environment is on: set, and to nothing that says no."""
    return environment.get(name, "").strip().lower() not in _OFF


def notes(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable GTI_... that is set and does nothing here."""
    on = [name for name in sorted(environment) if name.startswith(_PREFIX) and is_on(environment, name)]
    return [
        f"{name} is not read{f' any more: {VARIABLES[name]}' if name in VARIABLES else ' by this kit'}"
        " (docs/old_kit.md)"
        for name in on
        if name not in VARIABLES_OF_TODAY
    ]
