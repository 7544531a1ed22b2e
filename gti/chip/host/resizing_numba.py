"""The kernel of `resizing` for numba: equal sums in equal order, a row of the result at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit, types

from gti.chip.host.resizing import Taps

_PIXELS = types.Array(types.uint8, 2, "C", readonly=True)
_FIRST = types.Array(types.int64, 1, "C", readonly=True)
_WEIGHTS = types.Array(types.float32, 2, "C", readonly=True)


def with_numba(flat: npt.NDArray[np.uint8], rows: Taps, columns: Taps, channels: int) -> npt.NDArray[np.uint8]:
    """Return what `resizing.with_numpy` returns."""
    size = len(rows[0])
    result = np.empty((size, size, channels), np.uint8)
    _resize(flat, *rows, *columns, result)
    return result


# No fastmath: a fused multiply-add or another order would make other pixels than NumPy.
@njit(
    types.void(_PIXELS, _FIRST, _WEIGHTS, _FIRST, _WEIGHTS, types.Array(types.uint8, 3, "C")),
    cache=True,
    nogil=True,
    boundscheck=False,
)  # type: ignore[untyped-decorator, unused-ignore]
def _resize(flat, row_first, row_weights, column_first, column_weights, result):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    size, _, channels = result.shape
    length = flat.shape[1]
    buffer = np.empty(length, np.float32)
    for y in range(size):
        source = flat[row_first[y]]
        weight = row_weights[y, 0]
        for i in range(length):
            buffer[i] = source[i] * weight
        for tap in range(1, row_weights.shape[1]):
            source = flat[row_first[y] + tap]
            weight = row_weights[y, tap]
            if weight != 0:
                for i in range(length):
                    buffer[i] += source[i] * weight
        for x in range(size):
            start = column_first[x] * channels
            for c in range(channels):
                total = buffer[start + c] * column_weights[x, 0]
                for tap in range(1, column_weights.shape[1]):
                    total += buffer[start + tap * channels + c] * column_weights[x, tap]
                value = np.floor(total + np.float32(0.5))
                result[y, x, c] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))
