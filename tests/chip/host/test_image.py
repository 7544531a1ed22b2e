"""Image files: exact arrays, pictures turned, converted and resized, and everything that is refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gti.chip.formats import npy
from gti.chip.host.image import load_image
from gti.errors import FormatError, GtiError, ImageError

PIXELS = np.random.RandomState(0).randint(0, 256, (28, 28, 3)).astype(np.uint8)


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    for array in (PIXELS, np.asfortranarray(PIXELS), PIXELS[::-1]):
        loaded = load_image(save(tmp_path / "x.npy", npy_bytes(array)), 28)
        assert np.array_equal(loaded, array)
        assert loaded.flags.c_contiguous
    planes = save(tmp_path / "x.bin", PIXELS.transpose(2, 0, 1).tobytes())
    assert np.array_equal(load_image(planes, 28), PIXELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("array", [PIXELS[:, :, 0], PIXELS[:, :, :1]], ids=["plane", "one channel"])
def test_the_plane_of_grey_arrays_is_repeated(array: np.ndarray, channels: int, tmp_path: Path) -> None:
    loaded = load_image(save(tmp_path / "x.npy", npy_bytes(array)), 28, channels)
    assert np.array_equal(loaded, np.repeat(PIXELS[:, :, :1], channels, axis=2))
    assert loaded.flags.c_contiguous


def test_pictures_become_bgr(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    assert np.array_equal(load_image(tmp_path / "x.png", 28), PIXELS[:, :, ::-1])
    grey = Image.fromarray(PIXELS[:, :, 0])
    grey.save(tmp_path / "g.png")
    assert np.array_equal(load_image(tmp_path / "g.png", 28), np.repeat(PIXELS[:, :, :1], 3, axis=2))
    assert np.array_equal(load_image(tmp_path / "g.png", 28, 1), PIXELS[:, :, :1])
    opaque = Image.fromarray(np.dstack([PIXELS, np.full((28, 28), 255, np.uint8)]))
    opaque.save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", 28), PIXELS[:, :, ::-1])
    Image.fromarray(np.full((90, 50, 3), (10, 20, 30), np.uint8)).save(tmp_path / "w.png")
    assert (load_image(tmp_path / "w.png", 28) == (30, 20, 10)).all()


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "x.png", 28), np.rot90(PIXELS, -1)[:, :, ::-1])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (PIXELS.astype(np.float32) / 255, "has the wrong type; expected uint8 [28, 28, 3]"),
        (PIXELS.astype(np.uint16), "received uint16 [28, 28, 3]"),
        (PIXELS.transpose(2, 0, 1), "has its planes first"),
        (PIXELS[:14], "shape"),
        (PIXELS[None], "shape"),
        (PIXELS[:, :, :2], "shape"),
        (PIXELS[:14, :, 0], "shape"),
        (PIXELS[:0], "shape"),
    ],
)
def test_refused_arrays(array: np.ndarray, words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(save(tmp_path / "x.npy", npy_bytes(array)), 28)
    assert words in str(caught.value)


def huge_png() -> bytes:
    """A PNG that claims 100000 x 100000 pixels in a few bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def picture(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npy", b"", "x.npy"),
        ("x.npy", b"\x93NUMPY\x01\x00\xff\xff{", "x.npy"),
        ("x.npy", npy_bytes(PIXELS)[:-1], "received"),
        ("x.npy", npy_bytes(PIXELS) + b"x", "received"),
        ("x.bin", bytes(10), "expected 2352 bytes (3 planes of 28 x 28), received 10 bytes"),
        ("x.png", b"", "image"),
        ("x.jpg", b"\xff\xd8\xff\xe0broken", "x.jpg"),
        ("x.png", picture(Image.fromarray(PIXELS))[:300], "x.png"),
        ("x.png", huge_png(), "large"),
        ("x.png", picture(Image.fromarray(np.zeros((4, 4), np.uint16))), "8 bits"),
        ("x.png", picture(Image.new("RGBA", (4, 4), (1, 2, 3, 100))), "transparent"),
    ],
)
def test_refused_files(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(GtiError) as caught:
        load_image(save(tmp_path / name, content), 28)
    assert words in str(caught.value)
    assert isinstance(caught.value, (ImageError, FormatError))


def test_pictures_have_one_or_three_channels(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="16"):
        load_image(save(tmp_path / "x.png", picture(Image.fromarray(PIXELS))), 28, 16)


def test_npz_is_read_without_trust() -> None:
    arrays = {"w0": PIXELS, "shifts": np.arange(3)}
    data = npy.npz_bytes(arrays)
    assert data == npy.npz_bytes(arrays)
    for key, value in npy.parse_npz(data, "x").items():
        assert np.array_equal(value, arrays[key])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(40_000_000, np.uint8))
    with pytest.raises(FormatError, match="unpacks"):
        npy.parse_npz(buffer.getvalue(), "bomb.npz")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], object))
    with pytest.raises(FormatError, match="Python objects"):
        npy.parse_npz(buffer.getvalue(), "objects.npz")


@given(st.data())
def test_mutated_arrays_give_an_array_or_a_sentence(data: st.DataObject) -> None:
    whole = bytearray(npy.npz_bytes({"a": PIXELS[:2, :2]}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for parse in (npy.parse_npz, npy.parse_npy):
        try:
            parse(bytes(whole), "x")
        except FormatError:
            continue
