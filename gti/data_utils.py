"""Data sets -> batches in chip units: TFRecords and image folders alike.

The way of an image: decode -> square crop -> resize -> round to uint8 -> BGR -> 5-bit codes (user guide, section 5).
Training and the stick see identical pixels: the uint8 image that goes over USB has the codes that the model trains on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from gti.chip.emulator.emulator import usable_cores
from gti.chip.host.image import decode
from gti.chip.host.resizing import resized
from gti.chip.spec import MAX_CODE
from gti.data import pictures, tfrecords
from gti.data.data_check import Inspection, inspect
from gti.errors import DataError, FormatError, GtiError
from gti.files import is_number, read_json

CROP_FRACTION = 0.875  # the pipeline of the user guide, section 7.1: 224 of 256 pixels
SETTINGS_NAME = "pipeline.json"
# Encoded images that wait in the shuffle buffer.
SHUFFLE_BYTES = 256 << 20
MAX_SHUFFLED = 65536
# Batches that wait for the model.
PREFETCHED = 2


@dataclass(frozen=True)
class Pipeline:
    """How a data set wants to be cropped, moved and flipped; `pipeline.json` beside it overrides the defaults."""

    crop_fraction: float = CROP_FRACTION
    flip: bool = True
    shift: float = 0.0  # of training pictures, in sides of the crop


def load(
    folder: str | os.PathLike[str],
    *,
    image_size: int,
    channels: int = 3,
    batch_size: int,
    classes: int | None,
    training: bool = False,
    augment: bool = True,
    seed: int | None = None,
    as_codes: bool = True,
    names: Sequence[str] = (),
    crop_fraction: float | None = None,
) -> tf.data.Dataset:
    """Return the batches of a data folder: (images [B,H,W,C], labels int32 [B]), channels in the order B, G, R.

    Images are float32 codes 0..31, or with `as_codes=False` the uint8 pixels 0..255 that a stick takes:
    codes == five_bit(pixels). Training: shuffled with `seed`, and with `augment` cropped at random and flipped.
    Evaluation: central crop, every image in file order, the last batch may be smaller. `names`: as `inspect`.
    `crop_fraction`: where no `pipeline.json` tells it.

    Raises DataError for everything that `inspect` finds. An image that turns out undecodable while iterating raises
    TensorFlow's error; `naming_errors` makes it a DataError that names the record.
    """
    if channels not in (1, 3):
        raise DataError(
            str(folder), "the network's input is not an image", expected="1 or 3 channels", received=channels
        )
    found = inspect(folder, classes, training=training, names=names)
    pipeline = read_pipeline(folder, crop_fraction)
    dataset = _encoded_images(found, shuffle=training, seed=seed)
    if training:
        buffer = max(1, min(found.count, MAX_SHUFFLED, SHUFFLE_BYTES // max(found.mean_bytes, 1)))
        dataset = dataset.shuffle(buffer, seed=seed)
    if training and augment:
        dataset = tf.data.Dataset.zip(dataset, tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True))

    def prepare(encoded_and_label: tuple[tf.Tensor, tf.Tensor], draw: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = encoded_and_label
        image = pictures.decode(encoded, channels)
        return prepare_image(image, image_size, channels, seed=draw, **asdict(pipeline)), label

    if training and augment:
        dataset = dataset.map(prepare, num_parallel_calls=usable_cores(), deterministic=True)
    else:
        dataset = dataset.map(
            lambda encoded, label: prepare((encoded, label), None),
            num_parallel_calls=usable_cores(),
            deterministic=True,
        )
    dataset = dataset.batch(batch_size)
    if as_codes:
        dataset = dataset.map(lambda pixels, labels: (to_codes(pixels), labels), num_parallel_calls=usable_cores())
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-found.count // batch_size)))
    options = tf.data.Options()
    # With fixed numbers there is nothing to tune, and the tuner's thread lets the end of an iterator wait for its next
    # look, up to seconds.
    options.autotune.enabled = False
    # Workers share every global batch, so that one worker and many see the same batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(PREFETCHED).with_options(options)


def prepare_image(
    image: tf.Tensor,
    image_size: int,
    channels: int = 3,
    *,
    crop_fraction: float = CROP_FRACTION,
    shift: float = 0.0,
    seed: tf.Tensor | None = None,
    flip: bool = False,
) -> tf.Tensor:
    """Return the uint8 [S,S,C] BGR pixels for the chip of an RGB (or grey) uint8 image [H,W,C].

    A square of `crop_fraction` of the shorter side is cut out, in the middle or, with a `seed` (int64), anywhere and
    mirrored half of the time if `flip`; it is resized bilinearly (averaging when it shrinks) and rounded half up.
    Anywhere is up to `shift` (0..0.5) of the square's side beyond the image, which is mirrored at its borders.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.maximum(tf.cast(tf.floor(shorter * crop_fraction + 0.5), tf.int32), 1)
    if seed is not None and shift:
        margin = tf.cast(tf.floor(tf.cast(side, tf.float32) * shift + 0.5), tf.int32)
        image = tf.pad(image, [[margin, margin], [margin, margin], [0, 0]], "SYMMETRIC")
        height, width = height + 2 * margin, width + 2 * margin
    if seed is None:
        top, left = (height - side) // 2, (width - side) // 2
    else:
        draws = tf.random.stateless_uniform([3], tf.stack([seed, 0]))
        top = tf.cast(draws[0] * tf.cast(height - side + 1, tf.float32), tf.int32)
        left = tf.cast(draws[1] * tf.cast(width - side + 1, tf.float32), tf.int32)
    image = image[top : top + side, left : left + side]
    # Resizing to the same size changes nothing but costs most of the time of small images.
    resize = _resize_exactly if seed is None else _resize
    pixels = tf.cond(side == image_size, lambda: image, lambda: resize(image, image_size))
    if seed is not None and flip:
        pixels = tf.cond(draws[2] < 0.5, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    if channels == 3:
        pixels = tf.reverse(pixels, [2])
    pixels.set_shape((image_size, image_size, channels))
    return pixels


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    # Averages of pixels are not negative, so the cast rounds down what has half a step more; none exceeds 255.
    resized = tf.image.resize(image, (size, size), method="bilinear", antialias=True)
    return tf.cast(resized + 0.5, tf.uint8)


def _resize_exactly(image: tf.Tensor, size: int) -> tf.Tensor:
    # By inference's own function: TensorFlow adds in another order, and halves may fall to the other side.
    pixels = tf.numpy_function(lambda value: resized(value, size), [image], tf.uint8, stateful=False)
    return tf.ensure_shape(pixels, (size, size, image.shape[2]))


def to_codes(pixels: tf.Tensor) -> tf.Tensor:
    """Return float32 codes 0..31 of uint8 pixels of any shape: the 5-bit transform of user guide section 5."""
    # The rule lives in gti.chip.emulator.arithmetic: ((x >> 2) + 1) >> 1 is floor((x + 4) / 8). A table of it takes
    # six times as long as these exact float32 operations.
    return tf.minimum(tf.floor((tf.cast(pixels, tf.float32) + 4.0) * 0.125), float(MAX_CODE))


def read_pipeline(folder: str | os.PathLike[str], crop_fraction: float | None = None) -> Pipeline:
    """Return how a data folder is cropped, moved and flipped: `pipeline.json` in it or in its parent, or the defaults.

    `crop_fraction`: that of a checkpoint, in place of the default.

    Raises DataError for unknown keys and impossible values.
    """
    path = next((p for p in (Path(folder) / SETTINGS_NAME, Path(folder).parent / SETTINGS_NAME) if p.is_file()), None)
    usual = CROP_FRACTION if crop_fraction is None else crop_fraction
    if path is None:
        return Pipeline(usual)
    try:
        value = read_json(path)
    except FormatError as problem:
        raise DataError(str(problem)) from None
    known = asdict(Pipeline())
    if not isinstance(value, dict) or not value.keys() <= known.keys():
        raise DataError(str(path), "is no pipeline description", expected=json.dumps(known))
    crop, shift, flip = value.get("crop_fraction", usual), value.get("shift", 0.0), value.get("flip", True)
    if not is_number(crop) or not 0 < crop <= 1:
        raise DataError(str(path), "crop_fraction is impossible", expected="a number in (0, 1]", received=crop)
    if not is_number(shift) or not 0 <= shift <= 0.5:
        raise DataError(str(path), "shift is impossible", expected="a number in [0, 0.5]", received=shift)
    if not isinstance(flip, bool):
        raise DataError(str(path), "flip is impossible", expected="true or false", received=flip)
    return Pipeline(float(crop), flip, float(shift))


def _encoded_images(found: Inspection, *, shuffle: bool, seed: int | None) -> tf.data.Dataset:
    # ((encoded, label), ...) in file order, or with the files in random order. Bytes: not every name is UTF-8.
    names = [os.fsencode(file) for file in found.files]
    if found.labels:
        dataset = tf.data.Dataset.from_tensor_slices((names, np.array(found.labels, np.int32)))
        if shuffle:
            dataset = dataset.shuffle(found.count, seed=seed)
        return dataset.map(lambda path, label: (tf.io.read_file(path), label), num_parallel_calls=usable_cores())
    files = tf.data.Dataset.from_tensor_slices(names)
    if shuffle:
        files = files.shuffle(len(found.files), seed=seed)
        records = files.interleave(tf.data.TFRecordDataset, cycle_length=min(16, len(found.files)))
    else:
        records = files.flat_map(tf.data.TFRecordDataset)
    return records.map(_parse, num_parallel_calls=usable_cores())


def _parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {
        tfrecords.ENCODED: tf.io.FixedLenFeature([], tf.string),
        tfrecords.LABEL: tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = tf.io.parse_single_example(record, features)
    return parsed[tfrecords.ENCODED], tf.cast(parsed[tfrecords.LABEL], tf.int32)


@contextmanager
def naming_errors(*folders: str | os.PathLike[str] | None) -> Iterator[None]:
    """Turn TensorFlow's error about unreadable data into a DataError that names the file and record.

    TensorFlow does not say which image it was: the folders are read again, one image after the other, up to it.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError):
        for folder in folders:
            if folder is not None and (culprit := find_undecodable(folder)) is not None:
                raise culprit from None
        raise


def find_undecodable(folder: str | os.PathLike[str]) -> DataError | None:
    """Decode every image of a folder; return the error that names the first one that cannot be, or None."""
    try:
        found = inspect(folder)
    except DataError as problem:
        return problem
    for file in found.files:
        single = Inspection(found.folder, (file,), 0, 0, 0, True, 0, (0,) if found.labels else ())
        number = 0
        try:
            for encoded, _ in _encoded_images(single, shuffle=False, seed=None):
                subject = file if found.labels else f"{file}, record {number}"
                decode(encoded.numpy(), 3, subject)
                pictures.decode(encoded, 3)
                number += 1
        except GtiError as problem:
            return DataError(str(problem))
        except tf.errors.OpError as problem:
            subject = file if found.labels else f"{file}, record {number}"
            return DataError(subject, f"cannot be read ({_own_words(problem)})", fix="replace or remove it")
    return None


def _own_words(problem: tf.errors.OpError) -> str:
    # TensorFlow names the node of its graph before the reason.
    return re.sub(r"^\{\{.*?\}\}\s*", "", problem.message).splitlines()[0][:200]
