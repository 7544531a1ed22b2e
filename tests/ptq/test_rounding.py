"""Compensated rounding against its own statement in NumPy, and against every choice there is where they are few."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gti import quantize
from gti.ptq import layer, rounding
from gti.stage import MSE

LEVELS = {1: np.array([-1.0, 1.0]), 3: np.array([-4.0, -2, -1, 0, 1, 2, 4])}


def problem(columns: int, rows: int, seed: int = 0) -> tuple[np.ndarray, layer.Factors]:
    """Return rows of real weights, and the moments of inputs that depend on each other as those of maps do."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(200, 6)) @ random.normal(size=(6, columns)) * 2 + random.normal(size=(200, columns)) + 3
    patches = np.clip(np.rint(mixed), 0, 31).astype(np.uint8)
    return random.normal(size=(rows, columns)), layer.Moments(patches).damped(0.01)


def real(levels: np.ndarray, steps: np.ndarray, shift: int) -> np.ndarray:
    return levels * np.repeat(steps, 9, axis=1) * 2.0**-shift


def loss(weights: np.ndarray, target: np.ndarray, moments: np.ndarray) -> np.ndarray:
    return np.einsum("ri,ij,rj->r", weights - target, moments, weights - target)


@pytest.mark.parametrize("centred", [True, False])
def test_the_factors_are_those_of_the_inverse(centred: bool) -> None:
    patches = np.random.default_rng(1).integers(0, 32, (500, 27)).astype(np.uint8)
    moments = layer.Moments(patches)
    found = moments.damped(0.03, centred=centred)
    about = patches - patches.mean(axis=0) if centred else patches.astype(float)
    covariance = np.cov(patches.T, bias=True)
    expected = about.T @ about / 500 + 0.03 * np.mean(np.diag(covariance)) * np.eye(27)
    np.testing.assert_allclose(found.damped, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.upper, np.triu(found.upper))
    np.testing.assert_allclose(found.upper.T @ found.upper, np.linalg.inv(expected), rtol=1e-8)


def test_matching_is_the_ridge_solution_about_the_prior() -> None:
    random = np.random.default_rng(2)
    patches = random.integers(0, 32, (300, 18)).astype(np.uint8)
    targets = random.normal(size=(300, 4)).astype(np.float32)
    prior = random.normal(size=(4, 18))
    moments = layer.Moments(patches)
    found = moments.damped(0.05).nearest(patches, targets, prior)
    # As one least-squares problem: centred data, and rows that hold each weight at its prior.
    x, y = patches - patches.mean(axis=0), targets - targets.mean(axis=0)
    hold = np.sqrt(0.05 * moments.level) * np.eye(18)
    for row in range(4):
        a = np.concatenate([x / np.sqrt(300), hold])
        b = np.concatenate([y[:, row] / np.sqrt(300), hold @ prior[row]])
        np.testing.assert_allclose(found[row], np.linalg.lstsq(a, b, rcond=None)[0], atol=1e-6)


