"""The engine for where numba cannot be installed: matrix products of floating point numbers that hold integers.

A sum of products is exact in floating point, in whatever order a library adds, as long as no partial sum exceeds the
integers that the type holds one by one: 2**24 of float32, 2**53 of float64. docs/emulator.md section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.network.types import ConvolutionWeights, Network

# Of the patches that one matrix product takes: they stay in the second-level cache, more or less.
_BLOCK_BYTES = 2 << 20


def exact_type(layer: ConvolutionWeights) -> type[np.float32] | type[np.float64]:
    """Return the faster type in which no partial sum of the layer's accumulators is rounded.

    With P and N the sums of positive and of |negative| weights of an output channel, every partial sum lies within
    31 max(P, N) + |bias|. Nothing that int16 filters and int32 biases give comes near 2**53.
    """
    weights = layer.filters.reshape(len(layer.filters), -1)
    positive = np.maximum(weights, 0).sum(axis=1, dtype=np.int64)
    negative = positive - weights.sum(axis=1, dtype=np.int64)
    largest = spec.MAX_CODE * np.maximum(positive, negative) + np.abs(layer.biases.astype(np.int64))
    return np.float32 if np.all(largest <= 2**24) else np.float64


class NumpyEngine:
    """Computes sublayer after sublayer; holds the network and its filters as matrices."""

    description = "NumPy"

    def __init__(self, network: Network, weights: Sequence[ConvolutionWeights], fills: Sequence[str]) -> None:
        """`fills` holds for each sublayer how its input is doubled, "" where it is not."""
        self._network = network
        self._fills = tuple(fills)
        self._numbers = [
            arithmetic.requantization(layer.shift, conv.ten_bit)
            for conv, layer in zip(network.convolutions, weights, strict=True)
        ]
        self._weights = [
            (
                layer.filters.transpose(2, 3, 1, 0).reshape(-1, len(layer.filters)).astype(kind),
                layer.biases.astype(kind),
            )
            for layer, kind in ((layer, exact_type(layer)) for layer in weights)
        ]

    def sublayers(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the codes [N, H, W, out] of each sublayer before pooling, for input codes [N, H, W, in]."""
        for conv, (filters, biases), numbers, fill in zip(
            self._network.convolutions, self._weights, self._numbers, self._fills, strict=True
        ):
            if fill:
                codes = arithmetic.upsample(codes, fill)
            result = np.empty((*codes.shape[:3], filters.shape[1]), np.uint16 if conv.ten_bit else np.uint8)
            for where, accumulators in _accumulators(codes, filters, biases):
                result[where] = arithmetic.requantize(accumulators, *numbers)
            codes = result
            yield codes
            if conv.pooled:
                codes = arithmetic.pool(codes, self._network.sampling_method)

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes [N, H, W, out] after the last sublayer, pooling included."""
        *_, last = self.sublayers(codes)
        return arithmetic.pool(last, self._network.sampling_method) if self._network.convolutions[-1].pooled else last


def _accumulators(
    codes: np.ndarray, filters: np.ndarray, biases: np.ndarray
) -> Iterator[tuple[tuple[int, slice], np.ndarray]]:
    """Yield (image, rows) and the integers [rows, W, out] of a 3x3 convolution with stride 1 and zero padding 1.

    `codes` [N, H, W, in]; `filters` [9 * in, out] and `biases` [out] of a type that holds every sum.
    """
    count, height, width, channels = codes.shape
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = min(height, max(1, _BLOCK_BYTES // (width * filters.shape[0] * filters.itemsize)))
    patches = np.empty((rows, width, 3, 3, channels), filters.dtype)
    integer = np.int32 if filters.dtype == np.float32 else np.int64
    for image in range(count):
        for first in range(0, height, rows):
            part = patches[: min(rows, height - first)]
            for dy in range(3):
                for dx in range(3):
                    part[:, :, dy, dx] = padded[image, first + dy : first + dy + len(part), dx : dx + width]
            sums = part.reshape(-1, len(filters)) @ filters
            sums += biases
            yield (image, slice(first, first + len(part))), sums.astype(integer).reshape(len(part), width, -1)
