"""Pictures of any size to the size of a network: the triangle filter of tf.image.resize(antialias=True).

Each output sample is a sum over the few source samples that its triangle covers, added up from the first to the last in
float32: so NumPy and the kernel of numba make equal pixels, and either may be used for any picture.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

# Numba takes as long to load as this many pictures: a program of a few pictures, on a real stick, does not wait for it.
_BEFORE_NUMBA = 32
_pictures = itertools.count()

Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
Kernel = Callable[[npt.NDArray[np.uint8], Taps, Taps, int], npt.NDArray[np.uint8]]


def resized(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return `pixels` [H,W,C] as uint8 [size, size, C]: linear interpolation, averaging where it shrinks.

    Columns of the picture first, then rows; sums are rounded half up.
    """
    height, width, channels = pixels.shape
    if (height, width) == (size, size):
        return np.ascontiguousarray(pixels)
    flat = np.ascontiguousarray(pixels).reshape(height, width * channels)
    return _kernel()(flat, taps(height, size), taps(width, size), channels)


@lru_cache(maxsize=16)
def resize_matrix(length: int, size: int) -> npt.NDArray[np.float32]:
    """Return the weights [size, length] of each source sample in each of `size` evenly spread ones."""
    step = length / size
    centres = (np.arange(size)[:, None] + 0.5) * step
    distances = np.abs(np.arange(length)[None, :] + 0.5 - centres) / max(step, 1.0)
    weights = np.maximum(0.0, 1.0 - distances)
    shares: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


@lru_cache(maxsize=16)
def taps(length: int, size: int) -> Taps:
    """Return what is not 0 of `resize_matrix`: the first source sample of each output [size], weights [size, taps]."""
    matrix = resize_matrix(length, size)
    first = (matrix > 0).argmax(axis=1)
    last = length - 1 - (matrix[:, ::-1] > 0).argmax(axis=1)
    count = int((last - first).max()) + 1
    first = np.minimum(first, length - count)
    weights = np.take_along_axis(matrix, first[:, None] + np.arange(count), axis=1)
    return first, np.ascontiguousarray(weights)


def with_numpy(flat: npt.NDArray[np.uint8], rows: Taps, columns: Taps, channels: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [size, size, C] of a picture [H, W * C]."""
    size = len(rows[0])
    planes = _filtered(flat, rows).reshape(size, -1, channels).transpose(1, 0, 2)
    values = _filtered(planes.reshape(len(planes), -1), columns)
    rounded = np.clip(np.floor(values + np.float32(0.5)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.reshape(size, size, channels).transpose(1, 0, 2))


def _filtered(values: npt.NDArray[Any], how: Taps) -> npt.NDArray[np.float32]:
    """Return the weighted sums [size, N] of rows of `values` [length, N]."""
    first, weights = how
    total: npt.NDArray[np.float32] = values[first] * weights[:, :1]
    for tap in range(1, weights.shape[1]):
        total += values[first + tap] * weights[:, tap : tap + 1]
    return total


def _kernel() -> Kernel:
    if next(_pictures) < _BEFORE_NUMBA and "numba" not in sys.modules:
        return with_numpy
    return _fastest()


@lru_cache(maxsize=1)
def _fastest() -> Kernel:
    if importlib.util.find_spec("numba") is None:
        return with_numpy
    try:
        from gti.chip.host.resizing_numba import with_numba
    except ImportError:  # there, but not for this Python or this NumPy
        return with_numpy
    return with_numba
