"""What the records and images of a data folder hold, and whether they fit: found out before training starts."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import tensorflow as tf

from gti.chip.host.image import MAX_FILE_BYTES
from gti.data import folders, pictures, tfrecords
from gti.data.labels import find_labels, labels_of, read_labels
from gti.errors import DataError, listing, printable, sentence

# Up to this size every record's checksum, label and image are looked at before training; beyond it only the
# first records of every shard, because reading a large set through takes minutes.
FULL_CHECK_BYTES = 1 << 30
SAMPLED_RECORDS = 256
SHOWN_CLASSES = 30  # lines of the table of classes


@dataclass(frozen=True)
class Inspection:
    """What a data folder holds."""

    folder: str
    files: tuple[str, ...]  # shards, or images
    count: int  # images
    label_min: int
    label_max: int
    complete: bool  # every record was looked at, not a sample
    mean_bytes: int  # of an encoded image
    labels: tuple[int, ...] = ()  # of image folders: one per file
    present: tuple[int, ...] = ()  # the different labels of the images looked at
    numbered: int | None = None  # class folders, where their order and no label file gives the labels
    per_label: tuple[tuple[int, int], ...] = ()  # (label, images looked at) of every label in `present`
    names: tuple[str, ...] = ()  # of the classes, index = label, "" where background has none; () where not known
    unused: str = ""  # sentence about files that are not used


def inspect(
    folder: str | os.PathLike[str], classes: int | None = None, *, training: bool = False, names: Sequence[str] = ()
) -> Inspection:
    """Look through a data folder before it is used: what is in it, and whether it fits `classes`.

    Small sets are read completely with their checksums; of large ones every length, and the first records of a shard.
    `names` are those of a checkpoint: they number class folders without a label file.
    Raises DataError: no folder, no images, missing shards, records that are cut off, damaged, without image or without
    label, all pictures that inference would refuse, labels outside 0..classes-1, a label file of another number of
    classes or that numbers them otherwise than `names`, and, without a label file, class folders of another number and,
    for training, classes that no image has.
    """
    path = Path(folder)
    folders.same_labels(names, path)
    layout = folders.look(path, names)
    with folders.naming_unreadable(path):
        found = _inspect_shards(path, layout.shards) if layout.shards else _inspect_folder(path, layout, bool(names))
    if layout.shards:
        found = replace(found, names=tuple(labels_of(path) or names), unused=folders.unused_note(layout))
    _check_classes(found, classes, training)
    return found


def table(found: Inspection) -> list[str]:
    """Return what a data folder holds as lines for people: classes, their labels and images, what is not used."""
    looked_at = sum(count for _, count in found.per_label)
    part = "" if found.complete else f"; of the first {looked_at:,}:"
    lines = [f"{found.folder}: {found.count:,} images of {len(found.per_label)} classes{part}"]
    width = max((len(str(count)) for _, count in found.per_label), default=1)
    for label, count in found.per_label[:SHOWN_CLASSES]:
        name = found.names[label] if label < len(found.names) else ""
        lines.append(f"  label {label:>3}  {count:>{width}} images  {name}".rstrip())
    if len(found.per_label) > SHOWN_CLASSES:
        counts = [count for _, count in found.per_label[SHOWN_CLASSES:]]
        lines.append(f"  and {len(counts)} more classes of {min(counts)} to {max(counts)} images")
    return [printable(line, 300) for line in (*lines, *([f"  {found.unused}"] if found.unused else []))]


def _check_classes(found: Inspection, classes: int | None, training: bool) -> None:
    labels_file = find_labels(found.folder)
    named = len(read_labels(labels_file)) if labels_file else None
    rule = folders.CLASSES_RULE
    if named is not None and found.label_max >= named:
        raise DataError(
            str(labels_file),
            f"names fewer classes than {found.folder} has",
            expected=f"at least {found.label_max + 1} with the background",
            received=named,
            fix="use the label file that the records were built with",
        )
    if classes is None:
        return
    folders.check_classes(found.folder, classes, by_order=found.numbered is not None)
    if found.label_max >= classes:
        raise DataError(
            found.folder,
            "labels do not fit --classes",
            expected=f"labels 0 to {classes - 1}",
            received=f"label {found.label_max}",
            fix=f"pass --classes {found.label_max + 1} ({rule})",
        )
    if training and named is None and found.complete and found.label_max + 1 < classes:
        raise DataError(
            found.folder,
            "has fewer classes than --classes",
            expected=f"labels up to {classes - 1}",
            received=f"none above {found.label_max}",
            fix=f"pass --classes {found.label_max + 1} ({rule}), or name all classes in a label file",
        )
    absent = sorted(set(range(1, classes)) - set(found.present))
    if training and named is None and found.complete and absent:
        raise DataError(
            found.folder,
            "has no image of some classes",
            expected=f"images of every label from 1 to {classes - 1}",
            received=f"none of {folders.first_few(absent)}",
            fix="add images, or name all classes in a label file",
        )


# --- TFRecords


def _inspect_shards(folder: Path, shards: Sequence[Path]) -> Inspection:
    stats = [path.stat() for path in shards]
    states = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(shards, stats, strict=True))
    return _inspect_states(str(folder), states, FULL_CHECK_BYTES)


@lru_cache(maxsize=64)
def _inspect_states(folder: str, states: tuple[tuple[str, int, int], ...], full_check_bytes: int) -> Inspection:
    # Remembered as long as no file changes: training loads the same set anew in every epoch.
    shards = [Path(name) for name, _, _ in states]
    total = sum(size for _, size, _ in states)
    complete = total <= full_check_bytes
    count = 0
    present: Counter[int] = Counter()
    refused: list[str] = []
    for path in shards:
        records = tfrecords.count_records(path)
        count += records
        for labels in _labels_of_shard(path, None if complete else SAMPLED_RECORDS, refused):
            present.update(labels.tolist())
    _refuse(folder, refused)
    if not present:
        raise DataError(
            str(folder), "holds no images", received=f"{len(shards)} empty shards", fix="build the records again"
        )
    return Inspection(
        folder,
        tuple(map(str, shards)),
        count,
        min(present),
        max(present),
        complete,
        total // max(count, 1),
        present=tuple(sorted(present)),
        per_label=tuple(sorted(present.items())),
    )


def _refuse(folder: str, refused: Sequence[str]) -> None:
    # All of them in one list: a picture at a time would take a run each.
    if len(refused) == 1:
        raise DataError(refused[0])
    if refused:
        raise DataError(listing(folder, refused))


def _labels_of_shard(path: Path, limit: int | None, refused: list[str]) -> Iterator[np.ndarray]:
    # Appends what is said of pictures that inference would refuse.
    dataset = tf.data.TFRecordDataset(os.fsencode(path)).take(-1 if limit is None else limit).batch(64)
    features = {
        tfrecords.LABEL: tf.io.FixedLenFeature([], tf.int64, -1),
        tfrecords.ENCODED: tf.io.FixedLenFeature([], tf.string, ""),
    }

    def parse(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_example(batch, features)
        return parsed[tfrecords.LABEL], parsed[tfrecords.ENCODED]

    seen = 0
    try:
        for labels, encoded in dataset.map(parse).as_numpy_iterator():
            sizes = np.array([len(data) for data in encoded])
            if labels.min() < 0 or sizes.min() == 0:
                offender = int(np.argmax((labels < 0) | (sizes == 0)))
                missing = tfrecords.LABEL if labels[offender] < 0 else tfrecords.ENCODED
                raise DataError(
                    f"{path}, record {seen + offender}",
                    f"has no usable {missing}",
                    expected=f"an Example with {tfrecords.ENCODED} and {tfrecords.LABEL} >= 0",
                    fix="build the records with scripts/build_image_data.py",
                )
            for number, data in enumerate(encoded, seen):
                problem = pictures.refusal(io.BytesIO(data), len(data), f"{path}, record {number}")
                if problem is not None:
                    refused.append(str(problem))
            seen += len(labels)
            yield labels
    except (tf.errors.OpError, UnicodeDecodeError):  # the latter where TensorFlow's message quotes raw bytes
        raise _damaged_record(path, features) from None


def _damaged_record(path: Path, features: dict) -> DataError:
    seen = 0
    problem = "is damaged"
    try:
        for record in tf.data.TFRecordDataset(os.fsencode(path)).as_numpy_iterator():
            tf.io.parse_single_example(record, features)
            seen += 1
    except tf.errors.DataLossError:
        problem = "is damaged (its checksum is wrong)"
    except (tf.errors.OpError, UnicodeDecodeError):
        problem = "is no Example of an image"
    return DataError(f"{path}, record {seen}", problem, fix="copy the file again or build the records again")


# --- image folders


def _inspect_folder(folder: Path, layout: folders.Layout, named: bool) -> Inspection:
    states: list[tuple[str, int, int]] = []
    labels: list[int] = []
    refused: list[str] = []
    for path in layout.classes:
        for image in sorted(path.iterdir()):
            if tfrecords.is_image(image):
                try:
                    states.append(_state_of_image(image))
                    labels.append(layout.names.index(path.name))
                except DataError as problem:
                    refused.append(str(problem))
    unused = folders.unused_note(layout)
    if not states and not refused:
        raise DataError(
            str(folder),
            "holds no images" + (f" ({unused})" if unused else ""),
            expected="JPEG or PNG files",
            fix="copy them into the class folders",
        )
    _refuse(str(folder), [*refused, *_refused_images(tuple(states))])
    counts = tuple(sorted(Counter(labels).items()))
    return Inspection(
        str(folder),
        tuple(name for name, _, _ in states),
        len(states),
        min(labels),
        max(labels),
        True,
        sum(size for _, size, _ in states) // len(states),
        tuple(labels),
        tuple(label for label, _ in counts),
        None if layout.labels_file or named else len(layout.classes),
        per_label=counts,
        names=layout.names,
        unused=unused,
    )


def _state_of_image(path: Path) -> tuple[str, int, int]:
    try:
        info = path.stat()
    except OSError as problem:  # a link that leads nowhere
        raise DataError(str(path), f"cannot be read ({problem.strerror})", fix="replace or remove it") from None
    # A pipe would be waited for without end.
    if not stat.S_ISREG(info.st_mode):
        raise DataError(str(path), "is not a regular file", expected="a JPEG or PNG image", fix="replace or remove it")
    return str(path), info.st_size, info.st_mtime_ns


@lru_cache(maxsize=8)
def _refused_images(states: tuple[tuple[str, int, int], ...]) -> tuple[str, ...]:
    # Remembered as long as no file changes, like the shards: headers of a large set take a while.
    problems = (_refused_image(name) for name, _, _ in states)
    return tuple(problem for problem in problems if problem)


def _refused_image(name: str) -> str:
    with open(name, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length > MAX_FILE_BYTES:
            return sentence(name, "is too large", expected=f"at most {MAX_FILE_BYTES} bytes", received=length)
        problem = pictures.refusal(file, length, name)
    return str(problem) if problem else ""
