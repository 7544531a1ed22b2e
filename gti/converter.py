"""Checkpoint and network -> integer layers of the chip (user guide section 6.5); `gti.packing` writes them to files.

The integers come from `gti.quantize`, the functions that training used, so the file holds what was trained.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gti import caps, fusion, names, old_kit
from gti.chip.formats import dat
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.errors import QuantizationError, sentence
from gti.stage import MEAN

log = logging.getLogger(__name__)

# Filters lose this many bits, or more, to the biases' range before it is called an imbalance (user guide section 5.2).
IMBALANCE_BITS = 3
# A layer that loses this share of its kernels, or more, is warned of.
MANY_VANISHED = 0.25


@dataclass(frozen=True)
class Conversion:
    """What goes to the chip: the network with its shifts, its integer weights, and what a user should know."""

    network: Network
    weights: tuple[ConvolutionWeights, ...]
    warnings: tuple[str, ...]
    vanished: tuple[float, ...] = ()  # of each sublayer, the share 0..1 of kernels that become 0

    def dat(self) -> bytes:
        """Return the .DAT file."""
        return dat.encode(self.network, self.weights)


def convert(network: Network, arrays: Mapping[str, np.ndarray], *, net: str, filter_step: str = MEAN) -> Conversion:
    """Return the integers of a trained network; `arrays` as `fusion.fuse_chip` takes them, fused or not.

    `filter_step` is the rule of 3-bit filters that they were trained with.
    Raises QuantizationError naming every layer whose values do not fit the chip, with the remedy.
    """
    fused = fusion.fuse_chip(network, arrays, net=net)
    problems, warnings = [], []
    weights = []
    vanished = []
    for convolution in network.convolutions:
        filters, biases = (fused[names.variable(net, convolution.name, part)] for part in ("filters", "biases"))
        ranges = _Ranges.of(convolution, filters, biases)
        problem = ranges.problem()
        if problem:
            problems.append(problem)
            continue
        steps = fused.get(names.variable(net, convolution.name, names.FILTER_STEPS))
        layer = integer_layer(convolution, filters, biases, filter_step, steps)
        ranges.log(layer.shift)
        weights.append(layer)
        vanished.append(vanished_kernels(filters, layer))
        warnings += ranges.warnings(layer, float(arrays[names.cap(net, convolution.name)]), vanished[-1])
    if problems:
        raise QuantizationError("\n".join(problems))
    with_all = with_shifts(network, [layer.shift for layer in weights])
    return Conversion(with_all, tuple(weights), tuple(warnings), tuple(vanished))


def vanished_kernels(filters: np.ndarray, layer: ConvolutionWeights) -> float:
    """Return the share 0..1 of the 3x3 kernels of float `filters` [3, 3, in, out], not zero, that are 0 in `layer`."""
    alive = np.any(filters, axis=(0, 1)).T  # [out, in]
    lost = alive & ~np.any(layer.filters, axis=(2, 3))
    return float(lost.sum() / alive.sum()) if alive.any() else 0.0


def integer_layer(
    convolution: Convolution,
    filters: np.ndarray,
    biases: np.ndarray,
    filter_step: str = MEAN,
    steps: np.ndarray | None = None,
) -> ConvolutionWeights:
    """Return the chip's integers of one sublayer from float32 filters [3, 3, in, out] and biases [out], both fused.

    `steps` [in, out] are learned ones, fused too.
    """
    from gti import quantize

    filter_integers, bias_integers, shift = quantize.integer_filters(
        filters, biases, convolution.coef_bits, filter_step, steps
    )
    in_chip_order = filter_integers.numpy().astype(np.int16).transpose(3, 2, 0, 1)  # HWIO -> [out, in, 3, 3]
    return ConvolutionWeights(np.ascontiguousarray(in_chip_order), bias_integers.numpy().astype(np.int32), int(shift))


def with_shifts(network: Network, shifts: Sequence[int]) -> Network:
    """Return the network with the shift of every sublayer set."""
    remaining = iter(shifts)
    layers = tuple(
        replace(layer, scaling=tuple(next(remaining) for _ in range(layer.sublayer_number))) for layer in network.layers
    )
    return replace(network, layers=layers)


@dataclass(frozen=True)
class _Ranges:
    """How large the fused weights and biases of one sublayer are, and which shift each would allow alone."""

    convolution: Convolution
    weight: float
    bias: float
    weight_shift: int
    bias_shift: int

    @classmethod
    def of(cls, convolution: Convolution, filters: np.ndarray, biases: np.ndarray) -> _Ranges:
        from gti import quantize

        # `fuse_chip` has refused what is not a number. The shift of an array is that of its largest magnitude.
        weight, bias = (np.float32(max(values.max(), -values.min())) for values in (filters, biases))
        return cls(
            convolution,
            float(weight),
            float(bias),
            int(quantize.range_shift(weight, quantize.weight_limit(convolution.coef_bits))),
            int(quantize.range_shift(bias, quantize.bias_limit(convolution.coef_bits))),
        )

    def problem(self) -> str:
        """Return the sentence that says why the sublayer cannot be converted, or ""."""
        from gti import quantize

        for name, symbol, largest, limit in (
            ("weights", "W", self.weight, quantize.weight_limit(self.convolution.coef_bits)),
            ("biases", "B", self.bias, quantize.bias_limit(self.convolution.coef_bits)),
        ):
            if largest > limit:
                return sentence(
                    self.convolution.path,
                    f"{name} do not fit the chip",
                    expected=f"max|{symbol}| of {limit} at most",
                    received=f"{largest:.6g}",
                    fix="normalise the layer (batch norm or weight decay), fuse and fine-tune",
                )
        return ""

    def warnings(self, layer: ConvolutionWeights, cap: float, vanished: float) -> list[str]:
        """Return what a user should know about a sublayer that can be converted."""
        result = []
        lost = self.weight_shift - layer.shift
        if lost >= IMBALANCE_BITS:
            result.append(
                f"biases are much larger than weights (max|B| {self.bias:.4g}, max|W| {self.weight:.4g}), so the "
                f"filters lose {lost} bits. Train with --clip_bias, or fuse and fine-tune."
            )
        if not layer.filters.any():
            result.append(
                f"every filter becomes 0 on the chip (max|W| {self.weight:.4g}). Train with --clip_bias or batch norm, "
                "or fuse and fine-tune."
            )
        elif vanished >= MANY_VANISHED:
            result.append(
                f"{vanished:.0%} of its kernels become 0 on the chip, because few are much larger than the others "
                f"(max|W| {self.weight:.4g}). Train with weight decay or batch norm, or fuse and fine-tune."
            )
        if layer.filters.any() and self.bias and not layer.biases.any():
            result.append(
                f"every bias becomes 0 on the chip (max|B| {self.bias:.4g} at shift {layer.shift}). Fuse and fine-tune."
            )
        if caps.is_extreme(cap):
            result.append(
                f"its activation range of {cap:.4g} is extreme. Train with batch norm, then fuse and fine-tune."
            )
        return [f"{self.convolution.path}: {warning}" for warning in result]

    def log(self, shift: int) -> None:
        """Log the figures that the user guide asks for, section 5.2."""
        log.debug(
            "%s: max|W| %.6g, max|B| %.6g, gain of W %d, gain of B %d, shift %d",
            self.convolution.path,
            self.weight,
            self.bias,
            2**self.weight_shift,
            2**self.bias_shift,
            shift,
        )


def debug_conversion() -> bool:
    """Return whether the user asked for the figures of every layer (environment variable of user guide section 5.2)."""
    return old_kit.is_on(os.environ, "GTI_DEBUG_CONVERSION")
