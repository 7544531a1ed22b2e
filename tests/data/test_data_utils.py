"""The data pipeline: pixels, codes, order, and every kind of bad data."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_data import png, random_images, record, refusal, write
from sweeps import first_quick

from gti import data_utils
from gti.chip.host.preprocessing import Preprocessing
from gti.data import data_check, tfrecords
from gti.errors import DataError, UsageError


def five_bit(x: np.ndarray) -> np.ndarray:
    # User guide, section 5: clip(((x >> 2) + 1) >> 1, 0, 31), stated here in wide integers.
    return np.minimum(((x.astype(np.int64) >> 2) + 1) >> 1, 31)


def write_raw(path: Path, examples: list[bytes]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)


@pytest.fixture
def dataset(tmp_path):
    """Seven images of 16x16 in two shards, labels 1..3, no cropping."""
    images = random_images(7)
    labels = [1, 2, 3, 1, 2, 3, 1]
    folder = tmp_path / "set" / "train"
    write(folder, images, labels)
    (tmp_path / "set" / data_utils.SETTINGS_NAME).write_text('{"crop_fraction": 1.0, "flip": false}')
    return folder, np.stack(images), labels


# --- what comes out


def test_evaluation_gives_every_image_in_order_as_bgr(dataset):
    folder, images, labels = dataset
    batches = list(data_utils.load(folder, image_size=16, batch_size=3, classes=4, as_codes=False))
    assert [len(y) for _, y in batches] == [3, 3, 1]  # the remainder is kept
    pixels = np.concatenate([x.numpy() for x, _ in batches])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, images[..., ::-1])
    np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y in batches]), labels)
    assert batches[0][1].dtype == tf.int32


INFERENCE_SIZES = [
    # (height, width, size, crop fraction): shrinking, growing, both ways at once, nothing to do, odd numbers
    (480, 640, 224, 0.875),
    (100, 80, 28, 1.0),
    (20, 33, 28, 0.875),
    (28, 28, 28, 1.0),
    (301, 300, 112, 0.5),
    (9, 9, 448, 0.875),
    (1, 1, 14, 0.875),
]


@pytest.mark.parametrize(("height", "width", "size", "fraction"), INFERENCE_SIZES)
def test_pixels_are_those_of_inference(height: int, width: int, size: int, fraction: float) -> None:
    (rgb,) = random_images(1, height, width)
    got = data_utils.prepare_image(rgb, size, 3, crop_fraction=fraction).numpy()
    expected = Preprocessing(size, 3, "BGR", fraction).apply(rgb, "RGB")
    difference = np.abs(got.astype(int) - expected)
    # Sums of floats in another order: values that end in .5 may fall to either side.
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 0.005 * difference.size


def test_training_pictures_move_beyond_their_borders() -> None:
    """Every window of the picture mirrored at its borders (NumPy's "symmetric") is drawn, and no other."""
    (rgb,) = random_images(1, 8, 8)
    mirrored = np.pad(rgb, ((2, 2), (2, 2), (0, 0)), "symmetric")  # a quarter of 8 on each side
    windows = {mirrored[y : y + 8, x : x + 8, ::-1].tobytes() for y in range(5) for x in range(5)}
    draws = (tf.constant(draw, tf.int64) for draw in range(300))
    moved = [data_utils.prepare_image(rgb, 8, crop_fraction=1.0, shift=0.25, seed=draw).numpy() for draw in draws]
    assert {image.tobytes() for image in moved} == windows
    still = data_utils.prepare_image(rgb, 8, crop_fraction=1.0, shift=0.25).numpy()
    np.testing.assert_array_equal(still, rgb[..., ::-1])


def test_shift_comes_from_the_description_beside_the_data(dataset):
    folder, images, _ = dataset
    described = folder.parent / data_utils.SETTINGS_NAME

    def drawn(shift):
        described.write_text(f'{{"crop_fraction": 1.0, "flip": false, "shift": {shift}}}')
        data = data_utils.load(folder, image_size=16, batch_size=7, classes=4, training=True, seed=1, as_codes=False)
        return {image.tobytes() for image in next(iter(data))[0].numpy()}

    whole = {image.tobytes() for image in images[..., ::-1]}
    assert drawn(0) == whole
    assert not drawn(0.5) <= whole


def test_codes_are_the_five_bit_transform_of_the_pixels(dataset):
    folder, images, _ = dataset
    codes = np.concatenate([x.numpy() for x, _ in data_utils.load(folder, image_size=16, batch_size=4, classes=4)])
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, five_bit(images[..., ::-1]))


