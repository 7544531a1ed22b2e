"""Fold batch norm and caps into filters and biases: NumPy functions on dictionaries of variables (docs/numerics.md 5).

After fusion every activation is in chip units (0..31), as on the chip: no batch norm is left, every cap is 31, and the
first host layer takes chip units. Float results stay the same up to rounding; fusing a fused network changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gti import names
from gti.chip import spec
from gti.chip.network.types import Network
from gti.errors import QuantizationError

Arrays = dict[str, np.ndarray]


def fuse(network: Network, arrays: Mapping[str, np.ndarray], *, net: str, host_layer: str | None = None) -> Arrays:
    """Return the variables of the fused network from those of the trained one: the chip part and the host part.

    `arrays` as `fuse_chip` takes them, with host variables as `<net>/fc6/weights` [in, out]. `host_layer` names the
    first host layer; by default it is the first, in natural order of names, whose weights fit the chip's result.
    Variables of other nets and of optimizers are left out.

    Raises QuantizationError as `fuse_chip` does, and where no host layer fits.
    """
    result = fuse_chip(network, arrays, net=net)
    last = network.convolutions[-1]
    gain = float(arrays[names.cap(net, last.name)]) / spec.FUSED_CAP[last.ten_bit]
    first_host = names.variable(net, host_layer, "weights") if host_layer else first_host_weights(network, arrays, net)
    for name, array in arrays.items():
        if name.startswith(f"{net}/") and not names.is_chip_variable(name, net):
            result[name] = np.asarray(array) * np.float32(gain) if name == first_host else np.asarray(array)
    return result


def fuse_chip(network: Network, arrays: Mapping[str, np.ndarray], *, net: str) -> Arrays:
    """Return filters, biases and caps (float32) of the chip part of the fused network.

    `arrays` holds `<net>/conv1_1/filters` [3, 3, in, out], `.../biases` [out], `.../relu_cap` [], `.../filter_steps`
    [in, out] where they are learned, and where there is batch norm `.../batch_normalization/{gamma, beta, moving_mean,
    moving_variance}` [out].

    Raises QuantizationError that lists every variable that is missing, of another shape, or not usable.
    """
    problems = _problems(network, arrays, net)
    if problems:
        raise QuantizationError(
            f"net {net}", "cannot be fused: " + "; ".join(problems), fix="pass a checkpoint of this net"
        )
    result: Arrays = {}
    image_cap = previous_cap = spec.FUSED_CAP[False]  # the image is in chip units already
    for convolution in network.convolutions:
        scope = f"{net}/{convolution.name}"
        filters, biases = fold_batch_norm(arrays, scope)
        cap = float(arrays[f"{scope}/relu_cap"])
        top = spec.FUSED_CAP[convolution.ten_bit]
        # The input was scaled by 31 / previous_cap; the output is to be scaled by top / cap.
        result[f"{scope}/filters"] = _scaled(filters, previous_cap / image_cap * (top / cap))
        result[f"{scope}/biases"] = _scaled(biases, top / cap)
        steps = names.variable(net, convolution.name, names.FILTER_STEPS)
        if steps in arrays:
            gain = np.abs(batch_norm_factor(arrays, scope)) * (previous_cap / image_cap * (top / cap))
            result[steps] = _scaled(np.asarray(arrays[steps], np.float64), gain)
        result[f"{scope}/relu_cap"] = np.asarray(top, np.float32)
        previous_cap = cap
    return result


def _scaled(array: np.ndarray, gain: Any) -> np.ndarray:
    # One rounding to float32. Megabytes of filters without batch norm stay float32; their product is rounded once too.
    return np.asarray(array * gain if array.dtype == np.float64 else array * np.float32(gain), np.float32)


def fold_batch_norm(arrays: Mapping[str, np.ndarray], scope: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (filters, biases) of the layer `scope` with its batch norm, if it has one, folded in (then float64).

    `f = gamma / sqrt(variance + 1e-3)`, `W * f`, `beta + f * (biases - mean)`. Missing biases are zeros.
    """
    filters = np.asarray(arrays[f"{scope}/filters"])
    biases = np.asarray(arrays.get(f"{scope}/biases", np.zeros(filters.shape[3], np.float32)))
    norm = f"{scope}/batch_normalization"
    if f"{norm}/gamma" not in arrays:
        return filters, biases
    beta, mean = (np.asarray(arrays[f"{norm}/{part}"], np.float64) for part in ("beta", "moving_mean"))
    factor = batch_norm_factor(arrays, scope)
    return filters * factor, beta + factor * (biases - mean)


def batch_norm_factor(arrays: Mapping[str, np.ndarray], scope: str) -> np.ndarray | float:
    """Return what batch norm multiplies each channel of the layer `scope` with, float64 [out]; 1 without batch norm."""
    norm = f"{scope}/batch_normalization"
    if f"{norm}/gamma" not in arrays:
        return 1.0
    gamma, variance = (np.asarray(arrays[f"{norm}/{part}"], np.float64) for part in ("gamma", "moving_variance"))
    return gamma / np.sqrt(variance + spec.BATCH_NORM_EPSILON)


def first_host_weights(network: Network, arrays: Mapping[str, np.ndarray], net: str) -> str:
    """Return the name of the weights [in, out] that take the chip's result, flattened or pooled to 1x1.

    Raises QuantizationError where no host layer fits.
    """
    channels, height, width = network.output_shape
    fitting = [
        name
        for name, array in arrays.items()
        if re.fullmatch(re.escape(net) + r"/[^/]+/weights", name)
        and np.ndim(array) == 2
        and np.shape(array)[0] in (channels * height * width, channels)
    ]
    if not fitting:
        raise QuantizationError(
            f"net {net}",
            "no host layer takes the chip's result",
            expected=f"weights [{channels * height * width}, outputs] of a fully connected layer",
            fix="pass a checkpoint of this net",
        )
    return min(fitting, key=names.natural)


def _problems(network: Network, arrays: Mapping[str, np.ndarray], net: str) -> list[str]:
    problems: list[str] = []
    for convolution in network.convolutions:
        scope = f"{net}/{convolution.name}"
        outputs = convolution.output_channels
        wanted = {"filters": (3, 3, convolution.input_channels, outputs), "relu_cap": ()}
        if f"{scope}/biases" in arrays:
            wanted["biases"] = (outputs,)
        if f"{scope}/{names.FILTER_STEPS}" in arrays:
            wanted[names.FILTER_STEPS] = (convolution.input_channels, outputs)
        norm = {
            f"batch_normalization/{part}": (outputs,) for part in ("gamma", "beta", "moving_mean", "moving_variance")
        }
        if any(f"{scope}/{name}" in arrays for name in norm):
            wanted |= norm
        for name, shape in wanted.items():
            full = f"{scope}/{name}"
            if full not in arrays:
                problems.append(f"{full} is missing")
            elif np.shape(arrays[full]) != shape:
                problems.append(f"{full} has the shape {list(np.shape(arrays[full]))} instead of {list(shape)}")
            elif not np.all(np.isfinite(arrays[full])):
                problems.append(f"{full} holds values that are not numbers")
            elif name == "relu_cap" and not (math.isfinite(float(arrays[full])) and float(arrays[full]) > 0):
                problems.append(f"{full} is {float(arrays[full]):g}, but a cap is above 0")
            elif name.endswith("moving_variance") and np.any(np.asarray(arrays[full]) < 0):
                problems.append(f"{full} holds negative values")
    return problems
