"""What a user names as images: files, folders and `-`, which is standard input."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gti import files
from gti.chip.host.image_search import find_images
from gti.errors import GtiError, UsageError

STDIN = "-"
HELP = "image file, .npy (uint8 [H,W,C]), folder of them, or - for one image on standard input"
_MAX_BYTES = 256 * 1024 * 1024
_NPY = b"\x93NUMPY"


class Picture(NamedTuple):
    """An image of the command line."""

    name: str  # as in the output
    path: Path

    def told(self, problem: GtiError) -> str:
        """Return the message of `problem` with the name in place of the path."""
        return str(problem).replace(str(self.path), "standard input") if self.name == STDIN else str(problem)


def find(names: Sequence[str], stack: ExitStack) -> list[Picture]:
    """Return the images that `names` mean, folders searched through; `stack` keeps what came on standard input.

    Raises UsageError where there are none, and where standard input is named twice or empty.
    """
    if list(names).count(STDIN) > 1:
        raise UsageError(STDIN, "is named twice", expected="one image on standard input")
    kept = _keep_stdin(stack) if STDIN in names else None
    found: list[Picture] = []
    for name in names:
        if kept is not None and name == STDIN:
            found.append(Picture(STDIN, kept))
        else:
            found += [Picture(str(path), path) for path in find_images([name])]
    return found


def _keep_stdin(stack: ExitStack) -> Path:
    data = sys.stdin.buffer.read(_MAX_BYTES + 1) if sys.stdin is not None else b""  # None: the shell closed it
    if not data or len(data) > _MAX_BYTES:
        raise UsageError(
            "standard input", "is no image", expected=f"1 to {_MAX_BYTES:,} bytes", received=f"{len(data):,}"
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gti-")))
    path = folder / ("stdin.npy" if data.startswith(_NPY) else "stdin")
    files.write_atomic(path, data)
    return path
