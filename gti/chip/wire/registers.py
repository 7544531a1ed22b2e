"""What the host reads of a .DAT header, and the registers it makes of it for a read-out mode.

The header passes through with all its bits; only the fields named here are looked at or changed
(docs/usb_protocol.md, sections 4 and 6).
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from gti.chip.spec import HEADER_BYTES, HEADER_WORDS, LAYER_REGISTER_BYTES, REGISTER_SLOTS
from gti.chip.wire import header_words as bits
from gti.errors import DatError, UsageError


class Mode(IntEnum):
    """Read-out modes of the chip (docs/usb_protocol.md, section 6)."""

    FC = 0  # the output, pooled to 7x7, in 8 bits
    LEARN = 1  # every sublayer
    SINGLE = 2  # the last sublayer of the last layer
    SUBLAST = 3  # the last sublayer of every major layer
    LASTMAJOR = 4  # every sublayer of the last layer
    FILE_5 = 5  # what the file itself selects
    FILE_6 = 6


# Those that have a list of maps of their own, and their names for users.
NAMED_MODES = (Mode.FC, Mode.LEARN, Mode.SINGLE, Mode.SUBLAST, Mode.LASTMAJOR)
MODE_NAMES = tuple(mode.name.lower() for mode in NAMED_MODES)
# Of chips in a row, every one delivers in these; the others concern the last one.
OF_EVERY_CHIP = (Mode.LEARN, Mode.SUBLAST)
LARGEST_MODE = int(max(Mode))


def parse_mode(value: str | int) -> Mode:
    """Return the read-out mode given as a number, 0..6, or as a name in any case.

    Raises UsageError for anything else.
    """
    text = str(int(value) if isinstance(value, Mode) else value).strip().lower()
    if text in MODE_NAMES:
        return Mode[text.upper()]
    if not isinstance(value, bool) and len(text) == 1 and text in "0123456":
        return Mode(int(text))
    names = ", ".join(MODE_NAMES)
    raise UsageError(
        "read-out mode", "is unknown", expected=f"one of {names} or a number 0..{LARGEST_MODE}", received=text
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
                name,
                "is too short for a .DAT header",
                expected=f"at least {HEADER_BYTES} bytes",
                received=f"{len(dat)} bytes",
                fix="convert the network again",
            )
        return cls.from_words(struct.unpack_from(f"<{HEADER_WORDS}I", dat), name)

    @classmethod
    def from_words(cls, words: Sequence[int], name: str = "header") -> Header:
        """Return the header of 23 `words`; see `parse` for the errors."""
        count = bits.MAJOR_LAYERS.of(words[bits.GLOBAL])
        layers = tuple(_major_layer(words[2 + 3 * i], words[3 + 3 * i]) for i in range(count))
        if not layers or not all(any(words[2 + 3 * i : 5 + 3 * i]) for i in range(count)):
            raise DatError(
                name,
                "does not describe its major layers",
                expected=f"1..{REGISTER_SLOTS} of them, none empty",
                received=f"a count of {count}",
                fix="pass a .DAT file of the GTI 2801",
            )
        return cls(tuple(words), layers)

    @classmethod
    def from_registers(cls, reg0: int, layers: bytes, name: str = "registers") -> Header:
        """Return the header that the registers `reg0` and `layers`, 84 bytes, stand for; see `parse` for the errors."""
        return cls.from_words((1, reg0, *struct.unpack(f"<{LAYER_REGISTER_BYTES // 4}I", layers)), name)

    @property
    def reg0(self) -> int:
        """The word of the global register."""
        return self.words[bits.GLOBAL]

    @property
    def planes(self) -> int:
        """Number of planes of the image."""
        return bits.INPUTS_OF_CODE.get(bits.INPUT_CODE.of(self.reg0), 3)

    @functools.cached_property  # asked for with every frame
    def upsampled(self) -> tuple[int, ...]:
        """Indices of the major layers that double their input."""
        return tuple(i for i in range(len(self.layers)) if bits.upsampling(i).of(self.reg0))

    def broken_chain(self) -> tuple[int, int] | None:
        """Return (index, size delivered to it) of the first major layer whose image size is not what it gets."""
        for i, (before, layer) in enumerate(itertools.pairwise(self.layers), 1):
            size = before.image_size << (i - 1 in self.upsampled) >> before.pooling
            if layer.image_size != size:
                return i, size
        return None

    @property
    def takes_top_left(self) -> bool:
        """Whether pooling takes the top-left pixel, not the largest."""
        return bool(bits.TOP_LEFT.of(self.reg0))

    def last_reads_as(self, ten_bit: bool, pooling: bool | None = None) -> bool:
        """Return whether the header allows a last layer of five bits, or with `ten_bit` of ten.

        `pooling`: in place of that in the header. Only a layer of one sublayer can have ten bits; both readings may be
        possible, and then the filter rows tell (`dat.decode`).
        """
        last = self.layers[-1]
        if ten_bit and last.sublayers != 1:
            return False
        pooled = last.pooling if pooling is None else pooling
        code = bits.OUTPUT_CODE.of(self.reg0)
        return bits.reads_as(code, last.image_size, last.output_channels, pooled, ten_bit)

    def to_bytes(self) -> bytes:
        """Return the 92 bytes of the header."""
        return struct.pack(f"<{HEADER_WORDS}I", *self.words)


def _major_layer(a: int, b: int) -> MajorLayer:
    return MajorLayer(
        image_size=bits.size_of_code(bits.IMAGE_SIZE.of(a)),
        input_channels=bits.INPUT_CHANNELS.of(a),
        output_channels=bits.OUTPUT_CHANNELS.of(a),
        sublayers=bits.SUBLAYERS.of(b),
        pooling=bool(bits.POOLING.of(a)),
        learning=bool(bits.LEARNING.of(a)),
    )


_SELECTIONS = {
    Mode.FC: bits.FC.mask,
    Mode.LEARN: bits.UPPER_FORMAT.mask,
    Mode.SINGLE: bits.UPPER_FORMAT.mask,
    Mode.SUBLAST: bits.UPPER_FORMAT.mask | bits.LAST_LAYER_OUT.mask,
    Mode.LASTMAJOR: bits.UPPER_FORMAT.mask,
}


def registers(header: Header, mode: Mode) -> tuple[int, bytes]:
    """Return the global register and the 84 bytes of layer registers that make the chip read out `mode`.

    FILE_5 and FILE_6 leave the selection of the file in place and let no layer send all its sublayers.
    """
    selection = _SELECTIONS.get(mode)
    reg0 = header.reg0 & ~bits.CLEARED.mask
    if selection is not None:
        reg0 = reg0 & ~bits.MODE_BITS | selection

    words = list(header.words[2:])
    last = len(header.layers) - 1
    for i in range(len(header.layers)):
        words[3 * i] &= ~bits.LEARNING.mask
        if mode == Mode.LEARN or (mode == Mode.LASTMAJOR and i == last):
            words[3 * i] |= bits.LEARNING.mask
    if mode == Mode.SINGLE:
        words[3 * last] &= ~bits.POOLING.mask
    return reg0, struct.pack(f"<{len(words)}I", *words)
