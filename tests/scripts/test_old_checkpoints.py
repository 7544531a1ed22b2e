"""Checkpoints in the form of the old TF 1 kit go all the way to the stick, and give what those of today give."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from converted_net import CLASSES, IMAGES, NETWORK, make, run_script
from small_nets import build, randomise, some_caps, values

from gti.chip.formats import model_file
from gti.model import digits
from gti.stage import Stage
from gti.training import checkpoint


def save_as_old(prefix, arrays) -> None:
    """Write what a TF 1 Saver did: caps of shape [1], a step counter, no biases beside batch norm, no metadata."""
    theirs = {name: np.reshape(a, 1) if name.endswith("/relu_cap") else a for name, a in arrays.items()}
    for name in arrays:
        scope, norm, _ = name.partition("/batch_normalization/gamma")
        if norm:
            del theirs[f"{scope}/biases"]
    theirs["global_step"] = np.int64(77)
    prefix.parent.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(theirs),
        shape_and_slices=[""] * len(theirs),
        tensors=[tf.constant(a) for a in theirs.values()],
    )


@pytest.fixture(params=["quant_act", "fused", "batch norm"])
def both(request, tmp_path, monkeypatch):
    """The same weights as a checkpoint of today and as one of the old kit, and the flag that their stage needs."""
    stage = Stage.FUSED if request.param == "fused" else Stage.QUANT_ACT
    ours = make(tmp_path / "ours", stage)
    arrays = ours.arrays
    if request.param == "batch norm":
        monkeypatch.setattr(digits, "BATCH_NORM", True)
        model = build(NETWORK, ours.folder, classes=CLASSES, quant_w=True, quant_act=True, caps=some_caps(NETWORK))
        arrays = randomise(model, seed=4)
        arrays |= {n: 0 * a for n, a in values(model).items() if n.endswith("/biases") and "/conv" in n}
        metadata = checkpoint.read_metadata(ours.checkpoint)
        today = ours.folder / "norm" / ours.checkpoint.name
        checkpoint.save(today, arrays, metadata)
        ours = dataclasses.replace(ours, checkpoint=today)
    old = ours.folder / "old" / "model.ckpt-77"
    save_as_old(old, arrays)
    fuse = ("--fuse",) if stage is Stage.FUSED else ()
    return ours, dataclasses.replace(ours, checkpoint=old), fuse


def converted(made, folder, fuse):
    labels = made.folder / "data" / "labels.txt"
    flags = (*made.flags, "--output_dir", folder, *fuse)
    run_script("convert_to_chip.py", *flags)
    run_script("addon/convert_full.py", *flags, "--labels_file", labels)
    report = folder / "report.json"
    model = ("--model_file", folder / "2801_digits.model")
    run_script("chip_infer.py", *made.flags, *model, "--device", "virtual", "--classes", CLASSES, "--json", report)
    chip, fc, *_ = model_file.load(folder / "2801_digits_full.model").layers
    return (folder / "2801_digits.dat").read_bytes(), bytes(chip.blob), bytes(fc.blob), json.loads(report.read_text())


def test_conversion_full_conversion_and_inference(both, tmp_path):
    ours, old, fuse = both
    expected, found = converted(ours, tmp_path / "a", fuse), converted(old, tmp_path / "b", fuse)
    assert found[:3] == expected[:3]
    assert found[0] == found[1]
    assert found[3]["count"] == IMAGES
    for key in ("accuracy", "top5"):
        assert found[3][key] == expected[3][key]


def test_evaluation_with_the_folder_that_holds_the_records(both, tmp_path):
    figures = []
    ours, old, fuse = both
    for made in (ours, old):
        for data in (made.folder / "data", made.folder / "data" / "val"):
            report = tmp_path / "report.json"
            stage = ("--quant_w", "--quant_act", *fuse)
            run_script("eval.py", *made.flags, *stage, "--data_dir", data, "--classes", CLASSES, "--json", report)
            read = json.loads(report.read_text())
            figures.append([read[key] for key in ("count", "accuracy", "loss")])
    assert figures[0][0] == IMAGES
    assert figures == [figures[0]] * 4


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QUANT_ACT])
def test_training_calibration_comparison_and_porting(tmp_path, stage):
    ours = make(tmp_path / "ours", Stage.QUANT_ACT)
    metadata = dataclasses.replace(checkpoint.read_metadata(ours.checkpoint), stage=stage)
    today = ours.folder / "today" / checkpoint.file_name("digits", stage, 1)
    checkpoint.save(today, ours.arrays, metadata)
    old = ours.folder / "old" / "model.ckpt-77"
    save_as_old(old, ours.arrays)
    common = ("--net", "digits", "--chip", "2801", "--nets_dir", ours.folder)
    data = ("--train_data_dir", ours.folder / "data" / "val")
    found = []
    for number, prefix in enumerate((today, old)):
        folder, caps = tmp_path / f"trained{number}", tmp_path / f"caps{number}.json"
        if stage is Stage.FLOAT:
            run_script("set_relu_caps.py", *common, *data, "--checkpoint", prefix, "--settings_file", caps)
            flags = ("--weights", prefix, "--input", "codes", "--checkpoint_dir", folder)
            run_script("scripts/port_weights.py", *common, *flags)
            arrays, _ = checkpoint.load(folder / "digits-2801-epoch-0")
            found.append((json.loads(caps.read_text())["relu_caps"], arrays))
        else:
            data_dirs = (*data, "--val_data_dir", ours.folder / "data" / "val")
            next_stage = ("--resume_from", prefix, "--quant_w", "--quant_act", "--fuse", "--num_epochs", 0)
            run_script("train.py", *common, *data_dirs, *next_stage, "--checkpoint_dir", folder)
            run_script("convert_to_chip.py", *common, "--checkpoint", prefix, "--output_dir", folder)
            report = tmp_path / "report.json"
            files = ("--model_file", folder / "2801_digits.model", "--json", report)
            data_dir = ("--data_dir", ours.folder / "data", "--device", "none")
            run_script("scripts/compare.py", *common, *data_dir, *files, "--quant_act_checkpoint", prefix)
            arrays, _ = checkpoint.load(folder / "digits-2801-qw-qa-fs-epoch-0")
            found.append((json.loads(report.read_text())["pairs"], arrays))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, array in found[0][1].items():
        np.testing.assert_array_equal(array, found[1][1][name], err_msg=name)
