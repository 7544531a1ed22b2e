"""SCSI commands through Linux's generic SCSI device, /dev/sgN (ioctl SG_IO)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import Any

from gti.chip.usb.eusb import sense_text
from gti.chip.usb.eusb_disks import SgNode, disk_in_use
from gti.chip.usb.transport import RefusedError, Settings, TransferError
from gti.chip.usb.usb_bus import PERMISSION_FIX
from gti.errors import DeviceError

SG_IO = 0x2285
_TO_DEVICE, _FROM_DEVICE = -2, -3
_SENSE_BYTES = 64


class SgHeader(ctypes.Structure):
    """struct sg_io_hdr of Linux's <scsi/sg.h>."""

    _fields_ = [
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    ]


def _ioctl(descriptor: int, request: int, header: SgHeader) -> None:
    import fcntl

    fcntl.ioctl(descriptor, request, header)


class SgChannel:
    """The device `node`; `ioctl(descriptor, SG_IO, header)` does the work."""

    def __init__(self, node: SgNode, settings: Settings, ioctl: Any = _ioctl) -> None:
        self.node = node
        self.name = f"eUSB {node.path}" + (f" serial {node.serial}" if node.serial else "")
        self.high_speed = node.speed.startswith("480")
        self._settings = settings
        self._ioctl = ioctl
        self._descriptor: int | None = None

    def open(self) -> None:
        """Open the node for reading and writing, locked."""
        import fcntl

        self.close()
        try:
            descriptor = os.open(self.node.path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            raise RefusedError(self.name, "permission denied", fix=PERMISSION_FIX) from None
        except OSError as error:
            raise TransferError("opening", f"{self.node.path} cannot be opened ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the node itself: other users see that too
        except OSError:
            os.close(descriptor)
            raise DeviceError(
                self.name, "is in use: another process has locked its node", fix=f"see fuser -v {self.node.path}"
            ) from None
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the node."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a command that hangs has a copy of the descriptor
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def disk_in_use(self) -> str:
        """Return what uses the disk behind the node, or ""."""
        return disk_in_use(self.node.blocks)

    def command(self, cdb: bytes, *, data: bytes = b"", length: int = 0, phase: str) -> bytes:
        """Run one command; see `eusb.Channel`."""
        if self._descriptor is None:
            raise TransferError(phase, "the stick is not open")
        size = length or len(data)
        payload = ctypes.create_string_buffer(data if data else size, size) if size else None
        block = ctypes.create_string_buffer(cdb, len(cdb))
        sense = ctypes.create_string_buffer(_SENSE_BYTES)
        header = SgHeader(
            interface_id=ord("S"),
            dxfer_direction=_FROM_DEVICE if length else _TO_DEVICE,
            cmd_len=len(cdb),
            mx_sb_len=_SENSE_BYTES,
            dxfer_len=size,
            dxferp=ctypes.cast(payload, ctypes.c_void_p) if payload is not None else None,
            cmdp=ctypes.cast(block, ctypes.c_void_p),
            sbp=ctypes.cast(sense, ctypes.c_void_p),
            timeout=int(self._settings.eusb_command_timeout_ms),
        )
        self._run(header, phase)
        answer = payload.raw if payload is not None and length else b""
        if self._settings.eusb_check_status:
            if header.status or header.host_status or header.driver_status & 7:
                raise TransferError(
                    phase,
                    f"status {header.status:#x}, host {header.host_status:#x}, driver {header.driver_status:#x},"
                    f" {sense_text(sense.raw[: header.sb_len_wr])}",
                )
            if header.resid:
                raise TransferError(phase, f"{header.resid} of {size} bytes did not move")
        return answer

    def _run(self, header: SgHeader, phase: str) -> None:
        # The kernel does not return from SG_IO before its time-out, not even for a signal. A thread waits for it, so
        # that Ctrl-C is answered; it works on a descriptor of its own, which outlives a close.
        descriptor = os.dup(self._descriptor) if self._descriptor is not None else -1
        problems: list[OSError] = []

        def work() -> None:
            try:
                self._ioctl(descriptor, SG_IO, header)
            except OSError as error:
                problems.append(error)
            finally:
                os.close(descriptor)

        thread = threading.Thread(target=work, name="SG_IO", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(self._settings.slice_ms / 1000.0)
        if problems:
            raise TransferError(phase, f"the kernel refused the command ({problems[0].strerror})") from problems[0]
