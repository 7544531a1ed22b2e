#!/usr/bin/env python
"""Write docs/errors.md: every sentence with which the kit refuses something, and what to do, read from the source.

python scripts/make_errors_page.py            # write
python scripts/make_errors_page.py --check    # compare only; exit status 1 where the page is out of date
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, errors, files

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
WIDTH = 60  # of a placeholder
# (heading, what stands there, modules): the first that matches takes a file; `docs` describe the subject.
AREAS = (
    ("Rules of the chip", "dat_format.md, section 6", ("gti/chip/network", "gti/chip/memory_plan")),
    ("Chip files", "dat_format.md, model_format.md", ("gti/chip/dat", "gti/chip/model_f", "gti/chip/blobs",
     "gti/chip/canonical", "gti/chip/npy", "gti/chip/loaded", "gti/chip/known", "gti/chip/host")),
    ("Images and preprocessing", "", ("gti/chip/image", "gti/chip/preproc", "gti/chip/classifier", "gti/image")),
    ("Stick, read-out and emulator", "device.md, usb_protocol.md", ("gti/chip/",)),
    ("Files in general", "security.md", ("gti/files",)),
    ("Networks before training", "", ("gti/architecture", "gti/keras_config", "gti/feasibility",
     "gti/templates", "gti/param")),
    ("Data and labels", "data.md", ("gti/data", "gti/labels", "gti/tfrecords")),
    ("Training, stages and checkpoints", "training.md", ("gti/",)),
    ("Commands", "README", ("",)),
)  # fmt: skip
# Errors that users see; the others are defects or caught.
_RAISED = {"ArgumentTypeError", *(name for name in vars(errors) if name.endswith("Error"))}
# Functions that make the name of a layer.
_SPOKEN = {"major_path": "major {m}", "sub_path": "major {m} / sub {s}", "printable": "{...}"}
INTRODUCTION = """# What the kit refuses, and what to do

Every refusal is one sentence: the file or layer, what is wrong, what was expected, what was received, and the fix. A
script prints it after `error:` and ends with status 2; from Python it is an exception of `gti/errors.py`. All broken
rules of a network are told together. Names and values that come from files are cut and their control characters
escaped, so that a file cannot write to the terminal.

In the sentences below, `{...}` is what differs from case to case, and `a | b` are alternatives. This page is written by
`scripts/make_errors_page.py` from the source; a test keeps it complete.
"""


@dataclass(frozen=True, order=True)
class Shape:
    """One sentence of the source, with placeholders."""

    text: str
    fix: str


def shapes(source: str) -> Iterator[Shape]:
    """Yield the sentences of a module's source, in its order."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(call: ast.Call) -> Iterator[Shape]:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    words = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    given = list(call.args)
    if name == "sentence":
        order = ["subject", "problem"]
    elif name == "Violation":
        order = ["subject", "rule", "problem", "expected", "received", "fix"]
    elif name == "unfit":
        order = ["subject", "problem", "expected", "received", "fix"]
    elif name in _RAISED and given:
        message, _, fix = _text(given[0]).partition(" Fix: ")
        if " " in message and isinstance(given[0], (ast.JoinedStr, ast.Constant, ast.BinOp)):
            yield Shape(message, fix)
        return
    else:
        return
    parts = dict(zip(order, given, strict=False)) | words
    if "problem" not in parts or any(isinstance(arg, ast.Starred) for arg in given):
        return
    text = f"{_text(parts['subject'])}: {_text(parts['problem'])}"
    for key, before in (("expected", "; expected "), ("received", ", received ")):
        if key in parts and _text(parts[key]) != "None":
            text += before + _text(parts[key])
    yield Shape(text + ".", _text(parts["fix"]).rstrip(".") if "fix" in parts else "")


def _text(node: ast.expr) -> str:
    """Return the text of an expression, with `{...}` for what is not known before it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part.value) if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return " | ".join(dict.fromkeys(text or "nothing" for text in (_text(node.body), _text(node.orelse))))
    expression = ast.unparse(node)
    return _SPOKEN.get(expression.partition("(")[0], "{" + _named(expression) + "}")


def _named(expression: str) -> str:
    expression = " ".join(expression.split())
    return expression if len(expression) <= WIDTH else expression[: WIDTH - 3] + "..."


def _area(path: str) -> int:
    return next(i for i, (_, _, starts) in enumerate(AREAS) if path.startswith(starts))


def sources() -> dict[str, list[Shape]]:
    """Return the sentences of every module that has some, by path."""
    paths = [path for folder in ("gti", "scripts", "addon") for path in sorted((ROOT / folder).rglob("*.py"))]
    paths += sorted(ROOT.glob("*.py"))
    found = {}
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("scripts/fuzz") or name == "setup.py":
            continue
        if unique := sorted(set(shapes(path.read_text(encoding="utf-8")))):
            found[name] = unique
    return found


def page() -> str:
    """Return the text of docs/errors.md."""
    found = sources()
    lines = [INTRODUCTION]
    for index, (heading, documents, _) in enumerate(AREAS):
        modules = [name for name in found if _area(name) == index]
        if not modules:
            continue
        lines.append(f"## {heading}\n" + (f"\nSee {documents}.\n" if documents else ""))
        for name in modules:
            lines.append(f"### {name}\n")
            for shape in found[name]:
                fix = f"\n  Fix: {_escaped(shape.fix)}." if shape.fix else ""
                lines.append(f"- {_escaped(shape.text)}{fix}")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _escaped(text: str) -> str:
    # Markdown would take these for its own.
    for character in "\\`*_<>[]#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--check", action="store_true", help="write nothing")
    args = flags.parse_args()
    text = page()
    if args.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.relative_to(ROOT)} is {'up to date' if same else 'out of date: run scripts/make_errors_page.py'}")
        return 0 if same else 1
    files.write_atomic(PAGE, text.encode())
    print(f"{PAGE.relative_to(ROOT)}: {sum(map(len, sources().values()))} sentences")
    return 0


if __name__ == "__main__":
    cli.run(main)
