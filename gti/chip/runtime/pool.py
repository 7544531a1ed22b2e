"""GtiPool: several sticks fed from one queue, results in the order of the images.

Each stick has a process of its own: the work of USB in Python does not share a core's time with that of another stick,
and a stick that fails takes nothing else with it. A frame whose stick fails goes to the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.loaded_model import LoadedModel, load_model
from gti.chip.spec import MAX_CODE
from gti.chip.usb.transport import Settings
from gti.errors import DeviceError, UsageError, sentence

log = logging.getLogger(__name__)

# One image is in the chip, the next one is encoded meanwhile: more would only wait in memory.
_AHEAD = 2
# For a frame in work, or a stick to be given back, when all is to end.
_PATIENCE_S = 1.0
_PROGRAM = "gti.chip.runtime.pool_worker"
# So that the process finds this package also where it is not installed.
_ROOT = str(Path(__file__).resolve().parents[3])


class _Worker:
    """One process with one stick; images go in, results come out, both numbered."""

    def __init__(self, path: str, device: str, options: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())  # before there is a process, which ends when this end is closed
        self.device = device
        self.description = device
        self.waiting: deque[int] = deque()  # numbers of the images it has
        self._disowned = 0  # images before those, whose results nobody waits for any more
        # A program of its own, not a fork: forking a process with threads of numba or TensorFlow in it is unsound.
        search = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C of a terminal reaches the whole group: the pool decides
            env={**os.environ, "PYTHONPATH": search},
        )
        theirs.close()
        self.connection.send((path, device, options))

    def started(self) -> None:
        """Wait until the stick is open. Raises DeviceError when it cannot be."""
        kind, value = self.receive()
        if kind != "ready":
            raise DeviceError(str(value))
        self.description = str(value)

    @property
    def busy(self) -> bool:
        """Whether it has as many images as it should."""
        return self._disowned + len(self.waiting) >= _AHEAD

    def disown(self) -> None:
        """Forget the images that it has; `receive` leaves out their results."""
        self._disowned += len(self.waiting)
        self.waiting.clear()

    def receive(self) -> tuple[str, Any]:
        """Return the next message: ("result", array), ("disowned", array), ("failed", text) or ("ready", text)."""
        try:
            message: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            return "failed", sentence(self.device, "its process ended", fix="see the messages above")
        if message[0] == "result" and self._disowned:
            self._disowned -= 1
            return "disowned", message[1]
        return message

    def send(self, number: int, image: npt.NDArray[np.uint8], cap: float) -> bool:
        """Give it an image; False when it is gone."""
        try:
            self.connection.send((np.ascontiguousarray(image), cap))
        except OSError:
            return False
        self.waiting.append(number)
        return True

    def close(self) -> None:
        """Ask the process to give its stick back and to end; `ended` waits for that."""
        self.connection.close()

    def ended(self, deadline: float) -> None:
        """See that the process is gone: by itself until `deadline` (of time.monotonic), killed then."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once; the system gives the stick back."""
        self._process.kill()
        self._process.wait()


class _Work:
    """The images of one call of `evaluate_many` on their way."""

    def __init__(self, images: Iterable[npt.NDArray[np.uint8]], cap: float) -> None:
        self.cap = cap
        self.images: dict[int, npt.NDArray[np.uint8]] = {}  # sent, or to be sent again
        self.results: dict[int, npt.NDArray[np.float32]] = {}
        self.again: deque[int] = deque()  # lost with a stick
        self.following = 0  # the number whose result comes next
        self.exhausted = False
        self._source = enumerate(images)
        self._taken = 0

    def next(self, limit: int, check: Callable[[npt.NDArray[np.uint8]], object]) -> int | None:
        """Return the number of an image to be sent; None when there is none, or too many are ahead of the oldest."""
        if self.again:
            return self.again.popleft()
        # A slow consumer, or one slow stick, must not fill the memory with results of the others.
        if self.exhausted or self._taken - self.following >= limit:
            return None
        try:
            number, image = next(self._source)
        except StopIteration:
            self.exhausted = True
            return None
        check(image)  # a wrong image is the caller's error, not a stick's
        self.images[number] = image
        self._taken = number + 1
        return number


