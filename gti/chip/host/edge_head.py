"""Edges: the host's part of a network for edge detection (HED: Xie and Tu, 2015), in NumPy.

The chip delivers the last map of every block. A 1x1 convolution makes one plane of each, the planes are resized to the
size of the first and added up (resizing and sums commute, so the weights hold the fusing layer and the scales of the
codes already), and a sigmoid makes probabilities. All numbers travel under the key "edges" of a .MODEL's header
(docs/model_format.md); readers that do not know the key pass it through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.host.resizing import resize_matrix
from gti.errors import ModelFileError
from gti.files import is_number

KEY = "edges"
_DIGITS = 7  # of each number in the header
_STEEPEST = 60.0  # beyond this, the sigmoid is 0 or 1 in float32


@dataclass(frozen=True)
class EdgeHead:
    """Weights of each block for codes, float64 [channels], in the order in which the chip delivers them, and a bias."""

    weights: tuple[npt.NDArray[np.float64], ...]
    bias: float

    def logits(self, maps: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the sum of the blocks' planes, float32 [H,W] of the first map; `maps`: codes [C,H,W] of each block."""
        total: npt.NDArray[np.float32] | None = None
        for weights, codes in zip(self.weights, maps, strict=True):
            # In one layout, so that sums have one order wherever the codes come from.
            plane = np.tensordot(weights.astype(np.float32), np.ascontiguousarray(codes, np.float32), 1)
            total = plane + np.float32(self.bias) if total is None else total + resize(plane, total.shape)
        assert total is not None
        return total

    def entry(self) -> dict[str, Any]:
        """Return the value of "edges" in a .MODEL's header."""
        blocks = [[float(f"{value:.{_DIGITS}g}") for value in weights.tolist()] for weights in self.weights]
        return {"weights": blocks, "bias": float(f"{self.bias:.{_DIGITS}g}")}


def probabilities(logits: npt.NDArray[Any], size: tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
    """Return the probability of an edge, float32 [H,W] 0..1, from logits [h,w] resized to `size` (H, W)."""
    values = logits if size is None else resize(logits, size)
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -_STEEPEST, _STEEPEST))), np.float32)


def picture(chance: npt.NDArray[Any], *, invert: bool = False) -> npt.NDArray[np.uint8]:
    """Return probabilities [H,W] as grey values, uint8: 255 = edge, or 0 = edge with `invert`."""
    grey: npt.NDArray[np.uint8] = np.floor(chance * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return np.bitwise_not(grey) if invert else grey


def resize(plane: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return `plane` [h,w] as float32 of `size` (H, W): bilinear, pixels as squares, averaging where it shrinks."""
    height, width = size
    if plane.shape == (height, width):
        return plane.astype(np.float32, copy=False)
    rows, columns = resize_matrix(plane.shape[0], height), resize_matrix(plane.shape[1], width)
    return rows @ plane.astype(np.float32, copy=False) @ columns.T


def from_header(header: Mapping[str, Any], channels: Sequence[int], name: str) -> EdgeHead:
    """Return the head of a .MODEL's header for maps of so many `channels`; `name`: of the file.

    Raises ModelFileError where there is none, and for one that is damaged or of another network.
    """
    value = header.get(KEY)
    if value is None:
        raise ModelFileError(
            name,
            "holds no network for edges",
            expected=f'"{KEY}" in its header',
            fix="take a .MODEL that was made for edges (scripts/make_edges.py in the project's sources)",
        )
    where = f'{name}, "{KEY}"'
    weights = value.get("weights") if isinstance(value, dict) else None
    bias = value.get("bias") if isinstance(value, dict) else None
    rows = weights if isinstance(weights, list) else []
    lengths = [len(row) if isinstance(row, list) else 0 for row in rows]
    if lengths != list(channels):
        raise ModelFileError(
            where, "does not fit the network", expected=f"weights for {list(channels)} maps", received=lengths
        )
    if not all(_number(number) for row in [*rows, [bias]] for number in row):
        raise ModelFileError(where, "holds something else than numbers", expected="numbers below 1e30")
    return EdgeHead(tuple(np.array(row, np.float64) for row in rows), float(bias))  # type: ignore[arg-type]


def _number(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e30  # neither infinite nor none
