"""From `--device` to a transport: finds sticks, takes locks, makes sticks in software."""

from __future__ import annotations

import importlib.util
from typing import Any

from gti.chip import ft60x, protocol, usb_bus
from gti.chip.lock import DeviceLock
from gti.chip.transport import VIRTUAL_SETTINGS, DeviceInfo, Selection, Settings, Transport, select
from gti.errors import DeviceError, sentence


def list_sticks(backend: Any = None) -> list[DeviceInfo]:
    """Return the dongles with an FT600 / FT601 bridge, in the order in which `usb:<index>` counts them.

    Raises DeviceError when libusb is missing or the bus cannot be listed.
    """
    return ft60x.list_sticks(backend)


def no_stick() -> str:
    """Return the sentence for an empty bus."""
    return sentence(
        "USB",
        "no stick is plugged in",
        expected="an FT600 or FT601 bridge (0403:601e, 0403:601f)",
        fix="plug it into a USB 3 port, or use --device virtual",
    )


def find_stick(key: str = "", backend: Any = None) -> DeviceInfo:
    """Return the dongle that `key` (serial, index, or "" for the first) names. Raises DeviceError."""
    sticks = list_sticks(backend)
    if not sticks:
        raise DeviceError(no_stick())
    return select(sticks, key)


def emulator_engine() -> str:
    """Return which engine the emulator will use, without loading it."""
    return "numba" if importlib.util.find_spec("numba") is not None else "numpy"


def lock_for(info: DeviceInfo) -> DeviceLock:
    """Take the lock of a stick; raises DeviceError naming the process that has it."""
    return DeviceLock(info.name)


def usb_transport(info: DeviceInfo, settings: Settings, backend: Any = None) -> Transport:
    """Return the transport of a dongle on the bus."""
    return ft60x.Ft60x(info, settings, backend)


def virtual_backend(kind: str = "ft601", count: int = 1, **chip_options: Any) -> Any:
    """Return a pyusb backend with `count` sticks in software of one kind: ft601, ft600 or eusb.

    `chip_options` are those of `virtual_chip.VirtualChip`: chip_time_ms, engine, ten_bit_layout.
    """
    from gti.chip.virtual import VirtualBackend
    from gti.chip.virtual_bridge import VirtualFt60x
    from gti.chip.virtual_chip import VirtualChip

    framing = {"ft601": protocol.FT601, "ft600": protocol.FT600}[kind]
    product = usb_bus.FT601_PRODUCT if kind == "ft601" else usb_bus.FT600_PRODUCT
    sticks = [
        VirtualFt60x(VirtualChip(framing, **chip_options), product, f"VIRTUAL{number:04d}")
        for number in range(1, count + 1)
    ]
    return VirtualBackend(sticks)


def virtual_transport(selection: Selection, settings: Settings | None = None, **chip_options: Any) -> Transport:
    """Return the transport of a new stick in software; `selection.key` is its kind, "" for ft601."""
    settings = settings or VIRTUAL_SETTINGS
    backend = virtual_backend(selection.key.lower() or "ft601", **chip_options)
    return usb_transport(find_stick("", backend), settings, backend)
