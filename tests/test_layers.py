"""Keras layers against NumPy statements of what they compute, and their configuration round trips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from gti import layers, quantize
from gti.errors import QuantizationError, UsageError

F = np.float32


def numpy_convolution(x: np.ndarray, filters: np.ndarray, biases: np.ndarray) -> np.ndarray:
    # 3x3, stride 1, padding 1, in float64; NHWC and HWIO.
    height, width = x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    result = np.zeros((*x.shape[:3], filters.shape[3])) + biases
    for dy in range(3):
        for dx in range(3):
            result += padded[:, dy : dy + height, dx : dx + width] @ filters[dy, dx].astype(np.float64)
    return result


def randomised(layer: keras.layers.Layer, x: np.ndarray, seed: int = 0) -> keras.layers.Layer:
    layer.build(x.shape)
    random = np.random.default_rng(seed)
    for variable in layer.variables:
        if not variable.path.endswith("relu_cap"):
            spread = random.normal(size=variable.shape).astype(F)
            variable.assign(np.abs(spread) + 0.5 if variable.path.endswith("variance") else spread)
    return layer


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).uniform(0, 2, (2, 6, 4, 3)).astype(F)


def test_plain_convolution_and_relu(x: np.ndarray) -> None:
    layer = randomised(layers.ChipConv2D(5, 3), x)
    expected = np.maximum(numpy_convolution(x, layer.filters.numpy(), layer.biases.numpy()), 0)
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("coef_bits", [1, 3])
def test_quantized_weights_are_the_integers_of_the_converter(x: np.ndarray, coef_bits: int) -> None:
    layer = randomised(layers.ChipConv2D(5, coef_bits, quantize_w=True), x)
    filters, biases, shift = quantize.integer_filters(layer.filters, layer.biases, coef_bits)
    unit = 2.0 ** -int(shift)
    expected = np.maximum(numpy_convolution(x, filters.numpy() * unit, biases.numpy() * unit), 0)
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-4)
    assert not np.allclose(layer.filters.numpy(), filters.numpy() * unit)


def test_held_weights_give_the_same_outputs_and_are_let_go(x: np.ndarray) -> None:
    quantized = randomised(layers.ChipConv2D(5, 3, quantize_w=True), x)
    plain = randomised(layers.ChipConv2D(5, 3), x)
    before = quantized(x).numpy()
    with layers.WeightsHeld([quantized, plain]):
        np.testing.assert_array_equal(quantized(x).numpy(), before)
        np.testing.assert_array_equal(tf.function(quantized)(x).numpy(), before)
        for layer in (quantized, plain):
            layer.filters.assign(-layer.filters)
        np.testing.assert_array_equal(quantized(x).numpy(), before)  # quantized before
        assert not np.array_equal(plain(x).numpy(), before)
    expected = randomised(layers.ChipConv2D(5, 3, quantize_w=True), x)
    expected.filters.assign(-expected.filters)
    np.testing.assert_array_equal(quantized(x).numpy(), expected(x).numpy())
    assert not np.array_equal(quantized(x).numpy(), before)


def test_a_graph_of_held_weights_is_used_again_when_they_have_changed(x: np.ndarray) -> None:
    layer = randomised(layers.ChipConv2D(5, 3, quantize_w=True), x)
    held = layers.WeightsHeld([layer])
    graph = tf.function(layer)
    for factor in (1, -1, 3):
        layer.filters.assign(layer.filters * factor)
        expected = layer(x).numpy()
        with held:
            np.testing.assert_array_equal(graph(x).numpy(), expected)
    assert graph.experimental_get_tracing_count() == 1


def failing_pass(layer: layers.ChipConv2D) -> None:
    with layers.WeightsHeld([layer]):
        raise UsageError("no more batches")


def test_held_weights_are_let_go_after_an_error(x: np.ndarray) -> None:
    layer = randomised(layers.ChipConv2D(5, 3, quantize_w=True), x)
    with pytest.raises(UsageError):
        failing_pass(layer)
    assert layer.held_weights is None


@pytest.mark.parametrize(("max_code", "fixed"), [(31, False), (31, True), (1023, False), (1023, True)])
def test_quantized_activations(x: np.ndarray, max_code: int, fixed: bool) -> None:
    layer = randomised(layers.ChipConv2D(5, 3, quantize_act=True, relu_cap=4.0, max_code=max_code, fixed_cap=fixed), x)
    clipped = np.clip(numpy_convolution(x, layer.filters.numpy(), layer.biases.numpy()), 0, 4)
    codes = layer(x).numpy() * max_code / 4
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    np.testing.assert_allclose(codes, clipped * max_code / 4, atol=0.501)
    assert np.unique(np.round(codes)).size > 5


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm(x: np.ndarray, training: bool) -> None:
    layer = randomised(layers.ChipConv2D(5, 3, batch_norm=True), x)
    norm = layer.batch_normalization
    moving = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    z = numpy_convolution(x, layer.filters.numpy(), layer.biases.numpy())
    mean, variance = (z.mean((0, 1, 2)), z.var((0, 1, 2))) if training else moving
    expected = (z - mean) / np.sqrt(variance + 1e-3) * norm.gamma.numpy() + norm.beta.numpy()
    np.testing.assert_allclose(layer(x, training=training).numpy(), np.maximum(expected, 0), atol=1e-3)
    kept = layers.BATCH_NORM_MOMENTUM if training else 1.0
    for after, before, batch in zip((norm.moving_mean, norm.moving_variance), moving, (mean, variance), strict=True):
        np.testing.assert_allclose(after.numpy(), kept * before + (1 - kept) * batch, rtol=1e-5, atol=1e-5)


def test_batch_norm_in_training_has_the_gradients_of_keras(x: np.ndarray) -> None:
    layer = randomised(layers.ChipConv2D(5, 3, batch_norm=True), x)
    norm = layer.batch_normalization
    trained = [v.value for v in (layer.filters, norm.gamma, norm.beta)]
    weights = np.random.RandomState(4).randn(*layer(x).shape)

    def of_keras(images: np.ndarray) -> tf.Tensor:
        z = tf.nn.bias_add(tf.nn.conv2d(images, layer.filters.value, 1, "SAME"), layer.biases.value)
        return tf.nn.relu(norm(z, training=True))

    def gradients(outputs: Callable[[np.ndarray], tf.Tensor]) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * outputs(x))
        return [g.numpy() for g in tape.gradient(loss, trained)]

    for got, expected in zip(gradients(lambda images: layer(images, training=True)), gradients(of_keras), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("fill", ["repeat", "zero"])
def test_upsampling(fill: str) -> None:
    x = np.arange(1, 5, dtype=F).reshape(1, 2, 2, 1)
    expected = {
        "repeat": [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]],
        "zero": [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]],
    }[fill]
    assert layers.upsampled(tf.constant(x), fill)[0, :, :, 0].numpy().tolist() == expected
    layer = layers.ChipConv2D(1, 3, upsample=fill)
    layer.build(x.shape)
    identity = np.zeros((3, 3, 1, 1), F)
    identity[1, 1] = 1
    layer.filters.assign(identity)
    assert layer(x)[0, :, :, 0].numpy().tolist() == expected
    assert layer.compute_output_shape((None, 2, 2, 1)) == (None, 4, 4, 1)


def test_upsampling_keeps_channels_and_images_apart() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 4)).astype(F)
    zero = layers.upsampled(tf.constant(x), "zero").numpy()
    np.testing.assert_array_equal(zero[:, ::2, ::2], x)
    assert zero[:, 1::2].any() == zero[:, :, 1::2].any() == np.False_
    repeat = layers.upsampled(tf.constant(x), "repeat").numpy()
    np.testing.assert_array_equal(repeat, x.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(("method", "expected"), [(0, [[6, 8], [14, 16]]), (1, [[1, 3], [9, 11]])])
def test_pooling(method: int, expected: list[list[int]]) -> None:
    x = np.arange(1, 17, dtype=F).reshape(1, 4, 4, 1)
    assert layers.ChipPooling(method)(x)[0, :, :, 0].numpy().tolist() == expected


def test_flatten_is_height_width_channels() -> None:
    x = np.arange(24, dtype=F).reshape(1, 2, 3, 4)
    assert layers.ChipFlatten()(x).numpy().tolist() == [list(range(24))]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_host_dense(activation: str | None) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(F)
    layer = randomised(layers.HostDense(3, activation), x)
    assert [v.path.split("/")[-1] for v in layer.variables] == ["weights", "biases"]
    expected = x @ layer.kernel.numpy() + layer.biases.numpy()
    np.testing.assert_allclose(layer(x).numpy(), np.maximum(expected, 0) if activation else expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "names", "trained"),
    [
        ({}, ["filters", "biases"], 2),
        ({"quantize_act": True, "relu_cap": 1.0}, ["filters", "biases", "relu_cap"], 2),
        ({"quantize_act": True, "relu_cap": 1.0, "train_caps": True}, ["filters", "biases", "relu_cap"], 3),
        ({"quantize_act": True, "relu_cap": 1.0, "train_caps": True, "fixed_cap": True}, None, 2),
        (
            {"batch_norm": True},
            ["filters", "biases"]
            + [f"batch_normalization/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")],
            4,
        ),
    ],
)
def test_variables(options: dict[str, Any], names: list[str] | None, trained: int) -> None:
    layer = layers.ChipConv2D(4, 1, name="conv1_1", **options)
    layer.build((None, 14, 14, 3))
    if names:
        assert sorted(v.path for v in layer.variables) == sorted(f"conv1_1/{name}" for name in names)
    assert len(layer.trainable_variables) == trained


@pytest.mark.parametrize(
    "layer",
    [
        layers.ChipConv2D(4, 1),
        layers.ChipConv2D(
            16,
            3,
            batch_norm=True,
            quantize_w=True,
            quantize_act=True,
            relu_cap=3.5,
            train_caps=True,
            clip_bias=True,
            upsample="zero",
            input_scale=4.0,
            name="conv2_1",
        ),
        layers.ChipConv2D(16, 3, quantize_act=True, relu_cap=31.96875, fixed_cap=True, max_code=1023),
        layers.ChipPooling(1, name="pool1"),
        layers.ChipFlatten(),
        layers.HostDense(7, "relu", input_scale=31.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configuration_round_trip(layer: keras.layers.Layer) -> None:
    twin = type(layer).from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()


def test_saved_model_gives_the_same_results(tmp_path: Any, x: np.ndarray) -> None:
    inputs = keras.Input(x.shape[1:])
    y = layers.ChipConv2D(4, 1, quantize_w=True, quantize_act=True, relu_cap=2.0, clip_bias=True)(inputs)
    model = keras.Model(inputs, layers.HostDense(3)(layers.ChipFlatten()(layers.ChipPooling()(y))))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x).numpy(), model(x).numpy())


def test_clip_bias_holds_after_a_step(x: np.ndarray) -> None:
    layer = layers.ChipConv2D(4, 3, clip_bias=True)
    layer.build(x.shape)
    limit = float(np.abs(layer.filters.numpy()).max())
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([layer.biases])
    optimizer.apply([tf.constant([-100.0, 100.0, 0.001, 0.0])], [layer.biases])
    np.testing.assert_allclose(layer.biases.numpy(), [limit, -limit, -0.001, 0.0], rtol=1e-6)


def test_a_trained_cap_stays_positive(x: np.ndarray) -> None:
    layer = layers.ChipConv2D(4, 3, quantize_act=True, relu_cap=1.0, train_caps=True)
    layer.build(x.shape)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([layer.relu_cap])
    optimizer.apply([tf.constant(5.0)], [layer.relu_cap])
    assert 0 < float(layer.relu_cap) <= 1e-5
    assert np.isfinite(layer(x).numpy()).all()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_variable_gets_a_gradient(x: np.ndarray, batch_norm: bool) -> None:
    options: dict[str, Any] = {"quantize_w": True, "quantize_act": True, "relu_cap": 0.5, "train_caps": True}
    layer = randomised(layers.ChipConv2D(8, 1, batch_norm=batch_norm, upsample="repeat", **options), x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) ** 2)
    trained = [v for v in layer.trainable_variables if not (batch_norm and v is layer.biases)]  # the mean takes those
    gradients = tape.gradient(loss, [v.value for v in trained])
    assert len(gradients) == (4 if batch_norm else 3)
    assert all(g is not None and np.isfinite(g.numpy()).all() for g in gradients)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"coef_bits": 2}, UsageError, "coef_bits is impossible; expected one of 1, 3, received 2"),
        ({"coef_bits": 1, "max_code": 255}, UsageError, "max_code"),
        ({"coef_bits": 1, "upsample": "bilinear"}, UsageError, "upsample"),
        ({"coef_bits": 1, "quantize_act": True}, QuantizationError, "set_relu_caps.py"),
        ({"coef_bits": 1, "quantize_act": True, "relu_cap": 0.0}, QuantizationError, "above"),
        ({"coef_bits": 1, "quantize_act": True, "relu_cap": float("nan")}, QuantizationError, "finite"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        layers.ChipConv2D(8, name="conv9_9", **options)
