"""Softmax regression: its minimum, its folds, its choice of a penalty."""

from __future__ import annotations

import numpy as np
import pytest

from gti.chip.host import softmax_regression
from gti.chip.host.softmax_regression import PENALTIES, fit, folds, held_out_logits


def blobs(counts: tuple[int, ...], features: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, features] around one random centre for each class, and labels."""
    random = np.random.default_rng(seed)
    centres = random.uniform(0, 10, (len(counts), features))
    labels = np.repeat(np.arange(len(counts)), counts)
    return centres[labels] + random.normal(0, spread, (len(labels), features)), labels


def slope(x: np.ndarray, labels: np.ndarray, weights: np.ndarray, biases: np.ndarray, l2: float) -> tuple:
    """The gradient of the loss of the module's docstring, stated anew; `x` centred and scaled."""
    error = np.zeros((len(x), len(biases)))
    for n, (row, label) in enumerate(zip(x, labels, strict=True)):
        shares = np.exp(weights @ row + biases)
        error[n] = shares / shares.sum()
        error[n, label] -= 1
    return error.T @ x / len(x) + l2 * weights, error.mean(axis=0)


@pytest.mark.parametrize("features", [3, 40], ids=["more photos than features", "fewer"])
@pytest.mark.parametrize("l2", [1e-2, 1.0])
def test_the_gradient_vanishes_at_the_minimum(features: int, l2: float):
    x, labels = blobs((5, 6, 7), features, 4.0)
    model = fit(x, labels, 3, [l2])
    centred = x - x.mean(axis=0)
    scale = np.sqrt(np.mean(centred**2))
    gradients = slope(centred / scale, labels, model.weights * scale, model.biases + model.weights @ x.mean(axis=0), l2)
    assert max(np.abs(g).max() for g in gradients) < 2e-4


def test_features_of_another_unit_give_the_same_answers():
    x, labels = blobs((6, 6), 4, 3.0)
    ours, theirs = (fit(values, labels, 2, [0.1]) for values in (x, 1000 * x + 7))
    np.testing.assert_allclose(ours.logits(x), theirs.logits(1000 * x + 7), atol=1e-3)


def test_the_penalty_is_small_for_clear_classes_and_large_for_noise():
    clear = fit(*blobs((12, 12, 12), 30, 0.5), 3)
    random = np.random.default_rng(1)
    noise = fit(random.normal(size=(36, 30)), np.repeat(np.arange(3), 12), 3)
    assert clear.l2 == min(PENALTIES)
    assert noise.l2 >= 1


@pytest.mark.parametrize("counts", [(10, 10), (2, 13), (2, 2)])
def test_folds_part_the_photographs_and_spread_each_class(counts: tuple[int, ...]):
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = folds(labels, 5)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert all(len(part) for part in parts)
    for label, count in enumerate(counts):
        shares = [int((labels[part] == label).sum()) for part in parts]
        assert max(shares) - min(shares) <= 1, (label, count)


@pytest.mark.slow
def test_held_out_answers_come_from_a_regression_that_has_not_seen_the_photograph(monkeypatch: pytest.MonkeyPatch):
    """Labels without any pattern: who remembers photographs is right always, who does not is right by chance."""
    random = np.random.default_rng(2)
    x, labels = random.normal(size=(80, 200)), np.arange(80) % 2
    indices, logits = held_out_logits(x, labels, 2)
    assert sorted(indices) == list(range(80))
    assert np.mean(logits.argmax(axis=1) == labels[indices]) < 0.7
    assert np.mean(fit(x, labels, 2, [1e-3]).logits(x).argmax(axis=1) == labels) == 1
    monkeypatch.setattr(softmax_regression, "FEW", 79)  # many photographs: a fifth is held out, once
    assert len(held_out_logits(x, labels, 2)[0]) == 16
