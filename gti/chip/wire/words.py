"""The words that carry the chip's command stream: opcodes, word widths and how a block of words is filled up.

One word holds one data byte and the opcode that says what the byte is for; see docs/usb_protocol.md, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gti.errors import DeviceError

Bytes = npt.NDArray[np.uint8]


# What the first four bytes of an opcode-5 segment announce [wire, sections 5 and 6].
COEFFICIENT_WINDOW = bytes((0x00, 0x02, 0x00, 0x00))
LAYER_WINDOW = bytes((0x00, 0x04, 0x00, 0x00))


class Opcode(IntEnum):
    """The chip's 3-bit commands (docs/usb_protocol.md, section 2)."""

    IDLE = 0
    SOFT_RESET = 1
    CLOCK_DISABLE = 2
    LOAD_FILTER_IMAGE = 3
    LOAD_REG_0 = 4
    LOAD_REG_X = 5
    READ_REG_X = 6
    READ_STATUS = 7


@dataclass(frozen=True)
class Framing:
    """How one kind of bridge carries words.

    `word_bytes` is 4, `[data][opcode][0][0]`, or 2, `[data][opcode]`. Every block of words is filled up to a multiple
    of `block_words` with words of data 0 and opcode `filler` (docs/usb_protocol.md, section 3; docs/eusb_protocol.md,
    section 4).
    """

    name: str
    word_bytes: int
    block_words: int
    filler: Opcode

    @property
    def dtype(self) -> np.dtype:
        """The little-endian integer type of one word."""
        return np.dtype(f"<u{self.word_bytes}")

    def filled(self, words: int) -> int:
        """Return the length of a block of `words` words after filling up."""
        return round_up(words, self.block_words)


FT601 = Framing("FT601", word_bytes=4, block_words=16, filler=Opcode.IDLE)
FT600 = Framing("FT600", word_bytes=2, block_words=16, filler=Opcode.IDLE)
EUSB = Framing("eUSB", word_bytes=4, block_words=512, filler=Opcode.LOAD_FILTER_IMAGE)


@dataclass(frozen=True)
class Segment:
    """A run of words with one opcode: `words` long, beginning with the bytes `data`; the rest of the bytes is zero."""

    opcode: Opcode
    words: int
    data: bytes = b""


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def assemble(segments: Iterable[Segment], framing: Framing) -> np.ndarray:
    """Return the words of `segments`, one after another, without filling; dtype `framing.dtype`."""
    parts = list(segments)
    words = np.zeros(sum(part.words for part in parts), framing.dtype)
    position = 0
    for part in parts:
        words[position : position + len(part.data)] = np.frombuffer(part.data, np.uint8)
        words[position : position + part.words] |= framing.dtype.type(part.opcode << 8)
        position += part.words
    return words


def fill(words: np.ndarray, framing: Framing) -> bytes:
    """Return the bytes of a block of `words`, filled up as `framing` says."""
    filling = np.full(framing.filled(len(words)) - len(words), framing.filler << 8, framing.dtype)
    return np.concatenate([words, filling]).tobytes()


def strip_words(raw: bytes | bytearray | memoryview, word_bytes: int) -> bytes:
    """Return the data bytes of `raw` words as they were read: the first byte of each word, the others mean nothing.

    Raises DeviceError when `raw` ends inside a word.
    """
    if len(raw) % word_bytes:
        raise DeviceError(
            "data from the stick",
            "end inside a word",
            expected=f"a multiple of {word_bytes} bytes",
            received=f"{len(raw)} bytes",
            fix="read the whole result",
        )
    return np.frombuffer(raw, np.uint8)[::word_bytes].tobytes()


def word_stream(data: bytes | bytearray | memoryview, word_bytes: int) -> bytes:
    """Return chip bytes `data` as the words a stick delivers, other bytes zero: the inverse of `strip_words`."""
    return np.frombuffer(data, np.uint8).astype(f"<u{word_bytes}").tobytes()


def runs(opcodes: Bytes) -> Iterable[tuple[int, int, int]]:
    """Yield (opcode, first word, word after the last) for each run of equal `opcodes`, uint8 [words]."""
    if not len(opcodes):
        return
    edges = np.flatnonzero(opcodes[1:] != opcodes[:-1]) + 1
    bounds = [0, *edges.tolist(), len(opcodes)]
    for first, last in pairwise(bounds):
        yield int(opcodes[first]), first, last


def word_width(stream: bytes) -> int | None:
    """Return the width in bytes, 4 or 2, of the words of a written `stream`; None when it is neither."""
    for width in (4, 2):
        if stream and len(stream) % width == 0:
            words = np.frombuffer(stream, np.uint8).reshape(-1, width)
            if not words[:, 2:].any() and (words[:, 1] < len(Opcode)).all():
                return width
    return None
