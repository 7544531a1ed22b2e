"""What the host reads of a .DAT header, and the registers it makes of it for a read-out mode.

The header passes through with all its bits; only the fields named here are looked at or changed
(docs/usb_protocol.md, sections 4 and 6).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from gti.chip.spec import HEADER_BYTES, HEADER_WORDS, LAYER_REGISTER_BYTES, REGISTER_SLOTS
from gti.errors import DatError, UsageError, sentence

MODE_BITS = 0x3800
FC_BIT = 0x2000
SUBLAST_BIT = 0x1000
_CLEARED_BIT = 0x10
_POOLING_BIT = 1 << 30
_LEARNING_BIT = 1 << 31
_SIZE_448 = 0xF0
LARGEST_MODE = 6


class Mode(IntEnum):
    """Read-out modes of the chip (docs/usb_protocol.md, section 6); 5 and 6 read what the file itself selects."""

    FC = 0
    LEARN = 1
    SINGLE = 2
    SUBLAST = 3
    LASTMAJOR = 4


def parse_mode(value: str | int) -> int:
    """Return the number, 0..6, of a read-out mode given as a number or as a name in any case.

    Raises UsageError for anything else.
    """
    text = str(value).strip().lower()
    if text.upper() in Mode.__members__:
        return int(Mode[text.upper()])
    if not isinstance(value, bool) and len(text) == 1 and text in "0123456":
        return int(text)
    names = ", ".join(mode.name.lower() for mode in Mode)
    raise UsageError(
        sentence("read-out mode", "is unknown", expected=f"one of {names} or a number 0..{LARGEST_MODE}", received=text)
    )


@dataclass(frozen=True)
class MajorLayer:
    """The fields of one major layer that the host uses: sizes in pixels, counts of channels and sublayers."""

    image_size: int
    input_channels: int
    output_channels: int
    sublayers: int
    pooling: bool
    learning: bool


@dataclass(frozen=True)
class Header:
    """The 23 words of a .DAT header and, of them, the fields of each major layer."""

    words: tuple[int, ...]
    layers: tuple[MajorLayer, ...]

    @classmethod
    def parse(cls, dat: bytes | bytearray | memoryview, name: str = "header") -> Header:
        """Return the header at the start of `dat`; every bit is kept.

        Raises DatError, naming the file `name`, when the header is cut off or counts no or empty major layers.
        """
        if len(dat) < HEADER_BYTES:
            raise DatError(
                sentence(
                    name,
                    "is too short for a .DAT header",
                    expected=f"at least {HEADER_BYTES} bytes",
                    received=f"{len(dat)} bytes",
                    fix="convert the network again",
                )
            )
        return cls.from_words(struct.unpack_from(f"<{HEADER_WORDS}I", dat), name)

    @classmethod
    def from_words(cls, words: Sequence[int], name: str = "header") -> Header:
        """Return the header of 23 `words`; see `parse` for the errors."""
        count = words[1] >> 5 & 7
        layers = tuple(_major_layer(words[2 + 3 * i], words[3 + 3 * i]) for i in range(count))
        if not layers or not all(any(words[2 + 3 * i : 5 + 3 * i]) for i in range(count)):
            raise DatError(
                sentence(
                    name,
                    "does not describe its major layers",
                    expected=f"1..{REGISTER_SLOTS} of them, none empty",
                    received=f"a count of {count}",
                    fix="pass a .DAT file of the GTI 2801",
                )
            )
        return cls(tuple(words), layers)

    @classmethod
    def from_registers(cls, reg0: int, layers: bytes, name: str = "registers") -> Header:
        """Return the header that the registers `reg0` and `layers`, 84 bytes, stand for; see `parse` for the errors."""
        return cls.from_words((1, reg0, *struct.unpack(f"<{LAYER_REGISTER_BYTES // 4}I", layers)), name)

    def to_bytes(self) -> bytes:
        """Return the 92 bytes of the header."""
        return struct.pack(f"<{HEADER_WORDS}I", *self.words)


def _major_layer(a: int, b: int) -> MajorLayer:
    size = a & 0xFF
    return MajorLayer(
        image_size=448 if size == _SIZE_448 else size,
        input_channels=a >> 8 & 0x7FF,
        output_channels=a >> 19 & 0x7FF,
        sublayers=b >> 4 & 0xF,
        pooling=bool(a & _POOLING_BIT),
        learning=bool(a & _LEARNING_BIT),
    )


def registers(header: Header, mode: int) -> tuple[int, bytes]:
    """Return the global register and the 84 bytes of layer registers that make the chip read out `mode`.

    Numbers that are no `Mode` leave the selection of the file in place and let no layer send all its sublayers.
    """
    selection = {Mode.FC: FC_BIT, Mode.SUBLAST: 0x1800}.get(Mode(mode), 0x0800) if mode in list(Mode) else None
    reg0 = header.words[1] & ~_CLEARED_BIT
    if selection is not None:
        reg0 = reg0 & ~MODE_BITS | selection

    words = list(header.words[2:])
    last = len(header.layers) - 1
    for i in range(len(header.layers)):
        words[3 * i] &= ~_LEARNING_BIT
        if mode == Mode.LEARN or (mode == Mode.LASTMAJOR and i == last):
            words[3 * i] |= _LEARNING_BIT
    if mode == Mode.SINGLE:
        words[3 * last] &= ~_POOLING_BIT
    return reg0, struct.pack(f"<{len(words)}I", *words)
