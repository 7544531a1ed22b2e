"""Class folders of pictures: which label a folder has, and pictures that training and inference must see alike."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import png, random_images, refusal, write

from gti import data_utils
from gti.chip.host.preprocessing import Preprocessing
from gti.data import data_check, folders
from gti.errors import DataError


def class_folders(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(random_images(1)[0]).save(folder / name / "1.png")
    return folder


def test_class_folders_and_classes_without_a_label_file(tmp_path):
    # Which of three classes the two folders are cannot be known.
    folder = class_folders(tmp_path / "val", "ant", "cat")
    message = refusal(folder, classes=4)
    assert "another number of class folders than --classes" in message
    assert "expected 3 folders for --classes 4, received 2" in message
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    assert data_check.inspect(folder, 4).labels == (1, 3)


@pytest.mark.parametrize(
    ("val", "received"),
    [
        (("ant", "bee", "cat"), ""),
        (("ant", "cat"), "received no bee"),
        (("ant", "bee", "dog"), "received no cat and also dog"),
    ],
)
@pytest.mark.parametrize("both_given", [False, True])
def test_class_folders_of_validation_and_training(tmp_path, val, received, both_given):
    train = class_folders(tmp_path / "train", "ant", "bee", "cat")
    folder = class_folders(tmp_path / "val", *val)
    given = (train, folder) if both_given else (folder,)
    if not received:
        folders.check_same_classes(*given)
        return
    with pytest.raises(DataError, match=f"numbers its classes otherwise than .*train.*{received}"):
        folders.check_same_classes(*given)
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    folders.check_same_classes(*given)


def test_class_folders_in_another_order_than_a_label_file(tmp_path):
    train = class_folders(tmp_path / "set" / "train", "ant", "bee")
    (tmp_path / "set" / "labels.txt").write_text("bee\nant\n")
    with pytest.raises(DataError, match="received another order"):
        folders.check_same_classes(train, class_folders(tmp_path / "elsewhere" / "val", "ant", "bee"))


def test_records_tell_their_labels_themselves(tmp_path):
    folder = tmp_path / "set" / "train"
    write(folder, random_images(3), [1, 2, 3])
    folders.check_same_classes(folder, folder)
    folders.check_same_classes(folder, class_folders(tmp_path / "val", "ant"))


@pytest.mark.parametrize("kind", ["records", "folders"])
def test_class_without_images_matters_in_training_only(tmp_path, kind):
    folder = tmp_path / "set" / "train"
    if kind == "records":
        write(folder, random_images(2), [1, 3])
    else:
        class_folders(folder, "ant", "bee", "cat")
        (folder / "bee" / "1.png").unlink()
    message = refusal(folder, classes=4, training=True)
    assert "received none of 2" in message
    data_check.inspect(folder, 4)
    (folder.parent / "labels.txt").write_text("ant\nbee\ncat\n")
    data_check.inspect(folder, 4, training=True)  # named: it may be absent


def test_pipe_named_like_an_image_is_not_waited_for(tmp_path):
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "1.png")
    assert "1.png" in refusal(tmp_path)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


RGB = Image.fromarray(random_images(1)[0])


@pytest.mark.parametrize(
    ("name", "image", "settings", "received"),
    [
        ("a.jpg", RGB, {"exif": turned(6)}, "EXIF orientation 6"),
        ("a.png", RGB, {"exif": turned(3)}, "EXIF orientation 3"),
        ("a.png", RGB.convert("RGBA"), {}, "transparency"),
        ("a.png", RGB.convert("LA"), {}, "transparency"),
        ("a.png", RGB.convert("P"), {"transparency": 0}, "transparency"),
        ("a.png", Image.fromarray(np.zeros((16, 16), np.uint16)), {}, "16 bits"),
        ("a.jpg", RGB.convert("CMYK"), {}, "CMYK"),
        ("a.jpg", RGB, {"exif": turned(1)}, ""),
        ("a.png", RGB.convert("P"), {}, ""),
        ("a.png", RGB.convert("1"), {}, ""),
    ],
)
def test_pictures_that_training_would_see_differently(tmp_path, name, image, settings, received):
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / name, **settings)
    if received:
        message = refusal(tmp_path, classes=2)
        assert f"{name}: would look different in training and in inference" in message
        assert f"received {received}." in message
        return
    ((pixels, _),) = data_utils.load(tmp_path, image_size=14, batch_size=1, classes=2, as_codes=False)
    expected = Preprocessing(14, 3, "BGR", data_utils.CROP_FRACTION).load(tmp_path / "cat" / name)
    assert np.abs(pixels[0].numpy().astype(int) - expected).max() <= 4  # decoders of JPEG differ by steps


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    kind_and_data = b"eXIf" + turned(8).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(kind_and_data) - 4) + kind_and_data + struct.pack(">I", zlib.crc32(kind_and_data))
    data = png(random_images(1)[0])
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert "received EXIF orientation 8." in refusal(tmp_path)
