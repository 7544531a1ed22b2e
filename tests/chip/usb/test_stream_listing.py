"""Recorded sessions as text: what was sent, what came back, what went wrong and when."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import pytest
from sticks import dat_bytes, images, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.usb import trace
from gti.chip.usb.stream_listing import session
from gti.chip.usb.transport import VIRTUAL_SETTINGS
from gti.chip.virtual.faults import Fault, FaultPlan
from gti.chip.virtual.sticks import virtual_backend
from gti.commands import trace as usb_trace
from gti.errors import FormatError

NETWORK = tiny_network()


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that records two frames and returns the file."""
    monkeypatch.setenv("GTI_LOCK_DIR", str(tmp_path))

    def make(device: str, *faults: Fault) -> Path:
        (tmp_path / "tiny.dat").write_bytes(dat_bytes(NETWORK))
        file = tmp_path / "session.gz"
        backend = virtual_backend("ft601", plans=[FaultPlan(faults)]) if faults else None
        options = {"backend": backend, "settings": VIRTUAL_SETTINGS} if backend else {}
        with GtiModel(tmp_path / "tiny.dat", device, record=file, **options) as model:
            for image in images(NETWORK, 2):
                model.evaluate(image)
        return file

    return make


def lines_of(file: Path) -> list[str]:
    return list(session(trace.read(file), str(file)))


@pytest.mark.parametrize(
    ("device", "kind", "read"),
    [
        # The result of a 7x7x16 FC read-out is 1024 chip bytes: so many words of 4, 2 and 4 bytes.
        ("virtual", "FT601 0403:601f, speed 4", 4096),
        ("virtual:ft600", "FT600 0403:601e, speed 3", 2048),
        ("virtual:eusb", "eUSB 05e3:0769, speed 3", 4096),
    ],
)
def test_two_frames(record, device: str, kind: str, read: int):
    lines = lines_of(record(device))
    text = "\n".join(lines)
    assert lines[0] == f"session with device {device if ':' in device else device + ':ft601'}"
    assert f": {kind}" in text
    assert text.count("= coefficients: ") == 1
    assert text.count("= image 1 x 14 x 14; result 1024 bytes: 16x7x7, 8 bits a value") == 2
    reads = [line for line in lines if re.fullmatch(rf"call \d+: {read} bytes in \d+ reads", line)]
    assert len(reads) == 2
    assert "words no host sends" not in text
    # Every number is a later call than the one before.
    numbers = [int(match[1]) for line in lines if (match := re.match(r"call (\d+)", line))]
    assert numbers == sorted(numbers)


def test_faults_stand_where_they_happened(record):
    text = "\n".join(lines_of(record("usb", Fault("read", 2, "stall"), Fault("write", 8, "timeout"))))
    assert re.search(r"call \d+: bulk_read: USBError .*Pipe error", text)
    assert re.search(r"call \d+: bulk_write: USBTimeoutError", text)
    assert re.search(r"call \d+: clear_halt 130", text)
    assert "session command: abort pipe 0x82" in text
    # The frame of the stalled read was sent once more, after its coefficients.
    assert text.count("= image") == 3


def test_the_script_shows_recordings(record, monkeypatch: pytest.MonkeyPatch, capsys):
    file = record("virtual")
    monkeypatch.setattr(sys, "argv", ["usb_trace.py", "show", str(file)])
    usb_trace.main()
    assert capsys.readouterr().out.splitlines() == [f"{file}: recording", *lines_of(file)]


@pytest.mark.parametrize(
    "entry",
    [
        {"call": "bulk_write", "args": ["#1", 2], "result": 4},
        {"call": "bulk_write", "args": ["#1", 2, 0, "not base64!"], "result": 4},
        {"call": "bulk_read", "args": ["#1", 130, 0, 16], "result": "*"},
        {"call": "ctrl_transfer", "args": ["#1"], "result": 0},
        {"call": "get_device_descriptor", "args": ["#1"], "result": {}},
    ],
)
def test_damaged_recordings(tmp_path: Path, entry: dict):
    file = tmp_path / "damaged.gz"
    head = {"format": trace.FORMAT, "device": "usb", "settings": {}}
    file.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in (head, entry)).encode()))
    with pytest.raises(FormatError, match=r"damaged\.gz.*\b1\b"):
        lines_of(file)


def test_names_in_a_recording_cannot_command_a_terminal():
    entries = [{"device": "\x1b[2J"}, {"call": "claim_interface", "args": [1], "error": ["E", None, "\x1b]0;x\x07"]}]
    assert all(line.isprintable() for line in session(entries, "x"))
