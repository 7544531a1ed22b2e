"""Back end of the mass-storage sticks: which one a name means, and how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gti.chip.usb import eusb, eusb_disks, scsi_bulk, scsi_sg, usb_bus
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import Request, Settings, Stick, select
from gti.errors import DeviceError, UsageError
from gti.files import is_number

FORM = "eusb:<serial or node>"


def takes(key: str) -> bool:
    """A stick has to be named."""
    if not key:
        raise UsageError(
            "--device eusb",
            "names no device",
            expected="eusb:<serial or sg node>",
            fix="the id 05e3:0769 is also that of ordinary card readers, and the stick's protocol overwrites their"
            " sectors at 4 MiB: name the stick, for example eusb:/dev/sg2",
        )
    return True


def open_stick(key: str, request: Request) -> Stick:
    """Return the mass-storage stick that `key`, a serial or an sg node, names, locked for this process."""
    settings = asked_settings(request.wishes, request.settings or Settings())
    backend = request.backend
    with ExitStack() as held:
        if request.record is not None:
            from gti.chip.usb.trace import recorded

            backend = recorded(backend, request.record, f"eusb:{key}", settings, held)
        transport, lock = find_transport(key, settings, backend)
        held.callback(lock.release)
        return Stick(transport, settings, transport.description, held.pop_all())


def on_backend(backend: Any, settings: Settings, key: str) -> eusb.Eusb:
    """Return the transport of the stick `key` of a backend without real sticks."""
    infos = usb_bus.list_devices(usb_bus.EUSB_IDS, backend)
    if not infos:
        raise DeviceError(f"device eusb:{key}", "is not there", expected="a device 05e3:0769", fix="plug it in")
    info = select(infos, key)
    return eusb.Eusb(scsi_bulk.BulkChannel(info, settings, backend), settings)


def asked_settings(wishes: Mapping[str, Any], settings: Settings) -> Settings:
    """Return `settings` with the pause that a file asks for ("emmc delay", microseconds), if it does."""
    delay = wishes.get("emmc delay")
    if is_number(delay) and 0 <= delay <= 1e7:
        return replace(settings, eusb_delay_us=float(delay))
    return settings


def find_transport(key: str, settings: Settings, backend: Any = None) -> tuple[eusb.Eusb, DeviceLock]:
    """Return the transport, and the lock, of the stick that `key`, a serial or an sg node, names.

    With `settings.eusb_path` "auto" Linux's sg node is used where there is one, else Bulk-Only Transport over pyusb.
    Raises DeviceError when it is not there; that it is a stick at all is made sure when it is opened.
    """
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
            return eusb.Eusb(scsi_bulk.BulkChannel(info, settings, backend, _in_use), settings), lock
    present = [f"{node.path} (serial {node.serial or 'none'})" for node in nodes] + [info.name for info in infos]
    raise DeviceError(
        f"device eusb:{key}",
        "is not there",
        expected="one of " + ", ".join(present) if present else "a device 05e3:0769",
        fix="plug it in and look at lsusb and /dev/sg*",
    )


def _in_use(location: str) -> str:
    return eusb_disks.disk_in_use(eusb_disks.blocks_of_usb(location))
