"""The parts of a report: one JSON file each in its folder, and the page, rebuilt whenever a part arrives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gti import files
from gti.errors import FormatError, UsageError

# In the order of the workflow; docs/report.md describes the keys of each.
PARTS = ("stages", "curves", "classes", "quantization", "activations", "weights", "sensitivity", "compare")
PAGE = "index.html"


def add(folder: str | os.PathLike[str], part: str, value: Mapping[str, Any]) -> Path:
    """Write `value` as the part of that name, replacing an older one; return the path of the page, rebuilt.

    `value` may hold "network" (a dat.json value) and "about" (texts by label: net, checkpoint, ...). Raises UsageError
    where the folder cannot be written, FormatError where another part in it cannot be read.
    """
    from gti.report import page

    if part not in PARTS:
        raise ValueError(f"no part of a report is called {part!r}")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(
            str(target), f"cannot be made ({problem.strerror})", fix="pass a folder to --report"
        ) from problem
    files.write_json(target / f"{part}.json", value)
    path = target / PAGE
    try:
        text = page.render(load(target))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise FormatError(
            str(target), f"holds a part of another version of the kit ({problem!r})", fix="delete the folder"
        ) from problem
    files.write_atomic(path, text.encode())
    return path


def load(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the parts that `folder` holds, by name. Raises FormatError for one that is no JSON object."""
    parts = {}
    for part in PARTS:
        path = Path(folder) / f"{part}.json"
        if path.exists():
            value = files.read_json(path)
            if not isinstance(value, dict):
                raise FormatError(str(path), "is no part of a report", fix="delete it and run the step again")
            parts[part] = value
    return parts
