"""Flags: defaults of the guide, mistakes in one sentence, and a start without heavy imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from gti import caps, old_kit, param_parser
from gti.errors import UsageError
from gti.stage import Stage

NET = ["--net", "vgg16", "--chip", "2801"]
PARSERS = {
    "train.py": param_parser.train_parser,
    "eval.py": param_parser.eval_parser,
    "set_relu_caps.py": param_parser.calibration_parser,
    "convert_to_chip.py": param_parser.convert_parser,
    "chip_infer.py": param_parser.infer_parser,
}


def train(*flags):
    return param_parser.parse(param_parser.train_parser(), [*NET, *flags])


def test_defaults_are_those_of_the_guide():
    # User guide: learning rate 1e-4 (7.1.3), SGD with momentum and weight decay 1e-4 (7.1.7), data folders (7.1.1).
    args = train()
    assert (args.learning_rate, args.optimizer, args.momentum, args.weight_decay) == (1e-4, "sgd", 0.9, 1e-4)
    assert (args.train_data_dir, args.val_data_dir) == ("data/vgg16/train", "data/vgg16/val")
    assert args.checkpoint_dir == "checkpoints"
    assert args.stage is Stage.FLOAT
    args = param_parser.parse(param_parser.calibration_parser(), [*NET, "--checkpoint", "a"])
    assert (args.percentile, args.num_batches) == (99.99, 5)  # 6.3


def test_data_folders_can_be_given_together_or_apart():
    args = train("--data_dir", "flowers", "--val_data_dir", "elsewhere")
    assert (args.train_data_dir, args.val_data_dir) == ("flowers/train", "elsewhere")


@pytest.mark.parametrize(
    ("flags", "stage"),
    [
        ([], Stage.FLOAT),
        (["--quant_w"], Stage.QUANT_W),
        (["--quant_w", "--quant_act"], Stage.QUANT_ACT),
        (["--fuse", "--quant_act", "--quant_w"], Stage.FUSED),
    ],
)
def test_flags_name_a_stage(flags, stage):
    assert train(*flags).stage is stage


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quant_act"], "quantized activations need quantized weights.*add --quant_w"),
        (["--fuse"], "expected --quant_w --quant_act --fuse, received --fuse"),
        (["--quant_w", "--fuse"], "received --quant_w --fuse"),
        (["--train_caps"], "--train_caps"),
        (["--quant_w", "--quant_act", "--fuse", "--train_caps"], "--train_caps"),
        (["--learning_rate", "0"], "--learning_rate: .*'0'"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--learning_rate", "inf"], "--learning_rate"),
        (["--learning_rate", "fast"], "'fast'"),
        (["--weight_decay", "-1"], "--weight_decay"),
        (["--momentum", "1.5"], r"--momentum: .*'1\.5'"),
        (["--num_epochs", "-1"], "--num_epochs: .*'-1'"),
        (["--num_epochs", "2.5"], r"--num_epochs: .*'2\.5'"),
        (["--train_batch_size", "0"], "--train_batch_size: .*'0'"),
        (["--num_epochs", "9" * 30], "--num_epochs: .*9999"),
        (["--classes", "1"], "--classes: .*'1'"),
        (["--image_size", "449"], "448"),
        (["--optimizer", "lion"], "invalid choice"),
        (["--distill_weight", "0.5"], "--distill_weight.*--teacher"),
        (["--distill_temperature", "0", "--teacher", "a"], "--distill_temperature"),
        (["--nesterov", "--optimizer", "adam"], "--nesterov.*adam"),
        (["--nesterov", "--momentum", "0"], "--nesterov"),
        (["--optimizer", "muon", "--momentum", "0"], "--optimizer muon.*--momentum"),
        (["--label_smoothing", "1"], "--label_smoothing: .*0.99"),
        (["--ema", "1"], "--ema"),
        (["--warmup_steps", "-1"], "--warmup_steps: .*'-1'"),
        (["--num_epochs", "2", "--total_epochs", "3"], "--total_epochs"),
        (["--schedule", "cosine", "--schedule_span", "0.5", "0.5"], "--schedule_span.*0.5 0.5"),
        (["--schedule_span", "0.5", "1"], "--schedule_span.*constant"),
        (["--chip", "2803"], "2801.*'2803'"),
        (["--net", "../../etc"], "letters"),
        (["--quantw"], "unrecognized arguments: --quantw"),
        (["--quant"], "unrecognized arguments: --quant"),  # no abbreviations: they would change with new flags
    ],
)
def test_mistakes_are_one_sentence(flags, message):
    with pytest.raises(UsageError, match=message) as error:
        train(*flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("script", PARSERS)
def test_an_empty_path_is_never_taken_for_no_path(script):
    paths = [action for action in PARSERS[script]()._actions if action.metavar in ("DIR", "FILE", "PREFIX")]
    assert len(paths) >= 5
    for action in paths:
        with pytest.raises(UsageError, match=rf"{action.option_strings[0]}: .*''"):
            param_parser.parse(PARSERS[script](), [*NET, action.option_strings[0], ""])


@pytest.mark.parametrize("value", ["0", "-1", "100.1", "nan", "x"])
def test_percentile_is_within_its_range(value):
    with pytest.raises(UsageError, match="--percentile"):
        param_parser.parse(param_parser.calibration_parser(), [*NET, "--checkpoint", "a", "--percentile", value])


@pytest.mark.parametrize("script", PARSERS)
def test_net_and_chip_are_required(script):
    for missing in ("--net", "--chip"):
        flags = [*NET, "--checkpoint", "a"] if script != "train.py" else list(NET)
        del flags[flags.index(missing) : flags.index(missing) + 2]
        with pytest.raises(UsageError, match=f"required: {missing}"):
            param_parser.parse(PARSERS[script](), flags)


@pytest.mark.parametrize("script", PARSERS)
def test_help_explains_every_flag_and_its_default(script):
    parser = PARSERS[script]()
    assert all(action.help for action in parser._actions)
    text = " ".join(parser.format_help().split())
    assert "default: None" not in text
    for action in parser._actions:
        if action.default not in (None, False, "==SUPPRESS=="):
            assert f"default: {action.default}" in text


def test_settings_file_is_that_of_the_net():
    assert caps.settings_file("vgg16") == ROOT / "gti" / "model" / "vgg16_settings.json"
    assert caps.settings_file("vgg16", "caps.json") == Path("caps.json")


@pytest.mark.parametrize("script", ["train.py", "eval.py", "set_relu_caps.py"])
def test_help_and_mistakes_need_no_tensorflow(script):
    code = (
        f"import runpy, sys; sys.argv = [{script!r}, *sys.argv[1:]]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for flags, status in ((["--help"], 0), (["--net", "digits"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


OLD_OR_SETUP = {"setup.py", *old_kit.SCRIPTS}
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "scripts", ROOT / "addon")
    for path in folder.glob("*.py")
    if path.relative_to(ROOT).as_posix() not in OLD_OR_SETUP
)


def test_no_help_imports_anything_heavy():
    code = (
        "import contextlib, io, runpy, sys\n"
        "for script in sys.argv[1:]:\n"
        "    sys.argv = [script, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(script, run_name='__main__')\n"
        "    assert shown.getvalue().startswith('usage: '), script\n"
        "    assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules), script\n"
    )
    assert len(SCRIPTS) > 20
    done = subprocess.run([sys.executable, "-c", code, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "json", "report"),
    [
        (("--json", "a.json"), "a.json", None),
        (("--report", "reports/new"), None, "reports/new"),
        (("--report", "old.folder"), None, "old.folder"),
        (("--report", "a.json"), "a.json", None),  # as before there was --json
        (("--report", "file"), "file", None),
        (("--report", "reports/new", "--json", "a.json"), "a.json", "reports/new"),
    ],
)
@pytest.mark.usefixtures("in_tmp_path")
def test_a_report_is_a_folder_and_json_a_file(flags, json, report, capsys):
    Path("old.folder").mkdir()
    Path("file").touch()
    for script in ("eval.py", "chip_infer.py"):
        args = param_parser.parse(PARSERS[script](), [*NET, "--checkpoint", "a", *flags])
        assert (args.json, args.report) == (json, report)
        note = capsys.readouterr().err
        assert note.count("\n") == ("--json" not in flags and json is not None)
        assert (f"--json {json}" in note) == bool(note)
