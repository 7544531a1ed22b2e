"""What users of the old kit type and bring: each row of docs/old_kit.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from converted_net import run_script
from places import ROOT
from small_nets import TWO_MAJORS, build, randomise, small_network, some_caps, values

from gti import caps, converter, old_kit, param_parser
from gti.errors import FormatError, UsageError
from gti.training import checkpoint

NETWORK = small_network(*TWO_MAJORS)
COMMON = ("--net", "digits", "--chip", "2801")
PARSERS = {
    "train": (param_parser.train_parser, ()),
    "eval": (param_parser.eval_parser, ("--checkpoint", "c")),
    "caps": (param_parser.calibration_parser, ("--checkpoint", "c")),
    "infer": (param_parser.infer_parser, ("--checkpoint", "c")),
}


def parsed(script: str, *flags: str):
    make, needed = PARSERS[script]
    return param_parser.parse(make(), [*COMMON, *needed, *flags])


@pytest.mark.parametrize(
    ("script", "flags", "name"),
    [
        ("train", ("--keep_last_n_checkpoints", "3"), "keep"),
        ("eval", ("--batch_size", "3"), "val_batch_size"),
        ("caps", ("--batch_size", "3"), "train_batch_size"),
        ("infer", ("--data_size", "3"), "num_examples"),
        ("infer", ("--batch_size", "3"), "val_batch_size"),
    ],
)
def test_flags_of_the_same_meaning_work(script, flags, name):
    assert getattr(parsed(script, *flags), name) == 3
    assert getattr(parsed(script), name) != 3


@pytest.mark.parametrize(
    ("script", "flag", "today"),
    [
        ("train", "--train_size=5", "--steps_per_epoch"),
        ("train", "--val_size=5", "counted"),
        ("train", "--best_checkpoint_dir=d", "--checkpoint_dir"),
        ("train", "--last_checkpoint_dir=d", "--checkpoint_dir"),
        ("eval", "--data_size=5", "whole set"),
        ("caps", "--data_size=5", "--num_batches"),
        ("caps", "--quant_act", "leave it out"),
        ("caps", "--fuse", "leave it out"),
    ],
)
def test_flags_of_another_meaning_name_todays(script, flag, today):
    with pytest.raises(UsageError, match=f"{flag.partition('=')[0]}: is a flag of the old kit.*{today}"):
        parsed(script, flag)


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("addon/infer_full.py", "--model=m"),
        ("addon/infer_full.py", "--data_dir"),
        ("addon/infer_full.py", "--data_size"),
        ("addon/infer_full.py", "--image_size"),
        ("scripts/port_weights.py", "--npy=f"),
        ("scripts/port_weights.py", "--save_checkpoint_to"),
    ],
)
def test_flags_of_scripts_of_another_name(script, flag):
    with pytest.raises(UsageError, match="old kit"):
        run_script(script, flag)


@pytest.mark.parametrize("script", PARSERS)
def test_old_flags_are_hidden(script):
    text = PARSERS[script][0]().format_help()
    assert not re.search(r"--(train_size|data_size|batch_size|keep_last|best_checkpoint|last_checkpoint)", text)


@pytest.mark.parametrize("script", old_kit.SCRIPTS)
def test_scripts_that_have_another_name_say_it(script):
    flags = ("--model", "m", "--npy=f", "x")
    done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    today = re.search(r"\w+/\w+\.py", old_kit.SCRIPTS[script])[0]
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {script}: is a script of the old kit")
    assert today in done.stderr
    assert (ROOT / today).is_file()


@pytest.mark.parametrize(
    ("function", "layer"),
    [
        ("conv2d", "ChipConv2D"),
        ("batch_norm", "ChipConv2D"),
        ("relu", "ChipConv2D"),
        ("max_pool", "ChipPooling(0)"),
        ("topleft_pool", "ChipPooling(1)"),
        ("fully_connected", "HostDense"),
    ],
)
def test_functions_of_layers_name_the_layer_of_today(function, layer):
    from gti import layers

    assert hasattr(layers, layer.partition("(")[0])
    with pytest.raises(UsageError, match=re.escape(f"gti.layers.{function}: is a function of the old kit")) as caught:
        exec(f"from gti.layers import {function}")
    assert layer in str(caught.value)
    with pytest.raises(UsageError):
        getattr(layers, function)
    assert not hasattr(layers, "conv3d")


def test_table_of_functions_is_complete():
    assert set(old_kit.FUNCTIONS) == {"conv2d", "relu", "max_pool", "topleft_pool", "fully_connected", "batch_norm"}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"GTI_CLIP_BIAS": "True"}, "--clip_bias"),
        ({"GTI_CLIP_BIAS": "1"}, "--clip_bias"),
        ({"GTI_DEBUG_LAYERS": "yes"}, "--layer_outputs"),
        ({"GTI_DEBUG_LAYER": "True"}, "GTI_DEBUG_LAYER is not read by this kit"),
        ({"GTI_CLIP_BIAS": ""}, ""),
        ({"GTI_CLIP_BIAS": "False"}, ""),
        ({"GTI_DEBUG_CONVERSION": "True", "GTI_LOCK_DIR": "/x", "GTISDKPATH": "/sdk"}, ""),
    ],
)
def test_variables_that_are_not_read_are_told(environment, told):
    (note,) = old_kit.notes(environment) or [""]
    assert bool(note) == bool(told)
    assert told in note


@pytest.mark.parametrize("command", [["scripts/check.py", "none.json"], ["-m", "gti", "info", "none.dat"]])
def test_every_command_tells_variables(command):
    environment = os.environ | {"GTI_CLIP_BIAS": "True"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("note: GTI_CLIP_BIAS")
    assert done.returncode == 2


def test_variables_of_today_are_those_that_the_kit_reads_or_sets():
    found = {
        name
        for path in (ROOT / "gti").rglob("*.py")
        if path.name != "old_kit.py"
        for name in re.findall(r'"(GTI_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert found == old_kit.VARIABLES_OF_TODAY


def test_settings_of_both_forms(tmp_path):
    path = tmp_path / "2801_digits.json"
    path.write_text(json.dumps({"relu_cap": {"conv1_1": 5.25, "digits/conv1_2": 2}, "mask_bit": {"conv1_1": 3}}))
    assert caps.load(path, "digits") == {"digits/conv1_1/relu_cap": 5.25, "digits/conv1_2/relu_cap": 2.0}
    path.write_text(json.dumps({"relu_cap": {"conv1_1": "x"}}))
    with pytest.raises(FormatError):
        caps.load(path, "digits")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_checkpoints_are_normalised_where_they_are_read(tmp_path, monkeypatch, batch_norm):
    import tensorflow as tf

    from gti.model import digits

    monkeypatch.setattr(digits, "BATCH_NORM", batch_norm)
    model = build(NETWORK, tmp_path, classes=5, quant_w=True, quant_act=True, caps=some_caps(NETWORK))
    randomise(model, seed=3)
    ours = values(model)
    if batch_norm:
        ours = {
            name: np.zeros_like(v) if name.endswith("/biases") and "/conv" in name else v for name, v in ours.items()
        }
    theirs = {name: v.reshape(1) if name.endswith("relu_cap") else v for name, v in ours.items()}
    if batch_norm:
        theirs = {name: v for name, v in theirs.items() if not (name.endswith("/biases") and "/conv" in name)}
    assert theirs.keys() != ours.keys() or not batch_norm
    prefix = str(tmp_path / "old")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(theirs),
        shape_and_slices=[""] * len(theirs),
        tensors=[tf.constant(value) for value in theirs.values()],
    )
    arrays, metadata = checkpoint.load(prefix)
    assert metadata is None
    assert {name: np.shape(v) for name, v in arrays.items()} == {name: np.shape(v) for name, v in ours.items()}
    expected = converter.convert(NETWORK, ours, net="digits").dat()
    assert converter.convert(NETWORK, arrays, net="digits").dat() == expected


def test_every_old_flag_is_in_the_page():
    page = (ROOT / "docs" / "old_kit.md").read_text()
    for make, _ in PARSERS.values():
        for action in make()._actions:
            if type(action).__name__ == "Refusal":
                assert action.option_strings[0] in page
    for name in (*old_kit.VARIABLES, *old_kit.FUNCTIONS):
        assert name in page
    for script, today in old_kit.SCRIPTS.items():
        (line,) = [line for line in page.splitlines() if f"| `{script}" in line]
        assert re.search(r"\w+/\w+\.py", today)[0] in line
