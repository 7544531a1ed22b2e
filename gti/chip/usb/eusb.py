"""Transport over a mass-storage bridge (the cheap sticks): SCSI writes and reads at one block address.

docs/eusb_protocol.md. How a SCSI command gets to the bridge is a `Channel`: `scsi_sg.py` (Linux SG_IO) or
`scsi_bulk.py` (Bulk-Only Transport over pyusb).

The bridge's USB id is also that of ordinary card readers, and the stream is written where a card has data. So the stick
has to be named by the user, must call itself what the sticks call themselves, and no part of its disk may be in use.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections.abc import Callable
from typing import Protocol

from gti.chip.usb.transport import Settings, TransferError
from gti.chip.wire.protocol import EUSB, Framing
from gti.errors import DeviceError

log = logging.getLogger(__name__)

BLOCK = 512
STREAM_ADDRESS = 0x2000  # the block address of every transfer: 4 MiB
READ_10, WRITE_10 = 0x28, 0x2A
HIGH_SPEED_BLOCKS, SUPER_SPEED_BLOCKS = 128, 2048  # per command
VENDOR, PRODUCT = "Generic", "MassStorageClass"
INQUIRY = bytes.fromhex("120000002400")
INQUIRY_BYTES = 36

# What opens the way to the chip; 2 and 1 ms between the pulses as the runtime of the sticks has it.
PULSE = bytes.fromhex("e502c1000200")
PULSE_DATA = (bytes.fromhex("1c62"), bytes.fromhex("5c22"))
PULSE_PAUSE_S = 0.001
CARD_INIT = bytes.fromhex("f3000000000000030000")
RESET = bytes.fromhex("e6000000000000000000")


class Channel(Protocol):
    """Carries one SCSI command at a time to one device."""

    name: str
    high_speed: bool

    def open(self) -> None:
        """Take the device. Raises DeviceError or TransferError."""

    def close(self) -> None:
        """Give the device back; never raises."""

    def command(self, cdb: bytes, *, data: bytes = b"", length: int = 0, phase: str) -> bytes:
        """Send a command with `data` to the device, or fetch up to `length` bytes; TransferError when it fails."""

    def disk_in_use(self) -> str:
        """Return what uses the disk behind the device (a mount point, swap), or ""."""


def transfer(operation: int, blocks: int) -> bytes:
    """Return the command that reads or writes `blocks` blocks of the stream."""
    return struct.pack(">BBIBHB", operation, 0, STREAM_ADDRESS, 0, blocks, 0)


class Eusb:
    """The stick behind `channel`, as a `Transport`."""

    framing: Framing = EUSB

    def __init__(self, channel: Channel, settings: Settings, sleep: Callable[[float], None] = time.sleep) -> None:
        self._channel = channel
        self._settings = settings
        self._sleep = sleep
        self._written_at: float | None = None

    @property
    def description(self) -> str:
        """Name for people."""
        return self._channel.name

    @property
    def _blocks(self) -> int:
        return self._settings.eusb_blocks or (HIGH_SPEED_BLOCKS if self._channel.high_speed else SUPER_SPEED_BLOCKS)

    def open(self) -> None:
        """Take the stick, make sure that it is one, run the opening sequence."""
        self.close()
        self._channel.open()
        self._make_sure()
        for number, data in enumerate(PULSE_DATA):
            if number:
                self._sleep(PULSE_PAUSE_S)
            self._channel.command(PULSE, data=data, phase="opening")
        self._channel.command(CARD_INIT, phase="opening")
        self._channel.command(transfer(WRITE_10, 1), data=bytes(BLOCK), phase="opening")
        self._sleep(self._settings.settle_ms / 1000.0)

    def _make_sure(self) -> None:
        user = self._channel.disk_in_use()
        if user:
            raise DeviceError(
                self._channel.name,
                f"its disk is in use ({user}); writing to it could destroy data",
                fix="if it really is the stick, unmount it first and keep the desktop from mounting it",
            )
        answer = self._channel.command(INQUIRY, length=INQUIRY_BYTES, phase="opening")
        vendor = answer[8:16].decode("ascii", "replace").strip(" \0")
        product = answer[16:32].decode("ascii", "replace").strip(" \0")
        if (vendor, product) != (VENDOR, PRODUCT):
            raise DeviceError(
                self._channel.name,
                "does not call itself a GTI stick; writing to it could destroy the data of a card",
                expected=f"vendor {VENDOR}, product {PRODUCT}",
                received=f"vendor {vendor!r}, product {product!r}",
                fix="name the right device with --device eusb:<serial or sg node>",
            )

    def close(self) -> None:
        """Give the device back; nothing is sent."""
        self._channel.close()
        self._written_at = None

    def start_frame(self) -> None:
        """Nothing to discard: a result stays in the chip until it is read, and every frame begins with a reset."""

    def write(self, block: bytes, phase: str) -> None:
        """Send a block, a multiple of 2048 bytes, cut into commands."""
        view = memoryview(block)
        for start in range(0, len(block), self._blocks * BLOCK):
            piece = view[start : start + self._blocks * BLOCK]
            self._guarded(transfer(WRITE_10, len(piece) // BLOCK), bytes(piece), 0, phase)
        self._written_at = time.monotonic()

    def read(self, length: int) -> bytes:
        """Return `length` bytes of result words, a multiple of 4096; the chip gets its pause first."""
        if self._written_at is not None:
            # The pause counts from the last write, so that work on the next frame fits into it.
            left = self._settings.eusb_delay_us / 1e6 - (time.monotonic() - self._written_at)
            self._written_at = None
            if left > 0:
                self._sleep(left)
        parts = []
        for start in range(0, length, self._blocks * BLOCK):
            size = min(self._blocks * BLOCK, length - start)
            data = self._guarded(transfer(READ_10, size // BLOCK), b"", size, "reading")
            if len(data) != size and self._settings.eusb_check_status:
                raise TransferError("reading", f"a command delivered {len(data)} of {size} bytes")
            parts.append(data.ljust(size, b"\0"))
        return b"".join(parts)

    def _guarded(self, cdb: bytes, data: bytes, length: int, phase: str) -> bytes:
        try:
            return self._channel.command(cdb, data=data, length=length, phase=phase)
        except TransferError:
            # The bridge's own reset, as the sticks' runtime sends it after a failure; then everything starts anew.
            with contextlib.suppress(TransferError):
                self._channel.command(RESET, phase=phase)
            raise


def sense_text(sense: bytes) -> str:
    """Return sense data (fixed format, SPC-3 section 4.5.3) in words."""
    if len(sense) < 14:
        return "no sense data"
    return f"sense key {sense[2] & 15:x}, code {sense[12]:02x}/{sense[13]:02x}"
