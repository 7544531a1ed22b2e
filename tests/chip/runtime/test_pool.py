"""GtiPool: order, failing sticks, images that are wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from sticks import dat_bytes, images, lively_weights, tiny_network

from gti.chip.emulator.emulator import Emulator
from gti.chip.runtime.pool import GtiPool
from gti.errors import DeviceError, FormatError, ImageError, UsageError

NETWORK = tiny_network()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pool") / "tiny.dat"
    file.write_bytes(dat_bytes(NETWORK))
    return file


def test_results_keep_the_order_and_survive_a_killed_process(path: Path):
    frames = images(NETWORK, 24)
    expected = Emulator(NETWORK, lively_weights(NETWORK, 1)).output(frames).transpose(0, 2, 3, 1)
    with GtiPool(path, ["virtual", "virtual:ft600", "virtual:eusb"], engine="numpy") as pool:
        assert len(pool.device_descriptions) == 3
        np.testing.assert_array_equal(np.concatenate(list(pool.evaluate_many(frames))), expected)

        # An iterator that is left in the middle takes nothing with it into the next call.
        np.testing.assert_array_equal(next(pool.evaluate_many(frames[::-1]))[0], expected[-1])

        results = []
        for number, result in enumerate(pool.evaluate_many(iter(frames))):
            results.append(result)
            if number == 5:
                os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
        np.testing.assert_array_equal(np.concatenate(results), expected)
        assert len(pool.device_descriptions) == 2

        with pytest.raises(ImageError, match="wrong size"):
            list(pool.evaluate_many([frames[0], frames[1][:7]]))
        np.testing.assert_array_equal(next(pool.evaluate_many(frames[:1]))[0], expected[0])

        for worker in list(pool._workers):
            os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match="stick"):
            list(pool.evaluate_many(frames))


def test_a_stick_that_cannot_be_opened_ends_the_pool(path: Path):
    with pytest.raises(DeviceError, match=r"USB: "):
        GtiPool(path, ["usb:no such serial"])


def test_wrong_arguments(path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="devices"):
        GtiPool(path, [])
    with pytest.raises(FormatError, match="no such file"):
        GtiPool(tmp_path / "missing.dat", ["virtual"])
