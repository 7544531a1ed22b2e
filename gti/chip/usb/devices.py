"""From `--device` to a transport: finds sticks, takes locks, makes sticks in software."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from gti.chip.usb import ft60x, usb_bus
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import VIRTUAL_SETTINGS, DeviceInfo, Selection, Settings, Transport, select
from gti.chip.wire import protocol
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


def eusb_transport(key: str, settings: Settings, backend: Any = None) -> tuple[Transport, DeviceLock]:
    """Return the transport, and the lock, of the mass-storage stick that `key`, a serial or an sg node, names.

    With `settings.eusb_path` "auto" Linux's sg node is used where there is one, else Bulk-Only Transport over pyusb.
    Raises DeviceError when it is not there; that it is a stick at all is made sure when it is opened.
    """
    from gti.chip.usb import eusb, eusb_disks, scsi_bulk, scsi_sg

    nodes = [] if backend is not None or settings.eusb_path == "bot" else eusb_disks.list_nodes()
    path = eusb_disks.node_path(key)
    for node in nodes:
        if path == node.path or (node.serial and key == node.serial):
            lock = DeviceLock(f"eUSB {node.serial or node.location}")
            return eusb.Eusb(scsi_sg.SgChannel(node, settings), settings), lock
    # An sg node is the kernel's: it is found, or not, without libusb.
    infos = [] if path or settings.eusb_path == "sg" else usb_bus.list_devices(usb_bus.EUSB_IDS, backend)
    for info in infos:
        if info.serial and key == info.serial:
            lock = DeviceLock(f"eUSB {info.serial}")

            def in_use(location: str) -> str:
                return eusb_disks.disk_in_use(eusb_disks.blocks_of_usb(location))

            return eusb.Eusb(scsi_bulk.BulkChannel(info, settings, backend, in_use), settings), lock
    present = [f"{node.path} (serial {node.serial or 'none'})" for node in nodes] + [info.name for info in infos]
    raise DeviceError(
        sentence(
            f"device eusb:{key}",
            "is not there",
            expected="one of " + ", ".join(present) if present else "a device 05e3:0769",
            fix="plug it in and look at lsusb and /dev/sg*",
        )
    )


def virtual_backend(kind: str = "ft601", count: int = 1, plans: Any = None, **chip_options: Any) -> Any:
    """Return a pyusb backend with `count` sticks in software of one kind: ft601, ft600 or eusb.

    `plans`: a fault plan for each. `chip_options` are those of `virtual_chip.VirtualChip`: chip_time_ms, engine,
    ten_bit_layout.
    """
    from gti.chip.virtual.bridge import VirtualFt60x
    from gti.chip.virtual.bus import VirtualBackend
    from gti.chip.virtual.chip import VirtualChip
    from gti.chip.virtual.storage import VirtualStorage

    sticks: list[Any] = []
    for number in range(1, count + 1):
        serial = f"VIRTUAL{number:04d}"
        if kind == "eusb":
            sticks.append(VirtualStorage(VirtualChip(protocol.EUSB, **chip_options), serial))
        elif kind == "ft600":
            sticks.append(VirtualFt60x(VirtualChip(protocol.FT600, **chip_options), usb_bus.FT600_PRODUCT, serial))
        else:
            sticks.append(VirtualFt60x(VirtualChip(protocol.FT601, **chip_options), usb_bus.FT601_PRODUCT, serial))
    return VirtualBackend(sticks, plans)


def transport_on(backend: Any, kind: str, settings: Settings, key: str = "") -> Transport:
    """Return the transport of the stick `key` (serial or index) of a backend that holds no real sticks.

    `kind` "eusb" is a mass-storage stick, any other one of the bridges.
    """
    from gti.chip.usb import eusb, scsi_bulk

    if kind == "eusb":
        info = select(usb_bus.list_devices(usb_bus.EUSB_IDS, backend), key)
        return eusb.Eusb(scsi_bulk.BulkChannel(info, settings, backend), settings)
    return usb_transport(find_stick(key, backend), settings, backend)


def virtual_transport(
    selection: Selection,
    settings: Settings | None = None,
    wrap: Callable[[Any], Any] = lambda backend: backend,
    **chip_options: Any,
) -> Transport:
    """Return the transport of a new stick in software; `selection.key` is its kind, "" for ft601.

    `wrap` may put something around the pyusb backend, such as a recorder.
    """
    kind = selection.key.lower() or "ft601"
    return transport_on(wrap(virtual_backend(kind, **chip_options)), kind, settings or VIRTUAL_SETTINGS)
