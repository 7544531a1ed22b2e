"""The reference engine: the chip's integers in plain int64 NumPy, written to be read, not to be fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gti.chip.emulator import arithmetic
from gti.chip.network.types import ConvolutionWeights, Network


def convolve(codes: np.ndarray, filters: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Return the accumulators, int64 [N, H, W, out], of a 3x3 convolution with stride 1 and zero padding 1.

    `codes` are activations [N, H, W, in], `filters` integers [out, in, 3, 3], `biases` integers [out].
    """
    count, height, width, _ = codes.shape
    padded = np.pad(codes.astype(np.int64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = filters.astype(np.int64).transpose(2, 3, 1, 0)  # [3, 3, in, out]
    accumulator = np.empty((count, height, width, len(filters)), np.int64)
    accumulator[:] = biases
    for dy in range(3):
        for dx in range(3):
            accumulator += padded[:, dy : dy + height, dx : dx + width] @ taps[dy, dx]
    return accumulator


class NumpyEngine:
    """Computes sublayer after sublayer; holds nothing but the network."""

    description = "NumPy"

    def __init__(self, network: Network, weights: Sequence[ConvolutionWeights], fills: Sequence[str]) -> None:
        """`fills` holds for each sublayer how its input is doubled, "" where it is not."""
        self._network = network
        self._weights = tuple(weights)
        self._fills = tuple(fills)

    def sublayers(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the codes [N, H, W, out] of each sublayer before pooling, for input codes [N, H, W, in]."""
        for conv, layer, fill in zip(self._network.convolutions, self._weights, self._fills, strict=True):
            if fill:
                codes = arithmetic.upsample(codes, fill)
            accumulator = convolve(codes, layer.filters, layer.biases)
            numbers = arithmetic.requantization(layer.shift, conv.ten_bit)
            codes = arithmetic.requantize(accumulator, *numbers).astype(np.uint16 if conv.ten_bit else np.uint8)
            yield codes
            if conv.pooled:
                codes = arithmetic.pool(codes, self._network.sampling_method)

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes [N, H, W, out] after the last sublayer, pooling included."""
        *_, last = self.sublayers(codes)
        return arithmetic.pool(last, self._network.sampling_method) if self._network.convolutions[-1].pooled else last
