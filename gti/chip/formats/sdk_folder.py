"""A folder into which the vendor's tools took a .MODEL apart -> the container again (docs/model_format.md).

There are two forms: the library's, `X.model.0` with the header and `X.model.1`, `X.model.2`, ... with the data of the
layers, and that of the SDK's extraction tool, `X.json` with the header and the data from `X.model.0` on.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gti import files
from gti.chip.formats import model_file
from gti.chip.formats.canonical_json import canonical
from gti.errors import ModelFileError

_PART = re.compile(r"(?P<model>.+\.model)\.(?P<number>\d{1,4})", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class SdkFolder:
    """One container that was taken apart: the names of its header and of its data files."""

    base: Path
    header: str
    parts: tuple[str, ...]
    first: str  # the data file that the numbers begin with, whether it is there or not


def find(base: Path) -> SdkFolder | None:
    """Return what `base` holds, or None where it is no such folder. Raises ModelFileError for several containers."""
    numbered: dict[str, dict[int, str]] = defaultdict(dict)
    for path in base.iterdir():
        match = _PART.fullmatch(path.name)
        if match:
            numbered[match["model"]][int(match["number"])] = path.name
    found = []
    for model, parts in sorted(numbered.items()):
        names = [parts[number] for number in sorted(parts)]
        own_header = 0 in parts and _is_header(base, parts[0])
        beside = next((path.name for path in base.iterdir() if path.name == f"{model[: -len('.model')]}.json"), None)
        if own_header:
            found.append(SdkFolder(base, names[0], tuple(names[1:]), f"{model}.1"))
        elif beside:
            found.append(SdkFolder(base, beside, tuple(names), f"{model}.0"))
    if len(found) > 1:
        raise ModelFileError(
            str(base),
            "holds several containers that were taken apart",
            expected="the files of one",
            received=", ".join(one.header for one in found),
            fix="move each into a folder of its own",
        )
    return found[0] if found else None


def compose(folder: SdkFolder) -> bytes:
    """Return the container of `folder`. Raises ModelFileError for a header or data files that do not fit together.

    "data file" names count without the folders in front of them, which were those of another machine; where a header
    has none, but sizes, as it stood in the container, the data files go to its layers in order.
    """
    name = str(folder.base / folder.header)
    text = _read(folder, folder.header, model_file.MAX_HEADER_BYTES)
    header = files.parse_json(text, name, error=ModelFileError)
    stem, _, first = folder.first.rpartition(".")
    by_order = (f"{stem}.{number}" for number in itertools.count(int(first)))
    used: list[str] = []
    changed = False
    for index, entry in enumerate(model_file.entries_of(header, name)):
        given = entry.get("data file")
        if isinstance(given, str):
            part = PurePosixPath(given.replace("\\", "/")).name
        elif "data file" not in entry and entry.get("data size") is not None:
            part = next(by_order)
            entry["data offset"] = 0
            del entry["data size"]
        else:
            continue
        if part not in folder.parts:
            raise ModelFileError(
                f"{name}, {model_file.layer_path(index, entry)}",
                "its data file is missing",
                expected=f"{part} in {folder.base}",
                received=", ".join(folder.parts),
                fix="extract the container again",
            )
        changed = changed or part != given
        entry["data file"] = part
        used.append(part)
    left = [part for part in folder.parts if part not in used]
    if left:
        raise ModelFileError(
            name, "has no layer for " + ", ".join(left), expected="a layer for each data file", fix="extract it again"
        )
    # The white space of a text decides where the data begin: one that fits is taken as it is.
    text = canonical(header).encode() if changed else text
    return model_file.compose(text, {part: _read(folder, part, model_file.MAX_FILE_BYTES) for part in used})


def _read(folder: SdkFolder, name: str, limit: int) -> bytes:
    return files.read_bytes(files.inside(folder.base, name, error=ModelFileError), limit=limit, error=ModelFileError)


def _is_header(base: Path, name: str) -> bool:
    try:
        value: Any = files.read_json(files.inside(base, name))
    except files.FormatError:
        return False
    return isinstance(value, dict) and isinstance(value.get("layer"), list)
