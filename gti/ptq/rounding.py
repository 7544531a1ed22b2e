"""Rows of real filters -> rows that the chip can hold, with the errors of one tap compensated by the others.

One output channel is one row of weights w, columns ordered by input channel, then tap. Nine columns are a kernel, with
one integer step (3 bits: 0, +-1, +-2, +-4 times a step of 0..511) or one integer alpha (1 bit: +-0..2047). The error of
a row is the quadratic form (w - target)' H (w - target), H the second moments of the layer's inputs: what the layer's
outputs lose. `compensated` walks over the columns once (Frantar et al. 2022, "GPTQ"); `descended` improves kernel after
kernel.
"""

# Compiled code takes positional arguments only.
# ruff: noqa: PLR0917

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.linalg import cholesky, lapack

from gti.chip import spec
from gti.chip.emulator.emulator import usable_cores
from gti.errors import UsageError

try:
    from numba import config, njit
except ValueError as problem:  # of a variable NUMBA_... of the environment
    raise UsageError("numba", f"cannot be imported ({problem})", fix="unset that variable") from None
if getattr(config, "DISABLE_JIT", 0):
    raise UsageError("NUMBA_DISABLE_JIT", "is set, and without compiled code rounding takes days", fix="unset it")

TAPS = 9
# Kernels whose errors are spread over the columns behind them together, by one matrix product.
KERNELS_TOGETHER = 16
# Passes of a descent over all kernels, at most; fewer where a smaller share of them moves.
PASSES = 10
STILL = 0.002
# Integer steps that are tried for a kernel, around the one of least squared error, as factors.
FACTORS = (1.0, 0.8, 0.87, 0.94, 1.06, 1.13, 1.2, 1.3)
# Levels of a tap by coef_bits, in units of the kernel's step.
LEVELS = {1: (-1.0, 1.0), 3: (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)}
LARGEST = {1: spec.MAX_ALPHA_1BIT, 3: spec.MAX_STEP_3BIT}


def _kernel(function: Callable) -> Callable:
    try:
        return njit(nogil=True, cache=True, fastmath=False)(function)
    except RuntimeError:  # no folder for compiled code can be written
        return njit(nogil=True)(function)


@_kernel
def _level(ratio, bits):
    # Nearest level of weight / step.
    if bits == 1:
        return 1.0 if ratio >= 0 else -1.0
    size = abs(ratio)
    if size < 0.5:
        return 0.0
    level = 1.0 if size < 1.5 else (2.0 if size < 3.0 else 4.0)
    return level if ratio > 0 else -level


@_kernel
def _starting_step(taps, bits):
    # The step of least squared error in real units; 3 bits: the best of four assignments (gti.quantize).
    if bits == 1:
        total = 0.0
        for t in range(9):
            total += abs(taps[t])
        return total / 9
    largest = 0.0
    for t in range(9):
        largest = max(largest, abs(taps[t]))
    best = 0.0
    found = 0.0
    for start in (0.2, 0.225, 0.25, 0.28):
        along = 0.0
        norm = 0.0
        step = largest * start
        if step == 0:
            return 0.0
        for t in range(9):
            c = abs(_level(taps[t] / step, 3))
            along += abs(taps[t]) * c
            norm += c * c
        if along * along / norm > best:
            best = along * along / norm
            found = along / norm
    return found


@_kernel
def _walk_rows(weights, upper, unit, bits, largest, factors, first, last, quantized, steps, errors, begin, end):
    """Round kernels begin..end-1 of rows first..last-1; errors of their columns go to `errors` [row, column]."""
    taps = np.empty(9)
    trial = np.empty(9)
    levels = np.empty(9)
    scaled = np.empty(9)
    best_levels = np.empty(9)
    best_scaled = np.empty(9)
    origin = 9 * begin
    stop = 9 * end
    for row in range(first, last):
        for kernel in range(begin, end):
            column = 9 * kernel
            for t in range(9):
                taps[t] = weights[row, column + t]
            start = _starting_step(taps, bits) / unit
            best_loss = np.inf
            best_step = 0.0
            tried = -1.0
            for index in range(len(factors)):
                step = np.floor(start * factors[index] + 0.5)
                if start > 0:
                    step = max(step, 1.0 if bits == 3 else 0.0)
                step = min(step, largest)
                if step == tried:
                    continue
                tried = step
                real = step * unit
                loss = 0.0
                for t in range(9):
                    trial[t] = taps[t]
                for t in range(9):
                    level = _level(trial[t] / real, bits) if step > 0 else (1.0 if bits == 1 else 0.0)
                    diagonal = upper[column + t, column + t]
                    error = (trial[t] - level * real) / diagonal
                    loss += error * error
                    levels[t] = level
                    scaled[t] = error
                    for u in range(t + 1, 9):
                        trial[u] -= error * upper[column + t, column + u]
                if loss < best_loss:
                    best_loss = loss
                    best_step = step
                    for t in range(9):
                        best_levels[t] = levels[t]
                        best_scaled[t] = scaled[t]
            steps[row, kernel] = best_step
            for t in range(9):
                quantized[row, column + t] = best_levels[t]
                error = best_scaled[t]
                errors[row, column + t - origin] = error
                for j in range(column + 9, stop):
                    weights[row, j] -= error * upper[column + t, j]


