"""Label files: which number means which class."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gti.errors import DataError, FormatError, printable
from gti.files import read_bytes

BACKGROUND = "background"
MAX_LABEL_BYTES = 4 * 1024 * 1024
_NUMBERED = re.compile(r"^(\d{1,9})[ \t]+(\S.*)$")


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of all classes; the index is the label, 0 = background.

    Two forms are read (user guide, sections 6.5 and 7.1.1): `LABEL_ID LABEL_NAME` lines, or one name a line without the
    background, which is put in front. Raises DataError for text that is not UTF-8, no names at all, a number or a name
    that stands twice, numbers with gaps, and files of more than 4 MiB.
    """
    name = os.fspath(path)
    try:
        data = read_bytes(path, limit=MAX_LABEL_BYTES)
    except FormatError as problem:
        raise DataError(str(problem)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(name, f"is not UTF-8 text at byte {problem.start}", fix="save it as UTF-8") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(name, "holds no labels", fix="write one class name a line")
    matches = [_NUMBERED.match(line) for line in lines]
    if all(matches):
        numbered = [(int(match[1]), match[2]) for match in matches if match]
        return _numbered(numbered, name)
    names = lines if lines[0] in (BACKGROUND, f"unused {BACKGROUND}") else [BACKGROUND, *lines]
    _refuse_doubles(names, name, "the class name")
    return names


def _numbered(entries: list[tuple[int, str]], name: str) -> list[str]:
    _refuse_doubles([number for number, _ in entries], name, "the label")
    _refuse_doubles([text for _, text in entries], name, "the class name")
    names = dict(entries)
    names.setdefault(0, BACKGROUND)
    gap = next((number for number in range(len(names)) if number not in names), None)
    if gap is not None:
        raise DataError(
            name,
            "leaves out a label",
            expected=f"labels 1 to {max(names)} without gaps",
            received=f"no line for label {gap}",
            fix="number the classes 1, 2, 3, ...",
        )
    return [names[number] for number in range(len(names))]


def _refuse_doubles(values: list, name: str, what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            problem = f"{what} {printable(str(value), 80)} stands twice"
            raise DataError(name, problem, fix="keep one of the lines")
        seen.add(value)


def labels_text(names: list[str]) -> str:
    """Return a label file's text in the `LABEL_ID LABEL_NAME` form of the user guide, section 6.5."""
    return "".join(f"{number} {name}\n" for number, name in enumerate(names))


def find_labels(folder: str | os.PathLike[str]) -> Path | None:
    """Return the label file of the data set whose `train` or `val` folder is `folder`, or None.

    Looked for: `data/<name>_labels.txt`, `data/<name>/<name>_labels.txt`, `data/<name>/labels.txt`.
    """
    dataset = Path(folder).resolve().parent
    candidates = (
        dataset / f"{dataset.name}_labels.txt",
        dataset / "labels.txt",
        dataset.parent / f"{dataset.name}_labels.txt",
    )
    return next((path for path in candidates if path.is_file()), None)


def labels_of(folder: str | os.PathLike[str]) -> list[str] | None:
    """Return the class names of the data set whose `train` or `val` folder is `folder`, None without a label file."""
    path = find_labels(folder)
    return read_labels(path) if path else None
