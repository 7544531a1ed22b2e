"""One sublayer: from the codes that the chip sees and the sums that the float network has, to integers.

Match: real filters that give the float network's sums from the chip's inputs, in the least-squares sense. Compensate:
integers near them, the error of each tap made up for by the others (gti.ptq.rounding). Correct: biases that leave the
least error behind the ReLU. All of it asks for nothing where the ReLU, or the cap, hides a difference anyway.
docs/ptq.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from gti import quantize
from gti.chip import spec
from gti.chip.network.types import Convolution, ConvolutionWeights
from gti.ptq import rounding
from gti.ptq.rounding import TAPS
from gti.stage import MSE

# Positions that are multiplied together; sums of so many products of two codes are exact in float32.
CHUNK = 2048
# Rounds of: which outputs are hidden with these filters, then the best filters for the others.
MATCHES = 2
DESCENTS = 2
# The first layers have few columns, and everything behind suffers from their errors: they are searched longer.
WALKS_TIMES_COLUMNS = 4_000
MOST_WALKS = 64
CORRECTIONS = 4
# A 1-bit kernel's alpha is kept at this many units at least, in the median, whatever range biases then lose.
FEWEST_UNITS = 2.0


@dataclass(frozen=True)
class Samples:
    """A sublayer at some positions of some images.

    `patches`: uint8 [positions, columns], input codes by channel, then tap; `targets`: float32 [positions, out], the
    float network's sums there, before the ReLU, in chip units: the output's cap lies at `top`.
    """

    patches: np.ndarray
    targets: np.ndarray
    top: float  # 31, or 31.96875 with ten bits
    code: float  # difference of two neighbouring codes: 1, or 1/32 with ten bits

    def sums(self, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
        """Return the sums [positions, out], float32, of weights [out, columns] and biases [out]."""
        result = np.empty((len(self.patches), len(weights)), np.float32)
        columns = np.ascontiguousarray(weights.T, np.float32)
        for i in range(0, len(result), CHUNK):
            np.matmul(self.patches[i : i + CHUNK].astype(np.float32), columns, out=result[i : i + CHUNK])
        result += biases.astype(np.float32)
        return result

    def wanted(self, sums: np.ndarray) -> np.ndarray:
        """Return targets [positions, out] that agree with `sums` where the ReLU or the cap hides the difference."""
        shown = np.where(self.targets > 0, self.targets, np.minimum(sums, 0))
        return np.where(self.targets >= self.top, np.maximum(sums, self.top), shown)

    def codes(self, sums: np.ndarray) -> np.ndarray:
        """Return what the chip makes of sums, in chip units."""
        return np.clip(np.floor(sums / self.code + 0.5) * self.code, 0, self.top)


@dataclass(frozen=True)
class Agreement:
    """How a layer's outputs agree with the float network's: cosine, and signal to noise in decibels."""

    cosine: float
    decibels: float

    @classmethod
    def of(cls, found: np.ndarray, expected: np.ndarray) -> Agreement:
        """Compare two arrays of the same shape."""
        a, b = np.ravel(found).astype(np.float64), np.ravel(expected).astype(np.float64)
        signal, noise = float(b @ b), float(np.sum((a - b) ** 2))
        norm = np.sqrt(float(a @ a) * signal)
        cosine = float(a @ b) / norm if norm else float(signal == float(a @ a))
        return cls(cosine, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-12 * max(signal, 1e-30)))))


class Moments:
    """Second moments of a sublayer's inputs, about their mean or, with `centred` off, about 0."""

    def __init__(self, patches: np.ndarray) -> None:
        count, columns = patches.shape
        self.mean = patches.mean(axis=0, dtype=np.float64)
        self.matrix = np.zeros((columns, columns))
        for i in range(0, count, CHUNK):
            part = patches[i : i + CHUNK].astype(np.float32)
            self.matrix += part.T @ part
        self.matrix /= count
        self.matrix -= np.outer(self.mean, self.mean)
        self.level = float(np.mean(np.diag(self.matrix))) or 1.0

    def damped(self, damping: float, centred: bool = True) -> Factors:
        """Return the moments with `damping` times their mean diagonal added to the diagonal, and their factors."""
        matrix = self.matrix if centred else self.matrix + np.outer(self.mean, self.mean)
        own = matrix.copy()
        own[np.diag_indices_from(own)] += damping * self.level
        mean = self.mean if centred else np.zeros_like(self.mean)
        return Factors(own, rounding.upper_factor(own), matrix, mean)