@pytest.mark.parametrize("bits", [1, 3])
def test_one_walk_over_the_columns(bits: int) -> None:
    # Frantar et al. 2022, column by column, with the steps that were found.
    target, factors = problem(45, 5)
    shift = 9
    levels, steps = rounding.compensated(target, factors.upper, shift, bits)
    work, expected = target.copy(), np.zeros(target.shape)
    for column in range(45):
        step = steps[:, column // 9] * 2.0**-shift
        ratio = work[:, column] / np.where(step > 0, step, 1)
        borders = [0.5, 1.5, 3] if bits == 3 else []
        size = np.array([0.0, 1, 2, 4])[np.digitize(np.abs(ratio), borders)] if bits == 3 else 1.0
        expected[:, column] = np.where(ratio >= 0, 1, -1) * size
        error = (work[:, column] - expected[:, column] * step) / factors.upper[column, column]
        work[:, column + 1 :] -= np.outer(error, factors.upper[column, column + 1 :])
    np.testing.assert_array_equal(levels, expected)
    assert steps.min() >= 0
    assert steps.max() <= {1: 2047, 3: 511}[bits]


@pytest.mark.parametrize("bits", [1, 3])
def test_compensated_rows_lose_less_and_descent_never_adds(bits: int) -> None:
    target, factors = problem(90, 12, seed=3)
    shift = 9
    filters = target.reshape(12, 10, 3, 3).transpose(2, 3, 1, 0).astype(np.float32)
    plain, _, found = quantize.integer_filters(filters, None, bits, MSE)
    plain = plain.numpy().transpose(3, 2, 0, 1).reshape(12, 90) * 2.0 ** -int(found)
    levels, steps = rounding.compensated(target, factors.upper, shift, bits)
    losses = [loss(w, target, factors.damped).sum() for w in (plain, real(levels, steps, shift))]
    assert losses[1] < 0.6 * losses[0]
    gradient = (real(levels, steps, shift) - target) @ factors.damped
    for _ in range(20):
        moved = rounding.descended(factors.damped, gradient, levels, steps, shift, bits)
        losses.append(loss(real(levels, steps, shift), target, factors.damped).sum())
        assert losses[-1] <= losses[-2] * (1 + 1e-9)
        expected = (real(levels, steps, shift) - target) @ factors.damped
        np.testing.assert_allclose(gradient, expected, atol=1e-8)
        if not moved:
            break
    assert losses[-1] < 0.95 * losses[1]
    assert set(np.unique(levels)) <= set(LEVELS[bits])


@pytest.mark.parametrize("bits", [1, 3])
def test_a_longer_search_never_loses_more(bits: int) -> None:
    target, factors = problem(27, 30, seed=6)
    losses = []
    for walks in (1, 4, 16):
        levels, steps = rounding.searched(target, factors.damped, factors.upper, 6, bits, walks=walks)
        assert set(np.unique(levels)) <= set(LEVELS[bits])
        losses.append(loss(real(levels, steps, 6), target, factors.damped))
    own_order = rounding.compensated(target, factors.upper, 6, bits)
    assert np.all(losses[0] <= loss(real(*own_order, 6), target, factors.damped))
    assert np.all(losses[1] <= losses[0])
    assert np.all(losses[2] <= losses[1])  # the walks of a short search are the first ones of a long one
    assert losses[2].sum() < 0.95 * losses[0].sum()


def test_no_single_change_of_a_descended_kernel_is_better() -> None:
    target, factors = problem(18, 3, seed=4)
    shift = 5
    levels, steps = rounding.compensated(target, factors.upper, shift, 3)
    gradient = (real(levels, steps, shift) - target) @ factors.damped
    while rounding.descended(factors.damped, gradient, levels, steps, shift, 3):
        pass
    best = loss(real(levels, steps, shift), target, factors.damped)
    for column, level, step in itertools.product(range(18), LEVELS[3], range(0, 200)):
        trial, trial_steps = levels.astype(float), steps.copy()
        trial[:, column] = level
        trial_steps[:, column // 9] = step
        assert np.all(loss(real(trial, trial_steps, shift), target, factors.damped) >= best * (1 - 1e-7))


def test_kernels_of_nothing_and_kernels_beyond_the_range() -> None:
    _, factors = problem(18, 2)
    target = np.zeros((2, 18))
    target[1] = 1e6
    levels, steps = rounding.compensated(target, factors.upper, 4, 3)
    assert not real(levels, steps, 4)[0].any()
    assert steps[1].max() == 511
    levels, steps = rounding.compensated(target, factors.upper, 4, 1)
    assert steps[0].tolist() == [0, 0]
    assert steps[1].max() == 2047


@pytest.mark.parametrize(
    ("weight", "bias", "bits", "shift"),
    [
        (0.1, 0.0, 3, 12),  # 0.1 * 4096 = 410
        (1.0, 0.0, 3, 10),  # 2044 is the largest
        (1.0, 100.0, 3, 10),  # 18 bits hold 102400
        (1.0, 200.0, 3, 9),
        (1.0, 0.0, 1, 10),
        (1.0, 10.0, 1, 7),  # 12 bits: 10 * 2**7 = 1280
        (0.01, 31.0, 1, 8),  # the bias would want 6, which leaves an alpha of 0.64: it is cut off, alpha is 2.56
        (0.0, 0.0, 1, 12),
    ],
)
def test_shift_of_a_layer(weight: float, bias: float, bits: int, shift: int) -> None:
    assert layer.best_shift(np.full((2, 9), weight), np.array([bias, 0]), bits) == shift
