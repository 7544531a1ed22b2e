"""gti classify, through its launcher addon/classify.py and by itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_models import CONTRACT, full_model
from PIL import Image
from places import ROOT

from gti.chip.driver import GtiModel
from gti.chip.runtime.classifier import Classifier
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.wire.registers import parse_mode
from gti.commands import classify
from gti.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, a folder of four pictures in two levels and one file that is none."""
    (tmp_path / "full.model").write_bytes(full_model())
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    random = np.random.RandomState(1)
    for name in ("b.png", "a.JPG", "c.bmp", "deep/d.png"):
        Image.fromarray(random.randint(0, 256, (30, 40, 3)).astype(np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run classify.py in a process that tells whether TensorFlow was loaded."""
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('tensorflow', 'tensorflow' in sys.modules))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = [sys.executable, "-c", code, str(ROOT / "addon" / "classify.py"), *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_folder_is_classified_without_tensorflow(folder: Path):
    result = run(folder / "full.model", folder / "photos", "--device", "virtual", "--top", 2)
    assert result.returncode == 0, result.stderr
    *lines, summary, tensorflow = result.stdout.splitlines()
    assert tensorflow == "tensorflow False"
    assert summary.startswith("4 images in ")
    assert summary.endswith(" fps")
    assert "virtual stick" in result.stderr
    assert "note:" not in result.stderr
    paths = [folder / "photos" / name for name in ("a.JPG", "b.png", "c.bmp", "deep/d.png")]
    with Classifier(folder / "full.model", ["virtual"]) as model:
        expected = list(model.classify(CONTRACT.load(path) for path in paths))
    assert lines == [
        f"{path}: " + ", ".join(f"{label.text} {label.probability:.4f}" for label in labels[:2])
        for path, labels in zip(paths, expected, strict=True)
    ]


@pytest.mark.parametrize(("together", "has_rate"), [(64, False), (4, False), (3, True)])
def test_the_rate_counts_no_image_of_the_first_batch(folder: Path, capsys, monkeypatch, together, has_rate):
    monkeypatch.setattr("gti.chip.runtime.engine_model._MOST_TOGETHER", together)
    assert classify.main([str(folder / "full.model"), str(folder / "photos"), "--device", "emulator"]) == 0
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary.startswith("4 images in ")
    assert summary.endswith(" fps") == has_rate


def test_images_that_cannot_be_used_are_left_out(folder: Path, capsys: Any):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("RGBA", (20, 20)).save(folder / "clear.png")
    files = [folder / "broken.png", folder / "photos" / "b.png", folder / "clear.png", folder / "missing.png"]
    assert classify.main([*map(str, [folder / "full.model", *files]), "--device", "virtual"]) == 1
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert [str(files[k]) in line for k, line in zip((0, 2, 3), errors, strict=True)] == [True] * 3
    assert shown.out.splitlines()[0].startswith(f"{files[1]}: ")
    assert "1 images in" in shown.out
    assert "3 left out" in shown.out


def test_mistakes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "empty").mkdir()
    for arguments, words in (
        ((folder / "full.model", folder / "empty"), "images"),
        ((folder / "full.model", folder / "photos", "--top", 0), "prints nothing"),
        ((folder / "full.model", folder / "photos", "--device", "what"), "auto, emulator, usb"),
        ((folder / "full.model", folder / "photos", "--device", "emulator,virtual"), "beside others"),
    ):
        monkeypatch.setattr(sys, "argv", ["classify.py", *map(str, arguments)])
        with pytest.raises(UsageError, match=words):
            classify.main()


def test_a_folder_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def guarded(path: Any):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UsageError, match=r"deep: .*Permission denied"):
        classify.main([str(folder / "full.model"), str(folder / "photos")])


def test_more_labels_than_the_file_gives(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    words = [folder / "full.model", folder / "photos", "--device", "virtual", "--top", 99]
    monkeypatch.setattr(sys, "argv", ["classify.py", *map(str, words)])
    assert classify.main() == 0
    shown = capsys.readouterr()
    given = shown.out.splitlines()[0].count(",") + 1
    assert shown.err.count("note:") == 1
    assert f"note: --top 99, but the file gives {given} labels an image" in shown.err


def test_a_file_without_contract_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    (folder / "old.model").write_bytes(full_model(contract=None))
    picture = folder / "photos" / "b.png"
    monkeypatch.setattr(sys, "argv", ["classify.py", str(folder / "old.model"), str(picture), "--device", "virtual"])
    assert classify.main() == 0
    assert "whole pictures are resized" in capsys.readouterr().err


def test_json_lines_carry_the_file_and_all_labels(folder: Path, capsys: Any):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    files = [folder / "photos" / "b.png", folder / "broken.png", folder / "photos" / "a.JPG"]
    assert classify.main([str(folder / "full.model"), *map(str, files), "--device", "emulator", "--json"]) == 1
    lines = {line["file"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(lines) == set(map(str, files))
    assert "broken.png" in lines[str(files[1])]["error"]
    with Classifier(folder / "full.model", ["virtual"]) as model:
        for path in (files[0], files[2]):
            (labels,) = model.classify([CONTRACT.load(path)])
            told = lines[str(path)]["result"]
            assert told == [{"index": one.index, "label": one.text, "probability": one.probability} for one in labels]


def test_vendor_format_is_the_answer_of_the_whole_model(folder: Path, capsys: Any):
    path = folder / "photos" / "b.png"
    assert classify.main([str(folder / "full.model"), str(path), "--device", "virtual", "--format", "vendor"]) == 0
    with GtiModel(folder / "full.model", "virtual") as stick:
        assert json.loads(capsys.readouterr().out) == stick.full_inference(CONTRACT.load(path))


@pytest.mark.parametrize("name", ["b.png", "array.npy"])
def test_standard_input_is_an_image(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    path = folder / "photos" / name
    if name.endswith(".npy"):
        np.save(path, CONTRACT.load(folder / "photos" / "b.png"))
    model = [str(folder / "full.model"), "--device", "emulator", "--json"]
    assert classify.main([*model, str(path)]) == 0
    expected = json.loads(capsys.readouterr().out)["result"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert classify.main([*model, "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "-", "result": expected}


def test_standard_input_that_is_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    words = [str(folder / "full.model"), "-", "--device", "emulator"]
    for data in (b"no picture", b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        if not data:
            with pytest.raises(UsageError, match="standard input"):
                classify.main(words)
            continue
        assert classify.main(words) == 1
        assert "error: standard input: " in capsys.readouterr().err
    with pytest.raises(UsageError, match="twice"):
        classify.main([words[0], "-", *words[1:]])
    monkeypatch.setattr(sys, "stdin", None)  # gti classify ... <&-
    with pytest.raises(UsageError, match="standard input"):
        classify.main(words)


def test_the_emulator_answers_as_the_stick_in_software(folder: Path):
    images = [CONTRACT.load(path) for path in sorted((folder / "photos").glob("*.*g"))] * 40
    path = folder / "full.model"
    with Classifier(path, ["virtual"]) as one, Classifier(path, ["emulator"]) as two:
        assert two.device_descriptions[0].startswith("emulator in batches")
        assert list(one.classify(images[:3])) == list(two.classify(images[:3]))
        assert len(list(two.classify(images))) == len(images)


@pytest.mark.parametrize("mode", ["fc", "single", "learn"])
def test_maps_of_other_modes_are_those_of_the_stick_in_software(mode: str, folder: Path):
    path, number = folder / "mode.model", int(parse_mode(mode))
    path.write_bytes(full_model(mode=number))
    image = CONTRACT.load(folder / "photos" / "b.png")
    with GtiModel(path, "virtual") as one, EngineModel(path) as two:
        for ours, theirs in zip(one.raw_maps(image), two.raw_maps(image), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_settings_and_recordings_concern_sticks(folder: Path):
    words = [str(folder / "full.model"), str(folder / "photos" / "b.png")]
    with pytest.raises(UsageError, match="NAME=VALUE"):
        classify.main([*words, "--set", "retries"])
    with pytest.raises(UsageError, match="unknown"):
        classify.main([*words, "--set", "colour=red"])
    with pytest.raises(UsageError, match="--record"):
        classify.main([*words, "--device", "emulator", "--record", str(folder / "r.gz")])
    session = str(folder / "session.gz")
    assert classify.main([*words, "--device", "virtual", "--record", session, "--set", "flush=open"]) == 0
    assert classify.main([*words, "--device", f"replay:{session}"]) == 0
