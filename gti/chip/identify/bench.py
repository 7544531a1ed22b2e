"""A stick under examination: one connection for the whole session, cases sent to it, answers or silence.

Every transport of a session goes through the same bus, so that one recording holds all of it and a replay of that
recording leads to the same findings.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from gti.chip import spec
from gti.chip.identify.cases import Case
from gti.chip.identify.predictions import Answer, read_out
from gti.chip.usb import devices, eusb_sticks, ft60x
from gti.chip.usb.link import Frame, Link
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.trace import RecordingBackend, ReplayBackend
from gti.chip.usb.transport import VIRTUAL_SETTINGS, RefusedError, Settings, TransferError, Transport
from gti.chip.virtual import sticks
from gti.errors import DeviceError, FormatError, UsageError

log = logging.getLogger(__name__)

# Broken sticks answer one byte all over, and no case is answered so: it is tried so often again before it is believed.
_CONSTANT_TRIES = 3


class Bench:
    """One stick; `make`: settings -> a transport to it.

    `name` for people, `kind` FT601, FT600 or eUSB. `base` are the settings from which those of a try are made.
    """

    def __init__(self, make: Callable[[Settings], Transport], base: Settings) -> None:
        self.make = make
        self.base = base
        first = make(base)
        info = getattr(first, "info", None)
        self.name = first.description
        self.kind = "eUSB" if info is None else info.kind
        self.serial = "" if info is None else info.serial
        self.settings = base  # with which cases are sent
        self.whole_files = False  # whether files are filled to the length that the converter gives them
        self.counts: Counter[str] = Counter()  # loads and frames asked for, faults, those before an answer came
        self.last_fault = ""
        self.gpio_driven = True  # whether the bridge took the GPIO requests of the last load, where there were any

    def answers(self, cases: Sequence[Case], settings: Settings | None = None) -> Iterator[Answer]:
        """Yield the answer of each case; all have one network and one read-out mode: a single load.

        Raises DeviceError for what trying again does not mend: permission, another program.
        """
        used = settings or self.settings
        data = cases[0].dat
        if self.whole_files:
            data = data.ljust(spec.MIN_FILE_BYTES, b"\0")
        constant: Counter[int] = Counter()

        def check(frame: Frame, result: bytes) -> None:
            if result.count(result[:1]) == len(result):
                constant[id(frame)] += 1
                if constant[id(frame)] < _CONSTANT_TRIES:
                    raise TransferError("checking", f"every byte of the result is 0x{result[0]:02x}")

        self.counts["loads"] += 1
        try:
            link = Link(self.make(used), data, len(cases[0].planes), used, check)
        except DeviceError as error:
            self._note(error)
            yield from [None] * len(cases)
            return
        link.fault_level = logging.INFO
        try:
            for one in cases:
                self.counts["frames"] += 1
                frame = link.encode(one.planes, one.mode)
                before = link.counts["faults"]
                try:
                    link.start(frame)
                    data = link.finish()
                    self.counts["disturbed"] += link.counts["faults"] - before
                    yield read_out(one).unpack(data)
                except DeviceError as error:
                    self._note(error)
                    yield None
        finally:
            self.gpio_driven = getattr(link.transport, "gpio_driven", True)
            self.counts["faults"] += link.counts["faults"]
            link.close()

    def answer(self, one: Case, settings: Settings | None = None) -> Answer:
        """Return the answer of one case."""
        (found,) = self.answers([one], settings)
        return found

    def _note(self, error: DeviceError) -> None:
        self.last_fault = str(error).partition(" Fix:")[0]
        if isinstance(error, RefusedError):
            raise error

    def reset_port(self) -> bool:
        """Reset the stick's port, after which GPIO is as it was when the stick was plugged in; False: impossible."""
        try:
            transport = self.make(self.base)
            if not isinstance(transport, ft60x.Ft60x):
                return False
            transport.reset_port()
        except DeviceError:
            return False
        return True


def connect(device: str, held: ExitStack, record: str | os.PathLike[str] | None = None, backend: Any = None) -> Bench:
    """Return the bench of the stick that `device` names; `held` gives back what it holds.

    `record`: a file for every USB transfer; `backend`: a pyusb backend in place of libusb or of the stick in software.
    Raises UsageError for the text, DeviceError where no stick can be had.
    """
    selection = devices.parse_device(device)
    match selection.kind:
        case "replay":
            return _replayed(selection.key)
        case "virtual":
            kind, behaviours = sticks.parts(selection.key)
            bus = sticks.virtual_backend(kind, behaviours=behaviours) if backend is None else backend
            bus = _recorded(bus, record, f"virtual:{kind}", VIRTUAL_SETTINGS, held)
            return Bench(lambda settings: devices.transport_on(bus, kind, settings), VIRTUAL_SETTINGS)
        case "usb":
            info = ft60x.find_stick(selection.key, backend)
            held.callback(DeviceLock(info.name).release)
            name = info.serial or str(info.index)
            bus = _recorded(backend, record, f"usb:{name}", Settings(), held)
            return Bench(lambda settings: ft60x.on_backend(bus, settings, name), Settings())
        case "eusb":
            base = Settings(eusb_path="bot")
            bus = _recorded(backend, record, f"eusb:{selection.key}", base, held)
            return Bench(_Named(selection.key, bus, held), base)
    expected = "usb, usb:<serial>, eusb:<serial>, virtual or replay:FILE"
    raise UsageError(f"--device {device}", "cannot be identified", expected=expected)


class _Named:
    """Makes transports of a mass-storage stick, looked at with the care that a disk needs each time."""

    def __init__(self, key: str, backend: Any, held: ExitStack) -> None:
        self._key = key
        self._backend = backend
        self._lock: DeviceLock | None = None
        held.callback(self._release)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __call__(self, settings: Settings) -> Transport:
        self._release()
        transport, self._lock = eusb_sticks.find_transport(self._key, settings, self._backend)
        return transport


def _recorded(
    inner: Any, record: str | os.PathLike[str] | None, device: str, settings: Settings, held: ExitStack
) -> Any:
    if record is None:
        return inner
    from gti.chip.usb.trace import recorded

    recorder: RecordingBackend = recorded(inner, record, device, settings, held)
    return recorder


def _replayed(path: str) -> Bench:
    replay = ReplayBackend(path)
    try:
        selection = devices.parse_device(str(replay.session["device"]))
        base = Settings(**replay.session["settings"])
    except (KeyError, TypeError, UsageError):
        raise FormatError(path, "is a recording of another version of the kit") from None
    kind = sticks.parts(selection.key)[0] if selection.kind == "virtual" else selection.kind
    key = "" if selection.kind == "virtual" else selection.key
    return Bench(lambda settings: devices.transport_on(replay, kind, settings, key), base)
