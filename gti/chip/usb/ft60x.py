"""Transport over the FT600 / FT601 bridge of the USB dongle, through pyusb (docs/usb_protocol.md section 8).

The bridge has two interfaces: 0 with EP 0x01 for session commands, 1 with the data pipes 0x02 (out) and 0x82 (in).
Words are written to 0x02 as they are; a read is announced by a session command and then fetched from 0x82.
"""

from __future__ import annotations

import array
import contextlib
import logging
import re
import struct
import time
from collections.abc import Mapping
from typing import Any

from gti.chip.usb import usb_bus
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import (
    DeviceInfo,
    Request,
    Settings,
    Stick,
    TimeoutSlice,
    TransferError,
    find_again,
    move,
    select,
)
from gti.chip.wire.protocol import FT600, FT601, Framing
from gti.errors import DeviceError

log = logging.getLogger(__name__)

EP_SESSION = 0x01
EP_OUT = 0x02
EP_IN = 0x82
INTERFACES = (0, 1)

# Session commands: counter u32, pipe u8, command u8, u16 0, length u32, two u32 0. The counter is 1 in the driver
# that is proven in the field, so it is 1 here.
SESSION = struct.Struct("<IBBHIII")
COMMAND_ABORT = 0
COMMAND_TRANSFER = 1
COMMAND_FLUSH = 3
_END_BYTES = 16
MORE_FOLLOWED = "more bytes followed the result"

# Vendor requests (type, request, value, index)
REQUEST_CONFIGURATION = (0xC0, 0xCF, 1, 0)
CONFIGURATION_BYTES = 152
FIFO_MODE_BYTE = 137  # 0 = 245 FIFO, 1 = 600 FIFO
CHANNELS_BYTE = 138  # 2 = one channel
GPIO_TYPE, GPIO_REQUEST, GPIO_WRITE, GPIO_ENABLE = 0x40, 0x02, 1, 2
GPIO_MASK = GPIO_LEVEL = 3


FORM = "usb, usb:<serial or index>"


def takes(key: str) -> bool:
    """Any serial or index may be there."""
    return True


def open_stick(key: str, request: Request) -> Stick:
    """Return the dongle that `key` (serial or index) names, else the one that the file asks for, else the first."""
    return open_info(find_stick(key or asked_key(request.wishes), request.backend), request)


def open_info(info: DeviceInfo, request: Request) -> Stick:
    """Return the dongle `info`, locked for this process. Raises DeviceError naming the process that has it."""
    settings = request.settings or Settings()
    backend = request.backend
    with contextlib.ExitStack() as held:
        held.callback(DeviceLock(info.name).release)
        if request.record is not None:
            from gti.chip.usb.trace import recorded

            key = info.serial or str(info.index)
            backend = recorded(backend, request.record, f"usb:{key}", settings, held)
            info = find_stick(key, backend)  # once more, so that the recording begins with the list
        return Stick(Ft60x(info, settings, backend), settings, info.name, held.pop_all())


def on_backend(backend: Any, settings: Settings, key: str) -> Ft60x:
    """Return the transport of the bridge `key` of a backend without real sticks."""
    return Ft60x(find_stick(key, backend), settings, backend)


def list_sticks(backend: Any = None) -> list[DeviceInfo]:
    """Return the FT600 / FT601 bridges on the bus. Raises DeviceError when libusb is missing."""
    return usb_bus.list_devices(usb_bus.FTDI_IDS, backend)


def find_stick(key: str = "", backend: Any = None) -> DeviceInfo:
    """Return the dongle that `key` (serial, index, or "" for the first) names. Raises DeviceError."""
    sticks = list_sticks(backend)
    if not sticks:
        raise DeviceError(
            "USB",
            "no stick is plugged in",
            expected="an FT600 or FT601 bridge (0403:601e, 0403:601f)",
            fix="plug it into a USB 3 port, or use --device virtual",
        )
    return select(sticks, key)


def asked_key(wishes: Mapping[str, Any]) -> str:
    """Return which dongle a file asks for: the index in a vendor name such as USB_FTDI_0001, else ""."""
    match = re.fullmatch(r"USB_FTDI_(\d{4})", str(wishes.get("name") or ""))
    return str(int(match.group(1))) if match else ""


