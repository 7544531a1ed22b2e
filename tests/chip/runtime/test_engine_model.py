"""The emulator used like a stick: same results as through USB, whatever the batches, for one chip and several."""

from __future__ import annotations

import numpy as np
import pytest
from sticks import dat_bytes, images, lively_weights, small_network, tiny_network
from test_chain import NETWORK as FOUR_MAJORS
from test_chain import write

from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.runtime import engine_model
from gti.chip.runtime.chain import open_model
from gti.chip.runtime.engine_model import EngineModel
from gti.errors import FormatError, ImageError, UsageError

SMALL = small_network()


@pytest.fixture
def path(tmp_path):
    result = tmp_path / "small.dat"
    result.write_bytes(dat_bytes(SMALL))
    return result


@pytest.mark.parametrize("together", [1, 3, 64])
def test_results_are_those_of_the_virtual_stick_in_any_batches(path, monkeypatch, together):
    monkeypatch.setattr(engine_model, "_MOST_TOGETHER", together)
    pictures = images(SMALL, 7)
    with GtiModel(path, "virtual") as stick:
        expected = list(stick.evaluate_many(pictures, last_relu_cap=5.5))
    with EngineModel(path) as model:
        assert model.input_shape == (28, 28, 3)
        assert model.device_description.startswith(f"emulator in batches of {together}, no USB framing (numba")
        found = list(model.evaluate_many(iter(pictures), last_relu_cap=5.5))
    assert [one.shape for one in found] == [(1, 7, 7, 32)] * 7
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    assert len(np.unique(found)) > 3


def test_several_chips_in_a_row(tmp_path):
    path = write(tmp_path, (1, 2, 4))
    pictures = images(FOUR_MAJORS, 3)
    model = EngineModel(path)
    with open_model(path, "virtual") as chain:
        np.testing.assert_array_equal(
            np.concatenate(list(model.evaluate_many(pictures))), np.concatenate(list(chain.evaluate_many(pictures)))
        )
        for mode in ("learn", "sublast", "lastmajor", "single", "fc", 1):
            ours, theirs = model.layer_outputs(pictures[0], mode), chain.layer_outputs(pictures[0], mode)
            assert [one.shape for one in ours] == [one.shape for one in theirs]
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)


def test_ten_bits_are_scaled_from_their_own_top(tmp_path):
    network = tiny_network(activation_bit_mode=1)
    path = tmp_path / "ten.dat"
    path.write_bytes(dat_bytes(network))
    (result,) = EngineModel(path).evaluate_many(images(network, 1), last_relu_cap=1023.0)
    codes = Emulator(network, lively_weights(network, 1)).output(images(network, 1))[0]
    np.testing.assert_array_equal(result[0].transpose(2, 0, 1), codes)
    assert codes.max() > 31


def test_what_a_stick_refuses_is_refused(path, tmp_path):
    model = EngineModel(path)
    with pytest.raises(ImageError, match="has the wrong size"):
        list(model.evaluate_many([images(SMALL, 1)[0], np.zeros((14, 14, 3), np.uint8)]))
    with pytest.raises(ImageError, match="floating-point"):
        model.layer_outputs(np.zeros((28, 28, 3)))
    with pytest.raises(UsageError, match="read-out mode"):
        model.layer_outputs(images(SMALL, 1)[0], 5)
    (tmp_path / "no.dat").write_bytes(b"no network")
    with pytest.raises(FormatError):
        EngineModel(tmp_path / "no.dat")
    assert list(model.evaluate_many([])) == []
