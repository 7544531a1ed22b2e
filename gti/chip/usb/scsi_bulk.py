"""SCSI commands through USB Bulk-Only Transport over pyusb (USB Mass Storage Class, Bulk-Only Transport 1.0)."""

from __future__ import annotations

import array
import struct
from collections.abc import Callable
from typing import Any

from gti.chip.usb import usb_bus
from gti.chip.usb.eusb import sense_text
from gti.chip.usb.transport import DeviceInfo, Settings, StallError, TransferError, find_again, move

COMMAND_BLOCK = struct.Struct("<4sIIBBB16s")  # signature, tag, length, flags, LUN, length of the CDB, CDB
STATUS_BLOCK = struct.Struct("<4sIIB")  # signature, tag, residue, status
GOOD, FAILED = 0, 1
_IN = 0x80
_INTERFACE = 0
_MASS_STORAGE_RESET = (0x21, 0xFF, 0, _INTERFACE)
_REQUEST_SENSE = bytes.fromhex("030000001200")
_SENSE_BYTES = 18
_PIECE = 16384  # bytes per bulk transfer: the bridge sees only the sum
_HIGH_SPEED = 3  # pyusb's number


class BulkChannel:
    """The mass-storage device `info`; its kernel driver is detached while it is open and given back afterwards."""

    def __init__(
        self,
        info: DeviceInfo,
        settings: Settings,
        backend: Any = None,
        in_use: Callable[[str], str] = lambda location: "",
    ) -> None:
        self.info = info
        self.name = info.name
        self.high_speed = info.speed <= _HIGH_SPEED
        self._settings = settings
        self._backend = backend
        self._in_use = in_use
        self._used_by = ""
        self._handle: usb_bus.Handle | None = None
        self._endpoints = [0, 0]  # out, in
        self._packet = 512
        self._tag = 0

    def open(self) -> None:
        """Claim the interface. What uses the disk is asked first: detaching the driver removes the disk from sight."""
        found = find_again(lambda: usb_bus.find_same(self.info, self._backend), self._settings.reappear_ms)
        if found is None:
            raise TransferError("opening", "the stick is not on the bus")
        self.info, device = found
        self._used_by = self._in_use(self.info.location)
        if self._used_by:
            return  # `disk_in_use` says so; the driver stays where it is
        self._handle = usb_bus.Handle(self.info, device, (_INTERFACE,))
        *self._endpoints, self._packet = self._handle.bulk_endpoints(_INTERFACE)

    def disk_in_use(self) -> str:
        """Return what uses the disk of the device, or ""."""
        return self._used_by

    def close(self) -> None:
        """Give the interface back."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def command(self, cdb: bytes, *, data: bytes = b"", length: int = 0, phase: str) -> bytes:
        """Run one command; see `eusb.Channel`."""
        answer, residue, status = self._run(cdb, data, length, phase)
        if status == FAILED and self._settings.eusb_check_status:
            sense, _, _ = self._run(_REQUEST_SENSE, b"", _SENSE_BYTES, phase)
            raise TransferError(phase, f"the stick failed the command {cdb[0]:02x} ({sense_text(sense)})")
        if residue and self._settings.eusb_check_status:
            raise TransferError(phase, f"{residue} of {length or len(data)} bytes did not move")
        return answer

    def _run(self, cdb: bytes, data: bytes, length: int, phase: str) -> tuple[bytes, int, int]:
        handle = self._opened(phase)
        self._tag = self._tag + 1 & 0xFFFFFFFF
        size = length or len(data)
        block = COMMAND_BLOCK.pack(b"USBC", self._tag, size, _IN if length else 0, 0, len(cdb), cdb)
        self._out(handle, block, phase)
        answer = b""
        try:
            if data:
                self._out(handle, data, phase)
            elif length:
                answer = self._in(handle, length, phase)
        except StallError:
            # A refused data stage: the status tells why.
            handle.clear_halt(self._endpoints[0 if data else 1], phase)
        residue, status = self._status(handle, phase)
        return answer, residue, status

    def _status(self, handle: usb_bus.Handle, phase: str) -> tuple[int, int]:
        try:
            raw = self._in(handle, STATUS_BLOCK.size, phase)
        except StallError:
            handle.clear_halt(self._endpoints[1], phase)
            raw = self._in(handle, STATUS_BLOCK.size, phase)
        good = len(raw) == STATUS_BLOCK.size
        signature, tag, residue, status = STATUS_BLOCK.unpack(raw) if good else (b"", 0, 0, 0)
        if signature != b"USBS" or tag != self._tag or status not in (GOOD, FAILED):
            self._recover(handle, phase)
            raise TransferError(phase, "the stick answered a command with a broken status")
        return residue, status

    def _recover(self, handle: usb_bus.Handle, phase: str) -> None:
        handle.control_out(_MASS_STORAGE_RESET, b"", self._settings.slice_ms, phase)
        for endpoint in self._endpoints[::-1]:
            handle.clear_halt(endpoint, phase)

    def _out(self, handle: usb_bus.Handle, data: bytes, phase: str) -> None:
        view = memoryview(data)
        self._move(
            lambda position, timeout: handle.write(
                self._endpoints[0], view[position : position + _PIECE], timeout, phase
            ),
            len(data),
            phase,
        )

    def _in(self, handle: usb_bus.Handle, length: int, phase: str) -> bytes:
        """Return what comes, which ends early with a short packet."""
        result = bytearray()
        ended = False

        def piece(position: int, timeout: int) -> int:
            nonlocal ended
            size = min(_PIECE, length - position)
            if ended:
                return size
            buffer = array.array("B", bytes(size))
            count = handle.read(self._endpoints[1], buffer, timeout, phase)
            result.extend(memoryview(buffer)[:count])
            # A packet that is not full ends the data stage; whole packets and no more are a time-out in between.
            ended = count < size and (not count or count % self._packet != 0)
            return size if ended else count

        self._move(piece, length, phase)
        return bytes(result)

    def _move(self, piece: Callable[[int, int], int], length: int, phase: str) -> None:
        move(
            piece,
            length,
            chunk=_PIECE,
            patience_ms=self._settings.eusb_command_timeout_ms,
            slice_ms=self._settings.slice_ms,
            phase=phase,
        )

    def _opened(self, phase: str) -> usb_bus.Handle:
        if self._handle is None:
            raise TransferError(phase, "the stick is not open")
        return self._handle
