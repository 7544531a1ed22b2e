"""The host's side of the chip's command stream: the load, the frames and the layout of images.

Source: docs/usb_protocol.md, sections 5 and 6; docs/eusb_protocol.md, section 4. Results are in `readout`, the other
side of the wire is in `word_machine`. This module is the one to import: it carries all their names.
"""

from __future__ import annotations

import numpy as np

from gti.chip.spec import (
    COEFFICIENT_TAIL,
    DATA_PREFIX,
    DATA_UNIT,
    HEADER_BYTES,
    IMAGE_TAIL,
    LAYER_REGISTER_BYTES,
    RESET_WORDS,
    TILE,
)
from gti.chip.wire.readout import MapSet, ReadOut, pack, read_length, read_out, select, tensor, unpack
from gti.chip.wire.registers import Header, MajorLayer, Mode, parse_mode, registers
from gti.chip.wire.tiles import check_image, image_tiles, to_tiles, untile_image
from gti.chip.wire.word_machine import Coefficients, GlobalRegister, Image, LayerRegisters, Reset, WordMachine
from gti.chip.wire.words import (
    COEFFICIENT_WINDOW,
    EUSB,
    FT600,
    FT601,
    LAYER_WINDOW,
    Bytes,
    Framing,
    Opcode,
    Segment,
    assemble,
    fill,
    round_up,
    strip_words,
    word_stream,
)

__all__ = [
    "EUSB",
    "FT600",
    "FT601",
    "Coefficients",
    "FrameEncoder",
    "Framing",
    "GlobalRegister",
    "Header",
    "Image",
    "LayerRegisters",
    "MajorLayer",
    "MapSet",
    "Mode",
    "Opcode",
    "ReadOut",
    "Reset",
    "WordMachine",
    "encode_frame",
    "encode_load",
    "frame_words",
    "image_tiles",
    "load_words",
    "pack",
    "parse_mode",
    "read_length",
    "read_out",
    "registers",
    "select",
    "strip_words",
    "tensor",
    "unpack",
    "untile_image",
    "word_stream",
]


def encode_load(dat: bytes | bytearray | memoryview, *, framing: Framing = FT601) -> bytes:
    """Return the bytes that load the coefficients of a whole .DAT file into the chip.

    The header is not sent here: it goes with the first frame. Raises DatError when there is no header.
    """
    Header.parse(dat)
    coefficients = bytes(DATA_PREFIX) + bytes(memoryview(dat)[HEADER_BYTES:])
    return fill(assemble(_load_segments(len(dat), coefficients), framing), framing)


def load_words(file_bytes: int, framing: Framing = FT601) -> int:
    """Return how many words load a .DAT of `file_bytes` bytes."""
    return framing.filled(sum(part.words for part in _load_segments(file_bytes)))


def frame_words(size: int, channels: int, framing: Framing = FT601) -> int:
    """Return how many words a frame after the first has, for images of `channels` planes of `size` x `size`."""
    return framing.filled(sum(part.words for part in _frame_segments(channels * size * size)))


def _load_segments(file_bytes: int, coefficients: bytes = b"") -> list[Segment]:
    # [section 5]
    length = round_up(DATA_PREFIX + file_bytes - HEADER_BYTES, DATA_UNIT) + COEFFICIENT_TAIL
    return [
        Segment(Opcode.IDLE, RESET_WORDS),
        Segment(Opcode.SOFT_RESET, RESET_WORDS),
        Segment(Opcode.IDLE, 64),
        Segment(Opcode.LOAD_REG_X, len(COEFFICIENT_WINDOW) + LAYER_REGISTER_BYTES, COEFFICIENT_WINDOW),
        Segment(Opcode.IDLE, 8),
        Segment(Opcode.LOAD_FILTER_IMAGE, length, coefficients),
    ]


def _frame_segments(pixels: int, reg0: int = 0) -> list[Segment]:
    # [section 6]; the pixels themselves are put into the words of the last segment
    return [
        Segment(Opcode.IDLE, 8),
        Segment(Opcode.SOFT_RESET, RESET_WORDS),
        Segment(Opcode.IDLE, 240),
        Segment(Opcode.LOAD_REG_0, 4, reg0.to_bytes(4, "little")),
        Segment(Opcode.IDLE, 40),
        Segment(Opcode.LOAD_FILTER_IMAGE, round_up(DATA_PREFIX + pixels, DATA_UNIT) + IMAGE_TAIL),
    ]


class FrameEncoder:
    """Encodes images of one network, mode and kind of stick; everything but the pixels is laid out once.

    `channels` planes are sent as they are: 3 stay 3. Not for use by two threads at a time.
    """

    def __init__(self, header: Header, mode: Mode, channels: int, *, framing: Framing = FT601) -> None:
        """Lay out the frame; raises ImageError when images of the first layer's size have no tiles."""
        size = header.layers[0].image_size
        self.shape = (channels, size, size)
        self.framing = framing
        check_image(np.broadcast_to(np.uint8(0), self.shape))

        reg0, layers = registers(header, mode)
        first = [
            Segment(Opcode.IDLE, 8),
            Segment(Opcode.LOAD_REG_X, len(LAYER_WINDOW) + LAYER_REGISTER_BYTES, LAYER_WINDOW + layers),
            Segment(Opcode.IDLE, 248),
        ]
        pixels = channels * size * size
        frame = _frame_segments(pixels, reg0)

        # One buffer serves first and later frames: they differ in what precedes the reset and in the filling.
        words = assemble([*first, *frame], framing)
        self._later = sum(part.words for part in first)
        self._first_end = framing.filled(len(words))
        self._later_end = self._later + framing.filled(len(words) - self._later)
        filling = max(self._first_end, self._later_end) - len(words)
        self._words = np.concatenate([words, np.full(filling, framing.filler << 8, framing.dtype)])
        start = len(words) - frame[-1].words + DATA_PREFIX
        self._pixels = self._words[start : start + pixels]
        self._opcode = framing.dtype.type(Opcode.LOAD_FILTER_IMAGE << 8)

    def encode(self, image: Bytes, *, first: bool = False) -> bytes:
        """Return the bytes of one frame for `image`, uint8 [C,H,W] of the encoder's shape (any strides).

        `first` adds the layer registers: needed once after each load. Raises ImageError for another shape or type.
        """
        check_image(image, self.shape[1], self.shape[0])
        tiles = to_tiles(image, TILE, len(image)).reshape(-1)
        np.bitwise_or(tiles, self._opcode, out=self._pixels)
        words = self._words[: self._first_end] if first else self._words[self._later : self._later_end]
        return words.tobytes()


def encode_frame(
    dat: bytes | Header, mode: Mode, image: Bytes, *, first: bool = False, framing: Framing = FT601
) -> bytes:
    """Return the bytes of one frame of `image`, uint8 [C,H,W]; see `FrameEncoder`, which is faster for many frames."""
    header = dat if isinstance(dat, Header) else Header.parse(dat)
    check_image(image)
    return FrameEncoder(header, mode, len(image), framing=framing).encode(image, first=first)
