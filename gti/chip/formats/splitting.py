"""One network for several chips: cut between major layers, each part a network of its own (docs/multichip.md).

The codes that leave one chip are the image of the next one: `next_image` makes of them the 8-bit pixels whose five
bits are those codes again.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gti.chip import spec
from gti.chip.formats import dat
from gti.chip.network import memory_plan
from gti.chip.network import rules as network_rules
from gti.chip.network.rules import Violation
from gti.chip.network.types import ConvolutionWeights, Network
from gti.chip.wire.registers import Mode
from gti.errors import NetworkError, UsageError, listing
from gti.files import is_whole

# Pixels 8 * code are the middle of the 8-bit values that become a code (docs/numerics.md section 1).
CODE_SHIFT = 3


@dataclass(frozen=True)
class Part:
    """What one chip computes."""

    network: Network
    weights: tuple[ConvolutionWeights, ...]
    first_major: int  # 1-based, in the whole network

    def dat(self) -> bytes:
        """Return the .DAT file of this chip."""
        return dat.encode(self.network, self.weights)


def next_image(codes: np.ndarray, pooled: bool, top_left: bool = False) -> np.ndarray:
    """Return the image, uint8 [H,W,C], that carries the codes 0..31, uint8 [C,H,W], of one chip to the next.

    `pooled`: the codes come from before the pooling of their major layer, which is done here: 2x2, the largest or, with
    `top_left`, the first of each four.
    """
    if pooled:
        channels, height, width = codes.shape
        blocks = codes.reshape(channels, height // 2, 2, width // 2, 2)
        codes = blocks[:, :, 0, :, 0] if top_left else blocks.max(axis=(2, 4))
    return np.ascontiguousarray((codes << CODE_SHIFT).transpose(1, 2, 0))


def chip_number(network: Network) -> int:
    """Return "ChipNumber" of the network's dat.json, 1 where it is absent. Raises UsageError for no number."""
    model = network.extra.get("model")
    value = model.get("ChipNumber", 1) if isinstance(model, dict) else 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 2.0, as other numbers of a dat.json
    if not is_whole(value) or value < 1:
        raise UsageError("ChipNumber of the dat.json", "is no number of chips", expected="1 or more", received=value)
    return value


def check_number(network: Network, chips: int) -> None:
    """Raise UsageError where `network` has fewer major layers than `chips`."""
    majors = len(network.layers)
    if not 1 <= chips <= majors:
        raise UsageError(
            f"{chips} chips",
            "cannot share the network, which is cut between major layers",
            expected=f"1..{majors} chips for {majors} major layers",
            fix="use fewer chips, or more major layers",
        )


def split(network: Network, weights: Sequence[ConvolutionWeights], chips: int) -> list[Part]:
    """Return the parts of `network` for `chips` sticks in a row, cut where the slowest part has the least work.

    Raises UsageError when there are fewer major layers than chips, NetworkError when no cut gives parts that keep
    the chip's rules: it tells what is wrong with the most even one.
    """
    check_number(network, chips)
    majors = len(network.layers)
    candidates = [(1, *rest) for rest in itertools.combinations(range(2, majors + 1), chips - 1)]
    work = work_of_majors(network)
    candidates.sort(key=lambda starts: max(sum(work[a - 1 : b - 1]) for a, b in _ranges(starts, majors)))
    problems: list[Violation] = []
    for starts in candidates:
        found = violations(network, starts)
        if not found:
            return cut(network, weights, starts)
        problems = problems or found
    raise NetworkError(listing(f"network on {chips} chips", problems), violations=problems)


def cut(network: Network, weights: Sequence[ConvolutionWeights], starts: Sequence[int]) -> list[Part]:
    """Return the parts that begin at the major layers `starts` (1-based, the first is 1)."""
    majors = len(network.layers)
    parts = []
    for first, end in _ranges(starts, majors):
        chosen = [w for c, w in zip(network.convolutions, weights, strict=True) if first <= c.major < end]
        parts.append(Part(_sub_network(network, first, end), tuple(chosen), first))
    return parts


