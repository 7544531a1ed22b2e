#!/usr/bin/env python
"""Damage good files in a million ways and see that every parser answers with the kit's own errors, in time and memory.

    python scripts/dev/fuzz.py --inputs 1000000 --report fuzz.json     # about ten minutes on one core
    python scripts/dev/fuzz.py --targets dat model --inputs 20000 --seed 3
    python scripts/dev/fuzz.py --targets caps --inputs 20000           # needs TensorFlow: only when named
    python scripts/dev/fuzz.py --again defects/model-3f2a9c.bin --targets model

Limits for each input: one second, and memory of 10 times its size and 64 MB. What breaks one, or raises anything but a
GtiError, is kept under --defects and ends in exit status 1. The same seed gives the same inputs. Ctrl-C stops early and
still writes the report.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ in ("__main__", "__mp_main__"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import cli, files
from gti.errors import GtiError, UsageError, sentence
from scripts.dev.fuzzing.targets import TARGETS, Target, clean_up

SECONDS = 1.0
HANG_SECONDS = 20
MEMORY_FACTOR, MEMORY_FREE = 10, 64 * 1024 * 1024
ADDRESS_SPACE = 16 * 1024**3  # beyond this an allocation fails, as a defect
KEPT = 20  # defects of one target


class Hang(BaseException):
    """An input that takes much too long; no parser may catch it."""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    light = [name for name, target in TARGETS.items() if not target.heavy]
    flags.add_argument("--targets", nargs="+", choices=list(TARGETS), default=light, help="default: %(default)s")
    flags.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--report", help="JSON file of the counts, rewritten after every target")
    flags.add_argument("--defects", default="defects", help="folder for inputs that break a limit")
    flags.add_argument("--again", help="run one input of a file instead")
    return flags


def main() -> int:
    args = parser().parse_args()
    if args.again:
        data = files.read_bytes(args.again, limit=2**30)
        for name in args.targets:
            TARGETS[name].run(TARGETS[name].seeds()[0])  # imports take no part in the time
            problem, seconds, refusal = judge(TARGETS[name], data)
            print(f"{name}, {seconds:.3f} s: {problem or refusal or 'accepted'}")
        return 0
    if args.inputs < 1:
        raise UsageError(sentence("--inputs", "is too small", expected="1 or more", received=args.inputs))
    shares = {name: TARGETS[name].share for name in args.targets}
    results: dict[str, dict[str, Any]] = {}
    for name in args.targets:
        count = max(1, round(args.inputs * shares[name] / sum(shares.values())))
        results[name] = in_child(name, count, args.seed, args.defects)
        show(name, results[name])
        if args.report:
            files.write_json(args.report, {"seed": args.seed, "targets": results})
        if results[name]["stopped"]:
            break
    total = sum(result["inputs"] for result in results.values())
    broken = sum(len(result["defects"]) for result in results.values())
    print(f"{total} inputs, {broken} defects")
    return 1 if broken else 0


def show(name: str, result: dict[str, Any]) -> None:
    print(
        f"{name:13} {result['inputs']:8} inputs {result['accepted']:8} accepted {result['refused']:8} refused, "
        f"{result['sentences']:4} kinds, slowest {result['slowest_ms']:6.1f} ms, "
        f"memory +{result['memory_mb']:5.1f} MB, {result['seconds']:7.1f} s, {len(result['defects'])} defects",
        flush=True,
    )


def in_child(name: str, count: int, seed: int, defects: str) -> dict[str, Any]:
    """Run one target in a process of its own, so that its memory is measured alone and a crash is noticed."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, count, seed, defects, send))
    process.start()
    send.close()
    result: dict[str, Any] = {"inputs": 0, "accepted": 0, "refused": 0, "sentences": 0, "slowest_ms": 0.0}
    result |= {"memory_mb": 0.0, "seconds": 0.0, "defects": [], "stopped": False}
    while True:
        try:
            result = receive.recv()
        except EOFError:
            break
        except KeyboardInterrupt:
            continue  # the child gets it too, and sends its last counts
    process.join()
    if process.exitcode:
        result["defects"].append(f"the process ended with status {process.exitcode} after input {result['inputs']}")
    return result


