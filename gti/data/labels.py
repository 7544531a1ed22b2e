"""Label files: which number means which class."""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from gti.errors import DataError, FormatError, printable
from gti.files import read_bytes

log = logging.getLogger(__name__)

BACKGROUND = "background"
MAX_LABEL_BYTES = 4 * 1024 * 1024
_NUMBERED = re.compile(r"^(\d{1,9})[ \t]+(\S.*)$")
_MARKED = re.compile(r"^(\d{1,9})(?:[ \t]*[,;:=|][ \t]*|[.)][ \t]+)(\S.*)$")


FORMATS = ("auto", "names", "numbered")


def read_labels(path: str | os.PathLike[str], form: str = "auto") -> list[str]:
    """Return the names of all classes; the index is the label, 0 = background.

    Two forms are read (user guide, sections 6.5 and 7.1.1): "numbered", `LABEL_ID LABEL_NAME` lines, or "names", one
    name a line without the background, which is put in front; "auto" takes a file whose lines all begin with numbers
    as numbered, and refuses one that could be meant otherwise. Lines end with LF or CR LF, as in a .MODEL. Raises
    DataError for text that is not UTF-8, control characters and other line ends in names, no names at all, a number or
    a name that stands twice, numbers with gaps, and files of more than 4 MiB.
    """
    name = os.fspath(path)
    try:
        data = read_bytes(path, limit=MAX_LABEL_BYTES)
    except FormatError as problem:
        raise DataError(str(problem)) from None
    return parse_labels(data, name, form)


def parse_labels(data: bytes, name: str, form: str = "auto") -> list[str]:
    """Return the names of all classes in the content of a label file, as `read_labels` does."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(name, f"is not UTF-8 text at byte {problem.start}", fix="save it as UTF-8") from None
    lines = []
    for number, whole in enumerate(text.split("\n"), 1):
        line = whole.removesuffix("\r").strip(" \t")
        refuse_strange(line, name, f" in line {number}")
        if line:
            lines.append(line)
    if not lines:
        raise DataError(name, "holds no labels", fix="write one class name a line")
    _refuse_other_formats(text, name)
    matches = [(_MARKED.match(line) if form == "numbered" else None) or _NUMBERED.match(line) for line in lines]
    if form == "numbered" or (form == "auto" and all(matches)):
        if form == "auto" and not any(match and int(match[1]) == 0 for match in matches):
            _say_numbered(name, lines[0])
        missing = next((line for line, match in zip(lines, matches, strict=True) if not match), None)
        if missing is not None:
            raise DataError(name, "has a line without a number", expected="LABEL_ID LABEL_NAME", received=missing)
        return _numbered([(int(match[1]), match[2]) for match in matches if match], name)
    # Also behind a line of headings.
    if form == "auto" and (
        all(_NUMBERED.match(line) or _MARKED.match(line) for line in lines)
        or (lines[2:] and all(map(_MARKED.match, lines[1:])))
    ):
        raise _ambiguous(name, lines[0])
    names = lines if lines[0] in (BACKGROUND, f"unused {BACKGROUND}") else [BACKGROUND, *lines]
    if names is not lines and lines[0].strip("_").lower() == BACKGROUND:
        _say_background(name, lines[0])
    _refuse_doubles(names, name, "the class name")
    return names


def _refuse_other_formats(text: str, name: str) -> None:
    kind = "a label map of protocol buffers" if re.match(r"\s*item\s*\{", text) else ""
    with suppress(ValueError, RecursionError):
        kind = "JSON" if isinstance(json.loads(text), dict | list) else kind
    if kind:
        raise DataError(name, f"is {kind}", expected="one class name a line", fix="write `0 background`, `1 ...`")


def refuse_strange(label: str, name: str, where: str = "") -> None:
    """Raise DataError, naming the file or folder `name`, for a character in the name of a class that ends a line."""
    strange = next((c for c in label if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c != "\t"), None)
    if strange is not None:
        raise DataError(
            name,
            f"has the character U+{ord(strange):04X}{where}, which readers take for different things",
            expected="lines that end with LF, and names of classes without control characters",
            fix="remove the character",
        )


@lru_cache(maxsize=64)
def _say_numbered(name: str, line: str) -> None:
    # Once for a file, which is read many times in a run.
    number, label = line.split(maxsplit=1)
    log.warning(
        "note: %s is read as numbered, label %s is %s; where numbers belong to the names, let the first line be "
        "`%s`, or pass --labels_format names; a line `0 %s` confirms the numbers",
        *(printable(name), number, printable(label, 60), BACKGROUND, BACKGROUND),
    )


@lru_cache(maxsize=64)
def _say_background(name: str, line: str) -> None:
    log.warning("note: %s: %s is read as the class 1; the background, label 0, is `%s`", name, line, BACKGROUND)


def _ambiguous(name: str, line: str) -> DataError:
    return DataError(
        name,
        "could be numbered or names",
        expected="LABEL_ID LABEL_NAME lines from 0 on, or names",
        received=line,
        fix="write the lines as `0 background`, `1 ...`, or pass --labels_format names (or numbered)",
    )


def _numbered(entries: list[tuple[int, str]], name: str) -> list[str]:
    _refuse_doubles([number for number, _ in entries], name, "the label")
    names = dict(entries)
    names.setdefault(0, BACKGROUND)
    _refuse_doubles(list(names.values()), name, "the class name")
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
            raise DataError(name, problem, fix="keep one of the lines, or tell two classes apart: `crane (bird)`")
        seen.add(value)


def labels_text(names: list[str]) -> str:
    """Return a label file's text in the `LABEL_ID LABEL_NAME` form of the user guide, section 6.5."""
    return "".join(f"{number} {name}\n" for number, name in enumerate(names))


def find_labels(folder: str | os.PathLike[str]) -> Path | None:
    """Return the label file of the data set whose `train` or `val` folder is `folder`, or None.

    Looked for: `data/<name>_labels.txt`, `data/<name>/<name>_labels.txt`, `data/<name>/labels.txt`, and in `folder`,
    which may hold the records itself.
    """
    dataset = Path(folder).resolve().parent
    candidates = (
        dataset / f"{dataset.name}_labels.txt",
        dataset / "labels.txt",
        dataset.parent / f"{dataset.name}_labels.txt",
        *_inside(Path(folder)),
    )
    return next((path for path in candidates if path.is_file()), None)


def _inside(folder: Path) -> tuple[Path, Path]:
    return folder / f"{folder.resolve().name}_labels.txt", folder / "labels.txt"


def labels_of(folder: str | os.PathLike[str]) -> list[str] | None:
    """Return the class names of the data set whose `train` or `val` folder is `folder`, None without a label file."""
    path = find_labels(folder)
    return read_labels(path) if path else None
