#!/usr/bin/env python
"""The proof that `gti doctor --identify` names what a stick does, and never anything else.

    python scripts/dev/identify_proof.py [--combinations 500] [--processes 2] [--search]

Sticks in software of every single alternative, and of random combinations with faults on the bus, are identified over
the whole USB path. Each answer is held against what the stick plays: named, one of several that no network tells
apart, not reached (with the reason), or wrong. Exit status 1 where anything is wrong. What takes loads of many
megabytes is rarer: filter and activation memory are examined where their alternatives are the single ones, and in every
fiftieth combination; every tenth combination wants whole files.

--search derives the frames of every stage again and prints them, for the plan in gti/chip/identify/stages.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from gti import cli
from gti.chip.emulator.behaviours import ASSUMED, OF_THE_BRIDGE, QUESTIONS, Behaviours, parse
from gti.chip.identify import bench, search, stages
from gti.chip.identify.identify import CERTAIN, EITHER, NONE, Identity, identify
from gti.chip.virtual.faults import KINDS as FAULT_KINDS
from gti.chip.virtual.faults import PHASES, Fault, FaultPlan
from gti.chip.virtual.sticks import KINDS, virtual_backend
from gti.errors import DeviceError
from gti.progress import progress_over

MEMORIES = ("units", "rows")
# Calls of one examination, about: where a fault strikes is drawn on a logarithmic scale.
_CALLS = {"open": 100, "claim": 100, "control": 200, "session": 2000, "write": 4000, "read": 800, "status": 4000}


class Job(NamedTuple):
    """One stick to identify."""

    behaviours: str
    kind: str
    faults: tuple[Fault, ...]
    left_out: tuple[str, ...]


class Verdict(NamedTuple):
    """What became of a job: counts of answers, what was wrong with them, why questions were not reached."""

    job: Job
    counts: Counter[str]
    wrong: list[str]
    reasons: Counter[str]


def singles() -> Iterator[Job]:
    """Yield a stick of today's assumptions, and one for each other alternative."""
    yield Job("", "ft601", (), ())
    for question in QUESTIONS:
        for name in question.names[1:]:
            yield Job(f"{question.name}={name}", "ft601", (), () if question.name.endswith("_memory") else MEMORIES)


def combination(seed: int) -> Job:
    """Return a stick with a random alternative for every question, and one to four faults on its bus."""
    random = np.random.RandomState(seed)
    kind = KINDS[seed % len(KINDS)]
    chosen = ASSUMED.changed(**{one.name: one.names[random.randint(len(one.names))] for one in QUESTIONS})
    chosen = chosen.changed(load_length="full" if seed % 10 == 5 else "any")
    if kind == "eusb":  # another bridge, which has none of these
        chosen = chosen.of({one.name for one in QUESTIONS} - set(OF_THE_BRIDGE) | {"load_length"})
    return Job(chosen.text, kind, random_faults(random), () if seed % 50 == 0 else MEMORIES)


def random_faults(random: np.random.RandomState) -> tuple[Fault, ...]:
    """Return one to four faults at any time of an examination."""
    faults = []
    for _ in range(random.randint(1, 5)):
        phase = PHASES[random.randint(len(PHASES))]
        nth = int(10 ** random.uniform(0, np.log10(_CALLS[phase]))) - 1
        kind = list(FAULT_KINDS)[random.randint(len(FAULT_KINDS))]
        count, amount = random.choice([1, 1, 1, 2, 5, 50]), random.choice([1, 3, 64, 512, 1024, 4096])
        faults.append(Fault(phase, nth, kind, int(count), int(amount)))
    return tuple(faults)


def run(job: Job) -> Verdict:
    """Identify one stick and judge the answers."""
    truth = parse(job.behaviours)
    backend = virtual_backend(job.kind, plans=[FaultPlan(job.faults)], behaviours=truth)
    try:
        with ExitStack() as held:
            stick = bench.connect(f"virtual:{job.kind}", held, backend=backend)
            found = identify(stick, left_out=job.left_out)
    except DeviceError as error:
        return Verdict(job, Counter(refused=1), [], Counter({str(error).partition(" Fix:")[0][:60]: 1}))
    return judge(job, truth, found)


