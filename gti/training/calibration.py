"""Caps of the ReLUs: the percentile of each sublayer's outputs, pooled exactly over all batches in bounded memory.

A percentile near 100 needs the largest few values alone. Each batch leaves what exceeds a threshold (that of the
batches before), and a partition of these at the end gives the exact order statistics. Where too few or too many are
left, two passes over the data count the values by their bit patterns instead: floats that are not negative are ordered
as their bits are, so 2**16 buckets of the upper half and 2**16 of the lower half find any order statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gti import caps, names
from gti.errors import DataError, QuantizationError
from gti.layers import WeightsHeld
from gti.model.base import chip_layers
from gti.progress import progress_bar
from gti.training.evaluation import float32_convolutions

# Values kept per layer; 4 bytes each. More than enough for 99.99 % of five batches of VGG16 at 224.
MAX_KEPT = 1 << 21
# Values that are looked at together, at most.
BLOCK = 64
# One image in so many of the first batch is looked at whole: the first threshold comes from them.
SAMPLED = 16
# Thresholds keep this many times the values that are needed, and a few more; the first one, which few images tell,
# is more careful.
MARGIN = 3
FIRST_MARGIN = 10
FEWEST_KEPT = 24
# A layer whose outputs are all zero has no range; any cap does, and this one keeps its neighbours' scale.
CAP_OF_DEAD_LAYER = 1.0


@dataclass(frozen=True)
class Range:
    """Outputs of one ReLU over all batches."""

    layer: str  # path, for example `major 1 / sub 1 (conv1_1)`
    variable: str  # name of its cap, for example `digits/conv1_1/relu_cap`
    largest: float
    cap: float
    count: int
    clipped: float  # share of the outputs above the cap
    percentile_is_zero: bool = False  # fewer outputs than it leaves out are above 0: the cap is the largest one

    @property
    def warning(self) -> str:
        """What is extreme about it, with the remedy, or ""."""
        remedy = "use batch norm, or train on after --fuse (user guide section 5)"
        if self.largest == 0:
            return f"{self.layer}: every output is 0, the layer is dead; train it again with a lower learning rate"
        problems = []
        if self.percentile_is_zero:
            problems.append("the percentile is 0, and the largest output is the cap instead; raise --percentile")
        if self.cap >= caps.EXTREMELY_LARGE:
            problems.append(f"outputs up to {self.cap:.3g} are extremely large; {remedy}")
        if self.cap <= caps.EXTREMELY_SMALL:
            problems.append(f"outputs up to {self.cap:.3g} are extremely small; {remedy}")
        return f"{self.layer}: {'; '.join(problems)}" if problems else ""


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

    with float32_convolutions(), WeightsHeld(layers):
        sizes = [math.prod(layer.output.shape[1:]) for layer in layers]
        measured = _by_tails(forward, sizes, batches(), percentile, progress)
        left = [i for i, found in enumerate(measured) if found is None]
        if left:
            counted = _by_counting(forward, left, batches, percentile, progress)
            measured = [found if found else counted[i] for i, found in enumerate(measured)]
    ranges = []
    for convolution, found in zip(model.network.convolutions, measured, strict=True):
        assert found is not None
        if not math.isfinite(found.largest):
            raise QuantizationError(
                convolution.path, "outputs are not finite", fix="pass a checkpoint whose training did not diverge"
            )
        # A cap is above 0 even where fewer outputs are than the percentile leaves out.
        cap = found.value if found.value > 0 else found.largest or CAP_OF_DEAD_LAYER
        clipped = found.above / found.count if cap == found.value else 0.0
        zero = found.value <= 0 < found.largest
        name = names.cap(model.net, convolution.name)
        ranges.append(Range(convolution.path, name, found.largest, cap, found.count, clipped, zero))
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
    """The largest values of one layer: all that exceed `threshold`, which only rises."""

    def __init__(self) -> None:
        self.threshold = -math.inf
        self.count = 0
        self._finite = True
        self._parts: list[np.ndarray] = []
        self._kept = 0

    def add(self, values: np.ndarray, count: int) -> None:
        """Take the values, among others, of `count` that exceed the threshold."""
        self.count += count
        values = values[~(values <= self.threshold)]
        if values.size and not math.isfinite(values.max()):
            self._finite = False
            self.give_up()
            return
        self._parts.append(values)
        self._kept += values.size
        if self._kept > MAX_KEPT:
            self.keep(MAX_KEPT // 2)

    def keep(self, number: int) -> None:
        """Raise the threshold so that the `number` largest values are left, or fewer where some are equal."""
        if self._kept > number:
            pooled = np.concatenate(self._parts)
            self.threshold = float(np.partition(pooled, -number)[-number]) if number else math.inf
            self._parts = [pooled[pooled > self.threshold]]
            self._kept = self._parts[0].size

    def give_up(self) -> None:
        """Keep nothing from now on."""
        self.threshold = math.inf
        self._parts, self._kept = [], 0

    def measured(self, percentile: float) -> _Measured | None:
        """Return the exact percentile, or None where the tail is too short for it."""
        if not self._finite:
            return _Measured(math.inf, math.inf, self.count, 0)
        lower, upper, weight = _ranks(self.count, percentile)
        values = np.concatenate([np.empty(0, np.float32), *self._parts])
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
    sizes: Sequence[int],
    dataset: tf.data.Dataset,
    percentile: float,
    progress: bool,
) -> list[_Measured | None]:
    """Return the percentile of each layer, None where the tail does not tell it; `sizes`: values of an image each."""
    share = 1 - percentile / 100
    tails = [_Tail() for _ in sizes]
    number = max(int(dataset.cardinality()), 1)

    images_spec = tf.TensorSpec([None, *dataset.element_spec[0].shape[1:]], dataset.element_spec[0].dtype)

    # Traced once, whatever the number of images; without autograph, which would take as long again.
    @tf.function(input_signature=[images_spec, tf.TensorSpec([len(sizes)], tf.float32)], autograph=False)
    def candidates(images: tf.Tensor, thresholds: tf.Tensor) -> list[tf.Tensor]:
        return [_blocks_above(y, thresholds[i], math.gcd(sizes[i], BLOCK)) for i, y in enumerate(forward(images))]

    def add(images: tf.Tensor, margin: int) -> None:
        thresholds = tf.constant([tail.threshold for tail in tails], tf.float32)
        for tail, size, blocks in zip(tails, sizes, candidates(images, thresholds), strict=True):
            tail.add(blocks.numpy().ravel(), len(images) * size)
            tail.keep(math.ceil(margin * share * tail.count) + FEWEST_KEPT)

    for images in _images(dataset, "calibrate", progress):
        if not tails[0].count:
            for tail, size in zip(tails, sizes, strict=True):
                if MARGIN * share * size * len(images) * number > MAX_KEPT:
                    tail.give_up()
            few = -(-len(images) // SAMPLED)
            add(images[:few], FIRST_MARGIN)
            images = images[few:]
        if len(images):
            add(images, MARGIN)
    if not tails[0].count:
        raise DataError("calibration", "there are no images", fix="check --train_data_dir")
    return [tail.measured(percentile) for tail in tails]


def _blocks_above(y: tf.Tensor, threshold: tf.Tensor, block: int) -> tf.Tensor:
    # Few values exceed the threshold: one look at the largest of each block rules out most of them. The whole block
    # of the others is returned, also of those with a NaN, which compares with nothing.
    blocks = tf.reshape(y, [-1, block])
    above = tf.logical_not(tf.reduce_max(blocks, axis=1) <= threshold)
    return tf.gather(blocks, tf.where(above)[:, 0])


def _by_counting(
    forward: Callable[[tf.Tensor], list[tf.Tensor]],
    layers: list[int],
    batches: Callable[[], tf.data.Dataset],
    percentile: float,
    progress: bool,
) -> dict[int, _Measured]:
    """Return the percentiles of `layers` by two counts of all values, in memory that does not grow with them."""
    half = 1 << 16

    @tf.function(reduce_retracing=True, autograph=False)
    def upper_halves(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = forward(images)
        values = [tf.abs(outputs[i]) for i in layers]  # -0.0 has a sign bit
        counts = [tf.math.bincount(_bits(y) // half, minlength=half, dtype=tf.int64) for y in values]
        return tf.stack(counts), tf.stack([tf.reduce_max(y) for y in values])

    @tf.function(reduce_retracing=True, autograph=False)
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
