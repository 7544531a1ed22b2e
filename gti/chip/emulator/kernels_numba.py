"""Compiled kernels of the fast engine: one sublayer over a range of tiles and output channels.

Importing this module imports numba. All kernels release the GIL and write disjoint parts of their target, so that
plain threads share a sublayer. The fast paths are Winograd's F(2x2, 3x3) and F(4x4, 3x3) on integers, `engine_numba`
says when they are exact; `convolve_wide` is the path for every other case.
"""

# Compiled code takes positional arguments only.
# ruff: noqa: PLR0917
# numba finds the types of what it compiles at the call.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from gti.chip.emulator import arithmetic, vector_code
from gti.chip.emulator.vector_code import (
    FILTERS,
    LANES,
    LARGEST,
    TOP_LEFT,
    WHOLE_WINDOW,
    multiply_panel,
    store_window,
    transform_input,
)

# Register tiles: output channels -> tiles computed at once, or one less. `convolve_tiles` has them as literals.
REGISTER_TILES = {4 * LANES: 6, 2 * LANES: 8, LANES: 6}
WINDOWS = (2, 4)  # pixels along a side of the window of results of a tile
# Between the values of one position and the next, so that they do not fall on the same lines of the first-level cache.
APART_BYTES = 64

requantize = njit(arithmetic.requantize)


