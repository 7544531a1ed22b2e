"""EdgeModel: photographs in, edges out. The chip computes the maps of every block, the host makes edges of them.

with EdgeModel("nets/2801_edges.model") as model:
    chance = model.edges(pixels, "RGB")         # float32 [H,W] 0..1, as large as the photograph
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gti.chip.host import edge_head
from gti.chip.host.image import load_image
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.host.resizing import resized
from gti.chip.loaded_model import load_model
from gti.chip.runtime.opening import open_stick_or_emulator
from gti.chip.usb.transport import Settings

_MODE = "sublast"  # the last map of every major layer, before pooling


class EdgeModel:
    """A .MODEL of scripts/make_edges.py on a stick or on the emulator; `device` as in `open_stick_or_emulator`.

    Raises FormatError for the file, DeviceError when a stick cannot be had.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        settings: Settings | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        loaded = load_model(Path(path))
        header = loaded.container.header if loaded.container is not None else {}
        channels = [layer.output_channels for layer in loaded.header.layers]
        self.head = edge_head.from_header(header, channels, os.fspath(path))
        # The whole photograph, whatever its proportions: its edges are stretched back.
        self.preprocessing = Preprocessing(loaded.size, loaded.planes)
        self._model = open_stick_or_emulator(path, device, _MODE, settings=settings, record=record)

    @property
    def device_description(self) -> str:
        """What computes, for people."""
        return self._model.device_description

    @property
    def size(self) -> int:
        """Height = width at which the network looks at a photograph."""
        return self.preprocessing.size

    def load(self, path: str | os.PathLike[str] | bytes) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """Return (pixels for the chip, uint8 [size,size,3] BGR, own height and width) of an image file.

        Raises ImageError and FormatError as `gti.chip.host.image.load_image`.
        """
        own = (self.size, self.size)

        def prepare(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
            nonlocal own
            own = (pixels.shape[0], pixels.shape[1])
            return resized(pixels, self.size)

        return load_image(path, self.size, self.preprocessing.channels, prepare), own

    def logits(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return what the sigmoid takes, float32 [size,size], for pixels as `load` returns them."""
        return self.head.logits(self._model.layer_outputs(image, _MODE))

    def edges(self, image: npt.NDArray[np.uint8], order: str) -> npt.NDArray[np.float32]:
        """Return the chance of an edge, float32 [H,W] 0..1, for a photograph in memory, uint8 [H,W,3].

        `order` declares its channels, "BGR" or "RGB". Raises ImageError for other arrays.
        """
        logits = self.logits(self.preprocessing.apply(image, order))
        return edge_head.probabilities(logits, image.shape[:2])

    def release(self) -> None:
        """Give the stick back; safe to call twice."""
        self._model.release()

    def __enter__(self) -> EdgeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