def test_codes_of_all_bytes():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(data_utils.to_codes(every).numpy(), five_bit(every))


@pytest.mark.parametrize("training", first_quick(1, [True, False]))
def test_codes_and_pixels_agree_when_resized(tmp_path, training):
    folder = tmp_path / "set" / "train"
    write(folder, random_images(6, 40, 30), [1, 2, 1, 2, 1, 2])

    def batch(as_codes):
        data = data_utils.load(
            folder, image_size=14, batch_size=6, classes=3, training=training, seed=3, as_codes=as_codes
        )
        return next(iter(data))

    (codes, labels), (pixels, same_labels) = batch(True), batch(False)
    assert pixels.shape == (6, 14, 14, 3)
    np.testing.assert_array_equal(labels, same_labels)
    np.testing.assert_array_equal(codes.numpy(), five_bit(pixels.numpy()))


def test_training_is_shuffled_reproducible_and_complete(dataset):
    folder, images, labels = dataset
    pairs = {image[..., ::-1].tobytes(): label for image, label in zip(images, labels, strict=True)}

    def epochs(seed):
        data = data_utils.load(folder, image_size=16, batch_size=7, classes=4, training=True, seed=seed, as_codes=False)
        return [next(iter(data)) for _ in range(3)]

    first, again, other = epochs(5), epochs(5), epochs(6)
    for (x, y), (x2, y2) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
        assert {image.tobytes(): label for image, label in zip(x.numpy(), y.numpy(), strict=True)} == pairs
    orders = [tuple(y.numpy()) for _, y in (*first, *other)]
    assert len(set(orders)) > 1


def test_random_crops_are_windows_of_the_image_and_mirrored_half_of_the_time(tmp_path):
    folder = tmp_path / "set" / "train"
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = np.arange(16)[:, None] * 16  # red tells the row, green the column
    image[..., 1] = np.arange(16)[None, :] * 16
    write(folder, [image] * 64, [1] * 64)
    data = data_utils.load(folder, image_size=14, batch_size=64, classes=2, training=True, seed=1, as_codes=False)
    seen = set()
    for window in next(iter(data))[0].numpy():
        rows, columns = window[:, 0, 2] // 16, window[0, :, 1] // 16
        mirrored = columns[0] > columns[-1]
        columns = columns[::-1] if mirrored else columns
        np.testing.assert_array_equal(rows, np.arange(rows[0], rows[0] + 14))
        np.testing.assert_array_equal(columns, np.arange(columns[0], columns[0] + 14))
        seen.add((int(rows[0]), int(columns[0]), bool(mirrored)))
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == {0, 1, 2}  # 0.875 * 16 = 14
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_training_without_augmentation_crops_in_the_middle(tmp_path):
    folder = tmp_path / "set" / "train"
    image = random_images(1)[0]
    write(folder, [image] * 4, [1] * 4)
    data = data_utils.load(folder, image_size=14, batch_size=4, classes=2, training=True, augment=False, as_codes=False)
    for window in next(iter(data))[0].numpy():
        np.testing.assert_array_equal(window, image[1:15, 1:15, ::-1])


def test_central_crop_is_a_square_and_resizing_averages():
    # 8x12 -> the middle 8x8 -> 4x4: Pillow's triangle filter is the independent statement of the same resize.
    image = random_images(1, 8, 12, seed=4)[0]
    got = data_utils.prepare_image(tf.constant(image), 4, crop_fraction=1.0).numpy()[..., ::-1]
    expected = np.asarray(Image.fromarray(image[:, 2:10]).resize((4, 4), Image.Resampling.BILINEAR))
    assert np.abs(got.astype(int) - expected).max() <= 1  # Pillow computes in fixed point


def test_grey_images_for_one_channel(tmp_path):
    folder = tmp_path / "set" / "val"
    image = np.full((14, 14), 200, np.uint8)
    write(folder, [image], [1], shards=1)
    (pixels, _), *_ = data_utils.load(folder, image_size=14, channels=1, batch_size=1, classes=2, as_codes=False)
    assert pixels.shape == (1, 14, 14, 1)
    assert np.all(pixels.numpy() == 200)


