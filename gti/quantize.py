"""Rounding and quantizers of the chip, in TensorFlow (docs/numerics.md).

Training, evaluation and conversion all call the functions below, so what is trained is what is written to the file.
They take NumPy arrays, tensors or variables, run eagerly or inside a graph, and give the same bits either way: sums
have a fixed order, factors are powers of two or a single rounding, and nothing divides by a graph constant (TensorFlow
rewrites that as a multiplication, which is not the same number).

Filters are HWIO = [3, 3, input channels, output channels] everywhere; no transposes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from gti.chip import spec
from gti.stage import LEARNED, MEAN, MSE

Tensor = Any  # tf.Tensor, tf.Variable, keras.Variable or np.ndarray of float32

# 1/9 as the nearest float32. The mean of nine equal integers below 2**20 is still exactly that integer.
_NINTH = np.float32(1.0 / 9.0)
_SHIFTS = np.arange(spec.MAX_SHIFT_TRAINED + 1)
_POWERS = (2.0**_SHIFTS).astype(np.float32)
_INVERSE_POWERS = (0.5**_SHIFTS).astype(np.float32)
# Stands for the mean magnitude of an all-zero 3-bit kernel, so that its step is not 0 (docs/numerics.md section 3).
_ZERO_KERNEL_MEAN = np.float32(1e-6)
# Starts of the search for the least squared error, as shares of a kernel's largest magnitude. Between 1/6 and 1/3 the
# levels of what the chip holds already are found exactly. With these two the error is 1 % above the least there is;
# four would leave 0.1 %, but training would pay 3 % of its time for them.
_STARTS = (0.21, 0.26)
# From these ratios of magnitude to step on, 1, 2 and 4 are the nearest levels.
_NEAREST = (0.5, 1.5, 3.0)
LARGEST_LEVEL = np.float32(4)
# LSQ's scale for the gradient of a step, 1 / sqrt(weights that share it * largest level).
_STEP_GRADIENT = np.float32(1 / np.sqrt(9 * 4))
# A learned step stays above 0: far below any step that the largest shift, 12, can tell from 0.
SMALLEST_STEP = np.float32(1e-6)
_BITS_OF_CODE = {spec.MAX_CODE: 5, spec.MAX_CODE_TEN_BIT: 10}


def round_half_away(x: Tensor) -> tf.Tensor:
    """Round to the nearest integer, halves away from zero: 2.5 -> 3, -2.5 -> -3.

    Exact for every float: `floor(|x| + 0.5)` is not (the sum itself rounds, 0.49999997 would become 1).
    """
    x = tf.convert_to_tensor(x)
    magnitude = tf.abs(x)
    whole = tf.floor(magnitude)
    up = tf.cast(magnitude - whole >= 0.5, x.dtype)
    return tf.sign(x) * (whole + up)


def weight_limit(coef_bits: int) -> int:
    """Return the largest magnitude of an integer weight: 2047 for 1-bit and 3-bit filters."""
    return 2 ** (spec.SCALE_BITS[coef_bits] - 1) - 1


def bias_limit(coef_bits: int) -> int:
    """Return the largest magnitude of an integer bias: 2047 (1-bit filters) or 131071 (3-bit)."""
    return 2 ** (spec.BIAS_BITS[coef_bits] - 1) - 1


def range_shift(x: Tensor, limit: int) -> tf.Tensor:
    """Return the largest shift in 0..12 (int32 scalar) at which `max|x| * 2**shift` stays within `limit`.

    Equal to `clip(trunc(log2(limit / max|x|)), 0, 12)` without a logarithm: products with powers of two are exact.
    All zeros give 12. 0 is also the answer where nothing fits; quantizers then clamp.
    """
    largest = tf.reduce_max(tf.abs(tf.convert_to_tensor(x, tf.float32)))
    return tf.reduce_sum(tf.cast(largest * _POWERS[1:] <= np.float32(limit), tf.int32))


def layer_shift(filters: Tensor, biases: Tensor | None, coef_bits: int) -> tf.Tensor:
    """Return the shift (int32 scalar, 0..12) that the filters and biases of one layer share."""
    shift = range_shift(filters, weight_limit(coef_bits))
    if biases is None:
        return shift
    return tf.minimum(shift, range_shift(biases, bias_limit(coef_bits)))


def _kernel_mean(magnitude: tf.Tensor) -> tf.Tensor:
    # [3, 3, I, O] -> [I, O]. One AddN over the nine taps adds them from left to right on every device, in one pass;
    # reduce_mean leaves the order of the sum to the device.
    inputs, outputs = magnitude.shape[2], magnitude.shape[3]
    taps = tf.unstack(tf.reshape(magnitude, [9, inputs, outputs]), num=9)
    return tf.add_n(taps) * _NINTH


def _levels(magnitude: tf.Tensor, one: tf.Tensor, two: tf.Tensor, four: tf.Tensor) -> tf.Tensor:
    # Level 0, 1, 2 or 4 of each magnitude, uint8: the latter three from these magnitudes on.
    return (
        tf.cast(magnitude >= one, tf.uint8)
        + tf.cast(magnitude >= two, tf.uint8)
        + 2 * tf.cast(magnitude >= four, tf.uint8)
    )


def _sum_of_taps(values: tf.Tensor) -> tf.Tensor:
    # [9, I, O] -> [I, O], from left to right.
    return tf.add_n(tf.unstack(values, num=9))


def least_squares_step(magnitude: tf.Tensor) -> tf.Tensor:
    """Return the step [in, out] of 3-bit kernels with the least squared error, from magnitudes [3, 3, in, out].

    Each start gives levels, and levels c give the step sum(m c) / sum(c c), whose error is sum(m m) less
    sum(m c)**2 / sum(c c): the largest of these wins. Of steps with the same values the coarsest is returned: no level
    1 means twice the step, levels 0 and 4 alone mean four times the step.
    """
    inputs, outputs = magnitude.shape[2], magnitude.shape[3]
    taps = tf.reshape(magnitude, [9, inputs, outputs])
    largest = tf.reduce_max(taps, axis=0)
    step = most = tf.zeros([inputs, outputs])
    for start in _STARTS:
        # One product each: a graph would turn products of products with constants into one.
        levels = _levels(taps, *(largest * np.float32(start * ratio) for ratio in _NEAREST))
        along = _sum_of_taps(taps * tf.cast(levels, tf.float32))
        found = along / tf.cast(_sum_of_taps(levels * levels), tf.float32)  # the largest has level 4: never 0
        explained = along * found
        step = tf.where(explained > most, found, step)
        most = tf.maximum(explained, most)
    smallest = tf.reduce_min(tf.where(taps >= 0.5 * step, taps, largest), axis=0)
    return step * (
        1 + tf.cast(smallest >= step * np.float32(1.5), tf.float32) + 2 * tf.cast(smallest >= 3 * step, tf.float32)
    )


def _least_squares_filters(filters: tf.Tensor, shift: tf.Tensor, unit: tf.Tensor | np.float32) -> tf.Tensor:
    magnitude = tf.abs(filters)
    step = least_squares_step(magnitude) * tf.gather(_POWERS, shift)
    largest = np.float32(spec.MAX_STEP_3BIT)
    for _ in range(2):  # levels of 1 and 2 are levels of 2 and 4 of half the step
        step = tf.where(round_half_away(step) > largest, 0.5 * step, step)
    return _nearest(filters, tf.clip_by_value(round_half_away(step), 1, largest), shift, unit)


def _learned_filters(filters: tf.Tensor, steps: tf.Tensor, shift: tf.Tensor, unit: tf.Tensor | np.float32) -> tf.Tensor:
    return _nearest(filters, _integer_steps(steps, shift), shift, unit)


def _integer_steps(steps: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    step = round_half_away(steps * tf.gather(_POWERS, shift))
    return tf.clip_by_value(step, 1, np.float32(spec.MAX_STEP_3BIT))


def _nearest(filters: tf.Tensor, step: tf.Tensor, shift: tf.Tensor, unit: tf.Tensor | np.float32) -> tf.Tensor:
    # The nearest level of each weight, times the integer `step` [in, out] of its kernel.
    real = step * tf.gather(_INVERSE_POWERS, shift)
    levels = _levels(tf.abs(filters), *(real * np.float32(ratio) for ratio in _NEAREST))
    return tf.sign(filters) * tf.cast(levels, tf.float32) * (step * unit)


def _quantized_filters(
    filters: tf.Tensor,
    shift: tf.Tensor,
    coef_bits: int,
    filter_step: str,
    unit: tf.Tensor | np.float32,
    *,
    steps: Tensor | None = None,
) -> tf.Tensor:
    # Integer filters times `unit`, which is 1 or 2**-shift: both exact.
    if coef_bits == 3 and filter_step == LEARNED:
        return _learned_filters(filters, tf.convert_to_tensor(steps, tf.float32), shift, unit)
    if coef_bits == 3 and filter_step == MSE:
        return _least_squares_filters(filters, shift, unit)
    magnitude = tf.abs(filters)
    mean = _kernel_mean(magnitude)
    scale = tf.gather(_POWERS, shift)
    if coef_bits == 1:
        alpha = tf.minimum(round_half_away(mean * scale), np.float32(spec.MAX_ALPHA_1BIT)) * unit
        return tf.where(filters >= 0, alpha, -alpha)
    step = tf.where(mean > 0, mean, _ZERO_KERNEL_MEAN) * np.float32(0.25)
    level = (
        tf.cast(magnitude >= step, tf.float32)
        + tf.cast(magnitude >= 2 * step, tf.float32)
        + 2 * tf.cast(magnitude >= 3 * step, tf.float32)
    )  # trunc(|W| / step) with 3 and more becoming 4, without the division's rounding
    step = tf.minimum(round_half_away(step * scale), np.float32(spec.MAX_STEP_3BIT)) * unit
    return tf.sign(filters) * level * step


def _quantized_biases(biases: tf.Tensor, shift: tf.Tensor, coef_bits: int, unit: tf.Tensor | np.float32) -> tf.Tensor:
    limit = np.float32(bias_limit(coef_bits))
    integers = round_half_away(biases * tf.gather(_POWERS, shift))
    return tf.clip_by_value(integers, -limit, limit) * unit


def integer_filters(
    filters: Tensor, biases: Tensor | None, coef_bits: int, filter_step: str = MEAN, steps: Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return (filters, biases, shift) of one layer in the chip's integers.

    `filters` float32 HWIO, `biases` float32 [O] or None (zeros), `filter_step` mean, mse or, with `steps` float32
    [I, O] of 3-bit kernels, learned. Results: float32 tensors that hold integers, HWIO in
    -2047..2047 (per kernel +-alpha, or {0, 1, 2, 4} * step with a sign) and [O] in the range of `bias_limit`, and the
    int32 shift. Real value = integer * 2**-shift. Values beyond the chip's range are clamped;
    `gti.converter` refuses them.
    """
    filters = tf.convert_to_tensor(filters, tf.float32)
    biases = tf.zeros(filters.shape[3]) if biases is None else tf.convert_to_tensor(biases, tf.float32)
    shift = layer_shift(filters, biases, coef_bits)
    one = np.float32(1)
    return (
        _quantized_filters(filters, shift, coef_bits, filter_step, one, steps=steps),
        _quantized_biases(biases, shift, coef_bits, one),
        shift,
    )


