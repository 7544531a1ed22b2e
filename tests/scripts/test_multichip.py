"""From a checkpoint to a network on several sticks: the files, the scripts, and the way back to one."""

from __future__ import annotations

import numpy as np
import pytest
from converted_net import NETWORK, make, run_script

from gti import converter, files
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import model_file
from gti.chip.runtime import known_answer
from gti.chip.runtime.chain import ChipChain, open_model
from gti.errors import UsageError
from gti.stage import Stage


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A fused network that was converted for two chips."""
    result = make(tmp_path_factory.mktemp("chips"), Stage.FUSED)
    convert(result, "--num_chips", 2)
    return result


def convert(result, *flags):
    run_script("convert_to_chip.py", *result.flags, "--output_dir", result.folder, "--fuse", *flags)


def test_files_of_two_chips(converted):
    container = model_file.load(converted.model_file)
    chips = [layer for layer in container.layers if layer.operation == "GTICNN"]
    for number, layer in enumerate(chips, 1):
        assert bytes(layer.blob) == (converted.folder / f"2801_digits_chip{number}.dat").read_bytes()
        assert known_answer.KEY in layer.entry
    assert [layer.entry.get("mode", 0) for layer in chips] == [5, 0]
    assert [layer.entry["output scaledown"] for layer in chips[:-1]] == [-3]
    assert files.read_json(converted.folder / "2801_digits.dat.json")["model"][0]["ChipNumber"] == 2


def test_codes_are_those_of_one_chip(converted):
    whole = converter.convert(NETWORK, converted.arrays, net="digits")
    expected = Emulator(whole.network, whole.weights).output(converted.pixels[:3])
    with open_model(converted.model_file, "virtual") as model:
        assert isinstance(model, ChipChain)
        result = np.concatenate(list(model.evaluate_many(converted.pixels[:3])))
    np.testing.assert_array_equal(result.transpose(0, 3, 1, 2), expected)
    assert len(np.unique(expected)) > 3


def test_chip_infer_on_two_sticks(converted, tmp_path, capsys):
    report = tmp_path / "report.json"
    flags = ("--data_dir", converted.folder / "data", "--device", "virtual", "--json", report)
    run_script("chip_infer.py", *converted.flags, "--model_file", converted.model_file, *flags)
    output = capsys.readouterr()
    assert "2 chips: virtual stick" in output.out
    assert "warning" not in output.err
    assert files.read_json(report)["count"] == len(converted.labels)


def test_engine_only_on_two_chips(converted, tmp_path, capsys):
    reports = [tmp_path / "stick.json", tmp_path / "engine.json"]
    for report, flags in zip(reports, [("--device", "virtual"), ("--engine_only",)], strict=True):
        run_script("chip_infer.py", *converted.flags, "--json", report, *flags)
    stick, engine = map(files.read_json, reports)
    assert "no USB framing" in capsys.readouterr().out
    assert {**engine, "device": ""} == {**stick, "device": ""}


def test_chip_number_of_the_json_is_kept_and_one_chip_comes_back(tmp_path):
    result = make(tmp_path, Stage.FUSED)
    convert(result, "--update_templates")
    single, template = result.model_file.read_bytes(), (tmp_path / "2801_digits_model.json").read_bytes()
    convert(result, "--num_chips", 2, "--update_templates")
    double = result.model_file.read_bytes()
    convert(result)  # ChipNumber is in the JSON now
    assert result.model_file.read_bytes() == double
    convert(result, "--num_chips", 1, "--update_templates")
    assert result.model_file.read_bytes() == single
    assert (tmp_path / "2801_digits_model.json").read_bytes() == template


def test_more_chips_than_major_layers(converted):
    before = converted.model_file.read_bytes()
    with pytest.raises(UsageError, match=r"1\.\.2"):
        convert(converted, "--num_chips", 3)
    assert converted.model_file.read_bytes() == before
