"""The chip's side of the command stream: words in, what they ask for out.

Source: docs/usb_protocol.md, section 10. Used by the virtual stick and by the readable listing of traces.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gti.chip.spec import COEFFICIENT_TAIL, DATA_PREFIX, DATA_UNIT, IMAGE_TAIL, LAYER_REGISTER_BYTES, TILE
from gti.chip.wire.readout import ReadOut, select
from gti.chip.wire.registers import Header
from gti.chip.wire.tiles import untile_image
from gti.chip.wire.words import COEFFICIENT_WINDOW, EUSB, LAYER_WINDOW, Bytes, Opcode, runs
from gti.errors import DatError

# Far above the largest load, 13 MB of coefficients: what a broken stream may make us keep.
MAX_SEGMENT_BYTES = 64 * 1024 * 1024
_KEPT = (Opcode.LOAD_FILTER_IMAGE, Opcode.LOAD_REG_0, Opcode.LOAD_REG_X)
# After the image: rounding to 8 bytes, the fixed zeros, and on eUSB up to one block less a word.
_LONGEST_IMAGE_TAIL = DATA_UNIT - 1 + IMAGE_TAIL + EUSB.block_words - 1


@dataclass(frozen=True)
class Reset:
    """The chip was reset: results that wait are gone."""


@dataclass(frozen=True)
class Coefficients:
    """The filter rows were loaded: `data` is the .DAT from byte 92 on, followed by zeros."""

    data: bytes


@dataclass(frozen=True)
class LayerRegisters:
    """The 84 bytes of layer registers were loaded."""

    data: bytes


@dataclass(frozen=True)
class GlobalRegister:
    """The global register was loaded."""

    value: int


@dataclass(frozen=True)
class Image:
    """A whole image came in; the chip computes now.

    `header` holds the registers in force, mode bits included, as the words of a .DAT header; `data` are `channels`
    planes in tiles. With 14x14 images the zeros behind the image can look like further planes, never beyond the input
    channels of the first layer.
    """

    header: Header
    size: int
    channels: int
    data: bytes

    @property
    def read_out(self) -> ReadOut:
        """What the registers ask for; raises DatError when they ask for the impossible."""
        return select(self.header)

    def planes(self) -> Bytes:
        """Return the image, uint8 [C,H,W]."""
        return untile_image(self.data, self.size, self.channels)


Event = Reset | Coefficients | LayerRegisters | GlobalRegister | Image


@functools.lru_cache(maxsize=64)
def _header(reg0: int, layers: bytes) -> Header:
    # The same for every frame of a network.
    return Header.from_registers(reg0, layers)


class WordMachine:
    """Collects words of `word_bytes` bytes, in pieces of any size, and tells what they ask the chip for.

    Words that no host sends (opcodes above 7, something in the unused bytes) are dropped and counted in
    `garbage_words`; segments without a meaning, too, in `refused_segments`. A segment ends when the opcode changes or
    at `end_segment`, to be called before a read: nothing else need follow an image.
    """

    def __init__(self, word_bytes: int) -> None:
        self.word_bytes = word_bytes
        self.garbage_words = 0
        self.refused_segments = 0
        self._events: list[Event] = []
        self._rest = b""
        self._opcode = int(Opcode.IDLE)
        self._segment = bytearray()
        self._window_open = False
        self._layers: bytes | None = None
        self._reg0: int | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream."""
        stream = self._rest + bytes(data) if self._rest else data
        whole = len(stream) - len(stream) % self.word_bytes
        self._rest = bytes(stream[whole:])
        words = np.frombuffer(stream, np.uint8, whole).reshape(-1, self.word_bytes)
        good = words[:, 1] < len(Opcode)
        if self.word_bytes > 2:
            good &= (words[:, 2] | words[:, 3]) == 0
        if not good.all():
            self.garbage_words += int(len(good) - np.count_nonzero(good))
            words = words[good]
        for opcode, first, last in runs(words[:, 1]):
            self._take(opcode, words[first:last, 0])

    def pop_events(self) -> list[Event]:
        """Return what happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def end_segment(self) -> None:
        """End the running segment, as a read does."""
        opcode, data = self._opcode, bytes(self._segment)
        self._opcode = int(Opcode.IDLE)
        self._segment.clear()
        if opcode == Opcode.LOAD_REG_X:
            self._layer_registers(data)
        elif opcode == Opcode.LOAD_REG_0:
            self._global_register(data)
        elif opcode == Opcode.LOAD_FILTER_IMAGE and self._window_open:
            self._coefficients(data)
        elif opcode == Opcode.LOAD_FILTER_IMAGE:
            self._image(data)

    def _take(self, opcode: int, data: Bytes) -> None:
        if opcode != self._opcode:
            self.end_segment()
            self._opcode = opcode
            if opcode == Opcode.SOFT_RESET:
                self._events.append(Reset())
        if opcode in _KEPT:
            room = MAX_SEGMENT_BYTES - len(self._segment)
            self._segment += data[:room].tobytes()
            self.garbage_words += max(0, len(data) - room)

    def _layer_registers(self, data: bytes) -> None:
        window, content = data[: len(LAYER_WINDOW)], data[len(LAYER_WINDOW) :]
        if len(content) != LAYER_REGISTER_BYTES or window not in (COEFFICIENT_WINDOW, LAYER_WINDOW):
            self.refused_segments += 1
            return
        self._window_open = window == COEFFICIENT_WINDOW
        if window == LAYER_WINDOW:
            self._layers = content
            self._events.append(LayerRegisters(content))

    def _global_register(self, data: bytes) -> None:
        if len(data) != 4:
            self.refused_segments += 1
            return
        self._reg0 = int.from_bytes(data, "little")
        self._events.append(GlobalRegister(self._reg0))

    def _coefficients(self, data: bytes) -> None:
        self._window_open = False
        if len(data) < DATA_PREFIX + COEFFICIENT_TAIL:
            self.refused_segments += 1
            return
        self._events.append(Coefficients(data[DATA_PREFIX:]))

    def _image(self, data: bytes) -> None:
        image = self._complete_image(data)
        if image is None:
            self.refused_segments += 1
        else:
            self._events.append(image)

    def _complete_image(self, data: bytes) -> Image | None:
        # The length of the segment tells how many planes came: what follows them is shorter than a plane, except for
        # 14x14 images, where the first layer's input channels are the limit.
        if self._reg0 is None or self._layers is None:
            return None
        try:
            header = _header(self._reg0, self._layers)
        except DatError:
            return None
        first = header.layers[0]
        plane = first.image_size**2
        if not plane or first.image_size % TILE:
            return None
        channels = min((len(data) - DATA_PREFIX - IMAGE_TAIL) // plane, first.input_channels)
        end = DATA_PREFIX + channels * plane
        if channels < 1 or len(data) - end > _LONGEST_IMAGE_TAIL or any(data[end:]):
            return None
        return Image(header, first.image_size, channels, data[DATA_PREFIX:end])
