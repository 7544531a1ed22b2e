"""Learning from a teacher: the formula, the step, and which checkpoints may teach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import small_training
import tensorflow as tf
from small_training import CLASSES, FAST, NETWORK, START, examples

from gti.errors import CheckpointError
from gti.model.base import named_variables
from gti.training import checkpoint, restore
from gti.training.losses import distillation

PLAIN = replace(FAST, optimizer="sgd", learning_rate=0.01, momentum=0.0, weight_decay=0.0)


@pytest.fixture
def make_trainer(tmp_path):
    return partial(small_training.make_trainer, tmp_path)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_and_its_gradient_are_those_of_the_paper(temperature):
    random = np.random.default_rng(4)
    z, u = (random.normal(size=(7, 5)) * 3 for _ in range(2))
    q, p = softmax(u / temperature), softmax(z / temperature)
    logits, taught = tf.constant(z, tf.float32), tf.constant(u, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([logits, taught])
        losses = distillation(logits, taught, temperature)
    np.testing.assert_allclose(losses, temperature**2 * (q * np.log(q / p)).sum(axis=1), rtol=1e-4, atol=1e-6)
    # Hinton et al. 2015, equation 2: dC/dz = (p - q) / T, here times T**2.
    to_logits, to_taught = tape.gradient(losses, [logits, taught])
    np.testing.assert_allclose(to_logits, temperature * (p - q), rtol=1e-4, atol=1e-5)
    assert to_taught is None


def test_equal_answers_have_nothing_to_learn():
    z = tf.constant([[3.0, -1.0, 80.0]])
    assert float(distillation(z, z + 5.0, 2.0)[0]) == pytest.approx(0, abs=1e-5)


def test_a_step_weighs_teacher_and_labels(make_trainer, tmp_path):
    settings = replace(PLAIN, distill_weight=0.3, distill_temperature=3.0, label_smoothing=0.1)
    teacher = small_training.make_model(tmp_path, seed=8)
    trainer = make_trainer(settings, teacher=teacher)
    before, kept = trainer.arrays(), [variable.numpy() for variable in teacher.variables]
    images, labels = examples(16)
    named = trainer.variables
    with tf.GradientTape() as tape:
        logits = trainer.model(images)
        log_p = tf.nn.log_softmax(logits)
        targets = 0.9 * tf.one_hot(labels, CLASSES) + 0.1 / CLASSES
        q, log_soft = tf.nn.softmax(teacher(images) / 3.0), tf.nn.log_softmax(logits / 3.0)
        loss = tf.reduce_mean(-0.7 * tf.reduce_sum(targets * log_p, 1) - 0.3 * 9 * tf.reduce_sum(q * log_soft, 1))
    gradients = dict(zip(named, tape.gradient(loss, [v.value for v in named.values()]), strict=True))
    trainer.train_epoch(tf.data.Dataset.from_tensors((images, labels)), seed=0)
    for name, value in trainer.arrays().items():
        np.testing.assert_allclose(value, before[name] - 0.01 * gradients[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for variable, value in zip(teacher.variables, kept, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def saved(folder, stage=START.stage, **changes):
    model = small_training.make_model(folder, seed=8)
    arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
    checkpoint.save(folder / "teacher", arrays, replace(START, stage=stage, **changes))
    return folder / "teacher", model


def test_a_float_checkpoint_teaches(tmp_path):
    prefix, model = saved(tmp_path)
    found, teacher = restore.teacher(prefix, "digits", NETWORK, CLASSES, nets_dir=tmp_path / "nets")
    assert found == str(prefix)
    images, _ = examples(3)
    np.testing.assert_array_equal(teacher(images), model(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": small_training.Stage.QUANT_W}, "quant_w"),
        ({"classes": 7}, "7 classes"),
        ({"image_size": 28}, "28 pixels"),
    ],
)
def test_others_do_not(tmp_path, changes, message):
    prefix, _ = saved(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        restore.teacher(prefix, "digits", NETWORK, CLASSES, nets_dir=tmp_path / "nets")
