"""Drawings of the report as inline SVG: colours come from the page's style sheet, so they follow light and dark.

Every function returns `Markup`; all text is escaped here. Coordinates are CSS pixels at a width of `WIDTH`, which suits
a phone; wider columns enlarge a drawing as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH = 340
_LABELS = 62  # column of layer names
_ROW = 20


@dataclass(frozen=True)
class Row:
    """One layer in a drawing: its name, and numbers whose meaning the drawing says."""

    name: str
    values: tuple[float, ...]
    title: str = ""


def _svg(height: float, parts: Sequence[str], label: str) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _rect(box: tuple[float, float, float, float], style: str, title: str = "", more: str = "") -> str:
    x, y, width, height = box
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect class="{style}" x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0):.2f}"'
        f"{more}>{inner}</rect>"
    )


def _text(x: float, y: float, text: str, style: str = "label", *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def histogram(counts: Sequence[int], top: float, cap: float | None, *, label: str, end: str = "") -> Markup:
    """Return bars of `counts` over equal bins of 0..`top`, heights logarithmic; a line at `cap`, `end` is its label."""
    left, right, base, height = 4.0, WIDTH - 4.0, 112.0, 88.0
    used = max((i + 1 for i, count in enumerate(counts) if count), default=1)
    shown_to = top * used / len(counts)
    if cap is not None:
        shown_to = max(shown_to, cap * 1.03)
    scale = (right - left) / shown_to
    width = top / len(counts)
    tallest = math.log10(1 + max(counts, default=0)) or 1.0
    parts = []
    for i, count in enumerate(counts[:used]):
        bar = height * math.log10(1 + count) / tallest
        beyond = cap is not None and i * width >= cap
        parts.append(
            _rect(
                (left + i * width * scale, base - bar, max(width * scale - 1, 0.8), bar),
                "bar over" if beyond else "bar",
                f"{i * width:.4g} to {(i + 1) * width:.4g}: {count:,}",
            )
        )
    parts.append(_line(left, base, right, base, "axis"))
    parts.append(_text(left, base + 14, "0"))
    parts.append(_text(right, base + 14, end or f"{shown_to:.4g}", anchor="end"))
    if cap is not None:
        x = left + cap * scale
        parts.append(_line(x, 14, x, base, "cap"))
        near_edge = x > WIDTH / 2
        parts.append(
            _text(
                x - 4 if near_edge else x + 4,
                22,
                f"cap {cap:.4g}",
                "label strong",
                anchor="end" if near_edge else "start",
            )
        )
    return _svg(base + 18, parts, label)


def code_usage(rows: Sequence[Row]) -> Markup:
    """Return one strip of 32 cells per row; darker means more often, an empty cell never."""
    cell = (WIDTH - _LABELS) / 32
    parts = []
    for line, row in enumerate(rows):
        y = line * _ROW
        total = sum(row.values) or 1
        parts.append(_text(0, y + 14, row.name))
        for code, count in enumerate(row.values):
            share = count / total
            # Shares span many powers of ten: six of them, from one in a million up, share the shades.
            shade = 0.12 + 0.88 * max(0.0, 1 + math.log10(share) / 6) if count else 0
            style = "cell" if count else "cell none"
            more = f' fill-opacity="{shade:.2f}"' if count else ""
            parts.append(
                _rect(
                    (_LABELS + code * cell, y + 2, cell - 1, _ROW - 5),
                    style,
                    f"{row.name}, code {code}: {share:.3%}",
                    more,
                )
            )
    y = len(rows) * _ROW + 12
    parts.append(_text(_LABELS, y, "code 0"))
    parts.append(_text(WIDTH, y, "31", anchor="end"))
    return _svg(y + 4, parts, "codes in use per layer")


def weights_and_biases(rows: Sequence[Row]) -> Markup:
    """Return, per row of (max|W|, max|B|), two dots on one logarithmic axis, joined by a line."""
    present = [value for row in rows for value in row.values if value > 0]
    low = math.floor(math.log10(min(present, default=1)))
    high = max(math.ceil(math.log10(max(present, default=1))), low + 1)
    left, right = _LABELS + 6.0, WIDTH - 8.0

    def place(value: float) -> float:
        return left + (right - left) * (math.log10(value) - low) / (high - low) if value > 0 else left

    bottom = len(rows) * _ROW + 4
    step = max(1, math.ceil((high - low) / 5))
    parts = []
    for power in range(low, high + 1, step):
        x = place(10.0**power)
        parts.append(_line(x, 0, x, bottom, "grid"))
        parts.append(_text(x, bottom + 12, f"{10.0**power:g}", anchor="middle" if power < high else "end"))
    for line, row in enumerate(rows):
        weight, bias = row.values
        y = line * _ROW + 10
        parts.append(_text(0, y + 4, row.name))
        parts.append(_line(place(weight), y, place(bias), y, "join"))
        for value, style, what in ((weight, "dot", "max|W|"), (bias, "dot second", "max|B|")):
            if value > 0:
                title = escape(f"{row.name}: {what} {value:.4g}")
                parts.append(
                    f'<circle class="{style}" cx="{place(value):.2f}" cy="{y}" r="5"><title>{title}</title></circle>'
                )
    return _svg(bottom + 18, parts, "largest weight and largest bias per layer")


def memory_plan(rows: Sequence[Row], units: int, block: int) -> Markup:
    """Return the activation memory over time: per row of (in address, in size, out address, out size) two blocks."""
    left = float(_LABELS)
    scale = (WIDTH - left) / units
    top, bottom = 16.0, 16.0 + len(rows) * _ROW
    parts = []
    for number in range(units // block):
        x = left + number * block * scale
        parts.append(_line(x, top - 4, x, bottom, "grid"))
        parts.append(_text(x + 2, 10, f"block {number}"))
    parts.append(_line(WIDTH - 0.5, top - 4, WIDTH - 0.5, bottom, "grid"))
    for line, row in enumerate(rows):
        y = top + line * _ROW
        parts.append(_text(0, y + 14, row.name))
        for (address, size), style, verb in (
            (row.values[:2], "bar", "reads"),
            (row.values[2:], "bar second", "writes"),
        ):
            title = f"{row.name} {verb} {size:g} units at {address:g}"
            parts.append(_rect((left + address * scale, y + 3, max(size * scale - 1, 2), _ROW - 6), style, title))
    return _svg(bottom + 2, parts, "activation memory per layer: what is read and written where")


def dots(rows: Sequence[Row], baseline: float, *, label: str) -> Markup:
    """Return one dot per row at its share, on an axis around `baseline`, which is a line."""
    values = [row.values[0] for row in rows] + [baseline]
    low, high = min(values), max(values)
    room = max((high - low) * 0.15, 0.002)
    low, high = max(low - room, 0.0), min(high + room, 1.0)
    left, right = _LABELS + 6.0, WIDTH - 58.0

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    bottom = len(rows) * _ROW + 2
    x0 = place(baseline)
    parts = [_line(x0, 0, x0, bottom, "cap")]
    parts.append(_text(x0, bottom + 12, f"all quantized {baseline:.2%}", "label strong", anchor="middle"))
    for line, row in enumerate(rows):
        y = line * _ROW + 10
        value = row.values[0]
        title = escape(f"{row.name}: {value:.2%}")
        parts.append(_text(0, y + 4, row.name))
        parts.append(_line(x0, y, place(value), y, "join"))
        parts.append(f'<circle class="dot" cx="{place(value):.2f}" cy="{y}" r="5"><title>{title}</title></circle>')
        parts.append(_text(WIDTH, y + 4, f"{value:.2%}", anchor="end"))
    return _svg(bottom + 18, parts, label)


def curves(
    lines: Mapping[str, Sequence[float | None]],
    marks: Sequence[str],
    begins: Sequence[tuple[int, str]],
    *,
    label: str,
) -> Markup:
    """Return one line per series over the points named by `marks`; None is a gap.

    `begins`: (number of a point, text) where a stage begins, drawn as a vertical line in front of it.
    """
    left, right, top, base = 44.0, WIDTH - 6.0, 18.0, 130.0
    present = [value for line in lines.values() for value in line if value is not None]
    low, high = min(present, default=0.0), max(present, default=1.0)
    high = high if high > low else low + 1
    across = (right - left) / max(len(marks) - 1, 1)

    def y(value: float) -> float:
        return base - (base - top) * (value - low) / (high - low)

    parts = [_line(left, base, right, base, "axis")]
    parts += [_text(left - 4, y(value) + 4, f"{value:.3g}", anchor="end") for value in (low, high)]
    for number, text in begins:
        x = left + across * number
        parts.append(_line(x, top, x, base, "grid"))
        parts.append(_text(x + 2, base + 12, text))
    for place, (name, line) in enumerate(lines.items()):
        style = "dot second" if place else "dot"
        points = [(left + across * i, y(v), marks[i], v) for i, v in enumerate(line) if v is not None]
        for (x1, y1, _, _), (x2, y2, _, _) in pairwise(points):
            parts.append(_line(x1, y1, x2, y2, "join"))
        parts += [
            f'<circle class="{style}" cx="{px:.2f}" cy="{py:.2f}" r="2.6">'
            f"<title>{escape(f'{name}, {mark}: {value:.4g}')}</title></circle>"
            for px, py, mark, value in points
        ]
        parts.append(_text(left + 70 * place, 11, name, "label strong" if place else "label"))
        parts.append(f'<circle class="{style}" cx="{left - 8 + 70 * place:.2f}" cy="7" r="3"/>')
    return _svg(base + 18, parts, label)


def confusion(rows: Sequence[Row]) -> Markup:
    """Return a square of cells, labels down and answers across in the same order; darker is a larger share of a row."""
    cell = (WIDTH - _LABELS) / max(len(rows), 1)
    height = min(cell, _ROW)
    parts = []
    for i, row in enumerate(rows):
        total = sum(row.values) or 1
        parts.append(_text(0, i * height + height * 0.75, row.name[:10]))
        for j, count in enumerate(row.values):
            style = ("cell" if i == j else "cell over") if count else "cell none"
            more = f' fill-opacity="{0.1 + 0.9 * count / total:.2f}"' if count else ""
            title = f"{row.name} answered as {rows[j].name}: {count} of {total}"
            parts.append(_rect((_LABELS + j * cell, i * height + 1, cell - 1, height - 2), style, title, more))
    return _svg(len(rows) * height + 4, parts, "labels down, answers across")
