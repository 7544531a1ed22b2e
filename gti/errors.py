"""The kit's exceptions: one small hierarchy, one sentence each.

A message names the file or the layer, what was expected, what was received and the fix.
Library code raises these; scripts print the sentence and exit with status 2 (see `gti.cli`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DISTRIBUTION = "gti-mdk"  # its name in setup.py, which lies beside gti/ in a checkout and nowhere else
IS_CHECKOUT = (Path(__file__).resolve().parents[1] / "setup.py").is_file()

# "{{function_node __wrapped__SaveV2_device_...}} reason [Op:SaveV2] name: "
_GRAPH_NODE = re.compile(r"\{\{[a-z_]*node [^}]*\}\}:?\s*|\s*\[Op:\w+\](\s*name:\s*\S*)?")


class GtiError(Exception):
    """Base of every error that the kit raises on purpose: the `sentence` of its arguments, or `subject` as it is."""

    def __init__(
        self, subject: str, problem: str = "", *, expected: object = None, received: object = None, fix: str = ""
    ) -> None:
        parts = {"expected": expected, "received": received}
        super().__init__(sentence(subject, problem, **parts, fix=fix) if problem else subject)


class UsageError(GtiError):
    """The command line asks for something impossible."""


class FormatError(GtiError):
    """A file is not what its format says."""


class DatError(FormatError):
    """A .DAT file, or what should become one, breaks the format of the chip."""


class ModelFileError(FormatError):
    """A .MODEL container, or what should become one, cannot be read or built."""


class NetworkError(GtiError):
    """A network breaks rules of the chip; `violations` holds every one of them."""

    def __init__(self, subject: str, problem: str = "", *, violations: Sequence[object] = (), **parts: Any) -> None:
        super().__init__(subject, problem, **parts)
        self.violations = tuple(violations)


class QuantizationError(GtiError):
    """Weights, biases or caps of a layer cannot be represented on the chip."""


class ImageError(GtiError):
    """An image or tensor has the wrong size, type or layout."""


class DataError(GtiError):
    """A data set is missing, unreadable or does not fit the network."""


class CheckpointError(GtiError):
    """A checkpoint is missing, damaged, or of another net or stage."""


class TrainingError(GtiError):
    """Training cannot go on (for example a loss that is not a number)."""


class DeviceError(GtiError):
    """The stick, real or virtual, cannot be found, opened or talked to."""


def sentence(subject: str, problem: str, *, expected: object = None, received: object = None, fix: str = "") -> str:
    """Return one error sentence: `<subject>: <problem>; expected E, received R. Fix: F.`

    `subject` is the file or the layer path, for example `major 3 / sub 1 (conv3_2)`. Control characters of any part
    are escaped and long parts are cut, as they may come from a file.
    """
    text = f"{printable(subject)}: {printable(problem, 1000)}"
    if expected is not None:
        text += f"; expected {printable(str(expected))}"
    if received is not None:
        text += f", received {printable(str(received))}"
    text += "."
    if fix:
        text += f" Fix: {printable(fix if fix.endswith('...') else fix.rstrip('.') + '.', 1000)}"
    return text


def install(extra: str) -> str:
    """Return the command that brings an extra of setup.py, in a checkout or where the kit was installed."""
    return f'pip install "{"." if IS_CHECKOUT else DISTRIBUTION}[{extra}]"'


def listing(subject: str, problems: Sequence[object], most: int = 40) -> str:
    """Return one message for all `problems` (sentences) of the file `subject`, a line for each of several."""
    if len(problems) == 1:
        return f"{printable(subject)}: {problems[0]}"
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  and {len(problems) - most} more")
    return "\n".join([f"{printable(subject)}: {len(problems)} things to correct:", *lines])


def reason(problem: BaseException) -> str:
    """Return why the system or TensorFlow refused something, in its own words.

    One line, without the names of graph nodes that TensorFlow puts around it.
    """
    text = getattr(problem, "strerror", None) or getattr(problem, "message", None) or str(problem)
    lines = [line for line in (_GRAPH_NODE.sub("", line).strip() for line in str(text).splitlines()) if line]
    return lines[0] if lines else type(problem).__name__


def printable(text: str, limit: int = 200) -> str:
    """Return `text` without control characters and at most `limit` characters long.

    Names and values in messages come from files; a terminal must not obey them.
    """
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return clean if len(text) <= limit else clean[:limit] + "..."