class GtiPool:
    """A model on several sticks.

    `devices`: `--device` texts, one for each stick ("usb:0", "usb:1", or "virtual" any number of times). `options` go
    to sticks in software: chip_time_ms, engine. Raises FormatError for the file, DeviceError when a stick cannot be
    opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        devices: Sequence[str],
        *,
        mode: str | int | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        if not devices:
            raise UsageError("GtiPool", "has no devices", expected="at least one --device text")
        self._model = load_model(Path(path))
        told = {"mode": mode, "settings": asdict(settings) if settings else None, "chip": options}
        self._start = [(os.fspath(path), device, told) for device in devices]
        self._workers: list[_Worker] = []
        self._released = False
        self._open()

    def _open(self) -> None:
        try:
            for what in self._start:
                self._workers.append(_Worker(*what))
            for worker in self._workers:
                worker.started()
        except Exception:
            self._close()
            raise
        except BaseException:  # Ctrl-C
            self._abort()
            raise

    @property
    def device_descriptions(self) -> list[str]:
        """What each stick at work is."""
        return [worker.description for worker in self._workers]

    @property
    def loaded(self) -> LoadedModel:
        """The file: its header, container and host layers."""
        return self._model

    @property
    def device_description(self) -> str:
        """The sticks at work, in their order."""
        return f"{len(self._workers)} sticks: " + ", ".join(self.device_descriptions)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self._model.size, self._model.size, self._model.planes

    def evaluate(self, image: npt.NDArray[np.uint8], last_relu_cap: float = float(MAX_CODE)) -> npt.NDArray[np.float32]:
        """Return what `GtiModel.evaluate` returns, of the first stick that is free."""
        with contextlib.closing(self.evaluate_many([image], last_relu_cap)) as results:
            return next(results)

    def evaluate_many(
        self, images: Iterable[npt.NDArray[np.uint8]], last_relu_cap: float = float(MAX_CODE)
    ) -> Generator[npt.NDArray[np.float32], None, None]:
        """Yield `GtiModel.evaluate` of each image, in order. Raises DeviceError when the last stick has failed.

        The next call then looks for all of the sticks again, as it does after Ctrl-C.
        """
        if self._released:
            raise DeviceError("GtiPool", "was released", fix="open the model again")
        if not self._workers:
            self._open()
        work = _Work(images, last_relu_cap)
        try:
            while True:
                self._feed(work)
                while work.following in work.results:
                    yield work.results.pop(work.following)
                    work.following += 1
                    self._feed(work)
                if work.exhausted and not work.images:
                    return
                self._collect(work)
        except (Exception, GeneratorExit):
            for worker in self._workers:
                worker.disown()
            raise
        except BaseException:
            # Ctrl-C may fall into the middle of a message: what goes on behind it cannot be understood any more.
            self._abort()
            raise

    def _feed(self, work: _Work) -> None:
        """Give every worker something to do, as far as there is something."""
        for _ in range(_AHEAD):
            for worker in list(self._workers):
                if not worker.busy:
                    number = work.next(limit=2 * _AHEAD * len(self._workers), check=self._model.to_planes)
                    if number is not None and not worker.send(number, work.images[number], work.cap):
                        work.again.appendleft(number)

    def _collect(self, work: _Work) -> None:
        """Take in the results that are there; a worker that fails leaves, its images go to the others."""
        ready = wait([worker.connection for worker in self._workers], timeout=0.5)
        for worker in [worker for worker in self._workers if worker.connection in ready]:
            kind, value = worker.receive()
            if kind == "disowned":
                continue
            if kind == "result":
                number = worker.waiting.popleft()
                del work.images[number]
                work.results[number] = value
                continue
            log.warning("%s: left out from here on: %s", worker.description, value)
            work.again.extendleft(reversed(worker.waiting))
            self._leave(worker)
            if not self._workers:
                raise DeviceError("GtiPool", f"no stick is left; the last one failed: {value}")

    def _leave(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.close()
        worker.ended(time.monotonic() + _PATIENCE_S)

    def _close(self) -> None:
        """Ask all processes to end, then see to it."""
        workers = self._workers
        try:
            deadline = time.monotonic() + _PATIENCE_S
            for worker in workers:
                with contextlib.suppress(OSError):
                    worker.close()
            for worker in workers:
                worker.ended(deadline)
        except BaseException:
            self._abort()
            raise
        self._workers = []

    def release(self) -> None:
        """Give all sticks back; safe to call twice."""
        self._released = True
        try:
            self._close()
        except BaseException:  # Ctrl-C on the way in
            self._abort()
            raise

    def kill(self) -> None:
        """End the processes at once, whatever they do; for other threads than the one that waits for results."""
        for worker in list(self._workers):
            worker.kill()

    def _abort(self) -> None:
        self.kill()
        self._workers = []

    def __enter__(self) -> GtiPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
