"""Where two stages of a network differ: statistics of every sublayer, in codes, and the first one that diverges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gti.chip import spec
from gti.chip.network.types import Convolution
from gti.compare.sublayer_maps import Maps, Source
from gti.errors import DataError


@dataclass(frozen=True)
class Limits:
    """What two stages may differ by in each sublayer; None allows anything. Differences are in codes."""

    largest: float | None = None
    mean: float | None = None
    cosine: float | None = None  # at least

    def exceeded(self, layer: LayerDifference) -> list[str]:
        """Return a few words on each limit that `layer` exceeds."""
        words = []
        if self.largest is not None and layer.largest > self.largest:
            words.append(f"max {layer.largest:g} above {self.largest:g}")
        if self.mean is not None and layer.mean > self.mean:
            words.append(f"mean {layer.mean:.4g} above {self.mean:g}")
        if self.cosine is not None and layer.cosine < self.cosine:
            words.append(f"cosine {layer.cosine:.4f} below {self.cosine:g}")
        return words


EQUAL = Limits(largest=0)


class Place(NamedTuple):
    """One code: where it is, what it should be and what it is."""

    image: int  # number in the data set
    channel: int
    row: int
    column: int
    expected: float
    received: float

    def __str__(self) -> str:
        return (
            f"image {self.image}, channel {self.channel}, row {self.row}, column {self.column}: expected "
            f"{self.expected:g}, received {self.received:g}"
        )


@dataclass
class LayerDifference:
    """Two stages' codes of one sublayer, added up over images; shares speak of the received ones."""

    convolution: Convolution
    first_counts: bool  # remember the first code that differs, else the one that differs most
    values: int = 0
    different: int = 0
    largest: float = 0.0
    place: Place | None = None
    _sum: float = 0.0
    _dot: float = 0.0
    _squares: tuple[float, float] = (0.0, 0.0)
    _saturated: int = 0
    _zeros: int = 0

    @property
    def mean(self) -> float:
        """Mean difference in codes."""
        return self._sum / self.values if self.values else 0.0

    @property
    def cosine(self) -> float:
        """Cosine between all expected and all received codes; 1 where both are 0 throughout, 0 where one is."""
        ours, theirs = self._squares
        if not ours or not theirs:
            return float(ours == theirs)
        return min(1.0, self._dot / math.sqrt(ours * theirs))

    @property
    def saturated(self) -> float:
        """Share of received codes at the cap."""
        return self._saturated / self.values if self.values else 0.0

    @property
    def zeros(self) -> float:
        """Share of received codes that are 0."""
        return self._zeros / self.values if self.values else 0.0

    def add(self, expected: npt.NDArray[Any], received: npt.NDArray[Any], image: int) -> None:
        """Add the codes [C,H,W] of one image. Raises DataError for arrays of different shape."""
        if expected.shape != received.shape:
            raise DataError(
                self.convolution.path,
                "two stages give maps of different shape",
                expected=list(expected.shape),
                received=list(received.shape),
                fix="compare stages of the same network",
            )
        ours, theirs = (np.ascontiguousarray(values, np.float64).ravel() for values in (expected, received))
        difference = np.abs(ours - theirs)
        count = int(np.count_nonzero(difference))
        self.values += ours.size
        self.different += count
        self._sum += float(difference.sum())
        self._dot += float(ours @ theirs)
        self._squares = (self._squares[0] + float(ours @ ours), self._squares[1] + float(theirs @ theirs))
        # What these values are as codes: halves go up, as on the chip.
        self._saturated += int(np.count_nonzero(theirs >= spec.TOP_CODE[self.convolution.ten_bit] - 0.5))
        self._zeros += int(np.count_nonzero(theirs < 0.5))
        if count:
            self._remember(difference, ours, theirs, expected.shape, image)

    def _remember(
        self,
        difference: npt.NDArray[np.float64],
        ours: npt.NDArray[np.float64],
        theirs: npt.NDArray[np.float64],
        shape: tuple[int, ...],
        image: int,
    ) -> None:
        worst = int(difference.argmax())
        wanted = self.place is None if self.first_counts else difference[worst] > self.largest
        if wanted:
            index = int(np.flatnonzero(difference)[0]) if self.first_counts else worst
            channel, row, column = (int(n) for n in np.unravel_index(index, shape))
            self.place = Place(image, channel, row, column, float(ours[index]), float(theirs[index]))
        self.largest = max(self.largest, float(difference[worst]))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return {
            "layer": self.convolution.name,
            "path": self.convolution.path,
            "values": self.values,
            "different": self.different,
            "max": self.largest,
            "mean": self.mean,
            "cosine": self.cosine,
            "saturated": self.saturated,
            "zeros": self.zeros,
            "place": self.place._asdict() if self.place else None,
        }


