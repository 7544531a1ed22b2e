"""Places and codes in the words of a header, against the tables of docs/dat_format.md section 2."""

from __future__ import annotations

import functools
import math
import operator
from itertools import product

import pytest

from gti.chip import spec
from gti.chip.wire import header_words as bits
from gti.chip.wire.registers import Header

# (field, highest bit, lowest bit) as sections 2.2 to 2.5 have them, of G, A, B, C and D; the fields of G that the host
# changes (bits 4 and 11) as docs/usb_protocol.md section 4 does.
FIELDS = {
    "G": [(bits.OUTPUT_CODE, 2, 0), (bits.CLEARED, 4, 4), (bits.MAJOR_LAYERS, 7, 5), (bits.FORMAT, 11, 10),
          (bits.LAST_LAYER_OUT, 12, 12), (bits.FC, 13, 13), (bits.INPUT_CODE, 19, 16), (bits.TOP_LEFT, 31, 31),
          *((bits.upsampling(i), 24 + i, 24 + i) for i in range(6))],
    "A": [(bits.IMAGE_SIZE, 7, 0), (bits.INPUT_CHANNELS, 18, 8), (bits.OUTPUT_CHANNELS, 29, 19), (bits.POOLING, 30, 30),
          (bits.LEARNING, 31, 31)],
    "B": [(bits.FIRST_SHIFT, 3, 0), (bits.SUBLAYERS, 7, 4), (bits.IN_ADDRESS, 18, 8), (bits.OUT_ADDRESS, 29, 19),
          (bits.THREE_BIT, 30, 30)],
    "C": [(place, 4 * j + 3, 4 * j) for j, place in enumerate(bits.C_SHIFTS)],
    "D": [*((place, 4 * j + 3, 4 * j) for j, place in enumerate(bits.D_SHIFTS)),
          *((place, 12 + m, 12 + m) for m, place in enumerate(bits.D_SHORTCUTS)),
          *((place, 18 + j, 18 + j) for j, place in enumerate(bits.D_ONE_COEF)), (bits.D_DEPTH, 30, 30)],
}  # fmt: skip


@pytest.mark.parametrize("word", FIELDS)
def test_fields_stand_where_the_page_has_them(word: str) -> None:
    for place, high, low in FIELDS[word]:
        largest = (1 << high - low + 1) - 1
        assert place.mask == largest << low
        assert place.put(largest) == place.put(2 * largest + 1) == place.mask  # what does not fit is cut off
        assert place.of(0xFFFFFFFF) == largest
        assert place.of(~place.mask & 0xFFFFFFFF) == 0
    together = functools.reduce(operator.or_, (place.mask for place, _, _ in FIELDS[word]))
    assert together == sum(place.mask for place, _, _ in FIELDS[word])  # no two overlap


def test_shifts_and_flags_of_as_many_sublayers_as_there_can_be() -> None:
    # B has the first shift, C eight, D three; shortcuts start at 1, 3, ... 11.
    assert (len(bits.C_SHIFTS), len(bits.D_SHIFTS)) == (8, 3)
    assert (len(bits.D_SHORTCUTS), len(bits.D_ONE_COEF)) == (6, 12)
    assert bits.UPPER_FORMAT.mask | 1 << 10 == bits.FORMAT.mask
    assert bits.MODE_BITS == 0b111 << 11


def test_codes_of_input_channels() -> None:
    assert {
        **{n: n for n in (1, 2, 4)},
        **dict(zip((8, 12, 16, 24, 32), range(5, 10), strict=True)),
        **dict(zip((64, 128, 256, 512, 1024), range(10, 15), strict=True)),
    } == bits.INPUT_CODES
    assert {0: 3} | {code: count for count, code in bits.INPUT_CODES.items()} == bits.INPUTS_OF_CODE


def test_output_code_counts_powers_of_two() -> None:
    for size, groups, pooling in product(spec.IMAGE_SIZES, (1, 2, 3, 4, 5, 32, 64), (False, True)):
        smaller = math.log2(56 * 56 * 16 / (size * size * 16 * groups))  # 56, 28, ... are powers of two of each other
        expected = max(1, min(7, round(smaller) + 1 + pooling)) if smaller.is_integer() else 1
        assert bits.output_code(size, 16 * groups, pooling) == expected, (size, groups, pooling)


def layer(size: int, outputs: int = 16, *, pooling: bool = False, sublayers: int = 1) -> list[int]:
    return [size | 16 << 8 | outputs << 19 | pooling << 30, sublayers << 4 | 1 << 30, 0]


def header(*layers: list[int], reg0: int = 0) -> Header:
    words = [1, reg0 | 0x0C00 | len(layers) << 5, *(word for one in layers for word in one)]
    return Header.from_words(words + [0] * (23 - len(words)))


@pytest.mark.parametrize(
    ("first", "second", "doubled", "broken"),
    [
        (layer(28), layer(28), 0, None),
        (layer(28, pooling=True), layer(14), 0, None),
        (layer(28, pooling=True), layer(28), 0, (1, 14)),
        (layer(28), layer(14), 0, (1, 28)),
        (layer(14), layer(28), 1, None),
        (layer(14), layer(14), 1, (1, 28)),
        (layer(14, pooling=True), layer(14), 1, None),
    ],
)
def test_sizes_that_chain(first: list[int], second: list[int], doubled: int, broken: tuple[int, int] | None) -> None:
    assert header(first, second, reg0=doubled << 24).broken_chain() == broken


def test_pooling_that_takes_the_top_left() -> None:
    assert header(layer(14)).takes_top_left is False
    assert header(layer(14), reg0=1 << 31).takes_top_left is True


def test_what_the_last_layer_may_be() -> None:
    # The output code of 14 x 14 x 16 pooled is 6, of 32 stored channels 5, which ten bits of 16 channels make 6.
    plain = header(layer(14, pooling=True), reg0=6)
    assert plain.last_reads_as(ten_bit=False)
    assert not plain.last_reads_as(ten_bit=False, pooling=False)
    assert not plain.last_reads_as(ten_bit=True)
    ten = header(layer(14, 32, pooling=True), reg0=6)
    assert ten.last_reads_as(ten_bit=True)
    assert not ten.last_reads_as(ten_bit=False)
    # In mode SINGLE the register says that nothing is pooled; the file's word still counts.
    single = header(layer(14, 32), reg0=6)
    assert single.last_reads_as(ten_bit=True, pooling=True)
    assert not single.last_reads_as(ten_bit=True)
    assert not header(layer(14, 32, pooling=True, sublayers=2), reg0=6).last_reads_as(ten_bit=True)
