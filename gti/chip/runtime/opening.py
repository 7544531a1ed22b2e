"""The quickest way to a network's answers on this machine: a stick, or the emulator without USB."""

from __future__ import annotations

import os
from pathlib import Path

from gti.chip.driver import GtiModel
from gti.chip.emulator.behaviours import ASSUMED, parse
from gti.chip.loaded_model import load_model
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.usb.devices import AUTO, NoStickError, parse_device
from gti.chip.usb.transport import Settings
from gti.errors import UsageError

EMULATOR = "emulator"  # a --device beside those of `GtiModel`


def open_stick_or_emulator(
    path: str | os.PathLike[str],
    device: str = AUTO,
    mode: str | int | None = "fc",
    *,
    settings: Settings | None = None,
    record: str | os.PathLike[str] | None = None,
) -> GtiModel | EngineModel:
    """Return a model of the file `path` on a stick in read-out `mode` (None: that of the file), or on the emulator.

    The emulator serves for the device "emulator", and for "auto" where no stick answers: its description says why.
    `settings` and `record` concern sticks, as in `GtiModel`; the emulator has the behaviours of settings too. Raises
    FormatError for the file, UsageError for wrong arguments, DeviceError when the stick cannot be had.
    """
    behaviours = parse(settings.behaviours) if settings is not None else ASSUMED
    if device == EMULATOR:
        if record is not None:
            raise UsageError("--record", "writes what a stick does", received=f"--device {EMULATOR}")
        return EngineModel(path, behaviours=behaviours)
    # A recording is one of the USB path: the stick in software has it too.
    software = record is not None or parse_device(device, EMULATOR).kind != AUTO
    loaded = load_model(Path(path))
    try:
        return GtiModel(loaded, device, mode=mode, settings=settings, record=record, software=software)
    except NoStickError as problem:
        return EngineModel(path, reason=str(problem), behaviours=behaviours)