def shared(rows: int, work: Callable[[int, int], object], pool: ThreadPoolExecutor | None) -> None:
    """Call `work(first, last)` for parts of `rows`, on the threads of `pool`."""
    parts = 1 if pool is None else min(rows, 4 * usable_cores())
    edges = [rows * i // parts for i in range(parts + 1)]
    if pool is None:
        work(0, rows)
        return
    for _ in pool.map(work, edges[:-1], edges[1:]):
        pass


def compensated(
    target: np.ndarray, upper: np.ndarray, shift: int, coef_bits: int, pool: ThreadPoolExecutor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (levels, steps) of rows near `target`, the errors of each column spread over the columns behind it.

    `target`: float64 [out, columns], real weights in chip units; `upper`: float64 [columns, columns], the upper factor
    U with U'U = H^-1; integer step = real step * 2**shift. Results: levels int8 [out, columns], steps int32
    [out, kernels].
    """
    weights = target.copy()
    rows, columns = weights.shape
    kernels = columns // TAPS
    levels = np.zeros((rows, columns))
    steps = np.zeros((rows, kernels))
    unit = 2.0**-shift
    factors = np.array(FACTORS)
    for begin in range(0, kernels, KERNELS_TOGETHER):
        end = min(begin + KERNELS_TOGETHER, kernels)
        errors = np.zeros((rows, TAPS * (end - begin)))

        def walk(first: int, last: int, begin: int = begin, end: int = end, errors: np.ndarray = errors) -> None:
            _walk_rows(
                weights, upper, unit, coef_bits, float(LARGEST[coef_bits]), factors,
                first, last, levels, steps, errors, begin, end,
            )  # fmt: skip

        shared(rows, walk, pool)
        weights[:, TAPS * end :] -= errors @ upper[TAPS * begin : TAPS * end, TAPS * end :]
    return levels.astype(np.int8), steps.astype(np.int32)


def upper_factor(moments: np.ndarray) -> np.ndarray:
    """Return the upper U with U'U = H^-1 of the moments H [columns, columns], which are positive definite."""
    # With the columns turned round, H = L L'; turned back L is an upper factor R, H = R R', and U = R^-1.
    lower = cholesky(moments[::-1, ::-1], lower=True, check_finite=False)
    upper, failed = lapack.dtrtri(np.asfortranarray(lower[::-1, ::-1]), lower=0)
    assert not failed
    return np.ascontiguousarray(upper)


def settled(
    target: np.ndarray, moments: np.ndarray, levels: np.ndarray, steps: np.ndarray, shift: int, coef_bits: int,
    pool: ThreadPoolExecutor | None = None,
) -> None:  # fmt: skip
    """Improve `levels` and `steps` in place towards `target` until hardly a kernel moves, `PASSES` times at most."""
    gradient = (levels * np.repeat(steps, TAPS, axis=1) * 2.0**-shift - target) @ moments
    for _ in range(PASSES):
        if descended(moments, gradient, levels, steps, shift, coef_bits, pool) < STILL * steps.size:
            break


def searched(
    target: np.ndarray,
    moments: np.ndarray,
    upper: np.ndarray,
    shift: int,
    coef_bits: int,
    *,
    walks: int,
    seed: int = 0,
    pool: ThreadPoolExecutor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (levels, steps) as `compensated` does: each row the best of several walks in different orders.

    Every walk ends with a descent. The first one takes the columns in their own order.
    """
    random = np.random.default_rng(seed)
    rows, columns = target.shape
    best: tuple[np.ndarray, np.ndarray] | None = None
    least = np.full(rows, np.inf)
    for walk in range(walks):
        kernels = random.permutation(columns // TAPS) if walk else np.arange(columns // TAPS)
        taps = random.permutation(TAPS) if walk else np.arange(TAPS)
        order = (TAPS * kernels[:, None] + taps).ravel()
        own = upper_factor(moments[np.ix_(order, order)]) if walk else upper
        turned, turned_steps = compensated(target[:, order], own, shift, coef_bits, pool)
        levels, steps = np.empty_like(turned), np.empty_like(turned_steps)
        levels[:, order], steps[:, kernels] = turned, turned_steps
        settled(target, moments, levels, steps, shift, coef_bits, pool)
        miss = levels * np.repeat(steps, TAPS, axis=1) * 2.0**-shift - target
        loss = np.einsum("rc,rc->r", miss @ moments, miss)
        better = loss < least
        least = np.minimum(loss, least)
        if best is None:
            best = levels, steps
        else:
            best[0][better], best[1][better] = levels[better], steps[better]
    assert best is not None
    return best


@_kernel
def _descend_rows(moments, gradient, levels, steps, unit, largest, allowed, first, last):
    """Improve kernels of rows first..last-1 one after the other; returns how many moved.

    gradient [row, column] = H (w - target) and is kept up to date.
    """
    columns = moments.shape[0]
    moved = 0
    without = np.empty(9)  # gradient with this kernel at 0
    product = np.empty(9)  # H c of this kernel's levels c
    for kernel in range(columns // 9):
        column = 9 * kernel
        for row in range(first, last):
            step = steps[row, kernel] * unit
            along = 0.0
            norm = 0.0
            for u in range(9):
                total = 0.0
                for v in range(9):
                    total += moments[column + u, column + v] * levels[row, column + v]
                product[u] = total
                without[u] = gradient[row, column + u] - step * total
                along -= without[u] * levels[row, column + u]
                norm += total * levels[row, column + u]
            # The error as a function of this kernel: -2 s along(c) + s s norm(c).
            least = step * (step * norm - 2 * along)
            least -= 1e-9 * abs(least)
            best_tap = -2
            best_level = 0.0
            best_step = 0.0
            for t in range(-1, 9):  # -1: the levels as they are
                for index in range(len(allowed)):
                    if t < 0:
                        if index > 0:
                            break
                        level = 0.0
                        new_along = along
                        new_norm = norm
                    else:
                        level = allowed[index]
                        d = level - levels[row, column + t]
                        if d == 0:
                            continue
                        new_along = along - without[t] * d
                        new_norm = norm + d * (2 * product[t] + d * moments[column + t, column + t])
                    if new_norm <= 0:
                        continue
                    new = np.floor(new_along / new_norm / unit + 0.5)
                    new = min(max(new, 0.0), largest) * unit
                    error = new * (new * new_norm - 2 * new_along)
                    if error < least:
                        least = error
                        best_tap = t
                        best_level = level
                        best_step = new
            if best_tap > -2:
                moved += 1
                for u in range(9):
                    old = levels[row, column + u]
                    level = best_level if u == best_tap else old
                    d = best_step * level - step * old
                    levels[row, column + u] = level
                    if d != 0:
                        for j in range(columns):
                            gradient[row, j] += d * moments[column + u, j]
                steps[row, kernel] = np.floor(best_step / unit + 0.5)
    return moved


def descended(
    moments: np.ndarray, gradient: np.ndarray, levels: np.ndarray, steps: np.ndarray, shift: int, coef_bits: int,
    pool: ThreadPoolExecutor | None = None,
) -> int:  # fmt: skip
    """Improve `levels` and `steps` in place, one pass over all kernels; return how many changed.

    `gradient`: float64 [out, columns], H (w - target), updated in place.
    """
    counts = []
    real_levels, real_steps = levels.astype(np.float64), steps.astype(np.float64)

    def work(first: int, last: int) -> None:
        counts.append(
            _descend_rows(
                moments, gradient, real_levels, real_steps, 2.0**-shift, float(LARGEST[coef_bits]),
                np.array(LEVELS[coef_bits]), first, last,
            )
        )  # fmt: skip

    shared(len(levels), work, pool)
    levels[:], steps[:] = real_levels, real_steps
    return sum(counts)
