"""The FT600 / FT601 bridge in software, as a device of `virtual.VirtualBackend`.

It knows what docs/usb_protocol.md section 8 says: session commands on EP 0x01, words into 0x02, results out of 0x82 as
far as reads were announced, a FIFO of 4 KiB between chip and host, the 152-byte configuration, GPIO requests. What it
asks of the driver beyond that (GPIO levels, a pause, announced or small writes) is among the chip's behaviours.
"""

from __future__ import annotations

import struct
import time

from gti.chip.usb import usb_bus
from gti.chip.usb.ft60x import (
    CHANNELS_BYTE,
    COMMAND_ABORT,
    COMMAND_FLUSH,
    COMMAND_TRANSFER,
    CONFIGURATION_BYTES,
    EP_IN,
    EP_OUT,
    EP_SESSION,
    FIFO_MODE_BYTE,
    GPIO_ENABLE,
    GPIO_MASK,
    GPIO_REQUEST,
    GPIO_WRITE,
    REQUEST_CONFIGURATION,
    SESSION,
)
from gti.chip.virtual.chip import VirtualChip
from gti.chip.virtual.faults import Fault

_EP_NOTIFICATION = 0x81
_BULK, _INTERRUPT = 2, 3
_FIFO_BYTES = 4096
_STREAM_COMMAND = 2
_REQUEST_FIRMWARE = 0xF1
_REQUEST_STATUS = 0x03
_FIRMWARE = struct.pack("<I", 0x0109)


class VirtualFt60x:
    """One bridge with a chip behind it; see `virtual.VirtualDevice` for the methods."""

    vendor = usb_bus.FTDI_VENDOR
    manufacturer = "FTDI (virtual)"
    interfaces = (
        ((0xFF, 0xFF, 0xFF), ((EP_SESSION, _BULK), (_EP_NOTIFICATION, _INTERRUPT))),
        ((0xFF, 0xFF, 0xFF), ((EP_OUT, _BULK), (EP_IN, _BULK))),
    )

    def __init__(self, chip: VirtualChip, product: int = usb_bus.FT601_PRODUCT, serial: str = "VIRTUAL0001") -> None:
        self.product = product
        self.serial = serial
        self.name = "FT601 (virtual)" if product == usb_bus.FT601_PRODUCT else "FT600 (virtual)"
        self.packet = 1024 if product == usb_bus.FT601_PRODUCT else 512
        self.speed = 4 if product == usb_bus.FT601_PRODUCT else 3
        self.chip = chip
        self.gpio_direction = 0
        self.gpio_level = 0
        self._fifo = bytearray()
        self._announced = 0
        self._write_announced = 0
        self._opened_at: float | None = None

    def phase(self, endpoint: int) -> str:
        """EP 0x01 is "session", 0x02 "write", 0x82 "read"."""
        return {EP_SESSION: "session", EP_OUT: "write"}.get(endpoint, "read")

    def control_in(self, request: int, value: int, index: int, length: int) -> bytes | None:
        """Configuration, firmware version, status, GPIO levels."""
        if (request, value, index) == REQUEST_CONFIGURATION[1:]:
            return self._configuration()[:length]
        if request == _REQUEST_FIRMWARE:
            return _FIRMWARE[:length]
        if request == _REQUEST_STATUS:
            return bytes(4)[:length]
        if request == GPIO_REQUEST and value == GPIO_WRITE:
            return bytes([self.gpio_level])[:length]
        return None

    def _configuration(self) -> bytes:
        data = bytearray(CONFIGURATION_BYTES)
        struct.pack_into("<HH", data, 0, self.vendor, self.product)
        data[FIFO_MODE_BYTE] = 0
        data[CHANNELS_BYTE] = 2
        return bytes(data)

    def control_out(self, request: int, value: int, index: int, data: bytes) -> bool:
        """GPIO direction and levels: mask in the low byte, level in the high byte."""
        if request == _REQUEST_STATUS:
            return True
        if request != GPIO_REQUEST:
            return False
        self._note_opening()
        mask, level = index & 0xFF, index >> 8
        if value == GPIO_ENABLE:
            self.gpio_direction = self.gpio_direction & ~mask | level & mask
        elif value == GPIO_WRITE:
            self.gpio_level = self.gpio_level & ~mask | level & mask
        else:
            return False
        return True

    def bulk_out(self, endpoint: int, data: bytes) -> bool:
        """Obey session commands; pass words to the chip."""
        self._note_opening()
        if endpoint == EP_OUT:
            self._prefetch()
            self.chip.feed(self._heard(data))
            return True
        if len(data) != SESSION.size:
            return True  # a broken command changes nothing
        _, pipe, command, _, length, _, _ = SESSION.unpack(data)
        if command == COMMAND_FLUSH and pipe == EP_IN:
            self._fifo.clear()
            self._announced = 0
        elif command == COMMAND_ABORT:
            self._announced = 0
        elif command == COMMAND_TRANSFER and pipe == EP_IN:
            self._announced += length
        elif command == COMMAND_TRANSFER and pipe == EP_OUT:
            self._write_announced += length
        elif command == _STREAM_COMMAND and pipe == EP_IN:
            self._announced = 1 << 62
        return True

    def _note_opening(self) -> None:
        if self._opened_at is None:
            self._opened_at = time.monotonic()

    def _heard(self, data: bytes) -> bytes:
        """Return what of a write reaches the chip."""
        behaviours = self.chip.behaviours
        driven = self.gpio_direction & GPIO_MASK
        if behaviours["gpio"] == "high" and driven & self.gpio_level != GPIO_MASK:
            return b""
        if behaviours["gpio"] == "untouched" and driven:
            return b""
        if behaviours["write_command"] == "needed":
            announced, self._write_announced = self._write_announced, 0
            data = data[:announced]
        assert self._opened_at is not None
        if time.monotonic() - self._opened_at < behaviours.value("settle") / 1000.0:
            return b""
        return data[: behaviours.value("chunks")]

    def _prefetch(self) -> None:
        # The chip's side fills the FIFO by itself, so a reset of the chip cannot call these bytes back.
        self._fifo += self.chip.take(_FIFO_BYTES - len(self._fifo))

    def bulk_in(self, endpoint: int, length: int, timeout_ms: int) -> bytes | None:
        """Deliver announced bytes."""
        if endpoint != EP_IN or not self._announced:
            raise TimeoutError
        wanted = min(length, self._announced)
        if not self._fifo and not self.chip.wait(timeout_ms):
            raise TimeoutError
        if len(self._fifo) < wanted:
            self._fifo += self.chip.take(wanted - len(self._fifo))
        answer = bytes(self._fifo[:wanted])
        del self._fifo[:wanted]
        # A packet shorter than asked ends the request.
        self._announced = max(0, self._announced - length) if self._announced < 1 << 61 else self._announced
        self._prefetch()
        return answer

    def closed(self) -> None:
        """The host let go: the chip and the FIFO keep what they hold, half a word is lost."""
        self.chip.end_of_stream()
        self._opened_at = None

    def power_cycle(self) -> None:
        """Forget everything."""
        self.chip.power_cycle()
        self._fifo.clear()
        self._announced = self._write_announced = 0
        self._opened_at = None
        self.gpio_direction = self.gpio_level = 0

    def disturb(self, fault: Fault) -> None:
        """See `virtual_faults.KINDS`."""
        if fault.kind == "stale":
            self._fifo[:0] = self.chip.stale_words(fault.amount)
        else:
            self.chip.disturb(fault)
