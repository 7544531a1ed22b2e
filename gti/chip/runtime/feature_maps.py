"""The maps that a network answers photographs with, their averages as features, and which features are alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.host import host_layers, preprocessing
from gti.chip.loaded_model import load_model
from gti.chip.runtime.features import turned
from gti.chip.runtime.opening import open_stick_or_emulator
from gti.chip.usb.transport import Settings
from gti.chip.wire.protocol import Mode, parse_mode


class FeatureMaps:
    """The network of a .MODEL, with or without host layers, or of a .DAT, on a stick or on the emulator.

    `device`, `settings`, `record`: as `open_stick_or_emulator`. Raises FormatError for the file, UsageError for wrong
    arguments, DeviceError when a stick cannot be had.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        mode: str | int = "fc",
        *,
        settings: Settings | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        loaded = load_model(Path(path))
        header = loaded.container.header if loaded.container else {}
        entries = [layer.entry for layer in loaded.container.layers] if loaded.container else []
        self._reader = next((entry for entry in entries if entry.get("operation") == "IMAGEREADER"), None)
        self._mode = parse_mode(mode)
        self.has_contract = preprocessing.KEY in header
        order = host_layers.reader_order(self._reader)
        self._contract = preprocessing.contract(header, os.fspath(path), loaded.size, loaded.planes, order)
        self._model = open_stick_or_emulator(path, device, self._mode, settings=settings, record=record)

    @property
    def device_description(self) -> str:
        """What computes, for people."""
        return self._model.device_description

    def load(self, path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
        """Return the pixels for the chip of an image file. Raises ImageError, FormatError."""
        return turned(self._contract.load(path), self._reader)

    def maps(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[list[npt.NDArray[Any]]]:
        """Yield the maps of each image, codes [C,H,W], in the order of the mode; in batches where the mode has one."""
        if self._mode != Mode.FC:
            for image in images:
                yield self._model.layer_outputs(image, self._mode)
            return
        for codes in self._model.evaluate_many(images):
            yield [codes[0].transpose(2, 0, 1).astype(np.uint8)]

    @staticmethod
    def averages(maps: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the mean of each channel over its positions, float32 [channels of all maps]."""
        return np.concatenate([codes.mean(axis=(1, 2), dtype=np.float32) for codes in maps])

    def release(self) -> None:
        """Give the stick back; safe to call twice."""
        self._model.release()

    def __enter__(self) -> FeatureMaps:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def neighbours(values: npt.NDArray[np.float32], most: int) -> list[list[tuple[int, float]]]:
    """Return the `most` nearest other rows of each row of `values` [N, features] as (row, cosine), nearest first.

    Cosine of the rows with their common mean taken away, where there are more than two: without that all photographs
    of one network look alike.
    """
    rows = values.astype(np.float64)
    if len(rows) > 2:
        rows = rows - rows.mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1)
    result = []
    for index, row in enumerate(rows):
        cosines = rows @ row
        order = [other for other in np.argsort(-cosines, kind="stable") if other != index][:most]
        result.append([(int(other), float(cosines[other])) for other in order])
    return result
