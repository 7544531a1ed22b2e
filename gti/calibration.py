"""Caps of the ReLUs: the percentile of each sublayer's outputs, pooled exactly over all batches in bounded memory.

A percentile near 100 needs the largest few values alone. Each batch leaves what exceeds a threshold (estimated from
the first batch), and a partition of these at the end gives the exact order statistics. Where too few or too many are
left, two passes over the data count the values by their bit patterns instead: floats that are not negative are ordered
as their bits are, so 2**16 buckets of the upper half and 2**16 of the lower half find any order statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti.errors import DataError, QuantizationError, sentence
from gti.evaluation import float32_convolutions
from gti.model.base import cap_name, chip_layers
from gti.progress import progress_bar

# Values kept per layer; 4 bytes each. More than enough for 99.99 % of five batches of VGG16 at 224.
MAX_KEPT = 1 << 21
# Values of the first batch that the threshold is estimated from, per layer.
SAMPLE = 1 << 16
# Values that are looked at together.
BLOCK = 64
# The threshold aims at this many times the values that are needed, and at as many of the sample at least.
MARGIN = 3
FEWEST_SAMPLED = 24
# A layer whose outputs are all zero has no range; any cap does, and this one keeps its neighbours' scale.
CAP_OF_DEAD_LAYER = 1.0
# Ranges that user guide section 5.3 warns of.
EXTREMELY_LARGE = 1e3
EXTREMELY_SMALL = 1e-6


@dataclass(frozen=True)
class Range:
    """Outputs of one ReLU over all batches."""

    layer: str  # path, for example `major 1 / sub 1 (conv1_1)`
    variable: str  # name of its cap, for example `digits/conv1_1/relu_cap`
    largest: float
    cap: float
    count: int
    clipped: float  # share of the outputs above the cap

    @property
    def warning(self) -> str:
        """What is extreme about it, with the remedy, or ""."""
        remedy = "use batch norm, or train on after --fuse (user guide section 5)"
        if self.largest == 0:
            return f"{self.layer}: every output is 0, the layer is dead; train it again with a lower learning rate"
        if self.cap >= EXTREMELY_LARGE:
            return f"{self.layer}: outputs up to {self.cap:.3g} are extremely large; {remedy}"
        if self.cap <= EXTREMELY_SMALL:
            return f"{self.layer}: outputs up to {self.cap:.3g} are extremely small; {remedy}"
        return ""


def calibrate(
    model: keras.Model,
    batches: Callable[[], tf.data.Dataset],
    *,
    percentile: float = 99.99,
    progress: bool = False,
) -> list[Range]:
    """Return the range of every sublayer of `model` (activations not quantized) over all batches.

    `batches()` returns the data set of (images [B,H,W,C], labels), the same at every call. `percentile`, 0 < p <= 100,
    is of all outputs together, zeros included, interpolated linearly between order statistics as NumPy does. Raises
    DataError without images, QuantizationError where outputs are not finite.
    """
    layers = chip_layers(model)
    outputs = keras.Model(model.input, [layer.output for layer in layers])

    def forward(images: tf.Tensor) -> list[tf.Tensor]:
        return [tf.reshape(y, [-1]) for y in tf.nest.flatten(outputs(images, training=False))]

    with float32_convolutions():
        measured = _by_tails(forward, len(layers), batches(), percentile, progress)
        left = [i for i, found in enumerate(measured) if found is None]
        if left:
            counted = _by_counting(forward, left, batches, percentile, progress)
            measured = [found if found else counted[i] for i, found in enumerate(measured)]
    ranges = []
    for convolution, found in zip(model.network.convolutions, measured, strict=True):
        assert found is not None
        if not math.isfinite(found.largest):
            raise QuantizationError(
                sentence(
                    convolution.path, "outputs are not finite", fix="pass a checkpoint whose training did not diverge"
                )
            )
        # A cap is above 0 even where fewer outputs are than the percentile leaves out.
        cap = found.value if found.value > 0 else found.largest or CAP_OF_DEAD_LAYER
        clipped = found.above / found.count if cap == found.value else 0.0
        ranges.append(
            Range(convolution.path, cap_name(model.net, convolution), found.largest, cap, found.count, clipped)
        )
    return ranges


def settings(ranges: Iterable[Range], details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a settings file: `relu_caps` by variable name, and how they were found."""
    return {"relu_caps": {r.variable: r.cap for r in ranges}, **details}


