"""Output paths: links are followed, devices and FIFOs written where they are, nothing but a file ever replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from places import ROOT

from gti import files
from gti.errors import UsageError


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("folder/target")
    files.check_writable(link)
    files.write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_link_to_nothing_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_no_folder_yet_makes_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.make_writable_folder(tmp_path / "link")
    assert (tmp_path / "target").is_dir()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("target", ["link", "absent/target", "folder"])
def test_links_that_lead_to_no_file_are_refused(tmp_path, target):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UsageError, match="link"):
        files.write_atomic(tmp_path / "link", b"new")
    with pytest.raises(UsageError, match="link"):
        files.check_writable(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == target


def test_a_fifo_is_written_to_and_stays(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match="cannot be written"):  # nobody reads
        files.write_atomic(fifo, b"x")
    data = os.urandom(300_000)  # more than a pipe holds
    read = []
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    # A reader that comes first would see the end of the data while nobody writes yet.
    placeholder = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)

    def take() -> None:
        with os.fdopen(reader, "rb") as file:
            read.append(file.read())

    thread = threading.Thread(target=take)
    files.check_writable(fifo)
    thread.start()
    files.write_atomic(fifo, data)
    os.close(placeholder)
    thread.join()
    assert read == [data]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_device_stays_one():
    files.check_writable("/dev/null")
    files.write_atomic("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_streams_of_the_process_are_written_where_they_are(tmp_path):
    code = "from gti import files; files.write_json('/dev/stdout', [1])"
    piped = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=60)
    assert (piped.stdout, piped.stderr) == (b"[\n  1\n]\n", b"")
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out, check=True, timeout=60)
    assert (tmp_path / "out").read_bytes() == piped.stdout


def test_moving_replaces_files_alone(tmp_path):
    source = tmp_path / "source"
    for make in (os.mkfifo, os.mkdir):
        source.write_bytes(b"new")
        make(tmp_path / "target")
        with pytest.raises(OSError, match=r"regular|directory"):
            files.move(source, tmp_path / "target")
        assert source.exists()
        (tmp_path / "target").unlink() if make is os.mkfifo else (tmp_path / "target").rmdir()
    files.move(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"new"


def test_no_writer_of_the_kit_replaces_a_file_by_itself():
    # os.replace of a folder made beside its place is the only other one.
    allowed = {"gti/files.py", "gti/chip/formats/model_folder.py"}
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("gti", "scripts", "addon")
        for path in Path(ROOT / folder).rglob("*.py")
        if "os.replace(" in path.read_text(encoding="utf-8")
    }
    assert found <= allowed


def test_what_is_read_is_not_written(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"a photograph")
    (tmp_path / "link.png").symlink_to(tmp_path / "photo.png")
    for path in (tmp_path / "photo.png", tmp_path / "link.png", tmp_path / "." / "photo.png"):
        with pytest.raises(UsageError, match="overwritten"):
            files.check_writable(path, tmp_path / "none", tmp_path / "photo.png")
    files.check_writable(tmp_path / "new.png", tmp_path / "none", tmp_path / "photo.png")