# numba finds a stale cache by the file of the cached function alone. This digest of every file whose code ends in the
# kernels is bound to them, so that it becomes part of their key in the cache.
_SOURCES = (__file__, vector_code.__file__, arithmetic.__file__)
_DIGEST = hashlib.sha256(b"".join(Path(name).read_bytes() for name in _SOURCES)).hexdigest()


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` without the GIL and keep the code on disk, where any folder for it can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither NUMBA_CACHE_DIR, nor the package's folder, nor the user's cache is writable
        return njit(nogil=True)(function)


def _build(digest: str) -> tuple[dict[int, Callable[..., Any]], dict[int, Callable[..., Any]], Callable[..., Any]]:
    def transformation(window):
        matrix = FILTERS[window]

        @_kernel
        def transform_filters(filters, result, largest, first, last):
            """Write the transformed filters GgG' of output blocks first..last-1, modulo 2**16.

            filters: int16 [out, in, 3, 3]; result: int32 [blocks, positions, pairs, width] of two int16 each, channel
            pairs with the even one in the lower half, zero where it is padding.
            largest: int32 [blocks, positions], gets the largest magnitudes.
            """
            _ = digest
            outputs, inputs = filters.shape[:2]
            pairs, width, side = (inputs + 1) // 2, result.shape[3], window + 2
            taps = np.zeros((3, 3, 2 * width), np.int32)  # of a channel pair, the lanes of each
            g = np.empty((side, 3, 2 * width), np.int32)
            values = np.empty(2 * width, np.int32)
            for block in range(first, last):
                lanes = min(width, outputs - block * width)
                for pair in range(pairs):
                    taps[:] = 0
                    for i in range(2 * pair, min(2 * pair + 2, inputs)):
                        for lane in range(lanes):
                            for y in range(3):
                                for x in range(3):
                                    taps[y, x, i % 2 * width + lane] = filters[block * width + lane, i, y, x]
                    for y in range(side):
                        for x in range(3):
                            for k in range(2 * width):
                                g[y, x, k] = (
                                    matrix[y, 0] * taps[0, x, k]
                                    + matrix[y, 1] * taps[1, x, k]
                                    + matrix[y, 2] * taps[2, x, k]
                                )
                    for y in range(side):
                        for x in range(side):
                            most = largest[block, side * y + x]
                            for k in range(2 * width):
                                value = (
                                    g[y, 0, k] * matrix[x, 0] + g[y, 1, k] * matrix[x, 1] + g[y, 2, k] * matrix[x, 2]
                                )
                                values[k] = value
                                most = max(most, abs(values[k]))
                            largest[block, side * y + x] = most
                            for k in range(width):
                                result[block, side * y + x, pair, k] = values[k + width] << 16 | values[k] & 0xFFFF

        return transform_filters

    def convolution(window):
        @_kernel
        def convolve_tiles(
            source, filters, further, owners, starts, biases, target, numbers, pooling, tiles, size, span, blocks, step,
            scratch, known
        ):  # fmt: skip
            """Compute one sublayer for tiles span[0]..span[1]-1 and output blocks blocks[0]..blocks[1]-1.

            source: uint8 [N, H + 2, W + 2, in], codes in a frame of zeros; target: uint8 or uint16, the same with this
            layer's outputs, H and W halved where pooled. H and W are `size`, or more, to hold whole tiles: results
            beyond `size` are stored too. A tile is a window of results; they are counted along rows over all images.
            filters: as transform_filters writes them; further, owners, starts: filters of further channel pairs, as
            `layers_numba.Layer` describes them; numbers: int32, a Requantization; pooling: (pooled, top left).
            tiles: rows of a register tile; step: tiles computed together. scratch: (int16 values, int16 values of
            further pairs, int32 sums); known: the values are there already, as the last call with the same tiles left
            them, all in one step.
            """
            _ = digest
            values, gathered, sums = scratch
            pooled, take_top_left = pooling
            pixels = window // 2 if pooled else window  # of the target along a side of a window
            left = numbers[2] if target.itemsize > 1 else 0  # five bits shift nothing in, and a constant costs nothing
            rounding = (numbers[0], numbers[1], np.int32(left), numbers[3], numbers[4])
            positions, pairs, width = filters.shape[1], filters.shape[2], filters.shape[3]
            channels = source.shape[3]
            columns = (size + window - 1) // window
            row_bytes, pixel_bytes = source.shape[2] * channels, channels
            out_pixel = target.shape[3] * target.itemsize
            out_row = target.shape[2] * out_pixel
            value_bytes = channels * 2
            for first in range(span[0], span[1], step):
                count = min(step, span[1] - first)
                panels = (count + tiles - 1) // tiles
                # Where the tiles do not fill all panels, some of these compute one less.
                shorter = min(panels, panels * tiles - count)
                rows = panels * tiles - shorter
                position_bytes = rows * value_bytes + APART_BYTES
                for tile in range(0 if known else count):
                    index = first + tile
                    n, y, x = index // (columns * columns), index // columns % columns, index % columns
                    patch = (
                        source.ctypes.data + (n * source.shape[1] + window * y) * row_bytes + window * x * pixel_bytes
                    )
                    out = values.ctypes.data + tile * value_bytes
                    if channels % 32 == 0:
                        for c in range(0, channels, 32):
                            transform_input(window, 32, patch + c, row_bytes, pixel_bytes, out + 2 * c, position_bytes)
                    elif channels % 16 == 0:
                        for c in range(0, channels, 16):
                            transform_input(window, 16, patch + c, row_bytes, pixel_bytes, out + 2 * c, position_bytes)
                    else:
                        for c in range(0, channels, 4):
                            transform_input(window, 4, patch + c, row_bytes, pixel_bytes, out + 2 * c, position_bytes)
                apart = rows * width * 4 + APART_BYTES
                for block in range(blocks[0], blocks[1]):
                    for position in range(positions):
                        begin, end = starts[block * positions + position], starts[block * positions + position + 1]
                        for part in range(2 if end > begin else 1):
                            if part == 0:
                                u, v = filters[block, position].ctypes.data, values.ctypes.data
                                v += position * position_bytes
                                m, length, stride = sums.ctypes.data + position * apart, pairs, value_bytes
                            else:
                                u, v = further[begin].ctypes.data, gathered.ctypes.data
                                m, length, stride = sums.ctypes.data + positions * apart, end - begin, 4 * (end - begin)
                                for tile in range(count):
                                    line = position * position_bytes // 2 + tile * channels
                                    for k in range(2 * length):
                                        owner = owners[begin + k // 2, k % 2]
                                        gathered[tile * 2 * length + k] = values[line + owner]
                            for panel in range(panels):
                                if panel < panels - shorter:
                                    if width == 4 * LANES:
                                        multiply_panel(6, 4, v, stride, u, length, m)
                                    elif width == 2 * LANES:
                                        multiply_panel(8, 2, v, stride, u, length, m)
                                    else:
                                        multiply_panel(6, 1, v, stride, u, length, m)
                                    v += tiles * stride
                                    m += tiles * width * 4
                                else:
                                    if width == 4 * LANES:
                                        multiply_panel(5, 4, v, stride, u, length, m)
                                    elif width == 2 * LANES:
                                        multiply_panel(7, 2, v, stride, u, length, m)
                                    else:
                                        multiply_panel(5, 1, v, stride, u, length, m)
                                    v += (tiles - 1) * stride
                                    m += (tiles - 1) * width * 4
                        if end > begin:
                            whole, more = position * apart // 4, positions * apart // 4
                            for k in range(rows * width):
                                sums[whole + k] += sums[more + k]
                    for tile in range(count):
                        index = first + tile
                        n, y, x = index // (columns * columns), index // columns % columns, index % columns
                        line = target.ctypes.data + (n * target.shape[1] + pixels * y + 1) * out_row
                        for c in range(0, width, LANES):
                            m = sums.ctypes.data + (tile * width + c) * 4
                            b = biases.ctypes.data + (block * width + c) * 4
                            out = line + (pixels * x + 1) * out_pixel + (block * width + c) * target.itemsize
                            if not pooled:
                                store_window(
                                    window, WHOLE_WINDOW, target, m, apart, b, rounding, out, out_row, out_pixel
                                )
                            elif take_top_left:
                                store_window(window, TOP_LEFT, target, m, apart, b, rounding, out, out_row, out_pixel)
                            else:
                                store_window(window, LARGEST, target, m, apart, b, rounding, out, out_row, out_pixel)

        return convolve_tiles

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

    return (
        {window: transformation(window) for window in WINDOWS},
        {window: convolution(window) for window in WINDOWS},
        convolve_wide,
    )


transform_filters, convolve_tiles, convolve_wide = _build(_DIGEST)