def _work(name: str, count: int, seed: int, defects: str, send: Connection) -> None:
    target = TARGETS[name]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    signal.signal(signal.SIGALRM, _hang)
    try:
        send.send(fuzz(target, count, seed, Path(defects), send))
    finally:
        clean_up()
        send.close()


def _hang(number: int, frame: object) -> None:
    raise Hang


def fuzz(
    target: Target, count: int, seed: int = 0, defects: Path | None = None, send: Connection | None = None
) -> dict[str, Any]:
    """Return the counts of `count` damaged inputs of a target; every seed, undamaged, must be accepted first."""
    good = target.seeds()
    for data in good:
        target.run(data)
    rng = random.Random(f"{target.name} {seed}")
    result: dict[str, Any] = {"inputs": 0, "accepted": 0, "refused": 0, "slowest_ms": 0.0, "memory_mb": 0.0}
    found: list[str] = []
    kinds: set[str] = set()
    stopped = False
    before = _peak()
    start = time.perf_counter()
    try:
        for index in range(count):
            data = target.mutate(rng.choice(good), rng)
            # Some inputs are damaged again: from there the next rules are reached.
            while rng.random() < 0.2:
                data = again(target, data, rng)
            peak = _peak()
            problem, seconds, text = judge(target, data)
            grown = _peak() - peak
            if not problem and grown > MEMORY_FACTOR * len(data) + MEMORY_FREE:
                problem = f"memory grew by {grown / 2**20:.0f} MB for {len(data)} bytes"
            result["inputs"] = index + 1
            result["refused" if text else "accepted"] += 1
            result["slowest_ms"] = max(result["slowest_ms"], 1000 * seconds)
            kinds.add(_kind(text))
            if problem:
                found.append(_keep(target, data, problem, defects))
                if len(found) >= KEPT:
                    break
            if send is not None and index % 5000 == 0:
                send.send(_counts(result, kinds, found, before, start, stopped=stopped))
    except KeyboardInterrupt:
        stopped = True
    return _counts(result, kinds, found, before, start, stopped=stopped)


def again(target: Target, data: bytes, rng: random.Random) -> bytes:
    """Return damaged `data` with one more damage."""
    try:
        return target.mutate(data, rng)
    except Exception:  # too broken for a structured damage, in one of many ways
        return data


def _counts(
    result: dict[str, Any], kinds: set[str], found: list[str], before: int, start: float, *, stopped: bool
) -> dict[str, Any]:
    return {
        **result,
        "slowest_ms": round(result["slowest_ms"], 1),
        "memory_mb": round((_peak() - before) / 2**20, 1),
        "sentences": len(kinds - {""}),
        "seconds": round(time.perf_counter() - start, 1),
        "defects": list(found),
        "stopped": stopped,
    }


def judge(target: Target, data: bytes) -> tuple[str, float, str]:
    """Return (what is wrong, or ""; seconds; the refusal, or "") of one input."""
    armed = signal.getsignal(signal.SIGALRM) is _hang
    text = problem = ""
    start = time.process_time()
    try:
        if armed:
            signal.alarm(HANG_SECONDS)
        target.run(data)
    except GtiError as refusal:
        text = str(refusal)
        if not text.isprintable() and any(not line.isprintable() for line in text.split("\n")):
            problem = f"its message holds control characters: {text[:200]!a}"
        elif len(text) > 20_000:
            problem = f"its message is {len(text)} characters long"
    except KeyboardInterrupt:
        raise
    except Hang:
        problem = f"took more than {HANG_SECONDS} s"
    except BaseException:
        problem = traceback.format_exc(limit=-6)
    finally:
        if armed:
            signal.alarm(0)
    seconds = time.process_time() - start
    if not problem and seconds > SECONDS:
        problem = f"took {seconds:.1f} s"
    return problem, seconds, text


def _kind(text: str) -> str:
    # A sentence without its names and numbers.
    return "".join("#" if c.isdigit() else c for c in text.partition("; expected")[0])[:60]


def _peak() -> int:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _keep(target: Target, data: bytes, problem: str, folder: Path | None) -> str:
    digest = hashlib.sha256(data).hexdigest()[:12]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{target.name}-{digest}.bin").write_bytes(data)
        (folder / f"{target.name}-{digest}.txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
    return json.dumps(f"{target.name}-{digest}: {problem.strip().splitlines()[-1][:200]}")


if __name__ == "__main__":
    cli.run(main)