def violations(network: Network, starts: Sequence[int]) -> list[Violation]:
    """Return what the parts that begin at the major layers `starts` break; layers are counted within their part."""
    found: list[Violation] = []
    for number, (first, end) in enumerate(_ranges(starts, len(network.layers)), 1):
        part = _sub_network(network, first, end)
        where = f"chip {number}, "
        found += [replace(v, layer=where + v.layer) for v in network_rules.violations(part)]
        if first == 1:
            continue
        # The address plan counts 16 channels at the input, whatever there are (docs/dat_format.md section 4).
        layer = part.layers[0]
        size = layer.image_size**2 * layer.input_channels
        room = memory_plan.address_plan(part)[0].out_address * spec.ADDRESS_UNIT
        if size > room:
            found.append(
                Violation(
                    where + network_rules.major_path(1),
                    "chip-input",
                    "its input would lie over its output in the chip's memory",
                    f"at most {room} activations",
                    f"{size} ({layer.image_size}x{layer.image_size}x{layer.input_channels})",
                    "cut behind a pooling, or use fewer channels there",
                )
            )
    return found


def insert_inner_layers(
    model_json: dict[str, Any], last: dict[str, Any], parts: Sequence[Part], data_files: Sequence[str]
) -> list[dict[str, Any]]:
    """Put a GTICNN layer for each part but the last before `last`, the one of a model JSON; return what was put.

    They read out pixels of the next chip: the codes of the last sublayer, pooled where its major layer pools.
    """
    inner = []
    for number, (part, data_file) in enumerate(zip(parts[:-1], data_files[:-1], strict=True), 1):
        end = part.network.layers[-1]
        name = f"{last.get('name', 'chip')}_{number}"
        entry: dict[str, Any] = {"name": name, "operation": "GTICNN", "data file": data_file}
        entry |= {key: copy.deepcopy(last[key]) for key in ("data offset", "device") if key in last}
        mode = Mode.FILE_5 if end.pooling else Mode.SINGLE  # SINGLE would read from before the pooling
        entry |= {"mode": int(mode), "output scaledown": -CODE_SHIFT, "output type": "uint8"}
        entry |= {"output width": end.output_size, "output height": end.output_size}
        inner.append(entry | {"output channels": end.output_channels})
    position = next(index for index, layer in enumerate(model_json["layer"]) if layer is last)
    model_json["layer"][position:position] = inner
    return inner


def remove_inner_layers(model_json: Any) -> None:
    """Take away what `insert_inner_layers` put into a model JSON, which then is that of one chip again."""
    layers = model_json.get("layer") if isinstance(model_json, dict) else None
    if not isinstance(layers, list):
        return
    chips = [layer for layer in layers if isinstance(layer, dict) and layer.get("operation") == "GTICNN"]
    inner = [id(layer) for layer in chips[:-1] if layer.get("output scaledown") == -CODE_SHIFT]
    model_json["layer"] = [layer for layer in layers if id(layer) not in inner]


def work_of_majors(network: Network) -> list[int]:
    """Return the multiply-accumulates of every major layer, in groups of 16 channels as the chip has engines."""
    result = [0] * len(network.layers)
    for c in network.convolutions:
        inputs, outputs = (-(-n // spec.ENGINES) * spec.ENGINES for n in (c.input_channels, c.output_channels))
        result[c.major - 1] += c.size**2 * 9 * inputs * outputs
    return result


def _ranges(starts: Sequence[int], majors: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*starts, majors + 1]))


def _sub_network(network: Network, first: int, end: int) -> Network:
    layers = network.layers[first - 1 : end - 1]
    if first > 1:  # addresses of the whole network mean nothing in a part of it
        layers = tuple(replace(layer, in_address=None, out_address=None) for layer in layers)
    last = end == len(network.layers) + 1
    if not last and layers[-1].pooling:  # its output is read as the file selects it: not every major layer's
        layers = tuple(replace(layer, last_layer_out=False) for layer in layers)
    return replace(network, layers=layers, activation_bit_mode=network.activation_bit_mode if last else 0)
