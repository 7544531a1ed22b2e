"""Class folders of pictures: which label a folder has, and pictures that training and inference must see alike."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import random_images, refusal, write
from sweeps import first_quick

from gti import data_utils
from gti.chip.host.preprocessing import Preprocessing
from gti.data import data_check, folders, tfrecords
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
    assert "--classes" in message
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


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **settings)
    return buffer.getvalue()


def both_kinds(folder: Path, pictures: list[bytes]) -> tuple[Path, Path]:
    """Write `pictures` as a class folder and as records; return their folders."""
    (folder / "folders" / "val" / "cat").mkdir(parents=True)
    for number, data in enumerate(pictures):
        (folder / "folders" / "val" / "cat" / f"{number:03d}.jpg").write_bytes(data)
    records = [tfrecords.ImageRecord(data, "JPEG", 1, 1, 1, "cat", f"{n:03d}.jpg") for n, data in enumerate(pictures)]
    tfrecords.write_shards(folder / "records" / "val", "set", [records])
    return folder / "folders" / "val", folder / "records" / "val"


def smooth(height: int, width: int) -> Image.Image:
    small = Image.fromarray(random_images(1, height // 3 + 1, width // 3 + 1)[0])
    return small.resize((width, height), Image.Resampling.BICUBIC)


PICTURES = {
    **{
        f"{mode} {size} quality {quality} subsampling {sub} progressive {progressive}": encoded(
            smooth(*size).convert(mode), "JPEG", quality=quality, subsampling=sub, progressive=progressive
        )
        for mode in ("RGB", "L")
        for size in ((33, 47), (64, 40), (101, 17))
        for quality in (30, 75, 95)
        for sub in (0, 1, 2)
        for progressive in (False, True)
    },
    **{f"EXIF {n}": encoded(smooth(30, 47), "JPEG", exif=turned(n)) for n in range(1, 9)},
    "CMYK": encoded(smooth(30, 30).convert("CMYK"), "JPEG"),
    "palette": encoded(RGB.convert("P"), "PNG"),
    "one bit": encoded(RGB.convert("1"), "PNG"),
    "opaque alpha": encoded(RGB.convert("RGBA"), "PNG"),
    "PNG turned": encoded(smooth(20, 30), "PNG", exif=turned(6)),
    "PNG with a wrong checksum at its end": encoded(RGB, "PNG")[:-4] + bytes(4),
    "WebP by another name": encoded(RGB, "WEBP", lossless=True),
}


@pytest.mark.parametrize("channels", first_quick(1, [3, 1]))
def test_every_way_in_gives_the_same_pixels(tmp_path, channels):
    # Inference's own function is the statement of what a picture is.
    ways = both_kinds(tmp_path, list(PICTURES.values()))
    prepare = Preprocessing(14, channels, "BGR", data_utils.CROP_FRACTION)
    expected = [prepare.load(path) for path in sorted((ways[0] / "cat").iterdir())]
    for folder in ways:
        data = data_utils.load(
            folder, image_size=14, channels=channels, batch_size=len(PICTURES), classes=2, as_codes=False
        )
        ((pixels, _),) = data.as_numpy_iterator()
        for name, got, wanted in zip(PICTURES, pixels, expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"{folder}: {name}")


def huge_png() -> bytes:
    # 16000 x 16000 pixels in a few bytes; decoded they would take 768 MB.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pictures_that_inference_refuses_are_listed_together(tmp_path):
    bad = {
        "transparent": encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 100)), "PNG"),
        "8 bits": encoded(Image.fromarray(np.zeros((16, 16), np.uint16)), "PNG"),
        "too large": huge_png(),
        "no image": b"<html>",
    }
    ways = both_kinds(tmp_path, [*bad.values(), encoded(RGB, "PNG")])
    for folder in ways:
        with pytest.raises(DataError) as caught:
            data_check.inspect(folder, 2)
        lines = str(caught.value).splitlines()
        assert "4 things" in lines[0]
        for word, line in zip(bad, lines[1:], strict=True):
            assert word in line


def test_what_is_not_used_is_counted_and_named(tmp_path):
    folder = class_folders(tmp_path / "train", "ant", "bee")
    for name in ("a.webp", "b.webp", "c.bmp", "noname"):
        (folder / "ant" / name).write_bytes(b"x")
    (folder / "bee" / "more").mkdir()
    (folder / "loose.jpg").write_bytes(b"x")
    found = data_check.inspect(folder, 3)
    lines = data_check.table(found)
    assert "2 images of 2 classes" in lines[0]
    assert [line.split() for line in lines[1:3]] == [
        ["label", "1", "1", "images", "ant"],
        ["label", "2", "1", "images", "bee"],
    ]
    for part in ("2 .webp", "1 .bmp", "1 without suffix", "1 sub-folders", "loose.jpg", "ant/noname"):
        assert part in lines[3]


def test_what_lies_beside_records_is_named(tmp_path):
    folder = class_folders(tmp_path / "train", "ant")
    write(folder, random_images(2), [1, 1])
    (folder / "loose.jpg").write_bytes(b"x")
    lines = data_check.table(data_check.inspect(folder, 2))
    assert "2 images" in lines[0]
    assert "not used: 1 sub-folders, 1 .jpg: train/ant, train/loose.jpg (the records are)" in lines[-1]


def test_folders_that_hold_images_elsewhere_say_where(tmp_path):
    class_folders(tmp_path / "train" / "animals", "ant", "bee")
    with pytest.raises(DataError, match="but folders: animals/ant, animals/bee"):
        folders.look(tmp_path / "train")
    for name in ("1.png", "2.png"):
        (tmp_path / "train" / name).write_bytes(b"x")
    with pytest.raises(DataError, match="only beside them: "):
        folders.look(tmp_path / "train")


def test_an_empty_class_is_named_before_training(tmp_path):
    folder = class_folders(tmp_path / "train", "ant", "bee")
    folders.refuse_empty_classes(folder)
    (folder / "bee" / "1.png").rename(folder / "bee" / "1.webp")
    with pytest.raises(DataError, match="some classes: bee"):
        folders.refuse_empty_classes(folder)
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    folders.refuse_empty_classes(folder)


def test_links_count_and_links_that_lead_nowhere_are_named(tmp_path):
    folder = class_folders(tmp_path / "train", "ant")
    (folder / "ant" / "2.png").symlink_to(folder / "ant" / "1.png")
    assert data_check.inspect(folder, 2).count == 2
    (folder / "ant" / "3.png").symlink_to(tmp_path / "absent")
    with pytest.raises(DataError, match=r"3\.png: cannot be read"):
        data_check.inspect(folder, 2)


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    sub = os.path.join(folder, os.fsdecode(b"\xfcber"))
    os.makedirs(sub)
    Image.fromarray(random_images(1)[0]).save(os.path.join(sub, os.fsdecode(b"\xe4.png")))
    assert "xber" in data_check.table(data_check.inspect(folder, 2))[1].replace("\\xdcfc", "x")
    ((pixels, labels),) = data_utils.load(folder, image_size=14, batch_size=1, classes=2).as_numpy_iterator()
    assert (pixels.shape, labels.tolist()) == ((1, 14, 14, 3), [1])


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x0cb", "a\x85b", "a\u2028b"])
def test_names_of_classes_that_readers_would_cut_are_refused_at_the_first_door(tmp_path, name):
    folder = class_folders(tmp_path / "train", "ant", name)
    for look in (folders.look, data_check.inspect):
        with pytest.raises(DataError, match=rf"U\+{ord(name[1]):04X}"):
            look(folder)


def test_labels_of_a_checkpoint_number_moved_folders(tmp_path):
    folder = class_folders(tmp_path / "moved", "cat")
    names = ("", "ant", "bee", "cat")
    assert data_check.inspect(folder, 4, names=names).labels == (3,)
    with pytest.raises(DataError, match="no class"):
        data_check.inspect(folder, 4, names=("", "ant", "bee"))
    (tmp_path / "labels.txt").write_text("cat\nant\nbee\n")
    with pytest.raises(DataError, match="otherwise"):
        data_check.inspect(folder, 4, names=names)
