"""GtiModel: files, devices, images, results."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sticks import dat_bytes, images, lively_weights, open_model, small_network, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.formats.model_file import compose
from gti.chip.loaded_model import load_model
from gti.chip.network import file_size
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.usb import eusb_sticks, ft60x, usb_bus
from gti.chip.usb.devices import NoStickError
from gti.chip.usb.lock import DeviceLock
from gti.chip.usb.transport import Settings
from gti.chip.virtual.faults import Fault, FaultPlan
from gti.chip.virtual.sticks import virtual_backend
from gti.errors import DatError, DeviceError, FormatError, ImageError, ModelFileError, UsageError

NETWORK = small_network()
NO_WAIT = Settings(settle_ms=0.0, drain_ms=1.0, reappear_ms=0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.dat"
    file.write_bytes(dat_bytes(NETWORK))
    return file


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for lock files."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("GTI_LOCK_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return Emulator(NETWORK, lively_weights(NETWORK, 1)).output(images(NETWORK, 6)).transpose(0, 2, 3, 1)


def test_evaluate_scales_codes_to_the_cap(path: Path, expected: np.ndarray):
    with GtiModel(path, "virtual") as model:
        result = model.evaluate(images(NETWORK, 1)[0])
        scaled = model.evaluate(images(NETWORK, 1)[0], last_relu_cap=6.2)
        assert model.device_description.startswith("virtual stick (emulator, ")
        assert model.input_shape == (28, 28, 3)
    assert result.shape == (1, 7, 7, 32)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_allclose(scaled[0], expected[0] * (6.2 / 31), rtol=1e-6)


def test_evaluate_as_the_old_kit_called_it(path: Path, expected: np.ndarray):
    image = images(NETWORK, 1)[0]
    with GtiModel(path, device="virtual") as model:
        result = model.evaluate(numpy_array=image[None], last_relu_cap=31.0, activation_bits=5)
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_array_equal(model.evaluate(image[None], None, 5)[0], expected[0])
        for wrong in ({}, {"image": image, "numpy_array": image}, {"image": image, "activation_bits": 10}):
            with pytest.raises(UsageError):
                model.evaluate(**wrong)


def test_evaluate_many_keeps_the_order_and_loads_once(path: Path, expected: np.ndarray):
    _, model = open_model(path)
    with model:
        results = list(model.evaluate_many(iter(images(NETWORK, 6))))
        assert model.counts == {"loads": 1, "frames": 6}
    np.testing.assert_array_equal(np.concatenate(results), expected)


def test_the_next_frame_is_encoded_before_the_result_is_read(path: Path):
    _, model = open_model(path)
    events: list[str] = []
    link = model._opened()

    def traced(name: str, call: Any) -> Any:
        return lambda *args, **options: (events.append(name), call(*args, **options))[1]

    for name in ("encode", "start", "finish"):
        setattr(link, name, traced(name, getattr(link, name)))
    list(model.evaluate_many(images(NETWORK, 3)))
    assert events == ["encode", "start", "encode", "finish", "start", "encode", "finish", "start", "finish"]


def test_an_abandoned_iterator_does_not_disturb_the_next_frame(path: Path, expected: np.ndarray):
    _, model = open_model(path)
    with model:
        results = model.evaluate_many(images(NETWORK, 6))
        np.testing.assert_array_equal(next(results)[0], expected[0])
        with pytest.raises(DeviceError, match="working"):
            model.evaluate(images(NETWORK, 6)[5])
        results.close()
        np.testing.assert_array_equal(model.evaluate(images(NETWORK, 6)[5])[0], expected[5])


def test_interrupted_at_any_call(path: Path, expected: np.ndarray):
    for phase in ("bulk_write", "bulk_read"):
        for nth in (0, 1, 5, 11):  # three frames take twelve reads
            backend, model = open_model(path)
            call, left = getattr(backend, phase), [nth]

            def interrupt(*args: Any, _call: Any = call, _left: list[int] = left) -> Any:
                _left[0] -= 1
                if _left[0] == -1:
                    raise KeyboardInterrupt
                return _call(*args)

            setattr(backend, phase, interrupt)
            interrupted = False
            for number in range(3):
                try:
                    result = model.evaluate(images(NETWORK, 6)[number])
                except KeyboardInterrupt:
                    interrupted = True
                else:
                    np.testing.assert_array_equal(result[0], expected[number])
            assert interrupted
            model.release()


def test_mode_changes_load_again_unless_told_otherwise(path: Path):
    image = images(NETWORK, 1)[0]
    for reload, loads in ((True, 3), (False, 1)):
        settings = NO_WAIT.changed(reload_on_mode_change=reload)
        _, model = open_model(path, settings=settings)
        with model:
            first = model.evaluate(image)
            assert len(model.layer_outputs(image, "learn")) == 3
            np.testing.assert_array_equal(model.evaluate(image), first)
            assert model.counts["loads"] == loads


def test_modes_with_several_maps_are_for_layer_outputs(path: Path):
    with (
        GtiModel(path, "virtual", mode="learn") as model,
        pytest.raises(UsageError, match="layer_outputs"),
    ):
        model.evaluate(images(NETWORK, 1)[0])


def good() -> np.ndarray:
    return images(NETWORK, 1)[0]


IMAGES = [
    (lambda: good() / np.float32(255), "floating-point numbers 0..1", "255"),
    (lambda: good().astype(np.float64), "floating-point numbers;", "8-bit pixels 0..255"),
    (lambda: good().astype(np.uint16) * 256, "wrong type", "high bytes"),
    (lambda: good().transpose(2, 0, 1), "planes first", "transpose"),
    (lambda: good()[:, :, :1], "is grey", "repeat"),
    (lambda: good()[:, :, 0], "is grey", "repeat"),
    (lambda: np.dstack([good(), good()[:, :, 0]]), "four channels", "alpha"),
    (lambda: good()[:14, :14], "wrong size", "resize it to 28x28"),
    (lambda: np.stack([good(), good()]), "is a batch", "one image at a time"),
    (lambda: np.zeros((0, 0, 3), np.uint8), "wrong size", "resize"),
    (lambda: good().tolist(), "no NumPy array", "load_image"),
]


@pytest.mark.parametrize(("make", "problem", "fix"), IMAGES)
def test_wrong_images(path: Path, make: Any, problem: str, fix: str):
    with GtiModel(path, "virtual") as model:
        with pytest.raises(ImageError) as caught:
            model.evaluate(make())
        assert problem in str(caught.value)
        assert fix in str(caught.value).partition("Fix: ")[2]
        assert model.counts.get("frames", 0) == 0


def test_any_strides_and_read_only_images_are_taken(path: Path, expected: np.ndarray):
    image = good()
    image.flags.writeable = False
    with GtiModel(path, "virtual") as model:
        for same in (image, np.asfortranarray(image), image[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]):
            np.testing.assert_array_equal(model.evaluate(same)[0], expected[0])


def test_upsampled_networks_give_fc_results_only(tmp_path: Path):
    network = Network(
        (
            MajorLayer(14, 3, 16, 1, 3, (4,), pooling=False, upsample_enable=True),
            MajorLayer(28, 16, 16, 1, 3, (6,), pooling=True),
            MajorLayer(14, 16, 16, 1, 3, (6,), pooling=True),
        )
    )
    path = tmp_path / "up.dat"
    path.write_bytes(dat_bytes(network))
    image = images(network, 1)[0]
    with GtiModel(path, "virtual") as model:
        expected = Emulator(network, lively_weights(network, 1)).output(image[None])[0]
        np.testing.assert_array_equal(model.evaluate(image)[0].transpose(2, 0, 1), expected)
        with pytest.raises(DeviceError, match="major 1"):
            model.layer_outputs(image)


def test_ten_bit_is_refused_on_a_stick_unless_a_layout_is_forced(tmp_path: Path, runtime: Path):
    network = tiny_network(activation_bit_mode=1)
    path = tmp_path / "ten.dat"
    path.write_bytes(dat_bytes(network))
    backend = virtual_backend("ft601")
    with pytest.raises(DeviceError, match="ten_bit_layout"):
        GtiModel(path, "usb", backend=backend, settings=NO_WAIT)
    settings = NO_WAIT.changed(ten_bit_layout="halves")
    with GtiModel(path, "usb", backend=backend, settings=settings) as model:
        result = model.evaluate(images(network, 1)[0], last_relu_cap=1023.0)
    codes = Emulator(network, lively_weights(network, 1)).output(images(network, 1))[0]
    np.testing.assert_array_equal(result[0].transpose(2, 0, 1), codes)


def test_a_dead_network_is_accepted_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from gti.chip.formats import dat

    network = tiny_network()
    dead = [ConvolutionWeights(np.zeros((16, 1, 3, 3), np.int16), np.full(16, -5, np.int32), 4)]
    path = tmp_path / "dead.dat"
    path.write_bytes(dat.encode(network, dead, length=92 + 192 * file_size.row_count(network)))
    with GtiModel(path, "virtual") as model:
        for image in images(network, 2):
            assert not model.evaluate(image).any()
        assert model.counts.get("faults", 0) == 0
    assert caplog.text.count("is the network dead?") == 1


# Devices


def test_auto_takes_a_stick_that_answers(path: Path, runtime: Path, expected: np.ndarray):
    backend = virtual_backend("ft600", count=2)
    with GtiModel(path, "auto", backend=backend, settings=NO_WAIT) as model:
        assert model.device_description == "FT600 serial VIRTUAL0001"
        np.testing.assert_array_equal(model.evaluate(images(NETWORK, 1)[0])[0], expected[0])
        with GtiModel(path, "auto", backend=backend, settings=NO_WAIT) as second:
            assert second.device_description.startswith("FT600 serial VIRTUAL0002, because: FT600 serial VIRTUAL0001: ")


def test_auto_passes_over_a_bridge_without_a_chip_and_says_so(path: Path, runtime: Path):
    backend = virtual_backend("ft601")
    backend.slots[0].device.chip.feed = lambda data: None
    with GtiModel(path, "auto", backend=backend, settings=NO_WAIT.changed(retries=0)) as model:
        assert model.device_description.startswith("virtual stick (emulator, ")
        assert "because: FT601 serial VIRTUAL0001" in model.device_description
        assert "time-out" in model.device_description


def test_auto_without_libusb_or_stick_is_virtual(path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing() -> Any:
        raise DeviceError("USB: the library libusb-1.0 is not installed.")

    monkeypatch.setattr(usb_bus, "libusb", missing)
    with GtiModel(path, "auto") as model:
        assert model.device_description.startswith("virtual stick")
        assert "because: USB: the library libusb-1.0" in model.device_description
    with pytest.raises(DeviceError, match="libusb"):
        GtiModel(path, "usb")
    with GtiModel(path, "auto", backend=virtual_backend("ft601", count=0)) as model:
        assert model.device_description.startswith("virtual stick")


def test_auto_says_why_and_nothing_else(path: Path, runtime: Path, caplog: pytest.LogCaptureFixture):
    """No permission, an eUSB stick to be named, an empty bus: one reason each, and no log before the outcome."""
    denied = virtual_backend("ft601", plans=[FaultPlan([Fault("claim", 0, "denied", 99)])])
    silent = virtual_backend("ft601", plans=[FaultPlan([Fault("read", 0, "timeout", 99)])])
    quick = NO_WAIT.changed(retries=1, read_timeout_ms=1.0)
    for backend, key in (
        (denied, "gti udev --install"),
        (silent, "time-out"),
        (virtual_backend("eusb"), "--device eusb:"),
        (virtual_backend("ft601", count=0), "plugged"),
    ):
        with GtiModel(path, "auto", backend=backend, settings=quick) as model:
            assert model.device_description.startswith("virtual stick")
            reason = model.device_description.partition(", because: ")[2]
            assert key in reason
            assert "\n" not in reason
        with pytest.raises(NoStickError, match=key):
            GtiModel(path, "auto", backend=backend, settings=quick, software=False)
    assert not caplog.records


def test_the_probe_is_no_false_alarm(
    runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A network that answers dark with one value: neither a warning nor a run of the emulator (docs/device.md)."""
    network = Network((MajorLayer(14, 3, 16, 1, 3, (4,), pooling=True),))
    zeros = [ConvolutionWeights(np.zeros((16, 3, 3, 3), np.int16), np.full(16, 7 << 4, np.int32), 4)]
    (tmp_path / "dark.dat").write_bytes(dat.encode(network, zeros))
    monkeypatch.setattr(GtiModel, "_emulation", lambda *_: lambda frame: pytest.fail("the emulator ran"))
    with GtiModel(tmp_path / "dark.dat", "auto", backend=virtual_backend("ft601"), settings=NO_WAIT) as model:
        assert model.device_description == "FT601 serial VIRTUAL0001"
    assert not caplog.records


