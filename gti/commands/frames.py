"""Frames of cameras, streams and films through OpenCV: of what is live, the newest one only."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gti.commands.flags import note
from gti.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ESCAPE = 27
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds before a camera that failed is opened again


def opencv() -> Any:
    """Return the module of OpenCV. Raises UsageError that says how to get it."""
    try:
        return importlib.import_module("cv2")
    except ImportError:
        raise UsageError(
            "camera",
            "OpenCV is not installed",
            fix="pip install opencv-python (Raspberry Pi OS: apt install python3-opencv), or classify image files"
            " with gti classify",
        ) from None


def is_live(source: str) -> bool:
    """Return whether a source goes on by itself, as cameras and streams do and films do not."""
    return source.isdecimal() or source.startswith("/dev/") or "://" in source


def open_source(cv2: Any, source: str) -> Film | Live:
    """Return the frames of the camera with a number, a stream or a film. Raises DeviceError where there are none."""
    return Live(cv2, source) if is_live(source) else Film(cv2, source)


def _open(cv2: Any, source: str) -> Any:
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if capture.isOpened():
        return capture
    capture.release()
    return None


def _opened(cv2: Any, source: str) -> Any:
    capture = _open(cv2, source)
    if capture is None:
        raise DeviceError(
            f"camera {source}", "cannot be opened", fix="check --source, the cable and the camera's permissions"
        )
    return capture


class Film:
    """Every frame of a film, uint8 [H,W,3] BGR, in order."""

    def __init__(self, cv2: Any, source: str) -> None:
        self._capture = _opened(cv2, source)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        while True:
            good, frame = self._capture.read()
            if not good:
                return
            yield frame

    def close(self) -> None:
        """Give the film back."""
        self._capture.release()

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Live:
    """The newest frame of a camera each time one is asked for, uint8 [H,W,3] BGR; what came in between is dropped.

    A camera that fails is opened again, as often as that takes.
    """

    def __init__(self, cv2: Any, source: str, first_pause: float = _FIRST_PAUSE) -> None:
        self._cv2, self._source, self._first_pause = cv2, source, first_pause
        self._capture = _opened(cv2, source)
        self._frame: npt.NDArray[np.uint8] | None = None
        self._news = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"camera {source}", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.is_set():
            good, frame = self._capture.read() if self._capture is not None else (False, None)
            if good:
                with self._news:
                    self._frame = frame
                    self._news.notify_all()
            else:
                self._open_again()

    def _open_again(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        note(f"camera {self._source}: no picture comes any more; it is opened again")
        pause = self._first_pause
        while not self._ended.wait(pause):
            self._capture = _open(self._cv2, self._source)
            if self._capture is not None:
                note(f"camera {self._source}: opened again")
                return
            pause = min(2 * pause, _LONGEST_PAUSE)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        while True:
            with self._news:
                while self._frame is None:
                    self._news.wait(0.2)  # in pieces: Ctrl-C comes through
                frame, self._frame = self._frame, None
            yield frame

    def close(self) -> None:
        """Give the camera back."""
        self._ended.set()
        self._thread.join(5)
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Window:
    """A window, where this computer and its OpenCV can open one; `wanted` and `needed`: by the user.

    Raises UsageError where a needed one cannot be had.
    """

    def __init__(self, cv2: Any, title: str, *, wanted: bool = True, needed: bool = False) -> None:
        self._cv2, self._title = cv2, title
        problem = _window_problem(cv2, title) if wanted or needed else ""
        if problem and needed:
            raise UsageError("window", problem, fix="sit at a screen, or write files with --out")
        if problem:
            note(f"note: no window, because {problem}; lines are printed")
        self.is_open = wanted and not problem

    def show(self, frame: npt.NDArray[np.uint8]) -> bool:
        """Show a frame; return whether the user wants more, which q and Escape deny."""
        if self.is_open:
            self._cv2.imshow(self._title, frame)
            return (self._cv2.waitKey(1) & 0xFF) not in (_ESCAPE, ord("q"))
        return True

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_open:
            with contextlib.suppress(self._cv2.error):
                self._cv2.destroyAllWindows()


def _window_problem(cv2: Any, title: str) -> str:
    # Without a screen OpenCV's window system ends the whole process.
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "this session has no screen (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    try:
        cv2.namedWindow(title)
    except cv2.error:
        return "this OpenCV is built without windows (opencv-python-headless)"
    return ""
