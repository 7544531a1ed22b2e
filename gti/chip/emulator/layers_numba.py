"""The sublayers of the fast engine: which path each one takes, and its filters transformed for it.

Why the fast paths are exact: docs/emulator.md. In short, every step is integer arithmetic modulo 2**32, so only the
final values must fit; `fits` proves that for each sublayer from its weights. A sublayer whose sums are too large for
F(4x4, 3x3) takes F(2x2, 3x3), and 64-bit integers where they are too large for that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gti.chip import spec
from gti.chip.emulator import arithmetic, kernels_numba
from gti.chip.emulator.vector_code import FILTERS, LANES, vectors_of_64_bytes
from gti.chip.network.types import Convolution, ConvolutionWeights

_INT32_MAX = 2**31 - 1
# What the largest results are multiplied by before the exact division at the end, by window.
_SCALES = {2: 4, 4: 64}
_INT16_MAX = 2**15 - 1
# Transformed filters beyond 16 bits are sums of values within: of so many at most.
_MOST_PARTS = 4

# Runs functions in threads and returns their results in order.
Share = Callable[[list[Callable[..., Any]]], list[Any]]


@dataclass(frozen=True)
class Layer:
    """A sublayer ready to run. The fast paths (`window` 4 or 2) hold filters as `kernels_numba` takes them."""

    conv: Convolution
    fill: str  # how the input is doubled, "" where it is not
    window: int  # pixels along a side of a Winograd tile's results; 0 for the direct sum in 64 bits
    filters: np.ndarray  # fast: [blocks, positions, pairs, width, 2], else [out, 3, 3, stored in]; int16
    biases: np.ndarray  # fast: int32 [stored out], else int64 [out]
    numbers: np.ndarray  # Requantization; fast: int32, else int64
    # Fast: what 16 bits do not hold of the filters, as further channel pairs of a block and position.
    further: np.ndarray  # int16 [further pairs, width, 2]
    owners: np.ndarray  # [further pairs, 2], their input channels
    starts: np.ndarray  # [blocks * positions + 1], where the pairs of a block and position begin

    @functools.cached_property
    def most_further(self) -> int:
        return int(np.diff(self.starts).max())

    @property
    def stored_inputs(self) -> int:
        return stored_channels(self.conv.input_channels)

    @property
    def stored_outputs(self) -> int:
        return _stored_outputs(self.conv.output_channels)

    @property
    def code_type(self) -> type:
        return np.uint16 if self.conv.ten_bit else np.uint8


def stored_channels(channels: int) -> int:
    """Return the channels of an activation buffer: whole vectors, the additional ones are zero."""
    unit = 4 if channels < LANES else LANES
    return -(-channels // unit) * unit


def _stored_outputs(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _block_width(outputs: int) -> int:
    """Return how many of a layer's stored output channels one register tile computes.

    The sums, the filters and one value then fill 32 registers of 64 bytes, or 16 registers of 32 bytes.
    """
    if not vectors_of_64_bytes():
        return LANES
    return next(width for width in kernels_numba.REGISTER_TILES if outputs % width == 0)


def fits(layer: ConvolutionWeights, half: int, window: int) -> bool:
    """Return whether int32 holds what the fast path needs, whatever the activations are.

    With P and N the sums of positive and of |negative| weights of an output channel, its products sum up to
    -31 N .. 31 P; the transformed sum is 4 or 64 times that, the accumulator adds bias and half.
    """
    weights = layer.filters.reshape(len(layer.filters), -1)
    positive = np.maximum(weights, 0).sum(axis=1, dtype=np.int64)
    negative = positive - weights.sum(axis=1, dtype=np.int64)
    products = spec.MAX_CODE * np.maximum(positive, negative)
    accumulators = products + np.abs(layer.biases.astype(np.int64)) + half
    return bool(np.all(_SCALES[window] * products <= _INT32_MAX) and np.all(accumulators <= _INT32_MAX))


def _windows(size: int) -> list[int]:
    """Return the windows for maps of `size`, best first: by the products that all tiles of a map need."""
    return sorted(kernels_numba.WINDOWS, key=lambda window: -(-size // window) * (window + 2))


def prepare(conv: Convolution, weights: ConvolutionWeights, fill: str, share: Share) -> Layer:
    """Return a sublayer ready to run; `fill` is how its input is doubled, `share` runs functions in threads."""
    numbers = arithmetic.requantization(weights.shift, conv.ten_bit)
    inputs, outputs = stored_channels(conv.input_channels), _stored_outputs(conv.output_channels)
    for window in _windows(conv.size):
        if fits(weights, numbers.half, window):
            filters, largest = _transformed(weights.filters, window, inputs, outputs, share)
            if largest.max() <= _MOST_PARTS * _INT16_MAX:
                further, owners, starts = _further(filters, largest, weights.filters, window)
                biases = np.zeros(outputs, np.int32)
                biases[: conv.output_channels] = weights.biases
                narrow = np.array(numbers, np.int32)
                return Layer(conv, fill, window, filters, biases, narrow, further, owners, starts)
    wide = np.zeros((conv.output_channels, 3, 3, inputs), np.int16)
    wide[..., : conv.input_channels] = weights.filters.transpose(0, 2, 3, 1)
    biases, none = weights.biases.astype(np.int64), np.zeros(0, np.int16)
    return Layer(conv, fill, 0, wide, biases, np.array(numbers, np.int64), none, none, none)


def _transformed(
    weights: np.ndarray, window: int, inputs: int, outputs: int, share: Share
) -> tuple[np.ndarray, np.ndarray]:
    """Return the transformed filters modulo 2**16, and their largest magnitudes, int32 [blocks, positions]."""
    width, positions = _block_width(outputs), (window + 2) ** 2
    filters = np.zeros((outputs // width, positions, inputs // 2, width, 2), np.int16)
    largest = np.zeros((len(filters), positions), np.int32)
    source, pairs = np.ascontiguousarray(weights), filters.view("<i4")[..., 0]
    transform = kernels_numba.transform_filters[window]
    share([lambda b=b: transform(source, pairs, largest, b, b + 1) for b in range(len(filters))])
    return filters, largest


def _further(
    filters: np.ndarray, largest: np.ndarray, weights: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Limit the transformed filters to 16 bits and return what is beyond, see `Layer`."""
    width, matrix = filters.shape[3], FILTERS[window]
    found: list[np.ndarray] = [np.zeros((0, width, 2), np.int16)]
    owners: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    pairs = np.zeros(largest.shape, np.int64)
    for block, position in np.argwhere(largest > _INT16_MAX):
        kernels = weights[block * width : (block + 1) * width]
        y, x = divmod(position, window + 2)
        coefficients = np.outer(matrix[y], matrix[x]).ravel()
        rest = np.zeros((filters.shape[2] * 2, width), np.int64)  # [stored channels, lanes]
        rest[: weights.shape[1], : len(kernels)] = (kernels.reshape(*kernels.shape[:2], 9) @ coefficients).T
        held = np.clip(rest, -_INT16_MAX, _INT16_MAX)
        filters[block, position] = held.reshape(-1, 2, width).transpose(0, 2, 1)
        parts, channels = [], []
        while np.any(rest := rest - held):
            held = np.clip(rest, -_INT16_MAX, _INT16_MAX)
            (beyond,) = np.nonzero(np.any(held, axis=1))
            parts.append(held[beyond])
            channels.append(beyond)
        if sum(map(len, channels)) % 2:
            parts.append(np.zeros((1, width), np.int64))
            channels.append(np.zeros(1, np.int64))
        found.append(np.concatenate(parts).reshape(-1, 2, width).transpose(0, 2, 1).astype(np.int16))
        owners.append(np.concatenate(channels).reshape(-1, 2))
        pairs[block, position] = len(owners[-1])
    starts = np.concatenate([[0], np.cumsum(pairs)])
    return np.concatenate(found), np.concatenate(owners), starts
