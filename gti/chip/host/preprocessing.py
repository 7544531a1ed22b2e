"""What must happen to a picture before the chip sees it, as a contract that travels in the .MODEL.

The header's key "preprocessing" (docs/runtime.md) says how the network was trained: size, channels, channel order,
crop, resizing. Readers that do not know the key pass it through. Here it is written, read, checked against the network,
and applied with NumPy alone, to the same pixels as in training (`gti.data_utils.prepare_image`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.host.image import load_image
from gti.chip.host.resizing import resized
from gti.chip.spec import IMAGE_SIZES
from gti.chip.wire.image_arrays import check_image_array
from gti.errors import ModelFileError, UsageError
from gti.files import is_number, is_whole

KEY = "preprocessing"
ORDERS = ("BGR", "RGB")
RESIZE = "bilinear"  # averaging where it shrinks, rounded half up
VALUES = "uint8"
_KEYS = {"width", "height", "channels", "channel order", "crop fraction", "resize", "values"}


@dataclass(frozen=True)
class Preprocessing:
    """The way of a picture to the pixels for the chip, uint8 [size, size, channels] in `order`.

    `crop_fraction` of the shorter side is the side of the square that is cut out of the middle; None takes the whole
    picture, whatever its proportions, which is what happens for a file without a contract.
    """

    size: int
    channels: int
    order: str = "BGR"
    crop_fraction: float | None = None

    def entry(self) -> dict[str, Any]:
        """Return the value of "preprocessing" in a .MODEL's header."""
        return {
            "width": self.size,
            "height": self.size,
            "channels": self.channels,
            "channel order": self.order,
            "crop fraction": self.crop_fraction,
            "resize": RESIZE,
            "values": VALUES,
        }

    def load(self, path: str | os.PathLike[str] | bytes) -> npt.NDArray[np.uint8]:
        """Return the pixels of an image file, or of the bytes of a picture's file, ready for the chip.

        Pictures are turned upright, cropped and resized; `.npy` and `.bin` must already be as the chip takes them.
        Raises ImageError and FormatError as `gti.chip.host.image.load_image`.
        """
        prepare = None if self.crop_fraction is None else self._crop_and_resize
        image = load_image(path, self.size, self.channels, prepare)
        is_array = not isinstance(path, bytes) and os.fspath(path).lower().endswith((".npy", ".bin"))
        return image if is_array or self.order == "BGR" else np.ascontiguousarray(image[:, :, ::-1])

    def apply(self, image: npt.NDArray[np.uint8], order: str) -> npt.NDArray[np.uint8]:
        """Return the pixels for the chip of a picture in memory, uint8 [H,W,C] (or [H,W], grey) of any size.

        `order` declares the image's channel order, "BGR" (OpenCV) or "RGB" (Pillow); where the network wants the other
        one, the planes are turned round. Raises ImageError for anything that would have to be guessed: other types
        (floats 0..1, 16 bits), planes first, an alpha channel, empty images; UsageError for an unknown order.
        """
        if order not in ORDERS:
            raise UsageError("channel order", "is unknown", expected=" or ".join(ORDERS), received=repr(order))
        pixels = _checked(image, self.channels)
        whole = self.crop_fraction is None
        pixels = resized(pixels, self.size) if whole else self._crop_and_resize(pixels)
        turned = pixels[:, :, ::-1] if self.channels == 3 and order != self.order else pixels
        return np.ascontiguousarray(turned)

    def _crop_and_resize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return resized(center_square(pixels, self.crop_fraction or 1.0), self.size)


def center_square(pixels: npt.NDArray[np.uint8], fraction: float) -> npt.NDArray[np.uint8]:
    """Return the middle square [S,S,C] of `pixels` [H,W,C] whose side is `fraction` of the shorter one, rounded."""
    height, width = pixels.shape[:2]
    side = max(1, int(np.floor(np.float32(min(height, width)) * np.float32(fraction) + np.float32(0.5))))
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _checked(image: Any, channels: int) -> npt.NDArray[np.uint8]:
    """Return `image`, grey ones with their plane repeated, as [H,W,C] of the network's channels; errors ImageError."""
    pixels: npt.NDArray[np.uint8] = image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        pixels = image[:, :, None] if image.ndim == 2 else image
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, channels, axis=2)
    check_image_array(pixels, channels)
    return pixels


def from_header(header: Mapping[str, Any], name: str) -> Preprocessing | None:
    """Return the contract of a .MODEL's header, None where there is none; `name`: of the file.

    Raises ModelFileError for a contract that is damaged or asks for something this kit does not do.
    """
    value = header.get(KEY)
    if value is None:
        return None
    where = f'{name}, "{KEY}"'

    def field(key: str, good: bool, expected: str) -> None:
        if not good:
            raise ModelFileError(
                where,
                f'"{key}" is impossible',
                expected=expected,
                received=value.get(key),
                fix="convert the model again",
            )

    if not isinstance(value, dict) or not set(value) >= _KEYS:
        raise ModelFileError(where, "is incomplete", expected=", ".join(sorted(_KEYS)))
    for key in ("width", "height"):
        field(key, is_whole(value[key]) and value[key] in IMAGE_SIZES, "one of " + ", ".join(map(str, IMAGE_SIZES)))
    field("height", value["height"] == value["width"], "the width, the chip takes squares")
    field("channels", is_whole(value["channels"]) and 1 <= value["channels"] <= 1024, "1..1024")
    field("channel order", value["channel order"] in ORDERS, " or ".join(ORDERS))
    field("resize", value["resize"] == RESIZE, RESIZE)
    field("values", value["values"] == VALUES, VALUES)
    crop = value["crop fraction"]
    field("crop fraction", crop is None or (is_number(crop) and 0 < crop <= 1), "a number above 0 and at most 1")
    return Preprocessing(
        value["width"], value["channels"], value["channel order"], float(crop) if crop is not None else None
    )


def contract(header: Mapping[str, Any], name: str, size: int, channels: int, order: str) -> Preprocessing:
    """Return the contract of the .MODEL `name` whose network takes `channels` planes of `size` x `size`.

    Without one in the file's `header`: the whole picture, in the channel `order` that its reader takes. Raises
    ModelFileError where the contract and the network disagree.
    """
    found = from_header(header, name)
    if found is None:
        return Preprocessing(size, channels, order)
    if (found.size, found.channels) != (size, channels):
        raise ModelFileError(
            f'{name}, "{KEY}"',
            "does not fit the network",
            expected=f"{size}x{size}x{channels}",
            received=f"{found.size}x{found.size}x{found.channels}",
            fix="convert the model again",
        )
    if channels == 3 and found.order != order:
        raise ModelFileError(
            f'{name}, "{KEY}"',
            "declares another channel order than the image reader takes",
            expected=order,
            received=found.order,
            fix="correct the formats of the IMAGEREADER layer, then convert the model again",
        )
    return found
