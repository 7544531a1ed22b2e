"""One process per stick: a lock file that the system releases when its holder dies."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import weakref
from pathlib import Path

from gti.errors import DeviceError

FOLDER_VARIABLE = "GTI_LOCK_DIR"


class DeviceLock:
    """Holds the stick `name` for this process; raises DeviceError naming the holder when somebody else has it.

    It ends with `release`, with the object, or with the process. A child of a fork does not have it. The lock is
    advisory and per user: against other users the operating system's own claim of the interface stands. Without
    `fcntl` (Windows) it does nothing.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._descriptor: int | None = None
        try:
            import fcntl
        except ImportError:
            return
        path = (folder or _folder()) / (re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100] + ".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _in_use(name, os.read(descriptor, 20)) from None
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            self._descriptor, descriptor = descriptor, -1
            _held.add(self)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def release(self) -> None:
        """Let the stick go; the file stays, so that nobody can lock a deleted one. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        import fcntl

        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            # Not by closing alone: a child between its fork and its exec has the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def forget(self) -> None:
        """Close the descriptor and leave the lock to the process that took it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.release()


_held: weakref.WeakSet[DeviceLock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _in_use(name: str, content: bytes) -> DeviceError:
    """Return the error for a lock that somebody has; `content`: what the holder wrote into its file."""
    text = content.decode("ascii", "replace").strip()
    holder = int(text) if text.isdecimal() else 0
    if holder == os.getpid():
        return DeviceError(
            name,
            "is open in this program already",
            fix="use the object that has it, or release that one first",
        )
    return DeviceError(
        name,
        "is in use by another process" + (f" (pid {holder})" if holder and _alive(holder) else ""),
        fix="end that process, or choose another stick with --device usb:<serial>",
    )


def _alive(pid: int) -> bool:
    """Return whether there is such a process: the number of a killed one stands in its file until the next one's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _folder() -> Path:
    """Return a folder that only this user can write: the same for every process, whatever started it.

    A login sets XDG_RUNTIME_DIR and TMPDIR, cron and systemd do not: neither decides. systemd-tmpfiles leaves locked
    files alone.
    """
    told = os.environ.get(FOLDER_VARIABLE)
    if told:
        folder = Path(told)
    else:
        shared = Path("/tmp")
        base = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
        folder = base / f"gti-mdk-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise DeviceError(str(folder), "belongs to somebody else", expected="a folder of this user", fix="remove it")
    return folder