class Ft60x:
    """The bridge `info`, as a `Transport`."""

    def __init__(self, info: DeviceInfo, settings: Settings, backend: Any = None) -> None:
        self.info = info
        self.framing: Framing = FT601 if info.product == usb_bus.FT601_PRODUCT else FT600
        self._settings = settings
        self._backend = backend
        self._handle: usb_bus.Handle | None = None
        self.gpio_driven = False  # whether the bridge took the GPIO requests of the last opening
        self._failures = 0  # openings since the last one that led to a complete result
        self._buffer = array.array("B", bytes(settings.read_chunk))

    @property
    def description(self) -> str:
        """Name for people."""
        return self.info.name

    def open(self) -> None:
        """Find the stick again, claim it, set GPIO, flush the result pipe, let it settle."""
        self.close()
        found = find_again(lambda: usb_bus.find_same(self.info, self._backend), self._settings.reappear_ms)
        if found is None:
            raise TransferError("opening", "the stick is not on the bus")
        self.info, device = found
        self._handle = handle = usb_bus.Handle(self.info, device, INTERFACES)
        self._failures += 1
        if self._failures > 2:
            # Clearing the pipes did not help the time before: start from the port.
            handle.reset()
            self._handle = None
            again = find_again(lambda: usb_bus.find_same(self.info, self._backend), self._settings.reappear_ms)
            if again is None:
                raise TransferError("opening", "the stick did not come back after a reset of its port")
            self.info, device = again
            self._handle = handle = usb_bus.Handle(self.info, device, INTERFACES)
        self._inspect(handle)
        if self._failures > 1:
            self._clear(handle)
        if self._settings.gpio:
            self._raise_gpio(handle)
        if self._settings.flush != "never":
            self._session(COMMAND_FLUSH, 0, "opening")
        self._drain(handle)
        time.sleep(self._settings.settle_ms / 1000.0)

    def reset_port(self) -> None:
        """Reset the port of a stick that is not open: the bridge starts as when it was plugged in.

        Raises DeviceError or TransferError as `open`.
        """
        found = find_again(lambda: usb_bus.find_same(self.info, self._backend), self._settings.reappear_ms)
        if found is None:
            raise TransferError("opening", "the stick is not on the bus")
        self.info, device = found
        usb_bus.Handle(self.info, device, INTERFACES).reset()

    def _inspect(self, handle: usb_bus.Handle) -> None:
        # The only sign of a wrongly set up bridge; a warning, because the layout is from public headers alone.
        data = handle.control_in(REQUEST_CONFIGURATION, CONFIGURATION_BYTES, self._settings.slice_ms, "opening")
        if len(data) != CONFIGURATION_BYTES:
            raise TransferError(
                "opening", f"the bridge's configuration has {len(data)} bytes, not {CONFIGURATION_BYTES}"
            )
        if data[FIFO_MODE_BYTE] != 0 or data[CHANNELS_BYTE] != 2:
            log.warning(
                "%s: bridge in FIFO mode %d with channel code %d, expected 0 (245 FIFO) and 2 (one channel)",
                self.info.name,
                data[FIFO_MODE_BYTE],
                data[CHANNELS_BYTE],
            )

    def _clear(self, handle: usb_bus.Handle) -> None:
        for endpoint in (EP_SESSION, EP_OUT, EP_IN):
            handle.clear_halt(endpoint, "opening")
        for _ in range(2):
            self._session(COMMAND_ABORT, 0, "opening")

    def _raise_gpio(self, handle: usb_bus.Handle) -> None:
        index = GPIO_MASK | GPIO_LEVEL << 8 if self._settings.gpio_level_high_byte else GPIO_MASK << 8 | GPIO_LEVEL
        self.gpio_driven = True
        for value in (GPIO_ENABLE, GPIO_WRITE):
            try:
                request = (GPIO_TYPE, GPIO_REQUEST, value, index)
                handle.control_out(request, b"", self._settings.slice_ms, "opening")
            except TransferError as error:
                # The vendor's runtime ignores the status too; a board may pull the lines up by itself.
                self.gpio_driven = False
                log.warning("%s: GPIO request %d was refused (%s)", self.info.name, value, error.reason)

    def _drain(self, handle: usb_bus.Handle) -> None:
        if not self._settings.drain_ms:
            return
        timeout = max(1, int(min(self._settings.drain_ms, self._settings.slice_ms)))
        stale = 0
        with contextlib.suppress(TimeoutSlice):
            # Bounded: a device that sends without end is caught by the reads that follow.
            for _ in range(1024):
                count = handle.read(EP_IN, self._buffer, timeout, "opening")
                stale += count
                if not count:
                    break
        if stale:
            log.warning("%s: %d bytes of an earlier result were discarded", self.info.name, stale)

    def close(self) -> None:
        """Release the interfaces."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def start_frame(self) -> None:
        """Flush the result pipe, so that bytes of an earlier frame cannot lead this one's."""
        if self._settings.flush == "frame":
            self._session(COMMAND_FLUSH, 0, "sending")

    def write(self, block: bytes, phase: str) -> None:
        """Stream a block to pipe 0x02 in chunks; short writes are continued."""
        handle = self._opened()
        view = memoryview(block)
        chunk = self._settings.write_chunk

        def transfer(position: int, timeout: int) -> int:
            piece = view[position : position + chunk]
            if self._settings.write_command:
                self._session(COMMAND_TRANSFER, len(piece), phase, EP_OUT)
            return handle.write(EP_OUT, piece, timeout, phase)

        move(
            transfer,
            len(block),
            chunk=chunk,
            patience_ms=self._settings.write_timeout_ms,
            slice_ms=self._settings.slice_ms,
            phase=phase,
        )

    def read(self, length: int) -> bytes:
        """Return `length` bytes from pipe 0x82; short reads are asked for again."""
        handle = self._opened()
        result = bytearray(length)
        chunk = self._settings.read_chunk
        announced = 0  # bytes promised to the bridge and not yet delivered

        def transfer(position: int, timeout: int) -> int:
            nonlocal announced
            size = min(chunk, length - position)
            if not announced:
                self._session(COMMAND_TRANSFER, size, "reading", EP_IN)
                announced = size
            buffer = self._buffer if size == chunk else array.array("B", bytes(size))
            count = handle.read(EP_IN, buffer, timeout, "reading")
            # A short packet ends the request; a time-out (raised above) leaves it standing.
            announced = 0
            result[position : position + count] = memoryview(buffer)[:count]
            return count

        move(
            transfer,
            length,
            chunk=chunk,
            patience_ms=self._settings.read_timeout_ms,
            slice_ms=self._settings.slice_ms,
            phase="reading",
        )
        self._nothing_follows(handle)
        self._failures = 0
        return bytes(result)

    def _nothing_follows(self, handle: usb_bus.Handle) -> None:
        # Bytes left over mean that foreign ones led the result, or that the chip sent too much.
        if not self._settings.check_end_ms:
            return
        self._session(COMMAND_TRANSFER, _END_BYTES, "checking", EP_IN)
        timeout = max(1, int(min(self._settings.check_end_ms, self._settings.slice_ms)))
        with contextlib.suppress(TimeoutSlice):
            if handle.read(EP_IN, array.array("B", bytes(_END_BYTES)), timeout, "checking"):
                raise TransferError("checking", MORE_FOLLOWED)

    def _opened(self) -> usb_bus.Handle:
        if self._handle is None:
            raise TransferError("opening", "the stick is not open")
        return self._handle

    def _session(self, command: int, length: int, phase: str, pipe: int = EP_IN) -> None:
        data = SESSION.pack(1, pipe, command, 0, length, 0, 0)
        try:
            count = self._opened().write(EP_SESSION, data, self._settings.slice_ms, phase)
        except TimeoutSlice:
            raise TransferError(phase, "time-out of a session command") from None
        if count != len(data):
            # Half a command leaves the bridge waiting for the rest: only a new opening helps.
            raise TransferError(phase, f"a session command went out with {count} of {len(data)} bytes")
