"""One network on several sticks in a row: how it is cut, and that the codes are those of one chip."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sticks import images, lively_weights, stick, tiny_network

from gti.chip.driver import GtiModel
from gti.chip.emulator.arithmetic import five_bit
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat, splitting
from gti.chip.formats.model_file import compose
from gti.chip.loaded_model import load_model
from gti.chip.network import file_size
from gti.chip.network.types import MajorLayer, Network
from gti.chip.runtime import chain
from gti.chip.runtime.chain import ChipChain, open_model
from gti.chip.spec import HEADER_BYTES, ROW_BYTES
from gti.chip.usb import devices
from gti.chip.usb.transport import DeviceInfo, Settings
from gti.chip.virtual.faults import Fault
from gti.errors import DeviceError, ModelFileError, NetworkError, UsageError

NETWORK = Network(
    (
        MajorLayer(56, 3, 16, 2, 3, (6, 6), pooling=True),
        MajorLayer(28, 16, 32, 1, 3, (6,)),  # without pooling
        MajorLayer(28, 32, 32, 1, 1, (5,), pooling=True),
        MajorLayer(14, 32, 64, 2, 1, (5, 5), pooling=True),
    )
)
WEIGHTS = lively_weights(NETWORK, 3)
CUTS = [(1, 2), (1, 3), (1, 4), (1, 3, 4), (1, 2, 3, 4)]


def model_bytes(parts, mode=0, **last):
    """Return a .model of the parts, each .DAT without its padding so that loading is quick."""
    names = [f"{number}.dat" for number, _ in enumerate(parts)]
    entry = {"name": "chip", "operation": "GTICNN", "data file": names[-1], "mode": mode, "output scaledown": 3, **last}
    header = {"layer": [entry]}
    splitting.insert_inner_layers(header, entry, parts, names)
    data = {
        name: dat.encode(p.network, p.weights, length=HEADER_BYTES + ROW_BYTES * file_size.row_count(p.network))
        for name, p in zip(names, parts, strict=True)
    }
    return compose(json.dumps(header, indent=2).encode(), data)


def write(folder, starts, network=NETWORK, weights=None):
    path = folder / "net.model"
    path.write_bytes(model_bytes(splitting.cut(network, weights or WEIGHTS, starts)))
    return path


# From code to pixel to code


def test_every_code_survives_the_way_into_the_next_chip():
    codes = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    image = splitting.next_image(codes, pooled=False)
    assert image.shape == (4, 4, 2)
    np.testing.assert_array_equal(five_bit(image).transpose(2, 0, 1), codes)


def test_pooling_between_chips():
    codes = np.array([[[1, 9], [3, 4]]], np.uint8)
    assert splitting.next_image(codes, pooled=True).tolist() == [[[9 << 3]]]
    assert splitting.next_image(codes, pooled=True, top_left=True).tolist() == [[[1 << 3]]]


# Codes equal to those of one chip


@pytest.mark.parametrize("starts", CUTS)
def test_codes_are_those_of_one_chip(tmp_path, starts):
    pictures = images(NETWORK, 3)
    emulator = Emulator(NETWORK, WEIGHTS)
    expected = emulator.output(pictures).transpose(0, 2, 3, 1)
    assert len(np.unique(expected)) > 10
    with ChipChain(write(tmp_path, starts), "virtual") as model:
        results = list(model.evaluate_many(iter(pictures)))
        assert model.counts == {"loads": len(starts), "frames": 3 * len(starts)}
        assert model.input_shape == (56, 56, 3)
        assert model.device_description.startswith(f"{len(starts)} chips: virtual stick")
        np.testing.assert_array_equal(np.concatenate(results), expected)
        np.testing.assert_array_equal(model.evaluate(pictures[1])[0], expected[1])
        np.testing.assert_array_equal(model.raw_maps(pictures[2])[0], emulator.output(pictures[2:])[0] << 3)
        for mode in ("learn", "sublast", "lastmajor", "single", "fc"):
            maps = model.layer_outputs(pictures[0], mode)
            # Of the whole network, except that the last major layer is always the last chip's.
            for ours, theirs in zip(maps, emulator.read_out(pictures[0], mode), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_top_left_pooling(tmp_path):
    network = replace(NETWORK, sampling_method=1)
    picture = images(network, 1)
    with ChipChain(write(tmp_path, (1, 2, 4), network), "virtual") as model:
        result = model.evaluate(picture[0])
    expected = Emulator(network, WEIGHTS).output(picture)
    np.testing.assert_array_equal(result.transpose(0, 3, 1, 2), expected)
    assert not np.array_equal(expected, Emulator(NETWORK, WEIGHTS).output(picture))


def test_all_chips_work_at_the_same_time(tmp_path):
    """The first chip has the next image before the last one has answered: chips in a row are a pipeline."""
    events = []
    with ChipChain(write(tmp_path, (1, 3)), "virtual") as model:
        for number, chip in enumerate(model._chips):
            link = chip._opened()
            for name in ("start", "finish"):
                call = getattr(link, name)
                setattr(link, name, lambda *a, _c=call, _e=f"{name} {number}", **k: (events.append(_e), _c(*a, **k))[1])
        list(model.evaluate_many(images(NETWORK, 3)))
    second_answer = events.index("finish 1")
    assert events[:second_answer].count("start 0") == 3
    assert events[:second_answer].count("finish 0") == 2


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_of_one_stick_is_repaired_there(tmp_path, faulty):
    settings = Settings(settle_ms=0.0, drain_ms=1.0, reappear_ms=0.0)
    plans = [(Fault("read", 1, "disconnect"),) if number == faulty else () for number in range(2)]
    transports = [stick("ft601", plan, settings)[1] for plan in plans]
    pictures = images(NETWORK, 3)
    with ChipChain(write(tmp_path, (1, 3)), settings=settings, transports=transports) as model:
        results = np.concatenate(list(model.evaluate_many(pictures)))
        assert model.counts["recovered"] == 1
    np.testing.assert_array_equal(results.transpose(0, 3, 1, 2), Emulator(NETWORK, WEIGHTS).output(pictures))


def test_a_stopped_stream_leaves_the_chain_usable(tmp_path):
    pictures = images(NETWORK, 4)
    expected = Emulator(NETWORK, WEIGHTS).output(pictures).transpose(0, 2, 3, 1)
    with ChipChain(write(tmp_path, (1, 2, 4)), "virtual") as model:
        stream = model.evaluate_many(pictures)
        np.testing.assert_array_equal(next(stream)[0], expected[0])
        stream.close()
        np.testing.assert_array_equal(model.evaluate(pictures[3])[0], expected[3])


def test_ten_bit_last_layer_is_the_last_chips():
    layers = (*NETWORK.layers[:3], MajorLayer(14, 32, 32, 1, 3, (5,), pooling=True))
    network = Network(layers, activation_bit_mode=1)
    parts = splitting.cut(network, lively_weights(network, 1), (1, 3))
    assert [part.network.activation_bit_mode for part in parts] == [0, 1]


# Where to cut


def test_the_most_even_cut_is_taken():
    # Multiply-accumulates, in millions: 3136 * 9 * (16 + 16) * 16 = 14.5, 3.6, 7.2, 196 * 9 * (32 + 64) * 64 = 10.8.
    assert [round(n / 1e6, 1) for n in splitting.work_of_majors(NETWORK)] == [14.5, 3.6, 7.2, 10.8]
    assert [p.first_major for p in splitting.split(NETWORK, WEIGHTS, 2)] == [1, 3]
    assert [p.first_major for p in splitting.split(NETWORK, WEIGHTS, 3)] == [1, 2, 4]
    assert splitting.split(NETWORK, WEIGHTS, 1)[0].network == NETWORK


@pytest.mark.parametrize("chips", [0, 5])
def test_more_chips_than_major_layers(chips):
    with pytest.raises(UsageError, match=r"1\.\.4"):
        splitting.split(NETWORK, WEIGHTS, chips)


def test_an_input_larger_than_the_plan_knows_is_refused():
    # 112x112x128 = 1605632 activations; the plan counts 112x112x16 and puts the output at 256 * 3136 = 802816.
    network = Network((MajorLayer(112, 3, 128, 1, 1, (5,)), MajorLayer(112, 128, 16, 1, 1, (5,), pooling=True)))
    found = splitting.violations(network, (1, 2))
    assert [v.rule for v in found] == ["chip-input"]
    with pytest.raises(NetworkError, match=r"chip 2, major 1.*at most 802816.*1605632"):
        splitting.split(network, lively_weights(network, 1), 2)


@pytest.mark.parametrize("value", [0, -1, "2", True, 1.5])
def test_chip_number_that_is_none(value):
    with pytest.raises(UsageError, match="ChipNumber"):
        splitting.chip_number(Network(NETWORK.layers, extra={"model": {"ChipNumber": value}}))


# Files


def test_a_file_of_several_chips_is_not_mistaken_for_one(tmp_path):
    path = write(tmp_path, (1, 3))
    for open_one in (load_model, lambda p: GtiModel(p, "virtual")):
        with pytest.raises(ModelFileError, match="received 2"):
            open_one(path)


def test_open_model_takes_both_kinds(tmp_path):
    assert isinstance(open_model(write(tmp_path, (1, 3)), "virtual"), ChipChain)
    single = tmp_path / "tiny.dat"
    single.write_bytes(dat.encode(tiny_network(), lively_weights(tiny_network(), 1)))
    with open_model(single, "virtual") as model:
        assert isinstance(model, GtiModel)


def test_parts_that_do_not_fit_together(tmp_path):
    first, second, third = splitting.cut(NETWORK, WEIGHTS, (1, 2, 4))
    path = tmp_path / "wrong.model"
    path.write_bytes(model_bytes([first, third]))
    with pytest.raises(ModelFileError, match=r"28x28x16.*14x14x32"):
        ChipChain(path, "virtual")
    path.write_bytes(model_bytes([first, second, third]))
    ChipChain(path, "virtual").release()


# Sticks


def bus(monkeypatch, count):
    sticks = [DeviceInfo(i, "FT601", 0x0403, 0x601F, f"S{i}", f"1-{i}", i, 4) for i in range(count)]
    monkeypatch.setattr(devices, "list_sticks", lambda backend=None: sticks)


def test_sticks_of_a_chain(monkeypatch):
    bus(monkeypatch, 3)
    assert chain.chain_devices("virtual:ft600", 2) == (["virtual:ft600"] * 2, "")
    assert chain.chain_devices("usb", 2) == (["usb:S0", "usb:S1"], "")
    assert chain.chain_devices("auto", 3) == (["usb:S0", "usb:S1", "usb:S2"], "")
    assert chain.chain_devices("usb:S2,S0", 2) == (["usb:S2", "usb:S0"], "")
    names, reason = chain.chain_devices("auto", 4)
    assert names == ["virtual"] * 4
    assert reason == "3 of 4 sticks are plugged in"


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("usb", DeviceError, "too few sticks are plugged in; expected 4"),
        ("usb:S0", UsageError, "number"),
        ("usb:S0,S0,S1,S2", UsageError, "number"),
        ("usb:S0,,S1,S2", UsageError, "number"),
        ("replay:x", UsageError, "back"),
    ],
)
def test_sticks_that_do_not_suffice(monkeypatch, device, error, message):
    bus(monkeypatch, 3)
    with pytest.raises(error, match=message):
        chain.chain_devices(device, 4)


def test_a_cut_at_a_pooling_is_read_pooled_in_mode_5():
    network = replace(NETWORK, layers=(replace(NETWORK.layers[0], last_layer_out=True), *NETWORK.layers[1:]))
    parts = splitting.cut(network, WEIGHTS, (1, 2, 3))
    entry = {"name": "chip"}
    inner = splitting.insert_inner_layers({"layer": [entry]}, entry, parts, ["1.dat", "2.dat", "3.dat"])
    assert [(one["mode"], one["output width"]) for one in inner] == [(5, 28), (2, 28)]
    assert not parts[0].network.layers[0].last_layer_out  # would select the maps of every major layer


def test_parts_that_select_every_major_layer_are_pooled_by_the_host(tmp_path):
    parts = splitting.cut(NETWORK, WEIGHTS, (1, 2))
    layers = tuple(replace(layer, last_layer_out=True) for layer in parts[0].network.layers)
    parts[0] = replace(parts[0], network=replace(parts[0].network, layers=layers))
    path = tmp_path / "old.model"
    path.write_bytes(model_bytes(parts))
    image = images(NETWORK, 1)[0]
    with open_model(path, "virtual") as model:
        codes = model.layer_outputs(image, "fc")[0]
    assert (codes == Emulator(NETWORK, WEIGHTS).read_out(image, "fc")[0]).all()


def test_a_whole_number_of_chips_may_have_a_point():
    assert splitting.chip_number(Network(NETWORK.layers, extra={"model": {"ChipNumber": 2.0}})) == 2
