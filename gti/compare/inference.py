"""Classify a data set on a stick: frames to the chip one after the other, host layers on what comes back."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.network.delivered import delivered
from gti.chip.network.types import Network
from gti.chip.runtime.contract import ChipModel
from gti.chip.spec import TOP_CODE
from gti.chip.wire.registers import parse_mode
from gti.errors import UsageError
from gti.files import write_atomic

# A contact sheet is made for eyes: larger maps are drawn in a coarser raster.
SHEET_TILE = 112
SHEET_BORDER = 1
_BORDER_GREY = 96


@dataclass
class ChipAccuracy:
    """Figures of a run; accuracies are shares 0..1 of `count` images."""

    count: int = 0
    hits: int = 0
    hits5: int = 0
    logits: list[np.ndarray] = field(default_factory=list)  # float32 [B, classes] per batch, when asked for

    @property
    def accuracy(self) -> float:
        """Share of images whose label has the largest logit."""
        return self.hits / self.count if self.count else 0.0

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five largest logits."""
        return self.hits5 / self.count if self.count else 0.0


def classify(
    model: ChipModel,
    batches: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]],
    host: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    *,
    last_relu_cap: float,
    limit: int | None = None,
    keep_logits: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> ChipAccuracy:
    """Classify (images uint8 [B,H,W,C] in the chip's channel order, labels [B]) batches, at most `limit` images.

    `host` turns the chip's result, float32 [B,h,w,c] scaled to 0..`last_relu_cap`, into logits [B, classes].
    `progress` is told the number of images after each batch. Errors are those of `GtiModel.evaluate`.
    """
    from gti.training.evaluation import batch_sums

    labels_ahead: list[npt.NDArray[np.int32]] = []

    def frames() -> Iterator[npt.NDArray[np.uint8]]:
        left = limit
        for images, labels in batches:
            images, labels = images[:left], labels[:left]
            labels_ahead.append(labels)
            yield from images
            if left is not None:
                left -= len(images)
                if left == 0:
                    return

    figures = ChipAccuracy()
    # One stream over all batches: the stick computes while the next image is read and encoded.
    results = model.evaluate_many(frames(), last_relu_cap)
    for first in results:
        labels = labels_ahead.pop(0)
        outputs = [first, *itertools.islice(results, len(labels) - 1)]
        logits = host(np.concatenate(outputs))
        hits, hits5, count = (int(total) for total in batch_sums(labels, logits).numpy()[1:])
        figures.count += count
        figures.hits += hits
        figures.hits5 += hits5
        if keep_logits:
            figures.logits.append(logits)
        progress(len(labels))
    return figures


def save_layer_outputs(
    folder: str | os.PathLike[str], network: Network, mode: int, maps: Sequence[npt.NDArray[np.uint8]]
) -> list[Path]:
    """Write the maps [C,H,W] that `mode` delivered of one image: one `maps.npz`, and a contact sheet per sublayer.

    The arrays are called conv1_1, conv1_2, ...; a sheet is `conv1_1.png`, one tile per channel in raster order.
    Returns the paths. Raises UsageError where the folder cannot be written.
    """
    target = Path(folder)
    sublayers = delivered(network, parse_mode(mode))
    names = [convolution.name for convolution in sublayers]
    tops = [TOP_CODE[convolution.ten_bit] for convolution in sublayers]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(str(target), f"cannot be made ({problem.strerror})", fix="pass another folder") from None
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(names, maps, strict=True))
    np.savez_compressed(buffer, **arrays)
    written = [target / "maps.npz"]
    write_atomic(written[0], buffer.getvalue())
    for name, codes, top in zip(names, maps, tops, strict=True):
        written.append(target / f"{name}.png")
        write_atomic(written[-1], _png(contact_sheet(codes, top)))
    return written


def contact_sheet(codes: npt.NDArray[np.unsignedinteger], top: int = 31) -> npt.NDArray[np.uint8]:
    """Return codes [C,H,W] in 0..`top` as one grey picture [rows, columns], black = 0, white = `top`.

    Tiles stand in raster order in a grid as square as can be, a grey line between them; maps larger than a tile
    (112 pixels) are thinned out, small ones enlarged by whole factors to at least 28 pixels.
    """
    channels, height, width = codes.shape
    step = -(-max(height, width) // SHEET_TILE)
    zoom = max(1, -(-28 // max(height, width)))
    tiles = codes[:, ::step, ::step].astype(np.uint32) * 255 // top
    tiles = tiles.repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = int(np.ceil(np.sqrt(channels)))
    rows = -(-channels // columns)
    tile_height, tile_width = (n + SHEET_BORDER for n in tiles.shape[1:])
    sheet = np.full((rows * tile_height + SHEET_BORDER, columns * tile_width + SHEET_BORDER), _BORDER_GREY, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = (
            n * size + SHEET_BORDER for n, size in zip(divmod(index, columns), (tile_height, tile_width), strict=True)
        )
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
