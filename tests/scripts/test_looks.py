"""Mistakes that flags, files and names tell of are told before TensorFlow is imported, by every root script."""

from __future__ import annotations

import os
import runpy
import shutil
import sys

import converted_net
import pytest
from converted_net import COMMON, ROOT

from gti import converter, files, quiet
from gti.data import folders
from gti.errors import (
    CheckpointError,
    DataError,
    FormatError,
    GtiError,
    NetworkError,
    QuantizationError,
    UsageError,
)
from gti.stage import Stage
from gti.training import checkpoint_folder, ownership

ROOT_SCRIPTS = {
    "train.py": ("--resume_from", "CK", "--quant_w", "--quant_act", "--fuse"),
    "eval.py": ("--checkpoint", "CK", "--quant_w", "--quant_act"),
    "set_relu_caps.py": ("--checkpoint", "CK", "--quant_w", "--settings_file", "TMP/caps.json"),
    "convert_to_chip.py": ("--checkpoint", "CK"),
    "addon/convert_full.py": ("--checkpoint", "CK", "--labels_file", "NET/data/labels.txt"),
    "chip_infer.py": ("--checkpoint", "CK"),
}
WITH_DATA = ("train.py", "eval.py", "set_relu_caps.py", "chip_infer.py")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    made = converted_net.make(tmp_path_factory.mktemp("net"), Stage.QUANT_ACT)
    (made.folder / "data" / "train").symlink_to(made.folder / "data" / "val")
    made.model_file.write_bytes(converter.convert(converted_net.NETWORK, made.arrays, net="digits").dat())
    made.checkpoint.with_name("digits-2801-qw-epoch-1.index").touch()
    return made


@pytest.fixture
def run(net, tmp_path, monkeypatch):
    """Run a script up to the import of TensorFlow, which passes as `ReachedError`; later flags win."""

    class ReachedError(Exception):
        pass

    def stop():
        raise ReachedError

    monkeypatch.setattr(quiet, "import_tensorflow", stop)
    monkeypatch.syspath_prepend(ROOT)

    def run(script, *flags):
        before = net.checkpoint.with_name("digits-2801-qw-epoch-1")
        places = {"CK": net.checkpoint, "QW": before, "NET": net.folder, "TMP": tmp_path}
        if script == "set_relu_caps.py":
            places["CK"] = before
        words = [*COMMON, "--nets_dir", "NET", *ROOT_SCRIPTS.get(script, ())]
        words += ["--data_dir", "NET/data"]
        words += ["--checkpoint_dir", "TMP/ck"] if script == "train.py" else []
        words += ["--output_dir", "TMP/out"] if "convert" in script else []
        words += flags
        for name, place in places.items():
            words = [word.replace(name, str(place), 1) if word.startswith(name) else word for word in map(str, words)]
        monkeypatch.setattr(sys, "argv", [script, *words])
        with pytest.raises((ReachedError, GtiError)) as caught:
            runpy.run_path(str(ROOT / script))["main"]()
        return None if caught.type is ReachedError else caught.value

    return run


@pytest.mark.parametrize("script", ROOT_SCRIPTS)
def test_without_a_mistake_it_comes_to_the_import(run, script):
    assert run(script) is None


@pytest.mark.parametrize("script", ROOT_SCRIPTS)
@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("nowhere", "nowhere: is no checkpoint"),
        ("TMP", "fits"),
        ("TMP/vgg16-2801-epoch-3", "another net"),
    ],
)
def test_checkpoints(run, tmp_path, script, value, word):
    (tmp_path / "vgg16-2801-epoch-3.index").touch()
    found = run(script, "--resume_from" if script == "train.py" else "--checkpoint", value)
    assert isinstance(found, CheckpointError)
    assert word in str(found)


