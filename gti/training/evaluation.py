"""Accuracy of a model over a whole data set: every image counts, the last small batch included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti.errors import DataError, TrainingError
from gti.layers import WeightsHeld
from gti.model.base import chip_layers
from gti.progress import progress_bar

TOP = 5


class NotFiniteError(TrainingError):
    """The model's outputs or its loss are no numbers."""


@dataclass(frozen=True)
class Evaluation:
    """Figures over `count` images; accuracies are shares 0..1, the loss is the mean cross entropy."""

    accuracy: float
    top5: float
    loss: float
    count: int
    answers: tuple[tuple[int, ...], ...] = ()  # images by label and by answer, where they were counted

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}, top-5 {self.top5:.4f}, loss {self.loss:.4f}, {self.count} images"


def evaluate(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    forward: Callable[[tf.Tensor], tf.Tensor] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    progress: str = "",
    classes: int = 0,
) -> Evaluation:
    """Evaluate `model` on every batch (images [B,H,W,C], labels [B]) of `dataset`.

    `forward` (images -> logits) stands in for the model's own inference, for example the exact one of a fused model.
    `progress` is the title of a progress bar; "" shows none. With the number of `classes` the answers of each are
    counted. Raises DataError without images, NotFiniteError for logits that are not finite.
    """
    strategy = strategy or tf.distribute.get_strategy()
    sums = Counter(forward or (lambda images: model(images, training=False)), strategy, classes)
    with float32_convolutions(), WeightsHeld(() if forward else chip_layers(model)):
        return sums.run(dataset, progress)


class Counter:
    """Adds up loss and hits over a data set, and answers where `classes` are known; keeps its traced step."""

    def __init__(
        self, forward: Callable[[tf.Tensor], tf.Tensor], strategy: tf.distribute.Strategy, classes: int = 0
    ) -> None:
        self._strategy, self._classes = strategy, classes
        size = 4 + classes**2

        def of_replica(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            def sums() -> tf.Tensor:
                logits = forward(images)
                found = batch_sums(labels, logits)
                return tf.concat([found, answers(labels, logits, classes)], 0) if classes else found

            if strategy.num_replicas_in_sync == 1:
                return sums()
            # Of a last small batch some replicas get nothing, of which a convolution gives a map of wrong channels.
            return tf.cond(tf.shape(labels)[0] > 0, sums, lambda: tf.zeros(size))

        def step(iterator: Any) -> tf.Tensor:
            sums = strategy.run(of_replica, args=next(iterator))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

        self._step = tf.function(step, reduce_retracing=True, autograph=False)

    def run(self, dataset: tf.data.Dataset, progress: str = "") -> Evaluation:
        """Return the figures of all images of `dataset`."""
        iterator = iter(self._strategy.experimental_distribute_dataset(dataset))
        total = np.zeros(4 + self._classes**2)
        with progress_bar(int(dataset.cardinality()), progress) as bar:
            while True:
                try:
                    total += self._step(iterator).numpy()
                except (tf.errors.OutOfRangeError, StopIteration):
                    break
                bar.update()
        loss, hits, hits5, count = total[:4]
        if not count:
            raise DataError("the data set", "holds no images", fix="check the data folder")
        if not np.isfinite(loss):
            raise NotFiniteError(
                "evaluation", "the model's outputs are not finite", fix="go back to an earlier checkpoint"
            )
        by_class = tuple(map(tuple, total[4:].astype(int).reshape(self._classes, self._classes).tolist()))
        return Evaluation(hits / count, hits5 / count, loss / count, int(count), by_class)


def batch_sums(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return float32 [4] of a batch: sum of cross entropies, top-1 hits, top-5 hits, number of images."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    own = tf.gather(logits, tf.cast(labels, tf.int32), axis=1, batch_dims=1)[:, None]
    # A rank counts the logits above: ties in front of the label too, so that a constant output scores by its order.
    ahead = tf.range(tf.shape(logits)[1])[None, :] < tf.cast(labels, tf.int32)[:, None]
    rank = tf.reduce_sum(tf.cast((logits > own) | ((logits == own) & ahead), tf.int32), axis=1)
    hits = tf.reduce_sum(tf.cast(rank < 1, tf.float32))
    hits5 = tf.reduce_sum(tf.cast(rank < TOP, tf.float32))
    return tf.stack([tf.reduce_sum(losses), hits, hits5, tf.cast(tf.shape(labels)[0], tf.float32)])


def answers(labels: tf.Tensor, logits: tf.Tensor, classes: int) -> tf.Tensor:
    """Return float32 [classes * classes] of a batch: images by label and, within a label, by the first best answer."""
    pairs = tf.cast(labels, tf.int64) * classes + tf.argmax(logits, axis=1)
    return tf.cast(tf.math.bincount(tf.cast(pairs, tf.int32), minlength=classes**2, maxlength=classes**2), tf.float32)


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Compute in full float32 meanwhile: TensorFloat-32 of recent GPUs drops bits that the chip has."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
