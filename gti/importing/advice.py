"""Why a model cannot run on the chip, for people: one line for each kind of reason, then what they amount to."""

from __future__ import annotations

from collections.abc import Sequence

from gti.chip import spec
from gti.chip.network.rules import Violation
from gti.errors import printable

_VGG = "choose a VGG-like network"
# What kinds of reasons amount to: a part of their problem -> (what the model has, what to choose).
_SUMS = (
    ("depthwise", "depthwise convolutions", _VGG),
    ("single chain", "branches", _VGG),
    ("the host receives", "branches", _VGG),
    ("grouped", "grouped convolutions", _VGG),
    ("kernel is not", "kernels other than 3x3", "build it of 3x3 convolutions"),
    ("stride is not", "strides", "pool with 2x2 instead"),
    ("activation is not", "activations other than ReLU", "use ReLU"),
    ("layer of this kind", "layers that the chip does not have", "build it of 3x3 convolutions, ReLU and 2x2 pooling"),
    ("not written by the import", "layers that the host's part does not have", "use pooling, Dense, ReLU and Dropout"),
    ("image size", "an image size that the chip does not have", "pass --image_size"),
)
_MOST_NAMES = 200


def groups(violations: Sequence[Violation]) -> list[list[Violation]]:
    """Return the violations by kind, in the order in which the kinds come up."""
    found: dict[tuple[str, str], list[Violation]] = {}
    for violation in violations:
        fix = "" if violation.rule.startswith("json") else violation.problem
        found.setdefault((violation.rule, fix), []).append(violation)
    return list(found.values())


def lines(violations: Sequence[Violation]) -> list[str]:
    """Return one line for each kind of reason, which names every layer, and one that sums them up where it can."""
    result = []
    for group in groups(violations):
        if len(group) == 1:
            result.append(str(group[0]))
            continue
        names = ", ".join(printable(v.layer.removeprefix("layer "), 80) for v in group[:_MOST_NAMES])
        more = f" and {len(group) - _MOST_NAMES} more" if len(group) > _MOST_NAMES else ""
        received = list(dict.fromkeys(printable(str(v.received), 60) for v in group if v.received is not None))
        values = "" if not received else f", received {', '.join(received[:6])}{', ...' if len(received) > 6 else ''}"
        fixes = list(dict.fromkeys(printable(v.fix) for v in group))
        fix = f" Fix: {fixes[0].rstrip('.')}{', and so on' if len(fixes) > 1 else ''}." if fixes[0] else ""
        expected = f"; expected {printable(str(group[0].expected))}" if group[0].expected is not None else ""
        result.append(f"{len(group)} times: {group[0].problem}{expected}{values}.{fix} In {names}{more}.")
    total = summary(violations)
    return [*result, total] if total and len(result) > 1 else result


def summary(violations: Sequence[Violation]) -> str:
    """Return one line that says what the model has and what to choose; "" where the reasons say it best."""
    chosen: dict[str, list[str]] = {}
    for part, what, instead in _SUMS:
        if any(part in v.problem and v.rule in ("keras-layer", "host-layer") for v in violations):
            names = chosen.setdefault(instead, [])
            if what not in names:
                names.append(what)
    if not chosen:
        return ""
    if _VGG in chosen:
        chosen = {_VGG: chosen[_VGG]}
    return "In short: " + "; ".join(f"{', '.join(names)}: {instead}" for instead, names in chosen.items()) + "."


def text(name: str, violations: Sequence[Violation]) -> str:
    """Return the whole message for the model `name`."""
    reasons = lines(violations)
    if len(reasons) == 1:
        return f"{printable(name)}: the GTI {spec.CHIP} cannot run it as it is: {reasons[0]}"
    return "\n".join([f"{printable(name)}: the GTI {spec.CHIP} cannot run it as it is:", *(f"  {r}" for r in reasons)])
