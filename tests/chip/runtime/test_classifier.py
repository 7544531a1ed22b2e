"""Classifier: full .MODEL files on one stick and on several, against host layers stated in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from full_models import CONTRACT, NAMES, NETWORK, full_model, probabilities
from sticks import dat_bytes, lively_weights

from gti.chip.emulator.emulator import Emulator
from gti.chip.runtime.classifier import Classifier, Rate
from gti.errors import ImageError, ModelFileError, UsageError

IMAGES = np.random.RandomState(5).randint(0, 256, (5, 14, 14, 3)).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "full.model"
    file.write_bytes(full_model())
    return file


def expected(images: np.ndarray) -> np.ndarray:
    """Probabilities [N, 4] by the emulator and host layers written out."""
    codes = Emulator(NETWORK, lively_weights(NETWORK, 1), engine="numpy").output(images)
    return np.array([probabilities(one) for one in codes])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [["virtual"], ["virtual:ft600"], ["virtual", "virtual"]])
def test_labels_and_probabilities(path: Path, devices: list[str]):
    with Classifier(path, devices) as model:
        assert len(model.device_descriptions) == len(devices)
        assert model.preprocessing == CONTRACT
        results = list(model.classify(IMAGES))
    for labels, wanted in zip(results, expected(IMAGES), strict=True):
        assert [label.index for label in labels] == list(np.argsort(-wanted))
        assert [label.text for label in labels] == [NAMES[label.index] for label in labels]
        np.testing.assert_allclose([label.probability for label in labels], wanted[np.argsort(-wanted)], rtol=1e-4)
    # A network that answers every image alike would prove nothing.
    assert np.ptp(expected(IMAGES), axis=0).max() > 0.01


def test_a_mode_that_cannot_be_streamed(tmp_path: Path):
    # SINGLE: the last sublayer's codes without the shift of the FC read-out, here four times the pixels.
    path = tmp_path / "single.model"
    path.write_bytes(full_model(mode=2))
    with Classifier(path, ["virtual"]) as model, pytest.raises(ModelFileError, match="before"):
        next(model.classify(IMAGES))
    with pytest.raises(UsageError, match="several"):
        Classifier(path, ["virtual", "virtual"])


def test_a_session_is_recorded_and_played_back(path: Path, tmp_path: Path):
    session = tmp_path / "session.gz"
    with Classifier(path, ["virtual"], record=session) as model:
        recorded = list(model.classify(IMAGES))
    with Classifier(path, [f"replay:{session}"]) as model:
        assert list(model.classify(IMAGES)) == recorded
    with pytest.raises(UsageError, match="session"):
        Classifier(path, ["virtual", "virtual"], record=session)


def test_files_without_host_layers(tmp_path: Path):
    path = tmp_path / "net.dat"
    path.write_bytes(dat_bytes(NETWORK))
    for devices in (["virtual"], ["virtual", "virtual"]):
        with pytest.raises(ModelFileError, match="layers"):
            Classifier(path, devices)


def test_images_of_another_form(path: Path):
    with Classifier(path, ["virtual"]) as model:
        with pytest.raises(ImageError, match=r"floating-point numbers 0\.\.1"):
            next(model.classify([IMAGES[0] / 255.0]))
        with pytest.raises(ImageError, match="planes first"):
            next(model.classify([IMAGES[0].transpose(2, 0, 1)]))
        assert len(list(model.classify(IMAGES[:2]))) == 2


def test_rate():
    rate = Rate(window=4)
    assert rate.tick(10.0) == 0.0
    assert rate.tick(10.5) == pytest.approx(2.0)
    for now in (11.0, 11.1, 11.2, 11.3, 11.4):
        last = rate.tick(now)
    assert last == pytest.approx(10.0)  # the slow beginning has left the window
