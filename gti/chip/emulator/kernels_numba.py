"""Compiled kernels of the fast engine: one sublayer over a range of tile rows and output channels.

Importing this module imports numba. All kernels release the GIL and write disjoint parts of their target, so that
plain threads share a sublayer. The fast path is Winograd's F(2x2, 3x3) on integers, `engine_numba` says when it is
exact; `convolve_wide` is the path for every other case.
"""

# Compiled code takes positional arguments only.
# ruff: noqa: PLR0917

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit

from gti.chip.emulator import arithmetic, vector_code
from gti.chip.emulator.vector_code import (
    LANES,
    LARGEST,
    POSITIONS,
    TOP_LEFT,
    WHOLE_WINDOW,
    multiply_panel,
    store_window,
    transform_input,
)

# Register tiles: output channels -> tiles computed at once. `convolve_tiles` holds the same numbers as literals.
REGISTER_TILES = {4 * LANES: 6, 2 * LANES: 8, LANES: 6}

requantize = njit(arithmetic.requantize)

# numba finds a stale cache by the file of the cached function alone. This digest of every file whose code ends in the
# kernels is bound to them, so that it becomes part of their key in the cache.
_SOURCES = (__file__, vector_code.__file__, arithmetic.__file__)
_DIGEST = hashlib.sha256(b"".join(Path(name).read_bytes() for name in _SOURCES)).hexdigest()


