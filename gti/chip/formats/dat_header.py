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

# Codes of the input channels, G[19:16]; every other count, 3 (RGB) included, has code 0 [section 2.2].
INPUT_CODES = {1: 1, 2: 2, 4: 4, 8: 5, 12: 6, 16: 7, 24: 8, 32: 9, 64: 10, 128: 11, 256: 12, 512: 13, 1024: 14}
_INPUT_CHANNELS = {0: 3} | {code: channels for channels, code in INPUT_CODES.items()}
# Output size: log2 of how many times smaller than 56x56x16 the unpooled output is, plus 1 [section 2.2].
_OUTPUT_TERMS = {7: 7, 14: 5, 28: 3, 56: 1, 112: -1, 224: -3, 448: -5}
_SIZE_448 = 0xF0
_FORMAT = 3  # G[11:10] of every current file; files of the older tool hold something else
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
    first_input_channels: int
    sampling_method: int
    layers: tuple[LayerWords, ...]


def round_up(count: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def output_code(image_size: int, output_channels: int, pooling: bool) -> int:
    """Return G[2:0] for the last major layer [section 2.2]."""
    channel_groups = round_up(output_channels, spec.ENGINES) // spec.ENGINES
    if channel_groups & (channel_groups - 1):
        return 1
    code = _OUTPUT_TERMS[image_size] - (channel_groups.bit_length() - 1) + pooling
    return max(1, min(code, 7))


def words_of(network: Network) -> tuple[int, ...]:
    """Return the 23 header words of `network` as a current converter writes them; sizes must be legal."""
    first, last = network.layers[0], network.layers[-1]
    g = output_code(last.image_size, last.output_channels, last.pooling)
    g |= len(network.layers) << 5
    g |= _FORMAT << 10
    g |= any(layer.last_layer_out for layer in network.layers) << 12
    g |= (last.pooling and last.image_size == 14) << 13
    g |= INPUT_CODES.get(first.input_channels, 0) << 16
    for i, layer in enumerate(network.layers):
        g |= layer.upsample_enable << (24 + i)
    g |= (network.sampling_method == 1) << 31
    words = [1, g] + [0] * (spec.HEADER_WORDS - 2)
    for i, (layer, addresses) in enumerate(zip(network.layers, layer_addresses(network), strict=True)):
        ten_bit = i == len(network.layers) - 1 and network.activation_bit_mode == 1
        words[2 + 3 * i : 5 + 3 * i] = _a(layer, i == 0, ten_bit), _b(layer, addresses), _c(layer)
        if i < _LATE:
            words[20 + i] = _d(layer)
    return tuple(words)


def _a(layer: MajorLayer, first: bool, ten_bit: bool) -> int:
    size = _SIZE_448 if layer.image_size == 448 else layer.image_size & 0xFF
    inputs = layer.input_channels
    if first:
        inputs = max(spec.ENGINES, 1 << (inputs - 1).bit_length())
        inputs = spec.ENGINES if inputs > 1024 else inputs
    outputs = round_up(layer.output_channels, spec.ENGINES) << ten_bit
    word = size | (inputs & 0x7FF) << 8 | (outputs & 0x7FF) << 19
    return word | layer.pooling << 30 | (layer.learning or layer.last_layer_out) << 31


def _shift(layer: MajorLayer, sub: int) -> int:
    return layer.scaling[sub] & 15 if sub < len(layer.scaling) else 0


def _b(layer: MajorLayer, addresses: tuple[int, int]) -> int:
    word = _shift(layer, 0) | (layer.chip_sublayers & 15) << 4
    return word | (addresses[0] & 0x7FF) << 8 | (addresses[1] & 0x7FF) << 19 | (layer.coef_bits == 3) << 30


def _c(layer: MajorLayer) -> int:
    return sum(_shift(layer, j + 1) << 4 * j for j in range(8))


def _d(layer: MajorLayer) -> int:
    word = sum(_shift(layer, j + 9) << 4 * j for j in range(3))
    for start in layer.shortcuts:
        word |= 1 << (12 + (start - 1) // 2)
    for j, flag in enumerate(layer.one_coef[: spec.MAX_SUBLAYERS]):
        word |= (flag & 1) << (18 + j)
    return word


def parse(words: Sequence[int]) -> HeaderWords:
    """Return the fields of 23 header words; nothing is judged but the number of layers must be 1..6."""
    g = words[1]
    current = g >> 10 & 3 == _FORMAT
    return HeaderWords(
        output_code=g & 7,
        current=current,
        last_layer_out=bool(g >> 12 & 1),
        first_input_channels=_INPUT_CHANNELS.get(g >> 16 & 15, 0),
        sampling_method=g >> 31,
        layers=tuple(_parse_layer(words, i, current) for i in range(g >> 5 & 7)),
    )


def _parse_layer(words: Sequence[int], i: int, current: bool) -> LayerWords:
    a, b, c = words[2 + 3 * i : 5 + 3 * i]
    # Files of the older tool hold something else in place of D [section 2.5].
    d = words[20 + i] if current and i < _LATE else 0
    count = b >> 4 & 15
    shifts = [b & 15, *(c >> 4 * j & 15 for j in range(8)), *(d >> 4 * j & 15 for j in range(3)), 0, 0, 0]
    one_coef = tuple(d >> (18 + j) & 1 for j in range(min(count, spec.MAX_SUBLAYERS)))
    return LayerWords(
        image_size=448 if a & 0xFF == _SIZE_448 else a & 0xFF,
        input_channels=a >> 8 & 0x7FF,
        output_channels=a >> 19 & 0x7FF,
        pooling=bool(a >> 30 & 1),
        outputs=bool(a >> 31),
        chip_sublayers=count,
        in_address=b >> 8 & 0x7FF,
        out_address=b >> 19 & 0x7FF,
        coef_bits=3 if b >> 30 & 1 else 1,
        upsample_enable=bool(words[1] >> (24 + i) & 1),
        shifts=tuple(shifts[:count]),
        shortcuts=tuple(2 * m + 1 for m in range(6) if d >> (12 + m) & 1),
        one_coef=one_coef if any(one_coef) else (),
        depth_enable=bool(d >> 30 & 1),
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