@pytest.mark.parametrize("script", ROOT_SCRIPTS)
def test_the_stage_in_a_file_name(run, tmp_path, script):
    stage = Stage.QUANT_ACT if script == "set_relu_caps.py" else Stage.FLOAT
    prefix = tmp_path / f"digits-2801{stage.suffix}-epoch-3"
    prefix.with_name(prefix.name + ".index").touch()
    if script == "eval.py":  # a float checkpoint may be looked at with more quantization: its caps are what is missing
        found = run(script, "--checkpoint", prefix, "--settings_file", tmp_path / "none.json")
        assert isinstance(found, UsageError)
        assert "caps" in str(found)
        return
    found = run(script, "--resume_from" if script == "train.py" else "--checkpoint", prefix)
    assert isinstance(found, CheckpointError)
    assert stage.label in str(found)


@pytest.mark.parametrize("script", ROOT_SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "kind", "word"),
    [
        (("--net", "nope"), UsageError, "net"),
        (("--nets_dir", "TMP"), FormatError, "--nets_dir"),
        (("--image_size", "300"), UsageError, "image size"),
        (("--image_size", "448"), NetworkError, "448x448"),
    ],
)
def test_nets(run, script, flags, kind, word):
    found = run(script, *flags)
    assert isinstance(found, kind)
    assert word in str(found)


@pytest.mark.parametrize("script", WITH_DATA)
def test_data_folders(run, tmp_path, script):
    assert "folder" in str(run(script, "--data_dir", "TMP/none"))
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    found = run(script, "--data_dir", "TMP")
    assert isinstance(found, DataError)
    assert "images" in str(found)
    for part in ("train", "val"):
        (tmp_path / part / "class 1").mkdir()
    (tmp_path / "labels.txt").write_text("a\nb\na\n")
    assert "stands twice" in str(run(script, "--data_dir", "TMP"))


def test_what_only_some_scripts_need(run, tmp_path):
    assert "no such file" in str(run("chip_infer.py", "--model_file", "TMP/none.model"))
    assert "no such file" in str(run("eval.py", "--settings_file", "TMP/none.json"))
    assert "no such file" in str(run("addon/convert_full.py", "--labels_file", "TMP/none.txt"))
    (tmp_path / "file").touch()
    for script in ("convert_to_chip.py", "addon/convert_full.py"):
        assert "made a folder" in str(run(script, "--output_dir", "TMP/file"))
    assert "cannot be written" in str(run("chip_infer.py", "--json", "TMP/none/x.json"))


@pytest.mark.parametrize(
    ("script", "flags", "refusal"),
    [
        ("train.py", ("--teacher", "QW"), (CheckpointError, "quant_w")),
        ("convert_to_chip.py", ("--num_chips", "9"), (UsageError, "9 chips")),
        ("chip_infer.py", ("--device", "foo"), (UsageError, "--device")),
        ("chip_infer.py", ("--device", "usb:"), (UsageError, "--device")),
        ("chip_infer.py", ("--device", "virtual:rounding=junk"), (UsageError, "rounding")),
        ("chip_infer.py", ("--device", "replay:none.gz"), (FormatError, "none.gz")),
        ("chip_infer.py", ("--device", "replay:TMP/empty"), (FormatError, "recording")),
        ("chip_infer.py", ("--record", "TMP/empty/x.gz"), (UsageError, "cannot be written")),
        ("chip_infer.py", ("--layer_outputs", "TMP/empty"), (UsageError, "made a folder")),
        ("chip_infer.py", ("--last_relu_cap", "nothing"), (UsageError, "digits/conv1_1/relu_cap")),
        ("chip_infer.py", ("--model_file", "TMP/empty"), (FormatError, "empty: is too short")),
        ("chip_infer.py", ("--model_file", "NET/2801_digits_model.json"), (FormatError, "convert_to_chip.py")),
        ("scripts/compare.py", ("--checkpoint_dir", "none"), (CheckpointError, "none: is no folder")),
        ("scripts/compare.py", ("--float_checkpoint", "QW"), (CheckpointError, "--quant_w_checkpoint")),
        ("scripts/compare.py", ("--fused_checkpoint", "none"), (CheckpointError, "none: is no checkpoint")),
        ("scripts/compare.py", ("--device", "foo"), (UsageError, "--device")),
        ("scripts/compare.py", ("--model_file", "TMP/empty"), (FormatError, "empty: is too short")),
        ("scripts/compare.py", ("--recorded", "TMP/none"), (UsageError, "--recorded")),
        ("scripts/compare.py", ("--data_dir", "none"), (DataError, "none/val: no such data folder")),
        ("scripts/compare.py", ("--json", "TMP/empty/x"), (UsageError, "cannot be written")),
    ],
)
def test_flags_of_few_scripts(run, tmp_path, script, flags, refusal):
    kind, word = refusal
    (tmp_path / "empty").touch()
    found = run(script, *(flag.replace("TMP", str(tmp_path)) for flag in flags))
    assert isinstance(found, kind)
    assert word in str(found)


