"""Softmax regression in NumPy: features -> classes, with the L2 penalty chosen by cross-validation.

    minimise  mean_n( logsumexp_k(z_nk) - z_n,y(n) ) + l2 / 2 * sum(W**2),     z_n = W x_n + b

`x` are the features less their mean, divided by one number for all of them, so that their mean square is 1: the same
penalties then suit every backbone. Folding that back gives weights for the raw features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_MOST_STEPS = 100
_MEMORY = 10  # pairs that L-BFGS remembers
_SMALL_GRADIENT = 1e-4
# More photos than this are split once; of fewer, every one is held out in turn.
FEW = 500
FOLDS = 5
HELD_OUT = 0.2


@dataclass(frozen=True)
class Regression:
    """Weights for raw features."""

    weights: Floats  # [classes, features]
    biases: Floats  # [classes]
    l2: float

    def logits(self, features: npt.ArrayLike) -> Floats:
        """Return z, float64 [n, classes], of features [n, features]."""
        return np.asarray(features, np.float64) @ self.weights.T + self.biases


def fit(features: npt.ArrayLike, labels: Integers, classes: int, penalties: Sequence[float] = PENALTIES) -> Regression:
    """Return the regression of features [n, features] on labels 0..`classes` - 1, every class at least once.

    Of several `penalties` the one is taken with the least loss on parts that were held out in turn.
    """
    x = np.asarray(features, np.float64)
    chosen = penalties[0] if len(penalties) == 1 else _best_penalty(x, labels, classes, penalties)
    return _path(x, labels, classes, [p for p in penalties if p >= chosen])[-1]


def held_out_logits(features: npt.ArrayLike, labels: Integers, classes: int, seed: int = 0) -> tuple[Integers, Floats]:
    """Return (indices, logits of them [m, classes]) of photos that the regression behind each logit has not seen.

    Up to `FEW` photos: all of them, in turns; beyond: `HELD_OUT` of them, once. The penalty is chosen anew without
    them. Photos of a class that has no other are left out.
    """
    x = np.asarray(features, np.float64)
    parts = folds(labels, FOLDS if len(x) <= FEW else round(1 / HELD_OUT), seed)
    indices, logits = [], []
    for part in parts if len(x) <= FEW else parts[:1]:
        rest = np.setdiff1d(np.arange(len(x)), part)
        known = np.isin(labels[part], labels[rest])
        model = _fit_some(x[rest], labels[rest], classes)
        indices.append(part[known])
        logits.append(model(x[part[known]]))
    return np.concatenate(indices), np.concatenate(logits)


def folds(labels: Integers, count: int, seed: int = 0) -> list[Integers]:
    """Return at most `count` parts of the indices of `labels`, each class spread evenly; none is empty."""
    random = np.random.default_rng(seed)
    # One class after the other, dealt out like cards.
    order = np.concatenate([random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    parts = [np.sort(order[start::count]) for start in range(min(count, len(order)))]
    return [part for part in parts if len(part)]


def _fit_some(x: Floats, labels: Integers, classes: int) -> Callable[[Floats], Floats]:
    """Fit where classes may be missing: those get a logit of -inf."""
    present, numbers = np.unique(labels, return_inverse=True)
    model = fit(x, numbers, len(present))

    def logits(others: Floats) -> Floats:
        result = np.full((len(others), classes), -np.inf)
        result[:, present] = model.logits(others)
        return result

    return logits


def _best_penalty(x: Floats, labels: Integers, classes: int, penalties: Sequence[float]) -> float:
    ordered = sorted(penalties, reverse=True)
    losses = np.zeros(len(ordered))
    for part in folds(labels, FOLDS):
        rest = np.setdiff1d(np.arange(len(x)), part)
        if len(rest) == 0 or len(np.unique(labels[rest])) < classes:
            continue
        path = _path(x[rest], labels[rest], classes, ordered)
        losses += [_cross_entropy(model.logits(x[part]), labels[part]).sum() for model in path]
    return ordered[int(np.argmin(losses))]


def _path(x: Floats, labels: Integers, classes: int, penalties: Sequence[float]) -> list[Regression]:
    """Return a regression for each penalty, the largest first: each starts from the one before."""
    mean = x.mean(axis=0)
    centred = x - mean
    scale = float(np.sqrt(np.mean(centred**2))) or 1.0
    # Fewer photos than features: nothing outside their span can help, so the weights are sought inside it.
    basis = np.eye(x.shape[1])
    if len(x) < x.shape[1]:
        basis = np.linalg.svd(centred / scale, full_matrices=False)[2]  # [rank, features]
    inside = centred / scale @ basis.T
    wanted = np.eye(classes)[labels]
    start = np.zeros((classes, inside.shape[1] + 1))
    result = []
    for l2 in sorted(penalties, reverse=True):
        start = _minimise(lambda w, l2=l2: _loss(w, inside, wanted, l2), start)  # type: ignore[misc]
        weights = start[:, :-1] @ basis / scale
        result.append(Regression(weights, start[:, -1] - weights @ mean, l2))
    return result


def _loss(w: Floats, x: Floats, wanted: Floats, l2: float) -> tuple[float, Floats]:
    """Return the loss at `w` [classes, features and bias] and its gradient."""
    logits = x @ w[:, :-1].T + w[:, -1]
    top = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - top)
    sums = powers.sum(axis=1, keepdims=True)
    value = float(np.mean(np.log(sums) + top - (logits * wanted).sum(axis=1, keepdims=True)))
    error = (powers / sums - wanted) / len(x)
    gradient = np.concatenate([error.T @ x + l2 * w[:, :-1], error.sum(axis=0)[:, None]], axis=1)
    return value + l2 / 2 * float((w[:, :-1] ** 2).sum()), gradient


def _cross_entropy(logits: Floats, labels: Integers) -> Floats:
    top = logits.max(axis=1)
    own = logits[np.arange(len(labels)), labels]
    entropies: Floats = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - own
    return entropies


def _minimise(function: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    """Return the minimum of a convex function by L-BFGS with backtracking (Nocedal and Wright, algorithm 7.4)."""
    x = start
    value, gradient = function(x)
    memory: list[tuple[Floats, Floats]] = []  # steps and changes of the gradient, oldest first
    for _ in range(_MOST_STEPS):
        if np.abs(gradient).max() < _SMALL_GRADIENT:
            break
        direction = -_times_inverse_hessian(gradient, memory)
        slope = float((direction * gradient).sum())
        length = 1.0 if memory else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        while True:
            new = x + length * direction
            new_value, new_gradient = function(new)
            if new_value <= value + 1e-4 * length * slope or length < 1e-10:
                break
            length /= 2
        step, change = new - x, new_gradient - gradient
        if float((step * change).sum()) > 1e-12:
            memory = [*memory[-_MEMORY + 1 :], (step, change)]
        if value - new_value <= 1e-10 * max(1.0, abs(value)):
            x = new if new_value <= value else x
            break
        x, value, gradient = new, new_value, new_gradient
    return x


def _times_inverse_hessian(gradient: Floats, memory: Sequence[tuple[Floats, Floats]]) -> Floats:
    q = gradient
    factors = []
    for step, change in reversed(memory):
        rho = 1 / float((step * change).sum())
        alpha = rho * float((step * q).sum())
        q = q - alpha * change
        factors.append((rho, alpha))
    if memory:
        step, change = memory[-1]
        q = q * (float((step * change).sum()) / float((change * change).sum()))
    for (step, change), (rho, alpha) in zip(memory, reversed(factors), strict=True):
        q = q + step * (alpha - rho * float((change * q).sum()))
    return q
