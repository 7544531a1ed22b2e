"""Classifier: a full .MODEL on one stick or several, images in, labels and probabilities out; no TensorFlow.

    with Classifier("nets/2801_digits_full.model") as model:
        for labels in model.classify(model.preprocessing.load(path) for path in paths):
            print(labels[0].text, labels[0].probability)

The sticks, or without any the emulator in batches, run the layers of the chip, the host runs the others, and the
preprocessing is that of the file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gti.chip.driver import GtiModel
from gti.chip.host import preprocessing
from gti.chip.loaded_model import load_model
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.runtime.opening import open_stick_or_emulator
from gti.chip.spec import FC_SHIFT
from gti.chip.usb.transport import Settings
from gti.chip.wire.protocol import Mode
from gti.errors import UsageError


@dataclass(frozen=True)
class Label:
    """One class in a result."""

    index: int  # 0 = background
    text: str
    probability: float  # 0..1


class Classifier:
    """The full .MODEL `path` on the sticks `devices`, `--device` texts; more than one make a pool. One alone may be
    "emulator", which is also what "auto" takes where no stick answers.

    `record`: a file for every USB transfer, of one stick only. Raises FormatError for the file (also for one without
    host layers), UsageError for wrong arguments, DeviceError when a stick cannot be had.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        devices: Sequence[str] = ("auto",),
        *,
        settings: Settings | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        self._sticks: GtiModel | EngineModel | GtiPool
        if len(devices) == 1:
            self._sticks = open_stick_or_emulator(path, devices[0], None, settings=settings, record=record)
        else:
            from gti.chip.runtime.pool import GtiPool

            if record is not None:
                raise UsageError("--record", "writes the session of one stick", received=list(devices))
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
            self.release()
            raise

    @property
    def device_descriptions(self) -> list[str]:
        """What each stick at work is."""
        if isinstance(self._sticks, (GtiModel, EngineModel)):
            return [self._sticks.device_description]
        return list(self._sticks.device_descriptions)

    def classify(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[list[Label]]:
        """Yield the labels of each image, in order, most probable first.

        `images`: uint8 [H,W,C] as `preprocessing.load` or `preprocessing.apply` returns them. The next images are read
        and encoded while the sticks compute. Raises ImageError for other arrays, DeviceError when no result can be had.
        """
        for maps in self._maps(images):
            result = self._host.outcome(maps).result
            yield [Label(entry["index"], entry["label"], entry["probability"]) for entry in result["result"]]

    def _maps(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[list[npt.NDArray[np.uint8]]]:
        if isinstance(self._sticks, (GtiModel, EngineModel)) and not self._streams:
            for image in images:
                yield self._sticks.raw_maps(self._host.chip_image(image))
            return
        for codes in self._sticks.evaluate_many(self._host.chip_image(image) for image in images):
            planes = codes[0].transpose(2, 0, 1).astype(np.uint8)
            yield [planes << FC_SHIFT]

    def release(self) -> None:
        """Give the sticks back; safe to call twice."""
        self._sticks.release()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Rate:
    """Frames per second over the last `window` frames; `tick(time)` at each one, seconds."""

    def __init__(self, window: int = 30) -> None:
        self._times: deque[float] = deque(maxlen=window + 1)

    def tick(self, now: float) -> float:
        """Count a frame and return frames per second, 0.0 for the first one."""
        self._times.append(now)
        passed = now - self._times[0]
        return (len(self._times) - 1) / passed if passed > 0 else 0.0
