"""The FT60x transport: what it does to the bridge, call by call, seen by a backend that writes everything down."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest
from golden import captures
from sticks import dat_bytes, images, lively_weights, open_model, stick, tiny_network

from gti.chip.emulator.emulator import Emulator
from gti.chip.usb import devices, usb_bus
from gti.chip.usb.devices import Selection, parse_device
from gti.chip.usb.link import Link
from gti.chip.usb.transport import (
    VIRTUAL_SETTINGS,
    DeviceInfo,
    Settings,
    TimeoutSlice,
    TransferError,
    move,
    parse_settings,
    select,
)
from gti.chip.virtual.sticks import virtual_backend
from gti.chip.wire.protocol import encode_frame, encode_load
from gti.errors import DeviceError, UsageError

FLUSH = struct.pack("<IBBHIII", 1, 0x82, 3, 0, 0, 0, 0)


def announced(length: int, pipe: int = 0x82) -> bytes:
    return struct.pack("<IBBHIII", 1, pipe, 1, 0, length, 0, 0)


class Recorder:
    """Writes down the transfers of a backend: ("out", endpoint, bytes), ("in", endpoint, length), control requests."""

    def __init__(self, backend: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.timeouts: list[int] = []
        write, read, control = backend.bulk_write, backend.bulk_read, backend.ctrl_transfer

        def bulk_write(handle, ep, intf, data, timeout):
            self.calls.append(("out", ep, data.tobytes()))
            self.timeouts.append(timeout)
            return write(handle, ep, intf, data, timeout)

        def bulk_read(handle, ep, intf, buff, timeout):
            self.calls.append(("in", ep, len(buff)))
            self.timeouts.append(timeout)
            return read(handle, ep, intf, buff, timeout)

        def ctrl_transfer(handle, kind, request, value, index, data, timeout):  # noqa: PLR0917
            if kind != 0x80:  # string descriptors are pyusb's own affair
                self.calls.append(("control", kind, request, value, index))
            self.timeouts.append(timeout)
            return control(handle, kind, request, value, index, data, timeout)

        backend.bulk_write, backend.bulk_read, backend.ctrl_transfer = bulk_write, bulk_read, ctrl_transfer

    def taken(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls

    def written(self, endpoint: int = 0x02) -> bytes:
        return b"".join(call[2] for call in self.taken() if call[:2] == ("out", endpoint))


def recorded(kind: str = "ft601", settings: Settings = VIRTUAL_SETTINGS, **chip: Any) -> tuple[Recorder, Any]:
    backend, transport = stick(kind, settings=settings, **chip)
    return Recorder(backend), transport


def test_opening_sequence():
    recorder, transport = recorded()
    transport.open()
    # docs/usb_protocol.md section 8: configuration, GPIO 0 and 1 as outputs, both high, flush, then what is left over.
    assert recorder.taken() == [
        ("control", 0xC0, 0xCF, 1, 0),
        ("control", 0x40, 0x02, 2, 0x0303),
        ("control", 0x40, 0x02, 1, 0x0303),
        ("out", 0x01, FLUSH),
        ("in", 0x82, 2048),
    ]


def test_opening_sequence_with_everything_off():
    recorder, transport = recorded(settings=VIRTUAL_SETTINGS.changed(gpio=False, flush="never", drain_ms=0))
    transport.open()
    assert recorder.taken() == [("control", 0xC0, 0xCF, 1, 0)]


def test_gpio_ends_high():
    backend, transport = stick("ft601")
    transport.open()
    device = backend.slots[0].device
    assert (device.gpio_direction, device.gpio_level) == (3, 3)


def test_settles_after_opening(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("gti.chip.usb.ft60x.time.sleep", pauses.append)
    recorded(settings=VIRTUAL_SETTINGS.changed(settle_ms=100))[1].open()
    assert pauses == [0.1]


def test_writes_are_cut_into_chunks_and_reads_announced():
    recorder, transport = recorded(chip_time_ms=0)
    transport.open()
    recorder.taken()
    transport.write(bytes(5000), "sending")
    assert [len(call[2]) for call in recorder.taken()] == [2048, 2048, 904]


def test_write_command_announces_every_write():
    recorder, transport = recorded(settings=VIRTUAL_SETTINGS.changed(write_command=True, write_chunk=4096))
    transport.open()
    recorder.taken()
    transport.write(bytes(5008), "sending")
    assert recorder.taken() == [
        ("out", 0x01, announced(4096, 0x02)),
        ("out", 0x02, bytes(4096)),
        ("out", 0x01, announced(912, 0x02)),
        ("out", 0x02, bytes(912)),
    ]


@pytest.mark.parametrize("kind", ["ft601", "ft600"])
def test_one_frame_call_by_call(kind: str):
    network = tiny_network()
    dat, image = dat_bytes(network), images(network, 1)[0].transpose(2, 0, 1)
    recorder, transport = recorded(kind, chip_time_ms=0)
    link = Link(transport, dat, 1, VIRTUAL_SETTINGS)
    link.prepare()
    assert recorder.written() == encode_load(dat, framing=transport.framing)
    for first in (True, False):
        link.start(link.encode(image, 0))
        sent = recorder.taken()
        assert sent[0] == ("out", 0x01, FLUSH)
        expected = encode_frame(dat, 0, image, first=first, framing=transport.framing)
        assert b"".join(call[2] for call in sent[1:]) == expected
        link.finish()
        # 16 maps of 64 bytes, one word each: 4096 bytes on an FT601, 2048 on an FT600.
        chunk = [("out", 0x01, announced(2048)), ("in", 0x82, 2048)]
        assert recorder.taken() == chunk * (2 if kind == "ft601" else 1)


@pytest.mark.parametrize("case", captures.cases("wire.json"), ids=lambda case: case["name"])
def test_captured_sessions_through_the_real_driver(case: dict[str, Any]):
    dat = captures.network(case)
    recorder, transport = recorded(case["framing"].lower(), chip_time_ms=0)
    link = Link(transport, dat, case["image"]["c"], VIRTUAL_SETTINGS)
    link.prepare()
    assert hashlib.sha256(recorder.written()).hexdigest() == case["load"]
    for number, frame in enumerate(case["frames"]):
        link.start(link.encode(captures.image(case, number), case["mode"]))
        assert hashlib.sha256(recorder.written()).hexdigest() == frame["write"]
        data = link.finish()
        assert len(data) * transport.framing.word_bytes == frame["read"]


def test_no_call_waits_longer_than_a_slice():
    # Ctrl-C is seen between calls to libusb: with 200 ms for each it is answered within a second in every phase.
    network = tiny_network()
    recorder, transport = recorded()
    link = Link(transport, dat_bytes(network), 1, VIRTUAL_SETTINGS)
    link.prepare()
    link.start(link.encode(images(network, 1)[0].transpose(2, 0, 1), 0))
    link.finish()
    string_descriptors = 1000  # pyusb's default, used while the bus is listed
    assert max(t for t in recorder.timeouts if t != string_descriptors) <= VIRTUAL_SETTINGS.slice_ms <= 500
    assert min(recorder.timeouts) >= 1  # 0 would wait for ever


def test_the_third_opening_in_a_row_resets_the_port():
    backend, transport = stick("ft601", chip_time_ms=0)
    device = backend.slots[0].device
    reset, resets = backend.reset_device, []
    backend.reset_device = lambda handle: (resets.append(device.gpio_level), reset(handle))[1]
    for count in (0, 0, 1, 2):
        transport.open()
        assert len(resets) == count
        assert device.gpio_level == 3  # the opening sequence follows the reset
    network = tiny_network()
    link = Link(transport, dat_bytes(network), 1, VIRTUAL_SETTINGS)
    link.prepare()
    link.start(link.encode(images(network, 1)[0].transpose(2, 0, 1), 0))
    link.finish()  # a complete result: what failed before is forgotten
    before = len(resets)
    transport.open()
    transport.open()
    assert len(resets) == before


def test_a_chip_that_only_a_reset_of_the_port_wakes(tmp_path: Path):
    network = tiny_network()
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(network))
    backend, model = open_model(path)
    device = backend.slots[0].device
    answer, wake = device.bulk_in, device.power_cycle

    def silent(endpoint: int, length: int, timeout: int) -> bytes:
        raise TimeoutError

    def power_cycle() -> None:
        device.bulk_in = answer
        wake()

    device.bulk_in, device.power_cycle = silent, power_cycle
    with model:
        codes = Emulator(network, lively_weights(network, 1)).output(images(network, 1))[0]
        assert (model.evaluate(images(network, 1)[0])[0].transpose(2, 0, 1) == codes).all()
        assert model.counts["recovered"] == 1


def test_wrong_mode_of_the_bridge_is_logged(caplog: pytest.LogCaptureFixture):
    backend, transport = stick("ft601")
    device = backend.slots[0].device
    good = device._configuration
    device._configuration = lambda: good()[:137] + b"\x01" + good()[138:]
    transport.open()
    assert "FIFO mode 1" in caplog.text


MOVES = [
    # (bytes moved by each call, or None for a time-out; total; positions seen)
    ([4, 4, 2], 10, [0, 4, 8]),
    ([1, 2, 4, 3], 10, [0, 1, 3, 7]),
    ([4, None, None, 4, None, 2], 10, [0, 4, 4, 4, 8, 8]),
    ([0, 0, 4], 4, [0, 0, 0]),
]


@pytest.mark.parametrize(("answers", "total", "positions"), MOVES)
def test_move_continues_short_transfers(answers: list[int | None], total: int, positions: list[int]):
    seen = []
    left = iter(answers)

    def transfer(position: int, timeout: int) -> int:
        seen.append(position)
        answer = next(left)
        if answer is None:
            raise TimeoutSlice
        return answer

    move(transfer, total, chunk=4, patience_ms=600, slice_ms=200, phase="sending")
    assert seen == positions


def test_move_gives_up_after_its_patience():
    timeouts = []

    def transfer(position: int, timeout: int) -> int:
        timeouts.append(timeout)
        raise TimeoutSlice

    with pytest.raises(TransferError, match="500 ms"):
        move(transfer, 10, chunk=4, patience_ms=500, slice_ms=200, phase="reading")
    assert timeouts == [200, 200, 100]


def test_move_refuses_more_than_asked():
    with pytest.raises(TransferError, match=r"\b5\b.*\b4\b"):
        move(lambda position, timeout: 5, 10, chunk=4, patience_ms=500, slice_ms=200, phase="reading")


DEVICES = [
    ("auto", Selection("auto")),
    ("usb", Selection("usb")),
    ("usb:00012345", Selection("usb", "00012345")),
    ("usb:1", Selection("usb", "1")),
    ("virtual", Selection("virtual")),
    ("virtual:ft600", Selection("virtual", "ft600")),
    ("eusb:/dev/sg2", Selection("eusb", "/dev/sg2")),
    (" USB:7 ", Selection("usb", "7")),
]


@pytest.mark.parametrize(("text", "selection"), DEVICES)
def test_device_texts(text: str, selection: Selection):
    assert parse_device(text) == selection


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--device"),
        ("gpu", "--device"),
        ("usb:", "--device"),
        ("auto:1", "--device"),
        ("virtual:pcie", "--device"),
        ("eusb", "--device eusb"),
    ],
)
def test_wrong_device_texts(text: str, words: str):
    with pytest.raises(UsageError, match=words):
        parse_device(text)


def info(index: int, serial: str) -> DeviceInfo:
    return DeviceInfo(index, "FT601", 0x0403, 0x601F, serial, f"1-{index}", index, 4)


def test_a_stick_is_picked_by_serial_before_index():
    sticks = [info(0, "1"), info(1, "0"), info(2, "A7")]
    assert select(sticks, "A7").index == 2
    assert select(sticks, "1").index == 0
    assert select(sticks, "2").index == 2
    assert select(sticks, "").index == 0
    with pytest.raises(DeviceError, match="0: FT601 serial 1, 1: FT601 serial 0, 2: FT601 serial A7"):
        select(sticks, "B")


def test_a_stick_is_found_again_by_serial_at_another_address():
    backend = virtual_backend("ft601", count=2)
    second = devices.list_sticks(backend)[1]
    backend.slots[1].leave(back=True)
    backend.slots.reverse()
    found = usb_bus.find_same(second, backend)
    assert found is not None
    assert found[0].serial == second.serial
    assert found[0].address != second.address


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"setle_ms": "1"}, "setle_ms"),
        ({"settle_ms": "soon"}, "a number"),
        ({"settle_ms": "-1"}, "settle_ms"),
        ({"settle_ms": "nan"}, "nan"),
        ({"write_chunk": "100"}, "write_chunk"),
        ({"gpio": "maybe"}, "true or false"),
        ({"flush": "always"}, "'frame' or 'open' or 'never'"),
        ({"slice_ms": "5000"}, "Ctrl-C"),
        ({"read_timeout_ms": "0"}, "read_timeout_ms"),
    ],
)
def test_impossible_settings(texts: dict[str, str], words: str):
    with pytest.raises(UsageError, match=words):
        parse_settings(texts)


def test_settings_from_text():
    settings = parse_settings({"settle_ms": "2.5", "gpio": "false", "retries": "1", "flush": "open"})
    assert settings == Settings(settle_ms=2.5, gpio=False, retries=1, flush="open")
