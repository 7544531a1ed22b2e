"""Folders of pictures: which are held back, what is cut out of them, and what cannot serve."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gti.errors import DataError
from gti.ptq import pictures


def folder_of(path, count: int, size=(40, 30), seed: int = 0):
    """Write `count` different pictures, half of them in a folder of their own; return the folder."""
    random = np.random.default_rng(seed)
    (path / "more").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        place = path if index % 2 else path / "more"
        colours = random.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(colours).save(place / f"{index}.png")
    return path


def test_one_in_five_is_held_back_and_nothing_of_it_is_fitted_to(tmp_path):
    folder = folder_of(tmp_path / "photos", 30)
    found = pictures.read(folder, 14, 3, 30)
    assert found.pixels.shape == (30, 14, 14, 3)
    assert found.pixels.dtype == np.uint8
    assert found.held_back == tuple(range(24, 30))
    assert (found.different, found.notes) == (30, ())
    # The middle squares, blue first: 26 of 30 pixels (0.875 of the shorter side), averaged down to 14.
    by_hand = []
    for file in folder.rglob("*.png"):
        middle = np.asarray(Image.open(file))[2:28, 7:33, ::-1].astype(float)
        by_hand.append(middle.mean(axis=(0, 1)))
    means = found.pixels.reshape(30, -1, 3).mean(axis=1)
    np.testing.assert_allclose(np.sort(means, axis=0), np.sort(by_hand, axis=0), atol=2)


def test_few_pictures_give_several_crops_and_are_warned_of(tmp_path):
    found = pictures.read(folder_of(tmp_path, 8), 14, 3, 32)
    assert found.different == 8
    assert found.held_back == (31,)
    assert len({image.tobytes() for image in found.pixels}) == 32
    assert len(found.notes) == 1
    assert "few different" in found.notes[0]


def test_more_pictures_than_wanted_are_drawn_the_same_every_time(tmp_path):
    folder = folder_of(tmp_path, 40)
    found = pictures.read(folder, 14, 3, 25, seed=3)
    assert len(found.pixels) == 25
    np.testing.assert_array_equal(found.pixels, pictures.read(folder, 14, 3, 25, seed=3).pixels)
    assert not np.array_equal(found.pixels, pictures.read(folder, 14, 3, 25, seed=4).pixels)


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path):
    folder = folder_of(tmp_path, 30)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    found = pictures.read(folder, 14, 3, 40)
    assert found.different == 30
    assert len(found.notes) == 1
    assert "broken.jpg" in found.notes[0]


def test_grey_pictures_for_one_channel(tmp_path):
    assert pictures.read(folder_of(tmp_path, 25), 14, 1, 25).pixels.shape == (25, 14, 14, 1)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path / "absent", "folder"),
        (lambda path: folder_of(path, 3), "too few"),
        (lambda path: folder_of(path, 0), "too few"),
    ],
)
def test_folders_that_cannot_serve_are_refused_by_their_names_alone(tmp_path, make, word):
    with pytest.raises(DataError, match=word):
        pictures.look(make(tmp_path))


def test_copies_of_a_picture_do_not_count(tmp_path):
    folder = folder_of(tmp_path, 3)
    for copy in range(9):
        (folder / f"copy{copy}.png").write_bytes((folder / "1.png").read_bytes())
    pictures.look(folder)
    with pytest.raises(DataError, match="too few"):
        pictures.read(folder, 14, 3, 12)
