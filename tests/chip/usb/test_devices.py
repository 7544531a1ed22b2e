"""The table of back ends: every row opens sticks in the same way; a new one needs nothing beside its row."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest

from gti.chip.usb import devices
from gti.chip.usb.devices import BACK_ENDS, BackEnd, Selection
from gti.chip.usb.transport import Request, Settings, Stick
from gti.errors import UsageError


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_every_back_end_has_what_is_asked_of_one(kind: str):
    module = devices.back_end(kind)
    assert kind in module.FORM
    for name in ("takes", "open_stick"):
        wanted = list(inspect.signature(getattr(BackEnd, name)).parameters)[1:]
        assert list(inspect.signature(getattr(module, name)).parameters) == wanted


def test_a_new_transport_is_a_module_and_a_row(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("carrier_pigeon")
    module.FORM = "pigeon:<ring>"  # type: ignore[attr-defined]
    module.takes = lambda key: key.isdecimal()  # type: ignore[attr-defined]
    module.open_stick = lambda key, request: Stick(None, request.settings, f"pigeon {key}")  # type: ignore
    monkeypatch.setitem(sys.modules, "carrier_pigeon", module)
    monkeypatch.setitem(BACK_ENDS, "pigeon", "carrier_pigeon")
    assert devices.parse_device("pigeon:7") == Selection("pigeon", "7")
    with pytest.raises(UsageError, match=r"pigeon:<ring>"):
        devices.parse_device("pigeon:seven")
    request = Request(Settings())
    stick, started = devices.connect("pigeon:7", request, lambda stick, prove: (stick.description, prove))
    assert started == ("pigeon 7", False)
    assert stick.settings is request.settings


def test_what_a_stick_holds_is_given_back_when_it_does_not_start(monkeypatch: pytest.MonkeyPatch):
    released = []
    module = ModuleType("held")

    def open_stick(key: str, request: Request) -> Stick:
        stick = Stick(None, Settings(), "held")  # type: ignore[arg-type]
        stick.held.callback(released.append, key)
        return stick

    module.open_stick, module.takes = open_stick, lambda key: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "held", module)
    monkeypatch.setitem(BACK_ENDS, "held", "held")

    def start(stick: Stick, prove: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        devices.connect("held:1", Request(), start)
    assert released == ["1"]
