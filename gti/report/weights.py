"""What a conversion did to every sublayer: levels of the filters, shift and headroom, channels that cannot be on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gti.chip import spec
from gti.chip.emulator.arithmetic import requantization
from gti.chip.network.types import Convolution, ConvolutionWeights, Network

LEVELS = (-4, -2, -1, 0, 1, 2, 4)


def measure(
    network: Network, weights: Sequence[ConvolutionWeights], floats: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """Return the part "weights" of a report.

    `weights` are the chip's integers, `floats` the filters (any order of axes) and biases [out] that they were made
    of, batch norm and caps folded in.
    """
    return {
        "layers": [
            _layer(convolution, layer, filters, biases)
            for convolution, layer, (filters, biases) in zip(network.convolutions, weights, floats, strict=True)
        ]
    }


def _layer(
    convolution: Convolution, layer: ConvolutionWeights, filters: np.ndarray, biases: np.ndarray
) -> dict[str, Any]:
    from gti import quantize

    bits = convolution.coef_bits
    weight_limit, bias_limit = quantize.weight_limit(bits), quantize.bias_limit(bits)
    max_weight, max_bias = _largest(filters), _largest(biases)
    return {
        "name": convolution.name,
        "path": convolution.path,
        "coef_bits": bits,
        "shift": layer.shift,
        "shift_of_weights": int(quantize.range_shift(max_weight, weight_limit)),
        "shift_of_biases": int(quantize.range_shift(max_bias, bias_limit)),
        "max_weight": max_weight,
        "max_bias": max_bias,
        "weight_headroom": headroom(_largest(layer.filters), weight_limit),
        "bias_headroom": headroom(_largest(layer.biases), bias_limit),
        "levels": levels(layer.filters, bits),
        "channels": convolution.output_channels,
        "dead_channels": dead_channels(convolution, layer).tolist(),
    }


def _largest(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0))


def headroom(largest: float, limit: int) -> float | None:
    """Return the bits between the largest integer in use and the largest possible one; None where all are 0."""
    return math.log2(limit / largest) if largest else None


def levels(filters: np.ndarray, coef_bits: int) -> dict[str, int]:
    """Return how many coefficients have each level, as the file stores them: sign, or sign and 0, 1, 2, 4 steps.

    `filters` int [out, in, 3, 3]. The step of a 3-bit kernel is its smallest magnitude above 0 (docs/dat_format.md
    section 3.4).
    """
    kernels = filters.reshape(-1, 9).astype(np.int64)
    magnitude = np.abs(kernels)
    if coef_bits == 3:
        step = np.where(magnitude > 0, magnitude, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
        magnitude = (2 * magnitude + step) // (2 * step)
    else:
        magnitude = np.minimum(magnitude, 1)
    signed = np.sign(kernels) * magnitude
    return {str(level): int(np.count_nonzero(signed == level)) for level in LEVELS}


def dead_channels(convolution: Convolution, layer: ConvolutionWeights) -> np.ndarray:
    """Return the output channels that give code 0 for every possible input.

    The largest possible sum has code 31 under every positive weight and 0 under every other one; what it must reach is
    half a code (docs/numerics.md section 6).
    """
    positive = np.maximum(layer.filters.astype(np.int64), 0).sum(axis=(1, 2, 3))
    largest = positive * spec.MAX_CODE + layer.biases.astype(np.int64)
    step = requantization(layer.shift, convolution.ten_bit)
    return np.flatnonzero((largest + step.half) >> step.right < 1)
