"""Every setting changes what the stick sees or what the user gets: one observation for each field of `Settings`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sticks import dat_bytes, images, lively_weights, open_model, stick, tiny_network

from gti.chip.emulator.behaviours import parse
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.network import file_size
from gti.chip.usb import eusb, eusb_disks, eusb_sticks, ft60x, scsi_sg, transport, usb_bus
from gti.chip.usb.checks import ResultChecks
from gti.chip.usb.eusb_disks import SgNode
from gti.chip.usb.link import Frame, Link
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings, TransferError
from gti.chip.virtual.faults import Fault
from gti.chip.wire import protocol
from gti.errors import DeviceError

NETWORK = tiny_network()
IMAGE = images(NETWORK, 1)[0]
_NODE_FILE = tempfile.NamedTemporaryFile()  # noqa: SIM115  # its own: nodes are locked
NODE = SgNode(_NODE_FILE.name, "X", "480", "1-2", ())


class Place(SimpleNamespace):
    """What an observation may use: a folder and pytest's way of replacing things for one test."""

    folder: Path
    patch: pytest.MonkeyPatch

    def model(self, settings: Settings, *faults: Fault, network: Any = NETWORK) -> Any:
        path = self.folder / "net.dat"
        path.write_bytes(dat_bytes(network))
        return open_model(path, "ft601", faults, settings=settings)[1]


def calls_of(backend: Any) -> list[tuple[Any, ...]]:
    """Return a list that fills with ("out", endpoint, bytes, time-out) and ("in", endpoint, length, time-out)."""
    calls: list[tuple[Any, ...]] = []
    write, read = backend.bulk_write, backend.bulk_read

    def bulk_write(handle: Any, ep: int, intf: int, data: Any, timeout: int) -> int:
        calls.append(("out", ep, data.tobytes(), timeout))
        return write(handle, ep, intf, data, timeout)

    def bulk_read(handle: Any, ep: int, intf: int, buff: Any, timeout: int) -> int:
        calls.append(("in", ep, len(buff), timeout))
        return read(handle, ep, intf, buff, timeout)

    backend.bulk_write, backend.bulk_read = bulk_write, bulk_read
    return calls


def opened(settings: Settings, **chip: Any) -> tuple[list[tuple[Any, ...]], Any]:
    """Return the calls after opening, and the open transport."""
    backend, way = stick("ft601", settings=settings, **chip)
    way.open()
    return calls_of(backend), way


# Opening


def settling(settings: Settings, place: Place) -> list[float]:
    pauses: list[float] = []
    place.patch.setattr(ft60x, "time", SimpleNamespace(sleep=pauses.append))
    stick("ft601", settings=settings)[1].open()
    _, way = stick("eusb", settings=settings)
    way._sleep = pauses.append
    way.open()
    return [pauses[0], pauses[-1]]


def gpio(settings: Settings, place: Place) -> tuple[int, int]:
    backend, way = stick("ft601", settings=settings)
    way.open()
    device = backend.slots[0].device
    return device.gpio_direction, device.gpio_level


def gpio_index(settings: Settings, place: Place) -> set[int]:
    # Mask and level are equal on the stick, so the order of the bytes shows with another level only.
    place.patch.setattr(ft60x, "GPIO_LEVEL", 1)
    backend, way = stick("ft601", settings=settings)
    seen: set[int] = set()
    control = backend.slots[0].device.control_out
    backend.slots[0].device.control_out = lambda request, value, index, data: (
        seen.add(index),
        control(request, value, index, data),
    )[1]
    way.open()
    return seen


def flushes(settings: Settings, place: Place) -> list[int]:
    """How often the result pipe is flushed at opening and at each of two frames."""
    backend, way = stick("ft601", settings=settings)
    calls, counts = calls_of(backend), []
    for step in (way.open, way.start_frame, way.start_frame):
        calls.clear()
        step()
        counts.append(sum(call[1] == ft60x.EP_SESSION and call[2][5] == ft60x.COMMAND_FLUSH for call in calls))
    return counts


def draining(settings: Settings, place: Place) -> list[int]:
    backend, way = stick("ft601", settings=settings)
    calls = calls_of(backend)
    way.open()
    return [call[3] for call in calls if call[0] == "in"]


# Transfers


def written(settings: Settings, place: Place) -> list[tuple[str, int]]:
    calls, way = opened(settings)
    way.write(bytes(5008), "sending")
    return [("word" if call[1] == ft60x.EP_OUT else "command", len(call[2])) for call in calls]