def test_image_folder_gives_what_its_tfrecords_give(tmp_path):
    images = random_images(5, 20, 24)
    labels = [1, 1, 2, 2, 2]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        sub = tmp_path / "folders" / "val" / ("cat", "dog")[label - 1]
        sub.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(sub / f"{index}.png")
    write(tmp_path / "records" / "val", images, labels)
    got, expected = (
        list(data_utils.load(tmp_path / kind / "val", image_size=14, batch_size=5, classes=3))
        for kind in ("folders", "records")
    )
    np.testing.assert_array_equal(got[0][0], expected[0][0])
    np.testing.assert_array_equal(got[0][1], expected[0][1])


def test_image_folder_follows_the_label_file(tmp_path):
    for name in ("zebra", "ant"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(random_images(1)[0]).save(tmp_path / "val" / name / "1.png")
    (tmp_path / "labels.txt").write_text("zebra\nant\n")
    found = data_check.inspect(tmp_path / "val", 3)
    assert [Path(file).parent.name for file in found.files] == ["ant", "zebra"]
    assert found.labels == (2, 1)


def test_length_is_known_before_reading(dataset):
    folder, _, _ = dataset
    assert data_utils.load(folder, image_size=16, batch_size=3, classes=4).cardinality() == 3


def test_workers_split_every_batch(dataset):
    folder, _, _ = dataset
    options = data_utils.load(folder, image_size=16, batch_size=3, classes=4).options()
    assert options.experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.DATA


# --- what is refused


def test_no_folder(tmp_path):
    assert "folder" in refusal(tmp_path / "absent")


def test_empty_folder(tmp_path):
    assert "images" in refusal(tmp_path)


def test_folder_without_images(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    assert "images" in refusal(tmp_path)


def test_empty_shards(tmp_path):
    write(tmp_path / "val", [], [], shards=1)
    assert "empty shards" in refusal(tmp_path / "val")


def test_missing_shard_is_named(dataset):
    folder, _, _ = dataset
    (folder / "set_00001-of-00002.tfrecord").unlink()
    assert "00001-of-00002" in refusal(folder)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_shard_names_the_record(dataset, keep):
    folder, _, _ = dataset
    path = folder / "set_00000-of-00002.tfrecord"  # records 0..2
    data = path.read_bytes()
    ends, position = [], 0
    while position < len(data):
        position += 16 + struct.unpack_from("<Q", data, position)[0]
        ends.append(position)
    cut = max(1, int(len(data) * keep))
    path.write_bytes(data[:cut])
    message = refusal(folder)
    assert f"{path.name}, record {sum(end <= cut for end in ends)}: is cut off" in message


def test_flipped_bit_names_the_record(dataset):
    folder, _, _ = dataset
    path = folder / "set_00001-of-00002.tfrecord"
    data = bytearray(path.read_bytes())
    first = 16 + struct.unpack_from("<Q", data, 0)[0]
    data[first + 12 + 50] ^= 1
    path.write_bytes(data)
    assert f"{path.name}, record 1: is damaged (its checksum is wrong)" in refusal(folder)


def test_file_that_is_no_tfrecord(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"this is a text file, long enough to be read as a length")
    assert "a.tfrecord" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("missing", "name"), [(tfrecords.ENCODED, "image/encoded"), (tfrecords.LABEL, "image/class/label")]
)
def test_record_without_image_or_label(tmp_path, missing, name):
    good = tfrecords.to_example(record(random_images(1)[0], 1))
    bad = tf.train.Example.FromString(good)
    del bad.features.feature[missing]
    write_raw(tmp_path / "a.tfrecord", [good, good, bad.SerializeToString()])
    message = refusal(tmp_path)
    assert "a.tfrecord, record 2" in message
    assert name in message


def test_record_that_is_no_example(tmp_path):
    write_raw(tmp_path / "a.tfrecord", [tfrecords.to_example(record(random_images(1)[0], 1)), b"\xff\xff\xff"])
    assert "a.tfrecord, record 1: is no Example of an image" in refusal(tmp_path)


def test_image_with_a_wrong_suffix(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "page.jpg").write_text("<html>")
    assert "page.jpg" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["records", "folders"])