def judge(job: Job, truth: Behaviours, found: Identity) -> Verdict:
    """Hold every answer against what the stick plays."""
    counts: Counter[str] = Counter(loads=found.counts["loads"], frames=found.counts["frames"], sticks=1)
    wrong: list[str] = []
    reasons: Counter[str] = Counter()
    for one in found.findings:
        right = truth[one.question]
        if one.sure == CERTAIN and one.answers == (right,):
            counts["named"] += 1
        elif one.sure == EITHER and right in one.answers and "same codes" in one.why:
            counts["one of several that are the same"] += 1
        elif one.sure in (CERTAIN, EITHER, NONE):
            wrong.append(f"{one.question}: {one.sure} {'/'.join(one.answers)}, but it is {right} ({one.why})")
        else:
            counts["not reached"] += 1
            reasons[one.why.partition(":")[0][:60]] += 1
    # The combination of the profile must compute what the stick does.
    core = [stages.same_codes(truth.of(stages.CORE), found.behaviours.of(stages.CORE))]
    if all(one.sure in (CERTAIN, EITHER) for one in found.findings if one.question in stages.CORE) and not all(core):
        wrong.append(f"the profile says {found.behaviours.text}")
    return Verdict(job, counts, wrong, reasons)


class StillClock:
    """Only sleeping moves it: pauses cost nothing and mean the same on a busy machine."""

    now = 1000.0

    def stand(self) -> None:
        """Take the place of the process's clock."""
        time.sleep = self.sleep  # type: ignore[assignment]
        time.monotonic = self.monotonic  # type: ignore[assignment]

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


def _prepare() -> None:
    logging.getLogger("gti.chip").setLevel(logging.CRITICAL)
    StillClock().stand()


def _summed(verdicts: Iterable[Verdict]) -> tuple[Counter[str], list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    for number, verdict in enumerate(verdicts, 1):
        counts.update(verdict.counts)
        if number % 50 == 0:
            print(f"{number} sticks, {len(wrong)} wrong answers so far: {dict(counts)}", flush=True)
        reasons.update(verdict.reasons)
        counts["most loads"] = max(counts["most loads"], verdict.counts["loads"])
        counts["most frames"] = max(counts["most frames"], verdict.counts["frames"])
        for text in verdict.wrong:
            wrong.append(f"{text}: {verdict.job}")
            print(f"WRONG {wrong[-1]}", flush=True)
    return counts, wrong, reasons


def derive() -> int:
    """Search for the frames of every stage and print them."""
    for stage in stages.STAGES:
        frames = search.search(stage, {"sums": 30, "rows": 1, "units": 1}.get(stage.name, 2), print)
        same = [tuple(one) for one in frames] == [tuple(one) for one in stages.PLAN[stage.name]]
        print(f"{stage.name}: {[tuple(one) for one in frames]}{'' if same else ', the plan has others'}", flush=True)
    return 0


def main() -> int:
    """Run the jobs and print counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--combinations", type=int, default=500, help="random combinations (default: 500)")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--search", action="store_true", help="derive the plan again")
    parser.add_argument("--singles", action="store_true", help="single alternatives only")
    args = parser.parse_args()
    if args.search:
        return derive()
    frames = [key for stage in stages.STAGES for key in stages.keys(stage)]
    print(f"plan: {len(frames)} frames, {stages.loads(frames)} loads, {len(stages.asked())} questions", flush=True)
    failed = False
    jobs = {"single alternatives": list(singles())}
    if not args.singles:
        jobs["combinations with faults"] = [combination(seed) for seed in range(args.combinations)]
    with multiprocessing.get_context("spawn").Pool(args.processes, _prepare) as pool:
        for title, some in jobs.items():
            verdicts = progress_over(pool.imap_unordered(run, some), len(some), title, unit="stick")
            counts, wrong, reasons = _summed(verdicts)
            failed |= bool(wrong)
            print(
                json.dumps({title: len(some), **counts, "wrong answers": len(wrong), "reasons": dict(reasons)}),
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