def read(settings: Settings, place: Place) -> list[int]:
    link = Link(stick("ft601", settings=settings, chip_time_ms=0)[1], dat_bytes(NETWORK), 1, settings)
    link.prepare()
    link.start(link.encode(IMAGE.transpose(2, 0, 1), 0))
    lengths: list[int] = []
    way = link.transport
    session = way._session
    way._session = lambda command, length, *more: (lengths.append(length), session(command, length, *more))[1]
    link.finish()
    return lengths


def longest(settings: Settings, place: Place) -> int:
    calls, way = opened(settings)
    way.write(bytes(4096), "sending")
    return max(call[3] for call in calls)


def write_patience(settings: Settings, place: Place) -> int:
    backend, way = stick("ft601", (Fault("write", 0, "timeout", count=1000),), settings)
    calls = calls_of(backend)
    way.open()
    calls.clear()
    with pytest.raises(TransferError):
        way.write(bytes(64), "sending")
    return sum(call[3] for call in calls)


def read_patience(settings: Settings, place: Place) -> int:
    calls, way = opened(settings)
    with pytest.raises(TransferError):
        way.read(2048)  # nothing was sent, so nothing comes
    return sum(call[3] for call in calls if call[0] == "in")


# eUSB


def eusb_pause(settings: Settings, place: Place) -> list[float]:
    pauses: list[float] = []
    place.patch.setattr(eusb, "time", SimpleNamespace(monotonic=lambda: 7.0, sleep=pauses.append))
    _, way = stick("eusb", settings=settings)
    way._sleep = pauses.append
    way.open()
    pauses.clear()
    way.write(bytes(2048), "sending")
    way._guarded = lambda *arguments: bytes(4096)
    way.read(4096)
    return pauses


def eusb_commands(settings: Settings, place: Place) -> list[int]:
    _, way = stick("eusb", settings=settings)
    way.open()
    blocks: list[int] = []
    way._channel = SimpleNamespace(
        high_speed=True, command=lambda cdb, **options: blocks.append(int.from_bytes(cdb[7:9], "big"))
    )
    way.write(bytes(2048 * 40), "loading")
    return blocks


def eusb_channel(settings: Settings, place: Place, nodes: tuple[SgNode, ...] = (NODE,)) -> str:
    """Which way leads to the stick X, which is on the bus, and has an sg node."""
    place.patch.setenv("GTI_LOCK_DIR", str(place.folder))
    place.patch.setattr(eusb_disks, "list_nodes", lambda: list(nodes))
    place.patch.setattr(usb_bus, "list_devices", lambda ids, backend: [SimpleNamespace(serial="X", name="X", speed=3)])
    try:
        way, lock = eusb_sticks.find_transport("X", settings)
    except DeviceError:
        return "none"
    lock.release()
    return type(way._channel).__name__


def eusb_channel_without_node(settings: Settings, place: Place) -> str:
    """The same for a stick without an sg node, as on other systems than Linux."""
    return eusb_channel(settings, place, ())


def eusb_timeouts(settings: Settings, place: Place) -> int:
    seen: set[int] = set()
    channel = scsi_sg.SgChannel(NODE, settings, lambda descriptor, request, header: seen.add(header.timeout))
    channel.open()
    channel.command(eusb.RESET, phase="opening")
    channel.close()
    (timeout,) = seen
    return timeout


def eusb_bulk_patience(settings: Settings, place: Place) -> int:
    backend, way = stick("eusb", settings=settings)
    way.open()
    calls = calls_of(backend)

    def silent(endpoint: int, length: int, timeout: int) -> bytes:
        raise TimeoutError

    backend.slots[0].device.bulk_in = silent
    with pytest.raises(TransferError):
        way._channel.command(eusb.transfer(eusb.READ_10, 1), length=512, phase="reading")
    return sum(call[3] for call in calls if call[0] == "in") // 1000


def eusb_status(settings: Settings, place: Place) -> str:
    def kernel(descriptor: int, request: int, header: Any) -> None:
        header.status = 2

    channel = scsi_sg.SgChannel(NODE, settings, kernel)
    channel.open()
    try:
        channel.command(eusb.RESET, phase="opening")
    except TransferError:
        return "refused"
    finally:
        channel.close()
    return "taken"


# Recovery


