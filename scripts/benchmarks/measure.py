"""Fair measurement on a machine that others use too: paired rounds, each with a look at who else was computing.

Each side of a comparison lives in a process of its own (`Worker`), so that TensorFlow's memory and threads are no part
of the emulator's figures. Only one side runs at a time; the order alternates. A round in which other programs
took more than `FOREIGN_SHARE` of the cores is contended and does not count.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gti.progress import progress_bar

# Of the machine's CPU time while a side runs: above it the round is contended. Interrupts and the kernel's own
# threads stay well below it on an idle machine.
FOREIGN_SHARE = 0.05
# The kernel counts CPU time in ticks, of which each of the two readings may miss one per core.
TICK_ERROR = 0.02
# A first run below this is followed by a second one before anything is measured.
WARM_UP_SECONDS = 1.0
# Rounds that are tried for each one that is wanted, before contended ones are accepted.
PATIENCE = 2

Actions = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Sample:
    """One run of one side: seconds of the clock and of all cores, and the share of the machine that others took."""

    wall: float
    cpu: float
    foreign: float = 0.0  # also where the system does not tell


Round = tuple[Sample, Sample]  # subject, yardstick
Side = tuple["Worker", str]  # and its action


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Paired:
    """What the rounds of a comparison gave; times in seconds of a run, of the clock or (`basis` "cpu") of all cores."""

    subject: Spread
    yardstick: Spread
    ratio: Spread  # subject / yardstick, round by round
    rounds: int
    rejected: int
    basis: str  # "wall", or "cpu" where too few rounds were quiet
    foreign: float  # median share of the machine that others took in the rounds that count


def start_tensorflow() -> None:
    """Import TensorFlow in the process of a side, without its remarks: benchmarks trace functions anew on purpose."""
    from gti.quiet import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")


def others_seconds() -> float:
    """Return the CPU time of all programs but this one and its descendants so far; 0 where there is no /proc."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(stat[1])
                ticks[int(entry.name)] = sum(map(int, stat[11:15]))  # own, and of children that have ended
    family, generation = set(), {os.getpid()}
    while generation:
        family |= generation
        generation = {pid for pid, parent in parents.items() if parent in generation} - family
    everybody = user + nice + system + irq + softirq + steal
    return (everybody - sum(ticks.get(pid, 0) for pid in family)) / os.sysconf("SC_CLK_TCK")


class Worker(contextlib.AbstractContextManager["Worker"]):
    """A process that prepares some actions once and then runs them on demand.

    `prepare(*arguments)` returns the actions by name; it must be importable. Raises RuntimeError with the process's
    traceback where it fails.
    """

    def __init__(self, prepare: Callable[..., Actions], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        # Not a daemon: pools of sticks start processes of their own.
        self._process = context.Process(target=_serve, args=(other, prepare, arguments))
        self._process.start()
        other.close()
        self._result()

    def run(self, action: str, repeat: int = 1) -> Sample:
        """Run an action `repeat` times; return the means of one run."""
        before, start = others_seconds(), time.perf_counter()
        wall, cpu = self._ask("run", action, repeat)
        seconds = time.perf_counter() - start
        others = others_seconds() - before - TICK_ERROR
        return Sample(wall / repeat, cpu / repeat, max(0.0, others) / (seconds * (os.cpu_count() or 1)))

    def value(self, action: str) -> Any:
        """Run an action once and return its result."""
        return self._ask("value", action, 1)

    def peak_megabytes(self) -> float:
        """Return the largest memory (resident set) of the process so far, in 10**6 bytes."""
        return self._ask("peak", "", 1)

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        return self._result()

    def _result(self) -> Any:
        try:
            problem, result = self._connection.recv()
        except EOFError:
            problem, result = "the process of a side ended", None
        if problem:
            self.__exit__()
            raise RuntimeError(problem)
        return result

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._connection.send(None)
            self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._connection.close()


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _serve(connection: Connection, prepare: Callable[..., Actions], arguments: tuple[Any, ...]) -> None:
    try:
        actions = prepare(*arguments)
        connection.send(("", None))
        while (request := connection.recv()) is not None:
            kind, action, repeat = request
            if kind == "peak":
                unit = 1 if sys.platform == "darwin" else 1024
                result: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
            elif kind == "value":
                result = actions[action]()
            else:
                run = actions[action]
                cpu, start = _cpu_seconds(), time.perf_counter()
                for _ in range(repeat):
                    run()
                result = (time.perf_counter() - start, _cpu_seconds() - cpu)
            connection.send(("", result))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        connection.send((traceback.format_exc(), None))


def paired(
    subject: Side, yardstick: Side, *, rounds: int, min_seconds: float, title: str = "", clock: bool = False
) -> Paired:
    """Compare two actions in at least `rounds` rounds, a side taking at least `min_seconds` of a round.

    Both sides run unmeasured first; short actions are repeated within a round. `clock`: see `repeated`.
    """
    repeats = []
    for worker, action in (subject, yardstick):
        once = worker.run(action).wall
        if once < WARM_UP_SECONDS:  # most of it may have been compilation, or the processor waking up
            once = worker.run(action).wall
        repeats.append(max(1, round(min_seconds / max(once, 1e-7))))

    def one(turn: int) -> Round:
        sides = [(*subject, repeats[0]), (*yardstick, repeats[1])]
        samples = [worker.run(action, repeat) for worker, action, repeat in (sides[::-1] if turn % 2 else sides)]
        first, second = samples[::-1] if turn % 2 else samples
        return first, second

    return repeated(one, rounds, title, clock)


def repeated(one: Callable[[int], Round], rounds: int, title: str = "", clock: bool = False) -> Paired:
    """Call `one` with the numbers of rounds until `rounds` were quiet, or as often as patience allows.

    `clock`: most of the time is spent waiting, so CPU time would say nothing; contended rounds count by the clock where
    there are no others.
    """
    quiet: list[Round] = []
    contended: list[Round] = []
    with progress_bar(rounds, title if sys.stderr.isatty() else "", "round") as bar:
        while len(quiet) < rounds and (done := len(quiet) + len(contended)) < PATIENCE * rounds:
            if len(contended) > rounds and not quiet:
                break  # nothing of this machine is free
            samples = one(done)
            if is_contended(samples):
                contended.append(samples)
            else:
                quiet.append(samples)
                bar.update()
    return evaluated(quiet, contended, rounds, clock)


def is_contended(samples: Round) -> bool:
    """Return whether others computed during a round."""
    return any(sample.foreign > FOREIGN_SHARE for sample in samples)


def evaluated(quiet: list[Round], contended: list[Round], rounds: int, clock: bool = False) -> Paired:
    """Return the figures of the rounds: by the clock if `rounds` are quiet, else by CPU time."""
    enough = len(quiet) >= rounds
    counted = quiet if enough else quiet + contended
    basis = "wall" if enough or clock else "cpu"
    ours, theirs = ([getattr(pair[side], basis) for pair in counted] for side in (0, 1))
    ratios = [a / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True)]
    foreign = statistics.median(sample.foreign for pair in counted for sample in pair)
    rejected = len(contended) if enough else 0
    return Paired(Spread.of(ours), Spread.of(theirs), Spread.of(ratios), len(counted), rejected, basis, foreign)
