"""Ctrl-C at every call that a pool of sticks makes: it ends, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from sticks import dat_bytes, images, tiny_network

from gti.chip.runtime import pool
from gti.chip.runtime.pool import GtiPool

NETWORK = tiny_network()
_HANG_S = 30.0  # what hung before hung for ever
# Stands in for pool_worker: answers at once, and hangs on the image that is all 255.
WORKER = """
    import sys, time
    from multiprocessing.connection import Connection
    import numpy as np
    connection = Connection(int(sys.argv[1]))
    try:
        connection.recv()
        connection.send(("ready", "stand-in"))
        while True:
            image, cap = connection.recv()
            if image.min() == 255:
                time.sleep(600)
            connection.send(("result", np.zeros((1, 7, 7, 16), np.float32)))
    except (EOFError, OSError):
        pass
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.setattr(pool, "_ROOT", str(tmp_path))
    monkeypatch.setattr(pool, "_PROGRAM", "stand_in")
    monkeypatch.setattr(pool, "_PATIENCE_S", 0.2)
    file = tmp_path / "tiny.dat"
    file.write_bytes(dat_bytes(NETWORK))
    return file


@contextlib.contextmanager
def interrupted_at(number: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at call `number` of a function that gti/chip/runtime/pool.py makes or has made."""
    calls = [0]

    def look(frame: FrameType, event: str, _: object) -> None:
        above = frame.f_back
        ours = frame.f_code.co_filename == pool.__file__
        if event == "call" and (ours or (above is not None and above.f_code.co_filename == pool.__file__)):
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def children() -> set[int]:
    """Living child processes, by their number."""
    text = Path(f"/proc/self/task/{os.getpid()}/children")
    found = {int(one) for one in text.read_text().split()}
    return {one for one in found if "Z" not in Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0]}


def run(path: Path, number: int) -> tuple[bool, int]:
    """Return whether a pool that answers a few frames was interrupted, and how many calls it made."""
    before = children()
    started = time.monotonic()
    interrupted = False
    with interrupted_at(number) as calls:
        try:
            with GtiPool(path, ["virtual", "virtual"]) as sticks:
                for _ in sticks.evaluate_many(images(NETWORK, 5)):
                    pass
        except KeyboardInterrupt:
            interrupted = True
            sticks = None  # interrupted at the very call of __exit__, a pool ends with its last reference
    assert time.monotonic() - started < _HANG_S
    end = time.monotonic() + _HANG_S
    while children() - before and time.monotonic() < end:
        time.sleep(0.01)
    assert not children() - before
    return interrupted, calls[0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes by /proc")
@pytest.mark.slow
def test_ctrl_c_at_every_call_ends_the_pool(path: Path):
    interrupted, calls = run(path, 0)
    assert not interrupted
    assert calls > 60
    ends = [run(path, number)[0] for number in range(1, calls)]
    # At the end, fewer calls may be needed than the first time: nothing is left to be interrupted there.
    assert sum(ends) >= 0.8 * len(ends)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes by /proc")
def test_sticks_that_hang_are_left(path: Path):
    before = children()
    started = time.monotonic()
    stuck = np.full(NETWORK.input_shape, 255, np.uint8)
    with GtiPool(path, ["virtual", "virtual"]) as sticks:
        stream = sticks.evaluate_many([images(NETWORK, 1)[0], stuck, stuck, stuck])
        next(stream)
        stream.close()
    assert time.monotonic() - started < _HANG_S  # and not the ten minutes of the stand-in
    assert not children() - before