def attempts(settings: Settings, place: Place) -> int:
    with place.model(settings, Fault("read", 1, "timeout", count=10_000)) as model:
        with pytest.raises(DeviceError):
            model.evaluate(IMAGE)
        return model.counts["faults"]


def attempts_of_sending(settings: Settings, place: Place) -> int:
    # The load takes writes 0 to 67; what fails when a frame is started was its first attempt.
    with place.model(settings, Fault("write", 68, "io", count=10_000)) as model:
        with pytest.raises(DeviceError):
            model.evaluate(IMAGE)
        return model.counts["faults"]


def waiting_for_the_stick(settings: Settings, place: Place) -> float:
    """Milliseconds until a stick that has gone is given up."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    place.patch.setattr(transport, "time", clock)
    backend, way = stick("ft601", settings=settings)
    backend.slots[0].present = False
    with pytest.raises(TransferError):
        way.open()
    return round(now[0] * 1000)


def loads(settings: Settings, place: Place) -> int:
    with place.model(settings) as model:
        for mode in ("fc", "single", "fc"):
            model.layer_outputs(IMAGE, mode)
        return model.counts["loads"]


# Trust in results


def faults_of(settings: Settings, place: Place, *planned: Fault) -> int:
    with place.model(settings, *planned) as model:
        model.evaluate(IMAGE)
        return model.counts.get("faults", 0)


def constant(settings: Settings, place: Place) -> int:
    return faults_of(settings, place, Fault("read", 0, "zeros"))


def changed_once(model: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let the next result of the stick reach the driver changed."""
    way = model._opened().transport
    read = way.read

    def wrong(length: int) -> bytes:
        way.read = read
        return change(np.frombuffer(read(length), np.uint8)).tobytes()

    way.read = wrong


def low_bits(settings: Settings, place: Place) -> list[int]:
    """Faults found when one of the three low bits is set in a result, for each of them."""
    found = []
    for bit in (1, 2, 4):
        with place.model(settings) as model:
            changed_once(model, lambda data, bit=bit: data | np.uint8(bit))  # type: ignore[misc]
            model.evaluate(IMAGE)
            found.append(model.counts.get("faults", 0))
    return found


def compared(settings: Settings, place: Place) -> tuple[int, bool]:
    """Faults found, and whether the result is right, when one result is another that could be true."""
    with place.model(settings) as model:
        right = model.evaluate(IMAGE)
        assert len(np.unique(right)) > 5  # a constant would be found by another check
        # Codes 31 - c are as good as any others: multiples of 8, not constant.
        changed_once(model, lambda data: np.where(data, 0xF8 - data, 0).astype(np.uint8))
        same = np.array_equal(model.evaluate(IMAGE), right)
        return model.counts.get("faults", 0), same


def end_of_result(settings: Settings, place: Place) -> int:
    return faults_of(settings, place, Fault("read", 1, "extra", amount=2048))


def ten_bit(settings: Settings, place: Place) -> str:
    """How a ten-bit result is read that the stick sends as two halves."""
    network = tiny_network(activation_bit_mode=1)
    path = place.folder / "ten.dat"
    path.write_bytes(dat_bytes(network))
    image = images(network, 1)[0]
    try:
        _, model = open_model(path, settings=settings, chip={"ten_bit_layout": "halves"})
    except DeviceError:
        return "refused"
    codes = Emulator(network, lively_weights(network, 1)).output(image[None])[0]
    with model:
        return "right" if np.array_equal(model.layer_outputs(image, "fc")[0], codes) else "otherwise"


def twin(settings: Settings, place: Place) -> bool:
    """Whether a dead result passes for what the emulator computes: a chip that ends at 30 where ours ends at 31."""
    network = tiny_network()
    bright = [replace(one, biases=np.full(16, 20_000, np.int32)) for one in lively_weights(network, 1)]
    path = place.folder / "bright.dat"
    path.write_bytes(dat.encode(network, bright, length=92 + 192 * file_size.row_count(network)))
    chip = {"behaviours": parse("saturation=below_top")}
    with open_model(path, settings=settings.changed(retries=0), chip=chip)[1] as model:
        link = model._opened()
        frame = link.encode(np.full((1, 14, 14), 255, np.uint8), model.mode)
        try:
            link.start(frame)
            # FC tiles have unused bytes of zero behind the values.
            link._check(frame, bytes([30 << 3]) * len(link.finish()))
        except DeviceError:
            return False
        return True


Observation = Callable[[Settings, Place], Any]
GPIO_ON = (3, 3)

