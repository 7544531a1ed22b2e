"""Dispatcher: many callers, one stick (or one pool, or the emulator): frames wait in a queue and come back as futures.

One thread feeds whatever computes, with all that waits at that moment, so that encoding overlaps with the chip's work
and the emulator gets batches.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.errors import DeviceError

Image = npt.NDArray[np.uint8]
Maps = list[npt.NDArray[np.uint8]]
_BURST = 256  # images; then those who wait for the stick itself get their turn
_LOOK_S = 0.1  # how soon a wait for the stick sees that all is over


@dataclass(eq=False)
class _Job:
    images: Sequence[Image]
    finish: Callable[[Sequence[Maps]], Any]  # of the maps of all images
    future: Future[Any] = field(default_factory=Future)
    found: list[Maps] = field(default_factory=list)


class Dispatcher:
    """Hands images to `maps` (images -> maps of each, in order) in a thread of its own, while it holds `stick`.

    The thread starts with the first image. It refers to nothing but the arguments, so that what uses a Dispatcher can
    be collected.
    """

    def __init__(
        self, name: str, maps: Callable[[Iterable[Image]], Iterator[Maps]], stick: threading.Lock, counts: Counter[str]
    ) -> None:
        self._name = name
        self._maps = maps
        self._stick = stick
        self._counts = counts
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._again: deque[_Job] = deque()  # read ahead of one that failed
        self._gate = threading.Lock()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._release: Callable[[], None] | None = None
        self.computing = False
        self.problem = ""  # of the last frame, where it failed

    def submit(self, image: Image, finish: Callable[[Maps], Any]) -> Future[Any]:
        """Return the future of what `finish` makes of the maps of `image`; it holds DeviceError where there are none.

        Raises DeviceError after `stop`, and in a child of a fork.
        """
        return self._put(_Job([image], lambda found: finish(found[0])))

    def submit_together(self, images: Sequence[Image], finish: Callable[[Sequence[Maps]], Any]) -> Future[Any]:
        """Return the future of what `finish` makes of the maps of all images; for what computes in batches.

        Where one image has no maps, none of them has a result. Errors as `submit`.
        """
        return self._put(_Job(images, finish))

    def _put(self, job: _Job) -> Future[Any]:
        if os.getpid() != self._pid:
            raise DeviceError(
                self._name, "was opened by another process, before a fork", fix="open the model after the fork"
            )
        with self._gate:
            if self._stopping:
                raise DeviceError(self._name, "was released", fix="open the model again")
            self._jobs.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gti sticks", daemon=True)
                self._thread.start()
        return job.future

    def stop(self, patience_s: float, release: Callable[[], None]) -> bool:
        """Take no more frames, cancel those that wait; return whether nothing is under way after `patience_s`.

        Otherwise the thread calls `release` when the frame in work has ended.
        """
        with self._gate:
            self._stopping = True
            self._jobs.put(None)
            thread = self._thread
        if thread is None:
            return True
        if thread is not threading.current_thread():
            thread.join(patience_s)
        with self._gate:
            if not self.computing:
                return True
            self._release = release
            return False

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopping:
            self._again.append(job)
            while self._again and not self._stopping:
                if self._stick.acquire(timeout=_LOOK_S):
                    with self._gate:
                        self.computing = not self._stopping
                    try:
                        if self.computing:
                            self._burst()
                    finally:
                        self._stick.release()
                        with self._gate:
                            self.computing = False
                            release, self._release = self._release, None
                        if release is not None:
                            release()
        waiting = [*self._again, *([job] if job is not None and job not in self._again else [])]
        while not self._jobs.empty():
            waiting += [one for one in [self._jobs.get()] if one is not None]
        for one in waiting:
            one.future.cancel()

    def _next(self) -> _Job | None:
        if self._stopping:
            return None
        if self._again:
            return self._again.popleft()
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        return job

    def _burst(self) -> None:
        """Compute what waits, until nothing does or something fails."""
        under_way: deque[_Job] = deque()

        def images() -> Iterator[Image]:
            count = 0
            while count < _BURST and (job := self._next()) is not None:
                if job.future.cancelled():
                    continue
                job.found.clear()
                under_way.append(job)
                count += len(job.images)
                yield from job.images

        try:
            for maps in self._maps(images()):
                if self._settle(under_way[0], maps):
                    under_way.popleft()
        except Exception as problem:
            # Answers come in order: the oldest one is it that failed. The others were only read ahead.
            failed = under_way.popleft() if under_way else self._next()
            self._again.extendleft(reversed(under_way))
            if failed is not None:
                self.problem = str(problem)
                self._counts["failed"] += 1
                if failed.future.set_running_or_notify_cancel():
                    failed.future.set_exception(problem)
        else:
            for job in under_way:  # the thread is told to stop
                job.future.cancel()

    def _settle(self, job: _Job, maps: Maps) -> bool:
        """Take the maps of the job's next image; return whether they were the last ones, and the future is done."""
        self.problem = ""
        self._counts["frames"] += 1
        job.found.append(maps)
        if len(job.found) < len(job.images):
            return False
        if job.future.set_running_or_notify_cancel():
            try:
                result = job.finish(job.found)
            except Exception as problem:
                job.future.set_exception(problem)
            else:
                job.future.set_result(result)
        return True
