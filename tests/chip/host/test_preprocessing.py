"""The preprocessing contract: what a picture becomes, what is refused, what travels in a .MODEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_models import CONTRACT, full_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gti.chip.host import resizing
from gti.chip.host.preprocessing import Preprocessing, center_square
from gti.chip.host.resizing import resized
from gti.chip.loaded_model import load_model
from gti.errors import GtiError, ImageError, ModelFileError, UsageError


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([14, 28]), st.integers(0, 255))
def test_a_plain_picture_stays_plain(height: int, width: int, size: int, value: int):
    pixels = np.full((height, width, 3), value, np.uint8)
    assert (resized(pixels, size) == value).all()


def test_halving_weighs_as_a_triangle():
    # Output centres lie between two samples; the filter reaches 2 samples to each side: weights 1, 3, 3, 1 of 8.
    column = np.array([0, 0, 0, 80, 0, 0, 0, 0], np.uint8)
    got = resized(np.repeat(column[:, None, None], 8, axis=1), 4)[:, 1, 0]
    assert got.tolist() == [0 * 8 // 7, 30, 10, 0]


@pytest.mark.parametrize(("height", "width", "size", "channels"), [(480, 640, 224, 3), (5, 90, 28, 1), (9, 9, 56, 3)])
def test_both_kernels_make_equal_pixels(height: int, width: int, size: int, channels: int):
    numba = pytest.importorskip("gti.chip.host.resizing_numba", reason="numba is not installed")
    flat = picture(height, width, channels).reshape(height, -1)
    how = resizing.taps(height, size), resizing.taps(width, size), channels
    np.testing.assert_array_equal(numba.with_numba(flat, *how), resizing.with_numpy(flat, *how))


@pytest.mark.parametrize(
    ("shape", "fraction", "corner", "side"),
    [((10, 20), 1.0, (0, 5), 10), ((20, 10), 0.5, (7, 2), 5), ((8, 8), 0.875, (0, 0), 7), ((3, 3), 0.01, (1, 1), 1)],
)
def test_the_middle_square(shape: tuple[int, int], fraction: float, corner: tuple[int, int], side: int):
    pixels = picture(*shape)
    got = center_square(pixels, fraction)
    top, left = corner
    np.testing.assert_array_equal(got, pixels[top : top + side, left : left + side])


def test_orders():
    bgr = picture(14, 14)
    wanted = Preprocessing(14, 3, "BGR", 1.0)
    np.testing.assert_array_equal(wanted.apply(bgr, "BGR"), bgr)
    np.testing.assert_array_equal(wanted.apply(bgr[:, :, ::-1], "RGB"), bgr)
    np.testing.assert_array_equal(Preprocessing(14, 3, "RGB", 1.0).apply(bgr, "BGR"), bgr[:, :, ::-1])
    with pytest.raises(UsageError, match="expected BGR or RGB, received 'RGBA'"):
        wanted.apply(bgr, "RGBA")


def test_grey_pictures_become_three_equal_planes():
    grey = picture(20, 20, 1)
    wanted = Preprocessing(14, 3, "BGR", 0.875)
    for image in (grey, grey[:, :, 0]):
        got = wanted.apply(image, "BGR")
        assert (got == got[:, :, :1]).all()
    np.testing.assert_array_equal(Preprocessing(14, 1, "BGR", 0.875).apply(grey, "BGR"), got[:, :, :1])


def test_views_of_any_kind_are_read():
    pixels = picture(30, 40)
    wanted = Preprocessing(14, 3, "BGR", 0.875)
    expected = wanted.apply(pixels, "BGR")
    mirrored = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]
    read_only = pixels.copy()
    read_only.flags.writeable = False
    for view in (mirrored, read_only, np.asfortranarray(pixels)):
        np.testing.assert_array_equal(wanted.apply(view, "BGR"), expected)


REFUSED = [
    (np.zeros((20, 20, 3), np.float32), "floating-point numbers"),
    (np.zeros((20, 20, 3), np.uint16), "wrong type"),
    (np.zeros((20, 20, 3), np.int64), "wrong type"),
    (np.zeros((3, 20, 20), np.uint8), "planes first"),
    (np.zeros((20, 20, 4), np.uint8), "four channels"),
    (np.zeros((20, 20, 2), np.uint8), "channels"),
    (np.zeros((1, 20, 20, 3), np.uint8), "is a batch"),
    (np.zeros((0, 20, 3), np.uint8), "picture"),
    (np.zeros(20, np.uint8), "picture"),
    ([[1, 2], [3, 4]], "no NumPy array"),
]


@pytest.mark.parametrize(("image", "words"), REFUSED)
def test_what_would_have_to_be_guessed_is_refused(image: Any, words: str):
    with pytest.raises(ImageError, match=words) as caught:
        Preprocessing(14, 3, "BGR", 0.875).apply(image, "BGR")
    assert "expected uint8 [height, width, 3]" in str(caught.value)
    assert "Fix:" in str(caught.value)


def test_files(tmp_path: Path):
    bgr = picture(50, 40)
    wanted = Preprocessing(14, 3, "BGR", 0.875)
    Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1])).save(tmp_path / "x.png")
    np.testing.assert_array_equal(wanted.load(tmp_path / "x.png"), wanted.apply(bgr, "BGR"))
    reverse = Preprocessing(14, 3, "RGB", 0.875)
    np.testing.assert_array_equal(reverse.load(tmp_path / "x.png"), reverse.apply(bgr, "BGR"))
    # Arrays are what the chip takes already, in its order.
    np.save(tmp_path / "ready.npy", bgr[:14, :14])
    np.testing.assert_array_equal(reverse.load(tmp_path / "ready.npy"), bgr[:14, :14])
    np.save(tmp_path / "large.npy", bgr)
    with pytest.raises(ImageError, match="wrong shape"):
        wanted.load(tmp_path / "large.npy")
    # A camera that was held sideways: orientation 6 means that the top of the picture is its right side.
    sideways = Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1]))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.png", exif=exif)
    upright = np.rot90(bgr, 3)
    np.testing.assert_array_equal(wanted.load(tmp_path / "sideways.png"), wanted.apply(upright, "BGR"))


@pytest.mark.parametrize(("mode", "words"), [("I;16", "I;16"), ("RGBA", "alpha"), ("LA", "alpha")])
def test_pictures_that_are_refused(tmp_path: Path, mode: str, words: str):
    Image.new(mode, (20, 20)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match=words):
        CONTRACT.load(tmp_path / "x.png")


def test_the_contract_goes_through_a_model_file(tmp_path: Path):
    path = tmp_path / "x.model"
    path.write_bytes(full_model())
    assert load_model(path).preprocessing() == CONTRACT
    path.write_bytes(full_model(contract=None))
    assert load_model(path).preprocessing() == Preprocessing(14, 3, "BGR", None)
    path.write_bytes(full_model(contract=Preprocessing(14, 3, "BGR", None).entry()))
    assert load_model(path).preprocessing() == Preprocessing(14, 3, "BGR", None)


TURNING = {"input format": "CS_RGB24_PLANAR", "output format": "CS_BGR24_PLANAR"}


def test_a_reader_that_turns_the_planes_decides_the_order(tmp_path: Path):
    path = tmp_path / "x.model"
    path.write_bytes(full_model(contract=None, reader=TURNING))
    assert load_model(path).preprocessing().order == "RGB"
    path.write_bytes(full_model(contract=Preprocessing(14, 3, "RGB", 0.875).entry(), reader=TURNING))
    assert load_model(path).preprocessing().order == "RGB"
    path.write_bytes(full_model(reader=TURNING))
    with pytest.raises(ModelFileError, match="expected RGB"):
        load_model(path).preprocessing()


DAMAGED = [
    ("text", "incomplete"),
    ({}, "incomplete"),
    ({"width": 15, "height": 15}, '"width"'),
    ({"width": True}, '"width"'),
    ({"width": 28}, '"height"'),
    ({"width": 28, "height": 28}, "does not fit the network; expected 14x14x3, received 28x28x3"),
    ({"channels": 0}, '"channels"'),
    ({"channels": 1}, "network"),
    ({"channel order": "GBR"}, '"channel order"'),
    ({"channel order": ["BGR"]}, '"channel order"'),
    ({"channel order": "RGB"}, "declares"),
    ({"crop fraction": 0}, '"crop fraction"'),
    ({"crop fraction": 1.5}, '"crop fraction"'),
    ({"crop fraction": "all"}, '"crop fraction"'),
    ({"resize": "nearest"}, '"resize"'),
    ({"values": "float32"}, '"values"'),
]


@pytest.mark.parametrize(("change", "words"), DAMAGED)
def test_damaged_contracts(tmp_path: Path, change: Any, words: str):
    value = {**CONTRACT.entry(), **change} if isinstance(change, dict) and change else change
    path = tmp_path / "x.model"
    path.write_bytes(full_model(contract=value))
    with pytest.raises(GtiError, match=words) as caught:
        load_model(path).preprocessing()
    assert str(path) in str(caught.value)
