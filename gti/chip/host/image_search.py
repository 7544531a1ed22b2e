"""Which files are images: those that a user names, and those in the folders that he names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gti.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".gif", ".tif", ".tiff", ".webp", ".npy", ".bin")


def find_images(names: Sequence[str]) -> list[Path]:
    """Return the image files among `names`; folders are searched through.

    Raises UsageError where there are none, and for a folder that cannot be opened.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            found.append(path)
            continue
        files = [Path(folder, file) for folder, _, inner in os.walk(path, onerror=_refuse) for file in inner]
        inside = sorted(p for p in files if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise UsageError(name, "holds no images", expected="files " + ", ".join(SUFFIXES))
        found += inside
    return found


def _refuse(problem: OSError) -> NoReturn:
    raise UsageError(str(problem.filename), f"cannot be opened ({problem.strerror})", fix="check its permissions")
