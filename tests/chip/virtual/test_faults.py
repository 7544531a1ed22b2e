"""The driver against misbehaving sticks: every fault is recovered from or refused, no result is ever wrong."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sticks import KINDS, dat_bytes, images, lively_weights, open_model, tiny_network
from sweeps import first_quick

from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.usb.transport import VIRTUAL_SETTINGS
from gti.chip.virtual.faults import KINDS as FAULT_KINDS
from gti.chip.virtual.faults import PHASES, Fault
from gti.errors import DeviceError

NETWORK = tiny_network()
IMAGES = images(NETWORK, 4)
# Calls on an FT601 with this network, counted on a stick without faults: the load takes writes 0..67, the first frame
# 68..71, the second 72..74. Session 0 and read 0 belong to the opening; a frame has one flush and two reads.


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Codes [N,H,W,C] of the images, from the emulator without any USB."""
    return Emulator(NETWORK, lively_weights(NETWORK, 1)).output(IMAGES).transpose(0, 2, 3, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.dat"
    file.write_bytes(dat_bytes(NETWORK))
    return file


def right(model: GtiModel, expected: np.ndarray, number: int) -> bool:
    return np.array_equal(model.evaluate(IMAGES[number])[0], expected[number])


RECOVERED = [
    # (fault, faults that the driver counts, loads)
    (Fault("write", 3, "short", amount=512), 0, 1),
    (Fault("write", 3, "short", amount=1), 0, 1),
    (Fault("write", 3, "empty", count=5), 0, 1),
    (Fault("write", 3, "timeout", count=4), 0, 1),  # write_timeout_ms is 5 slices of 200 ms
    (Fault("write", 3, "timeout", count=5), 1, 1),
    (Fault("write", 3, "empty", count=65), 1, 1),  # 64 empty transfers in a row are patience enough
    (Fault("write", 3, "stall"), 1, 1),
    (Fault("write", 67, "io"), 1, 1),
    (Fault("write", 3, "disconnect"), 1, 1),
    (Fault("write", 68, "stall"), 1, 2),
    (Fault("write", 70, "disconnect"), 1, 2),
    (Fault("write", 74, "io"), 1, 2),
    (Fault("write", 70, "brownout"), 1, 2),
    (Fault("read", 1, "short", amount=1), 0, 1),
    (Fault("read", 1, "short", amount=2047), 0, 1),
    (Fault("read", 1, "empty", count=3), 0, 1),
    (Fault("read", 1, "timeout", count=4), 0, 1),
    (Fault("read", 1, "timeout", count=5), 1, 2),
    (Fault("read", 2, "stall"), 1, 2),
    (Fault("read", 2, "overflow"), 1, 2),
    (Fault("read", 4, "io"), 1, 2),
    (Fault("read", 2, "disconnect"), 1, 2),
    (Fault("read", 1, "lost"), 1, 2),
    (Fault("read", 1, "zeros"), 1, 2),
    (Fault("read", 3, "ones"), 1, 2),
    (Fault("read", 1, "extra", amount=2048), 0, 1),  # flushed before the next frame
    (Fault("session", 2, "timeout"), 1, 2),
    (Fault("session", 2, "short", amount=7), 1, 2),
    (Fault("session", 3, "disconnect"), 1, 2),
    (Fault("session", 1, "brownout"), 1, 2),
    (Fault("session", 0, "stale", amount=4096), 0, 1),
    (Fault("session", 4, "stale", amount=4096), 0, 1),
    (Fault("control", 0, "short", amount=10), 1, 1),
    (Fault("control", 1, "stall"), 0, 1),  # a refused GPIO request is logged only
    (Fault("claim", 1, "io"), 1, 1),
    (Fault("open", 0, "disconnect"), 1, 1),
    (Fault("open", 1, "stale", amount=4096), 0, 1),
]


@pytest.mark.parametrize(("fault", "faults", "loads"), RECOVERED, ids=lambda value: str(value)[6:60])
def test_recovered(path: Path, expected: np.ndarray, fault: Fault, faults: int, loads: int) -> None:
    backend, model = open_model(path, "ft601", (fault,))
    with model:
        assert all(right(model, expected, number) for number in range(4))
        assert (model.counts.get("faults", 0), model.counts["loads"], model.counts["frames"]) == (faults, loads, 4)
        assert model.counts.get("recovered", 0) == faults  # one each: the next attempt is right
    assert backend.slots[0].plan.fired


REFUSED = [
    # (fault, what the sentence names)
    (Fault("open", 0, "denied"), "permission denied"),
    (Fault("claim", 0, "busy"), "another program"),
    (Fault("claim", 0, "gone"), "bus"),
    (Fault("write", 5, "gone"), "bus"),
    (Fault("write", 0, "timeout", count=500), "loading: time-out"),
    (Fault("write", 68, "stall", count=500), "stall"),
    (Fault("read", 1, "timeout", count=500), "reading: time-out"),
    (Fault("read", 1, "empty", count=5000), "reading: 65 transfers in a row were empty"),
    (Fault("read", 0, "zeros", count=500), "every byte of the result is 0x00"),
    (Fault("read", 0, "ones", count=500), "every byte of the result is 0xff"),
    (Fault("read", 2, "gone"), "bus"),
    (Fault("control", 0, "io", count=500), "opening: an I/O error"),
]


@pytest.mark.parametrize(("fault", "words"), REFUSED, ids=lambda value: str(value)[6:60])
def test_refused(path: Path, fault: Fault, words: str) -> None:
    def use() -> None:
        with open_model(path, "ft601", (fault,))[1] as model:
            model.evaluate(IMAGES[0])

    with pytest.raises(DeviceError, match=words) as caught:
        use()
    message = str(caught.value)
    assert message.startswith("FT601 serial VIRTUAL0001: ")
    assert "Fix: " in message
    assert "\n" not in message


def test_next_frame_works_after_a_refused_one(path: Path, expected: np.ndarray) -> None:
    # 4 attempts of 5 time-outs each are lost, and the read that drains at each of the 3 openings in between.
    _, model = open_model(path, "ft601", (Fault("read", 1, "timeout", count=23),))
    with model:
        with pytest.raises(DeviceError, match="time-out"):
            model.evaluate(IMAGES[0])
        assert right(model, expected, 1)


def test_left_over_by_a_killed_process(path: Path, expected: np.ndarray) -> None:
    backend, first = open_model(path, "ft601")
    link = first._opened()
    link.start(link.encode(IMAGES[3].transpose(2, 0, 1), 0))
    # The result of the first process waits in chip and bridge, half of a load of a second one follows, it dies too.
    backend.slots[0].device.chip.wait(0)
    link.transport.write(b"\x55\x03\x00\x00" * 1000 + b"\x55\x03", "loading")
    del link.transport._handle  # no release of interfaces: as after a kill, the system closes the handle
    backend.slots[0].claimed.clear()
    link.transport._handle = None
    from gti.chip.usb import devices

    model = GtiModel(
        path, transport=devices.transport_on(backend, "ft601", VIRTUAL_SETTINGS), settings=VIRTUAL_SETTINGS
    )
    with model:
        assert all(right(model, expected, number) for number in range(4))


def test_bytes_between_flush_and_result_are_found_when_asked_for(path: Path, expected: np.ndarray) -> None:
    # Read 1 is the first of a result: what a bridge invents there looks like the result, but its end is left over.
    fault = Fault("read", 1, "stale", amount=4096)
    settings = VIRTUAL_SETTINGS.changed(check_end_ms=1.0)
    _, model = open_model(path, "ft601", (fault,), settings=settings)
    with model:
        assert all(right(model, expected, number) for number in range(4))
        assert model.counts["faults"] == 1


def test_compare_twice_finds_one_wrong_answer(path: Path, expected: np.ndarray) -> None:
    # The stale bytes are zeros: without check_constant, only the second evaluation can tell that they are wrong.
    fault = Fault("read", 1, "stale", amount=4096)
    settings = VIRTUAL_SETTINGS.changed(compare_twice=True, check_constant=False)
    _, model = open_model(path, "ft601", (fault,), settings=settings)
    with model:
        assert right(model, expected, 0)
        assert model.counts["faults"] == 1


def random_plan(seed: int) -> tuple[str, tuple[Fault, ...]]:
    """One to four faults on a stick of one kind; the numbers of calls cover opening, loading and four frames."""
    random = np.random.RandomState(seed)
    calls = {"open": 4, "claim": 4, "control": 6, "session": 24, "write": 160, "read": 24, "status": 24}
    faults = []
    for _ in range(random.randint(1, 5)):
        phase = PHASES[random.randint(len(PHASES))]
        faults.append(
            Fault(
                phase,
                int(random.randint(calls[phase])),
                list(FAULT_KINDS)[random.randint(len(FAULT_KINDS))],
                int(random.choice([1, 1, 1, 2, 5, 50])),
                int(random.choice([1, 3, 64, 512, 1024, 4096])),
            )
        )
    return KINDS[seed % len(KINDS)], tuple(faults)


def outcome(path: Path, expected: np.ndarray, seed: int) -> tuple[str, int]:
    """Return what became of one random plan, and how many results were wrong."""
    kind, faults = random_plan(seed)
    settings = VIRTUAL_SETTINGS.changed(check_end_ms=1.0)
    wrong, model = 0, None
    try:
        backend, model = open_model(path, kind, faults, settings=settings)
        for number in range(4):
            wrong += not right(model, expected, number)
        counts: dict[str, Any] = model.counts
        fired = bool(backend.slots[0].plan.fired)
        return ("recovered" if counts.get("faults") else "endured" if fired else "untouched"), wrong
    except DeviceError:
        return "refused", wrong
    finally:
        if model is not None:
            model.release()


@pytest.mark.parametrize("block", first_quick(2, range(10)))
def test_random_plans(path: Path, expected: np.ndarray, block: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    outcomes: Counter[str] = Counter()
    for seed in range(80 * block, 80 * block + 80):
        what, wrong = outcome(path, expected, seed)
        assert wrong == 0, f"plan {seed}: {random_plan(seed)}"
        outcomes[what] += 1
    # Every block exercises both ways out; over all ten blocks, faults strike in 524 plans.
    assert sum(outcomes.values()) - outcomes["untouched"] >= 40
    assert outcomes["recovered"] >= 5
    assert outcomes["refused"] >= 3
