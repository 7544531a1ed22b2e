"""Results on the wire: which maps a stick delivers, in which order, and how their values are packed.

Source: docs/usb_protocol.md, section 7. The selection is a function of the registers, so that the host and the virtual
stick cannot disagree about it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gti.chip.spec import FC_READOUT_SIZE, FC_SHIFT, GROUPED_FROM, OUTPUT_GROUP, POOLED_TILE, READ_UNIT, TILE
from gti.chip.wire import header_words
from gti.chip.wire.registers import Header, Mode, registers
from gti.chip.wire.tiles import from_tiles, to_tiles
from gti.chip.wire.words import Bytes, round_up
from gti.errors import DatError, DeviceError, ImageError

_VALUES_PER_BLOCK = 25
_BLOCK_BYTES = 16
_FC_TILE_BYTES = 64
# Every frame asks for the same few read-outs, several times.
_REMEMBERED = 64


@dataclass(frozen=True)
class MapSet:
    """The maps of one sublayer: indices from 0, `channels` maps of `size` x `size` pixels, after pooling or before."""

    major: int
    sublayer: int
    pooled: bool
    channels: int
    size: int


@dataclass(frozen=True)
class ReadOut:
    """What a frame delivers: map sets in their order, `bits` per value (5 or 8), in tiles of `tile` x `tile` pixels."""

    bits: int
    tile: int
    sets: tuple[MapSet, ...]

    @property
    def shift(self) -> int:
        """Left shift of the codes in the values: a value is code << shift, the bits below are zero."""
        return FC_SHIFT if self.bits == 8 else 0

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile of one channel."""
        if self.bits == 8:
            return _FC_TILE_BYTES
        return -(-self.tile * self.tile // _VALUES_PER_BLOCK) * _BLOCK_BYTES

    @functools.cached_property  # asked for several times a frame
    def length(self) -> int:
        """Chip data bytes to read for one frame, a multiple of 1024."""
        return round_up(sum(self._set_bytes(maps) for maps in self.sets), READ_UNIT)

    def _set_bytes(self, maps: MapSet) -> int:
        return maps.channels * (maps.size // self.tile) ** 2 * self.tile_bytes

    def unpack(self, data: bytes | bytearray | memoryview) -> list[Bytes]:
        """Return the raw values, uint8 [C,H,W] for each set, 0..31 or 0..255, of chip bytes `data`.

        Raises DeviceError when `data` is not `length` bytes long.
        """
        if len(data) != self.length:
            raise DeviceError(
                "result of the stick",
                "has the wrong length",
                expected=f"{self.length} data bytes",
                received=f"{len(data)}",
                fix="read it in the mode the frame was sent with",
            )
        chip = np.frombuffer(data, np.uint8)
        result, position = [], 0
        for maps in self.sets:
            tiles = chip[position : position + self._set_bytes(maps)].reshape(-1, self.tile_bytes)
            position += self._set_bytes(maps)
            values = tiles if self.bits == 8 else unpack_5bit(tiles)
            result.append(
                from_tiles(values[:, : self.tile**2], maps.channels, maps.size, self.tile, _group(maps.channels))
            )
        return result

    def pack(self, maps: Sequence[Bytes]) -> bytes:
        """Return the chip bytes of `maps`, uint8 [C,H,W] for each set, the inverse of `unpack`; unused bits are zero.

        Raises ImageError for other shapes or types, and for values beyond the bits of this read-out.
        """
        shapes = [(s.channels, s.size, s.size) for s in self.sets]
        if [m.shape for m in maps] != shapes or any(m.dtype != np.uint8 for m in maps):
            raise ImageError(
                "maps to pack",
                "do not fit the read-out",
                expected=f"uint8 {shapes}",
                received=[(str(m.dtype), m.shape) for m in maps],
            )
        top = (1 << self.bits) - 1
        if any(m.size and int(m.max()) > top for m in maps):
            raise ImageError("maps to pack", "hold values too large", expected=f"0..{top}")
        parts = []
        for values in maps:
            tiles = to_tiles(values, self.tile, _group(len(values)))
            packed = np.zeros((len(tiles), self.tile_bytes), np.uint8)
            if self.bits == 8:
                packed[:, : tiles.shape[1]] = tiles
            else:
                packed[:] = pack_5bit(tiles)
            parts.append(packed.tobytes())
        return b"".join(parts).ljust(self.length, b"\0")


@functools.lru_cache(maxsize=_REMEMBERED)
def select(header: Header) -> ReadOut:
    """Return the read-out that the registers `header` (mode bits included) make the chip send.

    Raises DatError when a map does not fit tiles, or an FC read-out is not 7x7.
    """
    reg0, layers, last = header.reg0, header.layers, len(header.layers) - 1
    final = layers[last]
    output = MapSet(
        last,
        max(final.sublayers - 1, 0),
        final.pooling,
        final.output_channels,
        final.image_size // 2 if final.pooling else final.image_size,
    )
    every_major = header_words.LAST_LAYER_OUT.of(reg0)  # goes before FC where a file has both bits set
    if header_words.FC.of(reg0) and not every_major:
        if output.size != FC_READOUT_SIZE:
            raise DatError(
                _path(output),
                "cannot be read out in FC mode",
                expected=f"an output of {FC_READOUT_SIZE}x{FC_READOUT_SIZE}",
                received=f"{output.size}x{output.size}",
                fix="pool the last layer from 14 to 7, or read it with gti run --mode single",
            )
        return _checked(ReadOut(8, POOLED_TILE, (output,)))
    if every_major:
        chosen = [(i, max(layer.sublayers - 1, 0)) for i, layer in enumerate(layers)]
    else:
        chosen = [(i, j) for i, layer in enumerate(layers) if layer.learning for j in range(layer.sublayers)]
    if not chosen:
        return _checked(ReadOut(5, POOLED_TILE if final.pooling else TILE, (output,)))
    sets = tuple(MapSet(i, j, False, layers[i].output_channels, layers[i].image_size) for i, j in chosen)
    return _checked(ReadOut(5, TILE, sets))


@functools.lru_cache(maxsize=_REMEMBERED)
def read_out(header: Header, mode: Mode) -> ReadOut:
    """Return what a frame sent in `mode` delivers; errors as `select`."""
    return select(Header.from_registers(*registers(header, mode)))


def read_length(header: Header, mode: Mode) -> int:
    """Return the chip data bytes of one result, a multiple of 1024; on the wire each takes one word."""
    return read_out(header, mode).length


def unpack(data: bytes | bytearray | memoryview, header: Header, mode: Mode) -> list[Bytes]:
    """Return the maps, uint8 [C,H,W] raw values, in chip bytes `data` read in `mode`; errors as `ReadOut.unpack`."""
    return read_out(header, mode).unpack(data)


def pack(maps: Sequence[Bytes], header: Header, mode: Mode) -> bytes:
    """Return the chip bytes a stick delivers for `maps` in `mode`, inverse to `unpack`; errors as `ReadOut.pack`."""
    return read_out(header, mode).pack(maps)


def tensor(maps: Sequence[Bytes], scaledown: int = 0, output_type: str | None = "float") -> np.ndarray:
    """Return all `maps` as one flat array: values >> `scaledown`, or << -`scaledown` within 8 bits when it is negative.

    float32 for `output_type` "float" or None, uint8 for any other string (docs/usb_protocol.md, section 7).
    """
    flat = maps[0].ravel() if len(maps) == 1 else np.concatenate([m.ravel() for m in maps])
    places = np.uint8(min(abs(scaledown), 8))  # 8 bits are gone after 8 places, so larger shifts change nothing
    scaled = flat >> places if scaledown >= 0 else flat << places
    return scaled.astype(np.float32) if output_type in (None, "float") else scaled


def unpack_5bit(packed: Bytes) -> Bytes:
    """Return values 0..31, uint8 [n, 25*k], of `packed`, uint8 [n, 16*k]: 25 values in 16 bytes, lowest bits first."""
    halves = np.ascontiguousarray(packed).view("<u8").reshape(-1, 2)
    low, high = np.ascontiguousarray(halves.T)
    values = np.empty((len(halves), _VALUES_PER_BLOCK), np.uint8)
    for k in range(_VALUES_PER_BLOCK):
        bit = 5 * k
        if bit == 60:  # this value lies across both halves
            value = low >> np.uint64(60) | high << np.uint64(4)
        else:
            value = low >> np.uint64(bit) if bit < 60 else high >> np.uint64(bit - 64)
        values[:, k] = value & np.uint64(31)
    return values.reshape(len(packed), -1)


def pack_5bit(values: Bytes) -> Bytes:
    """Return `values`, uint8 [n, m] 0..31, packed to uint8 [n, 16 * ceil(m / 25)], the inverse of `unpack_5bit`."""
    count, width = values.shape
    blocks = -(-width // _VALUES_PER_BLOCK)
    padded = np.zeros((count, blocks * _VALUES_PER_BLOCK), np.uint8)
    padded[:, :width] = values
    columns = padded.reshape(-1, _VALUES_PER_BLOCK).astype(np.uint64)
    halves = np.zeros((len(columns), 2), "<u8")
    for k in range(_VALUES_PER_BLOCK):
        bit = 5 * k
        if bit < 64:
            halves[:, 0] |= columns[:, k] << np.uint64(bit)
        if bit == 60:
            halves[:, 1] |= columns[:, k] >> np.uint64(4)
        elif bit > 60:
            halves[:, 1] |= columns[:, k] << np.uint64(bit - 64)
    return halves.view(np.uint8).reshape(count, blocks * _BLOCK_BYTES)


def _group(channels: int) -> int:
    return OUTPUT_GROUP if channels >= GROUPED_FROM else channels


def _path(maps: MapSet) -> str:
    return f"major {maps.major + 1} / sub {maps.sublayer + 1}"


def _checked(result: ReadOut) -> ReadOut:
    for maps in result.sets:
        if maps.size % result.tile or not maps.size:
            raise DatError(
                _path(maps),
                "has a map size that does not fit tiles",
                expected=f"a multiple of {result.tile}",
                received=maps.size,
                fix="use the image sizes of the GTI 2801",
            )
        if not maps.channels or maps.channels % _group(maps.channels):
            raise DatError(
                _path(maps),
                "has a channel count without a layout on the wire",
                expected=f"1..{GROUPED_FROM - 1}, or a multiple of {OUTPUT_GROUP}",
                received=maps.channels,
            )
    return result
