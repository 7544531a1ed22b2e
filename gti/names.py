"""Names: of a net's files (`2801_vgg16...`), of its checkpoints (`vgg16-2801-...`), of its variables (`vgg16/...`).

The variables' names are those of the user guide and of the old kit's checkpoints.
"""

from __future__ import annotations

import re

from gti.chip.spec import CHIP

FILTER_STEPS = "filter_steps"  # of 3-bit kernels, where they are learned
CAP = "relu_cap"


def file_stem(net: str) -> str:
    """Return the start of the names of a net's files: `<chip>_<net>`."""
    return f"{CHIP}_{net}"


def checkpoint_stem(net: str) -> str:
    """Return the start of the names of a net's checkpoints: `<net>-<chip>`."""
    return f"{net}-{CHIP}"


def variable(net: str, layer: str, part: str) -> str:
    """Return the name of a layer's variable, for example `vgg16/conv1_1/filters`."""
    return f"{net}/{layer}/{part}"


def cap(net: str, layer: str) -> str:
    """Return the name of a sublayer's cap, for example `vgg16/conv5_3/relu_cap`."""
    return variable(net, layer, CAP)


def is_chip_variable(name: str, net: str) -> bool:
    """Return whether a variable belongs to a sublayer, as `vgg16/conv1_1/filters` does, and not to the host part."""
    return re.match(re.escape(net) + r"/conv\d+_\d+/", name) is not None


def natural(name: str) -> list[tuple[int, str]]:
    """Return the key that sorts names as people count: fc9 before fc10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