def quantize_filters(filters: Tensor, shift: tf.Tensor, coef_bits: int, filter_step: str = MEAN) -> tf.Tensor:
    """Return `filters` (float32 HWIO) as the chip will hold them, in real units: integers * 2**-shift.

    1 bit: `alpha = mean|W|` per kernel; forward `sign(W) * round(alpha * 2**shift) * 2**-shift`.
    3 bit: forward `sign(W) * c * round(step * 2**shift) * 2**-shift`, c in {0, 1, 2, 4}. `filter_step` mean:
    `step = alpha / 4`; mse: the step with the least squared error, which leaves what the chip holds already as it is.
    Gradient: straight through, d out / d W = 1; none to the shift.
    """

    @tf.custom_gradient
    def quantize(values: tf.Tensor) -> Any:
        unit = tf.gather(_INVERSE_POWERS, shift)
        return _quantized_filters(values, shift, coef_bits, filter_step, unit), lambda upstream: upstream

    return quantize(tf.convert_to_tensor(filters, tf.float32))


def quantize_filters_to_steps(filters: Tensor, steps: Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return 3-bit `filters` (float32 HWIO) as the chip will hold them with `steps` [I, O] that are learned.

    Forward as `quantize_filters`: sign(W) * c * s, s the integer step in real units, c the nearest level of |W| / s.
    Gradient (Esser et al. 2020, LSQ): to W, 1 where |W| / s < 4, else 0; to a step the sum over its kernel of
    sign(W) * (c - |W| / s), or sign(W) * 4 from |W| / s = 4 on, times 1 / sqrt(9 * 4): nine weights, largest level 4.
    """

    @tf.custom_gradient
    def quantize(values: tf.Tensor, real: tf.Tensor) -> Any:
        inverse = tf.gather(_INVERSE_POWERS, shift)
        result = _learned_filters(values, real, shift, inverse)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            step = _integer_steps(real, shift) * inverse
            inside = tf.cast(tf.abs(values) < LARGEST_LEVEL * step, tf.float32)
            # Beyond the largest level the result is 4 s: its derivative is sign(W) * 4, which `result / s` is.
            along = (result - inside * values) / step
            return upstream * inside, _STEP_GRADIENT * tf.reduce_sum(upstream * along, axis=[0, 1])

        return result, gradient

    return quantize(tf.convert_to_tensor(filters, tf.float32), tf.convert_to_tensor(steps, tf.float32))


def starting_steps(filters: Tensor) -> tf.Tensor:
    """Return the steps [I, O] that learning begins with: those of least squared error, above 0."""
    step = least_squares_step(tf.abs(tf.convert_to_tensor(filters, tf.float32)))
    return tf.maximum(step, SMALLEST_STEP)


def quantize_biases(biases: Tensor, shift: tf.Tensor, coef_bits: int) -> tf.Tensor:
    """Return `biases` (float32 [O]) as the chip will hold them: `round(B * 2**shift) * 2**-shift`, clamped.

    Gradient: straight through, d out / d B = 1.
    """

    @tf.custom_gradient
    def quantize(values: tf.Tensor) -> Any:
        unit = tf.gather(_INVERSE_POWERS, shift)
        return _quantized_biases(values, shift, coef_bits, unit), lambda upstream: upstream

    return quantize(tf.convert_to_tensor(biases, tf.float32))


def quantize_activation(
    x: Tensor, cap: float | Tensor, max_code: int = spec.MAX_CODE, *, train_cap: bool = False
) -> tf.Tensor:
    """Return `x` through a ReLU capped at `cap` and rounded to `max_code` + 1 levels (31: 5 bits; 1023: 10 bits).

    Forward, in this order of operations: `s = cap / max_code`, `code = floor(clip(x, 0, cap) * (1 / s) + 0.5)`,
    `out = code * s`. This is TensorFlow's fake-quantization operation: one pass over memory, and one formula for every
    stage. In a fused network s is a power of two (31 / 31, 31.96875 / 1023), so every step is exact on every device.

    Gradient: to x, 1 where 0 <= x <= cap, else 0; to cap (only with `train_cap`), the sum of the upstream gradient
    where x > cap. `cap` is a Python number (fixed), or a positive float32 scalar tensor or variable.
    """
    bits = _BITS_OF_CODE[max_code]
    x = tf.convert_to_tensor(x, tf.float32)
    if isinstance(cap, (int, float)):
        return tf.quantization.fake_quant_with_min_max_args(x, min=0.0, max=float(cap), num_bits=bits)
    cap = tf.convert_to_tensor(cap, tf.float32)
    if train_cap:
        return tf.quantization.fake_quant_with_min_max_vars(x, 0.0, cap, num_bits=bits)

    @tf.custom_gradient
    def quantize(values: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            # Of another quantizer, but just what is wanted: the upstream gradient where 0 <= x <= cap, in one pass over
            # memory. Fake quantization's own also adds up gradients of both limits, which takes twice as long.
            return tf.raw_ops.QuantizeAndDequantizeV4Grad(
                gradients=upstream, input=values, input_min=tf.zeros_like(cap), input_max=cap, axis=-1
            )[0]

        return tf.quantization.fake_quant_with_min_max_vars(values, 0.0, cap, num_bits=bits), gradient

    return quantize(x)


def requantize(accumulator: tf.Tensor, shift: tf.Tensor, max_code: int = spec.MAX_CODE) -> tf.Tensor:
    """Return the chip's codes of integer sums: `clip(floor(acc * 2**-shift + 0.5), 0, max_code)`.

    The same rule stands in integers in `gti.chip.emulator.arithmetic.requantize`: a change of one is one of both.

    Ten-bit codes (`max_code` 1023) come from `acc * 32`. `accumulator` holds exact integers as float32 (below 2**24) or
    float64; the result has its dtype. Half-up and half-away agree here, because negative sums end at 0 either way.
    """
    gain = tf.cast(tf.gather(_INVERSE_POWERS, shift), accumulator.dtype)
    if max_code == spec.MAX_CODE_TEN_BIT:
        gain = gain * spec.TEN_BIT_FACTOR
    # Clipping first keeps the sum with 0.5 small, hence exact in float32 too.
    top = tf.cast(max_code, accumulator.dtype)
    return tf.floor(tf.clip_by_value(accumulator * gain, 0, top) + 0.5)