@pytest.mark.parametrize(("key", "serial"), [("usb", "1"), ("usb:1", "2"), ("usb:VIRTUAL0003", "3")])
def test_usb_picks_by_index_or_serial(path: Path, runtime: Path, key: str, serial: str):
    backend = virtual_backend("ft601", count=3)
    with GtiModel(path, key, backend=backend, settings=NO_WAIT) as model:
        assert model.device_description == f"FT601 serial VIRTUAL000{serial}"


def test_no_stick_is_one_sentence(path: Path):
    with pytest.raises(DeviceError, match="USB 3"):
        GtiModel(path, "usb", backend=virtual_backend("ft601", count=0))


def test_a_stick_in_use_names_its_holder(path: Path, runtime: Path):
    backend = virtual_backend("ft601")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from gti.chip.usb.lock import DeviceLock; lock = DeviceLock('FT601 serial VIRTUAL0001');"
            "print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceError, match=rf"\b{holder.pid}\b"):
            GtiModel(path, "usb", backend=backend)
    finally:
        holder.kill()
        holder.communicate()
    # The lock of a killed process is free at once.
    GtiModel(path, "usb", backend=backend, settings=NO_WAIT).release()


def test_locks_are_released_and_refuse_foreign_folders(runtime: Path, monkeypatch: pytest.MonkeyPatch):
    lock = DeviceLock("a stick/with: odd name")
    with pytest.raises(DeviceError, match="this program"):
        DeviceLock("a stick/with: odd name")
    lock.release()
    DeviceLock("a stick/with: odd name").release()
    assert [file.name for file in runtime.iterdir()] == ["a_stick_with__odd_name.lock"]