def test_undecodable_image_is_named_when_it_is_met(tmp_path, kind):
    good = png(random_images(1)[0])
    images = [good, good[:60], good]
    if kind == "records":
        folder = tmp_path
        parts = [[tfrecords.ImageRecord(data, "PNG", 16, 16, 1, "a", "a.png") for data in images]]
        tfrecords.write_shards(folder, "set", parts)
        culprit = "set_00000-of-00001.tfrecord, record 1"
    else:
        (tmp_path / "cat").mkdir()
        for index, data in enumerate(images):
            (tmp_path / "cat" / f"{index}.png").write_bytes(data)
        folder, culprit = tmp_path, "1.png"
    data = data_utils.load(folder, image_size=14, batch_size=1, classes=2)
    with pytest.raises(DataError, match="decoded") as caught, data_utils.naming_errors(None, folder):
        list(data)
    assert culprit in str(caught.value)


def test_errors_that_are_not_the_datas_pass_unchanged(dataset):
    folder, _, _ = dataset
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"), data_utils.naming_errors(folder):
        raise tf.errors.InvalidArgumentError(None, None, "mine")


def test_labels_beyond_classes(dataset):
    folder, _, _ = dataset
    message = refusal(folder, classes=3)
    assert "received label 3" in message
    assert "--classes 4" in message


def test_classes_beyond_labels_matter_in_training_only(dataset):
    folder, _, _ = dataset
    assert "--classes" in refusal(folder, classes=1000, training=True)
    data_utils.load(folder, image_size=16, batch_size=2, classes=1000)


def test_label_file_of_another_number_of_classes(dataset):
    folder, _, _ = dataset
    labels = folder.parent / "set_labels.txt"
    labels.write_text("1 a\n2 b\n3 c\n4 d\n")
    assert "received 5" in refusal(folder)
    data_utils.load(folder, image_size=16, batch_size=2, classes=5, training=True)  # named: class 4 may be absent
    labels.write_text("1 a\n2 b\n")
    assert "fewer" in refusal(folder, classes=None)


def test_class_folder_that_the_label_file_does_not_name(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "labels.txt").write_text("dog\n")
    assert "class" in refusal(tmp_path / "val")


def test_input_that_is_no_image(dataset):
    folder, _, _ = dataset
    assert "expected 1 or 3 channels, received 16" in refusal(folder, channels=16)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "JSON"),
        ("[]", "pipeline"),
        ('{"crop": 1}', "pipeline"),
        ('{"crop_fraction": 0}', "crop_fraction"),
        ('{"crop_fraction": 1.5}', "crop_fraction"),
        ('{"crop_fraction": "1"}', "crop_fraction"),
        ('{"flip": 1}', "impossible"),
        ('{"shift": -0.1}', "shift"),
        ('{"shift": 0.6}', "shift"),
        ('{"shift": true}', "shift"),
    ],
)
def test_bad_pipeline_description(dataset, text, part):
    folder, _, _ = dataset
    (folder.parent / data_utils.SETTINGS_NAME).write_text(text)
    assert part in refusal(folder)


def test_large_sets_are_sampled(dataset, monkeypatch):
    folder, _, _ = dataset
    monkeypatch.setattr(data_check, "FULL_CHECK_BYTES", 0)
    monkeypatch.setattr(data_check, "SAMPLED_RECORDS", 1)
    found = data_check.inspect(folder, 4)
    # First records of the shards (0..2 and 3..6) have the labels 1 and 1; all seven are counted.
    assert (found.count, found.label_min, found.label_max, found.complete) == (7, 1, 1, False)


# --- shards


def test_shards_replace_those_of_another_number(tmp_path):
    images = random_images(4)
    write(tmp_path, images, [1] * 4, shards=4)
    write(tmp_path, images, [1] * 4, shards=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [tfrecords.shard_name("set", i, 2) for i in range(2)]


def test_shards_that_are_links_are_followed_and_others_never_replaced(tmp_path):
    images, folder = random_images(2), tmp_path / "set"
    write(folder, images, [1, 1], shards=1)
    (shard,) = folder.iterdir()
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    write(folder, images, [1, 2], shards=1)
    assert shard.is_symlink()
    assert data_check.inspect(folder).present == (1, 2)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(UsageError, match="regular"):
        write(folder, images, [1, 1], shards=1)
    assert [path.is_fifo() for path in folder.iterdir()] == [True]


def test_failure_while_writing_leaves_the_old_shards(tmp_path):
    write(tmp_path, random_images(2), [1, 1])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def broken():
        yield record(random_images(1)[0], 2)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        tfrecords.write_shards(tmp_path, "set", [broken(), []])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
