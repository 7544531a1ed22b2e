"""Which major layers may have 1-bit filters: filter rows against accuracy, from what each of them costs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gti.chip.network import file_size, json_form
from gti.chip.network.types import Network
from gti.errors import NetworkError, UsageError


@dataclass(frozen=True)
class Point:
    """Bits of every major layer, the filter rows that they take, and the accuracy that they are expected to cost."""

    bits: tuple[int, ...]
    rows: int
    drop: float  # share 0..1, against 3 bits everywhere: the sum of what the 1-bit layers cost alone


def with_bits(network: Network, bits: Sequence[int]) -> Network:
    """Return `network` with these `coef_bits` of its major layers."""
    layers = [replace(layer, coef_bits=n) for layer, n in zip(network.layers, bits, strict=True)]
    return replace(network, layers=tuple(layers))


def candidates(network: Network) -> list[int]:
    """Return the numbers, from 0, of the major layers that the chip's rules let have 1 bit where the others have 3."""
    found = []
    for major in range(len(network.layers)):
        try:
            json_form.check(with_bits(network, alone(network, major)))
        except NetworkError:
            continue
        found.append(major)
    return found


def alone(network: Network, major: int | None = None) -> tuple[int, ...]:
    """Return 3 bits for every major layer, and 1 bit for `major` (from 0; None: none)."""
    return tuple(1 if number == major else 3 for number in range(len(network.layers)))


def frontier(network: Network, drops: dict[int, float]) -> list[Point]:
    """Return the choices that nothing beats, from most rows to fewest: fewer rows always cost more accuracy.

    `drops`: of each candidate, the share of accuracy that it loses alone; what it gains counts as nothing. Rows and
    drops add up, so layers are taken one after the other and only what nothing beats is kept: every one of the 2**n
    choices is considered.
    """
    rows = [[file_size.row_count(with_bits(network, alone(network, m))) for m in (None, major)] for major in drops]
    whole = file_size.row_count(with_bits(network, alone(network)))
    kept = [Point(alone(network), whole, 0.0)]
    for (major, drop), (before, after) in zip(drops.items(), rows, strict=True):
        more = [
            Point(_one_bit(point.bits, major), point.rows - (before - after), point.drop + max(drop, 0.0))
            for point in kept
        ]
        kept = _unbeaten([*kept, *more])
    return kept


def _one_bit(bits: tuple[int, ...], major: int) -> tuple[int, ...]:
    return (*bits[:major], 1, *bits[major + 1 :])


def _unbeaten(points: Sequence[Point]) -> list[Point]:
    # From most rows to fewest; of equal rows or equal drops the better one.
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.drop, p.rows)):
        if not kept or point.rows < kept[-1].rows:
            kept.append(point)
    return kept


def choose(points: Sequence[Point], *, rows: int | None = None, max_drop: float | None = None) -> Point:
    """Return the point of least drop with at most `rows`, or of fewest rows with a drop of at most `max_drop`.

    Raises UsageError where none is.
    """
    fitting = [p for p in points if (rows is None or p.rows <= rows) and (max_drop is None or p.drop <= max_drop)]
    if not fitting:
        least = min(point.rows for point in points)
        raise UsageError("--rows", "no choice is as small", expected=f"{least} or more", received=rows)
    return min(fitting, key=lambda p: (p.drop, p.rows) if max_drop is None else (p.rows, p.drop))


def table(network: Network, baseline: float, drops: dict[int, float], points: Sequence[Point]) -> str:
    """Return sensitivities and frontier as lines for people; accuracies and drops as shares, drops in points."""
    whole = file_size.row_count(with_bits(network, alone(network)))
    lines = [
        f"3 bits everywhere: accuracy {baseline:.4f}, {whole:,} filter rows",
        "",
        "1 bit in   rows saved  points lost",
    ]
    for major, drop in drops.items():
        saved = whole - file_size.row_count(with_bits(network, alone(network, major)))
        lines.append(f"major {major + 1:<3}  {saved:>10,}  {100 * drop:>11.2f}")
    lines += ["", "bits" + " " * max(2 * len(network.layers) - 3, 1) + "      rows  points lost, as a sum"]
    lines += [f"{','.join(map(str, p.bits))}  {p.rows:>10,}  {100 * p.drop:>11.2f}" for p in points]
    return "\n".join(lines)
