#!/usr/bin/env python
"""Measure the kit's speed, every figure side by side with its yardstick, and compare it with its goals.

    python scripts/bench.py all --json out.json            # everything, about 20 minutes on two cores
    python scripts/bench.py emulator qat --quick           # some parts, fewer rounds and no growth series
    python scripts/bench.py --table out.json               # its Markdown tables
    python scripts/bench.py --table out.json --into docs/performance.md

How to read the figures: docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, files
from gti.errors import FormatError, UsageError
from scripts.benchmarks import figures
from scripts.benchmarks.figures import FULL, PARTS, QUICK, Figure, Scale

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
MAX_DOCUMENT_BYTES = 1 << 20
# What a worker would miss in the middle of the work, and the parts that use it.
NEEDS = {
    "numba": ("emulator", "peers", "conversion"),
    "onnx": ("conversion",),
    "tensorflow": ("emulator", "qat", "calibration", "conversion", "pipeline"),
}


def part(name: str) -> Callable[[Scale], Iterator[Figure]]:
    """Return what measures a part."""
    from scripts.benchmarks import conversion, emulator, peers, training, usb

    return {
        "emulator": emulator.measure,
        "peers": peers.measure,
        "qat": training.measure_steps,
        "calibration": training.measure_calibration,
        "conversion": conversion.measure,
        "usb": usb.measure,
        "pipeline": training.measure_evaluation,
    }[name]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("parts", nargs="*", metavar="PART", help=f"{' | '.join(PARTS)} | all (default: all)")
    result.add_argument("--json", metavar="OUT", help="write every figure to this file")
    result.add_argument("--quick", action="store_true", help="3 rounds, no growth series, no large training")
    result.add_argument("--rounds", type=int, help="quiet rounds (default: 5, of training steps 9; with --quick 3)")
    result.add_argument("--table", metavar="JSON", help="measure nothing; print the tables of this result file")
    result.add_argument("--into", metavar="DOC.md", help="with --table: put them between the marks of this document")
    return result


def measure(parts: list[str], scale: Scale, show: Callable[[str], None] = print) -> list[Figure]:
    """Measure the parts; show every figure as soon as it is there."""
    found = []
    for name in parts:
        show(f"{name}")
        for figure in part(name)(scale):
            found.append(figure)
            show(figures.text(figure))
    return found


def table(path: str) -> str:
    """Return the Markdown tables of a result file. Raises FormatError for another file."""
    value: Any = files.read_json(path)
    try:
        return figures.markdown(figures.from_json(value), value)
    except (KeyError, TypeError, AttributeError):
        raise FormatError(path, "is no result of this script", fix="write one with --json OUT") from None


def refilled(path: str, tables: str) -> str:
    """Return the text of the document `path` with `tables` between its marks. Raises FormatError without marks."""
    text = files.read_bytes(path, limit=MAX_DOCUMENT_BYTES).decode("utf-8", "replace")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise FormatError(path, "has no place for tables", expected=f"{BEGIN} and {END}")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def main() -> None:
    """Parse, measure, print."""
    flags = parser().parse_args()
    if flags.into is not None and flags.table is None:
        raise UsageError("--into", "has no tables to put there", fix="pass --table JSON with it")
    if flags.table is not None:
        tables = table(flags.table)
        if flags.into is not None:
            files.write_atomic(flags.into, refilled(flags.into, tables).encode())
        else:
            print(tables)
        return
    unknown = [name for name in flags.parts if name not in (*PARTS, "all")]
    if unknown or (flags.rounds is not None and flags.rounds < 1):
        raise UsageError(
                "bench.py", "cannot do that", expected=f"parts out of {', '.join((*PARTS, 'all'))}; at least one round",
                received=", ".join(unknown) or f"--rounds {flags.rounds}",
            )  # fmt: skip
    parts = [name for name in PARTS if name in flags.parts] if flags.parts and "all" not in flags.parts else list(PARTS)
    for package, users in NEEDS.items():
        if set(parts) & set(users) and importlib.util.find_spec(package) is None:
            raise UsageError(cli.missing(package))
    scale = QUICK if flags.quick else FULL
    if flags.rounds:
        scale = replace(scale, rounds=flags.rounds, step_rounds=flags.rounds)
    about = figures.about(flags.quick, parts, 0.0)
    print(", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    start = time.perf_counter()
    found = measure(parts, scale)
    took = time.perf_counter() - start
    missed = [figure.name for figure in found if figure.met is False]
    goals = sum(figure.met is not None for figure in found)
    print(f"{goals - len(missed)} of {goals} goals met in {took:.0f} s" + "".join(f"\n  missed: {n}" for n in missed))
    if flags.json:
        files.write_json(flags.json, figures.to_json(found, figures.about(flags.quick, parts, took)))


if __name__ == "__main__":
    cli.run(main)
