"""scripts/check.py as a user types it: verdict, exit status, figures; without TensorFlow for files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from places import ROOT

from gti import files
from gti.chip.network import json_form as networks
from gti.errors import FormatError
from gti.importing import feasibility

SCRIPT = ROOT / "scripts" / "check.py"


def check(*words, code="") -> subprocess.CompletedProcess:
    start = [SCRIPT] if not code else ["-c", code, SCRIPT]
    return subprocess.run(
        [sys.executable, *map(str, start), *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def broken_json(folder: Path) -> Path:
    value = files.read_json(ROOT / "nets" / "2801_digits_dat.json")
    value["layer"][0] |= {"image_size": 32, "output_channels": 24}
    value["layer"][1]["coef_bits"] = 2
    files.write_json(folder / "broken.json", value)
    return folder / "broken.json"


def test_a_net_that_fits(tmp_path):
    result = check("nets/2801_vgg16_dat.json", "--fc", "4096,4096,1001", "--json", tmp_path / "out.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("nets/2801_vgg16_dat.json: fits the GTI 2801.")
    assert "2.8 TOPS as advertised, not measured" in result.stdout
    value = json.loads((tmp_path / "out.json").read_text())
    assert value["fits"]
    assert value["rows"] == 28576  # docs/dat_format.md section 1
    assert value["violations"] == value["changes"] == []
    assert [layer["outputs"] for layer in value["host"]] == [4096, 4096, 1001]
    assert len(value["sublayers"]) == 13


def test_one_reason(tmp_path):
    value = files.read_json(ROOT / "nets" / "2801_digits_dat.json")
    value["layer"][1]["coef_bits"] = 2
    files.write_json(tmp_path / "broken.json", value)
    assert "does not fit the GTI 2801, for 1 reason:\n" in check(tmp_path / "broken.json").stdout


def test_a_net_that_does_not_fit_gets_every_reason_and_the_nearest_that_does(tmp_path):
    result = check(broken_json(tmp_path), "--json", tmp_path / "out.json")
    assert result.returncode == 1, result.stderr
    value = json.loads((tmp_path / "out.json").read_text())
    assert {violation["rule"] for violation in value["violations"]} == {
        "image-size",
        "output-channels",
        "size-chain",
        "channel-chain",
        "coef-bits",
    }
    assert all(violation["alternative"] for violation in value["violations"])
    for violation in value["violations"]:
        assert violation["sentence"] in result.stdout
    assert "major 1: image_size 32 -> 28" in result.stdout
    networks.check(networks.from_json(value["network"], "repaired"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "network"),
        (["nets/2801_digits_dat.json", "--net", "digits"], "network"),
        (["no_such.json"], "file"),
        (["--net", "digits", "--nets_dir", "elsewhere"], "--nets_dir"),
        (["no_such.keras"], "file"),
        (["nets/2801_digits_dat.json", "--fc", "10,x"], "whole"),
        (["nets/2801_digits_model.json"], "take nets/2801_digits_dat.json"),
        (["nets"], "nets: is not a regular file"),
        (["/dev/null"], "/dev/null: is not a regular file"),
    ],
)
def test_mistakes(words, part):
    result = check(*words)
    assert result.returncode == 2
    assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("value", "name", "word", "right"),
    [
        ({"layer": [{"operation": "GTICNN"}]}, "2801_x.model.json", ".MODEL container", "2801_x.dat.json"),
        ({"layer": [{"operation": "GTICNN"}]}, "other.json", ".MODEL container", "<chip>_<net>_dat.json"),
        ({"relu_caps": {"digits/conv1_1/relu_cap": 5}}, "digits_settings.json", "caps", "<chip>_<net>_dat.json"),
        ({"relu_cap": {"conv1_1": 5}, "mask_bit": {}}, "2801_digits.json", "caps", "<chip>_<net>_dat.json"),
        ({"crop_fraction": 0.5}, "pipeline.json", "crop_fraction", "<chip>_<net>_dat.json"),
    ],
)
def test_json_of_other_kinds_is_one_sentence(tmp_path, value, name, word, right):
    path = tmp_path / name
    files.write_json(path, value)
    for read in (feasibility.of_json, networks.load):
        with pytest.raises(FormatError) as caught:
            read(path)
        assert word in str(caught.value)
        assert right in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_network_is_not_written_over_with_its_figures(tmp_path):
    path = broken_json(tmp_path)
    before = path.read_bytes()
    result = check(path, "--json", path)
    assert result.returncode == 2
    assert "overwritten" in result.stderr
    assert path.read_bytes() == before


def test_converted_files_are_for_another_script(tmp_path):
    path = tmp_path / "a.MODEL"
    path.touch()
    result = check(str(path))
    assert result.returncode == 2
    assert f"{path}: is converted already" in result.stderr
    assert f"gti info {path}" in result.stderr


def test_files_need_no_tensorflow():
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    result = check("nets/2801_digits_dat.json", code=code)
    assert result.returncode == 0, result.stderr


def test_host_layers_of_a_net_without_making_their_weights():
    study = feasibility.of_json(ROOT / "nets" / "2801_vgg16_dat.json")
    host = feasibility.with_host_of_net(study, "vgg16", 1001).host
    assert [(layer.name, layer.inputs, layer.outputs) for layer in host] == [
        ("fc6", 25088, 4096),
        ("fc7", 4096, 4096),
        ("fc8", 4096, 1001),
    ]


@pytest.mark.parametrize(
    ("label_file", "classes", "outputs"),
    [(None, None, 1001), ("a\nb\nc\n", None, 4), ("a\nb\nc\n", 7, 7)],
)
def test_classes_of_a_net_are_those_of_its_label_file(tmp_path, monkeypatch, label_file, classes, outputs):
    if label_file:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "digits_labels.txt").write_text(label_file)
    study = feasibility.of_json(ROOT / "nets" / "2801_digits_dat.json")
    monkeypatch.chdir(tmp_path)
    study = feasibility.with_host_of_net(study, "digits", classes, ROOT / "nets")
    assert [layer.outputs for layer in study.host] == [outputs]
    assert any("1001 are assumed" in note for note in study.notes) == (label_file is None)


def test_convolutions_of_the_host_are_named(tmp_path):
    from gti.layers import ChipConv2D, ChipFlatten, HostDense

    behind = keras.layers.Conv2D(8, 5, name="behind")
    model = keras.Sequential([keras.Input((14, 14, 3)), ChipConv2D(16, 3), behind, ChipFlatten(), HostDense(4)])
    model.save(tmp_path / "host.keras")
    assert any("the host computes behind:" in note for note in feasibility.of_model_file(tmp_path / "host.keras").notes)


def test_open_questions_about_silicon_are_said(tmp_path):
    value = files.read_json(ROOT / "nets" / "2801_digits_dat.json")
    value["layer"][1] |= {"pooling": False}
    files.write_json(tmp_path / "unpooled.json", value)
    (note,) = feasibility.of_json(tmp_path / "unpooled.json").notes
    assert "FC read-out (mode 0), which chip_infer.py classifies with, needs 7x7" in note
    assert "gti run --mode single" in note


def test_advice_goes_up_and_the_nearest_network_and_the_host_follow_it(tmp_path):
    value = files.read_json(ROOT / "nets" / "2801_digits_dat.json")
    value["layer"][1]["output_channels"] = 48
    files.write_json(tmp_path / "narrow.json", value)
    study = feasibility.of_json(tmp_path / "narrow.json", units=[10])
    assert [str(change) for change in study.changes] == ["major 2: output_channels 48 -> 64"]
    assert "nearest legal value is 64" in str(study.violations[0])
    assert study.host[0].inputs == 7 * 7 * 64


def plain(*layers, shape=(56, 56, 3)):
    head = [keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input(shape), *layers, *head])


def conv(filters, size=3, **options):
    return keras.layers.Conv2D(filters, size, **({"padding": "same", "activation": "relu"} | options))


def test_the_nearest_network_contains_the_fixes_that_are_advised(tmp_path):
    pool = keras.layers.MaxPooling2D
    plain(conv(48, 5), pool(), conv(64, strides=2), conv(2000), pool()).save(tmp_path / "x.keras")
    study = feasibility.of_model_file(tmp_path / "x.keras")
    fixes = [violation.fix for violation in study.violations]
    assert any("two 3x3" in fix for fix in fixes)
    assert any("2x2 max pooling" in fix for fix in fixes)
    found = [(c.size, c.output_channels, c.pooled) for c in study.budget.network.convolutions]
    assert found == [(56, 64, False), (56, 64, True), (28, 64, True), (14, 1024, True)]
    assert study.host[0].inputs == 7 * 7 * 1024
    assert any("48 -> 64" in note for note in study.notes)


def test_padded_channels_fit_as_the_import_takes_them(tmp_path):
    plain(conv(48), keras.layers.MaxPooling2D(), shape=(14, 14, 3)).save(tmp_path / "x.keras")
    study = feasibility.of_model_file(tmp_path / "x.keras")
    assert study.fits
    assert study.host[0].inputs == 7 * 7 * 64


def test_an_image_size_that_the_chip_lacks_is_named_with_those_that_end_alike(tmp_path):
    pool = keras.layers.MaxPooling2D
    plain(*[layer for _ in range(5) for layer in (conv(16), pool())], shape=(240, 240, 3)).save(tmp_path / "x.keras")
    (problem,) = feasibility.of_model_file(tmp_path / "x.keras").violations
    assert "--image_size 224" in problem.fix
    assert feasibility.of_model_file(tmp_path / "x.keras", image_size=224).fits


def test_one_coef_is_unknown_arithmetic(tmp_path):
    value = files.read_json(ROOT / "nets" / "2801_digits_dat.json")
    value["layer"][0]["one_coef"] = [1, 0]
    files.write_json(tmp_path / "one.json", value)
    assert any("one_coef" in note and "not known" in note for note in feasibility.of_json(tmp_path / "one.json").notes)


def test_model_files_of_other_tools(tmp_path):
    from scripts.dev import sample_models as model_files

    path = model_files.write(model_files.torch_style(model_files.Vgg(blocks=((12, 16), (48,)))), tmp_path)
    result = check(path, "--coef_bits", "3,1")
    assert result.returncode == 0, result.stderr
    assert "12 -> 16" in result.stdout
    (tmp_path / "vgg.pth").write_bytes(model_files.torch_zip(model_files.state_dict(model_files.Vgg())))
    assert feasibility.of_model_file(tmp_path / "vgg.pth").fits
