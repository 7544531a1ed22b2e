"""A network that trains in a second, its data, and its trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import small_nets
import tensorflow as tf

from gti.stage import Stage
from gti.training import checkpoint
from gti.training.loop import Result, Trainer, fit
from gti.training.metadata import Metadata
from gti.training.optimization import Settings

NETWORK = small_nets.small_network((14, 3, 16, 1, 3, True))
CLASSES = 4
FAST = Settings(num_epochs=2, learning_rate=1e-3, optimizer="adam", seed=3)
START = Metadata(net="digits", chip="2801", stage=Stage.FLOAT, epoch=0, step=0, classes=CLASSES, image_size=14)


def examples(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels; the class is the brightest quarter of the image."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count).astype(np.int32)
    images = random.integers(0, 16, (count, 14, 14, 3)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        top, left = 7 * (label // 2), 7 * (label % 2)
        image[top : top + 7, left : left + 7] += 12
    return images, labels


def train_data(seed: int) -> tf.data.Dataset:
    """Return batches of 16, 16 and 8."""
    return tf.data.Dataset.from_tensor_slices(examples()).shuffle(40, seed=seed).batch(16)


def val_data(count: int = 21) -> tf.data.Dataset:
    """Return batches of 8, the last one smaller."""
    return tf.data.Dataset.from_tensor_slices(examples(count, seed=1)).batch(8)


def make_trainer(
    folder: Path,
    settings: Settings = FAST,
    *,
    steps: int = 0,
    done: int = 0,
    net: str = "digits",
    teacher: keras.Model | None = None,
    **options: Any,
) -> Trainer:
    """Return the trainer of a fresh model with the host part of `net`; `options` are of its stage."""
    model = make_model(folder, settings.seed, net, **options)
    return Trainer(model, settings, steps=steps, done=done, teacher=teacher)


def make_model(folder: Path, seed: int, net: str = "digits", **options: Any) -> keras.Model:
    """Return a fresh model; `options` are of its stage."""
    tf.keras.utils.set_random_seed(seed)
    nets = folder / "nets"
    nets.mkdir(exist_ok=True)
    return small_nets.build(NETWORK, nets, net, classes=CLASSES, **options)


def run(trainer: Trainer, folder: Path, start: Metadata = START, **changes: Any) -> Result:
    """Train as the trainer's settings say, with these `changes`."""
    trainer.settings = replace(trainer.settings, **changes)
    return fit(trainer, train_data, val_data(), folder, start)


def restore(trainer: Trainer, prefix: str) -> Metadata:
    """Take over a checkpoint, its optimizer state included; return its metadata."""
    arrays, metadata = checkpoint.load(prefix)
    for name, variable in trainer.variables.items():
        variable.assign(arrays[name])
    assert trainer.restore_optimizer(checkpoint.load_optimizer(prefix))
    assert metadata is not None
    return metadata
