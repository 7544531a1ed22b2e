"""The least-squares step of 3-bit filters: optimal within a little, the same bits everywhere, true to what fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gti import quantize
from gti.stage import FILTER_STEPS, MSE

F = np.float32
PROPERTY = settings(max_examples=15)


def nearest_levels(ratio: np.ndarray) -> np.ndarray:
    return np.select([ratio < 0.5, ratio < 1.5, ratio < 3], [0, 1, 2], 4)


def least_error(kernel: np.ndarray) -> float:
    # The least squared error over every step: its levels change where a magnitude is 0.5, 1.5 or 3 steps, and between
    # two such places the best step is known in closed form.
    magnitude = np.abs(kernel.astype(np.float64))
    borders = np.unique(np.outer(magnitude[magnitude > 0], [2, 2 / 3, 1 / 3]))
    errors = [np.sum(magnitude**2)]
    for step in np.concatenate([borders * (1 - 1e-9), borders * (1 + 1e-9)]):
        levels = nearest_levels(magnitude / step)
        if levels.any():
            best = magnitude @ levels / (levels @ levels)
            errors.append(np.sum((magnitude - best * levels) ** 2))
    return min(errors)


@pytest.mark.slow
def test_the_error_is_the_least_there_is_within_a_little() -> None:
    random = np.random.default_rng(0)
    kernels = np.concatenate([random.normal(size=(9, 300)), random.laplace(size=(9, 300)) ** 3], axis=1).astype(F)
    found = quantize.least_squares_step(np.abs(kernels).reshape(3, 3, 600, 1)).numpy().ravel()
    magnitude = np.abs(kernels.astype(np.float64))
    errors = np.sum((magnitude - found * nearest_levels(magnitude / found)) ** 2, axis=0)
    least = np.array([least_error(kernel) for kernel in kernels.T])
    energy = np.sum(magnitude**2, axis=0)
    assert np.all(errors >= least * (1 - 1e-5))
    assert np.mean(errors / energy) <= 1.02 * np.mean(least / energy)
    mean = magnitude.mean(axis=0) / 4
    level = np.trunc(magnitude / mean)
    of_mean = np.sum((magnitude - mean * np.where(level >= 3, 4, level)) ** 2, axis=0)
    assert np.mean(errors / energy) < 0.25 * np.mean(of_mean / energy)


def test_integers_by_hand() -> None:
    # Largest 8, shift 7. Levels 4 2 2 1 1 0 0 0 0 of a step of 2: exactly 256.
    kernel = np.array([8, -4, 4, 2, -2, 0, 0, 0, 0], F).reshape(3, 3, 1, 1)
    integers, _, shift = quantize.integer_filters(kernel, None, 3, MSE)
    assert int(shift) == 7
    assert integers.numpy().ravel().tolist() == [1024, -512, 512, 256, -256, 0, 0, 0, 0]
    # 0.9 in place of the last 0 is nearer to 0 than to 2: the step stays.
    kernel[2, 2] = 0.9
    integers, _, _ = quantize.integer_filters(kernel, None, 3, MSE)
    assert integers.numpy().ravel().tolist() == [1024, -512, 512, 256, -256, 0, 0, 0, 0]
    # 1.1 becomes 2: the step is (32 + 8 + 8 + 2 + 2 + 1.1) / 27 = 1.966..., times 128 = 251.7.
    kernel[2, 2] = 1.1
    integers, _, _ = quantize.integer_filters(kernel, None, 3, MSE)
    assert integers.numpy().ravel().tolist() == [1008, -504, 504, 252, -252, 0, 0, 0, 252]


def held_by_the_chip() -> np.ndarray:
    # [9, kernels]: all patterns of levels as multisets (order and signs mean nothing to the step), shuffled, signed.
    random = np.random.default_rng(1)
    patterns = np.array(list(itertools.combinations_with_replacement((0, 1, 2, 4), 9)))
    patterns = random.permuted(patterns, axis=1) * random.choice([-1, 1], size=patterns.shape)
    single = np.concatenate([np.eye(9, dtype=int), -np.eye(9, dtype=int) * 4, np.eye(9, dtype=int) * 2])
    return np.concatenate([patterns, single]).T


@pytest.mark.parametrize("filter_step", FILTER_STEPS)
@pytest.mark.parametrize("coef_bits", [1, 3])
@PROPERTY
@given(seed=st.integers(0, 2**31), shift=st.integers(0, 12), largest=st.sampled_from([1, 5, 60, 511]))
def test_a_kernel_that_the_chip_holds_comes_out_unchanged(
    filter_step: str, coef_bits: int, seed: int, shift: int, largest: int
) -> None:
    if coef_bits == 3 and filter_step != MSE:
        return  # the mean of a kernel does not tell its step
    random = np.random.default_rng(seed)
    levels = held_by_the_chip()
    if coef_bits == 1:
        levels = np.where(random.random(levels.shape) < 0.5, -1, 1)
    kernels = levels.shape[1]
    steps = random.integers(0, largest + 1, size=kernels) * (1 if coef_bits == 3 else 4)
    held = (levels * steps).reshape(3, 3, kernels, 1).astype(F) * F(2.0**-shift)
    biases = random.integers(-2047, 2048, size=1).astype(F) * F(2.0**-shift)
    integers, bias_integers, found = quantize.integer_filters(held, biases, coef_bits, filter_step)
    assert int(found) >= shift
    np.testing.assert_array_equal(integers.numpy() * 2.0 ** -int(found), held)
    np.testing.assert_array_equal(bias_integers.numpy() * 2.0 ** -int(found), biases)


@pytest.mark.slow
@PROPERTY
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-7, 1e-3, 0.02, 1.0, 37.0, 1500.0, 9000.0]))
def test_graph_eager_and_integers_agree(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    filters = (random.normal(size=(3, 3, 8, 6)) * scale).astype(F)
    filters[:, :, 0, 0] = 0
    shift = quantize.layer_shift(filters, None, 3)
    eager = quantize.quantize_filters(filters, shift, 3, MSE).numpy()
    graph = tf.function(lambda w: quantize.quantize_filters(w, shift, 3, MSE))(tf.constant(filters)).numpy()
    integers, _, _ = quantize.integer_filters(filters, None, 3, MSE)
    np.testing.assert_array_equal(eager, graph)
    np.testing.assert_array_equal(eager, integers.numpy() * 2.0 ** -int(shift))
    kernels = np.abs(integers.numpy()).reshape(9, -1)
    for kernel in kernels.T:
        nonzero = kernel[kernel > 0]
        assert nonzero.size == 0 or any(
            set(nonzero / step) <= {1, 2, 4} for step in (nonzero.min(), nonzero.max() / 4, nonzero.max() / 2)
        )
    assert kernels.max() <= 4 * 511


def test_a_small_kernel_beside_a_large_one_is_rounded_and_not_lost() -> None:
    filters = np.zeros((3, 3, 2, 1), F)
    filters[..., 0, 0], filters[..., 1, 0] = 1000, 1.2
    integers, _, shift = quantize.integer_filters(filters, None, 3, MSE)
    assert int(shift) == 1
    assert integers.numpy()[..., 1, 0].ravel().tolist() == [2] * 9  # 2.4, where a quarter of it is 0.6
    filters[..., 1, 0] = 0.2
    integers, _, _ = quantize.integer_filters(filters, None, 3, MSE)
    assert not integers.numpy()[..., 1, 0].any()  # 0.4 is nearer to 0 than to 1


@pytest.mark.slow
@pytest.mark.parametrize("channels", [64, 256])
def test_a_large_layer_has_the_same_bits_in_a_training_step(channels: int) -> None:
    # Large arrays are cut into blocks for several threads, and a graph is optimised: neither may change a bit.
    random = np.random.default_rng(3)
    filters = tf.Variable(random.normal(size=(3, 3, channels, channels)).astype(F))
    biases = tf.Variable(random.normal(size=channels).astype(F))

    @tf.function
    def step() -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            shift = quantize.layer_shift(filters, biases, 3)
            values = quantize.quantize_filters(filters, shift, 3, MSE)
            loss = tf.reduce_sum(values * values)
        return values, tape.gradient(loss, filters)

    values, gradient = step()
    integers, _, shift = quantize.integer_filters(filters, biases, 3, MSE)
    np.testing.assert_array_equal(values.numpy(), integers.numpy() * 2.0 ** -int(shift))
    np.testing.assert_array_equal(gradient.numpy(), 2 * values.numpy())  # straight through
