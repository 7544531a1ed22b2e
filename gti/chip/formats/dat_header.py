"""The 23 header words of a .DAT file <-> what they say about the network (docs/dat_format.md section 2).

A header alone does not tell everything: whether the last layer is ten-bit and whether an extra shortcut pass is
there can be seen in the rows only. `dat.decode` decides that and then calls `network_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gti.chip import spec
from gti.chip.network.memory_plan import layer_addresses
from gti.chip.network.types import MajorLayer, Network
from gti.chip.wire import header_words as bits
from gti.chip.wire.words import round_up

_LATE = spec.FIRST_LATE_MAJOR_LAYER - 1  # D words exist for the major layers before this index


@dataclass(frozen=True)
class LayerWords:
    """What A, B, C and D say about one major layer, before the rows are consulted."""

    image_size: int
    input_channels: int  # as stored: the first layer's is rounded up
    output_channels: int  # as stored: doubled for a ten-bit output
    pooling: bool
    outputs: bool  # learning or last_layer_out
    chip_sublayers: int
    in_address: int
    out_address: int
    coef_bits: int
    upsample_enable: bool
    shifts: tuple[int, ...]
    shortcuts: tuple[int, ...]
    one_coef: tuple[int, ...]
    depth_enable: bool


@dataclass(frozen=True)
class HeaderWords:
    """What the header says, field by field."""

    output_code: int
    current: bool  # written by a current converter (G[11:10] = 3)
    last_layer_out: bool
    input_code: int
    first_input_channels: int  # as the code says; 3 is a guess for code 0
    sampling_method: int
    layers: tuple[LayerWords, ...]


def words_of(network: Network) -> tuple[int, ...]:
    """Return the 23 header words of `network` as a current converter writes them; sizes must be legal."""
    first, last = network.layers[0], network.layers[-1]
    g = bits.OUTPUT_CODE.put(bits.output_code(last.image_size, last.output_channels, last.pooling))
    g |= bits.MAJOR_LAYERS.put(len(network.layers))
    g |= bits.FORMAT.put(bits.CURRENT_FORMAT)
    g |= bits.LAST_LAYER_OUT.put(any(layer.last_layer_out for layer in network.layers))
    g |= bits.FC.put(last.pooling and last.image_size == spec.TILE)
    g |= bits.INPUT_CODE.put(bits.INPUT_CODES.get(first.input_channels, 0))
    for i, layer in enumerate(network.layers):
        g |= bits.upsampling(i).put(layer.upsample_enable)
    g |= bits.TOP_LEFT.put(network.sampling_method == 1)
    words = [1, g] + [0] * (spec.HEADER_WORDS - 2)
    for i, (layer, addresses) in enumerate(zip(network.layers, layer_addresses(network), strict=True)):
        ten_bit = i == len(network.layers) - 1 and network.activation_bit_mode == 1
        words[2 + 3 * i : 5 + 3 * i] = _a(layer, i == 0, ten_bit), _b(layer, addresses), _c(layer)
        if i < _LATE:
            words[bits.LATE + i] = _d(layer)
    return tuple(words)


def _a(layer: MajorLayer, first: bool, ten_bit: bool) -> int:
    inputs = layer.input_channels
    if first:
        inputs = max(spec.ENGINES, 1 << (inputs - 1).bit_length())
        inputs = spec.ENGINES if inputs > 1024 else inputs
    outputs = round_up(layer.output_channels, spec.ENGINES) << ten_bit
    word = bits.IMAGE_SIZE.put(bits.size_code(layer.image_size))
    word |= bits.INPUT_CHANNELS.put(inputs) | bits.OUTPUT_CHANNELS.put(outputs)
    return word | bits.POOLING.put(layer.pooling) | bits.LEARNING.put(layer.learning or layer.last_layer_out)


def _shift(layer: MajorLayer, sub: int) -> int:
    return layer.scaling[sub] if sub < len(layer.scaling) else 0


def _b(layer: MajorLayer, addresses: tuple[int, int]) -> int:
    word = bits.FIRST_SHIFT.put(_shift(layer, 0)) | bits.SUBLAYERS.put(layer.chip_sublayers)
    word |= bits.IN_ADDRESS.put(addresses[0]) | bits.OUT_ADDRESS.put(addresses[1])
    return word | bits.THREE_BIT.put(layer.coef_bits == 3)


def _c(layer: MajorLayer) -> int:
    return sum(place.put(_shift(layer, j)) for j, place in enumerate(bits.C_SHIFTS, 1))


def _d(layer: MajorLayer) -> int:
    word = sum(place.put(_shift(layer, j)) for j, place in enumerate(bits.D_SHIFTS, 1 + len(bits.C_SHIFTS)))
    for start in layer.shortcuts:
        word |= bits.D_SHORTCUTS[(start - 1) // 2].put(1)
    for place, flag in zip(bits.D_ONE_COEF, layer.one_coef, strict=False):
        word |= place.put(flag)
    return word


def parse(words: Sequence[int]) -> HeaderWords:
    """Return the fields of 23 header words; nothing is judged but the number of layers must be 1..6."""
    g = words[bits.GLOBAL]
    current = bits.FORMAT.of(g) == bits.CURRENT_FORMAT
    return HeaderWords(
        output_code=bits.OUTPUT_CODE.of(g),
        current=current,
        last_layer_out=bool(bits.LAST_LAYER_OUT.of(g)),
        input_code=bits.INPUT_CODE.of(g),
        first_input_channels=bits.INPUTS_OF_CODE.get(bits.INPUT_CODE.of(g), 0),
        sampling_method=bits.TOP_LEFT.of(g),
        layers=tuple(_parse_layer(words, i, current) for i in range(bits.MAJOR_LAYERS.of(g))),
    )


def _parse_layer(words: Sequence[int], i: int, current: bool) -> LayerWords:
    a, b, c = words[2 + 3 * i : 5 + 3 * i]
    # Files of the older tool hold something else in place of D [section 2.5].
    d = words[bits.LATE + i] if current and i < _LATE else 0
    count = bits.SUBLAYERS.of(b)
    # A count of more than 12, which the rules refuse, has zeros for what no word holds.
    places = [*(place.of(c) for place in bits.C_SHIFTS), *(place.of(d) for place in bits.D_SHIFTS), 0, 0, 0]
    shifts = [bits.FIRST_SHIFT.of(b), *places]
    one_coef = tuple(place.of(d) for place in bits.D_ONE_COEF[:count])
    return LayerWords(
        image_size=bits.size_of_code(bits.IMAGE_SIZE.of(a)),
        input_channels=bits.INPUT_CHANNELS.of(a),
        output_channels=bits.OUTPUT_CHANNELS.of(a),
        pooling=bool(bits.POOLING.of(a)),
        outputs=bool(bits.LEARNING.of(a)),
        chip_sublayers=count,
        in_address=bits.IN_ADDRESS.of(b),
        out_address=bits.OUT_ADDRESS.of(b),
        coef_bits=3 if bits.THREE_BIT.of(b) else 1,
        upsample_enable=bool(bits.upsampling(i).of(words[bits.GLOBAL])),
        shifts=tuple(shifts[:count]),
        shortcuts=tuple(2 * m + 1 for m, place in enumerate(bits.D_SHORTCUTS) if place.of(d)),
        one_coef=one_coef if any(one_coef) else (),
        depth_enable=bool(bits.D_DEPTH.of(d)),
    )


def may_have_extra_pass(layer: LayerWords) -> bool:
    """Return whether the last sublayer counted may be the identity pass of a shortcut [section 3.3]."""
    return layer.pooling and bool(layer.shortcuts) and layer.shortcuts[-1] == layer.chip_sublayers - 2


def network_of(header: HeaderWords, extra_passes: Sequence[bool], activation_bit_mode: int) -> Network:
    """Return the network that `header` describes, given what only the rows can tell; it may break rules.

    Addresses are kept where they differ from the plan.
    """
    layers: list[MajorLayer] = []
    for i, (layer, extra_pass) in enumerate(zip(header.layers, extra_passes, strict=True)):
        ten_bit = activation_bit_mode == 1 and i == len(header.layers) - 1
        sublayers = layer.chip_sublayers - extra_pass
        layers.append(
            MajorLayer(
                image_size=layer.image_size,
                input_channels=header.first_input_channels if i == 0 else layer.input_channels,
                output_channels=layer.output_channels >> ten_bit,
                sublayer_number=sublayers,
                coef_bits=layer.coef_bits,
                scaling=layer.shifts[:sublayers],
                pooling=layer.pooling,
                learning=layer.outputs and not header.last_layer_out,
                last_layer_out=layer.outputs and header.last_layer_out,
                upsample_enable=layer.upsample_enable,
                one_coef=layer.one_coef[:sublayers],
                shortcuts=layer.shortcuts,
                in_address=layer.in_address,
                out_address=layer.out_address,
                extra={"depth_enable": True} if layer.depth_enable else {},
            )
        )
    return Network(tuple(layers), sampling_method=header.sampling_method, activation_bit_mode=activation_bit_mode)
