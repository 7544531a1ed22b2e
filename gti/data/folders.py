"""What kind of data a folder holds and what its labels mean, found out without reading an image, or TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gti.data import tfrecords
from gti.data.labels import find_labels, labels_of, read_labels
from gti.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Shards of TFRecords, or class folders of images with the names of all classes, background first."""

    shards: tuple[Path, ...] = ()
    classes: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    labels_file: Path | None = None


def look(folder: str | os.PathLike[str]) -> Layout:
    """Return what `folder` is made of.

    Raises DataError: no folder, missing shards, neither shards nor class folders, class folders that the label file
    does not name, a label file that cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(
            str(folder),
            "no such data folder",
            expected="a folder of TFRecord shards, or of one sub-folder of images per class",
            fix="pass the folder, or build one with scripts/build_image_data.py",
        )
    with naming_unreadable(path):
        shards = tfrecords.find_shards(path)
        if shards:
            return Layout(shards=tuple(shards))
        classes = _class_folders(path)
    if not classes:
        raise DataError(
            str(folder),
            "holds no images",
            expected="TFRecord shards, or one sub-folder of JPEG or PNG images per class",
            fix="build records with scripts/build_image_data.py",
        )
    labels_file = find_labels(path)
    names = read_labels(labels_file) if labels_file else ["", *(path.name for path in classes)]
    for one in classes:
        if one.name not in names:
            raise DataError(
                str(one),
                "is no class of the label file",
                expected=f"a name of {labels_file}",
                received=one.name,
                fix="rename the folder or add the class to the label file",
            )
    return Layout(classes=tuple(classes), names=tuple(names), labels_file=labels_file)


def check_classes(folder: str | os.PathLike[str], classes: int) -> None:
    """Raise DataError where the label file of a data folder names another number of classes."""
    labels_file = find_labels(folder)
    named = len(read_labels(labels_file)) if labels_file else None
    if named is not None and named != classes:
        raise DataError(
            str(labels_file),
            "does not fit --classes",
            expected=f"{classes} classes, background included",
            received=named,
            fix=f"pass --classes {named}",
        )


@contextmanager
def naming_unreadable(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read inside `path` into a DataError."""
    try:
        yield
    except OSError as problem:
        raise DataError(str(problem.filename or path), f"cannot be read ({problem.strerror})") from None


def check_same_classes(*folders: str | os.PathLike[str]) -> None:
    """Check that the data folders of one command give a class the same label; one alone is compared with its `train`.

    Only folders of images without a label file can differ: their labels are the places of the sorted sub-folders.
    Raises DataError with the classes that differ.
    """
    known = [(Path(folder), *_class_names(Path(folder))) for folder in folders]
    if len(known) == 1 and known[0][2] and (beside := known[0][0].resolve().parent / "train").is_dir():
        known.insert(0, (beside, *_class_names(beside)))
    for path, other_names, other_by_order in known[1:]:
        first, names, by_order = known[0]
        if not (by_order or other_by_order) or not names or not other_names or names == other_names:
            continue
        lacking = [name for name in names if name not in other_names]
        added = [name for name in other_names if name not in names]
        differences = [f"{word} {first_few(some)}" for word, some in (("no", lacking), ("also", added)) if some]
        raise DataError(
            str(path),
            f"numbers its classes otherwise than {first}, because labels follow the order of the class folders",
            expected="the same classes, or a label file",
            received=" and ".join(differences) or "another order",
            fix="name all classes in a label file (labels.txt beside the folders), or make the folders the same",
        )


def _class_names(folder: Path) -> tuple[list[str], bool]:
    # Names of the labels 1, 2, ... where they are known, and whether only the order of the folders gives them.
    names = labels_of(folder)
    if names:
        return names[1:], False
    with naming_unreadable(folder):
        if tfrecords.find_shards(folder):
            return [], False
        return [path.name for path in _class_folders(folder)], True


def first_few(values: Sequence[object]) -> str:
    """Return some values for a message, the first five of them."""
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
