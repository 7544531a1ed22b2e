"""What is wrong with an array that should be an image: a row for each mistake, beside those that look like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gti.chip.wire.image_arrays import check_image_array, image_problem
from gti.errors import ImageError


def pixels(*shape: int, kind: Any = np.uint8) -> np.ndarray:
    return np.ones(shape, kind)


CASES = [
    # (image, channels, size, words of the problem; "" where it is good)
    (pixels(14, 14, 3), 3, 14, ""),
    (pixels(14, 14, 1), 1, 14, ""),
    (pixels(20, 30, 3), 3, None, ""),
    ([[[1, 2, 3]]], 3, None, "is no NumPy array"),
    (pixels(14, 14, 3, kind=np.float32), 3, 14, "holds floating-point numbers 0..1"),
    (pixels(14, 14, 3, kind=np.float64) * 1.5, 3, 14, "holds floating-point numbers"),
    (pixels(14, 14, 3, kind=np.float32) * -0.5, 3, 14, "holds floating-point numbers"),
    (pixels(0, 14, 3, kind=np.float32), 3, None, "holds floating-point numbers"),
    (pixels(14, 14, 3, kind=np.uint16), 3, 14, "has the wrong type"),
    (pixels(1, 14, 14, 3), 3, 14, "is a batch"),
    (pixels(14, 14), 3, 14, "is grey"),
    (pixels(14, 14, 1), 3, 14, "is grey"),
    (pixels(14), 3, 14, "is no picture"),
    (pixels(0, 5, 3), 3, None, "is no picture"),
    (pixels(3, 14, 14), 3, 14, "has its planes first"),
    (pixels(3, 20, 30), 3, None, "has its planes first"),
    (pixels(3, 20, 4), 3, None, "has four channels"),
    (pixels(14, 14, 4), 3, 14, "has four channels"),
    (pixels(15, 14, 3), 3, 14, "has the wrong size"),
    (pixels(14, 15, 3), 3, 14, "has the wrong size"),
    (pixels(14, 14, 5), 3, 14, "has another number of channels than the network"),
    (pixels(3, 14, 15), 3, 14, "has another number of channels than the network"),
]


@pytest.mark.parametrize(("image", "channels", "size", "problem"), CASES)
def test_what_is_wrong_is_named(image: Any, channels: int, size: int | None, problem: str) -> None:
    found = image_problem(image, channels, size)
    assert (found[0] if found else "") == problem
    if not problem:
        check_image_array(image, channels, size)
        return
    with pytest.raises(ImageError) as caught:
        check_image_array(image, channels, size)
    assert problem in str(caught.value)
    assert f"[{'height, width' if size is None else '14, 14'}, {channels}]" in str(caught.value)
