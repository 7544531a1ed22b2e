"""Sticks in software that behave otherwise than assumed: played through bus, bridge and chip, named in --device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sticks import dat_bytes, images, lively_weights, open_model, small_network, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.emulator.behaviours import ASSUMED, TABLE, Behaviours, parse
from gti.chip.emulator.emulator import Emulator
from gti.chip.usb import devices
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings
from gti.chip.virtual.sticks import parts
from gti.errors import DeviceError, UsageError

CHIP = "rounding=floor,saturation=wrap,borders=replicated,one_bit_sign=minus,pooling=average,bias=after_shift"
# Settings with which a stick answers in time, and fails at once where it does not.
QUICK = VIRTUAL_SETTINGS.changed(retries=0, read_timeout_ms=1.0, check_constant=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.dat"
    file.write_bytes(dat_bytes(small_network()))
    return file


@pytest.mark.parametrize("kind", ["ft601", "ft600", "eusb"])
def test_maps_over_the_wire_are_those_of_the_emulator(path: Path, kind: str):
    network, image = small_network(), images(small_network(), 1)[0]
    chosen = parse(CHIP + ",learn_maps=after,sublast_maps=after_packed")
    emulator = Emulator(network, lively_weights(network, 1), behaviours=chosen)
    with open_model(path, kind, chip={"behaviours": chosen})[1] as model:
        for mode in ("fc", "learn", "single", "sublast", "lastmajor"):
            found, expected = model.layer_outputs(image, mode), emulator.read_out(image, mode)
            assert len(found) == len(expected)
            assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True)), mode


def test_device_text(path: Path):
    image = images(small_network(), 1)[0]
    with GtiModel(path, "virtual:ft600,rounding=floor") as model:
        assert "rounding=floor" in model.device_description
        floor = model.evaluate(image)
    with GtiModel(path, "virtual", settings=VIRTUAL_SETTINGS.changed(behaviours="rounding=floor")) as model:
        assert np.array_equal(model.evaluate(image), floor)
    with GtiModel(path, "virtual") as model:
        assert not np.array_equal(model.evaluate(image), floor)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("", ("ft601", "")),
        ("eusb", ("eusb", "")),
        ("FT600,rounding=floor", ("ft600", "rounding=floor")),
        ("rounding=floor,bias=full", ("ft601", "rounding=floor")),
    ],
)
def test_keys(key: str, expected: tuple[str, str]):
    kind, chosen = parts(key)
    assert (kind, chosen.text) == expected


@pytest.mark.parametrize(
    "device",
    ["virtual:rounding=up", "virtual:rounding=floor,rounding=truncate", "virtual:ft602", "virtual:ft600,floor"],
)
def test_devices_that_are_not_there(device: str):
    with pytest.raises(UsageError):
        devices.parse_device(device)


def test_a_recording_knows_what_it_recorded(path: Path, tmp_path: Path):
    record = tmp_path / "session.gz"
    image = images(small_network(), 1)[0]
    with GtiModel(path, "virtual:ft600,rounding=floor", record=record) as model:
        expected = model.evaluate(image)
    with GtiModel(path, f"replay:{record}") as model:
        assert np.array_equal(model.evaluate(image), expected)


# (behaviours of the bridge, settings with which it answers, settings with which it does not)
BRIDGES: list[tuple[str, Settings, Settings]] = [
    ("gpio=high", QUICK, QUICK.changed(gpio=False)),
    ("gpio=untouched", QUICK.changed(gpio=False), QUICK),
    ("write_command=needed", QUICK.changed(write_command=True), QUICK),
    ("chunks=2048", QUICK, QUICK.changed(write_chunk=4096)),
    ("chunks=512", QUICK.changed(write_chunk=512), QUICK),
    ("settle=short", QUICK.changed(settle_ms=100), QUICK),
    ("settle=long", QUICK.changed(settle_ms=600), QUICK.changed(settle_ms=100)),
    ("end_of_result=padded", QUICK, QUICK.changed(check_end_ms=5)),
]


def answers(path: Path, behaviours: Behaviours, settings: Settings) -> bool:
    """Return whether a stick gives the right codes."""
    image = images(tiny_network(), 1)[0]
    expected = Emulator(tiny_network(), lively_weights(tiny_network(), 1)).output(image[None])[0].transpose(1, 2, 0)
    try:
        with open_model(path, "ft601", settings=settings, chip={"behaviours": behaviours})[1] as model:
            return np.array_equal(model.evaluate(image)[0], expected)
    except DeviceError:
        return False


@pytest.mark.parametrize(("text", "good", "bad"), BRIDGES)
def test_what_a_bridge_asks_of_the_driver(tmp_path: Path, text: str, good: Settings, bad: Settings):
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(tiny_network()))
    assert answers(path, parse(text), good)
    assert not answers(path, parse(text), bad)
    assert answers(path, ASSUMED, good)
    assert answers(path, ASSUMED, bad)


def test_every_alternative_of_the_bridge_is_tried():
    tried = {tuple(text.split("=")) for text, _, _ in BRIDGES}
    asked = ("gpio", "write_command", "chunks", "settle", "end_of_result")
    assert tried == {(name, other) for name in asked for other in TABLE[name].names[1:]}


def test_short_loads(tmp_path: Path):
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(tiny_network()))
    assert not answers(path, parse("load_length=full"), QUICK)
    path.write_bytes(dat_bytes(tiny_network()).ljust(5 << 20, b"\0"))
    assert answers(path, parse("load_length=full"), QUICK)


def test_rows_beyond_the_filter_memory_are_lost(monkeypatch: pytest.MonkeyPatch, path: Path):
    # 96 rows for 3 -> 16 and 16 -> 16 with 3 bits... the memory ends before the last major layer's.
    question = TABLE["filter_memory"]
    small = tuple(one._replace(value=16) if one.name == "28672" else one for one in question.alternatives)
    monkeypatch.setitem(TABLE, "filter_memory", question._replace(alternatives=small))
    image = images(small_network(), 1)[0]
    chip: dict[str, Any] = {"behaviours": parse("filter_memory=28672")}
    with open_model(path, "ft601", settings=QUICK, chip=chip)[1] as model:
        found = model.layer_outputs(image, "learn")
    whole = Emulator(small_network(), lively_weights(small_network(), 1)).read_out(image, "learn")
    assert [np.array_equal(one, other) for one, other in zip(found, whole, strict=True)] == [True, True, False]
    assert not found[2].any()
