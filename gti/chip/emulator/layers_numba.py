"""The sublayers of the fast engine: which path each one takes, and its filters transformed for it.

Why the fast paths are exact: docs/emulator.md. In short, every step is integer arithmetic modulo 2**32, so only the
final values must fit; `fits` proves that for each sublayer from its weights. A sublayer whose sums are too large for
F(4x4, 3x3) takes F(2x2, 3x3), and 64-bit integers where they are too large for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding
from numba import config

from gti.chip import spec
from gti.chip.emulator import arithmetic, kernels_numba
from gti.chip.emulator.vector_code import FILTERS, LANES
from gti.chip.network.types import Convolution, ConvolutionWeights

_INT32_MAX = 2**31 - 1
# What the largest results are multiplied by before the exact division at the end, by window.
_SCALES = {2: 4, 4: 64}
# Largest transformed filters: of 16 bits, and of 18 bits, which are multiplied in two parts.
_INT16_MAX = 2**15 - 1
_SPLIT_MAX = 2**17 - 1

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
    lows: np.ndarray  # fast: int16 [split, pairs, width, 2], the rests of filters that 16 bits do not hold
    split: np.ndarray  # fast: [blocks, positions], which of them belongs there, -1 where none does

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
    if not _vectors_of_64_bytes():
        return LANES
    return next(width for width in kernels_numba.REGISTER_TILES if outputs % width == 0)


def _vectors_of_64_bytes() -> bool:
    # numba compiles for the features of the host unless its own setting names others.
    chosen = getattr(config, "CPU_FEATURES", None)
    if chosen is not None:
        return "+avx512bw" in chosen
    return bool(binding.get_host_cpu_features().get("avx512bw"))


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
            if largest.max() <= _SPLIT_MAX:
                lows, split = _split(filters, largest, weights.filters, window)
                biases = np.zeros(outputs, np.int32)
                biases[: conv.output_channels] = weights.biases
                return Layer(conv, fill, window, filters, biases, np.array(numbers, np.int32), lows, split)
    wide = np.zeros((conv.output_channels, 3, 3, inputs), np.int16)
    wide[..., : conv.input_channels] = weights.filters.transpose(0, 2, 3, 1)
    biases, none = weights.biases.astype(np.int64), np.zeros(0, np.int16)
    return Layer(conv, fill, 0, wide, biases, np.array(numbers, np.int64), none, none)


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


def _split(filters: np.ndarray, largest: np.ndarray, weights: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Replace transformed filters U that 16 bits do not hold by U >> 2; return U & 3, and where these belong.

    All filters of a block and position are replaced together. Results: see `Layer.lows` and `Layer.split`.
    """
    split = np.full(largest.shape, -1)
    places = np.argwhere(largest > _INT16_MAX)
    width, matrix = filters.shape[3], FILTERS[window]
    lows = np.zeros((len(places), *filters.shape[2:]), np.int16)
    for index, (block, position) in enumerate(places):
        split[block, position] = index
        y, x = divmod(position, window + 2)
        kernels = weights[block * width : (block + 1) * width].astype(np.int32)
        values = np.einsum("j,k,oijk->io", matrix[y], matrix[x], kernels)
        for channel, row in enumerate(values):
            filters[block, position, channel // 2, : len(kernels), channel % 2] = row >> 2
            lows[index, channel // 2, : len(kernels), channel % 2] = row & 3
    return lows, split