@dataclass(frozen=True)
class Factors:
    """Damped moments H, the upper U with U'U = H^-1, moments without damping, and the mean taken off the inputs."""

    damped: np.ndarray
    upper: np.ndarray
    plain: np.ndarray
    mean: np.ndarray

    def covariance(self, patches: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the moments [out, columns] of targets [positions, out] with the inputs."""
        total = np.zeros((targets.shape[1], patches.shape[1]))
        for i in range(0, len(patches), CHUNK):
            total += targets[i : i + CHUNK].T @ patches[i : i + CHUNK].astype(np.float32)
        total /= len(patches)
        return total - np.outer(targets.mean(axis=0, dtype=np.float64), self.mean)

    def nearest(self, patches: np.ndarray, targets: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """Return the weights [out, columns] of least error plus damping times their squared distance from `prior`."""
        miss = self.covariance(patches, targets) - prior @ self.plain
        return prior + (miss @ self.upper.T) @ self.upper


@dataclass
class Fitted:
    """A sublayer in integers: real weight = level * step * 2**-shift, real bias = bias * 2**-shift."""

    levels: np.ndarray  # int8 [out, columns]; `plain` has whole weights here and steps of 1
    steps: np.ndarray  # int32 [out, kernels]
    biases: np.ndarray  # int64 [out]
    shift: int
    damping: float
    agreements: dict[str, Agreement] = field(default_factory=dict)  # after each step, on pictures held back

    @property
    def integers(self) -> np.ndarray:
        """Integer weights [out, columns]."""
        rows, columns = self.levels.shape
        return (self.levels.reshape(rows, -1, TAPS) * self.steps[:, :, None]).reshape(rows, columns)

    @property
    def weights(self) -> np.ndarray:
        """Real weights [out, columns]."""
        return self.integers * 2.0**-self.shift

    @property
    def real_biases(self) -> np.ndarray:
        """Real biases [out]."""
        return self.biases * 2.0**-self.shift

    def on_chip(self, coef_bits: int) -> ConvolutionWeights:
        """Return what conversion writes for these real values: the same ones, at the largest shift that holds them."""
        filters, biases, shift = _as_converted(self.weights, self.real_biases, coef_bits)
        return ConvolutionWeights(filters.astype(np.int16), biases.astype(np.int32), shift)


def best_shift(weights: np.ndarray, biases: np.ndarray, coef_bits: int) -> int:
    """Return the shift 0..12 for real weights [out, columns] and biases [out].

    The largest that has room for every kernel and bias; but where large biases of a 1-bit layer would leave most alphas
    below `FEWEST_UNITS`, biases are cut off instead.
    """
    magnitude = np.abs(weights)
    if coef_bits == 1:
        scales = magnitude.reshape(len(weights), -1, TAPS).mean(axis=2)
        largest, room = float(scales.max()), spec.MAX_ALPHA_1BIT
        alive = scales[scales > 0]
        least = np.log2(FEWEST_UNITS / np.median(alive)) if alive.size else 0.0
    else:
        largest, room, least = float(magnitude.max()), 4 * spec.MAX_STEP_3BIT, 0.0
    by_weights = _largest_shift(largest, room)
    by_biases = _largest_shift(float(np.abs(biases).max()), quantize.bias_limit(coef_bits))
    return int(min(by_weights, max(by_biases, np.ceil(least))))


def _largest_shift(largest: float, room: int) -> int:
    return int(np.clip(np.floor(np.log2(room / largest)), 0, spec.MAX_SHIFT_TRAINED)) if largest > 0 else 12


def plain(prior: tuple[np.ndarray, np.ndarray], convolution: Convolution) -> Fitted:
    """Return real weights [out, columns] and biases [out] rounded as they are, each kernel with its best step."""
    weights, biases = prior
    filters, bias_integers, shift = _as_converted(weights, biases, convolution.coef_bits)
    steps = np.ones((len(weights), weights.shape[1] // TAPS), np.int32)
    return Fitted(filters.reshape(weights.shape).astype(np.int16), steps, bias_integers, shift, 0.0)


def _as_converted(weights: np.ndarray, biases: np.ndarray, coef_bits: int) -> tuple[np.ndarray, np.ndarray, int]:
    # Integers [out, in, 3, 3] and [out] of real weights [out, columns] and biases, as conversion makes them.
    filters = weights.reshape(len(weights), -1, 3, 3).transpose(2, 3, 1, 0).astype(np.float32)
    found, integers, shift = quantize.integer_filters(filters, biases.astype(np.float32), coef_bits, MSE)
    in_chip_order = np.ascontiguousarray(found.numpy().transpose(3, 2, 0, 1))
    return in_chip_order, integers.numpy().astype(np.int64), int(shift)


def fit(
    samples: Samples,
    held: Samples,
    moments: Moments,
    *,
    prior: tuple[np.ndarray, np.ndarray],
    convolution: Convolution,
    damping: float,
    agree: Callable[[Samples, np.ndarray, np.ndarray], Agreement],
    pool: ThreadPoolExecutor | None = None,
) -> Fitted:
    """Return the integers of a sublayer whose outputs from `samples.patches` are near `samples.targets`.

    `prior`: the float network's weights [out, columns] and biases [out] in chip units, which damping holds on to.
    `agree(held, weights, biases)` measures real weights after each step.
    """
    weights, biases = prior
    bits = convolution.coef_bits
    patches = samples.patches
    steps: dict[str, Agreement] = {}
    free = moments.damped(damping)
    factors = [(free, np.ones(len(weights), bool))]

    def solved(wanted: np.ndarray) -> np.ndarray:
        result = np.empty_like(weights)
        for own, rows in factors:
            offset = 0 if own is free else fixed[rows]
            result[rows] = own.nearest(patches, (wanted[:, rows] - offset).astype(np.float32), prior[0][rows])
        return result

    fixed = np.zeros(len(weights))

    def offsets(wanted: np.ndarray, own: np.ndarray) -> np.ndarray:
        best = wanted.mean(axis=0, dtype=np.float64) - own @ moments.mean
        for kind, rows in factors:
            if kind is not free:
                best[rows] = fixed[rows]
        return best

    wanted = samples.targets
    for _ in range(MATCHES + 1):
        weights = solved(wanted)
        biases = offsets(wanted, weights)
        wanted = samples.wanted(samples.sums(weights, biases))
    steps["matched"] = agree(held, weights, biases)

    shift = best_shift(weights, biases, bits)
    limit = quantize.bias_limit(bits) * 2.0**-shift
    tight = np.abs(biases) > limit
    if tight.any():
        # These rows give the sums without the help of a bias beyond the limit: means and all.
        fixed = np.clip(biases, -limit, limit)
        factors = [(free, ~tight), (moments.damped(damping, centred=False), tight)]
        weights = solved(wanted)
    walks = int(np.clip(WALKS_TIMES_COLUMNS // weights.shape[1], 1, MOST_WALKS))
    levels = np.empty(weights.shape, np.int8)
    scales = np.empty((len(weights), weights.shape[1] // TAPS), np.int32)
    for own, rows in factors:
        levels[rows], scales[rows] = rounding.searched(
            weights[rows], own.damped, own.upper, shift, bits, walks=walks, pool=pool
        )
    result = Fitted(levels, scales, np.zeros(len(weights), np.int64), shift, damping, steps)
    biases = offsets(wanted, result.weights)
    steps["compensated"] = agree(held, result.weights, biases)
    for _ in range(DESCENTS):
        wanted = samples.wanted(samples.sums(result.weights, biases))
        target = solved(wanted)
        for own, rows in factors:
            if rows.any():
                some_levels, some_scales = levels[rows], scales[rows]
                rounding.settled(target[rows], own.damped, some_levels, some_scales, shift, bits, pool)
                levels[rows], scales[rows] = some_levels, some_scales
        biases = offsets(wanted, result.weights)
    steps["refined"] = agree(held, result.weights, biases)
    result.biases = corrected(samples, result.weights, biases, shift, bits)
    steps["corrected"] = agree(held, result.weights, result.real_biases)
    return result


def corrected(samples: Samples, weights: np.ndarray, biases: np.ndarray, shift: int, coef_bits: int) -> np.ndarray:
    """Return integer biases that leave the least squared error of the codes behind the ReLU."""
    sums = samples.sums(weights, np.zeros(len(weights)))
    expected = np.clip(samples.targets, 0, None)
    limit = quantize.bias_limit(coef_bits)

    def error(real: np.ndarray) -> np.ndarray:
        miss = samples.codes(sums + real.astype(np.float32)) - expected
        return np.asarray(np.mean(miss**2, axis=0, dtype=np.float64))

    def grid(real: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(real * 2.0**shift), -limit, limit) * 2.0**-shift

    best = grid(biases)
    least = error(best)
    width = 1.0
    for _ in range(CORRECTIONS):
        for direction in (-1, 1):
            trial = grid(best + direction * width * samples.code)
            found = error(trial)
            better = found < least
            best, least = np.where(better, trial, best), np.where(better, found, least)
        width /= 2
    return np.rint(best * 2.0**shift).astype(np.int64)
