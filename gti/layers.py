"""Keras layers for networks that run on the chip: one layer per sublayer, with switches for its quantization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from gti import old_kit, quantize
from gti.caps import EXTREMELY_SMALL
from gti.chip import spec
from gti.errors import QuantizationError, UsageError
from gti.stage import FILTER_STEPS, LEARNED, MEAN

# Statistics over about ten steps: fine-tuning stages are short.
BATCH_NORM_MOMENTUM = 0.9


class PositiveCap(keras.constraints.Constraint):
    """Keeps a trained cap positive: at `caps.EXTREMELY_SMALL` or more."""

    def __call__(self, w: Any) -> Any:
        return keras.ops.maximum(w, EXTREMELY_SMALL)


class PositiveSteps(keras.constraints.Constraint):
    """Keeps learned steps positive: at `quantize.SMALLEST_STEP` or more."""

    def __call__(self, w: Any) -> Any:
        return keras.ops.maximum(w, quantize.SMALLEST_STEP)


class WithinFilters(keras.constraints.Constraint):
    """Keeps the biases of `layer` in [-max|W|, max|W|] of its filters (user guide section 5.2)."""

    def __init__(self, layer: ChipConv2D) -> None:
        self.layer = layer

    def __call__(self, w: Any) -> Any:
        limit = keras.ops.max(keras.ops.abs(self.layer.filters))
        return keras.ops.clip(w, -limit, limit)


@keras.saving.register_keras_serializable(package="gti")
class ChipConv2D(keras.layers.Layer):
    """One sublayer: [upsampling] -> 3x3 convolution + biases -> [batch norm] -> ReLU -> [activation quantizer].

    Args:
        output_channels: number of output channels.
        coef_bits: 1 or 3, width of the filters on the chip.
        filter_step: "mean", "mse" or "learned", rule for the step of 3-bit kernels (docs/numerics.md section 3).
        batch_norm: normalise the convolution's output (epsilon 1e-3); `gti.fusion` folds it away.
        quantize_w: use filters and biases as the chip will hold them; gradients pass straight through.
        quantize_act: cap the ReLU at `relu_cap` and round to `max_code` + 1 levels. Off: a plain ReLU without a cap.
        relu_cap: start value of the cap, > 0; needed with `quantize_act`.
        fixed_cap: the cap is a constant of the layer (fused networks), not only a variable that is not trained.
        train_caps: train the cap (not with `fixed_cap`).
        train_steps: train the steps of the rule "learned".
        clip_bias: keep biases in [-max|W|, max|W|] while training.
        max_code: 31 (5-bit codes) or 1023 (10-bit codes).
        upsample: None, "repeat" or "zero": double height and width first; "zero" keeps a pixel at the top left of
            each 2x2 and fills the rest with 0.
        input_scale: the filters start smaller by this factor, where the input is not of unit scale.

    Input: float32 [batch, height, width, input channels]. Output: [batch, height, width, output channels], height and
    width doubled by upsampling. Variables: filters [3, 3, in, out], biases [out], filter_steps [in, out] (3 bits,
    quantized by the rule "learned"), relu_cap [] (with `quantize_act`),
    batch_normalization/{gamma, beta, moving_mean, moving_variance} (with `batch_norm`).

    Raises UsageError for arguments outside of these, QuantizationError for a missing or impossible cap.
    """

    def __init__(
        self,
        output_channels: int,
        coef_bits: int,
        *,
        filter_step: str = MEAN,
        batch_norm: bool = False,
        quantize_w: bool = False,
        quantize_act: bool = False,
        relu_cap: float | None = None,
        fixed_cap: bool = False,
        train_caps: bool = False,
        train_steps: bool = False,
        clip_bias: bool = False,
        max_code: int = spec.MAX_CODE,
        upsample: str | None = None,
        input_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _one_of(self.name, "coef_bits", coef_bits, spec.COEF_BITS)
        _one_of(self.name, "filter_step", filter_step, FILTER_STEPS)
        _one_of(self.name, "max_code", max_code, (spec.MAX_CODE, spec.MAX_CODE_TEN_BIT))
        _one_of(self.name, "upsample", upsample, (None, *spec.UPSAMPLE_MODES))
        if quantize_act and not (relu_cap is not None and math.isfinite(relu_cap) and relu_cap > 0):
            raise QuantizationError(
                self.name,
                "activations cannot be quantized without a cap",
                expected="a finite relu_cap above 0",
                received=relu_cap,
                fix="calibrate with set_relu_caps.py",
            )
        self.output_channels = output_channels
        self.coef_bits = coef_bits
        self.filter_step = filter_step
        self.batch_norm = batch_norm
        self.quantize_w = quantize_w
        self.quantize_act = quantize_act
        self.initial_cap = relu_cap
        self.fixed_cap = fixed_cap
        self.train_caps = train_caps and not fixed_cap
        self.train_steps = train_steps
        self.clip_bias = clip_bias
        self.max_code = max_code
        self.upsample = upsample
        self.input_scale = input_scale
        self.held_weights: tuple[tf.Variable, tf.Variable] | None = None  # see `WeightsHeld`
        self.training_dtype = tf.float32  # of the products of the convolution while training
        self.batch_normalization = (
            keras.layers.BatchNormalization(
                momentum=BATCH_NORM_MOMENTUM, epsilon=spec.BATCH_NORM_EPSILON, name="batch_normalization"
            )
            if batch_norm
            else None
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        input_channels = input_shape[-1]
        assert input_channels is not None
        deviation = math.sqrt(2.0 / (9 * input_channels)) / self.input_scale  # He et al. 2015, for ReLU
        self.filters = self.add_weight(
            shape=(3, 3, input_channels, self.output_channels),
            initializer=_start(self, "filters", keras.initializers.TruncatedNormal(stddev=deviation)),
            name="filters",
        )
        self.biases = self.add_weight(
            shape=(self.output_channels,),
            initializer="zeros",
            constraint=WithinFilters(self) if self.clip_bias else None,
            name="biases",
        )
        self.filter_steps = None
        if self.quantize_w and self.coef_bits == 3 and self.filter_step == LEARNED:
            self.filter_steps = self.add_weight(
                shape=(input_channels, self.output_channels),
                initializer=lambda shape, dtype=None: quantize.starting_steps(self.filters),
                trainable=self.train_steps,
                constraint=PositiveSteps() if self.train_steps else None,
                name="filter_steps",
            )
        if self.quantize_act:
            self.relu_cap = self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(self.initial_cap),
                trainable=self.train_caps,
                constraint=PositiveCap() if self.train_caps else None,
                name="relu_cap",
            )
        if self.batch_normalization is not None:
            self.batch_normalization.build((*input_shape[:-1], self.output_channels))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = self.sums(inputs, training)
        if not self.quantize_act:
            return tf.nn.relu(x)
        cap = self.initial_cap if self.fixed_cap else self.relu_cap
        return quantize.quantize_activation(x, cap, self.max_code, train_cap=self.train_caps)

    def sums(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Return what the ReLU gets: [batch, height, width, output channels]."""
        x = upsampled(inputs, self.upsample)
        filters, biases = self.effective_weights()
        if training and self.training_dtype != tf.float32:
            x, filters = tf.cast(x, self.training_dtype), tf.cast(filters, self.training_dtype)
        x = tf.cast(tf.nn.conv2d(x, filters, strides=1, padding="SAME"), tf.float32)
        norm = self.batch_normalization
        if norm is not None and training:
            return _normalised_by_batch(norm, x, biases)
        x = tf.nn.bias_add(x, biases)
        return x if norm is None else norm(x, training=False)

    def effective_weights(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the (filters, biases) that the convolution uses: quantized with `quantize_w`, else as trained."""
        if self.held_weights is not None:
            filters, biases = self.held_weights
            return tf.convert_to_tensor(filters), tf.convert_to_tensor(biases)
        filters, biases = tf.convert_to_tensor(self.filters), tf.convert_to_tensor(self.biases)
        if not self.quantize_w:
            return filters, biases
        shift = quantize.layer_shift(filters, biases, self.coef_bits)
        if self.filter_steps is not None:
            quantized = quantize.quantize_filters_to_steps(filters, self.filter_steps, shift)
        else:
            quantized = quantize.quantize_filters(filters, shift, self.coef_bits, self.filter_step)
        return quantized, quantize.quantize_biases(biases, shift, self.coef_bits)

    def largest_bias(self) -> float:
        """Return the largest magnitude of a bias that leaves the layer its shift, as its weights are now."""
        shift = int(quantize.layer_shift(self.filters, self.biases, self.coef_bits))
        return quantize.bias_limit(self.coef_bits) * 2.0**-shift

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, _ = input_shape
        factor = 2 if self.upsample else 1
        return (batch, height and height * factor, width and width * factor, self.output_channels)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "output_channels": self.output_channels,
            "coef_bits": self.coef_bits,
            "filter_step": self.filter_step,
            "batch_norm": self.batch_norm,
            "quantize_w": self.quantize_w,
            "quantize_act": self.quantize_act,
            "relu_cap": self.initial_cap,
            "fixed_cap": self.fixed_cap,
            "train_caps": self.train_caps,
            "train_steps": self.train_steps,
            "clip_bias": self.clip_bias,
            "max_code": self.max_code,
            "upsample": self.upsample,
            "input_scale": self.input_scale,
        }


@keras.saving.register_keras_serializable(package="gti")
class ChipPooling(keras.layers.Layer):
    """2x2 pooling with stride 2 after a major layer: the largest pixel, or the one at the top left.

    Args:
        sampling_method: 0 = max, 1 = top left ("SamplingMethod" of the dat.json).

    Input: [batch, height, width, channels], height and width even. Output: [batch, height/2, width/2, channels].
    """

    def __init__(self, sampling_method: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _one_of(self.name, "sampling_method", sampling_method, (0, 1))
        self.sampling_method = sampling_method

    def call(self, inputs: Any) -> Any:
        return pooled(inputs, self.sampling_method)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        return (batch, height and height // 2, width and width // 2, channels)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"sampling_method": self.sampling_method}


@keras.saving.register_keras_serializable(package="gti")
class ChipFlatten(keras.layers.Layer):
    """Flattens the chip's result for the host layers, in TensorFlow's order [height, width, channels].

    The chip and the FC layers of a .MODEL flatten [channels, height, width]; weights [in, out] that follow this layer
    are permuted when they are written there.

    Input: [batch, height, width, channels]. Output: [batch, height * width * channels].
    """

    def call(self, inputs: Any) -> Any:
        return tf.reshape(inputs, [-1, math.prod(inputs.shape[1:])])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        size = math.prod(n for n in input_shape[1:] if n is not None)
        return (input_shape[0], size)


@keras.saving.register_keras_serializable(package="gti")
class HostDense(keras.layers.Layer):
    """A fully connected layer on the host: `activation(x @ weights + biases)`.

    Args:
        units: number of outputs.
        activation: None (linear) or "relu".
        input_scale: the weights start smaller by this factor, where the input is not of unit scale.

    Input: float32 [batch, inputs]. Output: [batch, units]. Variables: weights [inputs, units], biases [units].
    """

    def __init__(self, units: int, activation: str | None = None, *, input_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _one_of(self.name, "activation", activation, (None, "relu"))
        self.units = units
        self.activation = activation
        self.input_scale = input_scale

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        inputs = input_shape[-1]
        assert inputs is not None
        # Glorot for the logits, He in front of a ReLU.
        deviation = math.sqrt(2.0 / (inputs if self.activation else inputs + self.units)) / self.input_scale
        self.kernel = self.add_weight(
            shape=(inputs, self.units),
            initializer=_start(self, "weights", keras.initializers.TruncatedNormal(stddev=deviation)),
            name="weights",
        )
        self.biases = self.add_weight(shape=(self.units,), initializer="zeros", name="biases")

    def call(self, inputs: Any) -> Any:
        x = tf.nn.bias_add(tf.matmul(inputs, tf.convert_to_tensor(self.kernel)), tf.convert_to_tensor(self.biases))
        return tf.nn.relu(x) if self.activation else x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "units": self.units,
            "activation": self.activation,
            "input_scale": self.input_scale,
        }


class _Given:
    """Values for variables of layers that are being built, and which of them were taken."""

    def __init__(self, values: Mapping[str, tf.Tensor]) -> None:
        self.values = values
        self.taken: set[str] = set()


_starts: list[_Given] = []  # see `starting_from`; the last one counts


@contextmanager
def starting_from(values: Mapping[str, tf.Tensor]) -> Iterator[set[str]]:
    """Start filters and weights of layers that are built meanwhile from `values`; no random numbers are drawn.

    `values`: tensors by `<layer>/<variable>`. Yields the set of names that were taken; a variable without a float32 one
    of its shape starts from 0.
    """
    _starts.append(_Given(values))
    try:
        yield _starts[-1].taken
    finally:
        _starts.pop()


def _start(layer: keras.layers.Layer, variable: str, random: keras.initializers.Initializer) -> Any:
    if not _starts:
        return random
    given, name = _starts[-1], f"{layer.name}/{variable}"

    def start(shape: tuple[int, ...], dtype: Any = None) -> Any:
        value = given.values.get(name)
        if value is None or value.shape != shape or value.dtype != tf.float32:
            return tf.zeros(shape, dtype)
        given.taken.add(name)
        return value

    return start


class WeightsHeld:
    """Quantizes the weights of layers once for a `with` block, not in every forward pass: they must not change in it.

    A graph that is traced in the block reads what the latest block computed, so it can be used in the next one, but
    not outside of any. The first block may be one of a distribution strategy's scope.
    """

    def __init__(self, layers: Iterable[ChipConv2D]) -> None:
        self._layers = [layer for layer in layers if layer.quantize_w]
        self._held: list[list[tf.Variable]] = []

    def __enter__(self) -> None:
        weights = [layer.effective_weights() for layer in self._layers]
        if not self._held:
            self._held = [[tf.Variable(value, trainable=False) for value in pair] for pair in weights]
        else:
            for variables, pair in zip(self._held, weights, strict=True):
                for variable, value in zip(variables, pair, strict=True):
                    variable.assign(value)
        for layer, (filters, biases) in zip(self._layers, self._held, strict=True):
            layer.held_weights = filters, biases

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.held_weights = None


def _normalised_by_batch(norm: keras.layers.BatchNormalization, x: tf.Tensor, biases: tf.Tensor) -> tf.Tensor:
    """Return what `norm(x + biases, training=True)` is, `x` [batch, height, width, channels]; its statistics move on.

    The maps are read and written by one operation; with Keras's several, and biases that the mean takes away again, a
    training step takes a fifth longer.
    """
    gamma, beta = tf.convert_to_tensor(norm.gamma), tf.convert_to_tensor(norm.beta)
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=norm.epsilon, is_training=True)
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    variance *= (count - 1) / count  # the operation gives the sample's, for which it divides by count - 1
    for moving, now in ((norm.moving_mean, mean + biases), (norm.moving_variance, variance)):
        moving.assign(moving * norm.momentum + now * (1.0 - norm.momentum))
    return y


def upsampled(x: tf.Tensor, fill: str | None) -> tf.Tensor:
    """Return `x` [N, H, W, C] doubled in height and width by "repeat" or "zero" fill, or as it is for None."""
    if fill is None:
        return x
    if fill == "repeat":
        return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    x = tf.pad(x[:, :, None, :, None, :], [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1], [0, 0]])  # [N, H, 2, W, 2, C]
    return tf.reshape(x, [-1, 2 * height, 2 * width, channels])


def pooled(x: tf.Tensor, sampling_method: int) -> tf.Tensor:
    """Return `x` [N, H, W, C] after 2x2 pooling: 0 = max, 1 = top left."""
    if sampling_method == 1:
        return x[:, ::2, ::2, :]
    return tf.nn.max_pool2d(x, ksize=2, strides=2, padding="VALID")


def _one_of(layer: str, argument: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise UsageError(
            layer, f"{argument} is impossible", expected="one of " + ", ".join(map(str, allowed)), received=value
        )


def __getattr__(name: str) -> Any:
    old_kit.refuse_function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