@dataclass
class Pair:
    """Two stages, one after the other, and how their sublayers differ."""

    expected: Source
    received: Source
    limits: Limits
    layers: list[LayerDifference]

    @property
    def name(self) -> str:
        """For example `fused -> emulator`."""
        return f"{self.expected.name} -> {self.received.name}"

    @property
    def exact(self) -> bool:
        """Whether both compute in the chip's integers, so that every code must be equal."""
        return self.expected.exact and self.received.exact

    @property
    def diverging(self) -> LayerDifference | None:
        """The first sublayer that exceeds the limits."""
        return next((layer for layer in self.layers if self.limits.exceeded(layer)), None)

    def sentence(self) -> str:
        """Return what is to be said of the first diverging sublayer, or ""."""
        layer = self.diverging
        if layer is None:
            return ""
        if self.exact:
            return (
                f"{self.name}: {layer.convolution.path} is the first sublayer that differs; {layer.place}; "
                f"{layer.different:,} of its {layer.values:,} codes differ."
            )
        return (
            f"{self.name}: {layer.convolution.path} is the first sublayer beyond the limits "
            f"({', '.join(self.limits.exceeded(layer))}); the largest difference is at {layer.place}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        layer = self.diverging
        return {
            "expected": self.expected.name,
            "received": self.received.name,
            "exact": self.exact,
            "limits": asdict(self.limits),
            "first_diverging": layer.convolution.name if layer else None,
            "layers": [layer.to_json() for layer in self.layers],
        }


@dataclass
class Comparison:
    """All pairs of neighbouring stages over `images` images."""

    sources: Sequence[Source]
    pairs: list[Pair]
    images: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def exact_codes(self) -> tuple[int, int]:
        """(codes compared, codes equal) between the stages that compute in the chip's integers."""
        layers = [layer for pair in self.pairs if pair.exact for layer in pair.layers]
        compared = sum(layer.values for layer in layers)
        return compared, compared - sum(layer.different for layer in layers)

    @property
    def passed(self) -> bool:
        """Whether no sublayer exceeds its limits."""
        return all(pair.diverging is None for pair in self.pairs)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        compared, equal = self.exact_codes
        return {
            "images": self.images,
            "stages": [{"name": s.name, "origin": s.origin, "exact": s.exact} for s in self.sources],
            "pairs": [pair.to_json() for pair in self.pairs],
            "codes_compared": compared,
            "codes_equal": equal,
            "passed": self.passed,
            "findings": self.findings,
        }

    def report_pairs(self) -> list[dict[str, Any]]:
        """Return the pairs in the form that the HTML report shows (`gti.report.steps.add_comparison`)."""
        pairs = []
        for pair in self.pairs:
            layers = []
            for layer in pair.layers:
                figures = layer.to_json()
                shown = {key: figures[key] for key in ("layer", "max", "mean", "cosine", "saturated", "zeros")}
                layers.append(shown | {"differing": layer.different / layer.values if layer.values else 0.0})
            pairs.append(
                {
                    "reference": pair.expected.name,
                    "tested": pair.received.name,
                    "first": pair.sentence(),
                    "advice": " ".join(self.findings) if pair.diverging else "",
                    "layers": layers,
                }
            )
        return pairs


def compare(
    sources: Sequence[Source],
    convolutions: Sequence[Convolution],
    batches: Iterable[npt.NDArray[np.uint8]],
    *,
    limits: Limits = Limits(),
    progress: Callable[[int], object] = lambda steps: None,
) -> Comparison:
    """Compare each source with the one before it, on `batches` of pixels uint8 [N,H,W,C] in the chip's order.

    Between two exact sources every code must be equal; `limits` are for the other pairs. `progress` is told the
    number of images after each stage of each batch. Raises DataError for maps that do not belong together.
    """
    pairs = []
    for expected, received in itertools.pairwise(sources):
        exact = expected.exact and received.exact
        layers = [LayerDifference(convolution, exact) for convolution in convolutions]
        pairs.append(Pair(expected, received, EQUAL if exact else limits, layers))
    result = Comparison(sources, pairs)
    for pixels in batches:
        before: list[Maps] | None = None
        for index, source in enumerate(sources):
            maps = source.maps(pixels, result.images)
            if before is not None:
                _add(pairs[index - 1], before, maps, result.images)
            before = maps
            progress(len(pixels))
        result.images += len(pixels)
    return result


def _add(pair: Pair, expected: Sequence[Maps], received: Sequence[Maps], first: int) -> None:
    if not len(expected) == len(received) == len(pair.layers):
        raise DataError(
            pair.name,
            "the stages have different sublayers",
            expected=f"{len(pair.layers)} maps",
            received=f"{len(expected)} and {len(received)}",
        )
    for layer, ours, theirs in zip(pair.layers, expected, received, strict=True):
        for number, (one, other) in enumerate(zip(ours.nchw(), theirs.nchw(), strict=True)):
            layer.add(one, other, first + number)
