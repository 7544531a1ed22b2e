"""The exact forward pass of a fused model: the chip's integers in TensorFlow, on any device.

float32 represents the sums of a sublayer exactly, in any order of summation, while
`31 * max(P, N) + |b| <= 2**24` for every output channel, P and N being the sums of its positive and of its negative
integer weights. Sublayers within that bound are one float32 convolution. Beyond it the weights are split into a high
and a low part, two exact convolutions that are added in float64. Accelerators may choose algorithms that transform the
weights, so there the convolution itself runs in float64 and is rounded to the integer that it can only mean.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti import quantize
from gti.chip import spec
from gti.chip.network.types import Convolution
from gti.errors import UsageError
from gti.layers import pooled, upsampled
from gti.model import base

FLOAT32_EXACT = 2**24
# high * 64 + low, low in -32..31 and |high| <= 32: 9 * 1024 inputs * 31 * 32 < 2**24, whatever the weights are.
SPLIT = 64


class ExactModel:
    """The integer network of a fused model, as its variables are now.

    `codes(images)` gives the codes of every sublayer, calling it gives logits. Images are float32
    [batch, height, width, channels] of codes 0..31. Raises UsageError for a model that is not fused.
    """

    def __init__(self, model: keras.Model) -> None:
        layers = base.chip_layers(model)
        if not all(layer.fixed_cap for layer in layers):
            raise UsageError(
                f"net {model.net}",
                "only a fused model computes in the chip's integers",
                fix="train it with --quant_w --quant_act --fuse",
            )
        self.network = model.network
        self._sublayers = [
            _Sublayer(convolution, self.network.layers[convolution.major - 1].upsample_mode, layer)
            for convolution, layer in zip(self.network.convolutions, layers, strict=True)
        ]
        self._host = base.host_model(model)
        self._codes = tf.function(self._all_codes, reduce_retracing=True)
        self._logits = tf.function(self._all_logits, reduce_retracing=True)

    def codes(self, images: Any) -> list[np.ndarray]:
        """Return the codes of every sublayer before pooling, uint8 (uint16 with ten bits) [batch, H, W, C]."""
        return [
            code.numpy().astype(np.uint16 if sublayer.convolution.ten_bit else np.uint8)
            for code, sublayer in zip(self._codes(tf.cast(images, tf.float32)), self._sublayers, strict=True)
        ]

    def __call__(self, images: Any) -> tf.Tensor:
        """Return logits [batch, classes], float32: exact codes out of the chip part, then the host layers."""
        return self._logits(tf.cast(images, tf.float32))

    def _all_codes(self, images: tf.Tensor) -> list[tf.Tensor]:
        result = []
        x = images
        for sublayer in self._sublayers:
            code = sublayer(x)
            result.append(code)
            x = pooled(code, self.network.sampling_method) if sublayer.convolution.pooled else code
        return result

    def _all_logits(self, images: tf.Tensor) -> tf.Tensor:
        last = self._sublayers[-1].convolution
        x = self._all_codes(images)[-1]
        if last.pooled:
            x = pooled(x, self.network.sampling_method)
        if last.ten_bit:
            x = x / spec.TEN_BIT_FACTOR
        return self._host(x, training=False)


class _Sublayer:
    """Integer weights of one sublayer, and the way in which its sums are exact."""

    def __init__(self, convolution: Convolution, upsample_mode: str, layer: Any) -> None:
        self.convolution = convolution
        self.upsample = upsample_mode if convolution.upsampled else None
        filters, biases, self.shift = quantize.integer_filters(
            layer.filters, layer.biases, convolution.coef_bits, layer.filter_step, layer.filter_steps
        )
        weights = filters.numpy()
        self.biases = biases.numpy()
        if tf.config.list_logical_devices("GPU"):
            parts = [weights.astype(np.float64)]
        elif fits_float32(weights, self.biases):
            parts = [weights]
        else:
            high = np.floor(weights / SPLIT + 0.5)
            parts = [high, weights - high * SPLIT]
        # Tensors, not arrays: a graph captures them instead of holding megabytes of constants.
        self.parts = [tf.constant(part) for part in parts]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # Codes of the input, float32 [N, H, W, C] -> codes of the output, float32.
        x = upsampled(x, self.upsample)
        sums = [tf.nn.conv2d(tf.cast(x, part.dtype), part, strides=1, padding="SAME") for part in self.parts]
        if len(sums) == 2:
            total = tf.cast(sums[0], tf.float64) * SPLIT + tf.cast(sums[1], tf.float64)
        else:
            total = tf.round(sums[0]) if sums[0].dtype == tf.float64 else sums[0]
        total = total + self.biases.astype(total.dtype.as_numpy_dtype)
        top = spec.TOP_CODE[self.convolution.ten_bit]
        return tf.cast(quantize.requantize(total, self.shift, top), tf.float32)


def fits_float32(filters: np.ndarray, biases: np.ndarray) -> bool:
    """Return whether float32 holds every sum of these integer filters [3, 3, in, out] and biases [out] exactly."""
    wide = np.asarray(filters, np.float64)
    positive = np.maximum(wide, 0).sum(axis=(0, 1, 2))
    negative = np.maximum(-wide, 0).sum(axis=(0, 1, 2))
    bound = spec.MAX_CODE * np.maximum(positive, negative) + np.abs(biases)
    return bool(np.all(bound <= FLOAT32_EXACT))


def exact_codes(model: keras.Model, images: Any) -> list[np.ndarray]:
    """Return the chip's codes of every sublayer of a fused model, before pooling: uint8 [batch, H, W, C] each.

    uint16 where the last sublayer has ten bits. Keep an `ExactModel` for more than one batch.
    """
    return ExactModel(model).codes(images)
