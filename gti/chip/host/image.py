"""Image files -> what the chip takes: uint8 [H, W, C], 8-bit values in the chip's channel order (B, G, R).

Three kinds of files: `.npy` (uint8 [H, W, C], already in the chip's order), `.bin` (uint8 planes [C, H, W], ditto), and
pictures that Pillow reads, which are turned upright, resized to the network's size and converted to BGR.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from gti import files
from gti.chip.formats import npy
from gti.errors import FormatError, ImageError, install

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_PIXELS = 100_000_000
# Few bytes must not unpack to much more memory than this and 10 times their number.
_FREE_BYTES = 64_000_000
_MEMORY_RATIO = 10
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "TIFF", "WEBP")
# Modes of more than eight bits: cutting them down is the user's decision.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def load_image(
    path: str | os.PathLike[str] | bytes,
    size: int,
    channels: int = 3,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the image file `path` as uint8 [size, size, channels], 0..255, in the chip's channel order.

    Bytes are a picture's file itself, as it comes over a network.
    Arrays (`.npy`, `.bin`) must have the network's size; pictures are resized (bilinear, the whole picture, or as
    `prepare` does it, [H,W,C] -> [size,size,C]). The plane of grey pictures and `.npy` ([size, size] or
    [size, size, 1]) is repeated into three channels. Raises ImageError for another type, shape or layout, for
    transparency, more than 8 bits and pictures of more than 100 million pixels, FormatError when the file cannot be
    read.
    """
    shape = (size, size, channels)
    if isinstance(path, bytes):
        return _from_picture(path, shape, "the picture", prepare)
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if suffix == ".npy":
        return _from_npy(files.read_bytes(path, limit=size * size * channels * 8 + npy.MAX_HEADER_BYTES), shape, name)
    if suffix == ".bin":
        return _from_planes(files.read_bytes(path, limit=MAX_FILE_BYTES), shape, name)
    return _from_picture(files.read_bytes(path, limit=MAX_FILE_BYTES), shape, name, prepare)


