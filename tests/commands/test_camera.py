"""gti camera, with a stand-in for OpenCV."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_models import CONTRACT, full_model

from gti.chip.runtime.classifier import Classifier, Label
from gti.commands import camera, frames
from gti.errors import DeviceError, UsageError

FILM = "film.mp4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model."""
    (tmp_path / "full.model").write_bytes(full_model())
    return tmp_path


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
    module.error = type("error", (Exception,), {})  # type: ignore[attr-defined]
    module.namedWindow = lambda title: None  # type: ignore[attr-defined]
    monkeypatch.setenv("DISPLAY", ":0")
    module.imshow = lambda name, frame: module.shown.append(frame)  # type: ignore[attr-defined]
    module.waitKey = lambda wait: ord("q") if len(module.shown) == 3 else -1  # type: ignore[attr-defined]
    module.destroyAllWindows = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", module)
    return module


def see(folder: Path, *arguments: object) -> None:
    source = () if "--source" in arguments else ("--source", FILM)
    camera.main([str(folder / "full.model"), "--device", "virtual", *source, *map(str, arguments)])


def test_camera_prints_what_the_classifier_says(folder: Path, cv2: Any, capsys: Any):
    see(folder, "--no_window", "--frames", 4)
    lines = capsys.readouterr().out.splitlines()
    frames = cv2.VideoCapture.frames[:4]
    with Classifier(folder / "full.model", ["virtual"]) as model:
        best = [labels[0] for labels in model.classify(CONTRACT.apply(frame, "BGR") for frame in frames)]
    assert [line.rpartition(", ")[0] for line in lines] == [f"{label.text} {label.probability:.2f}" for label in best]
    assert cv2.VideoCapture.released == 1


def test_camera_shows_each_frame_with_its_own_result(folder: Path, cv2: Any):
    see(folder)
    assert len(cv2.texts) == len(cv2.shown)
    for shown, frame in zip(cv2.shown, cv2.VideoCapture.frames, strict=False):
        assert shown is frame
    # q ended it; the frame that was under way already is shown too.
    assert 3 <= len(cv2.shown) <= 4
    assert cv2.VideoCapture.released == 1


def test_camera_mistakes(folder: Path, cv2: Any, monkeypatch: pytest.MonkeyPatch):
    cv2.VideoCapture.opened = False
    with pytest.raises(DeviceError, match="camera 7"):
        see(folder, "--source", 7)
    with pytest.raises(UsageError, match="leaves nothing to do"):
        see(folder, "--frames", 0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"OpenCV is not installed.*pip install opencv-python"):
        see(folder)
    with pytest.raises(UsageError, match="--every"):
        see(folder, "--every", 0)


def test_json_lines_open_no_window(folder: Path, cv2: Any, capsys: Any):
    see(folder, "--json", "--frames", 2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [FILM, FILM]
    assert [len(line["result"]) for line in lines] == [4, 4]
    assert not cv2.shown


@pytest.mark.parametrize("missing", ["screen", "windows of OpenCV"])
def test_without_a_window_lines_are_printed(
    missing: str, folder: Path, cv2: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def refuse(title: str) -> None:
        raise cv2.error("The function is not implemented")

    if missing == "screen":
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setattr(sys, "platform", "linux")
    else:
        cv2.namedWindow = refuse
    see(folder, "--frames", 2)
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert shown.err.count("no window") == 1
    assert not cv2.shown


class Cable:
    """A camera that numbers its frames, a few to each opening, and cannot be opened at times."""

    openings = 0
    taken = 0

    def __init__(self, source: int | str) -> None:
        type(self).openings += 1
        self._left = 3 if self.openings != 2 else 0

    def isOpened(self) -> bool:  # noqa: N802  (the name in OpenCV)
        return self.openings != 2

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.01)
        self._left -= 1
        if self._left < 0:
            return False, None
        type(self).taken += 1
        return True, np.full((2, 2, 3), self.taken, np.uint8)

    def release(self) -> None:
        pass


def test_a_live_camera_gives_its_newest_frame_and_is_opened_again(capsys: Any):
    class Camera(Cable):
        pass

    module = types.SimpleNamespace(VideoCapture=Camera)
    with frames.Live(module, "0", first_pause=0.01) as live:
        numbers = []
        for frame in live:
            numbers.append(int(frame[0, 0, 0]))
            if numbers[-1] >= 5:
                break
            time.sleep(0.025)  # longer than the camera takes for a frame
    assert numbers == sorted(set(numbers))
    assert Camera.openings >= 3  # the second one failed
    told = capsys.readouterr().err
    assert "no picture comes" in told
    assert "opened again" in told
    assert [frames.is_live(name) for name in ("0", "/dev/video1", "rtsp://x/y", "a/film.mp4")] == [True] * 3 + [False]


def test_only_a_label_that_comes_up_starts_the_command(tmp_path: Path):
    note = tmp_path / "note"
    code = f"import os; open({str(note)!r}, 'a').write(os.environ['GTI_LABEL'] + os.environ['GTI_PROBABILITY'] + ' ')"
    trigger = camera.Trigger(["cat; rm"], [sys.executable, "-c", code], 0.5)
    seen = [("dog", 0.9), ("cat; rm", 0.4), ("cat; rm", 0.75), ("cat; rm", 0.8), ("dog", 0.9), ("cat; rm", 0.5)]
    for text, probability in seen:
        trigger.see(Label(1, text, probability))
        if trigger._running is not None:
            trigger._running.wait()
    assert note.read_text() == "cat; rm0.750000 cat; rm0.500000 "


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("--on", "cat"), "belong together"),
        (("--run", "true"), "belong together"),
        (("--on", "horse", "--run", "true"), "no label"),
        (("--on", "cat", "--run", "no-such-program-here"), "no program"),
        (("--on", "cat", "--run", "'"), "not understood"),
    ],
)
def test_mistakes_about_actions(words: tuple[str, ...], key: str, folder: Path, cv2: Any):
    with pytest.raises(UsageError, match=key):
        see(folder, *words)


def test_a_film_is_thinned_out_by_every(folder: Path, cv2: Any, capsys: Any):
    see(folder, "--no_window", "--every", 1000)
    assert len(capsys.readouterr().out.splitlines()) == 1
