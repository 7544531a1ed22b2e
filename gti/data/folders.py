"""What kind of data a folder holds and what its labels mean, found out without reading an image, or TensorFlow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gti.data import tfrecords
from gti.data.labels import find_labels, labels_of, read_labels, refuse_strange
from gti.errors import DataError, printable

CLASSES_RULE = "labels 1 to N, 0 is the background, so N classes need --classes N+1"
# Besides images: of systems, and of this kit.
_OWN_FILES = ("Thumbs.db", "desktop.ini", "pipeline.json")


@dataclass(frozen=True)
class Layout:
    """Shards of TFRecords, or class folders of images with the names of all classes, background first."""

    shards: tuple[Path, ...] = ()
    classes: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    labels_file: Path | None = None
    unused: tuple[Path, ...] = ()  # what lies in the folder and its class folders and is no image by its name


def holds_data(folder: str | os.PathLike[str]) -> bool:
    """Return whether `folder` itself holds shards, or class folders of images, rather than `train` and `val`."""
    path = Path(folder)
    try:
        if not path.is_dir() or (path / "train").is_dir() or (path / "val").is_dir():
            return False
        return any(map(tfrecords.is_shard, path.iterdir())) or any(
            tfrecords.is_image(image) for one in _class_folders(path) for image in one.iterdir()
        )
    except OSError:
        return False  # whoever reads it says what is wrong


def look(folder: str | os.PathLike[str], names: Sequence[str] = ()) -> Layout:
    """Return what `folder` is made of; `names`: those of a checkpoint, for class folders without a label file.

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
            beside = [entry for entry in _entries(path) if entry.is_dir() or tfrecords.is_image(entry)]
            return Layout(shards=tuple(shards), unused=tuple(beside))
        classes = _class_folders(path)
        if not classes:
            _refuse_no_image(path, classes)
    labels_file = find_labels(path)
    known = read_labels(labels_file) if labels_file else list(names) or ["", *(path.name for path in classes)]
    for one in classes:
        refuse_strange(one.name, str(one))
    strange = [one.name for one in classes if one.name not in known]
    if strange:
        raise DataError(
            str(path / strange[0]) if len(strange) == 1 else str(path),
            "is no class of the label file" if labels_file else "has folders that are no class of the checkpoint",
            expected=f"a name of {labels_file}" if labels_file else first_few(known[1:]),
            received=first_few(strange),
            fix="rename the folder or add the class to the label file",
        )
    with naming_unreadable(path):
        _refuse_no_image(path, classes)
        unused = [entry for entry in _entries(path) if not entry.is_dir() and entry != labels_file]
        unused += [entry for one in classes for entry in _entries(one) if not tfrecords.is_image(entry)]
    return Layout(classes=tuple(classes), names=tuple(known), labels_file=labels_file, unused=tuple(unused))


def _refuse_no_image(folder: Path, classes: Sequence[Path]) -> None:
    if any(tfrecords.is_image(entry) for one in classes for entry in one.iterdir()):
        return
    loose = [entry.name for entry in folder.iterdir() if tfrecords.is_image(entry)]
    deeper = [f"{one.name}/{entry.name}" for one in classes for entry in _class_folders(one)]
    found, fix = "", "build records with scripts/build_image_data.py"
    if loose:
        found, fix = f" in class folders, only beside them: {first_few(loose)}", "make a sub-folder for each class"
    elif deeper:
        found, fix = f" in class folders, but folders: {first_few(deeper)}", "pass the folder that holds the classes"
    raise DataError(
        str(folder),
        f"holds no images{found}",
        expected="TFRecord shards, or one sub-folder of JPEG or PNG images per class",
        fix=fix,
    )


def _entries(folder: Path) -> list[Path]:
    # Without what systems and this kit leave beside images.
    return [path for path in sorted(folder.iterdir()) if path.name not in _OWN_FILES and path.name[0] != "."]


def unused_note(layout: Layout) -> str:
    """Return the sentence that counts and names what of class folders is not used, "" where all is."""
    if not layout.unused:
        return ""
    kinds = Counter(
        "sub-folders" if path.is_dir() else path.suffix.lower() or "without suffix" for path in layout.unused
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    shown = first_few([f"{path.parent.name}/{path.name}" for path in layout.unused])
    why = "the records are" if layout.shards else "images are files named .jpg, .jpeg or .png"
    return printable(f"not used: {counts}: {shown} ({why})", 1000)


def same_labels(names: Sequence[str], folder: str | os.PathLike[str]) -> None:
    """Raise DataError where the label file of a data folder gives a class another label than `names` does."""
    labels_file = find_labels(folder)
    if not names or labels_file is None:
        return
    now = read_labels(labels_file)
    moved = [name for name in now[1:] if name in names and names.index(name) != now.index(name)]
    if moved:
        raise DataError(
            str(labels_file),
            "numbers the classes otherwise than the checkpoint was trained with",
            expected=f"{moved[0]} as label {list(names).index(moved[0])}",
            received=now.index(moved[0]),
            fix="put the names back in their order",
        )


def check_classes(folder: str | os.PathLike[str], classes: int, *, by_order: bool = True) -> None:
    """Raise DataError where the label file of a data folder names another number of classes.

    So do class folders of another number where no label file says which label each one has, but their order.
    """
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
    if by_order and named is None and Path(folder).is_dir():
        with naming_unreadable(Path(folder)):
            counted = 0 if tfrecords.find_shards(folder) else len(_class_folders(Path(folder)))
        if counted and counted != classes - 1:
            raise DataError(
                str(folder),
                "has another number of class folders than --classes, and no label file says which label each one has",
                expected=f"{classes - 1} folders for --classes {classes}",
                received=counted,
                fix=f"name all classes in a label file beside it, or pass --classes {counted + 1} ({CLASSES_RULE})",
            )


def refuse_empty_classes(folder: str | os.PathLike[str]) -> None:
    """Raise DataError, for training, where no label file names the classes and a class folder holds no image."""
    if find_labels(folder):
        return
    with naming_unreadable(Path(folder)):
        if tfrecords.find_shards(folder):
            return
        empty = [one.name for one in _class_folders(Path(folder)) if not any(map(tfrecords.is_image, one.iterdir()))]
    if empty:
        raise DataError(
            str(folder),
            f"has no image of some classes: {first_few(empty)}",
            expected="files named .jpg, .jpeg or .png in every class folder",
            fix="add images or remove the folder, or name all classes in a label file",
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
