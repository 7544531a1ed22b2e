"""Read-outs: which maps, how long, how packed; every layout is stated once more here, value by value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gti.chip.wire import protocol
from gti.chip.wire.protocol import Header, MapSet, Mode, ReadOut
from gti.chip.wire.readout import pack_5bit, unpack_5bit
from gti.errors import DatError, DeviceError, ImageError


def header(*layers: tuple[int, int, int, bool], reg0: int = 0) -> Header:
    """Layers are (size, output channels, sublayers, pooling)."""
    words = [1, reg0 | len(layers) << 5]
    for size, channels, sublayers, pooling in layers:
        words += [(0xF0 if size == 448 else size) | 16 << 8 | channels << 19 | pooling << 30, sublayers << 4, 0]
    return Header.from_words(words + [0] * (23 - len(words)))


NET = header((28, 32, 1, True), (14, 256, 2, True))
UNPOOLED = header((56, 16, 2, True), (28, 128, 1, False))


def naive_pack(values: list[int]) -> bytes:
    """25 values of 5 bits in each 16 bytes, value k at bits 5k..5k+4 from the lowest bit of the first byte."""
    blocks = [values[i : i + 25] for i in range(0, len(values), 25)]
    return b"".join(sum(value << 5 * k for k, value in enumerate(block)).to_bytes(16, "little") for block in blocks)


def naive_result(result: ReadOut, maps: list[np.ndarray]) -> bytes:
    data = b""
    for values in maps:
        channels, size, _ = values.shape
        group = 16 if channels >= 256 else channels
        step = result.tile
        for first in range(0, channels, group):
            for y in range(0, size, step):
                for x in range(0, size, step):
                    for c in range(first, first + group):
                        tile = values[c, y : y + step, x : x + step].ravel().tolist()
                        data += bytes(tile).ljust(64, b"\0") if result.bits == 8 else naive_pack(tile)
    return data + bytes(-len(data) % 1024)


# Table of docs/usb_protocol.md, section 7: (major, sublayer, pooled, channels, size) of each set, bits, tile.
@pytest.mark.parametrize(
    ("network", "mode", "expected", "bits", "tile"),
    [
        (NET, Mode.FC, [(1, 1, True, 256, 7)], 8, 7),
        (NET, Mode.LEARN, [(0, 0, False, 32, 28), (1, 0, False, 256, 14), (1, 1, False, 256, 14)], 5, 14),
        (NET, Mode.SINGLE, [(1, 1, False, 256, 14)], 5, 14),
        (NET, Mode.SUBLAST, [(0, 0, False, 32, 28), (1, 1, False, 256, 14)], 5, 14),
        (NET, Mode.LASTMAJOR, [(1, 0, False, 256, 14), (1, 1, False, 256, 14)], 5, 14),
        (NET, 5, [(1, 1, True, 256, 7)], 5, 7),
        (UNPOOLED, Mode.SINGLE, [(1, 0, False, 128, 28)], 5, 14),
        (UNPOOLED, 6, [(1, 0, False, 128, 28)], 5, 14),
        (header((56, 64, 1, True)), 5, [(0, 0, True, 64, 28)], 5, 7),
        (header((14, 64, 3, True), reg0=0x2000), 5, [(0, 2, True, 64, 7)], 8, 7),
        (
            header((28, 16, 1, True), (14, 64, 3, True), reg0=0x1000),
            6,
            [(0, 0, False, 16, 28), (1, 2, False, 64, 14)],
            5,
            14,
        ),
        # Bits 12 and 13 together: SUBLAST goes before FC.
        (
            header((28, 16, 1, True), (14, 64, 3, True), reg0=0x3000),
            5,
            [(0, 0, False, 16, 28), (1, 2, False, 64, 14)],
            5,
            14,
        ),
        (header((448, 64, 1, True)), Mode.LEARN, [(0, 0, False, 64, 448)], 5, 14),
    ],
)
def test_selection(network, mode, expected, bits, tile):
    assert protocol.read_out(network, mode) == ReadOut(bits, tile, tuple(MapSet(*row) for row in expected))


# Examples of docs/usb_protocol.md, section 7.
@pytest.mark.parametrize(
    ("network", "mode", "length"),
    [
        (header((14, 512, 3, True)), Mode.FC, 32768),
        (header((14, 512, 3, True)), 5, 16384),
        (header((14, 512, 3, True)), Mode.SINGLE, 65536),
        (header((14, 16, 1, True)), Mode.FC, 1024),
        (header((14, 17, 1, True)), Mode.FC, 2048),
        (
            header((224, 32, 2, True), (112, 64, 2, True), (56, 128, 3, True), (28, 256, 3, True), (14, 512, 3, True)),
            Mode.LEARN,
            4521984,
        ),
    ],
)
def test_length(network, mode, length):
    assert protocol.read_length(network, mode) == length


@pytest.mark.parametrize(
    ("network", "mode"),
    [
        (NET, Mode.FC),
        (NET, Mode.LEARN),
        (NET, 5),
        (UNPOOLED, Mode.SUBLAST),
        (header((28, 272, 1, True)), Mode.SINGLE),
        (header((28, 272, 1, True)), 5),
        (header((28, 240, 1, True)), 5),
    ],
)
def test_layout_value_by_value(network, mode):
    result = protocol.read_out(network, mode)
    generator = np.random.default_rng(11)
    maps = [generator.integers(0, 1 << result.bits, (s.channels, s.size, s.size), dtype=np.uint8) for s in result.sets]
    data = protocol.pack(maps, network, mode)
    assert data == naive_result(result, maps)
    for got, expected in zip(protocol.unpack(data, network, mode), maps, strict=True):
        np.testing.assert_array_equal(got, expected)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([14, 28]), st.sampled_from([1, 16, 48, 255, 256, 272]), st.integers(1, 3), st.booleans()
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
)
def test_pack_and_unpack_are_inverse(layers, mode, seed):
    network = header(*layers)
    result = protocol.read_out(network, mode)
    generator = np.random.default_rng(seed)
    maps = [generator.integers(0, 32, (s.channels, s.size, s.size), dtype=np.uint8) for s in result.sets]
    data = protocol.pack(maps, network, mode)
    assert len(data) == protocol.read_length(network, mode)
    for got, expected in zip(protocol.unpack(data, network, mode), maps, strict=True):
        np.testing.assert_array_equal(got, expected)


@given(st.lists(st.integers(0, 31), min_size=1, max_size=60))
def test_five_bit_packing(values):
    packed = pack_5bit(np.array([values], np.uint8))
    assert packed.tobytes() == naive_pack(values)
    assert unpack_5bit(packed)[0, : len(values)].tolist() == values


def test_bits_between_the_values_are_ignored():
    result = protocol.read_out(NET, Mode.FC)
    maps = [np.arange(256 * 49, dtype=np.uint8).reshape(256, 7, 7)]
    data = np.frombuffer(result.pack(maps), np.uint8).reshape(-1, 64).copy()
    data[:, 49:] = 0xFF
    np.testing.assert_array_equal(result.unpack(data.tobytes())[0], maps[0])

    result = protocol.read_out(NET, 5)
    data = np.frombuffer(result.pack([maps[0] & 31]), np.uint8).copy()
    data[15::16] |= 0xE0
    np.testing.assert_array_equal(result.unpack(data.tobytes())[0], maps[0] & 31)


@pytest.mark.parametrize(
    ("network", "mode", "fragment"),
    [
        (
            UNPOOLED,
            Mode.FC,
            "major 2 / sub 1: cannot be read out in FC mode; expected an output of 7x7, received 28x28. "
            "Fix: pool the last layer from 14 to 7, or read it with gti run --mode single.",
        ),
        (header((28, 16, 1, True)), Mode.FC, "received 14x14"),
        (header((15, 16, 1, False)), Mode.SINGLE, "expected a multiple of 14, received 15"),
        (header((0, 16, 1, False)), 5, "received 0"),
        (header((14, 300, 2, False)), Mode.LEARN, "major 1 / sub 1: has a channel count without a layout"),
        (header((14, 0, 1, False)), Mode.SINGLE, "received 0"),
    ],
)
def test_impossible_read_outs(network, mode, fragment):
    with pytest.raises(DatError) as caught:
        protocol.read_length(network, mode)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("length", [0, 16383, 16385, 65536])
def test_results_of_another_length_are_refused(length):
    with pytest.raises(DeviceError, match="16384"):
        protocol.unpack(bytes(length), header((14, 256, 1, True)), Mode.FC)


def test_pack_refuses_what_does_not_fit():
    result = protocol.read_out(header((14, 16, 1, False)), Mode.SINGLE)
    good = np.full((16, 14, 14), 31, np.uint8)
    assert len(result.pack([good])) == result.length
    for bad in ([good, good], [good[:8]], [good.astype(np.int64)], []):
        with pytest.raises(ImageError, match="fit"):
            result.pack(bad)
    with pytest.raises(ImageError, match=r"expected 0\.\.31"):
        result.pack([good + 1])
    # 8 bits hold every value
    assert len(replace(result, bits=8, tile=7).pack([good + 200])) == 16 * 4 * 64


@pytest.mark.parametrize(
    ("scaledown", "expected"),
    [
        (0, [0, 1, 31, 248, 255]),
        (3, [0, 0, 3, 31, 31]),
        (7, [0, 0, 0, 1, 1]),
        (8, [0, 0, 0, 0, 0]),
        (99, [0, 0, 0, 0, 0]),
        (-2, [0, 4, 124, 224, 252]),
        (-8, [0, 0, 0, 0, 0]),
        (-99, [0, 0, 0, 0, 0]),
    ],
)
def test_tensor(scaledown, expected):
    maps = [np.array([[[0, 1]]], np.uint8), np.array([[[31], [248], [255]]], np.uint8)]
    for kind, dtype in ((None, np.float32), ("float", np.float32), ("byte", np.uint8), ("other", np.uint8)):
        values = protocol.tensor(maps, scaledown, kind)
        assert values.dtype == dtype
        assert values.tolist() == expected
