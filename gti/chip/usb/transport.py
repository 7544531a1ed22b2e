"""What every way to the stick has in common: settings, the transport interface, faults, waiting, opened sticks.

A transport carries blocks of words (docs/usb_protocol.md) to the chip and result words back. `ft60x.py` and `eusb.py`
implement it over pyusb or SG_IO; the sticks in software (`gti.chip.virtual`) sit below them, as a pyusb backend. Which
back ends there are is the table of `devices.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gti.errors import DeviceError, UsageError, sentence

if TYPE_CHECKING:
    from gti.chip.wire.protocol import Framing

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Everything that is assumed about silicon or chosen about USB; docs/device.md gives the source of each default."""

    # Opening
    settle_ms: float = 100.0  # pause after the opening sequence, before the first word
    gpio: bool = True  # FT60x: GPIO 0 and 1 become outputs and high
    gpio_level_high_byte: bool = True  # FT60x: wIndex = mask | level << 8; False: mask << 8 | level
    flush: str = "frame"  # FT60x: discard what pipe 0x82 holds: at every "frame", at "open", or "never"
    drain_ms: float = 10.0  # FT60x: after the flush at opening, read away bytes already on their way; 0 = do not
    # Transfers
    write_chunk: int = 2048  # FT60x: bytes per bulk write
    read_chunk: int = 2048  # FT60x: bytes per bulk read
    write_command: bool = False  # FT60x: announce every write on EP 0x01
    slice_ms: int = 200  # longest time-out handed to USB in one call: the answer time of Ctrl-C
    write_timeout_ms: float = 1000.0  # a write without progress for so long has failed
    read_timeout_ms: float = 1000.0  # the same for a result: it includes the chip's computing time
    # eUSB
    eusb_delay_us: float = 12000.0  # pause between the last write of a frame and the first read
    eusb_blocks: int = 0  # 512-byte blocks per command; 0 = 128 on high speed, 2048 above
    eusb_path: str = (
        "auto"  # "sg" (Linux SG_IO), "bot" (Bulk-Only Transport over pyusb), "auto" = sg where there is one
    )
    eusb_command_timeout_ms: float = 7000.0
    eusb_check_status: bool = True  # status, sense and residue of every command must be good
    # Recovery
    retries: int = 3  # reopen, reload and resend of one frame before giving up
    reappear_ms: float = 5000.0  # how long a stick that left the bus may take to come back
    reload_on_mode_change: bool = True  # load the coefficients again before a frame in another read-out mode
    # Trust in results
    check_constant: bool = True  # a result of one repeated byte must be what the emulator computes
    check_low_bits: bool = True  # FC read-out: the low 3 bits of every value are zero
    check_end_ms: float = 0.0  # FT60x: after a result, wait so long for bytes that must not follow; 0 = do not
    compare_twice: bool = False  # evaluate every frame twice and require equal results
    ten_bit_layout: str = ""  # ten-bit results on the wire: "" = unknown, refuse; "halves" or "pairs" of 5-bit maps
    behaviours: str = ""  # of the chip where it is otherwise than assumed: `gti.chip.emulator.behaviours`, as text

    def __post_init__(self) -> None:
        for name in ("write_chunk", "read_chunk"):
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise _setting_error(name, "a positive multiple of 16 bytes", value)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise _setting_error(name, " or ".join(repr(choice) for choice in allowed), getattr(self, name))
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise _setting_error(name, "a number above 0", getattr(self, name))
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise _setting_error(name, "a number not below 0", getattr(self, name))
        if self.slice_ms > 500:
            raise _setting_error("slice_ms", "at most 500, so that Ctrl-C is answered within a second", self.slice_ms)

    def changed(self, **changes: Any) -> Settings:
        """Return a copy with some settings replaced."""
        return replace(self, **changes)


_CHOICES = {
    "flush": ("frame", "open", "never"),
    "eusb_path": ("auto", "sg", "bot"),
    "ten_bit_layout": ("", "halves", "pairs"),
}
_POSITIVE = ("slice_ms", "write_timeout_ms", "read_timeout_ms", "eusb_command_timeout_ms")
_NOT_NEGATIVE = ("settle_ms", "drain_ms", "check_end_ms", "eusb_delay_us", "eusb_blocks", "retries", "reappear_ms")

# A stick in software needs no time to settle or to recover its lines.
VIRTUAL_SETTINGS = Settings(settle_ms=0.0, eusb_delay_us=0.0, reappear_ms=0.0, ten_bit_layout="halves")


def _setting_error(name: str, expected: str, received: object) -> UsageError:
    return UsageError(sentence(f"setting {name}", "has an impossible value", expected=expected, received=received))


