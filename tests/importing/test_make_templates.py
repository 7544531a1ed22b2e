"""scripts/make_templates.py: a Keras model becomes the JSON pair that the kit builds the same model from."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import keras
import pytest
from places import ROOT

from gti import files
from gti.chip.network import json_form as networks
from gti.layers import ChipConv2D, ChipFlatten, ChipPooling, HostDense


def make(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["make_templates.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "scripts" / "make_templates.py"), run_name="__main__")
    return left.value.code


def save(folder, *layers, shape=(28, 28, 3)) -> Path:
    path = folder / "model.keras"
    keras.Sequential([keras.Input(shape), *layers]).save(path)
    return path


def test_the_pair_of_digits_is_that_of_the_kit(monkeypatch, tmp_path):
    layers = [ChipConv2D(32, 3), ChipConv2D(32, 3), ChipPooling(), ChipConv2D(64, 1), ChipConv2D(64, 1), ChipPooling()]
    path = save(tmp_path, *layers, ChipFlatten(), HostDense(11))
    assert make(monkeypatch, path, "--net", "digits", "--chip", "2801", "--output_dir", tmp_path) == 0
    for kind in ("dat", "model"):
        name = f"2801_digits_{kind}.json"
        written, kept = files.read_json(tmp_path / name), files.read_json(ROOT / "nets" / name)
        if kind == "dat":
            assert networks.from_json(written, name).layers == tuple(
                networks.from_json(_without_shifts(kept), name).layers
            )
        else:
            assert written == kept
    # An existing pair is not replaced without being asked.
    assert make(monkeypatch, path, "--net", "digits", "--chip", "2801", "--output_dir", tmp_path) == 2
    words = ("--net", "digits", "--chip", "2801", "--output_dir", tmp_path, "--overwrite")
    assert make(monkeypatch, path, *words) == 0


def _without_shifts(value: dict) -> dict:
    # A conversion writes its shifts into the pair of nets/.
    layers = [layer | {"scaling": [0] * layer["sublayer_number"]} for layer in value["layer"]]
    return value | {"layer": layers}


def test_what_does_not_fit_is_refused_with_all_reasons(monkeypatch, tmp_path, capsys):
    path = save(tmp_path, ChipConv2D(2000, 3), ChipPooling(), ChipConv2D(32, 1), shape=(32, 32, 3))
    assert make(monkeypatch, path, "--net", "bad", "--chip", "2801", "--output_dir", tmp_path) == 2
    message = capsys.readouterr().err
    assert "image size" in message
    assert "output_channels" in message
    assert not list(tmp_path.glob("*.json"))


def test_without_a_7x7_result_the_chip_sends_maps(monkeypatch, tmp_path):
    path = save(tmp_path, ChipConv2D(16, 3), ChipPooling())
    assert make(monkeypatch, path, "--net", "maps", "--chip", "2801", "--output_dir", tmp_path) == 0
    chip = files.read_json(tmp_path / "2801_maps_model.json")["layer"][1]
    assert (chip["mode"], chip["output scaledown"], chip["output width"]) == (2, 0, 28)