# Files


def container(mode: Any = 0, **device: Any) -> bytes:
    layer = {"operation": "GTICNN", "name": "cnn", "mode": mode, "device": device, "data file": "net.dat"}
    return compose(json.dumps({"layer": [layer]}).encode(), {"net.dat": dat_bytes(NETWORK)})


def test_a_container_brings_its_mode_and_device(tmp_path: Path, expected: np.ndarray):
    path = tmp_path / "small.model"
    path.write_bytes(container(1, **{"name": "USB_FTDI_0002", "emmc delay": 5000}))
    model = load_model(path)
    assert (model.mode, ft60x.asked_key(model.device)) == (1, "2")
    assert eusb_sticks.asked_settings(model.device, Settings()).eusb_delay_us == 5000.0
    with GtiModel(path, "virtual") as opened:
        assert len(opened.layer_outputs(images(NETWORK, 1)[0])) == 3
        assert opened.mode == 1
    with GtiModel(path, "virtual", mode=0) as opened:
        np.testing.assert_array_equal(opened.evaluate(images(NETWORK, 1)[0])[0], expected[0])


def test_wrong_files(tmp_path: Path):
    cases: list[tuple[bytes, type[Exception], str]] = [
        (b"", DatError, "short"),
        (bytes(91), DatError, "short"),
        (bytes(200), DatError, "major layers"),
        (container("fast"), ModelFileError, "mode"),
        (
            compose(b'{"layer": [{"operation": "FC", "data file": null}]}', {}),
            ModelFileError,
            "network",
        ),
        (b'{"layer": 3}\0', ModelFileError, "objects"),
    ]
    for number, (data, kind, words) in enumerate(cases):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        with pytest.raises(kind, match=words):
            GtiModel(path, "virtual")
    with pytest.raises(FormatError, match="no such file"):
        GtiModel(tmp_path / "missing.dat", "virtual")


def test_full_inference_needs_host_layers(path: Path):
    with GtiModel(path, "virtual") as model, pytest.raises(ModelFileError, match="layers"):
        model.full_inference(good())


def test_a_released_model_says_so(path: Path):
    model = GtiModel(path, "virtual")
    model.release()
    model.release()
    with pytest.raises(DeviceError, match="released"):
        model.evaluate(good())


def test_importing_the_driver_is_light():
    code = "import sys, gti.chip.driver; print([m for m in ('tensorflow', 'numba', 'PIL', 'usb') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_attempts_are_logged(path: Path, caplog: pytest.LogCaptureFixture):
    from gti.chip.virtual.faults import Fault

    caplog.set_level(logging.WARNING)
    with open_model(path, "ft601", (Fault("read", 1, "io"),))[1] as model:
        model.evaluate(good())
    assert "reading: an I/O error on the bus; attempt 1 of 4 failed" in caplog.text
    assert "recovered in attempt 2" in caplog.text
