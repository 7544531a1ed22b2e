"""Outputs that cannot be written are told before the work; what a script says when it is stopped early."""

from __future__ import annotations

import converted_net
import pytest
from converted_net import COMMON, run_script

from gti import converter, files
from gti.errors import CheckpointError, UsageError
from gti.importing import pretrained
from gti.stage import Stage
from gti.training import checkpoint, checkpoint_folder, restore
from gti.training import loop as training


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return converted_net.make(tmp_path_factory.mktemp("net"), Stage.QUANT_ACT)


@pytest.fixture
def no_work(monkeypatch):
    def begun(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(restore, "build_model", begun)
    monkeypatch.setattr(restore, "open_checkpoint", lambda *args, **kwargs: restore.Source("a", {}, None))
    monkeypatch.setattr(pretrained, "read", begun)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("new.json", ""),
        ("old.json", ""),
        ("absent/new.json", "No such file or directory"),
        ("old.json/new.json", "Not a directory"),
        ("", "is a folder; expected a file to write"),
    ],
)
def test_a_file_is_tried_without_a_trace(tmp_path, path, message):
    (tmp_path / "old.json").write_text("kept")
    if message:
        with pytest.raises(UsageError, match=message):
            files.check_writable(tmp_path / path)
    else:
        files.check_writable(tmp_path / path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old.json", "kept")]


@pytest.mark.parametrize(
    ("path", "message"), [("", ""), ("a/b", ""), ("file", "File exists"), ("file/a", "Not a directory")]
)
def test_a_folder_is_made_and_tried(tmp_path, path, message):
    (tmp_path / "file").write_text("kept")
    if message:
        with pytest.raises(UsageError, match=message):
            files.make_writable_folder(tmp_path / path)
    else:
        files.make_writable_folder(tmp_path / path)
        assert not [p for p in (tmp_path / path).iterdir() if p.name not in ("file", "a")]


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("train.py", "--checkpoint_dir"),
        ("train.py", "--log_dir"),
        ("eval.py", "--json"),
        ("eval.py", "--report"),
        ("set_relu_caps.py", "--settings_file"),
        ("set_relu_caps.py", "--report"),
        ("scripts/port_weights.py", "--checkpoint_dir"),
    ],
)
@pytest.mark.usefixtures("no_work")
def test_scripts_try_their_outputs_first(net, tmp_path, script, flag):
    (tmp_path / "file").write_text("")
    flags = [*COMMON, "--nets_dir", net.folder, flag, tmp_path / "file" / "new"]
    (tmp_path / "a.index").touch()
    data = net.folder / "data" / "val"
    flags += {
        "train.py": ("--train_data_dir", data, "--val_data_dir", data, "--classes", 5),
        "eval.py": ("--checkpoint", tmp_path / "a", "--val_data_dir", data, "--classes", 5),
        "set_relu_caps.py": ("--checkpoint", tmp_path / "a", "--train_data_dir", data, "--classes", 5),
        "scripts/port_weights.py": ("--weights", "a", "--input", "bgr"),
    }[script]
    with pytest.raises(UsageError, match="file/new"):
        run_script(script, *flags)


@pytest.mark.usefixtures("no_work")
def test_port_weights_looks_for_an_old_checkpoint_first(net, tmp_path):
    prefix = tmp_path / "digits-2801-epoch-0"
    checkpoint.index_path(prefix).write_text("")
    flags = ("--checkpoint_dir", tmp_path, "--weights", "a", "--input", "bgr")
    with pytest.raises(CheckpointError, match="--checkpoint_dir"):
        run_script("scripts/port_weights.py", *COMMON, "--nets_dir", net.folder, *flags)


@pytest.mark.parametrize("name", ["../x", ""])
def test_port_weights_takes_names_of_nets_alone(name):
    flags = ("--chip", "2801", "--weights", "a", "--input", "bgr")
    with pytest.raises(UsageError, match="--net"):
        run_script("scripts/port_weights.py", "--net", name, *flags)


@pytest.mark.parametrize(
    "case",  # resumed from a checkpoint, saved one since, message
    [
        (False, False, "stopped; no checkpoint was saved yet"),
        (False, True, "stopped; go on with --resume_from FOLDER"),
        (True, False, "stopped; go on with --resume_from SOURCE"),
        (True, True, "stopped; go on with --resume_from FOLDER, or from SOURCE"),
    ],
)
def test_what_is_said_after_ctrl_c_exists(net, tmp_path, monkeypatch, capsys, case):
    resumed, saved, message = case

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    monkeypatch.setattr(checkpoint_folder, "latest", lambda *args, **kwargs: "found" if saved else None)
    data, folder = net.folder / "data" / "val", tmp_path / "ck"
    flags = ["--train_data_dir", data, "--val_data_dir", data, "--checkpoint_dir", folder]
    flags += ["--resume_from", net.checkpoint, "--quant_w", "--quant_act"] if resumed else ["--classes", 5]
    with pytest.raises(KeyboardInterrupt):
        run_script("train.py", *COMMON, "--nets_dir", net.folder, *flags)
    expected = message.replace("FOLDER", str(folder)).replace("SOURCE", str(net.checkpoint))
    assert capsys.readouterr().err.splitlines()[-1] == expected


@pytest.mark.parametrize("script", ["convert_to_chip.py", "addon/convert_full.py"])
def test_conversion_makes_its_folders_or_says_at_once_that_it_cannot(net, script, tmp_path, monkeypatch):
    labels = ("--labels_file", net.folder / "data" / "labels.txt") if "full" in script else ()
    run_script(script, *net.flags, *labels, "--output_dir", tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "2801_digits.dat").is_file()
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(converter, "convert", lambda *args, **kwargs: pytest.fail("the work has begun"))
    for flag in ("--output_dir", "--report"):
        with pytest.raises(UsageError, match=r"file: cannot be made a folder \(File exists\)"):
            run_script(script, *net.flags, *labels, "--output_dir", tmp_path, flag, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
