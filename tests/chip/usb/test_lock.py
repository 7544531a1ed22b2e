"""Locks of sticks: how they end, whom they name, where they lie."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sticks import dat_bytes, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.usb import lock as lock_module
from gti.chip.usb.eusb_disks import SgNode
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.scsi_sg import SgChannel
from gti.chip.usb.transport import Settings
from gti.chip.virtual.sticks import virtual_backend
from gti.errors import DeviceError


def test_the_end_of_the_object_is_the_end_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GTI_LOCK_DIR", str(tmp_path))
    lock = DeviceLock("stick")
    del lock
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(tiny_network()))
    for _ in range(2):  # neither is released, and both can be had
        model = GtiModel(path, "usb", backend=virtual_backend("ft601"), settings=Settings(settle_ms=0.0, drain_ms=1.0))
        with pytest.raises(DeviceError, match="this program"):
            GtiModel(path, "usb", backend=virtual_backend("ft601"))
        del model
        gc.collect()
    DeviceLock("stick").release()


def test_a_child_of_a_fork_keeps_nothing(tmp_path: Path):
    lock = DeviceLock("stick", tmp_path)
    leave, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        lock.release()  # of the parent: must not free it
        os.read(leave, 1)
        os._exit(0)
    os.close(leave)
    try:
        with pytest.raises(DeviceError):
            DeviceLock("stick", tmp_path)
        lock.release()
        DeviceLock("stick", tmp_path).release()  # while the child lives
    finally:
        os.close(told)
        os.waitpid(child, 0)


def test_the_dead_are_not_blamed(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "stick.lock"
    path.write_text(f"{dead.pid}\n")
    with path.open() as other:  # somebody who has not written his name yet
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DeviceError, match="another process") as caught:
            DeviceLock("stick", tmp_path)
    assert str(dead.pid) not in str(caught.value)


def test_the_folder_does_not_depend_on_how_a_process_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("GTI_LOCK_DIR", raising=False)
    found = set()
    for name in ("", "XDG_RUNTIME_DIR", "TMPDIR"):
        with monkeypatch.context() as patch:
            if name:
                patch.setenv(name, str(tmp_path))
            found.add(lock_module._folder())
    assert len(found) == 1


def test_the_sg_node_itself_is_locked(tmp_path: Path):
    node = tmp_path / "sg2"
    node.touch()
    one, two = (SgChannel(SgNode(str(node), "X", "480", "1-2", ()), Settings()) for _ in range(2))
    one.open()
    hanging = os.dup(one._descriptor or 0)  # of a command that does not come back
    with pytest.raises(DeviceError, match="locked"):
        two.open()
    one.close()
    two.open()
    two.close()
    os.close(hanging)
