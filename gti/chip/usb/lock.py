"""One process per stick: a lock file that the system releases when its holder dies."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

from gti.errors import DeviceError


class DeviceLock:
    """Holds the stick `name` for this process; raises DeviceError naming the holder when another one has it.

    The lock is advisory and per user: against other users the operating system's own claim of the interface stands.
    Without `fcntl` (Windows) it does nothing.
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
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise DeviceError(
                name,
                "is in use by another process" + (f" (pid {holder})" if holder.isdecimal() else ""),
                fix="end that process, or choose another stick with --device usb:<serial>",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the stick go; the file stays, so that nobody can lock a deleted one."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def _folder() -> Path:
    """Return a folder that only this user can write: in XDG_RUNTIME_DIR, else in the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        folder = Path(runtime) / "gti-mdk"
    else:
        folder = Path(tempfile.gettempdir()) / f"gti-mdk-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise DeviceError(str(folder), "belongs to somebody else", expected="a folder of this user", fix="remove it")
    return folder
