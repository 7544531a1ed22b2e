"""Who writes to a checkpoint folder: one process at a time, which a file in the folder names.

The system releases the lock when its holder dies, however that happens, so what a killed run left is taken over. A
copy of the file in a copied folder locks nothing. Where the file system knows no locks, pid and start time of the
holder tell whether it is still alive.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gti.errors import CheckpointError, reason
from gti.files import is_whole
from gti.training.checkpoint_folder import BEST, EARLIER

FILE = ".training"
_MAX_BYTES = 4096
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def owned(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the checkpoint `folder`, made if absent, for this process.

    Raises CheckpointError that names the holder where another one has it, or the folder whose part it is, or a part of
    it, and where the folder cannot be written.
    """
    path = Path(folder) / FILE
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)
        descriptor = _locked(path)
        try:
            for other in _written_together(folder):
                _refuse_held(other / FILE)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
    except OSError as problem:
        raise CheckpointError(
            str(folder), f"cannot be written ({reason(problem)})", fix="pass another --checkpoint_dir"
        ) from problem
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked: whoever opened it meanwhile looks again
        os.close(descriptor)


def _written_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    # Whoever trains in a folder writes into these parts of it too.
    real = Path(os.path.realpath(folder))
    if real.name in (BEST, EARLIER):
        yield real.parent
    yield from (real / BEST, real / EARLIER)


def _refuse_held(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return
    try:
        holder = _holder(descriptor)
        if not _lock(descriptor, holder):
            raise _in_use(path.parent, holder)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            holder = _holder(descriptor)
            if not _lock(descriptor, holder):
                raise _in_use(path.parent, holder)
            if _is_same(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, holder: dict[str, Any]) -> bool:
    """Return whether this process has the file now; without locks of the system, whether its holder is gone."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return not _is_alive(holder)
    except OSError as problem:
        return problem.errno not in _HELD and not _is_alive(holder)
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        value = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not is_whole(pid) or pid < 1:
        return False
    if holder.get("host") != socket.gethostname():
        return True  # nobody can tell from here
    return _start_of(pid) == holder.get("started") and pid != os.getpid()


def _start_of(pid: int) -> int | None:
    """Return when the process began, in ticks since the system did; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19])  # field 22 of proc(5)
    except (OSError, ValueError, IndexError):
        return None


def _in_use(folder: Path, holder: dict[str, Any]) -> CheckpointError:
    who = f"pid {holder.get('pid', 'unknown')}"
    if holder.get("host") not in (None, socket.gethostname()):
        who += f" on {holder['host']}"
    return CheckpointError(
        str(folder),
        f"is in use by another run ({who}, since {holder.get('since', 'an unknown time')})",
        fix="wait for it or end it, or pass another --checkpoint_dir",
    )
