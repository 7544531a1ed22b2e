"""What users of the old kit type and bring: each row of docs/old_kit.md."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from converted_net import run_script
from places import ROOT
from small_nets import TWO_MAJORS, build, randomise, small_network, some_caps, values

from gti import caps, converter, param_parser
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


def test_variables_of_the_environment():
    notes = param_parser.environment_notes({"GTI_CLIP_BIAS": "True", "GTI_DEBUG_LAYERS": "1"})
    assert "--clip_bias" in notes[0]
    assert "--layer_outputs" in notes[1]
    assert not param_parser.environment_notes({"GTI_CLIP_BIAS": "", "GTI_DEBUG_CONVERSION": "True"})


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
    for name in param_parser.OLD_VARIABLES:
        assert name in page
