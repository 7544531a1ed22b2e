"""Fair measurement on a machine that others use too: paired rounds, each with a look at who else was computing.

Each side of a comparison lives in a process of its own (`Worker`), so that TensorFlow's memory and threads are no part
of the emulator's figures. Only one side runs at a time; the order alternates. A round in which other programs
took more than `FOREIGN_SHARE` of the cores is contended and does not count.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
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
    foreign: float | None  # None where the system does not tell


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
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


def busy_seconds() -> float | None:
    """Return the CPU time that all programs of the machine have used so far, None where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def tree_seconds() -> float:
    """Return the CPU time of this process and its descendants so far (Linux)."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))  # own, and of children that have ended
    family, generation = set(), {os.getpid()}
    while generation:
        family |= generation
        generation = {pid for pid, parent in parents.items() if parent in generation} - family
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds() -> float:
    """Return the CPU time of this process, its threads and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Worker:
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
        before, own_before = busy_seconds(), tree_seconds() if Path("/proc/stat").exists() else 0.0
        start = time.perf_counter()
        wall, cpu = self._ask("run", action, repeat)
        seconds = time.perf_counter() - start
        foreign = None
        after = busy_seconds()
        if before is not None and after is not None:
            others = after - before - (tree_seconds() - own_before)
            foreign = max(0.0, others - TICK_ERROR) / (seconds * (os.cpu_count() or 1))
        return Sample(wall / repeat, cpu / repeat, foreign)

    def value(self, action: str) -> Any:
        """Run an action once and return its result."""
        return self._ask("value", action, 1)

    def peak_megabytes(self) -> float:
        """Return the largest memory (resident set) of the process so far, in 10**6 bytes."""
        return self._ask("peak", "", 1)

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.send(None)
            self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._connection.close()

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        return self._result()

    def _result(self) -> Any:
        try:
            problem, result = self._connection.recv()
        except EOFError:
            problem, result = "the process of a side ended", None
        if problem:
            self.close()
            raise RuntimeError(problem)
        return result

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
                cpu, start = own_cpu_seconds(), time.perf_counter()
                for _ in range(repeat):
                    run()
                result = (time.perf_counter() - start, own_cpu_seconds() - cpu)
            connection.send(("", result))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        connection.send((traceback.format_exc(), None))


def paired(
    subject: tuple[Worker, str],
    yardstick: tuple[Worker, str],
    *,
    rounds: int,
    min_seconds: float,
    title: str = "",
    clock: bool = False,
) -> Paired:
    """Compare two actions in at least `rounds` rounds, a side taking at least `min_seconds` of a round.

    Both sides run unmeasured first; short actions are repeated within a round. `clock`: most of the time is spent
    waiting, so CPU time would say nothing; contended rounds count by the clock where there are no others.
    """
    repeats = []
    for worker, action in (subject, yardstick):
        once = worker.run(action).wall
        if once < WARM_UP_SECONDS:  # most of it may have been compilation, or the processor waking up
            once = worker.run(action).wall
        repeats.append(max(1, round(min_seconds / max(once, 1e-7))))
    quiet: list[tuple[Sample, Sample]] = []
    contended: list[tuple[Sample, Sample]] = []
    with progress_bar(rounds, title if sys.stderr.isatty() else "", "round") as bar:
        while len(quiet) < rounds and len(quiet) + len(contended) < PATIENCE * rounds:
            if len(contended) > rounds and not quiet:
                break  # nothing of this machine is free
            sides = [(*subject, repeats[0]), (*yardstick, repeats[1])]
            turn = (len(quiet) + len(contended)) % 2
            samples = [worker.run(action, repeat) for worker, action, repeat in (sides[::-1] if turn else sides)]
            if turn:
                samples.reverse()
            if is_contended((samples[0], samples[1])):
                contended.append((samples[0], samples[1]))
            else:
                quiet.append((samples[0], samples[1]))
                bar.update()
    return evaluated(quiet, contended, rounds, clock)


def is_contended(samples: tuple[Sample, Sample]) -> bool:
    """Return whether others computed during a round."""
    return any((sample.foreign or 0.0) > FOREIGN_SHARE for sample in samples)


def evaluated(
    quiet: list[tuple[Sample, Sample]], contended: list[tuple[Sample, Sample]], rounds: int, clock: bool = False
) -> Paired:
    """Return the figures of (subject, yardstick) rounds: by the clock if `rounds` are quiet, else by CPU time."""
    enough = len(quiet) >= rounds
    counted = quiet if enough else quiet + contended
    basis = "wall" if enough or clock else "cpu"
    ours, theirs = ([getattr(pair[side], basis) for pair in counted] for side in (0, 1))
    ratios = [a / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True)]
    foreign = statistics.median(sample.foreign or 0.0 for pair in counted for sample in pair)
    rejected = len(contended) if enough else 0
    return Paired(Spread.of(ours), Spread.of(theirs), Spread.of(ratios), len(counted), rejected, basis, foreign)


def as_json(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON holds it, numbers with six digits."""
    return _rounded(asdict(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
