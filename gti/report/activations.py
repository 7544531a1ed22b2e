"""What leaves every ReLU: histograms below and above the cap, the codes in use, channels that are never on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gti import names
from gti.chip import spec

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Enough for the shape of a distribution; VGG16 at 224 has 13.5 million activations in each image.
MAX_IMAGES = 64
BINS = 64


class Histogram:
    """Counts of values from 0 in equal bins; the range doubles, and bins merge in pairs, for a value beyond it."""

    def __init__(self, first: float = 1.0) -> None:
        """Begin with the range 0..`first`, above 0."""
        self.top = first
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count `values`, any shape, finite and not negative."""
        largest = float(values.max(initial=0.0))
        while largest > self.top:
            self.top *= 2
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
        index = np.minimum((values.reshape(-1) * (BINS / self.top)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)


class _Layer:
    def __init__(self, channels: int, cap: float, max_code: int) -> None:
        self.cap, self.max_code = cap, max_code
        self.histogram = Histogram(cap)
        self.codes = np.zeros(max_code + 1, np.int64)
        self.on = np.zeros(channels, bool)
        self.clipped = self.zeros = self.count = 0
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count one batch, [N, H, W, C]."""
        self.histogram.add(values)
        # docs/numerics.md section 4
        codes = np.floor(np.clip(values, 0, self.cap) * (self.max_code / self.cap) + 0.5).astype(np.int64)
        self.codes += np.bincount(codes.reshape(-1), minlength=self.max_code + 1)
        self.on |= codes.any(axis=(0, 1, 2))
        self.clipped += int(np.count_nonzero(values > self.cap))
        self.zeros += int(np.count_nonzero(codes == 0))
        self.count += values.size
        self.largest = max(self.largest, float(values.max(initial=0.0)))

    def summary(self, name: str, path: str) -> dict[str, Any]:
        # Ten-bit codes are shown like five-bit ones: 32 groups of 32.
        groups = self.codes.reshape(spec.MAX_CODE + 1, -1).sum(axis=1)
        return {
            "name": name,
            "path": path,
            "cap": self.cap,
            "largest": self.largest,
            "count": self.count,
            "clipped": self.clipped / max(self.count, 1),
            "zeros": self.zeros / max(self.count, 1),
            "codes": groups.tolist(),
            "histogram": {"top": self.histogram.top, "counts": self.histogram.counts.tolist()},
            "channels": self.on.size,
            "dead_channels": np.flatnonzero(~self.on).tolist(),
        }


def measure(
    model: keras.Model, dataset: tf.data.Dataset, caps: Mapping[str, float], *, max_images: int = MAX_IMAGES
) -> dict[str, Any]:
    """Return the part "activations" of a report: the input and every sublayer of `model`, over its first images.

    `caps` by variable name; `dataset` of (images [B,H,W,C] codes 0..31, labels).
    """
    import tensorflow as tf

    from gti.model import base
    from gti.training.evaluation import float32_convolutions

    convolutions = model.network.convolutions
    outputs = type(model)(model.input, [layer.output for layer in base.chip_layers(model)])
    layers = [_Layer(model.network.input_shape[2], float(spec.MAX_CODE), spec.MAX_CODE)]
    for convolution in convolutions:
        cap = caps[names.cap(model.net, convolution.name)]
        layers.append(_Layer(convolution.output_channels, cap, spec.TOP_CODE[convolution.ten_bit]))
    images = 0
    with float32_convolutions():
        for batch, _ in dataset:
            batch = batch[: max_images - images]
            results = tf.nest.flatten(outputs(batch, training=False))
            for layer, values in zip(layers, [batch, *results], strict=True):
                layer.add(values.numpy())
            images += len(batch)
            if images >= max_images:
                break
    titles = [("input", "input image"), *((c.name, c.path) for c in convolutions)]
    return {
        "images": images,
        "layers": [layer.summary(*name) for layer, name in zip(layers, titles, strict=True)],
    }
