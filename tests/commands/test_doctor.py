"""scripts/doctor.py: what it finds on buses with one thing wrong each."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

from gti.chip.usb import devices, usb_bus
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings, parse_settings
from gti.chip.virtual.bridge import VirtualFt60x
from gti.chip.virtual.bus import VirtualBackend
from gti.chip.virtual.chip import VirtualChip
from gti.chip.virtual.faults import Fault, FaultPlan
from gti.chip.virtual.sticks import virtual_backend
from gti.chip.wire import protocol
from gti.commands import doctor
from gti.errors import UsageError

FAST = VIRTUAL_SETTINGS.changed(retries=0, read_timeout_ms=1.0)


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTI_LOCK_DIR", str(tmp_path))


def bridge(product: int = 0x601F, **chip: Any) -> VirtualFt60x:
    return VirtualFt60x(VirtualChip(protocol.FT601, **chip), product)


def slow_port() -> VirtualBackend:
    stick = bridge()
    stick.speed = 3
    return VirtualBackend([stick])


def other_product() -> VirtualBackend:
    stick = bridge()
    stick.product = 0x6001
    return VirtualBackend([stick])


BUSES = [
    # (bus, exit status 0, words of the findings, words of the fixes)
    (lambda: VirtualBackend([bridge()]), True, "all 784 codes are right", ""),
    (slow_port, True, "USB 2 speed", "USB 3"),
    (lambda: VirtualBackend([bridge()], kernel_driver=True), True, "a kernel driver holds interface 0", ""),
    (lambda: VirtualBackend([]), False, "no FT600 / FT601 dongle", "lsusb"),
    (other_product, False, "0403:6001 has the vendor id", "0403:601e or 0403:601f"),
    (lambda: virtual_backend("eusb"), False, "card reader", "--device eusb:"),
    (
        lambda: VirtualBackend([bridge()], [FaultPlan([Fault("claim", 0, "denied")])]),
        False,
        "permission denied",
        "udev",
    ),
    (
        lambda: VirtualBackend([bridge()], [FaultPlan([Fault("claim", 0, "busy")])]),
        False,
        "another program",
        "usb:<serial>",
    ),
    (lambda: VirtualBackend([bridge()], [FaultPlan([Fault("read", 1, "timeout", 99)])]), False, "time-out", "unplug"),
    (lambda: VirtualBackend([bridge(chip_time_ms=0.0)]), False, "codes differ from the emulator", "settle_ms=500"),
]


@pytest.mark.parametrize(("make", "well", "found", "fix"), BUSES)
def test_findings(make: Any, well: bool, found: str, fix: str):
    findings = list(doctor.findings("usb", FAST, None, make()))
    assert findings[-1][0] is well
    matching = [one for one in findings if found in one[1]]
    assert matching, findings
    assert fix in matching[0][2]


def test_a_stick_in_use_is_found():
    backend = VirtualBackend([bridge()])
    lock = DeviceLock(devices.list_sticks(backend)[0].name)
    findings = list(doctor.findings("usb", FAST, None, backend))
    lock.release()
    assert not findings[-1][0]
    assert "open" in findings[-1][1]


def test_the_known_answer_tells_sticks_apart():
    _, image, codes = doctor.known_answer()
    assert image.shape == (14, 14, 3)
    assert codes.shape == (7, 7, 16)
    # Lively enough that zeros, saturation or a shifted read cannot pass.
    assert len(np.unique(codes)) > 20
    assert 0 < np.count_nonzero(codes == 31) < codes.size / 2
    assert np.count_nonzero(codes == 0) < codes.size / 2


@pytest.mark.parametrize(("behaviours", "well"), [("rounding=floor", True), ("rounding=half_even", False), ("", False)])
def test_the_known_answer_is_that_of_the_profile(behaviours: str, well: bool):
    settings = VIRTUAL_SETTINGS.changed(behaviours=behaviours)
    (good, _, _), *others = doctor.frame("virtual:rounding=floor", settings, None)
    assert good == well
    assert not others


@pytest.mark.slow
def test_exit_status_and_output():
    run = [sys.executable, str(ROOT / "scripts" / "doctor.py")]
    good = subprocess.run([*run, "--device", "virtual:ft600"], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("ok    virtual stick")
    wrong = subprocess.run([*run, "--device", "auto"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_pyusb_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "usb", None)
    monkeypatch.setitem(sys.modules, "usb.core", None)
    assert list(doctor.findings("usb", FAST, None)) == [(False, "pyusb is not installed", "pip install pyusb")]


def test_an_sg_node_needs_no_libusb(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(usb_bus, "libusb", lambda: pytest.fail("libusb was asked for"))
    found = list(doctor.findings("eusb:/dev/sg99", FAST, None))
    assert len(found) == 1
    assert found[0][:2] == (False, "device eusb:/dev/sg99: is not there; expected a device 05e3:0769.")


def test_every_setting_is_named():
    with pytest.raises(UsageError) as caught:
        parse_settings({"foo": "1"})
    assert all(field.name in str(caught.value) for field in fields(Settings))
