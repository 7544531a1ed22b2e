"""A clock that only sleeping moves, so that pauses cost nothing and mean the same on every machine."""

from __future__ import annotations

import time

import pytest


class StillClock:
    """Stands in for `time.sleep` and `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def still(patch: pytest.MonkeyPatch) -> StillClock:
    """Replace the clock until `patch` is undone."""
    clock = StillClock()
    patch.setattr(time, "sleep", clock.sleep)
    patch.setattr(time, "monotonic", clock.monotonic)
    return clock
