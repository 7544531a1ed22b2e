"""The answer "unknown": given where a photograph looks like none of the classes.

What the first fully connected layer takes, a vector, is compared with the centre of each class: of all cosines the
largest must reach a threshold. Centres and threshold travel under the key "unknown" of a .MODEL's header
(docs/model_format.md); readers that do not know the key answer with the most probable class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.errors import ModelFileError
from gti.files import is_number

KEY = "unknown"
LABEL = "unknown"
_DIGITS = 4  # of each number in the header
_TOLERANCE = 0.01  # of the length of a centre


@dataclass(frozen=True)
class Unknown:
    """Centres of the classes, unit vectors [classes, features], and the least cosine with one of them."""

    centres: npt.NDArray[np.float64]
    least: float
    label: str = LABEL

    def says(self, x: npt.NDArray[Any]) -> bool:
        """Return whether `x`, flattened [features], is like none of the classes."""
        return bool(cosines(x.reshape(1, -1), self.centres).max() < self.least)

    def entry(self) -> dict[str, Any]:
        """Return the value of "unknown" in a .MODEL's header."""
        rounded = [[float(f"{value:.{_DIGITS}g}") for value in centre] for centre in self.centres.tolist()]
        return {"label": self.label, "least cosine": self.least, "centres": rounded}


def cosines(vectors: npt.ArrayLike, centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosine of each vector [n, features] with each of the unit vectors `centres`; 0 for a zero vector."""
    return np.asarray(_unit(np.asarray(vectors, np.float64)) @ centres.T)


def learn(features: npt.ArrayLike, labels: npt.NDArray[np.intp], share: float) -> Unknown:
    """Return the rule that refuses `share` (0..1) of photographs like these, features [n, features], classes 0, 1, ...

    Each class has two at least: a photograph is compared with the centre of the others of its class.
    """
    vectors = _unit(np.asarray(features, np.float64))
    sums = np.stack([vectors[labels == label].sum(axis=0) for label in range(int(labels.max()) + 1)])
    centres = _unit(sums)
    near = cosines(vectors, centres)
    without_itself = _unit(sums[labels] - vectors)
    near[np.arange(len(vectors)), labels] = (vectors * without_itself).sum(axis=1)
    return Unknown(centres, round(float(np.quantile(near.max(axis=1), share)), _DIGITS))


def from_header(header: Mapping[str, Any], name: str) -> Unknown | None:
    """Return the rule of a .MODEL's header, None where there is none; `name`: of the file.

    Raises ModelFileError for one that is damaged.
    """
    value = header.get(KEY)
    if value is None:
        return None
    where = f'{name}, "{KEY}"'
    if not isinstance(value, dict):
        raise ModelFileError(where, "is no JSON object")
    label: Any
    least: Any
    rows: Any
    label, least, rows = value.get("label"), value.get("least cosine"), value.get("centres")
    if not isinstance(label, str) or not label:
        raise ModelFileError(where, '"label" is wrong', expected="a text", received=label)
    if not _number(least) or abs(least) > 1:
        raise ModelFileError(where, '"least cosine" is wrong', expected="-1..1", received=least)
    good = isinstance(rows, list) and rows and all(isinstance(row, list) and row for row in rows)
    if not good or len({len(row) for row in rows}) != 1 or not all(_number(value) for row in rows for value in row):
        raise ModelFileError(where, '"centres" are wrong', expected="lists of numbers, equally long")
    centres = np.array(rows, np.float64)
    lengths = np.linalg.norm(np.clip(centres, -2, 2), axis=1)
    if not np.all(np.abs(lengths - 1) < _TOLERANCE):
        raise ModelFileError(where, '"centres" are wrong', expected="unit vectors")
    return Unknown(_unit(centres), float(least), label)


def _number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))
