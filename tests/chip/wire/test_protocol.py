"""The host's side of the command stream, against captured sessions and the tables of docs/usb_protocol.md."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from golden import captures
from hypothesis import given
from hypothesis import strategies as st

from gti.chip.wire import protocol, words
from gti.chip.wire.protocol import EUSB, FT600, FT601, FrameEncoder, Framing, Header, Mode, registers
from gti.errors import DatError, DeviceError, ImageError, UsageError

FRAMINGS = {"FT601": FT601, "FT600": FT600, "EUSB": EUSB}
CASES = captures.cases("wire.json") + captures.cases("eusb.json")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def layer_words(
    size: int, inputs: int, outputs: int, sublayers: int, pooling: bool, *, learning: bool = False
) -> list[int]:
    code = 0xF0 if size == 448 else size
    a = code | inputs << 8 | outputs << 19 | pooling << 30 | learning << 31
    # Bits beyond the sublayer count, and the third word, are none of the host's business: they pass through.
    return [a, 0x4008_0503 | sublayers << 4, 0x1234_5678]


def header(*layers: list[int], reg0: int = 0x0C01) -> Header:
    words = [1, reg0 | len(layers) << 5, *(word for layer in layers for word in layer)]
    return Header.from_words(words + [0] * (23 - len(words)))


TWO_LAYERS = header(layer_words(28, 16, 32, 1, True, learning=True), layer_words(14, 32, 64, 2, True))


def naive_block(parts: list[tuple[int, bytes]], framing: Framing) -> bytes:
    """Word by word, as the tables say: (opcode, data bytes) of each segment, then the filling."""
    words = [(value, opcode) for opcode, data in parts for value in data]
    while len(words) % framing.block_words:
        words.append((0, int(framing.filler)))
    return b"".join(bytes((value, opcode)).ljust(framing.word_bytes, b"\0") for value, opcode in words)


def naive_tiles(image: np.ndarray) -> bytes:
    channels, size, _ = image.shape
    return bytes(
        image[c, y + row, x + column]
        for y in range(0, size, 14)
        for x in range(0, size, 14)
        for c in range(channels)
        for row in range(14)
        for column in range(14)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_captured_sessions(case):
    dat = captures.network(case)
    framing, mode = FRAMINGS[case["framing"]], case["mode"]
    selection = protocol.read_out(Header.parse(dat), mode)
    assert digest(protocol.encode_load(dat, framing=framing)) == case["load"]
    encoder = FrameEncoder(Header.parse(dat), mode, case["image"]["c"], framing=framing)
    for k, frame in enumerate(case["frames"]):
        image = captures.image(case, k)
        assert digest(encoder.encode(image, first=k == 0)) == frame["write"]
        assert digest(protocol.encode_frame(dat, mode, image, first=k == 0, framing=framing)) == frame["write"]
        assert selection.length * framing.word_bytes == frame["read"]
        maps = selection.unpack(protocol.strip_words(captures.raw_result(case, k), framing.word_bytes))
        values = protocol.tensor(maps, case["scaledown"] or 0, case["output_type"])
        assert digest(values.tobytes()) == frame["tensor"]


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_load_is_the_table_word_by_word(framing):
    dat = TWO_LAYERS.to_bytes() + bytes(range(1, 31))
    coefficients = bytes(3) + dat[92:] + bytes(7)  # 33 bytes, rounded up to 40
    parts = [(0, bytes(8)), (1, bytes(8)), (0, bytes(64)), (5, b"\0\2\0\0" + bytes(84)), (0, bytes(8))]
    assert protocol.encode_load(dat, framing=framing) == naive_block(
        [*parts, (3, coefficients + bytes(32768))], framing
    )


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_frame_is_the_table_word_by_word(framing, first):
    image = np.random.default_rng(5).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    reg0, layers = registers(TWO_LAYERS, Mode.LEARN)
    parts = [(0, bytes(8)), (5, b"\0\4\0\0" + layers), (0, bytes(248))] if first else []
    parts += [(0, bytes(8)), (1, bytes(8)), (0, bytes(240)), (4, struct.pack("<I", reg0)), (0, bytes(40))]
    # 3 + 3 * 784 = 2355, rounded up to 2360
    parts.append((3, bytes(3) + naive_tiles(image) + bytes(5) + bytes(1024)))
    encoded = protocol.encode_frame(TWO_LAYERS, Mode.LEARN, image, first=first, framing=framing)
    assert encoded == naive_block(parts, framing)


def test_frame_of_an_rgb_image_has_the_documented_length():
    vgg = header(layer_words(224, 16, 64, 2, True))
    encoder = FrameEncoder(vgg, Mode.SINGLE, 3)
    image = np.zeros((3, 224, 224), np.uint8)
    assert len(encoder.encode(image, first=True)) == 152208 * 4
    assert len(encoder.encode(image)) == 607488


def test_encoder_takes_any_strides_and_forgets_the_image_before():
    generator = np.random.default_rng(6)
    encoder = FrameEncoder(TWO_LAYERS, Mode.FC, 3)
    for _ in range(2):
        pixels = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        view = pixels.transpose(2, 0, 1)[:, ::-1]
        assert encoder.encode(view) == protocol.encode_frame(TWO_LAYERS, Mode.FC, view.copy())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 28, 28), np.float32),
        np.zeros((28, 28, 3), np.uint8),
        np.zeros((1, 28, 28), np.uint8),
        np.zeros((3, 14, 14), np.uint8),
        np.zeros((3, 28, 14), np.uint8),
        np.zeros((28, 28), np.uint8),
        np.zeros((0, 28, 28), np.uint8),
    ],
    ids=["float", "planes last", "one plane", "small", "oblong", "flat", "empty"],
)
def test_encoder_refuses_other_images(image):
    with pytest.raises(ImageError, match=r"expected uint8 \[3, 28, 28\], received"):
        FrameEncoder(TWO_LAYERS, Mode.FC, 3).encode(image)


def test_a_first_layer_without_tiles_is_refused():
    with pytest.raises(ImageError, match=r"expected uint8 \[planes, multiple of 14"):
        FrameEncoder(header(layer_words(30, 16, 16, 1, False)), Mode.SINGLE, 3)


# Table of docs/usb_protocol.md, section 6: mode, bits 13-11 of reg0, bit 31 of both layers, bit 30 of the last layer.
@pytest.mark.parametrize(
    ("mode", "selection", "learning", "pooling"),
    [
        (Mode.FC, 0b100, (0, 0), 1),
        (Mode.LEARN, 0b001, (1, 1), 1),
        (Mode.SINGLE, 0b001, (0, 0), 0),
        (Mode.SUBLAST, 0b011, (0, 0), 1),
        (Mode.LASTMAJOR, 0b001, (0, 1), 1),
        (5, 0b111, (0, 0), 1),
        (6, 0b111, (0, 0), 1),
    ],
)
def test_registers_carry_the_mode_and_nothing_else_changes(mode, selection, learning, pooling):
    layers = [layer_words(28, 16, 32, 1, True, learning=True), layer_words(14, 32, 64, 2, True)]
    file = Header.from_words([1, 0x81A5_FF5B, *layers[0], *layers[1], *range(0x9000_0000, 0x9000_0000 + 15)])
    assert len(file.layers) == 2
    reg0, layer_bytes = registers(file, mode)
    assert reg0 == 0x81A5_C74B | selection << 11  # bit 4 cleared, bits 13-11 replaced
    words = struct.unpack("<21I", layer_bytes)
    expected = list(file.words[2:])
    expected[0] = expected[0] & 0x7FFF_FFFF | learning[0] << 31
    expected[3] = expected[3] & 0x3FFF_FFFF | pooling << 30 | learning[1] << 31
    assert list(words) == expected


@given(st.binary(min_size=92, max_size=92))
def test_every_bit_of_a_header_passes_through(data):
    try:
        file = Header.parse(data)
    except DatError:
        assert data[4] >> 5 == 0 or b"\0" * 12 in data[8:]
        return
    assert file.to_bytes() == data
    assert struct.pack("<I", file.words[0]) + struct.pack("<22I", *file.words[1:]) == data
    reg0, layers = registers(file, Mode.LEARN)
    assert Header.from_registers(reg0, layers).layers == tuple(
        protocol.MajorLayer(**{**vars(layer), "learning": True}) for layer in file.layers
    )


def test_header_fields():
    assert header(layer_words(448, 16, 1024, 12, True, learning=True)).layers == (
        protocol.MajorLayer(448, 16, 1024, 12, pooling=True, learning=True),
    )


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"", "too short for a .DAT header; expected at least 92 bytes, received 0 bytes"),
        (bytes(91), "received 91 bytes"),
        (bytes(92), "does not describe its major layers; expected 1..7 of them, none empty, received a count of 0"),
        (bytes([1, 0, 0, 0, 0x40]).ljust(92, b"\0"), "received a count of 2"),
    ],
)
def test_headers_that_are_none(data, fragment):
    with pytest.raises(DatError, match=r"net\.dat: ") as caught:
        Header.parse(data, "net.dat")
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("value", "mode"),
    [("fc", 0), ("LEARN", 1), (" single", 2), ("SubLast", 3), ("lastmajor", 4), ("6", 6), (5, 5), (Mode.LEARN, 1)],
)
def test_parse_mode(value, mode):
    assert protocol.parse_mode(value) == mode


@pytest.mark.parametrize("value", ["", "7", "-1", "1.0", "full", 7, -1, True, None, "²"])
def test_parse_mode_refuses(value):
    with pytest.raises(UsageError, match="lastmajor"):
        protocol.parse_mode(value)


@given(st.integers(1, 5), st.sampled_from([14, 28, 42, 56]), st.integers(0, 2**32 - 1))
def test_tiles_of_an_image(channels, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (channels, size, size), dtype=np.uint8)
    data = protocol.image_tiles(image)
    assert data == naive_tiles(image)
    np.testing.assert_array_equal(protocol.untile_image(data, size, channels), image)


@pytest.mark.parametrize(("length", "size", "channels"), [(195, 14, 1), (0, 14, 0), (256, 16, 1), (196, 14, 3)])
def test_untile_refuses(length, size, channels):
    with pytest.raises(ImageError, match=rf"{length} bytes"):
        protocol.untile_image(bytes(length), size, channels)


@pytest.mark.parametrize("word_bytes", [2, 4])
def test_words_of_a_result(word_bytes):
    noise = np.random.default_rng(7).integers(0, 256, (9, word_bytes), dtype=np.uint8)
    assert protocol.strip_words(noise.tobytes(), word_bytes) == noise[:, 0].tobytes()
    assert protocol.strip_words(protocol.word_stream(b"\1\2\xff", word_bytes), word_bytes) == b"\1\2\xff"
    with pytest.raises(DeviceError, match=rf"{word_bytes + 1} bytes"):
        protocol.strip_words(bytes(word_bytes + 1), word_bytes)


WIDTHS = [
    # docs/usb_protocol.md section 2: data, opcode 0..7 and on an FT601 two zeros
    (b"", None),
    (bytes([9, 3, 0, 0, 8, 7, 0, 0]), 4),
    (bytes([9, 3, 0, 1]), 2),
    (bytes([9, 3, 8, 7, 7, 0]), 2),
    (bytes([9, 3, 0, 0, 1]), None),
    (bytes([9, 8]), None),
    (bytes([9, 8, 0, 0]), None),
]


@pytest.mark.parametrize(("stream", "width"), WIDTHS)
def test_the_width_of_words_is_seen(stream, width):
    assert words.word_width(stream) == width


def test_opcodes():
    # docs/usb_protocol.md section 2
    names = ["IDLE", "SOFT_RESET", "CLOCK_DISABLE", "LOAD_FILTER_IMAGE", "LOAD_REG_0", "LOAD_REG_X", "READ_REG_X"]
    assert [code.name for code in words.Opcode] == [*names, "READ_STATUS"]
    assert list(words.Opcode) == list(range(8))


def test_import_is_light():
    code = (
        "import sys, gti.chip.wire.protocol\n"
        "print([m for m in ('tensorflow', 'numba', 'usb', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
