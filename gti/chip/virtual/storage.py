"""The mass-storage bridge of the cheap sticks in software, as a device of `virtual.VirtualBackend`.

Bulk-Only Transport as docs/eusb_protocol.md sections 10 and 12 have it: writes at block 0x2000 feed the chip, reads
there drain it, everything else is an ordinary small disk. Without a result it answers zeros; what a real one does is
unknown.
"""

from __future__ import annotations

from collections.abc import Callable

from gti.chip.usb import usb_bus
from gti.chip.usb.eusb import (
    BLOCK,
    CARD_INIT,
    INQUIRY,
    PRODUCT,
    PULSE,
    READ_10,
    RESET,
    STREAM_ADDRESS,
    VENDOR,
    WRITE_10,
)
from gti.chip.usb.scsi_bulk import COMMAND_BLOCK, FAILED, GOOD, STATUS_BLOCK
from gti.chip.virtual.chip import VirtualChip
from gti.chip.virtual.faults import Fault

_EP_OUT, _EP_IN = 0x02, 0x81
_BULK = 2
_MASS_STORAGE_RESET = 0xFF
_GET_MAX_LUN = 0xFE
_REQUEST_SENSE, _TEST_UNIT_READY, _READ_CAPACITY = 0x03, 0x00, 0x25
_BLOCKS = 0x4000
_ILLEGAL_REQUEST = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0])
_NO_SENSE = bytes([0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])


class VirtualStorage:
    """One bridge with a chip behind it; see `virtual.VirtualDevice` for the methods.

    `product_name` other than the sticks' own makes it an ordinary card reader, which the driver must leave alone.
    """

    vendor = usb_bus.EUSB_VENDOR
    product = usb_bus.EUSB_PRODUCT
    manufacturer = "Generic"
    name = "USB Storage"
    packet = 512
    speed = 3
    interfaces = (((0x08, 0x06, 0x50), ((_EP_OUT, _BULK), (_EP_IN, _BULK))),)

    def __init__(self, chip: VirtualChip, serial: str = "000000000001", product_name: str = PRODUCT) -> None:
        self.chip = chip
        self.serial = serial
        self.written: set[int] = set()  # block addresses other than the stream's that were written: must stay empty
        self._product_name = product_name
        self._reset()
        self._sense = _NO_SENSE

    def _reset(self) -> None:
        self._tag = 0
        self._left = 0  # bytes of the data stage still to come from the host
        self._sink: Callable[[bytes], None] | None = None
        self._answer = b""  # bytes of the data stage and of the status still to go to the host
        self._in_data = False
        self._status = b""

    def phase(self, endpoint: int) -> str:
        """Commands are "session", data "write" and "read", the status "status"."""
        if endpoint == _EP_OUT:
            return "write" if self._left else "session"
        return "read" if self._in_data else "status"

    def control_in(self, request: int, value: int, index: int, length: int) -> bytes | None:
        """Get Max LUN: one unit."""
        return b"\0" if request == _GET_MAX_LUN else None

    def control_out(self, request: int, value: int, index: int, data: bytes) -> bool:
        """Bulk-Only Mass Storage Reset."""
        if request != _MASS_STORAGE_RESET:
            return False
        self._reset()
        return True

    def bulk_out(self, endpoint: int, data: bytes) -> bool:
        """Take a command or the data of one."""
        if self._left:
            taken = data[: self._left]
            self._left -= len(taken)
            if self._sink is not None:
                self._sink(taken)
            if not self._left:
                self._finish(GOOD, 0)
            return True
        if len(data) != COMMAND_BLOCK.size or data[:4] != b"USBC":
            return False  # a broken command stalls until the reset
        _, self._tag, length, flags, _, size, block = COMMAND_BLOCK.unpack(data)
        self._start(block[:size], length, bool(flags & 0x80))
        return True

    def _start(self, cdb: bytes, length: int, to_host: bool) -> None:
        self._answer, self._in_data, self._sink, self._status = b"", False, None, b""
        if not to_host and length:
            self._left, self._sink = length, self._sink_of(cdb)
            return
        answer = self._execute(cdb, length)
        status = FAILED if answer is None else GOOD
        data = (answer or b"")[:length]
        self._in_data = bool(length)
        self._answer = data
        self._sense = _ILLEGAL_REQUEST if answer is None else _NO_SENSE if cdb[0] == _REQUEST_SENSE else self._sense
        self._finish(status, length - len(data))

    def _finish(self, status: int, residue: int) -> None:
        self._status = STATUS_BLOCK.pack(b"USBS", self._tag, residue, status)

    def _sink_of(self, cdb: bytes) -> Callable[[bytes], None] | None:
        if cdb[0] == WRITE_10:
            address = int.from_bytes(cdb[2:6], "big")
            if address == STREAM_ADDRESS:
                return self.chip.feed
            self.written.add(address)
        return None

    def _execute(self, cdb: bytes, length: int) -> bytes | None:
        operation = cdb[0]
        if cdb == INQUIRY:
            return bytes(8) + VENDOR.ljust(8).encode() + self._product_name.ljust(16).encode()[:16] + b"1.00"
        if operation == _REQUEST_SENSE:
            return self._sense
        if operation == _READ_CAPACITY:
            return (_BLOCKS - 1).to_bytes(4, "big") + BLOCK.to_bytes(4, "big")
        if operation == READ_10:
            if int.from_bytes(cdb[2:6], "big") != STREAM_ADDRESS:
                return bytes(length)
            self.chip.wait(float("inf"))
            return self.chip.take(length).ljust(length, b"\0")
        if operation == _TEST_UNIT_READY or cdb in (CARD_INIT, RESET) or cdb[:1] == PULSE[:1]:
            return b""
        return None

    def bulk_in(self, endpoint: int, length: int, timeout_ms: int) -> bytes | None:
        """Give the data of a command, then its status."""
        if self._left or not (self._in_data or self._status):
            raise TimeoutError
        if self._in_data:
            data, self._answer = self._answer[:length], self._answer[length:]
            self._in_data = bool(self._answer)
            return data
        status, self._status = self._status, b""
        return status[:length]

    def closed(self) -> None:
        """The host let go: an unfinished command is forgotten, half a word is lost."""
        self._reset()
        self.chip.end_of_stream()

    def power_cycle(self) -> None:
        """Forget everything."""
        self._reset()
        self.chip.power_cycle()

    def disturb(self, fault: Fault) -> None:
        """See `virtual_faults.KINDS`; stale bytes cannot wait in front of a command's data."""
        if fault.kind != "stale":
            self.chip.disturb(fault)
