"""Fault plans of the sticks in software: what goes wrong, at which call.

A plan is data, so that a failing test names everything that is needed to repeat it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

PHASES = ("open", "claim", "control", "session", "write", "read", "status")
KINDS = {
    "timeout": "nothing moves, the call times out",
    "short": "only `amount` bytes move",
    "empty": "the call succeeds with no byte moved",
    "stall": "the endpoint stalls until its halt is cleared",
    "io": "an I/O error of the bus",
    "overflow": "the device sends more than was asked",
    "disconnect": "the device leaves the bus and comes back under another address, without its memory",
    "gone": "the device leaves the bus for good",
    "brownout": "the chip loses coefficients, registers and results; the bridge stays",
    "lost": "the result never comes",
    "stale": "`amount` bytes of an earlier result lead the pipe of an FT60x",
    "extra": "`amount` bytes follow the next result",
    "zeros": "the result reads as 0x00",
    "ones": "the result reads as 0xFF",
    "busy": "another process holds the interface",
    "denied": "permission denied",
}


@dataclass(frozen=True)
class Fault:
    """One thing going wrong: at call `nth` (from 0, over the life of the stick) of `phase`, and `count` - 1 more."""

    phase: str
    nth: int
    kind: str
    count: int = 1
    amount: int = 512  # bytes, for short, stale and extra

    def __post_init__(self) -> None:
        if self.phase not in PHASES or self.kind not in KINDS or self.nth < 0 or self.count < 1 or self.amount < 0:
            raise ValueError(f"impossible fault {self}")


class FaultPlan:
    """Counts the calls of each phase and says which of them fail."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self.calls: Counter[str] = Counter()
        self.fired: list[Fault] = []

    def next(self, phase: str) -> Fault | None:
        """Return the fault of this call of `phase`, or None."""
        nth = self.calls[phase]
        self.calls[phase] += 1
        for fault in self.faults:
            if fault.phase == phase and fault.nth <= nth < fault.nth + fault.count:
                self.fired.append(fault)
                return fault
        return None
