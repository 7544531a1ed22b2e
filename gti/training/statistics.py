"""What the step into fused takes from training batches: batch-norm statistics before it, corrected biases behind it.

While quantized weights are trained, a small step may flip an integer back and forth, and the moving statistics, which
remember some ten batches, follow the flips and not the weights that are saved (Nagel et al. 2022, section 4.1). Folding
makes what they are final, so they are estimated before, over many batches.

Folded filters are rounded anew, to the integers of a shift that large biases keep small: with 1-bit filters, whose
biases have 12 bits, magnitudes of 2 to 9 are usual, and channels lose or gain as a whole. Their mean outputs are put
right in the biases (Nagel et al. 2019, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti.errors import DataError, TrainingError
from gti.layers import ChipConv2D, WeightsHeld
from gti.model.base import chip_layers, chip_output
from gti.progress import progress_bar
from gti.training.evaluation import float32_convolutions

# Batches for the biases: every layer takes as many passes.
CORRECTION_BATCHES = 8
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


def correct_biases(
    fused: keras.Model, trained: keras.Model, batches: tf.data.Dataset, *, progress: str = ""
) -> dict[str, np.ndarray]:
    """Return biases [out] for `fused`, by variable name, with which its channels have the means of `trained` in mean.

    `trained` is the quant_act model that `fused` was folded from, in the same codes: before the ReLU, an output of it
    times top / cap is that of `fused`. One layer after the other, over the images of `batches`: b <- b + mean(trained)
    - mean(fused), each with the inputs of its own network, and no further than the layer's shift allows. `fused` comes
    back with these biases. Raises DataError without an image.
    """
    images = [found for found, _ in batches]
    if not images:
        raise DataError("the correction of biases", "there are no images", fix="check --train_data_dir")
    result = {}
    pairs = list(zip(chip_layers(fused), chip_layers(trained), strict=True))
    with float32_convolutions(), WeightsHeld(chip_layers(trained)), progress_bar(len(pairs), progress, "layer") as bar:
        for layer, model in pairs:
            assert layer.initial_cap is not None
            gain = layer.initial_cap / float(np.asarray(model.relu_cap))
            off = gain * _mean_sums(trained, model, images) - _mean_sums(fused, layer, images)
            limit = np.float32(layer.largest_bias())
            layer.biases.assign(np.clip(np.asarray(layer.biases) + off.astype(np.float32), -limit, limit))
            result[f"{fused.net}/{layer.name}/biases"] = np.asarray(layer.biases)
            bar.update()
    return result


def _mean_sums(model: keras.Model, layer: ChipConv2D, images: Sequence[tf.Tensor]) -> np.ndarray:
    # Mean over images and places of what the layer's ReLU gets, float64 [out].
    inputs = keras.Model(model.input, layer.input)
    means = tf.function(
        lambda batch: tf.reduce_mean(layer.sums(inputs(batch, training=False)), axis=[0, 1, 2]),
        reduce_retracing=True,
        autograph=False,
    )
    weights = [len(batch) for batch in images]
    return np.average([means(batch).numpy().astype(np.float64) for batch in images], axis=0, weights=weights)
