"""Classifier: a full .MODEL on one stick or several, images in, labels and probabilities out; no TensorFlow.

    with Classifier("nets/2801_digits_full.model") as model:
        for labels in model.classify(model.preprocessing.load(path) for path in paths):
            print(labels[0].text, labels[0].probability)

    model = Classifier("nets/2801_digits_full.model")   # for months, from any thread
    labels = model.classify_one(frame, order="BGR")

The sticks, or without any the emulator in batches, run the layers of the chip, the host runs the others, and the
preprocessing is that of the file.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from gti.chip.driver import GtiModel
from gti.chip.host import preprocessing
from gti.chip.host.host_layers import HostLayers, Label
from gti.chip.loaded_model import load_model
from gti.chip.runtime.dispatch import Dispatcher, Maps
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.runtime.opening import EMULATOR, open_stick_or_emulator
from gti.chip.spec import FC_SHIFT, MAX_CODE
from gti.chip.usb.transport import Settings
from gti.chip.wire.protocol import Mode
from gti.errors import DeviceError, FormatError, ImageError, UsageError

if TYPE_CHECKING:
    from gti.chip.runtime.pool import GtiPool

__all__ = ["Classifier", "Label", "Picture", "Rate"]

K = TypeVar("K")
# An array in memory, an image file, or the bytes of one.
Picture: TypeAlias = "npt.NDArray[np.uint8] | str | os.PathLike[str] | bytes"
# What may wait for the sticks of one `classify_many`.
_AHEAD = 64
_PATIENCE_S = 1.0  # for the frame in work when all is to end


class Classifier:
    """The full .MODEL `path` on the sticks `devices`, `--device` texts; more than one make a pool. One alone may be
    "emulator", which is also what "auto" takes where no stick answers.

    `record`: a file for every USB transfer, of one stick only. Raises FormatError for the file (also for one without
    host layers), UsageError for wrong arguments, DeviceError when a stick cannot be had.

    `classify_one`, `classify_many`, `submit` and `features` may be called by any thread, all of them at the same time;
    the iterator of `classify` has the sticks for itself until it ends. Released by `release`, at the end of a `with`,
    or when it is collected.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        devices: str | Sequence[str] = "auto",
        *,
        settings: Settings | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        devices = (devices,) if isinstance(devices, str) else tuple(devices)
        self._sticks: GtiModel | EngineModel | GtiPool
        if len(devices) == 1:
            self._sticks = open_stick_or_emulator(path, devices[0], None, settings=settings, record=record)
        else:
            from gti.chip.runtime.pool import GtiPool

            if record is not None:
                raise UsageError("--record", "writes the session of one stick", received=list(devices))
            if EMULATOR in devices:
                raise UsageError(
                    "--device",
                    "has the emulator beside others",
                    expected="sticks with commas between them, or emulator alone",
                    received=",".join(devices),
                )
            self._sticks = GtiPool(path, devices, settings=settings)
        try:
            loaded = load_model(Path(path))
            self._host = loaded.host_layers()
            if loaded.mode != Mode.FC and len(devices) > 1:
                raise UsageError(
                    loaded.name, "cannot be fed to several sticks", expected='"mode": 0', received=loaded.mode
                )
            self._streams = loaded.mode == Mode.FC
            self.labels = self._host.labels
            self.has_contract = preprocessing.KEY in loaded.full_container().header
            self.preprocessing = loaded.preprocessing()
        except BaseException:
            self._sticks.release()
            raise
        self._name = loaded.name
        self._counts: Counter[str] = Counter()
        self._turn = threading.Lock()  # held by whoever feeds the sticks
        self._streaming: int | None = None  # thread whose `classify` has it
        # Nothing here refers to the Classifier, so that it can be collected while the thread waits.
        self._queue = Dispatcher(self._name, partial(_maps, self._sticks, self._streams), self._turn, self._counts)
        self._end = weakref.finalize(self, _end, self._queue, self._sticks, os.getpid())

    @property
    def device_descriptions(self) -> list[str]:
        """What each stick at work is."""
        if isinstance(self._sticks, (GtiModel, EngineModel)):
            return [self._sticks.device_description]
        return list(self._sticks.device_descriptions)

    @property
    def together(self) -> int:
        """How many images' results come at once: those of a batch in the emulator, one from sticks."""
        return self._sticks.together if isinstance(self._sticks, EngineModel) and self._streams else 1

    def classify(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[list[Label]]:
        """Yield the labels of each image, in order, most probable first.

        `images`: uint8 [H,W,C] as `preprocessing.load` or `preprocessing.apply` returns them. The next images are read
        and encoded while the sticks compute. Raises ImageError for other arrays, DeviceError when no result can be had.
        """
        self._take_turn()
        self._streaming = threading.get_ident()
        try:
            maps = _maps(self._sticks, self._streams, (self._host.chip_image(image) for image in images))
            while group := list(itertools.islice(maps, self.together)):
                for labels in self._host.labels_of(group):
                    self._counts["frames"] += 1
                    yield labels
        finally:
            self._streaming = None
            self._turn.release()

    def _take_turn(self) -> None:
        self._refuse_own_stream()
        self._turn.acquire()

    def _refuse_own_stream(self) -> None:
        if self._streaming == threading.get_ident():  # it would wait for itself
            raise UsageError(
                self._name,
                "is busy with an iterator of classify of this thread",
                fix="finish or close that iterator first, or use classify_many",
            )

    # For many callers

    def classify_one(self, image: Picture, order: str = "RGB") -> list[Label]:
        """Return the labels of a picture, most probable first; callers of several threads take turns.

        `image`: uint8 [H,W,C] or [H,W] of any size, whose channels are in `order`, "RGB" or "BGR"; or an image file,
        or the bytes of one, whose order is known. It is cropped and resized as the .MODEL says. Raises ImageError for
        other arrays, ImageError or FormatError for files, DeviceError when no result can be had.
        """
        self._refuse_own_stream()
        return _result(self.submit(image, order))

    def classify_many(
        self, images: Iterable[tuple[K, Picture]], order: str = "RGB"
    ) -> Iterator[tuple[K, list[Label] | ImageError | FormatError]]:
        """Yield (key, labels) of each (key, picture) in order; a picture that cannot be used yields its error instead.

        Pictures are as of `classify_one`; they are prepared while the sticks compute. Raises DeviceError when no result
        can be had; what is under way is lost.
        """
        # Sticks take one image after the other. The emulator computes many together: what comes while it is at work
        # makes the next group, which costs far less than as many futures; none goes beyond a batch of the stream.
        limit, most = (self.together, 1) if self.together > 1 else (1, _AHEAD)
        waiting: deque[_Group[K]] = deque()
        group: _Group[K] = _Group()
        try:
            for count, (key, image) in enumerate(images, 1):
                self._refuse_own_stream()
                try:
                    group.add(key, self._host.chip_image(self._prepared(image, order)))
                except (ImageError, FormatError) as problem:
                    self._counts["refused"] += 1
                    group.add(key, problem)
                if len(waiting) < most or count % limit == 0:
                    waiting.append(group.sent(self._queue, self._host))
                    group = _Group()
                while waiting and (len(waiting) > most or waiting[0].is_settled()):
                    yield from waiting.popleft().outcomes()
            if group.keys:
                waiting.append(group.sent(self._queue, self._host))
            while waiting:
                yield from waiting.popleft().outcomes()
        finally:
            for left in waiting:
                left.cancel()

    def submit(self, image: Picture, order: str = "RGB") -> Future[list[Label]]:
        """Return at once a future of what `classify_one` returns. Raises ImageError and FormatError at
        once, DeviceError after `release`; the future holds DeviceError when no result can be had."""
        chip_image = self._host.chip_image(self._counted(image, order))
        return self._queue.submit(chip_image, partial(_labels, self._host))

    def features(self, image: Picture, order: str = "RGB") -> npt.NDArray[np.float32]:
        """Return what the chip's last layer says about a picture, float32 [channels]: codes 0..31, averaged over their
        positions. Arguments and errors as `classify_one`."""
        self._refuse_own_stream()
        chip_image = self._host.chip_image(self._counted(image, order))
        shift = FC_SHIFT if self._streams else 0
        return _result(self._queue.submit(chip_image, partial(_averages, shift)))

    def _counted(self, image: Picture, order: str) -> npt.NDArray[np.uint8]:
        try:
            return self._prepared(image, order)
        except (ImageError, FormatError):
            self._counts["refused"] += 1
            raise

    def _prepared(self, image: Picture, order: str) -> npt.NDArray[np.uint8]:
        if isinstance(image, (str, os.PathLike, bytes)):
            return self.preprocessing.load(image)
        return self.preprocessing.apply(image, order)

    # What happened

    @property
    def counters(self) -> dict[str, int]:
        """Since the start: frames answered, failed (no result), refused (images), and of one stick loads, faults and
        recovered frames."""
        found = {"frames": 0, "failed": 0, "refused": 0, **self._counts}
        of_link = self._sticks.counts if isinstance(self._sticks, GtiModel) and self._end.alive else {}
        return {**found, **{name: of_link.get(name, 0) for name in ("loads", "faults", "recovered")}}

    @property
    def state(self) -> str:
        """What the sticks do now: "ready", "computing", "failing" (no result for the last frame) or "released"."""
        if not self._end.alive:
            return "released"
        if self._queue.problem:
            return "failing"
        return "computing" if self._queue.computing or self._streaming is not None else "ready"

    @property
    def problem(self) -> str:
        """Why the last frame failed, "" where it did not."""
        return self._queue.problem

    def release(self) -> None:
        """Give the sticks back; safe to call twice. Frames that wait are cancelled."""
        self._end()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _maps(
    sticks: GtiModel | EngineModel | GtiPool, streams: bool, chip_images: Iterable[npt.NDArray[np.uint8]]
) -> Iterator[Maps]:
    """Yield the maps of each image as a stick delivers them; `streams`: whether it is read out in mode FC."""
    if not streams:
        for image in chip_images:
            yield cast("GtiModel | EngineModel", sticks).raw_maps(image)
        return
    if isinstance(sticks, EngineModel) and sticks.top_code == MAX_CODE:
        for batch in sticks.code_batches(chip_images):
            yield from ([planes] for planes in batch.astype(np.uint8, copy=False) << np.uint8(FC_SHIFT))
        return
    for codes in sticks.evaluate_many(chip_images):
        planes = codes[0].transpose(2, 0, 1).astype(np.uint8)
        yield [planes << FC_SHIFT]


def _labels(host: HostLayers, maps: Maps) -> list[Label]:
    return host.labels_of([maps])[0]


def _averages(shift: int, maps: Maps) -> npt.NDArray[np.float32]:
    means: npt.NDArray[np.float32] = (maps[-1] >> shift).mean(axis=(1, 2), dtype=np.float32)
    return means


T = TypeVar("T")


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise DeviceError("Classifier", "was released while a frame waited", fix="open the model again") from None
    except BaseException:
        future.cancel()  # Ctrl-C while it waits: nobody wants it any more
        raise


class _Group(Generic[K]):
    """Pictures of one `classify_many` that go to the sticks together, and those that cannot be used."""

    def __init__(self) -> None:
        self.keys: list[K] = []
        self._images: list[npt.NDArray[np.uint8]] = []
        self._problems: dict[int, ImageError | FormatError] = {}  # by place
        self._answers: Future[list[list[Label]]] | None = None

    def add(self, key: K, image: npt.NDArray[np.uint8] | ImageError | FormatError) -> None:
        if isinstance(image, Exception):
            self._problems[len(self.keys)] = image
        else:
            self._images.append(image)
        self.keys.append(key)

    def sent(self, queue: Dispatcher, host: HostLayers) -> _Group[K]:
        """Hand the pictures to the sticks; return itself."""
        if self._images:
            self._answers = queue.submit_together(self._images, host.labels_of)
        return self

    def is_settled(self) -> bool:
        return self._answers is None or self._answers.done()

    def cancel(self) -> None:
        if self._answers is not None:
            self._answers.cancel()

    def outcomes(self) -> Iterator[tuple[K, list[Label] | ImageError | FormatError]]:
        """Wait for the answers, yield them in order."""
        answers = iter(_result(self._answers) if self._answers is not None else ())
        for place, key in enumerate(self.keys):
            yield key, self._problems[place] if place in self._problems else next(answers)


def _end(waiting: Dispatcher, sticks: GtiModel | EngineModel | GtiPool, pid: int) -> None:
    """Give the sticks back, unless this is a child of the process that has them."""
    if os.getpid() != pid:
        return
    if waiting.stop(_PATIENCE_S, sticks.release):
        sticks.release()
    elif not isinstance(sticks, (GtiModel, EngineModel)):
        sticks.kill()


class Rate:
    """Frames per second over the last `window` frames; `tick(time)` at each one, seconds."""

    def __init__(self, window: int = 30) -> None:
        self._times: deque[float] = deque(maxlen=window + 1)

    def tick(self, now: float) -> float:
        """Count a frame and return frames per second, 0.0 for the first one."""
        self._times.append(now)
        passed = now - self._times[0]
        return (len(self._times) - 1) / passed if passed > 0 else 0.0
