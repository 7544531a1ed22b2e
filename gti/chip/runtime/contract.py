"""The contract of everything used like a model: one stick, several in a row, several side by side, the emulator alone.

`GtiModel`, `ChipChain`, `GtiPool` and `EngineModel` meet it; who uses a model asks for one of these, not for a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gti.chip.spec import MAX_CODE

Image = npt.NDArray[np.uint8]  # [H,W,C], 8-bit pixels in the chip's channel order
Output = npt.NDArray[np.float32]  # [1,H,W,C], codes scaled to 0..last_relu_cap


class ChipModel(Protocol):
    """A network of the chip that answers images; a context manager that ends with `release`."""

    @property
    def device_description(self) -> str:
        """What computes, for people."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""

    def evaluate(self, image: Image, last_relu_cap: float = float(MAX_CODE)) -> Output:
        """Return the output of the chip for one image; see `GtiModel.evaluate`."""

    def evaluate_many(self, images: Iterable[Image], last_relu_cap: float = float(MAX_CODE)) -> Iterator[Output]:
        """Yield `evaluate` of each image, in order."""

    def release(self) -> None:
        """Give back what it holds; safe to call twice."""

    def __enter__(self) -> ChipModel: ...

    def __exit__(self, *exception: object) -> None: ...


class LayeredModel(ChipModel, Protocol):
    """A model that shows its sublayers too: all but a pool, whose sticks each have an image of their own."""

    def layer_outputs(self, image: Image, mode: str | int = "learn") -> list[npt.NDArray[Any]]:
        """Return the codes of the maps that a read-out mode delivers; see `GtiModel.layer_outputs`."""
