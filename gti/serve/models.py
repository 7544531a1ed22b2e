"""What the server asks for answers: a Classifier, or an EdgeModel with the same few members."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gti.chip.host import edge_head
from gti.chip.loaded_model import load_model
from gti.chip.runtime.classifier import Classifier
from gti.chip.runtime.edges import EdgeModel
from gti.errors import DeviceError, FormatError, ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gti.chip.usb.transport import Settings


@dataclass(frozen=True)
class Answer:
    """What came of one picture: labels as [{"index", "label", "probability"}], or a PNG."""

    result: list[dict[str, Any]]
    png: bytes = b""


class Model(Protocol):
    """A network that answers pictures. `compute` may be called by many tasks at the same time."""

    kind: str  # "classify" or "edges"
    name: str  # the file's, without its ending
    labels: list[str]

    @property
    def devices(self) -> list[str]:
        """What computes."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Frames, failed, refused; with a stick: loads, faults, recovered."""

    @property
    def problem(self) -> str:
        """Why the last frame failed, "" where it did not."""

    async def compute(self, data: bytes) -> Answer:
        """Return the answer for an image file. Raises ImageError, FormatError, DeviceError."""

    def release(self) -> None:
        """Give the sticks back."""


class Labels:
    """A full .MODEL; `classifier`: open."""

    kind = "classify"

    def __init__(self, name: str, classifier: Classifier) -> None:
        self.name = name
        self.labels = list(classifier.labels)
        self._classifier = classifier

    @property
    def devices(self) -> list[str]:
        return self._classifier.device_descriptions

    @property
    def counters(self) -> Mapping[str, int]:
        return self._classifier.counters

    @property
    def problem(self) -> str:
        return self._classifier.problem

    async def compute(self, data: bytes) -> Answer:
        future = await asyncio.to_thread(self._classifier.submit, data)
        labels = await asyncio.wrap_future(future)
        return Answer([{"index": one.index, "label": one.text, "probability": one.probability} for one in labels])

    def release(self) -> None:
        self._classifier.release()


class Edges:
    """A .MODEL for edges; `models`: open, on a stick each."""

    kind = "edges"

    def __init__(self, name: str, models: Sequence[EdgeModel]) -> None:
        self.name = name
        self.labels: list[str] = []
        self.problem = ""
        self.counters: Counter[str] = Counter(frames=0, failed=0, refused=0)
        self._models = models
        self._counting = threading.Lock()
        self._free: queue.SimpleQueue[EdgeModel] = queue.SimpleQueue()
        for model in models:
            self._free.put(model)

    @property
    def devices(self) -> list[str]:
        return [model.device_description for model in self._models]

    async def compute(self, data: bytes) -> Answer:
        return Answer([], await asyncio.to_thread(self._picture, data))

    def _picture(self, data: bytes) -> bytes:
        from PIL import Image

        try:
            pixels, size = self._models[0].load(data)
        except (ImageError, FormatError):
            self._count("refused", self.problem)
            raise
        model = self._free.get()
        try:
            logits = model.logits(pixels)
        except DeviceError as problem:
            self._count("failed", str(problem))
            raise
        finally:
            self._free.put(model)
        self._count("frames", "")
        # A larger picture of edges shows nothing more than the network has seen.
        scale = min(1.0, _LONGEST_SIDE / max(size))
        shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        grey = edge_head.picture(edge_head.probabilities(logits, shown), invert=True)
        file = io.BytesIO()
        Image.fromarray(grey).save(file, "PNG")
        return file.getvalue()

    def _count(self, what: str, problem: str) -> None:
        with self._counting:
            self.counters[what] += 1
            self.problem = problem

    def release(self) -> None:
        for model in self._models:
            model.release()


_LONGEST_SIDE = 1280


def open_model(path: str | os.PathLike[str], devices: Sequence[str], settings: Settings | None = None) -> Model:
    """Return the network of a .MODEL on `devices`. Raises FormatError, UsageError, DeviceError."""
    container = load_model(Path(path)).container
    name = Path(path).name.rpartition(".")[0] or Path(path).name
    if container is not None and edge_head.KEY in container.header:
        with ExitStack() as opened:
            models = [opened.enter_context(EdgeModel(path, device, settings=settings)) for device in devices]
            opened.pop_all()
        return Edges(name, models)
    return Labels(name, Classifier(path, devices, settings=settings))
