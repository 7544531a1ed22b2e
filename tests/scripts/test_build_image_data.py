"""scripts/build_image_data.py and build_imagenet_data.py: folders of images -> TFRecords."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from places import ROOT

from gti import data_utils
from gti.data import tfrecords
from gti.data.image_folders import Source, build, find_images, read_image
from gti.data.labels import read_labels
from gti.errors import DataError, UsageError


def picture(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    # Smooth, so that JPEG keeps it close.
    r = np.random.RandomState(seed)
    return Image.fromarray(r.randint(0, 256, size=(3, 4, 3)).astype(np.uint8)).resize((width, height))


@pytest.fixture
def folders(tmp_path):
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("daisy", "tulip")):
            sub = tmp_path / part / name
            sub.mkdir(parents=True)
            for index in range(count):
                picture(100 * label + index).save(sub / (f"{index}.jpg" if index % 2 else f"{index}.png"))
    (tmp_path / "labels.txt").write_text("daisy\ntulip\n")
    return tmp_path


def command_line(folders: Path, script: str, flags: tuple[str, ...]) -> list[str]:
    return [
        f"scripts/{script}",
        *("--train_directory", str(folders / "train"), "--validation_directory", str(folders / "val")),
        *("--output_directory", str(folders / "flowers"), "--labels_file", str(folders / "labels.txt")),
        *("--train_shards=3", "--validation_shards=1", "--num_threads=2", *flags),
    ]


def run_script(folders: Path, *flags: str, script: str = "build_image_data.py") -> subprocess.CompletedProcess:
    command = [sys.executable, *command_line(folders, script, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_here(monkeypatch, folders: Path, *flags: str, script: str) -> None:
    # In this process, which has TensorFlow already.
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", command_line(folders, script, flags))
    runpy.run_path(str(ROOT / "scripts" / script))["main"]()


def test_command_of_the_guide(folders):
    (folders / "train" / "daisy" / "broken.jpg").write_bytes((folders / "train" / "daisy" / "1.jpg").read_bytes()[:300])
    (folders / "train" / "daisy" / "moving.gif").write_bytes(b"GIF89a")
    for name in (".DS_Store", "Thumbs.db"):
        (folders / "train" / "daisy" / name).write_bytes(b"")
    (folders / "train" / "rose").mkdir()
    result = run_script(folders)
    assert result.returncode == 0, result.stderr
    assert "12 images in 3 shards, 2 skipped" in result.stdout
    assert "train with --classes 3" in result.stdout
    assert "broken.jpg: " in result.stderr
    assert "moving.gif: is skipped: it is no file whose name ends in .jpg, .jpeg or .png" in result.stderr
    assert "DS_Store" not in result.stderr
    assert "Thumbs.db" not in result.stderr
    assert "rose is no class" in result.stderr
    out = folders / "flowers"
    assert [p.name for p in tfrecords.find_shards(out / "train")] == [
        f"flowers_{index:05d}-of-00003.tfrecord" for index in range(3)
    ]
    assert read_labels(out / "flowers_labels.txt") == ["background", "daisy", "tulip"]
    data = data_utils.load(out / "train", image_size=14, batch_size=12, classes=3, training=True)
    ((_, labels),) = list(data)
    assert sorted(labels.numpy()) == [1] * 6 + [2] * 6
    example = tf.train.Example.FromString(
        next(tf.data.TFRecordDataset(str(out / "val" / "flowers_00000-of-00001.tfrecord")).as_numpy_iterator())
    )
    assert {
        key: value.int64_list.value[:] for key, value in example.features.feature.items() if value.int64_list.value
    }.keys() == {"image/height", "image/width", "image/channels", "image/class/label"}
    assert example.features.feature["image/class/text"].bytes_list.value[0] in (b"daisy", b"tulip")
    assert example.features.feature["image/height"].int64_list.value[0] == 24


def test_nothing_is_written_when_the_folders_do_not_fit(folders):
    (folders / "labels.txt").write_text("daisy\ntulip\norchid\n")
    result = run_script(folders)
    assert result.returncode == 2
    assert "1 classes" in result.stderr
    assert "none in orchid" in result.stderr
    assert not (folders / "flowers").exists()


def test_more_shards_than_images(folders):
    result = run_script(folders, "--validation_shards=5")
    assert result.returncode == 2
    assert "received 4" in result.stderr


@pytest.mark.parametrize(("place", "is_folder"), [("val", False), ("flowers_labels.txt", True)])
def test_what_is_in_the_way_is_found_before_the_work(folders, monkeypatch, place, is_folder):
    (folders / "flowers").mkdir()
    path = folders / "flowers" / place
    path.mkdir() if is_folder else path.write_text("notes")
    with pytest.raises(UsageError, match=f"{place}: is in the way"):
        run_here(monkeypatch, folders, script="build_image_data.py")
    assert not (folders / "flowers" / "train").exists()


def test_imagenet_names_come_from_the_metadata(folders, monkeypatch):
    for part in ("train", "val"):
        (folders / part / "daisy").rename(folders / part / "n01")
        (folders / part / "tulip").rename(folders / part / "n02")
    (folders / "labels.txt").write_text("n01\nn02\n")
    metadata = folders / "metadata.txt"
    metadata.write_text("n01\ttench, Tinca tinca\nn02\tcrane\nn03\tcrane\n")
    flags = ("--imagenet_metadata_file", str(metadata))
    run_here(monkeypatch, folders, *flags, script="build_imagenet_data.py")
    assert read_labels(folders / "flowers" / "flowers_labels.txt") == [
        "background",
        "n01 tench, Tinca tinca",
        "n02 crane",
    ]
    metadata.write_text("n01\ttench\u2028n02\tcrane\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"U\+2028"):  # another reader would see two lines
        run_here(monkeypatch, folders, *flags, script="build_imagenet_data.py")
    metadata.write_text("n01\ttench\n")
    with pytest.raises(DataError, match="none for n02"):
        run_here(monkeypatch, folders, *flags, script="build_imagenet_data.py")


def sources(folders: Path) -> list[Source]:
    return find_images(folders / "train", ["background", "daisy", "tulip"])


def test_bytes_depend_on_the_seed_and_not_on_the_threads(folders):
    written = {}
    for threads, seed in ((1, 1), (4, 1), (1, 2)):
        out = folders / f"out-{threads}-{seed}"
        report = build(sources(folders), out, "set", shards=2, threads=threads, seed=seed)
        assert report.written == 12
        written[threads, seed] = [path.read_bytes() for path in tfrecords.find_shards(out)]
    assert written[1, 1] == written[4, 1] != written[1, 2]


def test_no_readable_image_leaves_the_older_records(folders):
    out = folders / "out"
    build(sources(folders), out, "set", shards=2, threads=1, seed=0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for source in sources(folders):
        source.path.write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(DataError, match="image"):
        build(sources(folders), out, "set", shards=2, threads=1, seed=0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def record_of(path: Path):
    return read_image(Source(path, 1, "a"))


def decoded(data: bytes) -> np.ndarray:
    return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_plain_images_are_kept_byte_for_byte(tmp_path, name):
    picture(1).save(tmp_path / name)
    record = record_of(tmp_path / name)
    assert record.encoded == (tmp_path / name).read_bytes()
    assert (record.format, record.height, record.width) == ({"a.jpg": "JPEG", "a.png": "PNG"}[name], 24, 32)


def test_content_counts_and_not_the_suffix(tmp_path):
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert record_of(tmp_path / "a.jpg").format == "PNG"


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    image = picture(1)
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    record = record_of(tmp_path / "a.jpg")
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert (record.height, record.width) == expected.shape[:2] == (32, 24)
    assert np.abs(decoded(record.encoded) - expected).mean() < 4


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "LA", "P", "1"])
def test_other_colour_models_become_rgb(tmp_path, mode):
    image = picture(1).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, **({"quality": 95} if mode == "CMYK" else {}))
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decoded(record_of(path).encoded) - expected).mean() < 4


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    values = np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    got = decoded(record_of(tmp_path / "a.png").encoded)
    np.testing.assert_array_equal(got[..., 0], values >> 8)


def bomb() -> bytes:
    # A PNG header that claims 20000 x 20000 pixels.
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "^is no image that can be read$"),
        (b"GIF89a", "^is no image that can be read$"),
        (b"\x89PNG\r\n\x1a\nxxxx", "no image|broken"),
        (bomb(), "pixels"),
    ],
    ids=["empty", "gif", "png", "bomb"],
)
def test_unreadable_files_are_a_reason(tmp_path, data, part):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=part):
        record_of(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_files_cut_off_anywhere_are_a_reason(tmp_path, name):
    picture(1).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for cut in (10, len(data) // 3, len(data) * 2 // 3):
        (tmp_path / name).write_bytes(data[:cut])
        with pytest.raises(ValueError):
            record_of(tmp_path / name)


def test_pipe_named_like_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="regular"):
        record_of(tmp_path / "a.png")
