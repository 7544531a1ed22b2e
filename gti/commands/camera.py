"""Classify what a camera sees with a full .MODEL, on sticks or without any, and without TensorFlow:

    gti camera nets/2801_digits_full.model
    gti camera nets/2801_digits_full.model --source film.mp4 --no_window --frames 100
    gti camera pets.model --every 1 --json --on cat --run "aplay meow.wav"

Of a camera or stream the newest frame is taken, of a film every one; a camera that fails is opened again. --run starts
its command, without a shell, each time that a label of --on comes up; GTI_LABEL and GTI_PROBABILITY are in its
environment. Needs OpenCV (`pip install opencv-python`, on a Raspberry Pi also `apt install python3-opencv`), which
gti classify does without. In the window, q or Escape ends it; without a window, Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from gti.commands import flags, frames
from gti.errors import UsageError, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gti.chip.runtime.classifier import Classifier, Label

WINDOW = "GTI"


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("camera", __doc__)
    result.add_argument("model", type=flags.model_file, help="full .MODEL, chip layers and host layers in one file")
    result.add_argument("--source", default="0", help="number of the camera, or a video file or stream (default: 0)")
    result.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    result.add_argument("--every", type=float, metavar="SECONDS", help="look at one frame in so many seconds")
    result.add_argument("--no_window", action="store_true", help="print lines, open no window")
    flags.add_json(result)
    action = result.add_argument_group("when a label comes up")
    action.add_argument("--on", action="append", default=[], metavar="LABEL", help="the label; may be repeated")
    action.add_argument("--run", metavar="COMMAND", help="what to start then")
    action.add_argument(
        "--at_least", type=float, default=0.5, metavar="P", help="probability that counts as coming up (default: 0.5)"
    )
    flags.add_device(result, more="; several sticks as a list with commas")
    return result


class Trigger:
    """Starts a command each time that one of `labels` comes up: the frame before had another one, or none for sure."""

    def __init__(self, labels: Sequence[str], command: Sequence[str], at_least: float) -> None:
        self._labels, self._command, self._at_least = set(labels), list(command), at_least
        self._before: str | None = None
        self._running: subprocess.Popen[bytes] | None = None

    def see(self, best: Label) -> None:
        """Look at the best label of a frame. A command that still runs is not started a second time."""
        now = best.text if best.probability >= self._at_least else None
        rises = now != self._before and now in self._labels
        self._before = now
        if rises and (self._running is None or self._running.poll() is not None):
            named = {"GTI_LABEL": best.text, "GTI_PROBABILITY": f"{best.probability:.6f}"}
            try:
                self._running = subprocess.Popen(self._command, env=os.environ | named, stdin=subprocess.DEVNULL)
            except OSError as problem:
                flags.note(f"error: --run {self._command[0]}: {problem.strerror}")


def trigger(args: argparse.Namespace, known: Sequence[str]) -> Trigger | None:
    """Return what --on and --run ask for, None without them. Raises UsageError; `known`: the file's labels."""
    if bool(args.on) != bool(args.run):
        raise UsageError("--on and --run", "belong together", fix="pass both, or neither")
    if not args.run:
        return None
    unknown = [label for label in args.on if label not in known]
    if unknown:
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise UsageError("--on", "is no label of the model", expected=f"one of {shown}", received=unknown[0])
    try:
        command = shlex.split(args.run)
    except ValueError as problem:
        raise UsageError("--run", f"is not understood ({problem})", received=args.run) from None
    if not command or shutil.which(command[0]) is None:
        raise UsageError("--run", "names no program that can be started", received=args.run)
    return Trigger(args.on, command, args.at_least)


class Taken:
    """Frames on their way to the network, and those whose result is still to come."""

    def __init__(self, source: frames.Film | frames.Live, limit: int | None, every: float | None) -> None:
        self.waiting: deque[Any] = deque()
        self.ended = False
        self._source, self._limit, self._every = source, limit, every or 0.0

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        due = 0.0
        for count, frame in enumerate(self._spaced(due), 1):
            self.waiting.append(frame)
            yield frame
            if self.ended or count == self._limit:
                return

    def _spaced(self, due: float) -> Iterator[npt.NDArray[np.uint8]]:
        for frame in self._source:
            if time.monotonic() < due:
                if isinstance(self._source, frames.Live):
                    time.sleep(min(0.02, self._every))
                continue
            due = time.monotonic() + self._every
            yield frame


def results(model: Classifier, taken: Taken, *, together: bool) -> Iterator[list[Label]]:
    """Yield the labels of each frame; `together`: frames wait for each other, as several sticks want it."""
    if together:
        yield from model.classify(model.preprocessing.apply(frame, "BGR") for frame in taken)
        return
    for frame in taken:
        yield from model.classify([model.preprocessing.apply(frame, "BGR")])


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line and classify frame after frame."""
    args = parser().parse_args(words)
    flags.at_least_one("--frames", args.frames, "leaves nothing to do")
    if args.every is not None and not 0 < args.every < 1e6:
        raise UsageError("--every", "is no time", expected="seconds above 0", received=args.every)
    options = flags.stick_options(args)
    cv2 = frames.opencv()

    from gti.chip.runtime.classifier import Classifier, Rate

    devices = flags.devices(args.device)
    with Classifier(args.model, devices, **options) as model:
        action = trigger(args, model.labels)
        for description in model.device_descriptions:
            flags.note(description)
        rate = Rate()
        with (
            frames.open_source(cv2, args.source) as source,
            frames.Window(cv2, WINDOW, wanted=not (args.no_window or args.json)) as window,
        ):
            taken = Taken(source, args.frames, args.every)
            for labels in results(model, taken, together=len(devices) > 1):
                frame, best = taken.waiting.popleft(), labels[0]
                if action is not None:
                    action.see(best)
                speed = rate.tick(time.monotonic())
                text = f"{printable(best.text)} {best.probability:.2f}, {speed:.1f} fps"
                if args.json:
                    print(_json(args.source, labels, speed), flush=True)
                elif not window.is_open:
                    print(text, flush=True)
                else:
                    cv2.putText(frame, text, (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 255, 0), 2)
                taken.ended = not window.show(frame)


def _json(source: str, labels: Sequence[Label], speed: float) -> str:
    result = [{"index": one.index, "label": one.text, "probability": one.probability} for one in labels]
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return flags.json_line({"file": source, "time": now, "result": result, "fps": round(speed, 2)})
