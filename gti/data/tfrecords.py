"""Image records in TFRecord shards, in the layout of the Inception scripts that the user guide names (section 7.1.1).

A record is a `tf.train.Example`: `image/encoded` (JPEG or PNG), `image/class/label` (0 = background), and for people
`image/class/text`, `image/format`, `image/filename`, `image/height`, `image/width`, `image/colorspace` and
`image/channels`.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gti import files
from gti.errors import DataError, UsageError, reason

ENCODED = "image/encoded"
LABEL = "image/class/label"
# Image files that folders of classes may hold.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_SHARD = re.compile(r"^(?P<name>.+)[-_](?P<index>\d{5})-of-(?P<count>\d{5})(\.tfrecords?)?$")
# A record is length (uint64), crc of the length, data, crc of the data; crc are masked CRC32C (TFRecord format).
_LENGTH = struct.Struct("<Q")
_BEFORE, _AFTER = 12, 4


@dataclass(frozen=True)
class ImageRecord:
    """One image as it goes into a shard."""

    encoded: bytes  # JPEG or PNG
    format: str  # "JPEG" or "PNG"
    height: int
    width: int
    label: int  # 0 = background
    text: str  # name of the class
    filename: str


def shard_name(name: str, index: int, count: int) -> str:
    """Return the file name of shard `index` (0-based) of `count`, for example `flowers_00000-of-00005.tfrecord`."""
    return f"{name}_{index:05d}-of-{count:05d}.tfrecord"


def is_shard(path: Path) -> bool:
    """Return whether a path is a TFRecord file by its name."""
    return path.is_file() and (path.suffix in (".tfrecord", ".tfrecords") or _SHARD.match(path.name) is not None)


def is_image(path: Path) -> bool:
    """Return whether a path in a class folder is an image by its name; hidden files and folders are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def find_shards(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the TFRecord files of `folder` in name order; empty when it holds none.

    Raises DataError when the names say that shards are missing.
    """
    found = [path for path in sorted(Path(folder).iterdir()) if is_shard(path)]
    series: dict[tuple[str, int], set[int]] = {}
    for path in found:
        if match := _SHARD.match(path.name):
            series.setdefault((match["name"], int(match["count"])), set()).add(int(match["index"]))
    for (name, count), present in series.items():
        missing = sorted(set(range(count)) - present)
        if missing:
            raise DataError(
                str(folder),
                f"shards of {name} are missing",
                expected=f"{count} files",
                received=f"{len(present)} (first one missing: {missing[0]:05d}-of-{count:05d})",
                fix="copy the missing files or build the records again",
            )
    return found


def count_records(path: str | os.PathLike[str]) -> int:
    """Return the number of records of a shard, reading their lengths alone.

    Raises DataError that names the record where the file is cut off or is no TFRecord file.
    """
    size = os.path.getsize(path)
    position = count = 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(_BEFORE)
            end = position + _BEFORE + _LENGTH.unpack(head[:8])[0] + _AFTER if len(head) == _BEFORE else size + 1
            if end > size:
                raise DataError(
                    f"{path}, record {count}",
                    "is cut off, or the file is no TFRecord file",
                    expected=f"a record that ends within the file's {size} bytes",
                    received=f"{size - position} bytes after the record before it",
                    fix="copy the file again or build the records again",
                )
            position = end
            count += 1
    return count


def to_example(record: ImageRecord) -> bytes:
    """Return `record` as a serialized `tf.train.Example`."""
    import tensorflow as tf

    def text(value: str) -> tf.train.Feature:
        # Not every file name is UTF-8.
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[os.fsencode(value)]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        ENCODED: tf.train.Feature(bytes_list=tf.train.BytesList(value=[record.encoded])),
        LABEL: number(record.label),
        "image/class/text": text(record.text),
        "image/format": text(record.format),
        "image/filename": text(record.filename),
        "image/height": number(record.height),
        "image/width": number(record.width),
        "image/colorspace": text("RGB"),
        "image/channels": number(3),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def write_shards(folder: str | os.PathLike[str], name: str, parts: Sequence[Iterable[ImageRecord]]) -> list[Path]:
    """Write one shard per part to `folder` (made if absent) and return their paths, in order.

    The shards are built in a hidden folder and moved when all are complete; they replace those of the same name that an
    earlier run left, whatever their number. Raises UsageError where the disk refuses.
    """
    import tensorflow as tf

    target = Path(folder)
    building = ""
    try:
        target.mkdir(parents=True, exist_ok=True)
        building = tempfile.mkdtemp(prefix=f".{name}.", suffix=".building", dir=target)
        names = [shard_name(name, index, len(parts)) for index in range(len(parts))]
        for file_name in names:
            files.refuse_special(target / file_name)
        for file_name, records in zip(names, parts, strict=True):
            _write_shard(Path(building) / file_name, records)
        for path in target.iterdir():
            match = _SHARD.match(path.name)
            if match and match["name"] == name and path.name not in names:
                path.unlink()
        for file_name in names:
            files.move(Path(building) / file_name, target / file_name)
    except (OSError, tf.errors.OpError) as problem:
        raise UsageError(
            str(target),
            f"cannot be written ({reason(problem)})",
            fix="check that the folder is writable and the disk has space",
        ) from problem
    finally:
        if building:
            shutil.rmtree(building, ignore_errors=True)
    return [target / file_name for file_name in names]


def _write_shard(path: Path, records: Iterable[ImageRecord]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(os.fsencode(path)) as writer:
        for record in records:
            writer.write(to_example(record))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def spread(count: int, parts: int) -> Iterator[range]:
    """Yield `parts` consecutive ranges that cover range(count), their lengths differing by one at most."""
    for part in range(parts):
        yield range(count * part // parts, count * (part + 1) // parts)
