"""From `--device` to a stick: the one table of back ends, and how one of them is opened.

A back end is a module that has what `BackEnd` lists; it is imported when one of its sticks is asked for. A new
transport is such a module and a row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

from gti.chip.usb import usb_bus
from gti.chip.usb.transport import DeviceInfo, Request, Settings, Stick, Transport
from gti.errors import DeviceError, UsageError, sentence

T = TypeVar("T")

BACK_ENDS = {
    "usb": "gti.chip.usb.ft60x",
    "virtual": "gti.chip.virtual.sticks",
    "eusb": "gti.chip.usb.eusb_sticks",
    "replay": "gti.chip.usb.trace",
}
AUTO = "auto"  # the first stick of _LOOKED_FOR that answers a frame, else _LAST
# The id of an eUSB stick is also that of card readers, whose sectors a try would overwrite: it is never looked for.
_LOOKED_FOR, _LAST = "usb", "virtual"


class BackEnd(Protocol):
    """What the module of a back end has."""

    FORM: str  # how `--device` names its sticks, for messages

    def takes(self, key: str) -> bool:
        """Return whether `key`, what follows the colon ("" for none), may name a stick; UsageError says more."""

    def open_stick(self, key: str, request: Request) -> Stick:
        """Return the stick that `key` names, not opened yet. Raises DeviceError when it is not there or in use."""


class BusBackEnd(BackEnd, Protocol):
    """What the module of a back end over pyusb has beside that."""

    def on_backend(self, backend: Any, settings: Settings, key: str) -> Transport:
        """Return the transport of the stick `key` of a pyusb backend that holds no real sticks: nothing is locked."""


class SearchedBackEnd(BackEnd, Protocol):
    """What the module of a back end whose sticks may be looked for has beside that."""

    def list_sticks(self, backend: Any) -> list[DeviceInfo]:
        """Return the sticks that are plugged in."""

    def open_info(self, info: DeviceInfo, request: Request) -> Stick:
        """Return the stick `info`; as `open_stick`."""


@dataclass(frozen=True)
class Selection:
    """What `--device` asks for."""

    kind: str  # "auto" or a name of the table
    key: str = ""  # serial, index, or for eusb a node; for virtual the kind of stick; for replay the file


def back_end(kind: str) -> BackEnd:
    """Return the module of a row of the table."""
    return cast(BackEnd, importlib.import_module(BACK_ENDS[kind]))


def parse_device(text: str, *others: str) -> Selection:
    """Return what a `--device` text selects: auto | usb | usb:<serial or index> | virtual | eusb:<serial or sg node>.

    `virtual:ft600` and `virtual:eusb` are sticks in software of the other kinds, `replay:FILE` is a recorded session.
    Raises UsageError, which also names `others`, texts that the caller understands by itself.
    """
    kind, colon, key = text.strip().partition(":")
    kind = kind.lower()
    good = bool(key) == bool(colon)
    if not good or ((kind != AUTO or key) and (kind not in BACK_ENDS or not back_end(kind).takes(key))):
        forms = [AUTO, *others, *(back_end(name).FORM for name in BACK_ENDS)]
        raise UsageError("--device", "is not understood", expected=", ".join(forms), received=text)
    return Selection(kind, key)


class NoStickError(DeviceError):
    """No real stick can be had; the message says why, each reason once."""


def connect(
    device: str, request: Request, start: Callable[[Stick, bool], T], *, software: bool = True
) -> tuple[Stick, T]:
    """Return the stick of a `--device` text, and what `start` makes of it.

    `start` is told whether the stick must first prove that there is a chip behind it, as one that auto found must; it
    raises DeviceError otherwise. Where auto finds none, the stick in software serves if `software`. The description of
    what serves says why others do not. Raises UsageError for the text, DeviceError where no stick can be had,
    NoStickError for auto without `software`.
    """
    selection = parse_device(device)
    if selection.kind != AUTO:
        return _started(back_end(selection.kind).open_stick(selection.key, request), start, False)
    try:
        return _first_that_answers(request, start)
    except NoStickError as problem:
        if not software:
            raise
        reason = str(problem)
    last = back_end(_LAST).open_stick("", request)
    return _started(replace(last, description=f"{last.description}, because: {reason}"), start, False)


def _first_that_answers(request: Request, start: Callable[[Stick, bool], T]) -> tuple[Stick, T]:
    try:
        sticks = list_sticks(request.backend)
    except DeviceError as problem:
        raise NoStickError(str(problem)) from None
    reasons: list[str] = []
    for info in sticks:
        try:
            stick, started = _started(_searched().open_info(info, request), start, True)
        except DeviceError as problem:
            reasons.append(str(problem))
            continue
        if reasons:
            stick = replace(stick, description=f"{stick.description}, because: {'; '.join(reasons)}")
        return stick, started
    raise NoStickError("; ".join(reasons) or _nothing_there(request.backend))


def _nothing_there(backend: Any) -> str:
    """Return why there is no stick that may be looked for on a bus that could be listed."""
    if usb_bus.list_devices(usb_bus.EUSB_IDS, backend):
        return sentence(
            "USB",
            "a mass-storage device 05e3:0769 is plugged in, an eUSB stick or a card reader",
            fix="if it is the stick, name it: --device eusb:<serial or sg node>",
        )
    return "no stick is plugged in"


def _started(stick: Stick, start: Callable[[Stick, bool], T], prove: bool) -> tuple[Stick, T]:
    try:
        return stick, start(stick, prove)
    except BaseException:
        stick.release()
        raise


def list_sticks(backend: Any = None) -> list[DeviceInfo]:
    """Return the dongles with an FT600 / FT601 bridge, in the order in which `usb:<index>` counts them.

    Raises DeviceError when libusb is missing or the bus cannot be listed.
    """
    return _searched().list_sticks(backend)


def _searched() -> SearchedBackEnd:
    return cast(SearchedBackEnd, back_end(_LOOKED_FOR))


def transport_on(backend: Any, kind: str, settings: Settings, key: str = "") -> Transport:
    """Return the transport of the stick `key` (serial or index) of a backend that holds no real sticks.

    `kind` "eusb" is a mass-storage stick, any other one of the bridges.
    """
    module = cast(BusBackEnd, back_end("eusb" if kind == "eusb" else "usb"))
    return module.on_backend(backend, settings, key)
