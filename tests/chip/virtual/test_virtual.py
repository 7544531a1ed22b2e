"""The sticks in software: descriptors, rules of the bus and the bridge, the chip behind it."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import usb.core
from sticks import KINDS, dat_bytes, images, lively_weights, open_model, stick, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import MajorLayer, Network
from gti.chip.usb.transport import VIRTUAL_SETTINGS
from gti.chip.virtual.chip import VirtualChip
from gti.chip.virtual.faults import Fault
from gti.chip.virtual.sticks import virtual_backend
from gti.chip.wire.protocol import FT601, encode_frame, encode_load
from gti.chip.wire.registers import MODE_NAMES
from gti.chip.wire.ten_bit import join_codes, split_codes
from gti.errors import DeviceError, NetworkError

# (kind, vendor, product, packet, endpoints of each interface): docs/usb_protocol.md section 8, docs/eusb_protocol.md
# section 10
DESCRIPTORS = [
    ("ft601", 0x0403, 0x601F, 1024, [[0x01, 0x81], [0x02, 0x82]]),
    ("ft600", 0x0403, 0x601E, 512, [[0x01, 0x81], [0x02, 0x82]]),
    ("eusb", 0x05E3, 0x0769, 512, [[0x02, 0x81]]),
]


@pytest.mark.parametrize(("kind", "vendor", "product", "packet", "endpoints"), DESCRIPTORS)
def test_descriptors(kind: str, vendor: int, product: int, packet: int, endpoints: list[list[int]]):
    device = usb.core.find(backend=virtual_backend(kind), idVendor=vendor, idProduct=product)
    assert device is not None
    assert device.serial_number == "VIRTUAL0001"
    interfaces = list(device.get_active_configuration())
    assert [[endpoint.bEndpointAddress for endpoint in interface] for interface in interfaces] == endpoints
    assert all(endpoint.wMaxPacketSize == packet for interface in interfaces for endpoint in interface)
    assert str(device)  # pyusb's own listing, which reads every descriptor


def opened(kind: str = "ft601") -> usb.core.Device:
    return usb.core.find(backend=virtual_backend(kind, chip_time_ms=0))


def test_a_claimed_interface_is_busy_for_others():
    backend = virtual_backend("ft601")
    first, second = (next(iter(usb.core.find(find_all=True, backend=backend))) for _ in range(2))
    usb.util.claim_interface(first, 1)
    with pytest.raises(usb.core.USBError) as caught:
        usb.util.claim_interface(second, 1)
    assert caught.value.errno == errno.EBUSY
    usb.util.dispose_resources(first)
    usb.util.claim_interface(second, 1)


def test_a_read_that_was_not_announced_times_out():
    with pytest.raises(usb.core.USBTimeoutError):
        opened().read(0x82, 2048, 10)


def test_unknown_requests_stall():
    with pytest.raises(usb.core.USBError) as caught:
        opened().ctrl_transfer(0xC0, 0x55, 0, 0, 8)
    assert caught.value.errno == errno.EPIPE


def test_a_stalled_endpoint_stays_stalled_until_it_is_cleared():
    backend, _ = stick("ft601", (Fault("write", 0, "stall"),))
    device = usb.core.find(backend=backend)
    for _ in range(2):
        with pytest.raises(usb.core.USBError) as caught:
            device.write(0x02, bytes(16), 10)
        assert caught.value.errno == errno.EPIPE
    device.clear_halt(0x02)
    assert device.write(0x02, bytes(16), 10) == 16


def test_a_handle_dies_with_the_address():
    backend = virtual_backend("ft601")
    device = usb.core.find(backend=backend)
    device.write(0x02, bytes(16), 10)
    backend.slots[0].leave(back=True)
    with pytest.raises(usb.core.USBError) as caught:
        device.write(0x02, bytes(16), 10)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODE_NAMES)
def test_every_mode_equals_the_emulator(kind: str, mode: str, tmp_path):
    # Two sublayers in the last major layer, so that no two modes deliver the same maps.
    layers = MajorLayer(28, 3, 16, 2, 3, (6, 6), pooling=True), MajorLayer(14, 16, 32, 2, 1, (5, 5), pooling=True)
    network = Network(layers)
    path = tmp_path / "small.dat"
    path.write_bytes(dat_bytes(network))
    emulator = Emulator(network, lively_weights(network, 1))
    with open_model(path, kind)[1] as model:
        for image in images(network, 2):
            for ours, theirs in zip(model.layer_outputs(image, mode), emulator.read_out(image, mode), strict=True):
                np.testing.assert_array_equal(ours, theirs)


TEN_BIT = [(14, 16, True), (14, 512, True), (28, 64, False), (14, 16, False), (28, 16, True)]


@pytest.mark.parametrize(("size", "channels", "pooling"), TEN_BIT)
@pytest.mark.parametrize("layout", ["halves", "pairs"])
def test_ten_bit_travels_in_two_maps(size: int, channels: int, pooling: bool, layout: str, tmp_path):
    network = Network((MajorLayer(size, 3, channels, 1, 3, (4,), pooling=pooling),), activation_bit_mode=1)
    path = tmp_path / "ten.dat"
    path.write_bytes(dat_bytes(network))
    emulator = Emulator(network, lively_weights(network, 1))
    image = images(network, 1)[0]
    settings = VIRTUAL_SETTINGS.changed(ten_bit_layout=layout)
    with open_model(path, settings=settings, chip={"ten_bit_layout": layout})[1] as model:
        for mode in ("learn", "single") + (("fc",) if pooling and size == 14 else ()):
            (ours,), (theirs,) = model.layer_outputs(image, mode), emulator.read_out(image, mode)
            assert ours.dtype == np.uint16
            assert ours.max() > 31
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", ["halves", "pairs"])
def test_ten_bit_layouts_are_inverse(layout: str):
    codes = np.arange(1024, dtype=np.uint16).reshape(16, 8, 8)
    maps = split_codes(codes, layout)
    assert maps.shape == (32, 8, 8)
    assert maps.max() == 31
    high = maps[3] if layout == "halves" else maps[6]
    np.testing.assert_array_equal(high, codes[3] >> 5)
    np.testing.assert_array_equal(join_codes(maps, layout), codes)


def feed_tiny(chip: VirtualChip, *, load: bool = True, frames: int = 1) -> None:
    network = tiny_network()
    if load:
        chip.feed(encode_load(dat_bytes(network)))
    for number, image in enumerate(images(network, frames)):
        chip.feed(encode_frame(dat_bytes(network), 0, image.transpose(2, 0, 1), first=load and number == 0))


def test_the_chip_answers_the_last_image_only():
    chip, alone = VirtualChip(FT601), VirtualChip(FT601)
    feed_tiny(chip, frames=2)
    assert chip.wait(0)
    network = tiny_network()
    alone.feed(encode_load(dat_bytes(network)))
    alone.feed(encode_frame(dat_bytes(network), 0, images(network, 2)[1].transpose(2, 0, 1), first=True))
    assert alone.wait(0)
    assert chip.take(1 << 20) == alone.take(1 << 20) != b""


def test_without_coefficients_or_registers_the_chip_is_silent():
    chip = VirtualChip(FT601)
    feed_tiny(chip, load=False)
    assert not chip.wait(0)
    chip.power_cycle()
    chip.feed(b"\xa5" * 4001)
    assert not chip.wait(0)


def test_a_network_that_cannot_be_decoded_is_silent_and_logged(caplog: pytest.LogCaptureFixture, tmp_path):
    broken = bytearray(dat_bytes(tiny_network()))
    broken[8:12] = (14 | 16 << 8 | 48 << 19 | 1 << 30).to_bytes(4, "little")  # 48 output channels: not a count it has
    path = tmp_path / "broken.dat"
    path.write_bytes(broken)
    settings = VIRTUAL_SETTINGS.changed(retries=0)
    with (
        open_model(path, settings=settings)[1] as model,
        pytest.raises(DeviceError, match="reading: time-out"),
    ):
        model.evaluate(images(tiny_network(), 1)[0])
    assert "virtual chip: no result" in caplog.text


def test_chip_time_answers_a_pattern_of_the_image(tmp_path):
    network = tiny_network()
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(network))
    first, second = images(network, 2)
    with open_model(path, chip={"chip_time_ms": 1.0})[1] as model:
        a, b, again = model.evaluate(first), model.evaluate(second), model.evaluate(first)
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(a, again)


def test_a_slow_chip_times_out(tmp_path):
    network = tiny_network()
    path = tmp_path / "tiny.dat"
    path.write_bytes(dat_bytes(network))
    settings = VIRTUAL_SETTINGS.changed(read_timeout_ms=20.0, retries=1)
    with (
        open_model(path, settings=settings, chip={"chip_time_ms": 500.0})[1] as model,
        pytest.raises(DeviceError, match="20 ms"),
    ):
        model.evaluate(images(network, 1)[0])


def test_impossible_faults_are_refused():
    for wrong in [("reading", 0, "io"), ("read", -1, "io"), ("read", 0, "smoke")]:
        with pytest.raises(ValueError, match="impossible"):
            Fault(*wrong)


def test_a_network_that_nobody_can_compute_is_refused_with_the_reason(tmp_path):
    layers = (MajorLayer(14, 1, 16, 2, 3, (4, 4), shortcuts=(1,)),)  # the arithmetic of shortcuts is unknown
    path = tmp_path / "shortcut.dat"
    path.write_bytes(dat_bytes(Network(layers)))
    with open_model(path)[1] as model, pytest.raises(DeviceError, match="shortcuts") as caught:
        model.layer_outputs(images(Network(layers), 1)[0], "single")
    assert "unplug" not in str(caught.value)


@pytest.mark.parametrize("device", ["virtual", "auto"])
def test_sizes_that_do_not_chain_are_refused_before_a_stick_is_opened(tmp_path, device):
    layers = (MajorLayer(28, 3, 16, 1, 3, (4,)), MajorLayer(14, 16, 16, 1, 3, (4,), pooling=True))
    path = tmp_path / "unchained.dat"
    path.write_bytes(dat_bytes(Network(layers)))
    with pytest.raises(NetworkError, match="major 2: its image size"):
        GtiModel(path, device)