@pytest.mark.parametrize(
    ("script", "flag", "name"),
    [
        ("set_relu_caps.py", "--settings_file", "NET/2801_digits_dat.json"),
        ("eval.py", "--json", "NET/2801_digits_model.json"),
        ("chip_infer.py", "--json", "NET/2801_digits.model"),
        ("chip_infer.py", "--record", "NET/2801_digits.model"),
    ],
)
def test_a_file_that_the_work_reads_is_not_written(run, script, flag, name):
    found = run(script, flag, name)
    assert isinstance(found, UsageError)
    assert "overwritten" in str(found)


def test_class_folders_of_another_number_than_classes(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
    folders.check_classes(tmp_path / "train", 3)
    with pytest.raises(DataError, match="expected 8 folders for --classes 9, received 2"):
        folders.check_classes(tmp_path / "train", 9)


@pytest.mark.parametrize("value", [{"relu_cap": {"conv1_1": 5}}, {"relu_caps": {"vgg16/conv1_1/relu_cap": 5}}])
def test_a_settings_file_without_the_cap_of_a_sublayer(run, net, tmp_path, value):
    files.write_json(tmp_path / "caps.json", value)
    before = net.checkpoint.with_name("digits-2801-qw-epoch-1")
    found = run("eval.py", "--checkpoint", before, "--settings_file", tmp_path / "caps.json")
    assert isinstance(found, QuantizationError)
    assert str(found).startswith(f"{tmp_path / 'caps.json'}: holds no cap of net digits for major 1 / sub")


@pytest.mark.parametrize("script", [script for script in ROOT_SCRIPTS if script != "convert_to_chip.py"])
@pytest.mark.parametrize("key", ["one_coef", "resnet_shortcut_start_layers"])
def test_arithmetic_that_no_model_can_compute(run, net, tmp_path, script, key):
    for kind in ("dat", "model"):
        shutil.copy(net.folder / f"2801_digits_{kind}.json", tmp_path)
    value = files.read_json(tmp_path / "2801_digits_dat.json")
    value["layer"][0][key] = [1, 0] if key == "one_coef" else [1]
    files.write_json(tmp_path / "2801_digits_dat.json", value)
    found = run(script, "--nets_dir", "TMP")
    assert isinstance(found, NetworkError)
    assert f"{key} in major 1" in str(found)


@pytest.mark.parametrize(
    ("name", "stage"),
    [(f"digits-2801{stage.suffix}-epoch-7", stage) for stage in Stage] + [("best-one", None), ("digits-epoch-7", None)],
)
def test_what_a_file_name_tells(tmp_path, name, stage):
    (tmp_path / f"{name}.index").touch()
    assert checkpoint_folder.look(tmp_path / name, net="digits") == (str(tmp_path / name), stage)


def test_a_folder_of_several_stages_tells_the_preferred_one_alone(tmp_path):
    for stage in (Stage.FLOAT, Stage.QUANT_W):
        (tmp_path / f"digits-2801{stage.suffix}-epoch-7.index").touch()
    assert checkpoint_folder.look(tmp_path, net="digits")[1] is None
    assert checkpoint_folder.look(tmp_path, net="digits", preferred=Stage.QUANT_W)[1] is Stage.QUANT_W
    assert checkpoint_folder.look(tmp_path, net="digits", stages=(Stage.FLOAT,))[1] is Stage.FLOAT


def test_a_second_training_in_one_folder_is_refused_before_the_import(run, tmp_path):
    with ownership.owned(tmp_path / "ck"):
        refused = run("train.py")
    assert isinstance(refused, CheckpointError)
    assert f"pid {os.getpid()}" in str(refused)
    assert run("train.py") is None
