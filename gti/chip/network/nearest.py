"""The nearest network that the chip can hold: what to change, key by key, in a network that breaks its rules.

Repairs run from the input to the output, because a layer's size and input channels follow from the layer before. Each
one takes the closest legal value (for channels the next one up, as zeros can pad them) and is recorded as a `Change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from gti.chip import spec
from gti.chip.network.memory_plan import address_plan
from gti.chip.network.rules import padded_up, violations
from gti.chip.network.types import MajorLayer, Network

_OUTPUTS_AT_448 = 16  # what the memory plan leaves room for (docs/dat_format.md section 6)
_MOST_EXAMINED = 64  # hostile files list a million layers

# Fields of the types and the keys of a dat.json that hold them (docs/dat_format.md section 5).
_NETWORK_KEYS = {
    "chip_type": "ChipType",
    "sampling_method": "SamplingMethod",
    "activation_bit_mode": "ActivationBitMode",
}
_LAYER_KEYS = {name: name for name in MajorLayer.__dataclass_fields__ if name != "extra"} | {
    "shortcuts": "resnet_shortcut_start_layers",
    "in_address": "in_addr",
    "out_address": "out_addr",
}


@dataclass(frozen=True)
class Change:
    """One key of a dat.json that a repair sets to another value; `major` is 1-based, 0 for the whole network."""

    major: int
    key: str
    received: object
    legal: object

    def __str__(self) -> str:
        place = f"major {self.major}" if self.major else "network"
        return f"{place}: {self.key} {_short(self.received)} -> {_short(self.legal)}"


def nearest(network: Network) -> tuple[Network, tuple[Change, ...]]:
    """Return the nearest network without violations, and the changes that lead to it (none: it fits as it is).

    Weights that exist for the old shape do not fit the new one. A network without layers is returned unchanged.
    """
    if not network.layers or not violations(network):
        return network, ()
    repaired = _network(network)
    # Each memory repair makes something smaller, and what follows it too: the loop ends at 16 channels everywhere.
    while (full := _full_layer(repaired)) is not None:
        repaired = _network(_narrowed(repaired, full))
    return repaired, tuple(_changes(network, repaired))


def closest(value: int, legal: Sequence[int]) -> int:
    """Return the member of `legal` closest to `value`, the smaller one of two that are equally close."""
    return min(legal, key=lambda n: (abs(n - value), n))


def _network(network: Network) -> Network:
    layers = _merged(network.layers)[: spec.MAX_MAJOR_LAYERS]
    result: list[MajorLayer] = []
    for i, layer in enumerate(layers):
        result.append(_layer(layer, result[-1] if result else None, i, is_last=i == len(layers) - 1))
    if any(layer.learning for layer in result):
        result = [replace(layer, last_layer_out=False) for layer in result]
    bits = network.activation_bit_mode if network.activation_bit_mode in (0, 1) else 0
    if bits == 1:
        last = result[-1]
        result[-1] = _resized(replace(last, output_channels=min(last.output_channels, 512), shortcuts=()), 1)
    return replace(
        network,
        layers=tuple(result),
        chip_type=spec.CHIP_TYPE,
        sampling_method=network.sampling_method if network.sampling_method in (0, 1) else 0,
        activation_bit_mode=bits,
    )


def _merged(layers: tuple[MajorLayer, ...]) -> tuple[MajorLayer, ...]:
    # Too many major layers: neighbours of one shape can be one layer with more sublayers.
    merged = list(layers[:_MOST_EXAMINED])
    i = 0
    while len(merged) > spec.MAX_MAJOR_LAYERS and i + 1 < len(merged):
        a, b = merged[i], merged[i + 1]
        same = (a.image_size, a.output_channels, a.coef_bits) == (b.image_size, b.output_channels, b.coef_bits)
        plain = not (a.pooling or b.upsample_enable or a.one_coef or b.one_coef or a.shortcuts or b.shortcuts)
        if same and plain and a.sublayer_number + b.sublayer_number <= spec.MAX_SUBLAYERS_LATE:
            merged[i] = replace(
                a,
                sublayer_number=a.sublayer_number + b.sublayer_number,
                scaling=a.scaling + b.scaling,
                pooling=b.pooling,
                learning=a.learning or b.learning,
                last_layer_out=a.last_layer_out or b.last_layer_out,
            )
            del merged[i + 1]
        else:
            i += 1
    return tuple(merged)


def _layer(layer: MajorLayer, before: MajorLayer | None, index: int, *, is_last: bool) -> MajorLayer:
    size = before.output_size if before else closest(layer.image_size, spec.IMAGE_SIZES)
    smallest, largest = min(spec.IMAGE_SIZES), max(spec.IMAGE_SIZES)
    upsample = layer.upsample_enable and size * 2 < largest
    working = size * 2 if upsample else size
    pooling = (layer.pooling and (working > smallest or is_last)) or working == largest
    late = index + 1 >= spec.FIRST_LATE_MAJOR_LAYER
    output_channels = padded_up(layer.output_channels)
    fixed = replace(
        layer,
        image_size=size,
        input_channels=before.output_channels if before else padded_up(layer.input_channels, spec.FIRST_INPUT_CHANNELS),
        output_channels=_OUTPUTS_AT_448 if working == largest else output_channels,
        coef_bits=closest(layer.coef_bits, spec.COEF_BITS),
        upsample_enable=upsample,
        upsample_mode=layer.upsample_mode if layer.upsample_mode in spec.UPSAMPLE_MODES else spec.UPSAMPLE_MODES[0],
        pooling=pooling,
        one_coef=() if late else layer.one_coef,
        shortcuts=() if late else layer.shortcuts,
        in_address=_address(layer.in_address),
        out_address=_address(layer.out_address),
        extra={key: value for key, value in layer.extra.items() if key != "depth_enable"},
    )
    most = spec.MAX_SUBLAYERS_LATE if late else spec.MAX_SUBLAYERS
    fixed = _resized(fixed, max(1, min(layer.sublayer_number, most)))
    if fixed.pooling and fixed.shortcuts and fixed.shortcuts[-1] == fixed.sublayer_number - 1:
        # The extra pass counts as a sublayer, and its identity does not survive 1-bit filters.
        if fixed.sublayer_number == most:
            fixed = _resized(fixed, most - 1)
        if fixed.coef_bits == 1:
            fixed = replace(fixed, shortcuts=fixed.shortcuts[:-1])
    return fixed


def _address(address: int | None) -> int | None:
    return address if address is not None and 0 <= address < spec.MEMORY_UNITS else None


def _resized(layer: MajorLayer, sublayers: int) -> MajorLayer:
    """Return `layer` with that many sublayers, and lists that fit them."""
    scaling = [max(0, min(shift, spec.MAX_SHIFT_STORED)) for shift in layer.scaling[:sublayers]]
    scaling += [0] * (sublayers - len(scaling))
    one_coef: tuple[int, ...] = ()
    if layer.one_coef:
        padded = (*layer.one_coef, *[0] * sublayers)[:sublayers]
        one_coef = tuple(int(value == 1) for value in padded)
    # Even starts are stored like odd ones, so only odd ones mean something (docs/dat_format.md section 6).
    shortcuts = tuple(sorted({start for start in layer.shortcuts if 1 <= start < sublayers and start % 2}))
    return replace(layer, sublayer_number=sublayers, scaling=tuple(scaling), one_coef=one_coef, shortcuts=shortcuts)


def _full_layer(network: Network) -> int | None:
    """Return the index of the major layer that overflows the activation memory first, None where all fit."""
    plan = iter(address_plan(network))
    for i, layer in enumerate(network.layers):
        if not all(place.fits for place in list(islice(plan, layer.chip_sublayers))):
            return i
    return None


def _narrowed(network: Network, index: int) -> Network:
    """Return `network` with fewer channels in major layer `index` or before it, or else with smaller images."""
    layers = list(network.layers)
    wide = [i for i in range(index + 1) if layers[i].output_channels > min(spec.OUTPUT_CHANNELS)]
    if wide:
        layers[wide[-1]] = replace(layers[wide[-1]], output_channels=layers[wide[-1]].output_channels // 2)
    else:
        layers[0] = replace(layers[0], image_size=layers[0].image_size // 2)
    return replace(network, layers=tuple(layers))


def _changes(before: Network, after: Network) -> list[Change]:
    pairs = [(0, key, getattr(before, name), getattr(after, name)) for name, key in _NETWORK_KEYS.items()]
    pairs.append((0, "MajorLayerNumber", len(before.layers), len(after.layers)))
    for major, (old, new) in enumerate(zip(before.layers, after.layers, strict=False), 1):
        pairs += [(major, key, getattr(old, name), getattr(new, name)) for name, key in _LAYER_KEYS.items()]
        pairs.append((major, "depth_enable", bool(old.extra.get("depth_enable")), False))
    return [Change(*pair) for pair in pairs if pair[2] != pair[3]]


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
