"""An encoded picture -> RGB or grey pixels, the same in training and in inference, for class folders and records alike.

What a picture is, and whether it may enter, is decided by `gti.chip.host.image`. TensorFlow's decoders give the same
pixels for plain JPEG and PNG files and are spared the way through Python; all others go there.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

from gti.chip.host import image
from gti.errors import GtiError

_PNG_START = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that change its pixels or turn it: Pillow's way.
_PNG_SPECIAL = {b"tRNS", b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"acTL", b"gAMA", b"sBIT"}
_PNG_GREY, _PNG_RGB = 0, 2
_SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_SCAN = 0xDA
_APPLICATION = range(0xE1, 0xF0)  # EXIF, XMP, Adobe's colour transform; APP0 is JFIF


class Kind(IntEnum):
    """Who decodes a picture."""

    JPEG = 0  # TensorFlow, accurate
    PNG = 1  # TensorFlow
    OTHER = 2  # gti.chip.host.image


def kind(data: bytes, channels: int) -> Kind:
    """Return who decodes the picture `data` for a network of `channels` planes; only headers are read."""
    if data.startswith(b"\xff\xd8\xff"):
        return Kind.JPEG if _is_plain_jpeg(data, channels) else Kind.OTHER
    if data.startswith(_PNG_START):
        return Kind.PNG if _is_plain_png(data, channels) else Kind.OTHER
    return Kind.OTHER


def _is_plain_jpeg(data: bytes, channels: int) -> bool:
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        if marker in _APPLICATION or marker == _SCAN:
            return False
        if marker in _SOF:
            depth, components = data[position + 4], data[position + 9]
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            fits = components == 1 or (components == 3 and channels == 3)
            plain = image.is_small(width, height, len(data), progressive=marker == 0xC2)
            return depth == 8 and fits and plain and marker != 0xC1 and not _has_application_after(data, position)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _has_application_after(data: bytes, position: int) -> bool:
    # Segments between the frame's header and the first scan.
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _SCAN:
        if data[position + 1] in _APPLICATION:
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _is_plain_png(data: bytes, channels: int) -> bool:
    if len(data) < 33 or data[12:16] != b"IHDR" or data[24] != 8:
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not (data[25] == _PNG_GREY or (data[25] == _PNG_RGB and channels == 3)):
        return False
    position, view = len(_PNG_START), memoryview(data)
    while position + 8 <= len(data):  # an orientation may stand behind the pixels
        if data[position + 4 : position + 8] in _PNG_SPECIAL:
            return False
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")  # length, type, data, checksum
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False  # what is tolerated is for one decoder to say
        position = end + 4
    return image.is_small(width, height, len(data))


def refusal(file: BinaryIO, length: int, name: str) -> GtiError | None:
    """Return why the picture in an open `file` of `length` bytes may not enter, or None.

    Headers tell it, and of pictures with an alpha channel the pixels; damage that only decoding shows is not found.
    """
    try:
        image.check(file, length, name)
    except GtiError as problem:
        return problem
    return None


def decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Return the uint8 pixels [H,W,channels], RGB or grey and upright, of one encoded picture, a string scalar.

    An error of TensorFlow where it cannot be decoded or may not enter; `refusal` and `image.decode` name the reason.
    """

    # Called eagerly, the functions get the bytes in an array.
    def kind_of(data: Any) -> np.int32:
        return np.int32(kind(np.asarray(data, object).item(), channels))

    def in_python(data: Any) -> np.ndarray:
        try:
            return image.decode(np.asarray(data, object).item(), channels, "picture")
        except GtiError as problem:
            raise ValueError(str(problem)) from None  # becomes InvalidArgumentError

    def other() -> tf.Tensor:
        pixels = tf.numpy_function(in_python, [encoded], tf.uint8, stateful=False)
        return tf.ensure_shape(pixels, (None, None, channels))

    decoded = tf.switch_case(
        tf.numpy_function(kind_of, [encoded], tf.int32, stateful=False),
        {
            int(Kind.JPEG): lambda: tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE"),
            int(Kind.PNG): lambda: tf.io.decode_png(encoded, channels=channels),
            int(Kind.OTHER): other,
        },
    )
    decoded.set_shape((None, None, channels))
    return decoded
