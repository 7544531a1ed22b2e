"""EngineModel: a .model or .dat on the emulator alone, batch after batch; used like a `GtiModel`.

A stick takes one frame at a time, and so does the one in software, which understands every word on the wire. Where only
accuracy is asked for, nothing of that is needed: the emulator computes many images together, the same codes faster.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.emulator.behaviours import ASSUMED, Behaviours
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.formats.splitting import next_image
from gti.chip.loaded_model import LoadedModel, load_chips
from gti.chip.runtime import known_answer
from gti.chip.spec import FC_SHIFT, MAX_CODE, TOP_CODE
from gti.chip.wire.registers import OF_EVERY_CHIP, Mode, parse_mode

# Images computed together: the engine gains nothing from more, and progress is seen.
_MOST_TOGETHER = 64


class EngineModel:
    """The networks of one file, for one chip or several in a row, on the emulator.

    `engine`: as `Emulator`; `reason`: why no stick computes, for the description. Raises FormatError for the file,
    NetworkError where the chip's arithmetic is unknown. `together`: images of one batch. `behaviours`: of the chip.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        engine: str = "auto",
        *,
        reason: str = "",
        behaviours: Behaviours = ASSUMED,
    ) -> None:
        parts = load_chips(Path(path))
        self._reason = reason
        self._first = parts[0]
        self._emulators = [
            Emulator(one.network, one.weights, engine=engine, behaviours=behaviours)
            for one in decoded_chips(parts, str(path))
        ]
        self.together = min(_MOST_TOGETHER, *(emulator.images_together for emulator in self._emulators))

    @property
    def device_description(self) -> str:
        """What computes, and that nothing of USB takes part."""
        text = f"emulator in batches of {self.together}, no USB framing ({self._emulators[0].engine})"
        return text + (f", because: {self._reason}" if self._reason else "")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self._emulators[0].network.input_shape

    def evaluate(self, image: npt.NDArray[np.uint8], last_relu_cap: float = float(MAX_CODE)) -> npt.NDArray[np.float32]:
        """Return what `GtiModel.evaluate` returns."""
        return next(self.evaluate_many([image], last_relu_cap))

    def evaluate_many(
        self, images: Iterable[npt.NDArray[np.uint8]], last_relu_cap: float = float(MAX_CODE)
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield what `GtiModel.evaluate_many` yields: float32 [1,H,W,C], codes scaled to 0..`last_relu_cap`.

        `images`: uint8 [H,W,C] each. They are read ahead, a batch at a time. Raises ImageError for other arrays.
        """
        scale = np.float32(last_relu_cap / self.top_code)
        for codes in self.codes_many(images):
            yield codes.transpose(1, 2, 0)[None].astype(np.float32) * scale

    @property
    def top_code(self) -> int:
        """The largest code of the last maps."""
        return TOP_CODE[self._emulators[-1].network.convolutions[-1].ten_bit]

    def codes_many(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[Any]]:
        """Yield the last maps of each image, whole numbers [C,H,W] 0..`top_code`. Images and errors as
        `evaluate_many`."""
        return itertools.chain.from_iterable(self.code_batches(images))

    def code_batches(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[Any]]:
        """Yield what `codes_many` yields, the images of a batch together, [N,C,H,W]."""
        stream = iter(images)
        while batch := list(itertools.islice(stream, self.together)):
            pixels = np.stack([self._checked(image) for image in batch])
            for emulator in self._emulators[:-1]:
                pixels = np.stack([next_image(codes, pooled=False) for codes in emulator.output(pixels)])
            yield self._emulators[-1].output(pixels)

    def layer_outputs(self, image: npt.NDArray[np.uint8], mode: str | int = "learn") -> list[npt.NDArray[Any]]:
        """Return the maps of one image that a read-out mode delivers; as `GtiModel.layer_outputs`."""
        chosen = parse_mode(mode)
        image = self._checked(image)
        maps: list[npt.NDArray[Any]] = []
        for emulator in self._emulators[:-1]:
            maps += emulator.read_out(image, chosen) if chosen in OF_EVERY_CHIP else []
            image = next_image(emulator.output(image[None])[0], pooled=False)
        return maps + self._emulators[-1].read_out(image, chosen)

    def raw_maps(self, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """Return the maps of the file's own mode as a stick delivers them; as `GtiModel.raw_maps`."""
        mode = parse_mode(self._first.mode)
        shift = FC_SHIFT if mode == Mode.FC else 0
        return [(codes << shift).astype(codes.dtype) for codes in self.layer_outputs(image, mode)]

    def _checked(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return self._first.to_planes(image).transpose(1, 2, 0)

    def release(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> EngineModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def decoded_chips(parts: Sequence[LoadedModel], path: str) -> list[dat.Dat]:
    """Return network and integers of each chip of the file `path`. Raises FormatError."""
    container = parts[0].container
    if container is not None and all(known_answer.KEY in layer.entry for layer in _chip_layers(container)):
        # It knows what no bit of the .DAT tells: ten-bit outputs for sure, and the fill of upsampling.
        found = known_answer.read(container, path)
        return [known_answer.decoded_as(part.answer, part.data, part.name) for part in found]
    return [dat.decode(part.dat, activation_bit_mode=int(part.ten_bit), name=part.name) for part in parts]


def _chip_layers(container: Any) -> list[Any]:
    return [layer for layer in container.layers if layer.operation == "GTICNN"]
