"""Batch-norm statistics estimated anew, with the weights as they are now.

While quantized weights are trained, a small step may flip an integer back and forth, and the moving statistics, which
remember some ten batches, follow the flips and not the weights that are saved (Nagel et al. 2022, section 4.1). Folding
makes what they are final, so they are estimated before, over many batches.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti.errors import DataError, TrainingError
from gti.layers import WeightsHeld
from gti.model.base import chip_layers, chip_output
from gti.progress import progress_bar
from gti.training.evaluation import float32_convolutions

MEAN, VARIANCE = "moving_mean", "moving_variance"


def reestimate(model: keras.Model, batches: tf.data.Dataset, *, progress: str = "") -> dict[str, np.ndarray]:
    """Return the statistics of every batch norm of the chip part over `batches`, by variable name; {} without any.

    Every layer normalises with the statistics of the batch, as in training, and they are pooled over all N batches:
    `mean = sum(m_i) / N`, `variance = sum(v_i + m_i**2) / N - mean**2` (Wu and Johnson 2021, section 3). Batches of
    another size than the first are left out. `model` comes back as it was. Raises DataError without a batch,
    TrainingError for statistics that are not finite.
    """
    layers = [layer for layer in chip_layers(model) if layer.batch_normalization is not None]
    if not layers:
        return {}
    norms: list[Any] = [layer.batch_normalization for layer in layers]
    kept = [(norm.momentum, norm.moving_mean.numpy(), norm.moving_variance.numpy()) for norm in norms]
    chip = keras.Model(model.input, chip_output(model))
    sums = [np.zeros((2, *norm.moving_mean.shape)) for norm in norms]
    count, size = 0, 0
    try:
        for norm in norms:
            norm.momentum = 0.0  # the moving statistics are those of the last batch
        with float32_convolutions(), WeightsHeld(layers), progress_bar(int(batches.cardinality()), progress) as bar:
            forward = tf.function(lambda images: chip(images, training=True), reduce_retracing=True, autograph=False)
            for images, _ in batches:
                size = size or len(images)
                if len(images) == size:
                    forward(images)
                    count += 1
                    for total, norm in zip(sums, norms, strict=True):
                        mean = norm.moving_mean.numpy().astype(np.float64)
                        total += np.stack([mean, norm.moving_variance.numpy() + mean**2])
                bar.update()
    finally:
        for norm, (momentum, mean, variance) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)
    if not count:
        raise DataError("batch-norm statistics", "there are no images", fix="check --train_data_dir")
    result = {}
    for layer, total in zip(layers, sums, strict=True):
        mean, square = total / count
        if not np.isfinite(total).all():
            raise TrainingError(f"net {model.net}, {layer.name}", "its outputs are not finite", fix="train it again")
        scope = f"{model.net}/{layer.name}/batch_normalization"
        result[f"{scope}/{MEAN}"] = mean.astype(np.float32)
        result[f"{scope}/{VARIANCE}"] = np.maximum(square - mean**2, 0).astype(np.float32)
    return result
