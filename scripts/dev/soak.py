#!/usr/bin/env python
"""Frames without end through one Classifier whose stick fails every so often; nothing may grow and nothing be wrong:

    python scripts/dev/soak.py                       # 200,000 frames, a fault every 1,000
    python scripts/dev/soak.py --frames 2000 --fault_every 100

The stick is in software and has the whole USB path: it answers late, too little, nonsense or not at all, is unplugged
and comes back, in turn. Four threads ask for a small network's answers, and features, and hand in frames that cannot be
used. Exit status 1 where an answer was wrong or missing, or memory or descriptors grew between the first tenth and the
end.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import arguments
from gti.cli import run
from gti.errors import UsageError

THREADS = 4
IMAGES = 16
BAD_EVERY = 500  # frames
# Garbage that waits for the collector, and pages that the allocator keeps.
MEMORY_MARGIN_BYTES = 8 << 20
FAULTS = (
    ("write", "timeout", 8),
    ("read", "short", 1),
    ("read", "disconnect", 1),
    ("read", "zeros", 1),
    ("write", "stall", 1),
    ("read", "io", 1),
    ("write", "brownout", 1),
    ("session", "io", 1),
)


def model_bytes() -> bytes:
    """Return a full .MODEL of one sublayer, 14x14x3 -> 7x7x16 -> ten classes, with random weights."""
    from gti.chip.network.types import MajorLayer, Network
    from scripts.benchmarks.networks import full_model

    return full_model(Network((MajorLayer(14, 3, 16, 1, 3, (4,), pooling=True),)))


def memory_and_descriptors() -> tuple[int, int]:
    """Return resident bytes and open descriptors of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


class FaultEvery:
    """Makes a plan of the stick name a new fault whenever it is told to."""

    def __init__(self, plan: Any) -> None:
        self._plan = plan
        self._kinds = itertools.cycle(FAULTS)
        self.number = 0

    def next(self) -> None:
        """Let the next transfer of a kind fail."""
        from gti.chip.virtual.faults import Fault

        phase, kind, count = next(self._kinds)
        # The plan holds the newest only: a list of all of them would itself grow.
        self._plan.fired.clear()
        self._plan.faults = (Fault(phase, self._plan.calls[phase], kind, count),)
        self.number += 1


def soak(frames: int, fault_every: int) -> dict[str, Any]:
    """Run and return what happened."""
    import numpy as np

    from gti.chip.runtime.classifier import Classifier
    from gti.errors import ImageError

    images = np.random.RandomState(2).randint(0, 256, (IMAGES, 20, 24, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "soak.model"
        path.write_bytes(model_bytes())
        with Classifier(path, "virtual") as calm:  # what the answers are, by a stick without faults
            labels = [calm.classify_one(image) for image in images]
            features = [calm.features(image) for image in images]
        model = Classifier(path, "virtual")
    backend = model._sticks._stick.transport._backend  # type: ignore[union-attr]
    faults = FaultEvery(backend.slots[0].plan)
    counter, gate = itertools.count(), threading.Lock()
    found: Counter[str] = Counter()
    wrong: list[str] = []
    marks: list[tuple[int, int, int]] = []

    def work() -> None:
        while (number := next(counter)) < frames:
            which = number % IMAGES
            if number and number % fault_every == 0:
                with gate:
                    faults.next()
            if number % max(1, frames // 20) == frames // 20 - 1:
                with gate:
                    marks.append((number, *memory_and_descriptors()))
            try:
                if number % BAD_EVERY == BAD_EVERY - 1:
                    model.classify_one(images[which] / 255.0)
                    wrong.append(f"{number}: a bad frame was taken")
                elif number % 3:
                    good = model.classify_one(images[which]) == labels[which]
                else:
                    good = bool((model.features(images[which]) == features[which]).all())
                if not good:
                    wrong.append(f"{number}: a wrong answer")
                found["answers"] += 1
            except ImageError:
                found["refused"] += 1
            except Exception as problem:
                wrong.append(f"{number}: {problem}")

    started = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - started
    counts = model.counters
    model.release()
    first, last = sorted(marks)[1], sorted(marks)[-1]
    return {
        "frames": frames,
        "seconds": round(took, 1),
        "faults planned": faults.number,
        "wrong or missing": len(wrong),
        "first of them": wrong[:3],
        "refused": found["refused"],
        "counters": counts,
        "memory": {"early": first[1], "end": last[1], "grown": last[1] - first[1]},
        "descriptors": {"early": first[2], "end": last[2]},
    }


def passed(report: dict[str, Any]) -> bool:
    """Return whether nothing was wrong and nothing grew."""
    held = report["descriptors"]["end"] <= report["descriptors"]["early"]
    seen = report["counters"]["faults"] >= 0.9 * report["faults planned"] > 0
    return not report["wrong or missing"] and held and seen and report["memory"]["grown"] <= MEMORY_MARGIN_BYTES


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print the report as JSON."""
    parser = arguments.Parser(__doc__ or "")
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--fault_every", type=int, default=1000)
    args = parser.parse_args(words)
    if args.frames < 100 or not 1 <= args.fault_every < args.frames:
        raise UsageError(
            "soak.py", "has too little to do", expected="--frames of at least 100, --fault_every below that"
        )
    import logging

    logging.getLogger("gti.chip.usb.link").setLevel(logging.ERROR)  # faults are meant to be
    report = soak(args.frames, args.fault_every)
    print(json.dumps(report, indent=1))
    return 0 if passed(report) else 1


if __name__ == "__main__":
    run(main)
