"""The host's part of an edge network: formulas stated anew, the form in a header, damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gti.chip.host import edge_head
from gti.chip.host.edge_head import EdgeHead
from gti.errors import ModelFileError


def bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarging as HED's: pixel centres at half numbers, neighbours beyond the frame are the frame's own."""

    def neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = (np.arange(size) + 0.5) * length / size - 0.5
        low = np.floor(place)
        return np.clip(low, 0, length - 1).astype(int), np.clip(low + 1, 0, length - 1).astype(int), place - low

    top, bottom, down = neighbours(plane.shape[0], height)
    left, right, over = neighbours(plane.shape[1], width)
    rows = plane[top] * (1 - down)[:, None] + plane[bottom] * down[:, None]
    return rows[:, left] * (1 - over) + rows[:, right] * over


RANDOM = np.random.default_rng(0)
MAPS = [RANDOM.integers(0, 32, (channels, size, size)).astype(np.uint8) for channels, size in ((3, 8), (5, 4), (2, 2))]
HEAD = EdgeHead(tuple(RANDOM.normal(0, 0.05, len(maps)) for maps in MAPS), -0.25)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (4, 3), (4, 2), (16, 4)])
def test_enlarging_is_bilinear(height: int, width: int):
    plane = RANDOM.normal(size=(4, 2)).astype(np.float32)
    np.testing.assert_allclose(edge_head.resize(plane, (height, width)), bilinear(plane, height, width), atol=1e-6)


def test_logits_are_the_sum_of_resized_planes():
    expected = np.full((8, 8), -0.25)
    for weights, maps in zip(HEAD.weights, MAPS, strict=True):
        expected += bilinear(sum(w * m.astype(float) for w, m in zip(weights, maps, strict=True)), 8, 8)
    np.testing.assert_allclose(HEAD.logits(MAPS), expected, atol=1e-5)


def test_probabilities_and_grey_values():
    """Sigmoid of 0, +-log 3 and of sums beyond floats; 255 = edge, half grey values go up."""
    logits = np.array([[0.0, np.log(3), -np.log(3), 1e6, -1e6]])
    np.testing.assert_allclose(edge_head.probabilities(logits), [[0.5, 0.75, 0.25, 1, 0]], atol=1e-6)
    assert edge_head.picture(edge_head.probabilities(logits)).tolist() == [[128, 191, 64, 255, 0]]
    assert edge_head.picture(edge_head.probabilities(logits), invert=True).tolist() == [[127, 64, 191, 0, 255]]
    assert edge_head.probabilities(logits, (3, 10)).shape == (3, 10)


def test_the_header_keeps_the_head():
    again = edge_head.from_header({"edges": HEAD.entry()}, [3, 5, 2], "a.model")
    np.testing.assert_allclose(again.logits(MAPS), HEAD.logits(MAPS), atol=1e-5)


GOOD: dict[str, Any] = {"weights": [[1.0, 2.0], [3.0]], "bias": 0.5}


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "make_edges"),
        (7, "fit"),
        (GOOD | {"weights": [[1.0], [3.0]]}, "fit"),
        (GOOD | {"weights": [[1.0, 2.0]]}, "fit"),
        (GOOD | {"weights": 3}, "fit"),
        (GOOD | {"weights": [[1.0, "2"], [3.0]]}, "numbers"),
        (GOOD | {"weights": [[1.0, 1e300], [3.0]]}, "numbers"),
        (GOOD | {"weights": [[1.0, True], [3.0]]}, "numbers"),
        ({"weights": GOOD["weights"]}, "numbers"),
    ],
)
def test_a_damaged_head_is_refused(value: Any, word: str):
    with pytest.raises(ModelFileError, match=word):
        edge_head.from_header({} if value is None else {"edges": value}, [2, 1], "a.model")