def _from_npy(data: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
    found, dtype, _, _ = npy.read_layout(data, name)
    expected = f"uint8 {list(shape)} (height, width, channels)"
    received = f"{dtype} {list(found)}"
    if dtype != np.uint8:
        fix = "store 8-bit values 0..255" + (", not 0..1" if dtype.kind == "f" else "")
        raise ImageError(name, "has the wrong type", expected=expected, received=received, fix=fix)
    if shape[2] in (1, 3) and found in (shape[:2], (*shape[:2], 1)):
        return np.repeat(npy.parse_npy(data, name).reshape(*shape[:2], 1), shape[2], axis=2)
    if found != shape:
        planar = found == (shape[2], *shape[:2])
        fix = "transpose it to height, width, channels" if planar else "resize it to the network's input"
        problem = "has its planes first" if planar else "has the wrong shape"
        raise ImageError(name, problem, expected=expected, received=received, fix=fix)
    return npy.parse_npy(data, name)


def _from_planes(data: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
    height, width, channels = shape
    if len(data) != height * width * channels:
        raise ImageError(
            name,
            "has the wrong length for raw planes",
            expected=f"{height * width * channels} bytes ({channels} planes of {height} x {width})",
            received=f"{len(data)} bytes",
            fix="write uint8 planes in the chip's channel order",
        )
    planes = np.frombuffer(data, np.uint8).reshape(channels, height, width)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _from_picture(
    data: bytes, shape: tuple[int, int, int], name: str, prepare: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    if shape[2] not in (1, 3):
        raise ImageError(
            name,
            f"is a picture, but the network takes {shape[2]} channels",
            expected="a .npy file of uint8 [H, W, C]",
            received="a picture of 1 or 3 channels",
        )
    with _opened(io.BytesIO(data), len(data), name) as picture:
        return _convert(picture, shape, name, prepare)


def decode(data: bytes, channels: int, name: str) -> np.ndarray:
    """Return the pixels uint8 [H, W, channels] of an encoded picture, upright, RGB or grey, as `load_image` sees them.

    Raises ImageError and FormatError as `load_image`.
    """
    with _opened(io.BytesIO(data), len(data), name) as picture:
        return _pixels(picture, channels, name)


def check(file: BinaryIO, length: int, name: str) -> None:
    """Raise what `decode` would raise of the picture in an open `file` of `length` bytes.

    Its pixels are read only where they have an alpha channel.
    """
    with _opened(file, length, name, pixels=False) as picture:
        if picture.has_transparency_data:
            picture.load()
            _refuse_transparency(picture, name)


@contextmanager
def _opened(file: BinaryIO, length: int, name: str, *, pixels: bool = True) -> Iterator[Image.Image]:
    # The picture, checked, and with its `pixels` decoded and turned upright.
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ImageError(
            name,
            "needs Pillow to be read",
            fix=f"{install('images')} (or pillow itself), or pass a .npy or .bin file",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged here, by an error instead of a warning
            picture = Image.open(file, formats=_FORMATS)
            _check_picture(picture, length, name)
            if pixels:
                picture.load()
                ImageOps.exif_transpose(picture, in_place=True)
            yield picture
    except UnidentifiedImageError:
        raise FormatError(
            name, "is no image that can be read", expected=", ".join((*_FORMATS, ".npy", ".bin"))
        ) from None
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(name, "is too large", expected=f"at most {MAX_PIXELS} pixels") from None
    except Exception as problem:  # decoders of damaged files raise many kinds
        reason = str(problem).split("\n")[0][:120] or type(problem).__name__
        raise FormatError(name, f"cannot be decoded ({reason})", fix="check the file") from None


def is_small(width: int, height: int, length: int, *, progressive: bool = False) -> bool:
    """Return whether an RGB or grey picture in `length` bytes is decoded at its full size, and may be."""
    return width * height <= min(MAX_PIXELS, _most(length) // _plain_memory(1, progressive))


def _check_picture(picture: Image.Image, length: int, name: str) -> None:
    """Refuse what would have to be guessed, and bombs, before any pixel is decoded; `length` of the file in bytes.

    A JPEG of many pixels for its length is set to be decoded at half, a quarter or an eighth of its size.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(name, "is too large", expected=f"at most {MAX_PIXELS} pixels", received=f"{width} x {height}")
    most = _most(length) / (width * height)  # bytes a pixel
    scales = [scale for scale in (1, 2, 4, 8) if _memory_per_pixel(picture, scale) <= most]
    if not scales or (scales[0] > 1 and picture.format != "JPEG"):
        pixels = int(width * height * most / _memory_per_pixel(picture, 1))
        raise ImageError(
            name,
            "has very many pixels for its length",
            expected=f"at most {pixels} pixels in {length} bytes",
            received=f"{width} x {height}",
            fix="make the picture smaller first",
        )
    if scales[0] > 1:
        picture.draft(None, (width // scales[0], height // scales[0]))
    if picture.mode in _DEEP_MODES:
        raise ImageError(
            name,
            "has more than 8 bits a channel",
            expected="8 bits a channel",
            received=f"mode {picture.mode}",
            fix="convert it to 8 bits first",
        )


def _memory_per_pixel(picture: Image.Image, scale: int) -> float:
    """Return the bytes that decoding, turning and converting at 1/`scale` takes, as measured with Pillow 12."""
    if picture.format == "WEBP":
        return 16
    if picture.mode not in ("L", "RGB"):
        return 12
    return _plain_memory(scale, "progressive" in picture.info)


def _most(length: int) -> int:
    return _FREE_BYTES + _MEMORY_RATIO * length


def _plain_memory(scale: int, progressive: bool) -> float:
    # A progressive JPEG keeps the coefficients of the whole picture.
    return 8 / scale**2 + (6 if progressive else 0)


def _convert(
    picture: Image.Image, shape: tuple[int, int, int], name: str, prepare: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Return uint8 [H, W, C] of an upright picture: opaque, resized, BGR or grey."""
    from PIL import Image

    height, width, channels = shape
    pixels = _pixels(picture, channels, name)
    if prepare is not None:
        pixels = prepare(pixels)
    elif pixels.shape[:2] != (height, width):
        whole = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        pixels = np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)
    return np.ascontiguousarray(pixels[:, :, ::-1])  # RGB -> BGR


def _pixels(picture: Image.Image, channels: int, name: str) -> np.ndarray:
    # uint8 [H, W, channels] of an upright picture, RGB or grey; refuses transparency.
    if picture.has_transparency_data:
        _refuse_transparency(picture, name)
    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)


def _refuse_transparency(picture: Image.Image, name: str) -> None:
    alpha = (picture if picture.mode == "RGBA" else picture.convert("RGBA")).getchannel("A")
    least = int(np.asarray(alpha).min())
    if least < 255:
        raise ImageError(
            name,
            "is transparent in places",
            expected="an opaque picture",
            received=f"alpha from {least} on",
            fix="lay it on a background first",
        )