def parse_settings(texts: Mapping[str, str], base: Settings = Settings()) -> Settings:
    """Return `base` with settings given as text, as on a command line: {"settle_ms": "0", "flush": "open"}.

    Raises UsageError for an unknown name or a text of another type.
    """
    defaults = Settings()
    kinds: dict[str, type] = {one.name: type(getattr(defaults, one.name)) for one in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in kinds:
            raise UsageError(f"setting {name}", "is unknown", fix="use one of " + ", ".join(sorted(kinds)))
        kind = kinds[name]
        try:
            if kind is bool:
                changes[name] = {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
            else:
                changes[name] = kind(text)
        except (ValueError, KeyError):
            expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a word")
            raise _setting_error(name, expected, text) from None
    return base.changed(**changes)


class TransferError(DeviceError):
    """A transfer failed; the transport must be opened again before anything else is tried.

    `phase` is what was going on ("opening", "loading", "sending", "reading"), `reason` what happened.
    """

    def __init__(self, phase: str, reason: str) -> None:
        super().__init__(f"{phase}: {reason}")
        self.phase = phase
        self.reason = reason


class RefusedError(DeviceError):
    """The system does not let the stick be opened, permission or another holder: trying again does not mend it."""


class StallError(TransferError):
    """The stick refused a transfer; the endpoint is halted until that is cleared."""


class Transport(Protocol):
    """One stick. After a TransferError, and before first use, only `open` and `close` make sense."""

    @property
    def description(self) -> str:
        """Name for people, for example `FT601 serial 00012345`."""

    @property
    def framing(self) -> Framing:
        """Width of a word and filling of a block."""

    def open(self) -> None:
        """Find the stick, take it, run the opening sequence. Raises DeviceError or TransferError."""

    def close(self) -> None:
        """Give everything back; never raises."""

    def start_frame(self) -> None:
        """Discard what is left of earlier results on this side of the chip; call before each frame is written."""

    def write(self, block: bytes, phase: str) -> None:
        """Send one block of words completely, or raise TransferError."""

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes of result words, or raise TransferError."""


@dataclass(frozen=True)
class DeviceInfo:
    """A stick that is plugged in, as far as it can be told without opening it."""

    index: int
    kind: str  # "FT601", "FT600" or "eUSB"
    vendor: int
    product: int
    serial: str  # "" where it has none or may not be read
    location: str  # bus and ports, for example "3-1.2": stays the same when the address changes
    address: int
    speed: int  # pyusb's number: 3 = high speed (480 Mbit/s), 4 = SuperSpeed; 0 = unknown
    problem: str = ""  # why strings could not be read, for example "permission denied"

    @property
    def name(self) -> str:
        """Name for people and in messages."""
        return f"{self.kind} serial {self.serial}" if self.serial else f"{self.kind} at USB {self.location}"


@dataclass(frozen=True)
class Request:
    """How a stick is to be opened."""

    settings: Settings | None = None  # None: the defaults of its kind
    backend: Any = None  # a pyusb backend in place of libusb
    record: str | os.PathLike[str] | None = None  # a file for every USB transfer of the session
    wishes: Mapping[str, Any] = field(default_factory=dict)  # the "device" object of a .model
    upsample_modes: tuple[str, ...] = ()  # of its major layers, for sticks in software: no word tells them


@dataclass(frozen=True)
class Stick:
    """A stick that was found: how to talk to it, and what it holds until it is released (locks, a recording)."""

    transport: Transport
    settings: Settings  # in use
    description: str
    held: ExitStack = field(default_factory=ExitStack)

    def release(self) -> None:
        """Give back what is held; safe to call twice."""
        self.held.close()


def select(devices: list[DeviceInfo], key: str) -> DeviceInfo:
    """Return the device that `key` (a serial, or an index in `devices`, or "" for the first) names.

    A serial goes before an index. Raises DeviceError naming what is there.
    """
    if not key:
        return devices[0]
    for device in devices:
        if device.serial == key:
            return device
    if key.isdecimal() and int(key) < len(devices):
        return devices[int(key)]
    present = ", ".join(f"{device.index}: {device.name}" for device in devices)
    raise DeviceError(f"device {key}", "is not there", expected=f"one of {present}", received=key)


def find_again(look: Callable[[], T | None], patience_ms: float, step_ms: float = 100.0) -> T | None:
    """Return the first result of `look` that is not None, trying for `patience_ms`; None when the time is over."""
    end = time.monotonic() + patience_ms / 1000.0
    while True:
        found = look()
        if found is not None or time.monotonic() >= end:
            return found
        time.sleep(min(step_ms / 1000.0, max(0.0, end - time.monotonic())))


# A device that keeps answering with nothing, and without waiting, is as dead as one that times out.
MAX_EMPTY_TRANSFERS = 64


def move(
    transfer: Callable[[int, int], int], length: int, *, chunk: int, patience_ms: float, slice_ms: int, phase: str
) -> None:
    """Move `length` bytes in pieces; short pieces are continued.

    `transfer(position, timeout_ms)` moves at most `chunk` bytes from `position` on and returns how many; it raises
    TimeoutSlice when nothing moved within the time-out. Raises TransferError when nothing moves for `patience_ms`,
    counted in time-outs handed out so that the waiting is the same on a stick in software.
    """
    position = 0
    waited = 0.0
    empty = 0
    while position < length:
        timeout = max(1, int(min(slice_ms, patience_ms - waited)))
        try:
            moved = transfer(position, timeout)
        except TimeoutSlice:
            waited += timeout
            if waited >= patience_ms:
                raise TransferError(
                    phase, f"time-out: nothing moved for {patience_ms:g} ms after {position} of {length} bytes"
                ) from None
            continue
        if moved < 0 or moved > min(chunk, length - position):
            raise TransferError(
                phase, f"the device moved {moved} bytes where {min(chunk, length - position)} were asked"
            )
        position += moved
        empty = 0 if moved else empty + 1
        if empty > MAX_EMPTY_TRANSFERS:
            raise TransferError(phase, f"{empty} transfers in a row were empty after {position} of {length} bytes")
        if moved:
            waited = 0.0


class TimeoutSlice(Exception):  # noqa: N818  (not an error by itself: the wait goes on)
    """Nothing moved within one slice of waiting."""
