"""What is wrong with an array that should be an image for the chip: uint8 [H,W,C], the chip's channel order."""

from __future__ import annotations

from typing import Any

import numpy as np

from gti.errors import ImageError


def image_problem(image: Any, channels: int, size: int | None = None) -> tuple[str, str] | None:
    """Return what is wrong with an image, and the fix; None for a good one.

    A good one is uint8 [size, size, channels], or of any height and width where no `size` is given.
    """
    if not isinstance(image, np.ndarray):
        return "is no NumPy array", "use gti.chip.host.image.load_image for files, numpy.asarray for lists"
    if image.dtype.kind == "f":
        scaled = image.size > 0 and float(np.nanmin(image)) >= 0.0 and float(np.nanmax(image)) <= 1.0
        fix = "pass 8-bit pixels: (image * 255).round().astype(numpy.uint8)" if scaled else "pass 8-bit pixels 0..255"
        return "holds floating-point numbers" + (" 0..1" if scaled else ""), fix
    if image.dtype != np.uint8:
        return "has the wrong type", "pass 8-bit pixels; of 16-bit ones, the high bytes"
    if image.ndim == 4:
        return "is a batch", "pass one image at a time, or use evaluate_many"
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1 != channels):
        height, width = image.shape[:2]
        return "is grey", f"repeat the plane: numpy.repeat(image.reshape({height}, {width}, 1), {channels}, axis=2)"
    if image.ndim != 3 or (size is None and not image.size):
        return "is no picture", "pass height, width, channels"
    return _shape_problem(image.shape, channels, size)


def _shape_problem(shape: tuple[int, ...], channels: int, size: int | None) -> tuple[str, str] | None:
    height, width, found = shape
    if found == channels and size in (None, height) and size in (None, width):
        return None
    if shape[0] == channels and found != channels and (found > 4 if size is None else shape[1:] == (size, size)):
        return "has its planes first", "put the channels last: image.transpose(1, 2, 0)"
    if found == 4 and channels == 3:
        return "has four channels", "remove the alpha channel: image[:, :, :3], and see that the order is BGR"
    if found == channels:
        return "has the wrong size", f"resize it to {size}x{size}"
    return "has another number of channels than the network", f"make it {channels} channels, the last axis"


def check_image_array(image: Any, channels: int, size: int | None = None) -> None:
    """Raise ImageError that says what is wrong with `image`, if anything is; see `image_problem`."""
    problem = image_problem(image, channels, size)
    if problem:
        side = "height, width" if size is None else f"{size}, {size}"
        received = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        expected = f"uint8 [{side}, {channels}] (height, width, channels), values 0..255"
        raise ImageError("image", problem[0], expected=expected, received=received, fix=problem[1])
