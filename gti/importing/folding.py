"""What a source does besides convolutions, folded into them: batch norm, scalings, padded channels, 1x1 kernels.

    scale * (W . x + b) + offset  ==  (scale * W) . x + (scale * b + offset)

for each output channel. All arithmetic is in float64, the results are float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from gti.chip.network.types import Network
from gti.chip.spec import BATCH_NORM_EPSILON
from gti.errors import FormatError
from gti.importing.chip_part import Sublayer
from gti.importing.graph import Layer, Weight, Weights, real

_SMALLEST_DEVIATION = 1e-7  # of Keras' Normalization


def scales(layers: Iterable[Layer], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale, offset), float64 [channels], of scaling layers one after the other."""
    scale, offset = np.ones(channels), np.zeros(channels)
    for layer in layers:
        try:
            factor, constant = (np.broadcast_to(part, (channels,)) for part in _scale(layer))
        except (ValueError, TypeError):
            raise FormatError(f"layer {layer.name}", "has another number of channels", expected=channels) from None
        scale, offset = scale * factor, offset * factor + constant
    return scale, offset


def scaled(values: np.ndarray, layers: Iterable[Layer], channels: int) -> np.ndarray:
    """Return what scaling layers make of `values` [channels]."""
    scale, offset = scales(layers, channels)
    return scale * values + offset


def _scale(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    def array(name: str, default: float) -> np.ndarray:
        weight = layer.weights.get(name)
        value = layer.config.get(name) if weight is None else weight.read()
        return np.asarray(default if value is None else value, np.float64).reshape(-1)

    with np.errstate(all="ignore"):  # what is no number then is refused where the arrays are complete
        if layer.kind == "BatchNormalization":
            deviation = np.sqrt(array("moving_variance", 1.0) + _epsilon(layer))
            scale = array("gamma", 1.0) / deviation
            return scale, array("beta", 0.0) - array("moving_mean", 0.0) * scale
        if layer.kind == "Normalization":
            mean, deviation = array("mean", 0.0), np.maximum(np.sqrt(array("variance", 1.0)), _SMALLEST_DEVIATION)
            return (deviation, mean) if layer.config.get("invert") else (1 / deviation, -mean / deviation)
    return array("scale", 1.0), array("offset", 0.0)


def _epsilon(layer: Layer) -> float:
    return real(layer.config.get("epsilon"), 1e-3)


def can_train_batch_norm(sublayers: Sequence[Sublayer]) -> bool:
    """Return whether every convolution has one batch norm behind it, so that the net can have them too."""
    return bool(sublayers) and all(
        [layer.kind for layer in sublayer.after].count("BatchNormalization") == 1 for sublayer in sublayers
    )


def chip_weights(sublayers: Sequence[Sublayer], network: Network, *, batch_norm: bool) -> Weights:
    """Return the arrays of the chip's part by `<sublayer>/<kind>`, with `batch_norm` those of the batch norms too."""
    result: Weights = {}
    inputs = network.input_shape[2]
    for sublayer, convolution in zip(sublayers, network.convolutions, strict=True):
        arrays = _Convolution(sublayer, inputs, convolution.input_channels, convolution.output_channels, batch_norm)
        inputs = sublayer.output_channels
        result |= {f"{convolution.name}/{kind}": weight for kind, weight in arrays.weights().items()}
    return result


class _Convolution:
    """Arrays of one sublayer, folded and padded when they are read."""

    def __init__(self, sublayer: Sublayer, inputs: int, padded_inputs: int, padded_outputs: int, batch_norm: bool):
        self.layer, self.outputs = sublayer.layer, sublayer.output_channels
        self.inputs, self.shape = inputs, (3, 3, padded_inputs, padded_outputs)
        at = next((i for i, after in enumerate(sublayer.after) if after.kind == "BatchNormalization"), None)
        self.norm = sublayer.after[at] if batch_norm and at is not None else None
        self.before = sublayer.after[:at] if self.norm else sublayer.after
        self.behind = sublayer.after[at + 1 :] if self.norm and at is not None else []
        kernel = self.layer.weights.get("kernel")
        bias = self.layer.weights.get("bias")
        sizes = kernel.shape if kernel else ()
        if (
            len(sizes) != 4
            or sizes[:2] not in ((3, 3), (1, 1))
            or sizes[2:] != (self.inputs, self.outputs)
            or (bias is not None and bias.shape != (self.outputs,))
        ):
            raise FormatError(
                f"layer {self.layer.name}",
                "its weights are missing or of another shape",
                expected=[3, 3, self.inputs, self.outputs],
                received=list(sizes) or "none",
                fix="pass a file with the weights of this network",
            )
        assert kernel is not None
        self.kernel, self.bias = kernel, bias

    def weights(self) -> Weights:
        padded = self.shape[3]
        result = {"filters": Weight(self.shape, self.filters), "biases": Weight((padded,), self.biases)}
        if self.norm is not None:
            for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                result[f"batch_normalization/{name}"] = Weight((padded,), partial(self.of_norm, name))
        return result

    def filters(self) -> np.ndarray:
        kernel = self.kernel.read().astype(np.float64)
        if kernel.shape[:2] == (1, 1):  # the centre of a 3x3
            kernel = np.pad(kernel, [(1, 1), (1, 1), (0, 0), (0, 0)])
        kernel = kernel * scales(self.before, self.outputs)[0]
        more = [(0, 0), (0, 0), (0, self.shape[2] - self.inputs), (0, self.shape[3] - self.outputs)]
        return np.pad(kernel, more).astype(np.float32)

    def biases(self) -> np.ndarray:
        bias = np.zeros(self.outputs) if self.bias is None else self.bias.read().astype(np.float64)
        return self._padded(scaled(bias, self.before, self.outputs))

    def of_norm(self, name: str) -> np.ndarray:
        """Return a variable of the net's own batch norm, which has another epsilon and equal results."""
        assert self.norm is not None
        weights = {kind: weight.read().astype(np.float64) for kind, weight in self.norm.weights.items()}
        variance = weights.get("moving_variance", np.ones(self.outputs))
        scale, offset = scales(self.behind, self.outputs)
        with np.errstate(all="ignore"):
            ratio = np.sqrt((variance + BATCH_NORM_EPSILON) / (variance + _epsilon(self.norm)))
        values = {
            "gamma": weights.get("gamma", np.ones(self.outputs)) * ratio * scale,
            "beta": weights.get("beta", np.zeros(self.outputs)) * scale + offset,
            "moving_mean": weights.get("moving_mean", np.zeros(self.outputs)),
            "moving_variance": variance,
        }
        return self._padded(values[name], 1.0 if name in ("gamma", "moving_variance") else 0.0)

    def _padded(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        more = (0, self.shape[3] - self.outputs)
        return np.pad(values, more, constant_values=fill).astype(np.float32)