def _kernel(function: Callable) -> Callable:
    """Compile `function` without the GIL and keep the code on disk, where any folder for it can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither NUMBA_CACHE_DIR, nor the package's folder, nor the user's cache is writable
        return njit(nogil=True)(function)


def _build(digest: str) -> tuple[Callable, Callable, Callable]:
    @_kernel
    def transform_filters(filters, result, first, last):
        """Write the transformed filters 4 * GgG' of output blocks first..last-1.

        filters: int16 [out, in, 3, 3]; result: int16 [blocks, 16, pairs, width, 2], zero where it is padding.
        Returns whether every value fits in 16 bits. 2G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2].
        """
        _ = digest
        outputs, inputs = filters.shape[:2]
        width = result.shape[3]
        g = np.empty((4, 3), np.int32)
        fits = True
        for o in range(first * width, min(last * width, outputs)):
            block, lane = o // width, o % width
            for i in range(inputs):
                for x in range(3):
                    a, b, c = filters[o, i, 0, x], filters[o, i, 1, x], filters[o, i, 2, x]
                    g[0, x], g[1, x], g[2, x], g[3, x] = 2 * a, a + b + c, a - b + c, 2 * c
                for y in range(4):
                    a, b, c = g[y, 0], g[y, 1], g[y, 2]
                    values = (2 * a, a + b + c, a - b + c, 2 * c)
                    for x in range(4):
                        fits &= -32768 <= values[x] <= 32767
                        result[block, 4 * y + x, i // 2, lane, i % 2] = values[x]
        return fits

    @_kernel
    def convolve_tiles(source, filters, biases, target, numbers, pooling, tiles, rows, blocks, step, scratch):
        """Compute one sublayer for tile rows rows[0]..rows[1]-1 and output blocks blocks[0]..blocks[1]-1.

        source: uint8 [N, H + 2, W + 2, in], codes in a frame of zeros; target: uint8 or uint16, the same with this
        layer's outputs, H and W halved where pooled. A tile row is two rows of pixels, counted over all images.
        filters: as transform_filters writes them; numbers: int32, a Requantization; pooling: (pooled, top left).
        tiles: rows of a register tile; step: tile rows computed together. scratch: (int16 values, int32 sums).
        """
        _ = digest
        values, sums = scratch
        pooled, take_top_left = pooling
        pixels = 1 if pooled else 2  # of the target along a side of a window
        rounding = (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4])
        pairs, width = filters.shape[2], filters.shape[3]
        channels = source.shape[3]
        columns = (source.shape[2] - 2) // 2
        image_rows = (source.shape[1] - 2) // 2
        row_bytes, pixel_bytes = source.shape[2] * channels, channels
        out_pixel = target.shape[3] * target.itemsize
        out_row = target.shape[2] * out_pixel
        value_bytes = channels * 2
        for row in range(rows[0], rows[1], step):
            count = (min(row + step, rows[1]) - row) * columns
            panels = (count + tiles - 1) // tiles
            position_bytes = panels * tiles * value_bytes
            tile = 0
            for r in range(row, min(row + step, rows[1])):
                n, y = r // image_rows, r % image_rows
                line = source.ctypes.data + ((n * source.shape[1] + 2 * y) * row_bytes)
                for x in range(columns):
                    patch = line + 2 * x * pixel_bytes
                    out = values.ctypes.data + tile * value_bytes
                    if channels % 32 == 0:
                        for c in range(0, channels, 32):
                            transform_input(32, patch + c, row_bytes, pixel_bytes, out + 2 * c, position_bytes)
                    elif channels % 16 == 0:
                        for c in range(0, channels, 16):
                            transform_input(16, patch + c, row_bytes, pixel_bytes, out + 2 * c, position_bytes)
                    else:
                        for c in range(0, channels, 4):
                            transform_input(4, patch + c, row_bytes, pixel_bytes, out + 2 * c, position_bytes)
                    tile += 1
            panel_bytes, sum_bytes = tiles * value_bytes, tiles * width * 4
            apart = panels * sum_bytes
            for block in range(blocks[0], blocks[1]):
                for position in range(POSITIONS):
                    u = filters[block, position].ctypes.data
                    v = values.ctypes.data + position * position_bytes
                    m = sums.ctypes.data + position * apart
                    for _ in range(panels):
                        if width == 4 * LANES:
                            multiply_panel(6, 4, v, value_bytes, u, pairs, m)
                        elif width == 2 * LANES:
                            multiply_panel(8, 2, v, value_bytes, u, pairs, m)
                        else:
                            multiply_panel(6, 1, v, value_bytes, u, pairs, m)
                        v += panel_bytes
                        m += sum_bytes
                tile = 0
                for r in range(row, min(row + step, rows[1])):
                    n, y = r // image_rows, r % image_rows
                    line = target.ctypes.data + (n * target.shape[1] + pixels * y + 1) * out_row + out_pixel
                    for x in range(columns):
                        for c in range(0, width, LANES):
                            m = sums.ctypes.data + (tile * width + c) * 4
                            b = biases.ctypes.data + (block * width + c) * 4
                            out = line + x * pixels * out_pixel + (block * width + c) * target.itemsize
                            if not pooled:
                                store_window(WHOLE_WINDOW, target, m, apart, b, rounding, out, out_row, out_pixel)
                            elif take_top_left:
                                store_window(TOP_LEFT, target, m, apart, b, rounding, out, out_row, out_pixel)
                            else:
                                store_window(LARGEST, target, m, apart, b, rounding, out, out_row, out_pixel)
                        tile += 1

    @_kernel
    def convolve_wide(source, filters, biases, target, numbers, rows):
        """Compute one sublayer without pooling in 64-bit integers, for pixel rows rows[0]..rows[1]-1 of all images.

        source and target: as for convolve_tiles; filters: int16 [out, 3, 3, in]; biases: int64 [out];
        numbers: int64, a Requantization.
        """
        _ = digest
        height, width = target.shape[1] - 2, target.shape[2] - 2
        half, right, left, bottom, top = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
        for row in range(rows[0], rows[1]):
            n, y = row // height, row % height
            for x in range(width):
                for o in range(filters.shape[0]):
                    total = biases[o]
                    for dy in range(3):
                        for dx in range(3):
                            pixel = source[n, y + dy, x + dx]
                            taps = filters[o, dy, dx]
                            for i in range(filters.shape[3]):
                                total += np.int64(pixel[i]) * np.int64(taps[i])
                    target[n, y + 1, x + 1, o] = requantize(total, half, right, left, bottom, top)

    return transform_filters, convolve_tiles, convolve_wide


transform_filters, convolve_tiles, convolve_wide = _build(_DIGEST)
