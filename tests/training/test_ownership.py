"""One training at a time in a checkpoint folder: who is refused, who is told, what a killed run leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from gti.errors import CheckpointError
from gti.training import ownership

HOLD = """
import sys
from gti.training.ownership import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(CheckpointError, match=f"pid {holder.pid}, since 2"), ownership.owned(tmp_path):
        pass
    holder.communicate()  # ends by itself
    with ownership.owned(tmp_path):
        assert json.loads((tmp_path / ownership.FILE).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["best", "earlier"])
def test_the_parts_of_a_folder_have_its_owner(tmp_path, holder, part):
    with pytest.raises(CheckpointError, match=f"pid {holder.pid}"), ownership.owned(tmp_path / part):
        pass
    assert not list((tmp_path / part).iterdir())
    with ownership.owned(tmp_path / "ptq"):  # another folder inside is none of them
        pass
    holder.communicate()
    with (
        ownership.owned(tmp_path / part),
        pytest.raises(CheckpointError, match=f"{part}: is in use"),
        ownership.owned(tmp_path),
    ):
        pass


def test_a_link_that_leads_nowhere_yet_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with ownership.owned(tmp_path / "link"):
        assert (tmp_path / "target" / ownership.FILE).exists()
    assert (tmp_path / "link").is_symlink()


def test_what_a_killed_run_left_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ownership.FILE).exists()
    with ownership.owned(tmp_path):
        pass


def test_a_copy_of_a_folder_in_use_is_free(tmp_path, holder):
    shutil.copytree(tmp_path, tmp_path / "copy")
    with ownership.owned(tmp_path / "copy"):
        pass


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"pid": true}', '{"pid": 1e9}'])
def test_a_damaged_file_holds_nothing(tmp_path, content):
    (tmp_path / ownership.FILE).write_text(content)
    with ownership.owned(tmp_path):
        pass


@pytest.mark.parametrize(("change", "refused"), [({}, True), ({"started": 1}, False), ({"pid": 2**22 + 1}, False)])
def test_without_locks_pid_and_start_time_decide(tmp_path, holder, monkeypatch, change, refused):
    def unknown(*arguments):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unknown)
    path = tmp_path / ownership.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if refused:
        with pytest.raises(CheckpointError, match=f"pid {holder.pid}"), ownership.owned(tmp_path):
            pass
    else:
        with ownership.owned(tmp_path):
            pass
