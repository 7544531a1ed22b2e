"""The rate at each step, the optimizer's rule, and the loss that is minimised, against NumPy statements of them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import small_training
import tensorflow as tf
from small_training import FAST, examples, restore, run, train_data
from sweeps import first_quick

from gti.training.losses import smoothed_cross_entropy
from gti.training.optimization import Schedule, Settings, make_optimizer


@pytest.fixture
def make_trainer(tmp_path):
    return partial(small_training.make_trainer, tmp_path)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        # Half a cosine by hand: (1 + cos(pi p)) / 2 is 1, 0.5 and 0 at p = 0, 1/2 and 1.
        ({}, {0: 0.1, 5: 0.05, 10: 0, 12: 0}),
        ({"first": 3}, {3: 0.1, 8: 0.05, 13: 0}),
        ({"first": -5}, {0: 0.05, 5: 0}),
        # Warm-up over 4 of 10 steps: 1/4, 2/4, 3/4, 4/4; then the cosine in the 6 that are left.
        ({"warmup": 4}, {0: 0.025, 1: 0.05, 3: 0.1, 4: 0.1, 7: 0.05, 10: 0}),
        ({"warmup": 4, "cosine": False}, {0: 0.025, 3: 0.1, 9: 0.1, 50: 0.1}),
        # A quarter of the whole: from p = 1/4 to p = 1/2.
        ({"span": (0.25, 0.5)}, {0: 0.05 * (1 + math.sqrt(0.5)), 10: 0.05, 20: 0.05}),
        ({"span": (0.5, 1.0), "warmup": 5}, {0: 0.01, 5: 0.05, 10: 0}),
    ],
)
def test_the_rate_at_a_step(options, rates):
    schedule = Schedule(0.1, 10, **options)
    for step, rate in rates.items():
        assert float(schedule(tf.constant(step, tf.int64))) == pytest.approx(rate, abs=1e-8), step
    assert float(Schedule(**schedule.get_config())(7)) == float(schedule(7))


def test_two_spans_meet():
    first, second = Schedule(0.1, 8, span=(0, 0.4)), Schedule(0.1, 12, span=(0.4, 1))
    whole = Schedule(0.1, 20)
    for step in range(8):
        assert float(first(step)) == pytest.approx(float(whole(step)), rel=1e-5)
    for step in range(12):
        assert float(second(step)) == pytest.approx(float(whole(step + 8)), rel=1e-5, abs=1e-8)


def test_a_run_ends_at_zero_and_a_resumed_one_begins_its_own_schedule(make_trainer):
    trainer = make_trainer(replace(FAST, schedule="cosine"), steps=3)
    trainer.train_epoch(train_data(0), seed=0)
    assert float(trainer.optimizer.learning_rate) == pytest.approx(0, abs=1e-9)
    resumed = make_trainer(replace(FAST, schedule="cosine"), steps=3)
    assert resumed.restore_optimizer(trainer.optimizer_arrays())
    assert float(resumed.optimizer.learning_rate) == pytest.approx(1e-3)


@pytest.mark.parametrize("restored", first_quick(1, [True, False]))
def test_a_schedule_goes_on_where_earlier_runs_left_it(make_trainer, restored):
    # Three of nine steps are done: a third of half a cosine, (1 + cos(60 degrees)) / 2 = 0.75, with or without state.
    settings = replace(FAST, schedule="cosine")
    trainer = make_trainer(settings, steps=9)
    trainer.train_epoch(train_data(0), seed=0)
    resumed = make_trainer(settings, steps=9, done=3)
    if restored:
        assert resumed.restore_optimizer(trainer.optimizer_arrays())
    assert float(resumed.optimizer.learning_rate) == pytest.approx(0.75e-3, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["digits", "cifar"], ids=["plain", "batch norm"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_resuming_with_everything_on_gives_the_bits_of_an_uninterrupted_run(make_trainer, tmp_path, optimizer, net):
    settings = replace(
        FAST, optimizer=optimizer, nesterov=optimizer != "adam", schedule="cosine", warmup_steps=2,
        label_smoothing=0.1, ema=0.8, learning_rate=0.003,
    )  # fmt: skip
    start = replace(small_training.START, net=net)
    whole = make_trainer(settings, steps=9, net=net)
    result = run(whole, tmp_path / "whole", start, num_epochs=3)

    cut = run(make_trainer(settings, steps=9, net=net), tmp_path / "parts", start, num_epochs=2)
    second = make_trainer(replace(settings, seed=99), steps=9, done=6, net=net)  # other weights, which must not matter
    metadata = restore(second, cut.prefix)
    resumed = run(second, tmp_path / "parts", metadata, num_epochs=1, seed=settings.seed)
    assert resumed.metadata == result.metadata
    for kind in ("arrays", "optimizer_arrays"):
        expected, found = getattr(whole, kind)(), getattr(second, kind)()
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(value, found[name], err_msg=name)


def test_nesterov_is_the_formula():
    # Sutskever et al. 2013 as Keras writes it: v <- m v - r g; w <- w + m v - r g.
    optimizer = make_optimizer(Settings(learning_rate=0.1, momentum=0.9, nesterov=True), steps=0)
    weight = tf.keras.Variable(np.array([1.0, -2.0], np.float32))
    optimizer.build([weight])
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(3):
        gradient = np.array([0.5, 1.0 + step])
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), weight)])
        velocity = 0.9 * velocity - 0.1 * gradient
        expected = expected + 0.9 * velocity - 0.1 * gradient
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (3, 3, 2, 32)], ids=["tall", "wide"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_the_formula(shape, nesterov):
    # Jordan et al. 2024: momentum of SGD, singular values by five Newton-Schulz rounds, here through an SVD: the
    # polynomial a s + b s**3 + c s**5 acts on the singular values alone. The step has the share `rate` of the norm.
    rate, momentum, random = 0.1, 0.9, np.random.default_rng(4)
    filters = random.normal(size=shape).astype(np.float32)
    bias = np.array([1.0, -2.0], np.float32)
    settings = Settings(optimizer="muon", learning_rate=rate, momentum=momentum, nesterov=nesterov)
    optimizer = make_optimizer(settings, steps=0)
    variables = [tf.keras.Variable(filters), tf.keras.Variable(bias)]
    optimizer.build(variables)
    plain = make_optimizer(replace(settings, optimizer="sgd"), steps=0)
    alone = tf.keras.Variable(bias)
    plain.build([alone])
    expected, velocity = filters.astype(np.float64), np.zeros(shape)
    for _ in range(3):
        gradient, other = random.normal(size=shape), tf.constant(random.normal(size=2), tf.float32)
        optimizer.apply_gradients(zip([tf.constant(gradient, tf.float32), other], variables, strict=True))
        plain.apply_gradients([(other, alone)])
        velocity = momentum * velocity + gradient
        moved = gradient + momentum * velocity if nesterov else velocity
        u, s, v = np.linalg.svd(moved.reshape(-1, shape[-1]), full_matrices=False)
        s /= np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        direction = (u * s @ v).reshape(shape) / np.linalg.norm(s)
        expected = (expected - rate * np.linalg.norm(expected) * direction) / np.sqrt(1 + rate**2)
    np.testing.assert_allclose(variables[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(variables[1].numpy(), alone.numpy())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy(smoothing):
    random = np.random.default_rng(2)
    logits = random.normal(size=(6, 5)) * 4
    labels = random.integers(0, 5, 6)
    exponentials = np.exp(logits)
    logs = np.log(exponentials / exponentials.sum(axis=1, keepdims=True))
    targets = np.full((6, 5), smoothing / 5)
    targets[np.arange(6), labels] += 1 - smoothing
    found = smoothed_cross_entropy(tf.constant(labels), tf.constant(logits, tf.float32), smoothing)
    np.testing.assert_allclose(found, -(targets * logs).sum(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_smoothing_changes_what_is_minimised_and_not_what_is_printed(make_trainer):
    data = tf.data.Dataset.from_tensors(examples(16))
    results = []
    for smoothing in (0.0, 0.5):
        trainer = make_trainer(replace(FAST, optimizer="sgd", label_smoothing=smoothing))
        results.append((trainer.train_epoch(data, seed=0), trainer.arrays()["digits/fc/weights"]))
    assert results[0][0] == results[1][0]
    assert np.any(results[0][1] != results[1][1])


def test_bfloat16_rounds_convolutions_of_training_steps_alone(make_trainer):
    plain, rounded = make_trainer(FAST), make_trainer(replace(FAST, compute_dtype="bfloat16"))
    images, _ = examples(5)
    images += np.float32(0.01)  # codes alone would be exact
    expected = plain.model(images, training=True).numpy()
    for training in (False, None):
        np.testing.assert_array_equal(rounded.model(images, training=training), plain.model(images, training=training))
    # Independent: values rounded to 8 bits of mantissa, half to even, products added up in float64.
    layer = rounded.model.get_layer("conv1_1")
    whole = tf.nn.conv2d(of_bfloat16(images), of_bfloat16(layer.filters.numpy()), 1, "SAME").numpy()
    found = layer(tf.constant(images), training=True).numpy()
    np.testing.assert_allclose(found, np.maximum(of_bfloat16(whole), 0), rtol=2**-7, atol=1e-3)
    logits = rounded.model(images, training=True).numpy()
    assert np.any(logits != expected)
    np.testing.assert_allclose(logits, expected, atol=0.02 * np.abs(expected).max())


def of_bfloat16(values: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)
