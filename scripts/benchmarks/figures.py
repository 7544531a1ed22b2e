"""What a benchmark yields: figures with their goals, as JSON, as lines for people and as a Markdown table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scripts.benchmarks.measure import Paired, Side, Spread, paired

PARTS = ("emulator", "peers", "qat", "calibration", "conversion", "usb", "pipeline")
# What a figure's goal is about: how many times faster than the yardstick, how many times its cost, seconds, megabytes.
Kind = Literal["speed", "cost", "seconds", "megabytes"]
PACKAGES = ("numpy", "numba", "tensorflow", "keras", "onnxruntime", "ai-edge-litert", "openvino")


@dataclass(frozen=True)
class Scale:
    """How much is measured; the goals are those of VGG16 at 224x224 with these defaults."""

    rounds: int = 5
    min_seconds: float = 0.25  # of a side in a round
    net: str = "vgg16"
    batch: int = 8
    small_batch: int = 64  # of the small network of six convolutions
    arrays: int = 1000  # of digits, to labels
    step_rounds: int = 9  # of training steps, whose times differ by more from round to round than their goal allows
    small_steps: int = 5  # of the small network in an epoch: what an epoch costs besides is spread over them
    growth: bool = True  # series over batch, channels, image size
    large_training: bool = True  # training steps and calibration of the net itself: VGG16 needs about 8 GB of memory
    calibration_batches: int = 6
    stick_seconds: float = 3.0


FULL = Scale()
QUICK = Scale(
    rounds=3, step_rounds=3, min_seconds=0.1, small_steps=3, growth=False, large_training=False, calibration_batches=2,
    stick_seconds=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One line of the table: `value` in the unit of `kind`; `goal` None for what is shown for its own sake.

    Of "speed" and "cost" the value is a ratio to the yardstick, whose time stands beside it.
    """

    part: str
    name: str
    kind: Kind
    value: Spread
    goal: float | None = None
    time: Spread | None = None  # of the subject, seconds
    yardstick: str = ""
    yardstick_time: Spread | None = None
    rounds: int = 0
    rejected: int = 0
    basis: str = "wall"
    foreign: float = 0.0
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.value.median >= self.goal if self.kind == "speed" else self.value.median <= self.goal

    @property
    def verdict(self) -> str:
        """`met`, or by how much it is missed and why; "" without a goal."""
        if self.goal is None or self.met:
            return "" if self.goal is None else "met"
        by = abs(self.value.median / self.goal - 1)
        reasons = [f"other programs took {self.foreign:.0%} of the machine"] if self.foreign > 0.05 else []
        reasons += [self.remark] if self.remark else []
        percent = f"{by:.0%}" if by >= 0.02 else f"{by:.1%}"
        return f"missed by {percent}" + (f": {'; '.join(reasons)}" if reasons else "")


def compared(
    part: str, name: str, kind: Kind, found: Paired, yardstick: str, *, goal: float | None = None, remark: str = ""
) -> Figure:
    """Return the figure of a comparison: how many times faster, how many times the cost, or the subject's seconds."""
    value = {
        "speed": Spread(1 / found.ratio.median, 1 / found.ratio.high, 1 / found.ratio.low),
        "cost": found.ratio,
        "seconds": found.subject,
    }[kind]
    return Figure(
        part, name, kind, value, goal, found.subject, yardstick, found.yardstick,
        found.rounds, found.rejected, found.basis, found.foreign, remark,
    )  # fmt: skip


def compare(
    part: str, name: str, kind: Kind, sides: tuple[Side, Side], words: str, *, rounds: int, min_seconds: float = 0.0,
    goal: float | None = None, remark: str = "", clock: bool = False,
) -> Figure:  # fmt: skip
    """Measure a subject against its yardstick (`sides`, `words`) and return the figure; see `measure.paired`."""
    found = paired(*sides, rounds=rounds, min_seconds=min_seconds, title=name, clock=clock)
    return compared(part, name, kind, found, words, goal=goal, remark=remark)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on: processor, cores, system and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": named.get("model name") or platform.processor() or named.get("Hardware") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def to_json(figures: Sequence[Figure], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result file: `about` the run, and every figure with its verdict."""
    return {**about, "figures": [{**_rounded(asdict(figure)), "met": figure.met} for figure in figures]}


def from_json(value: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a result file. Raises KeyError or TypeError for another file."""
    result = []
    for entry in value["figures"]:
        fields = {key: item for key, item in entry.items() if key != "met"}
        for key in ("value", "time", "yardstick_time"):
            fields[key] = Spread(**fields[key]) if fields[key] else None
        result.append(Figure(**fields))
    return result


def line(figure: Figure) -> tuple[str, ...]:
    """Return the cells of a figure: what, value with range, time, yardstick with its time, goal, verdict, rounds."""
    sign = ">=" if figure.kind == "speed" else "<="
    rounds = str(figure.rounds) if figure.rounds else ""
    if figure.rejected:
        rounds += f" ({figure.rejected} rejected)"
    if figure.basis == "cpu":
        rounds += ", CPU time"
    theirs = f"{figure.yardstick}, {seconds(figure.yardstick_time.median)}" if figure.yardstick_time else ""
    return (
        figure.name,
        f"{number(figure.value.median, figure.kind)} ({_range(figure.value, figure.kind)})",
        seconds(figure.time.median) if figure.time and figure.kind != "seconds" else "",
        theirs or figure.yardstick,
        f"{sign} {number(figure.goal, figure.kind)}" if figure.goal is not None else "",
        figure.verdict or (figure.remark if figure.goal is None else ""),
        rounds,
    )


HEADINGS = ("what", "median (smallest..largest)", "time", "yardstick", "goal", "result", "rounds")


def markdown(figures: Iterable[Figure], about: Mapping[str, Any]) -> str:
    """Return the tables of docs/performance.md: the machine, and one table per part."""
    figures = list(figures)
    machine_words = ", ".join(f"{key} {value}" for key, value in about.get("machine", {}).items())
    lines = textwrap.wrap(f"Machine: {machine_words}." + " Quick run: fewer rounds." * bool(about.get("quick")), 100)
    for part in PARTS:
        rows = [line(figure) for figure in figures if figure.part == part]
        if rows:
            lines += ["", f"### {part}", "", _row(HEADINGS), "|" + "---|" * len(HEADINGS), *map(_row, rows)]
    return "\n".join(lines)


def text(figure: Figure) -> str:
    """Return a figure as a line for the terminal."""
    name, value, time, yardstick, goal, result, rounds = line(figure)
    tail = [f"{time} against {yardstick}" if time else yardstick, f"goal {goal}: {result}" if goal else result, rounds]
    return f"  {name:<44} {value:<30} " + " | ".join(word for word in tail if word)


def number(value: float, kind: Kind) -> str:
    """Return a value with the unit of its kind."""
    if kind == "seconds":
        return seconds(value)
    return f"{value:.0f} MB" if kind == "megabytes" else f"{value:.2f} x"


def seconds(value: float) -> str:
    """Return a duration with three digits in s, ms or us."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor or unit == "us":
            return f"{value / factor:.3g} {unit}" if value / factor < 999.5 else f"{value / factor:.0f} {unit}"
    raise AssertionError


def about(quick: bool, parts: Sequence[str], took: float) -> dict[str, Any]:
    """Return what a result file says of the run itself."""
    return {"machine": machine(), "quick": quick, "parts": list(parts), "seconds": round(took, 1)}


def _rounded(value: Any) -> Any:
    # Six digits of every number.
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _range(spread: Spread, kind: Kind) -> str:
    return f"{number(spread.low, kind)}..{number(spread.high, kind)}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
