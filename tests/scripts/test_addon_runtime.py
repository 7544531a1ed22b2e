"""addon/classify.py and addon/camera.py."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_models import CONTRACT, full_model
from PIL import Image
from places import ROOT

from addon import camera, classify
from gti.chip.runtime.classifier import Classifier
from gti.errors import DeviceError, UsageError


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


def test_images_that_cannot_be_used_are_left_out(folder: Path):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("RGBA", (20, 20)).save(folder / "clear.png")
    files = [folder / "broken.png", folder / "photos" / "b.png", folder / "clear.png", folder / "missing.png"]
    result = run(folder / "full.model", *files, "--device", "virtual")
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [str(files[k]) in line for k, line in zip((0, 2, 3), errors, strict=True)] == [True] * 3
    assert result.stdout.splitlines()[0].startswith(f"{files[1]}: ")
    assert "1 images in" in result.stdout
    assert "3 left out" in result.stdout


def test_mistakes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "empty").mkdir()
    for arguments, words in (
        ((folder / "full.model", folder / "empty"), "images"),
        ((folder / "full.model", folder / "photos", "--top", 0), "prints nothing"),
        ((folder / "full.model", folder / "photos", "--device", "what"), "is not understood"),
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
        classify.find_images([str(folder / "photos")])


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


class Film:
    """What cv2.VideoCapture does, with frames in memory."""

    frames: list[np.ndarray] = []
    opened = True
    released = 0

    def __init__(self, source: int | str) -> None:
        self.source = source
        self._left = list(self.frames)

    def isOpened(self) -> bool:  # noqa: N802  (the name in OpenCV)
        return self.opened

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self._left.pop(0)) if self._left else (False, None)

    def release(self) -> None:
        type(self).released += 1


@pytest.fixture
def cv2(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for OpenCV that counts what is shown; its window is closed with q after the third frame."""
    module = types.ModuleType("cv2")
    random = np.random.RandomState(4)
    film = type(
        "OneFilm", (Film,), {"frames": [random.randint(0, 256, (48, 64, 3)).astype(np.uint8) for _ in range(6)]}
    )
    module.VideoCapture = film  # type: ignore[attr-defined]
    module.shown = []  # type: ignore[attr-defined]
    module.texts = []  # type: ignore[attr-defined]
    module.FONT_HERSHEY_SIMPLEX = 0  # type: ignore[attr-defined]
    module.putText = lambda frame, text, *rest: module.texts.append(text)  # type: ignore[attr-defined]
    module.imshow = lambda name, frame: module.shown.append(frame)  # type: ignore[attr-defined]
    module.waitKey = lambda wait: ord("q") if len(module.shown) == 3 else -1  # type: ignore[attr-defined]
    module.destroyAllWindows = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", module)
    return module


def see(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> None:
    words = ["camera.py", str(folder / "full.model"), "--device", "virtual", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", words)
    camera.main()


def test_camera_prints_what_the_classifier_says(folder: Path, cv2: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    see(monkeypatch, folder, "--no_window", "--frames", 4)
    lines = capsys.readouterr().out.splitlines()
    frames = cv2.VideoCapture.frames[:4]
    with Classifier(folder / "full.model", ["virtual"]) as model:
        best = [labels[0] for labels in model.classify(CONTRACT.apply(frame, "BGR") for frame in frames)]
    assert [line.rpartition(", ")[0] for line in lines] == [f"{label.text} {label.probability:.2f}" for label in best]
    assert cv2.VideoCapture.released == 1


def test_camera_shows_each_frame_with_its_own_result(folder: Path, cv2: Any, monkeypatch: pytest.MonkeyPatch):
    see(monkeypatch, folder)
    assert len(cv2.texts) == len(cv2.shown)
    for shown, frame in zip(cv2.shown, cv2.VideoCapture.frames, strict=False):
        assert shown is frame
    # q ended it; the frame that was under way already is shown too.
    assert 3 <= len(cv2.shown) <= 4
    assert cv2.VideoCapture.released == 1


def test_camera_mistakes(folder: Path, cv2: Any, monkeypatch: pytest.MonkeyPatch):
    cv2.VideoCapture.opened = False
    with pytest.raises(DeviceError, match="camera 7"):
        see(monkeypatch, folder, "--source", 7)
    with pytest.raises(UsageError, match="leaves nothing to do"):
        see(monkeypatch, folder, "--frames", 0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"OpenCV is not installed.*pip install opencv-python"):
        see(monkeypatch, folder)
