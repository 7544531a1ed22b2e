#!/usr/bin/env python
"""Give damaged files to every parser and see that each answers with the kit's own errors, in time and memory.

    python scripts/dev/fuzz.py --inputs 50000 --json fuzz.json         # Hypothesis damages good files of all formats
    python scripts/dev/fuzz.py --targets caps checkpoint               # these need TensorFlow: only when named
    python scripts/dev/fuzz.py --targets model --again defects/model-3f2a9c.bin
    python scripts/dev/fuzz.py --targets model --corpus work -max_total_time=3600

The last form is guided by coverage: Atheris (pip install atheris; Linux), whose flags begin with one dash. The corpus
is a folder for inputs that reach new code; an empty one is filled with the good files of the target.

Limits for each input: one second of CPU time, and memory of 10 times its size and 64 MB. What breaks one, or raises
anything but a GtiError, is a defect: kept under --defects with as little damage as breaks it (Atheris: crash-*), exit
status 1. The same seed gives the same inputs. Ctrl-C stops early and still writes the counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import cli, files
from gti.errors import GtiError, UsageError

if TYPE_CHECKING:
    from scripts.dev.fuzzing.targets import Target

SECONDS = 1.0  # of CPU time for an input
MEMORY_FACTOR, MEMORY_FREE = 10, 64 * 1024 * 1024
ADDRESS_SPACE = 16 * 1024**3  # beyond this an allocation fails, as a defect
MAX_MESSAGE = 20_000
BATCH = 2000  # inputs of one run of Hypothesis, which keeps in memory what it has tried


class LimitError(Exception):
    """An input breaks a limit."""


class Hang(BaseException):
    """An input takes too long; no parser may catch it."""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--targets", nargs="+", default=[], metavar="NAME", help="of scripts/dev/fuzzing/targets.py")
    flags.add_argument("--inputs", type=int, default=5000, help="for each target")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--json", metavar="FILE", help="write the counts, after every target")
    flags.add_argument("--defects", default="defects", help="folder for inputs that break a limit")
    flags.add_argument("--again", metavar="FILE", help="run this one input instead")
    flags.add_argument("--corpus", metavar="DIR", help="one target, guided by coverage, with Atheris")
    return flags


def main() -> int:
    args, more = parser().parse_known_args()
    if more and not args.corpus:
        raise UsageError(" ".join(more), "is unknown", fix="flags of Atheris need --corpus DIR")
    if args.corpus:
        return guided(args.targets, Path(args.corpus), more)
    from scripts.dev.fuzzing.targets import TARGETS

    names = args.targets or [name for name, target in TARGETS.items() if not target.heavy]
    for name in names:
        if name not in TARGETS:
            raise UsageError(f"--targets {name}", "is unknown", expected="one of " + ", ".join(TARGETS))
    if args.inputs < 1:
        raise UsageError("--inputs", "is too small", expected="1 or more", received=args.inputs)
    if args.again:
        data = files.read_bytes(args.again, limit=2**30)
        for name in names:
            TARGETS[name].run(TARGETS[name].seeds()[0])  # imports take no part in the time
            problem, refusal = judge(TARGETS[name], data)
            print(f"{name}: {problem or refusal or 'accepted'}")
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = campaign(TARGETS[name], args.inputs, args.seed, Path(args.defects))
        print(f"{name:13}", ", ".join(f"{key} {value}" for key, value in results[name].items()), flush=True)
        if args.json:
            files.write_json(args.json, {"seed": args.seed, "targets": results})
        if results[name]["stopped"]:
            break
    return 1 if any(result["defect"] for result in results.values()) else 0


def judge(target: Target, data: bytes, seconds: float = SECONDS) -> tuple[str, str]:
    """Return (what is wrong, or ""; the refusal, or "") of one input that may take `seconds` of CPU time."""
    before = peak()
    problem = refusal = ""
    old = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        target.run(data)
    except GtiError as error:
        refusal = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        problem = traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    if not all(line.isprintable() for line in refusal.split("\n")):
        problem = f"its message holds control characters: {refusal[:200]!a}"
    elif len(refusal) > MAX_MESSAGE:
        problem = f"its message is {len(refusal)} characters long"
    grown = peak() - before
    if not problem and grown > MEMORY_FACTOR * len(data) + MEMORY_FREE:
        problem = f"memory grew by {grown / 2**20:.0f} MB for {len(data)} bytes"
    return problem, refusal


def _too_long(number: int, frame: object) -> None:
    raise Hang("took too much time")


def peak() -> int:
    """Return the largest memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def campaign(target: Target, count: int, seed: int = 0, defects: Path | None = None) -> dict[str, Any]:
    """Run `count` damaged inputs of a target, or up to its first defect; return the counts."""
    import hypothesis

    for data in target.seeds():
        target.run(data)  # good files are accepted
    result: dict[str, Any] = {
        "inputs": 0,
        "refused": 0,
        "seconds": 0.0,
        "memory_mb": 0.0,
        "defect": "",
        "stopped": False,
    }
    before, start = peak(), time.monotonic()
    found = (b"", "")

    def one(data: bytes) -> None:
        nonlocal found
        problem, refusal = judge(target, data)
        result["inputs"] += 1
        result["refused"] += bool(refusal)
        if problem:
            found = data, problem  # the last one is the least damaged
            raise LimitError(problem)

    try:
        for done in range(0, count, BATCH):
            settings = hypothesis.settings(
                max_examples=min(BATCH, count - done), database=None, deadline=None, derandomize=False,
                suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=False,
                phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink], verbosity=hypothesis.Verbosity.quiet,
            )  # fmt: skip
            hypothesis.seed(f"{seed} {done}")(settings(hypothesis.given(target.damaged())(one)))()
    except LimitError:
        result["defect"] = found[1].strip().splitlines()[-1][:200]
        if defects is not None:
            keep(defects, target.name, *found)
    except KeyboardInterrupt:
        result["stopped"] = True
    result["seconds"] = round(time.monotonic() - start, 1)
    result["memory_mb"] = round((peak() - before) / 2**20, 1)
    return result


def keep(folder: Path, name: str, data: bytes, problem: str) -> None:
    """Write an input that breaks a limit, and what it does, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    place.with_suffix(".bin").write_bytes(data)
    place.with_suffix(".txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")


def guided(names: Sequence[str], corpus: Path, flags: Sequence[str]) -> int:
    """Fuzz one target with Atheris; it ends the process itself."""
    try:
        import atheris
    except ImportError:
        raise UsageError("atheris", "is not installed", fix="pip install atheris") from None
    # Only what is imported here is instrumented, NumPy and Pillow excepted.
    with atheris.instrument_imports(include=["gti", "json", "zipfile"]):
        from scripts.dev.fuzzing.targets import TARGETS
    if len(names) != 1 or names[0] not in TARGETS:
        raise UsageError("--targets", "does not name one target", expected="one of " + ", ".join(TARGETS))
    target = TARGETS[names[0]]
    good = target.seeds()  # also makes what parsers need before the first input is timed
    corpus.mkdir(parents=True, exist_ok=True)
    if not os.listdir(corpus):
        for index, data in enumerate(good):
            (corpus / f"seed-{index}").write_bytes(data)

    def one_input(data: bytes) -> None:
        problem, _ = judge(target, data, 20 * SECONDS)  # instrumented code is slow
        if problem:
            raise LimitError(problem)

    atheris.Setup([sys.argv[0], str(corpus), *flags], one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    cli.run(main)
