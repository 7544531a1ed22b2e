"""Caps: the streamed percentile is NumPy's over all outputs at once, whatever way it is found."""

from __future__ import annotations

import numpy as np
import pytest
import small_nets
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import first_quick

from gti.errors import DataError, QuantizationError
from gti.model.base import chip_layers
from gti.training import calibration

NETWORK = small_nets.small_network((14, 3, 16, 2, 3, False), (14, 16, 16, 1, 1, True))
PERCENTILES = (50.0, 99.0, 99.99, 100.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    built = small_nets.build(NETWORK, tmp_path_factory.mktemp("nets"))
    small_nets.randomise(built, seed=1, scale=0.3)
    return built


def batches_of(images, size=4):
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(len(images), np.int32))).batch(size)
    return lambda: data


def all_outputs(model, images):
    # Independently of the code under test: one forward pass, layer by layer.
    x, result = tf.constant(images), []
    for layer in chip_layers(model):
        x = layer(x)
        result.append(x.numpy().reshape(-1).astype(np.float64))
    return result


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_percentile_is_that_of_all_outputs_pooled(model, percentile):
    images = small_nets.images(NETWORK, 10, seed=2)  # batches of 4, 4 and 2
    found = calibration.calibrate(model, batches_of(images), percentile=percentile)
    for one, values in zip(found, all_outputs(model, images), strict=True):
        expected = np.percentile(values, percentile)
        assert one.count == values.size
        assert one.largest == pytest.approx(values.max(), rel=1e-6)
        if expected > 0:
            assert one.cap == pytest.approx(expected, rel=1e-5)
            assert one.clipped == pytest.approx(np.mean(values > expected), abs=2 / values.size)
        else:  # more zeros than the percentile: the cap stays above 0
            assert one.cap == one.largest
        assert ("the percentile is 0, and the largest output is the cap" in one.warning) == (expected <= 0)
    assert percentile > 50 or any(one.warning for one in found)


@pytest.mark.parametrize("percentile", first_quick(1, PERCENTILES))
def test_counting_bit_patterns_gives_the_same(model, percentile, monkeypatch):
    images = small_nets.images(NETWORK, 10, seed=2)
    by_tails = calibration.calibrate(model, batches_of(images), percentile=percentile)
    monkeypatch.setattr(calibration, "MAX_KEPT", 0)  # no tail is kept at all
    by_counting = calibration.calibrate(model, batches_of(images), percentile=percentile)
    assert by_counting == by_tails


def test_a_first_batch_unlike_the_others_is_noticed(model):
    # Bright images first: the threshold is too high for what follows, and the layer is counted instead.
    images = small_nets.images(NETWORK, 60, seed=3)
    images[4:] *= 0.02
    found = calibration.calibrate(model, batches_of(images), percentile=80.0)
    for one, values in zip(found, all_outputs(model, images), strict=True):
        expected = np.percentile(values, 80.0)
        assert one.cap == pytest.approx(expected if expected > 0 else values.max(), rel=1e-5)


def random_values(kind, seed, size):
    random = np.random.default_rng(seed)
    values = {
        "normal": lambda: np.maximum(random.normal(size=size), 0),
        "ties": lambda: random.integers(0, 4, size).astype(np.float64),
        "wide": lambda: 10.0 ** random.uniform(-30, 30, size),
        "zeros": lambda: np.where(random.random(size) < 0.999, 0, random.random(size)),
        "constant": lambda: np.full(size, 0.1),
    }[kind]()
    return values.astype(np.float32)