# field: (what is looked at, {value: what is seen}); values by docs/device.md and the field's comment.
OBSERVED: dict[str, list[tuple[Observation, dict[Any, Any]]]] = {
    "settle_ms": [(settling, {0.0: [0.0, 0.0], 70.0: [0.07, 0.07]})],
    "gpio": [(gpio, {True: GPIO_ON, False: (0, 0)})],
    "gpio_level_high_byte": [(gpio_index, {True: {0x0103}, False: {0x0301}})],
    "flush": [(flushes, {"frame": [1, 1, 1], "open": [1, 0, 0], "never": [0, 0, 0]})],
    "drain_ms": [(draining, {0.0: [], 10.0: [10], 70.0: [70]})],
    "write_chunk": [(written, {2048: [("word", 2048), ("word", 2048), ("word", 912)], 8192: [("word", 5008)]})],
    "read_chunk": [(read, {2048: [2048, 2048], 1024: [1024] * 4})],
    "write_command": [
        (written, {
            False: [("word", 2048), ("word", 2048), ("word", 912)],
            True: [("command", 20), ("word", 2048)] * 2 + [("command", 20), ("word", 912)],
        })
    ],
    "slice_ms": [(longest, {200: 200, 30: 30})],
    "write_timeout_ms": [(write_patience, {1000.0: 1000, 350.0: 350})],
    "read_timeout_ms": [(read_patience, {1000.0: 1000, 350.0: 350})],
    "eusb_delay_us": [(eusb_pause, {0.0: [], 12000.0: [0.012], 500.0: [0.0005]})],
    "eusb_blocks": [(eusb_commands, {0: [128, 32], 64: [64, 64, 32]})],
    "eusb_path": [
        (eusb_channel, {"auto": "SgChannel", "sg": "SgChannel", "bot": "BulkChannel"}),
        (eusb_channel_without_node, {"auto": "BulkChannel", "sg": "none", "bot": "BulkChannel"}),
    ],
    "eusb_command_timeout_ms": [
        (eusb_timeouts, {7000.0: 7000, 900.0: 900}),
        (eusb_bulk_patience, {7000.0: 7, 2000.0: 2}),
    ],
    "eusb_check_status": [(eusb_status, {True: "refused", False: "taken"})],
    "retries": [(attempts, {0: 1, 2: 3, 3: 4}), (attempts_of_sending, {0: 1, 2: 3, 3: 4})],
    "reappear_ms": [(waiting_for_the_stick, {0.0: 0, 250.0: 250, 5000.0: 5000})],
    "reload_on_mode_change": [(loads, {True: 3, False: 1})],
    "check_constant": [(constant, {True: 1, False: 0})],
    "check_low_bits": [(low_bits, {True: [1, 1, 1], False: [0, 0, 0]})],
    "check_end_ms": [(end_of_result, {0.0: 0, 1.0: 1})],
    "compare_twice": [(compared, {True: (1, True), False: (0, False)})],
    "behaviours": [(twin, {"": False, "saturation=below_top": True})],
    "ten_bit_layout": [(ten_bit, {"": "refused", "halves": "right", "pairs": "otherwise"})],
}  # fmt: skip
CASES = [
    pytest.param(name, value, look, seen, id=f"{name}={value}-{look.__name__}")
    for name, looks in OBSERVED.items()
    for look, table in looks
    for value, seen in table.items()
]


def test_a_constant_result_that_the_emulator_cannot_judge_passes_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unknown(frame: Frame) -> bytes:
        raise DeviceError("nobody knows this arithmetic")

    header = protocol.Header.parse(dat_bytes(NETWORK))
    check = ResultChecks(header, VIRTUAL_SETTINGS, unknown, "a stick")
    frame = Frame(IMAGE.transpose(2, 0, 1), 0, b"")
    for _ in range(2):
        check(frame, bytes(protocol.read_length(header, 0)))
    assert caplog.text.count("nobody knows this arithmetic") == 1  # once, not for every frame


@pytest.mark.parametrize(("name", "value", "look", "seen"), CASES)
def test_what_a_setting_does(name: str, value: Any, look: Observation, seen: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert look(VIRTUAL_SETTINGS.changed(**{name: value}), Place(folder=tmp_path, patch=patch)) == seen


def test_every_setting_is_looked_at() -> None:
    assert set(OBSERVED) == {field.name for field in fields(Settings)}
    assert all(len(set(map(str, table.values()))) > 1 for looks in OBSERVED.values() for _, table in looks)
