"""The order of pixels on the wire: maps are cut into square tiles, and channels are taken in groups.

Source: docs/usb_protocol.md, sections 6 (images) and 7 (results).
"""

from __future__ import annotations

import numpy as np

from gti.chip.spec import TILE
from gti.chip.wire.words import Bytes
from gti.errors import ImageError


def to_tiles(maps: Bytes, tile: int, group: int) -> Bytes:
    """Return `maps`, [C,H,W], as rows of one tile of one channel each, [n, tile * tile].

    Groups of `group` channels come outermost, in them the tiles in raster order, in a tile the channels of the group.
    """
    channels, height, width = maps.shape
    grid = maps.reshape(channels // group, group, height // tile, tile, width // tile, tile)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(-1, tile * tile)


def from_tiles(tiles: Bytes, channels: int, size: int, tile: int, group: int) -> Bytes:
    """Return maps, [channels, size, size], from the rows that `to_tiles` makes."""
    side = size // tile
    grid = tiles.reshape(channels // group, side, side, group, tile, tile)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(channels, size, size)


def image_tiles(image: Bytes) -> bytes:
    """Return the bytes of `image`, uint8 [C,H,W], H = W a multiple of 14, in the chip's order; errors ImageError.

    Tiles of 14x14 in raster order; in a tile all channels; in a channel 14 rows of 14.
    """
    check_image(image)
    return to_tiles(image, TILE, len(image)).tobytes()


def untile_image(data: bytes | bytearray | memoryview, size: int, channels: int) -> Bytes:
    """Return the image, uint8 [channels, size, size], whose `image_tiles` are `data`.

    Raises ImageError when the length does not fit.
    """
    if size % TILE or len(data) != channels * size * size or not len(data):
        raise ImageError(
            "image bytes",
            "have the wrong length",
            expected=f"{channels} planes of {size}x{size}, tiles of {TILE}x{TILE}",
            received=f"{len(data)} bytes",
        )
    return from_tiles(np.frombuffer(data, np.uint8), channels, size, TILE, channels)


def check_image(image: np.ndarray, size: int | None = None, channels: int | None = None) -> None:
    """Raise ImageError unless `image` is uint8 [C,H,W], square, of whole tiles; of `size` and `channels` if given."""
    fits = image.ndim == 3 and image.dtype == np.uint8 and len(image) > 0
    fits = fits and image.shape[1] == image.shape[2] > 0 and image.shape[1] % TILE == 0
    if fits and size in (None, image.shape[1]) and channels in (None, len(image)):
        return
    side = f"multiple of {TILE}" if size is None else size
    raise ImageError(
        "image",
        "cannot be sent to the chip",
        expected=f"uint8 [{'planes' if channels is None else channels}, {side}, {side}]",
        received=f"{image.dtype} {list(image.shape)}",
        fix="resize it to the network's input, planes first, 8 bits a pixel",
    )