@pytest.mark.slow
@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["normal", "ties", "wide", "zeros", "constant"]),
    seed=st.integers(0, 1000),
    shape=st.tuples(st.lists(st.integers(1, 4000), min_size=1, max_size=4), st.sampled_from([1, 7, 96])),
    percentile=st.sampled_from([*PERCENTILES, 33.3]),
    kept=st.sampled_from([0, 50, 1 << 21]),
)
def test_order_statistics_of_any_values(kind, seed, shape, percentile, kept):
    sizes, image = shape
    # Batches of images of `image` values each, which are looked at in blocks of 1, 1 and 32.
    arrays = [random_values(kind, seed + i, -(-size // image) * image) for i, size in enumerate(sizes)]
    pooled = np.concatenate(arrays).astype(np.float64)
    data = tf.data.Dataset.from_generator(
        lambda: ((a.reshape(-1, image), 0) for a in arrays),
        output_signature=(tf.TensorSpec([None, image]), tf.TensorSpec([], tf.int32)),
    )

    def forward(images):
        return [tf.reshape(images, [-1])]

    before = calibration.MAX_KEPT
    calibration.MAX_KEPT = kept
    tf.config.run_functions_eagerly(True)  # tracing would take longer than the work
    try:
        found = calibration._by_tails(forward, [image], data, percentile, False)[0]
        if found is None:
            found = calibration._by_counting(forward, [0], lambda: data, percentile, False)[0]
    finally:
        tf.config.run_functions_eagerly(False)
        calibration.MAX_KEPT = before
    assert found.count == pooled.size
    assert found.value == pytest.approx(np.percentile(pooled, percentile), rel=1e-6, abs=1e-45)
    lower = np.percentile(pooled, percentile, method="lower")
    assert found.above == np.count_nonzero(pooled > lower)
    assert found.largest == pooled.max()


def test_a_tail_that_grows_is_cut_back(monkeypatch):
    monkeypatch.setattr(calibration, "MAX_KEPT", 1000)
    random = np.random.default_rng(0)
    parts = [random.random(900).astype(np.float32) for _ in range(30)]
    tail = calibration._Tail()
    for part in parts:
        tail.add(part, part.size)
        assert tail._kept <= 1000
    found = tail.measured(99.0)
    assert found is not None
    assert found.value == pytest.approx(np.percentile(np.concatenate(parts).astype(np.float64), 99.0), rel=1e-7)
    assert tail.measured(50.0) is None


def test_a_dead_layer_and_extreme_ranges_are_warned_of(model):
    arrays = small_nets.values(model)
    try:
        layers = chip_layers(model)
        layers[0].filters.assign(np.full(layers[0].filters.shape, 10.0))
        layers[1].filters.assign(np.full(layers[1].filters.shape, 1e-14))
        layers[1].biases.assign(np.zeros(16))
        layers[2].filters.assign(np.full(layers[2].filters.shape, -1.0))
        layers[2].biases.assign(np.zeros(16))
        images = small_nets.images(NETWORK, 4, seed=0)
        found = calibration.calibrate(model, batches_of(images))
    finally:
        small_nets.assign(model, arrays)
    assert "extremely large; use batch norm" in found[0].warning
    assert "extremely small; use batch norm" in found[1].warning
    assert found[2].cap == 1.0
    assert "major 2 / sub 1 (conv2_1): every output is 0, the layer is dead" in found[2].warning
    assert all(one.cap > 0 for one in found)


def test_outputs_that_are_not_finite_are_refused(model):
    arrays = small_nets.values(model)
    try:
        filters = chip_layers(model)[1].filters
        filters.assign(np.full(filters.shape, 3e38))
        with pytest.raises(QuantizationError, match="conv1_2"):
            calibration.calibrate(model, batches_of(small_nets.images(NETWORK, 4, seed=0)))
    finally:
        small_nets.assign(model, arrays)


def test_values_that_are_not_numbers_are_told_wherever_they_are():
    tail = calibration._Tail()
    tail.add(np.array([1.0, 5.0], np.float32), 10)
    tail.keep(1)
    tail.add(np.array([0.0, np.nan, 0.0], np.float32), 10)
    tail.add(np.array([7.0], np.float32), 10)
    assert tail.measured(99.0) == calibration._Measured(np.inf, np.inf, 30, 0)


def test_no_images_are_refused(model):
    with pytest.raises(DataError, match="images"):
        calibration.calibrate(model, batches_of(small_nets.images(NETWORK, 0, seed=0)))


def test_settings_and_table_name_every_layer(model):
    found = calibration.calibrate(model, batches_of(small_nets.images(NETWORK, 4, seed=0)))
    content = calibration.settings(found, {"percentile": 99.99})
    assert list(content["relu_caps"]) == [f"digits/{c.name}/relu_cap" for c in NETWORK.convolutions]
    assert content["percentile"] == 99.99
    lines = calibration.table(found).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("major 1 / sub 1 (conv1_1)")
