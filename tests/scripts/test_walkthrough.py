"""docs/walkthrough.md: it holds every command of the user guide, and all of them run, here for a small network."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from converted_net import ROOT, run_script

from gti import caps
from gti.errors import FormatError, UsageError

# Command lines of the user guide 2.1.3.1 with its placeholders filled in, by section. --output_directory has another
# value, and CHECKPOINT stands for any: the guide leaves both to the reader.
GUIDE = {
    "6.1 help": "python train.py --help",
    "6.1 resume": "python train.py --net vgg16 --chip 2801 --resume_from CHECKPOINT",
    "6.2, 7.1.4": "python train.py --net vgg16 --chip 2801 --resume_from CHECKPOINT --quant_w",
    "6.3.1, 7.1.4": "python set_relu_caps.py --net vgg16 --chip 2801 --checkpoint CHECKPOINT --quant_w",
    "6.3.2": "python train.py --net vgg16 --chip 2801 --resume_from CHECKPOINT --quant_w --quant_act",
    "6.3.3": "python eval.py --net vgg16 --chip 2801 --checkpoint CHECKPOINT --quant_w --quant_act",
    "6.4": "python train.py --net vgg16 --chip 2801 --resume_from CHECKPOINT --quant_w --quant_act --fuse",
    "6.5": "python convert_to_chip.py --net vgg16 --chip 2801 --checkpoint CHECKPOINT --fuse",
    "5.2": "GTI_DEBUG_CONVERSION=True python convert_to_chip.py --net vgg16 --chip 2801 --checkpoint CHECKPOINT",
    "6.5 help": "python chip_infer.py --help",
    "6.5, 7.1.7": (
        "python chip_infer.py --net vgg16 --chip 2801 --checkpoint CHECKPOINT --last_relu_cap vgg16/conv5_3/relu_cap"
    ),
    "7.1.1": (
        "python ../scripts/build_image_data.py --train_directory=train --train_shards=5 --validation_directory=val "
        "--validation_shards=5 --num_threads=5 --output_directory=../data/vgg16 --labels_file=labels.txt"
    ),
    "7.1.3": "python train.py --net vgg16 --chip 2801 --learning_rate 1e-3 --num_epochs 10",
    "7.1.5 float": "python eval.py --net vgg16 --chip 2801 --checkpoint CHECKPOINT",
    "7.1.5": "python eval.py --net vgg16 --chip 2801 --quant_w --quant_act --fuse --checkpoint CHECKPOINT",
}


@pytest.fixture(scope="module")
def walkthrough():
    spec = importlib.util.spec_from_file_location("walkthrough", ROOT / "scripts" / "walkthrough.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["walkthrough"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["walkthrough"]


def without_additions(module, page):
    """The page's commands in the guide's form: without what QUICK and batch sizes add, any checkpoint as one word."""
    shown = []
    for command in module.commands(page.replace("$QUICK", "")):
        words = list(command.words)
        for flag in ("--train_batch_size", "--val_batch_size"):
            if flag in words:
                del words[words.index(flag) : words.index(flag) + 2]
        for flag in ("--resume_from", "--checkpoint"):
            if flag in words:
                words[words.index(flag) + 1] = "CHECKPOINT"
        shown.append(" ".join([f"{name}={value}" for name, value in command.environment.items()] + words))
    return shown


@pytest.mark.parametrize("section", GUIDE)
def test_page_has_every_command_of_the_guide(walkthrough, section):
    assert GUIDE[section] in without_additions(walkthrough, walkthrough.PAGE.read_text())


def test_the_float_checkpoint_is_calibrated_with_quant_w(walkthrough):
    # User guide, section 7.1.4; section 6.3 calibrates the checkpoint with quantized weights.
    checkpoints = [
        command.words[command.words.index("--checkpoint") + 1]
        for command in walkthrough.commands(walkthrough.PAGE.read_text())
        if "set_relu_caps.py" in command.words
    ]
    assert checkpoints == ["checkpoints/vgg16-2801-epoch-2", "checkpoints/best"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("python eval.py \\\n    --net vgg16 # why\n", ["python eval.py --net digits"]),
        ('Q="--keep 1 --seed 2"\npython train.py $Q\n', ["python train.py --keep 1 --seed 2"]),
        ("A=1 B='2 3' python x.py\n", ["A=1 B='2 3' python x.py"]),
        ("python c.py --last_relu_cap vgg16/conv5_3/relu_cap", ["python c.py --last_relu_cap digits/conv2_2/relu_cap"]),
        ("# nothing\n\ncd pictures\n", ["cd pictures"]),
    ],
)
def test_commands_of_a_block(walkthrough, block, expected):
    page = f"text\n\n```console\n{block.rstrip()}\n```\n\n```\npython not_this_one.py\n```\n"
    assert [str(command) for command in walkthrough.commands(page, "digits", "conv2_2")] == expected


@pytest.mark.parametrize("line", ["rm -rf x", "python train.py $UNKNOWN", "python"])
def test_lines_that_are_refused(walkthrough, line):
    with pytest.raises(FormatError, match="command"):
        walkthrough.commands(f"```console\n{line}\n```\n")


def test_a_command_that_fails_stops_the_walk(walkthrough, tmp_path):
    with pytest.raises(UsageError, match="exit status 2"):
        walkthrough.run(walkthrough.Command(("python", str(ROOT / "eval.py"), "--no_such_flag")), tmp_path)


def test_copy_has_the_code_and_nothing_that_was_trained(walkthrough, tmp_path):
    walkthrough.copy_kit(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"train.py", "gti/model/vgg16.py", "nets/2801_vgg16_dat.json", "addon/convert_full.py"} <= names
    assert not [name for name in names if name.endswith(("_settings.json", ".dat", ".model", ".bin"))]


@pytest.mark.slow
def test_every_command_runs_for_a_small_network(walkthrough, tmp_path, monkeypatch, capsys):
    # The commands of the page with `digits` in place of `vgg16`, in this process, which has TensorFlow already.
    network = walkthrough.network_of("digits")
    walkthrough.copy_kit(tmp_path)
    walkthrough.draw_pictures(tmp_path / "pictures", network.input_shape[0])
    # Caps go beside the package otherwise, where a user's own may lie.
    monkeypatch.setattr(caps, "SETTINGS_DIR", tmp_path)

    def run(command, folder):
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in command.environment.items():
                patch.setenv(name, value)
            script = Path(os.path.normpath(folder / command.words[1])).relative_to(tmp_path)
            try:
                run_script(str(script), *command.words[2:])
            except SystemExit:  # --help
                assert command.words[-1] == "--help"

    monkeypatch.setattr(walkthrough, "run", run)
    steps = walkthrough.commands(walkthrough.PAGE.read_text(), "digits", network.convolutions[-1].name)
    walkthrough.walk(steps, tmp_path)
    walkthrough.check_results(tmp_path, "digits")
    shown = capsys.readouterr().out
    assert "was not converted from" not in shown
    assert len(list((tmp_path / "data" / "digits").rglob("*.tfrecord"))) == 10
    with np.load(tmp_path / "maps" / "image_00000" / "maps.npz") as maps:
        assert maps.files == [convolution.name for convolution in network.convolutions]
    answers = [json.loads(line) for line in shown.splitlines() if line.startswith('{"result"')]
    assert len(answers) == 2
    for answer in answers:
        assert {entry["label"] for entry in answer["result"]} == {"background", *walkthrough.FLOWERS}
        assert sum(entry["probability"] for entry in answer["result"]) == pytest.approx(1, abs=1e-5)
    assert shlex.split(str(steps[-1]))[:2] == ["python", "addon/infer_full.py"]
