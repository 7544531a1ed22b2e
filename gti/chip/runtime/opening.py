"""The quickest way to a network's answers on this machine: a stick, or the emulator without USB."""

from __future__ import annotations

import os

from gti.chip.driver import GtiModel
from gti.chip.runtime.contract import LayeredModel
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.usb import devices
from gti.errors import DeviceError

EMULATOR = "emulator"  # a --device beside those of `GtiModel`


def open_stick_or_emulator(path: str | os.PathLike[str], device: str = "auto", mode: str = "fc") -> LayeredModel:
    """Return a model of the file `path` on a stick in read-out `mode`, or on the emulator.

    The emulator serves for the device "emulator", and for "auto" where no stick is plugged in. Raises FormatError for
    the file, DeviceError when the stick cannot be had.
    """
    if device == EMULATOR or (device == "auto" and not _stick_is_there()):
        return EngineModel(path)
    return GtiModel(path, device, mode=mode)


def _stick_is_there() -> bool:
    try:
        return bool(devices.list_sticks())
    except DeviceError:  # no libusb: then there is no way to a stick either
        return False
