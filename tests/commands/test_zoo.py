"""zoo:NAME in place of a path, and that each network of the zoo is what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from gti.commands import classify, diff, flags, trace, verify
from gti.errors import UsageError

ZOO = ROOT / "gti" / "zoo"  # nets/zoo leads there, in a checkout
NAMES = sorted(path.stem.removeprefix("2801_") for path in ZOO.glob("*.model"))


def test_a_name_is_a_file_of_the_zoo_and_a_path_stays_a_path():
    assert NAMES == ["cifar"]
    assert Path(flags.model_file("zoo:cifar")).samefile(ZOO / "2801_cifar.model")
    assert flags.model_file("nets/zoo.model") == "nets/zoo.model"


def test_an_unknown_name_is_told_which_there_are():
    with pytest.raises(UsageError, match="zoo:cifar"):
        flags.model_file("zoo:vgg")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["emulator", "virtual"])
def test_its_known_answer_is_right(name: str, device: str):
    assert verify.main([f"zoo:{name}", "--device", device]) == 0


def test_it_can_be_compared_and_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert diff.main(["zoo:cifar", str(ZOO / "2801_cifar.model")]) == 0
    assert capsys.readouterr().out == "equal\n"
    np.save(tmp_path / "image.npy", np.zeros((28, 28, 3), np.uint8))
    words = ["encode", "--model", "zoo:cifar", "--image", str(tmp_path / "image.npy"), "--out", str(tmp_path / "t")]
    trace.main(words)
    assert (tmp_path / "t" / "frame0.bin").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_a_card(name: str):
    assert (ZOO / f"2801_{name}.model").stat().st_size < 1_000_000
    card = (ZOO / "README.md").read_text()
    assert f"zoo:{name}" in card
    assert "icence" in card


def test_it_classifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    grey = np.full((48, 64, 3), 128, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert classify.main(["zoo:cifar", str(tmp_path / "grey.png"), "--json", "--device", "emulator"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[0])
    labels = {one["label"] for one in answer["result"]}
    assert labels <= {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
