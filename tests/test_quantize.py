"""Quantizers against independent NumPy statements of docs/numerics.md, with ties, zeros, clamps and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gti import quantize

F = np.float32
PROPERTY = settings(max_examples=settings.default.max_examples * 3 // 5)
FEW = settings(PROPERTY, max_examples=12)


def half_away(x: np.ndarray) -> np.ndarray:
    # Python statement of section 2, in float64.
    x = np.asarray(x, np.float64)
    return np.where(x >= 0, np.floor(x + 0.5), np.ceil(x - 0.5))


def shift_of(values: np.ndarray, bits: int) -> float:
    # The formula of section 3 with a logarithm, in float64.
    largest = float(np.max(np.abs(values)))
    return math.inf if largest == 0 else math.trunc(math.log2((2 ** (bits - 1) - 1) / largest))


def numpy_integers(filters: np.ndarray, biases: np.ndarray, coef_bits: int) -> tuple[np.ndarray, np.ndarray, int]:
    # Section 3 as it is written, kernel by kernel.
    bias_bits = {1: 12, 3: 18}[coef_bits]
    shift = int(np.clip(min(shift_of(filters, 12), shift_of(biases, bias_bits)), 0, 12))
    result = np.zeros(filters.shape)
    for i in range(filters.shape[2]):
        for o in range(filters.shape[3]):
            kernel = filters[:, :, i, o].astype(F)
            total = F(0)
            for tap in np.abs(kernel).ravel():
                total = F(total + tap)
            alpha = F(total * F(1 / 9))
            if coef_bits == 1:
                scale = min(half_away(float(alpha) * 2**shift), 2047)
                result[:, :, i, o] = np.where(kernel >= 0, scale, -scale)
            else:
                step = F(alpha if alpha > 0 else 1e-6) / F(4)
                # Compared, not divided: a quotient would round up to the next level just below it.
                level = sum((np.abs(kernel) >= F(n * step)).astype(int) for n in (1, 2, 3))
                level = np.where(level == 3, 4, level)
                result[:, :, i, o] = np.sign(kernel) * level * min(half_away(float(step) * 2**shift), 511)
    limit = 2 ** (bias_bits - 1) - 1
    return result, np.clip(half_away(biases.astype(np.float64) * 2**shift), -limit, limit), shift


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (2.5, 3),
        (-2.5, -3),
        (0.5, 1),
        (-0.5, -1),
        (0.0, 0),
        (1.4999999, 1),
        (0.49999997, 0),  # the largest float32 below one half: adding 0.5 to it gives 1
        (-0.49999997, 0),
        (8388609.0, 8388609),  # 2**23 + 1: adding 0.5 is not representable
        (-16777215.0, -16777215),
    ],
)
def test_round_half_away(x: float, expected: int) -> None:
    assert float(quantize.round_half_away(F(x))) == expected


@pytest.mark.parametrize("bits", [12, 18])
@pytest.mark.parametrize("exponent", range(-3, 20))
def test_range_shift_at_its_borders(bits: int, exponent: int) -> None:
    limit = 2 ** (bits - 1) - 1
    border = F(limit / 2**exponent)  # exactly representable: this shift just fits
    above = np.nextafter(border, F(np.inf))
    assert int(quantize.range_shift(np.array([border, -border / 2]), limit)) == min(max(exponent, 0), 12)
    assert int(quantize.range_shift(np.array([-above]), limit)) == min(max(exponent - 1, 0), 12)


@pytest.mark.parametrize(
    ("filters", "biases", "coef_bits", "shift"),
    [
        (0.0, 0.0, 1, 12),  # nothing limits
        (0.0, 4.0, 1, 8),  # 4 * 256 = 1024 fits 2047, 2048 does not
        (1.0, 0.0, 3, 10),  # 1024 fits, 2048 does not
        (1.0, 100.0, 3, 10),  # 18 bits hold 100 * 1024 = 102400
        (1.0, 200.0, 3, 9),  # 200 * 512 = 102400 fits 131071
        (5000.0, 0.0, 1, 0),
    ],
)
def test_layer_shift(filters: float, biases: float, coef_bits: int, shift: int) -> None:
    w, b = np.full((3, 3, 1, 1), filters, F), np.full(1, biases, F)
    assert int(quantize.layer_shift(w, b, coef_bits)) == shift


def test_missing_biases_put_no_limit() -> None:
    w = np.ones((3, 3, 2, 4), F)
    assert int(quantize.layer_shift(w, None, 1)) == 10
    _, biases, _ = quantize.integer_filters(w, None, 1)
    assert biases.numpy().tolist() == [0, 0, 0, 0]


def kernel(*taps: float) -> np.ndarray:
    return np.array(taps, F).reshape(3, 3, 1, 1)


@pytest.mark.parametrize(
    ("filters", "coef_bits", "expected"),
    [
        # Mean 1, shift 10 by the largest (1.0 -> 1024): alpha 1024; zeros count as positive.
        (kernel(*[1] * 9), 1, [1024] * 9),
        (kernel(1, -1, 1, -1, 1, -1, 1, -1, 1), 1, [1024, -1024] * 4 + [1024]),
        (kernel(*[0] * 9), 1, [0] * 9),
        (kernel(9, 0, 0, 0, 0, 0, 0, 0, 0), 1, [128] * 9),  # largest 9: shift 7, mean 1
        # All equal: step = 1/4, level 4, integer step 256.
        (kernel(*[1] * 9), 3, [1024] * 9),
        (kernel(*[0] * 9), 3, [0] * 9),
        # Near the limit: 2047 / 4 = 511.75 rounds to 512, which is clamped to 511.
        (kernel(*[2047] * 9), 3, [2044] * 9),
        (kernel(*[2047] * 9), 1, [2047] * 9),
        # Beyond the chip: clamped, never NaN (conversion refuses).
        (kernel(*[9999] * 9), 1, [2047] * 9),
        (kernel(*[-9999] * 9), 3, [-2044] * 9),
        # Sum 36, mean 4, step 1: levels trunc(|w|) with 3 and more -> 4; largest 12 -> shift 7, integer step 128.
        (kernel(12, 0.5, -1, 1.5, 2, -2.5, 3, 3.5, 10), 3, [512, 0, -128, 128, 256, -256, 512, 512, 512]),
    ],
)
def test_integer_filters_by_hand(filters: np.ndarray, coef_bits: int, expected: list[int]) -> None:
    values, _, _ = quantize.integer_filters(filters, np.zeros(1, F), coef_bits)
    assert values.numpy().ravel().tolist() == expected


def test_biases_clamp_and_tie() -> None:
    w = np.full((3, 3, 1, 4), 2047, F)  # shift 0
    _, biases, shift = quantize.integer_filters(w, np.array([2.5, -2.5, 1e6, -1e6], F), 1)
    assert (int(shift), biases.numpy().tolist()) == (0, [3, -3, 2047, -2047])
    _, biases, _ = quantize.integer_filters(w, np.array([0.5, -0.5, 1e6, -1e6], F), 3)
    assert biases.numpy().tolist() == [1, -1, 131071, -131071]


@pytest.mark.parametrize("coef_bits", [1, 3])
@PROPERTY
@given(data=st.data())
def test_integers_equal_the_numpy_statement(coef_bits: int, data: st.DataObject) -> None:
    scale = data.draw(st.sampled_from([1e-7, 1e-3, 0.02, 1.0, 37.0, 1500.0]))
    seed = data.draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    filters = (random.normal(size=(3, 3, 4, 5)) * scale).astype(F)
    filters[:, :, 0, 0] = data.draw(hnp.arrays(F, (3, 3), elements=st.sampled_from([0.0, -0.0, 0.5, -1.0, 1.0])))
    biases = (random.normal(size=5) * scale * data.draw(st.sampled_from([0.0, 0.1, 50.0]))).astype(F)
    expected_filters, expected_biases, expected_shift = numpy_integers(filters, biases, coef_bits)
    got_filters, got_biases, shift = quantize.integer_filters(filters, biases, coef_bits)
    assert int(shift) == expected_shift
    np.testing.assert_array_equal(got_filters.numpy(), expected_filters)
    np.testing.assert_array_equal(got_biases.numpy(), expected_biases)


def real_values(w: tf.Tensor, b: tf.Tensor, coef_bits: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    shift = quantize.layer_shift(w, b, coef_bits)
    return quantize.quantize_filters(w, shift, coef_bits), quantize.quantize_biases(b, shift, coef_bits), shift


real_values_in_a_graph = tf.function(real_values)  # traced once for each number of bits


@pytest.mark.parametrize("coef_bits", [1, 3])
@FEW
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-4, 0.05, 3.0, 400.0]))
def test_graph_eager_and_real_values_agree(coef_bits: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    filters = tf.constant(random.normal(size=(3, 3, 8, 6)) * scale, tf.float32)
    biases = tf.constant(random.normal(size=6) * scale, tf.float32)
    eager = real_values(filters, biases, coef_bits)
    graph = real_values_in_a_graph(filters, biases, coef_bits)
    integers = quantize.integer_filters(filters, biases, coef_bits)
    for one, other in zip(eager, graph, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    unit = 2.0 ** -int(integers[2])
    for value, integer in zip(eager[:2], integers[:2], strict=True):
        np.testing.assert_array_equal(value.numpy(), integer.numpy() * unit)


@pytest.mark.parametrize("coef_bits", [1, 3])
def test_quantizing_twice_changes_nothing(coef_bits: int) -> None:
    # Holds where every kernel has one magnitude: what the chip holds is then what training starts from.
    random = np.random.default_rng(5)
    filters = np.sign(random.normal(size=(3, 3, 16, 16))) * random.integers(1, 500, size=(16, 16)) * 4 / 1024
    once, biases, _ = quantize.integer_filters(filters.astype(F), np.zeros(16, F), coef_bits)
    twice, _, _ = quantize.integer_filters(once / 1024, biases, coef_bits)
    np.testing.assert_array_equal(once.numpy(), twice.numpy())


@pytest.mark.parametrize("coef_bits", [1, 3])
def test_gradients_pass_straight_through(coef_bits: int) -> None:
    random = np.random.default_rng(1)
    w = tf.Variable(random.normal(size=(3, 3, 3, 4)).astype(F))
    b = tf.Variable(random.normal(size=4).astype(F))
    to_w, to_b = random.normal(size=w.shape).astype(F), random.normal(size=b.shape).astype(F)
    with tf.GradientTape() as tape:
        shift = quantize.layer_shift(w, b, coef_bits)
        wq, bq = quantize.quantize_filters(w, shift, coef_bits), quantize.quantize_biases(b, shift, coef_bits)
        loss = tf.reduce_sum(wq * to_w) + tf.reduce_sum(bq * to_b)
    gradients = tape.gradient(loss, [w, b])
    np.testing.assert_array_equal(gradients[0].numpy(), to_w)
    np.testing.assert_array_equal(gradients[1].numpy(), to_b)


def numpy_activation(x: np.ndarray, cap: float, top: int) -> np.ndarray:
    # The canonical formula in float64; codes, not values.
    step = cap / top
    return np.floor(np.clip(x.astype(np.float64), 0, cap) / step + 0.5)


@pytest.mark.parametrize("top", [31, 1023])
@pytest.mark.parametrize("cap", [1e-6, 0.137, 1.0, 5.3, 31.0, 31.96875, 1000.0])
def test_activation_codes(cap: float, top: int) -> None:
    random = np.random.default_rng(2)
    x = random.uniform(-0.2 * cap, 1.2 * cap, 4000).astype(F)
    codes = x.astype(np.float64) * top / cap
    x = x[np.abs(codes - np.floor(codes) - 0.5) > 1e-3]  # ties are another test
    for cap_argument in (cap, tf.constant(cap, tf.float32), tf.Variable(cap, dtype=tf.float32)):
        got = quantize.quantize_activation(x, cap_argument, top).numpy()
        np.testing.assert_array_equal(np.round(got * top / cap), numpy_activation(x, cap, top))
        np.testing.assert_allclose(got, numpy_activation(x, cap, top) * cap / top, rtol=1e-6)


@pytest.mark.parametrize(("cap", "top", "step"), [(31.0, 31, 1.0), (31.96875, 1023, 1 / 32)])
def test_fused_activations_are_exact_at_ties(cap: float, top: int, step: float) -> None:
    # Multiples of 2**-12 and their neighbours, as a fused network computes them: halves go up, on code boundaries too.
    boundaries = (np.arange(-2, top + 3) + 0.5) * step
    x = np.concatenate([boundaries, boundaries - 2.0**-12, boundaries + 2.0**-12, [0.0, cap, 1e6, -1e6]]).astype(F)
    expected = np.clip(np.floor(x.astype(np.float64) / step + 0.5), 0, top) * step
    for cap_argument in (cap, tf.Variable(cap, dtype=tf.float32)):
        eager = quantize.quantize_activation(x, cap_argument, top)
        graph = tf.function(quantize.quantize_activation)(x, cap_argument, top)
        np.testing.assert_array_equal(eager.numpy(), expected)
        np.testing.assert_array_equal(graph.numpy(), expected)


def test_zero_and_cap_are_codes_of_their_own() -> None:
    got = quantize.quantize_activation(np.array([-1.0, -0.0, 0.0, 7.5, 9.0, np.inf], F), tf.Variable(7.5)).numpy()
    np.testing.assert_array_equal(got[:3], 0)
    np.testing.assert_allclose(got[3:], 7.5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["number", "variable", "trained"])
def test_activation_gradients(kind: str) -> None:
    x = tf.constant([-3.0, -0.1, 0.3, 2.0, 2.6, 9.0])
    upstream = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], F)
    cap: float | tf.Variable = 2.5 if kind == "number" else tf.Variable(2.5)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = tf.reduce_sum(quantize.quantize_activation(x, cap, train_cap=kind == "trained") * upstream)
    # 1 inside 0..cap, 0 outside; the cap collects what lies above it.
    assert tape.gradient(y, x).numpy().tolist() == [0, 0, 3, 4, 0, 0]
    if kind == "trained":
        assert float(tape.gradient(y, cap)) == 5 + 6


@pytest.mark.parametrize("top", [31, 1023])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", range(13))
def test_requantize_equals_integer_shifts(shift: int, dtype: type, top: int) -> None:
    random = np.random.default_rng(shift)
    limit = 2**24 if dtype is np.float32 else 2**40
    accumulator = np.concatenate(
        [random.integers(-limit, limit, 500), np.arange(-300, 300) * 2 ** max(shift - 6, 0), [limit, -limit, 0]]
    )
    factor = 32 if top == 1023 else 1
    half = (1 << shift) >> 1  # shift 0 has no half to add
    expected = np.clip((accumulator * factor + half) >> shift, 0, top)
    got = quantize.requantize(tf.constant(accumulator.astype(dtype)), tf.constant(shift), top)
    np.testing.assert_array_equal(got.numpy().astype(np.int64), expected)