def table(ranges: Iterable[Range]) -> str:
    """Return the ranges as lines for people."""
    rows = [("layer", "largest", "cap", "above the cap")]
    rows += [(r.layer, f"{r.largest:.5g}", f"{r.cap:.5g}", f"{r.clipped:.4%}") for r in ranges]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


# --- order statistics


@dataclass(frozen=True)
class _Measured:
    value: float  # the percentile
    largest: float
    count: int
    above: int  # values above the lower of its two order statistics, which are those above `value`


def _ranks(count: int, percentile: float) -> tuple[int, int, float]:
    # Position among `count` values in ascending order: lower index, upper index, weight of the upper one.
    position = percentile / 100 * (count - 1)
    lower = min(math.floor(position), count - 1)
    return lower, min(lower + 1, count - 1), position - lower


def _interpolated(low: float, high: float, weight: float) -> float:
    return low + (high - low) * weight if high > low else low


class _Tail:
    """The largest values of one layer: all that exceed `threshold`, which rises when they become too many."""

    def __init__(self) -> None:
        self.threshold = -math.inf
        self.count = 0
        self._parts: list[np.ndarray] = []
        self._kept = 0

    def add(self, values: np.ndarray, count: int) -> None:
        self.count += count
        values = values[values > self.threshold]
        self._parts.append(values)
        self._kept += values.size
        if self._kept > MAX_KEPT:
            pooled = np.concatenate(self._parts)
            self.threshold = float(np.partition(pooled, -MAX_KEPT // 2)[-MAX_KEPT // 2])
            self._parts = [pooled[pooled > self.threshold]]
            self._kept = self._parts[0].size

    def measured(self, percentile: float) -> _Measured | None:
        """Return the exact percentile, or None where the tail is too short for it."""
        lower, upper, weight = _ranks(self.count, percentile)
        values = np.concatenate(self._parts)
        needed = self.count - lower
        if values.size < needed and self.threshold > 0:
            return None
        # Below a threshold of 0 there are zeros alone.
        values = np.sort(np.partition(values, -needed)[-needed:]) if values.size >= needed else np.sort(values)

        def ordered(rank: int) -> float:
            place = values.size - (self.count - rank)
            return float(values[place]) if place >= 0 else 0.0

        low = ordered(lower)
        largest = float(values[-1]) if values.size else 0.0
        above = int(np.count_nonzero(values > low))
        return _Measured(_interpolated(low, ordered(upper), weight), largest, self.count, above)


def _by_tails(
    forward: Callable[[tf.Tensor], list[tf.Tensor]],
    layers: int,
    dataset: tf.data.Dataset,
    percentile: float,
    progress: bool,
) -> list[_Measured | None]:
    """Return the percentile of each layer, None where the tail does not tell it."""
    share = 1 - percentile / 100

    @tf.function(reduce_retracing=True)
    def exceeding(images: tf.Tensor, thresholds: tf.Tensor, estimate: tf.Tensor) -> tuple[Any, ...]:
        outputs = forward(images)
        used = [
            tf.cond(estimate, lambda y=y: _threshold(y, share), lambda i=i: thresholds[i])
            for i, y in enumerate(outputs)
        ]
        kept = [_exceeding(y, threshold) for y, threshold in zip(outputs, used, strict=True)]
        return kept, [tf.size(y, tf.int64) for y in outputs], used

    tails = [_Tail() for _ in range(layers)]
    number = max(int(dataset.cardinality()), 1)
    for images in _images(dataset, "calibrate", progress):
        is_first = tails[0].count == 0
        thresholds = tf.constant([tail.threshold for tail in tails], tf.float32)
        kept, counts, used = exceeding(images, thresholds, tf.constant(is_first))
        if is_first:
            for tail, threshold, count in zip(tails, used, counts, strict=True):
                # Too long a tail is not collected at all.
                too_long = MARGIN * share * int(count) * number > MAX_KEPT
                tail.threshold = math.inf if too_long else float(threshold)
        for tail, values, count in zip(tails, kept, counts, strict=True):
            tail.add(values.numpy(), int(count))
    if tails[0].count == 0:
        raise DataError(sentence("calibration", "there are no images", fix="check --train_data_dir"))
    return [tail.measured(percentile) for tail in tails]


def _threshold(y: tf.Tensor, share: float) -> tf.Tensor:
    # From evenly spaced values: the one that MARGIN times the needed share exceeds.
    size = tf.size(y)
    # Numbers of channels are powers of two: an odd step meets every channel equally often.
    sample = y[:: tf.bitwise.bitwise_or(size // SAMPLE, 1)]
    number = tf.size(sample)
    rank = tf.cast(tf.math.ceil(tf.cast(number, tf.float32) * (MARGIN * share)), tf.int32) + FEWEST_SAMPLED
    return tf.cond(
        rank < number, lambda: tf.math.top_k(sample, rank, sorted=True).values[-1], lambda: tf.constant(-1.0)
    )


def _exceeding(y: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    # The values above a threshold that few exceed: one look at the largest of each block rules out most of them.
    threshold = tf.ensure_shape(threshold, [])
    whole = tf.size(y) // BLOCK * BLOCK
    blocks = tf.reshape(y[:whole], [-1, BLOCK])
    candidates = tf.boolean_mask(blocks, tf.reduce_max(blocks, axis=1) > threshold)
    values = tf.concat([tf.reshape(candidates, [-1]), y[whole:]], 0)
    return tf.boolean_mask(values, values > threshold)


def _by_counting(
    forward: Callable[[tf.Tensor], list[tf.Tensor]],
    layers: list[int],
    batches: Callable[[], tf.data.Dataset],
    percentile: float,
    progress: bool,
) -> dict[int, _Measured]:
    """Return the percentiles of `layers` by two counts of all values, in memory that does not grow with them."""
    half = 1 << 16

    @tf.function(reduce_retracing=True)
    def upper_halves(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = forward(images)
        values = [tf.abs(outputs[i]) for i in layers]  # -0.0 has a sign bit
        counts = [tf.math.bincount(_bits(y) // half, minlength=half, dtype=tf.int64) for y in values]
        return tf.stack(counts), tf.stack([tf.reduce_max(y) for y in values])

    @tf.function(reduce_retracing=True)
    def lower_halves(images: tf.Tensor, uppers: tf.Tensor) -> tf.Tensor:
        outputs = forward(images)
        counts = []
        for row, i in enumerate(layers):
            bits = _bits(tf.abs(outputs[i]))
            for side in (0, 1):
                inside = tf.boolean_mask(bits, bits // half == uppers[row, side])
                counts.append(tf.math.bincount(inside % half, minlength=half, dtype=tf.int64))
        return tf.reshape(tf.stack(counts), [len(layers), 2, half])

    histogram = np.zeros((len(layers), half), np.int64)
    largest = np.zeros(len(layers), np.float32)
    for images in _images(batches(), "count, upper halves", progress):
        counts, maxima = upper_halves(images)
        histogram += counts.numpy()
        largest = np.maximum(largest, maxima.numpy())
    total = histogram.sum(axis=1)
    ranks = [_ranks(int(n), percentile) for n in total]
    below = histogram.cumsum(axis=1)  # values in this bucket or a smaller one
    uppers = np.array(
        [[np.searchsorted(b, rank, side="right") for rank in r[:2]] for b, r in zip(below, ranks, strict=True)]
    )
    detail = np.zeros((len(layers), 2, half), np.int64)
    for images in _images(batches(), "count, lower halves", progress):
        detail += lower_halves(images, tf.constant(uppers, tf.int32)).numpy()
    result = {}
    for row, layer in enumerate(layers):
        values, above = [], 0
        for side in (0, 1):
            upper = uppers[row, side]
            before = int(below[row, upper] - histogram[row, upper])
            inside = detail[row, side].cumsum()
            lower = int(np.searchsorted(inside, ranks[row][side] - before, side="right"))
            values.append(float(np.array(upper << 16 | lower, np.uint32).view(np.float32)))
            if side == 0:
                above = int(total[row] - before - inside[lower])
        value = _interpolated(values[0], values[1], ranks[row][2])
        result[layer] = _Measured(value, float(largest[row]), int(total[row]), above)
    return result


def _bits(values: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(values, tf.int32)


def _images(dataset: tf.data.Dataset, title: str, progress: bool) -> Iterator[tf.Tensor]:
    with progress_bar(int(dataset.cardinality()), title if progress else "") as bar:
        for images, _ in dataset:
            yield images
            bar.update()
