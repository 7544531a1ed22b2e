"""Which /dev/sgN are eUSB sticks, and whether their disk is in use: Linux's sysfs and procfs, read only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gti.chip.usb.usb_bus import EUSB_PRODUCT, EUSB_VENDOR

_SYS, _PROC = Path("/sys"), Path("/proc")


@dataclass(frozen=True)
class SgNode:
    """One generic SCSI node of a mass-storage bridge with the sticks' USB id."""

    path: str  # for example /dev/sg2
    serial: str  # "" where it has none
    speed: str  # Mbit/s as sysfs has it: "480", "5000"
    location: str  # USB bus and ports, for example "1-2"
    blocks: tuple[str, ...]  # names of its disks and their partitions: "sdb", "sdb1"


def node_path(key: str) -> str:
    """Return the path of the sg node that `key` names, as /dev/sg2 or sg2, or "" for anything else."""
    name = key.removeprefix("/dev/")
    return f"/dev/{name}" if re.fullmatch(r"sg\d+", name) else ""


def list_nodes(sys: Path = _SYS) -> list[SgNode]:
    """Return the nodes whose USB device is 05e3:0769, in order of their number."""
    nodes = []
    folder = sys / "class" / "scsi_generic"
    with contextlib.suppress(OSError):
        names = [entry.name for entry in folder.iterdir() if re.fullmatch(r"sg\d+", entry.name)]
        for name in sorted(names, key=lambda text: int(text[2:])):
            device = _usb_device((folder / name).resolve())
            if device is not None and _is_stick(device):
                nodes.append(
                    SgNode(
                        path=f"/dev/{name}",
                        serial=_text(device / "serial"),
                        speed=_text(device / "speed"),
                        location=device.name,
                        blocks=_blocks(folder / name / "device" / "block"),
                    )
                )
    return nodes


def blocks_of_usb(location: str, sys: Path = _SYS) -> tuple[str, ...]:
    """Return the disks and partitions of the USB device at `location`, for example "1-2"."""
    result: list[str] = []
    for folder in (sys / "bus" / "usb" / "devices" / location).glob("*/host*/target*/*/block"):
        result += _blocks(folder)
    return tuple(result)


def disk_in_use(blocks: Iterable[str], sys: Path = _SYS, proc: Path = _PROC) -> str:
    """Return what uses one of the disks or partitions `blocks`: a mount point, swap or a holder; "" for nothing."""
    blocks = tuple(blocks)
    numbers = {_text(sys / "class" / "block" / name / "dev"): name for name in blocks}
    for line in _text(proc / "self" / "mountinfo").splitlines():
        parts = line.split()
        if len(parts) > 4 and parts[2] in numbers:
            return f"{numbers[parts[2]]} is mounted at {parts[4]}"
    for line in _text(proc / "swaps").splitlines()[1:]:
        name = line.split()[0].rpartition("/")[2] if line.split() else ""
        if name in blocks:
            return f"{name} is swap space"
    for name in blocks:
        with contextlib.suppress(OSError):
            for holder in (sys / "class" / "block" / name / "holders").iterdir():
                return f"{name} is held by {holder.name}"
    return ""


def _usb_device(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        if _text(parent / "bcdDevice"):
            return parent
    return None


def _is_stick(device: Path) -> bool:
    vendor, product = _text(device / "idVendor"), _text(device / "idProduct")
    return vendor[:4] == f"{EUSB_VENDOR:04x}" and product[:4] == f"{EUSB_PRODUCT:04x}"


def _blocks(folder: Path) -> tuple[str, ...]:
    result: list[str] = []
    with contextlib.suppress(OSError):
        for disk in sorted(folder.iterdir()):
            result.append(disk.name)
            result += sorted(entry.name for entry in disk.iterdir() if entry.name.startswith(disk.name))
    return tuple(result)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
