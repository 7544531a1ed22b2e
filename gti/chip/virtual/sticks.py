"""Back end of the sticks in software: a pyusb backend with one or several of them, and a transport on it."""

from __future__ import annotations

import importlib.util
import os
from contextlib import ExitStack
from typing import Any

from gti.chip.emulator.behaviours import ASSUMED, Behaviours, parse
from gti.chip.usb import devices, usb_bus
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Request, Settings, Stick, Transport
from gti.chip.wire import protocol

KINDS = ("ft601", "ft600", "eusb")
FORM = "virtual[:ft600, :eusb][,QUESTION=ALTERNATIVE...]"
# Bytes of a transfer, where no settings are given: Python's part of each takes longer than moving the bytes.
_WHOLE_FRAMES = 1 << 16


def takes(key: str) -> bool:
    """Return whether `key` is a kind of stick, with or without behaviours; UsageError for those not in the table."""
    return parts(key)[0] in KINDS


def parts(key: str) -> tuple[str, Behaviours]:
    """Return the kind of stick and the behaviours of a key such as `ft600,rounding=floor`. Raises UsageError."""
    kind, _, rest = key.partition(",")
    if "=" in kind:
        kind, rest = "", key
    return kind.strip().lower() or KINDS[0], parse(rest)


def open_stick(key: str, request: Request) -> Stick:
    """Return a new stick in software; `key`: see `parts`. Behaviours of the settings are those of this stick too."""
    kind, behaviours = parts(key)
    settings = request.settings or _settings(behaviours)
    behaviours = behaviours if behaviours != ASSUMED else parse(settings.behaviours)
    settings = settings.changed(behaviours=behaviours.of_the_chip.text)
    with ExitStack() as held:
        backend = virtual_backend(kind, upsample_modes=request.upsample_modes, behaviours=behaviours)
        if request.record is not None:
            from gti.chip.usb.trace import recorded

            backend = recorded(backend, request.record, f"virtual:{key or KINDS[0]}", settings, held)
        transport = devices.transport_on(backend, kind, settings)
        engine = emulator_engine() if behaviours.of_the_chip == ASSUMED else f"numpy, {behaviours.text}"
        return Stick(transport, settings, f"virtual stick (emulator, {engine})", held.pop_all())


def _settings(behaviours: Behaviours) -> Settings:
    if behaviours["chunks"] != ASSUMED["chunks"]:
        return VIRTUAL_SETTINGS
    return VIRTUAL_SETTINGS.changed(write_chunk=_WHOLE_FRAMES, read_chunk=_WHOLE_FRAMES)


def emulator_engine() -> str:
    """Return which engine the emulator will use, without loading it."""
    disabled = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
    return "numba" if importlib.util.find_spec("numba") is not None and not disabled else "numpy"


def virtual_transport(key: str, settings: Settings = VIRTUAL_SETTINGS, **chip_options: Any) -> Transport:
    """Return the transport of a new stick in software of the kind `key`, "" for ft601; options as `virtual_backend`."""
    kind = key.lower() or KINDS[0]
    return devices.transport_on(virtual_backend(kind, **chip_options), kind, settings)


def virtual_backend(kind: str = KINDS[0], count: int = 1, plans: Any = None, **chip_options: Any) -> Any:
    """Return a pyusb backend with `count` sticks in software of one kind: ft601, ft600 or eusb.

    `plans`: a fault plan for each. `chip_options` are those of `chip.VirtualChip`: chip_time_ms, engine,
    ten_bit_layout, upsample_modes, behaviours.
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
