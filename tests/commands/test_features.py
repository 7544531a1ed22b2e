"""gti features and the wrapping of gti build: arrays, neighbours, a .DAT that says how its pictures are prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_data
import sticks

from gti.chip.driver import GtiModel
from gti.chip.formats import model_file
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.network.types import MajorLayer, Network
from gti.chip.runtime import feature_maps
from gti.commands import build, features, verify
from gti.errors import UsageError

NETWORK = Network((MajorLayer(28, 3, 16, 1, 3, (4,), pooling=True), MajorLayer(14, 16, 32, 1, 3, (6,), pooling=True)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A .DAT and three photographs: two of one colour, one of another."""
    (tmp_path / "net.dat").write_bytes(sticks.dat_bytes(NETWORK))
    (tmp_path / "photos").mkdir()
    for seed, (name, colour) in enumerate({"a": (200, 30, 30), "b": (190, 40, 35), "c": (20, 40, 220)}.items()):
        noise = np.random.default_rng(seed).integers(-25, 26, (40, 60, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        (tmp_path / "photos" / f"{name}.png").write_bytes(small_data.png(pixels))
    return tmp_path


def names(folder: Path) -> list[str]:
    return [str(folder / "photos" / f"{name}.png") for name in "abc"]


@pytest.mark.parametrize("mode", ["fc", "learn", "sublast"])
@pytest.mark.parametrize("device", ["emulator", "virtual"])
def test_features_are_the_maps_of_the_chip(mode: str, device: str, folder: Path):
    words = [str(folder / "net.dat"), str(folder / "photos"), "--mode", mode, "--device", device]
    assert features.main([*words, "--out", str(folder / "f.npz")]) == 0
    assert features.main([*words, "--out", str(folder / "w.npz"), "--whole"]) == 0
    contract = Preprocessing(28, 3)
    with GtiModel(folder / "net.dat", "virtual") as stick:
        expected = [stick.layer_outputs(contract.load(name), mode) for name in names(folder)]
    found, whole = np.load(folder / "f.npz"), np.load(folder / "w.npz")
    assert found["files"].tolist() == whole["files"].tolist() == names(folder)
    for index, maps in enumerate(expected):
        means = np.concatenate([codes.reshape(len(codes), -1).mean(axis=1) for codes in maps])
        np.testing.assert_allclose(found["features"][index], means, rtol=1e-6)
        for k, codes in enumerate(maps):
            np.testing.assert_array_equal(whole[f"map{k}"][index], codes)


def test_similar_photographs_and_those_left_out(folder: Path, capsys: Any):
    (folder / "photos" / "d.png").write_bytes(b"none")
    words = [str(folder / "net.dat"), str(folder / "photos"), "--device", "emulator", "--similar", "1", "--json"]
    assert features.main(words) == 1
    shown = capsys.readouterr()
    lines = {Path(line["file"]).stem: line for line in map(json.loads, shown.out.splitlines())}
    assert [Path(lines[one]["similar"][0]["file"]).stem for one in "ab"] == ["b", "a"]
    assert "error" in lines["d"]
    assert "whole pictures are resized" in shown.err
    with pytest.raises(UsageError, match="nothing to do"):
        features.main(words[:4])


def test_neighbours_by_the_formula():
    values = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    centred = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    for index, near in enumerate(feature_maps.neighbours(values, 3)):
        cosines = [
            float(centred[index] @ row / np.linalg.norm(centred[index]) / np.linalg.norm(row)) for row in centred
        ]
        order = sorted((k for k in range(6) if k != index), key=lambda k: -cosines[k])[:3]
        assert [other for other, _ in near] == order
        np.testing.assert_allclose([cosine for _, cosine in near], [cosines[k] for k in order])


def test_a_wrapped_dat_says_how_pictures_are_prepared(folder: Path, capsys: Any):
    target = folder / "net.model"
    assert build.main([str(folder / "net.dat"), str(target), "--crop", "0.5"]) == 0
    assert model_file.load(target).header["preprocessing"] == Preprocessing(28, 3, "BGR", 0.5).entry()
    assert bytes(model_file.load(target).first("GTICNN").blob) == (folder / "net.dat").read_bytes()
    assert verify.main([str(target), "--device", "virtual"]) == 0
    words = [str(target), *names(folder), "--device", "emulator", "--out"]
    assert features.main([*words, str(folder / "f.npz")]) == 0
    assert "whole pictures" not in capsys.readouterr().err
    with GtiModel(folder / "net.dat", "virtual") as stick:
        codes = stick.evaluate(Preprocessing(28, 3, "BGR", 0.5).load(names(folder)[0]))[0]
    np.testing.assert_allclose(np.load(folder / "f.npz")["features"][0], codes.mean(axis=(0, 1)), rtol=1e-6)


def test_a_wrapped_dat_may_have_a_name_that_is_not_utf8(folder: Path):
    target = folder / "caf\udce9.model"
    assert build.main([str(folder / "net.dat"), str(target)]) == 0
    assert model_file.load(target).header["name"] == "caf\\udce9"


def test_mistakes_of_wrapping(folder: Path):
    source = str(folder / "net.dat")
    for words, key in (
        ((source, str(folder / "o.dat")), "MODEL"),
        ((source, str(folder / "o.model"), "--crop", "2"), "--crop"),
        ((str(folder / "photos"), str(folder / "o.model"), "--crop", "1"), "wraps"),
    ):
        with pytest.raises(UsageError, match=key):
            build.main(words)
    assert build.main([source, str(folder / "o.model")]) == 0
    with pytest.raises(UsageError, match="already"):
        build.main([str(folder / "o.model"), str(folder / "p.model")])
