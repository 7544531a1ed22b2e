"""Recording a session and playing it back."""

from __future__ import annotations

import gzip
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sticks import dat_bytes, images, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.usb import trace
from gti.chip.usb.transport import Settings
from gti.chip.virtual.faults import Fault, FaultPlan
from gti.chip.virtual.sticks import virtual_backend
from gti.errors import DeviceError, FormatError, UsageError

NETWORK = tiny_network()
FAST = Settings(settle_ms=0.0, reappear_ms=0.0, eusb_delay_us=0.0)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GTI_LOCK_DIR", str(tmp_path))
    file = tmp_path / "tiny.dat"
    file.write_bytes(dat_bytes(NETWORK))
    return file


def session(path: Path, device: str, **options: Any) -> list[np.ndarray]:
    with GtiModel(path, device, **options) as model:
        return [model.evaluate(image) for image in images(NETWORK, 3)]


@pytest.mark.parametrize("device", ["virtual", "virtual:ft600", "virtual:eusb", "usb", "eusb:VIRTUAL0001"])
def test_a_replay_gives_the_recorded_results(path: Path, tmp_path: Path, device: str):
    kind = "eusb" if "eusb" in device else "ft601"
    backend = None if device.startswith("virtual") else virtual_backend(kind)
    file = tmp_path / "session.gz"
    results = session(path, device, record=file, backend=backend, settings=FAST)
    np.testing.assert_array_equal(session(path, f"replay:{file}"), results)


def test_a_recorded_fault_is_played_back(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    faults = (Fault("read", 2, "stall"), Fault("write", 100, "timeout", count=5), Fault("open", 3, "disconnect"))
    backend = virtual_backend("ft601", plans=[FaultPlan(faults)])
    file = tmp_path / "session.gz"
    results = session(path, "usb", record=file, backend=backend, settings=FAST)
    recorded = [record.message for record in caplog.records]
    assert any("stall" in message for message in recorded)
    caplog.clear()
    np.testing.assert_array_equal(session(path, f"replay:{file}"), results)
    assert [record.message for record in caplog.records] == recorded


def test_another_image_or_model_is_noticed(path: Path, tmp_path: Path):
    file = tmp_path / "session.gz"
    session(path, "virtual", record=file)
    with (
        GtiModel(path, f"replay:{file}") as model,
        pytest.raises(DeviceError, match="recording") as caught,
    ):
        model.evaluate(images(NETWORK, 3)[1])
    told = re.search(
        r"expected (bulk_write .*), byte (\d+) is (0x\w\w), received (bulk_write .*), byte (\d+) is (0x\w\w)\.",
        str(caught.value),
    )
    assert told
    assert told[1] == told[4]
    assert told[2] == told[5]
    assert told[3] != told[6]
    path.write_bytes(dat_bytes(NETWORK, 2))
    with pytest.raises(DeviceError, match="recording"):
        GtiModel(path, f"replay:{file}")


def test_the_end_of_a_killed_recording_is_left_out(path: Path, tmp_path: Path):
    file = tmp_path / "session.gz"
    session(path, "virtual", record=file)
    whole = list(trace.read(file, lambda: pytest.fail("nothing is broken")))
    file.write_bytes(file.read_bytes()[:-300])
    cut = list(trace.read(file))
    assert 0 < len(cut) < len(whole)
    assert cut == whole[: len(cut)]
    notes: list[str] = []
    list(trace.read(file, lambda: notes.append("cut")))
    assert notes == ["cut"]
    with pytest.raises(DeviceError, match=r"expected the end|differs"):
        session(path, f"replay:{file}")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        gzip.compress(b"[]\n", mtime=0),
        gzip.compress(b'{"format": "other"}\n', mtime=0),
        gzip.compress(b"[" * 100000 + b"\n", mtime=0),
    ],
)
def test_other_files_are_refused(path: Path, tmp_path: Path, data: bytes):
    file = tmp_path / "other"
    file.write_bytes(data)
    with pytest.raises(FormatError, match="gti-usb-trace"):
        GtiModel(path, f"replay:{file}")


def test_sessions_of_other_versions_are_refused(path: Path, tmp_path: Path):
    file = tmp_path / "other"
    for session_line in (b'"device": "usb"', b'"device": "usb", "settings": {"unknown": 1}', b'"settings": {}'):
        file.write_bytes(gzip.compress(b'{"format": "gti-usb-trace 1", ' + session_line + b"}\n"))
        with pytest.raises(FormatError, match="version"):
            GtiModel(path, f"replay:{file}")


def test_where_it_cannot_be_written(path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="written"):
        GtiModel(path, "virtual", record=tmp_path / "missing" / "session.gz")


def test_a_link_is_followed_and_a_fifo_that_nobody_reads_is_not_waited_for(path: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to("target.gz")
    results = session(path, "virtual", record=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    np.testing.assert_array_equal(session(path, f"replay:{tmp_path / 'target.gz'}"), results)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match=r"fifo: cannot be written"):
        GtiModel(path, "virtual", record=tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_names_the_recording(path: Path):
    with pytest.raises(UsageError, match="/dev/full: cannot be written"):
        session(path, "virtual", record="/dev/full")


def test_only_recordings_are_written_over(path: Path, tmp_path: Path):
    file = tmp_path / "session.gz"
    file.touch()
    for _ in range(2):
        session(path, "virtual", record=file)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="no recording"):
        GtiModel(path, "virtual", record=path)
    assert path.read_bytes() == before
