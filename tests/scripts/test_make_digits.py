"""scripts/make_digits.py: the digits of scikit-learn as TFRecords."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from sklearn.datasets import load_digits

from gti import data_utils
from gti.data.data_check import inspect
from gti.data.labels import read_labels


def make(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/make_digits.py", "--output_directory", str(folder), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    result = make(folder)
    assert result.returncode == 0, result.stderr
    assert "1437 training and 360 validation images, 11 classes" in result.stdout
    return folder


def test_every_digit_is_there_once(digits):
    source = load_digits()
    counts = np.zeros(11, int)
    pixels = []
    for part in ("train", "val"):
        data = data_utils.load(digits / "digits" / part, image_size=28, batch_size=512, classes=11, as_codes=False)
        for images, labels in data:
            counts += np.bincount(labels.numpy(), minlength=11)
            pixels.append(images.numpy())
    np.testing.assert_array_equal(counts[1:], np.bincount(source.target))
    assert counts[0] == 0  # nothing is background
    pixels = np.concatenate(pixels)
    assert np.all(pixels == pixels[..., :1])  # three equal channels
    # Enlarging keeps the mean brightness but for the overshoot that is clipped at black and white.
    assert abs(pixels.mean() - source.images.mean() * 255 / 16) < 2


def test_validation_set_is_stratified(digits):
    data = data_utils.load(digits / "digits" / "val", image_size=28, batch_size=512, classes=11)
    labels = np.concatenate([y.numpy() for _, y in data])
    assert len(labels) == 360
    assert set(np.bincount(labels)[1:]) <= {35, 36, 37}


def test_digits_are_neither_cropped_nor_flipped(digits):
    assert data_utils.read_pipeline(digits / "digits" / "train") == data_utils.Pipeline(1.0, False)


def test_labels_fit(digits):
    names = read_labels(digits / "digits_labels.txt")
    assert names[0] == "background"
    assert names[1] == "zero"
    assert len(names) == 11
    assert inspect(digits / "digits" / "train", 11, training=True).count == 1437
    # The file that lies in the repository is the one that the script writes.
    assert (ROOT / "data" / "digits_labels.txt").read_bytes() == (digits / "digits_labels.txt").read_bytes()


def test_same_seed_same_bytes(digits, tmp_path, monkeypatch):
    # In this process, which has TensorFlow already; the fixture ran as a user would.
    monkeypatch.setattr(sys, "argv", ["make_digits.py", "--output_directory", str(tmp_path)])
    runpy.run_path(str(ROOT / "scripts" / "make_digits.py"))["main"]()
    written = sorted(p.relative_to(digits) for p in digits.rglob("*") if p.is_file())
    assert written == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((digits / name).read_bytes() == (tmp_path / name).read_bytes() for name in written)


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [("--train_shards", "0", "1 to 100"), ("--seed", "-5", "0 to 4294967295")],
)
def test_impossible_numbers(flag, value, expected, tmp_path):
    result = make(tmp_path, flag, value)
    assert result.returncode == 2
    assert result.stderr == f"error: {flag}: is out of range; expected {expected}, received {value}.\n"
