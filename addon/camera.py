"""Classify what a camera sees with a full .MODEL, on sticks or without any, and without TensorFlow:

    python addon/camera.py nets/2801_digits_full.model
    python addon/camera.py nets/2801_digits_full.model --source film.mp4 --no_window --frames 100

Needs OpenCV (`pip install opencv-python`, on a Raspberry Pi also `apt install python3-opencv`); addon/classify.py does
without it. In the window, q or Escape ends it; without a window, Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli
from gti.errors import DeviceError, UsageError, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gti.chip.host.preprocessing import Preprocessing

WINDOW = "GTI"
_ESCAPE = 27


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", help="full .MODEL, as addon/convert_full.py makes it")
    flags.add_argument("--source", default="0", help="number of the camera, or a video file or stream (default: 0)")
    flags.add_argument(
        "--device",
        default="auto",
        help="auto | usb | usb:<serial or index> | virtual | eusb:<serial or node>; several sticks as a list with"
        " commas (default: auto)",
    )
    flags.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    flags.add_argument("--no_window", action="store_true", help="print lines, open no window")
    return flags


def opencv() -> Any:
    """Return the module of OpenCV. Raises UsageError that says how to get it."""
    try:
        return importlib.import_module("cv2")
    except ImportError:
        raise UsageError(
            "camera",
            "OpenCV is not installed",
            fix="pip install opencv-python (Raspberry Pi OS: apt install python3-opencv), or classify image files"
            " with addon/classify.py",
        ) from None


class Camera:
    """Frames of a camera or film, and the last of them for the window."""

    def __init__(self, cv2: Any, source: str, limit: int | None) -> None:
        self._capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        self._limit = limit
        self.shown: deque[Any] = deque()  # frames whose result is still to come
        self.ended = False
        if not self._capture.isOpened():
            raise DeviceError(
                f"camera {source}", "cannot be opened", fix="check --source, the cable and the camera's permissions"
            )

    def images(self, preprocessing: Preprocessing) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield what the chip takes of each frame; OpenCV's frames are BGR."""
        count = 0
        while not self.ended and (self._limit is None or count < self._limit):
            good, frame = self._capture.read()
            if not good:
                return
            count += 1
            self.shown.append(frame)
            yield preprocessing.apply(frame, "BGR")

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()


def main() -> None:
    """Parse the command line and classify frame after frame."""
    args = parser().parse_args()
    if args.frames is not None and args.frames < 1:
        raise UsageError("--frames", "leaves nothing to do", expected="at least 1", received=args.frames)
    cv2 = opencv()

    from gti.chip.runtime.classifier import Classifier, Rate

    with Classifier(args.model, args.device.split(",")) as model:
        for description in model.device_descriptions:
            print(description, file=sys.stderr)
        camera = Camera(cv2, args.source, args.frames)
        rate = Rate()
        try:
            for labels in model.classify(camera.images(model.preprocessing)):
                best = labels[0]
                text = f"{printable(best.text)} {best.probability:.2f}, {rate.tick(time.monotonic()):.1f} fps"
                frame = camera.shown.popleft()
                if args.no_window:
                    print(text, flush=True)
                    continue
                cv2.putText(frame, text, (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 255, 0), 2)
                cv2.imshow(WINDOW, frame)
                camera.ended = cv2.waitKey(1) & 0xFF in (_ESCAPE, ord("q"))
        finally:
            camera.close()
            if not args.no_window:
                cv2.destroyAllWindows()


if __name__ == "__main__":
    cli.run(main)
