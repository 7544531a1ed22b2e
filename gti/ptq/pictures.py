"""Pictures to fit to: files of a folder (or TFRecords) -> pixels for the chip, some of them held back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gti.chip.host.image import load_image
from gti.chip.host.resizing import resized
from gti.data.tfrecords import IMAGE_SUFFIXES, find_shards
from gti.errors import DataError, FormatError, ImageError, sentence
from gti.progress import progress_bar

# Of so many different pictures one is held back, but no more than so many, or one of so many more.
HELD_SHARE = 5
MOST_HELD = 12
FEWEST_SHARE = 20
FEWEST_PICTURES = 4
# Below this many different ones, deep layers fit the pictures and not what pictures have in common (docs/ptq.md).
ENOUGH_PICTURES = 24
# Squares are cut out of each picture, the first of them in the middle: sides as shares of its shorter side.
CENTRAL_CROP = 0.875
SMALLEST_CROP = 0.5


@dataclass(frozen=True)
class Pictures:
    """What to fit to and what to judge by."""

    pixels: np.ndarray  # uint8 [N, H, W, C], in the chip's channel order
    held_back: tuple[int, ...]  # numbers of the images that are held back
    different: int  # different pictures among them
    notes: tuple[str, ...]  # what a user should know, a sentence each


def look(folder: str | os.PathLike[str]) -> None:
    """Look at the names in a folder of pictures. Raises DataError where no folder is, or too few pictures are in it."""
    path = Path(folder)
    if not path.is_dir():
        raise DataError(str(folder), "no such folder", expected="a folder of pictures", fix="pass another --images")
    if not find_shards(path):
        count = len(_every_file(path))
        if count < FEWEST_PICTURES:
            raise _too_few(str(folder), count)


def read(
    folder: str | os.PathLike[str], size: int, channels: int, number: int, *, seed: int = 0, progress: str = ""
) -> Pictures:
    """Return `number` images of [size, size, channels] from the pictures of `folder` and of the folders in it.

    A folder of TFRecords serves as well. Of fewer pictures several crops are taken, mirrored and moved; those held back
    appear once, as they are. Files that cannot be read are left out and named. Raises DataError where no folder is, or
    fewer than `FEWEST_PICTURES` different pictures can be read.
    """
    look(folder)
    path = Path(folder)
    notes: list[str] = []
    if find_shards(path):
        found = _records(path, size, channels, number, seed)
        crops = 1
    else:
        files = _files(path, number, seed)
        crops = 1 if len(files) >= number else -(-number // max(len(files) - _held(len(files)), 1))
        found, notes = _decoded(files, size, channels, crops=crops, seed=seed, progress=progress)
    different = {hashlib.sha256(some[0].tobytes()).digest(): some for some in found}
    if len(different) < FEWEST_PICTURES:
        raise _too_few(str(folder), len(different), notes)
    if len(different) < ENOUGH_PICTURES:
        notes.append(
            sentence(
                str(folder),
                "holds few different pictures, so deep layers will fit these and not others",
                expected=f"{ENOUGH_PICTURES} or more",
                received=len(different),
                fix="add other photographs; more crops of the same ones do not help",
            )
        )
    pictures = list(different.values())
    np.random.default_rng(seed).shuffle(pictures)
    held = _held(len(pictures))
    judged = [some[0] for some in pictures[:held]]
    # In turns, so that each picture gives about as many crops as any other.
    fitted = [some[turn] for turn in range(crops) for some in pictures[held:] if turn < len(some)]
    fitted = fitted[: max(number - held, 1)]
    pixels = np.stack(fitted + judged)
    return Pictures(pixels, tuple(range(len(fitted), len(pixels))), len(pictures), tuple(notes))


def _too_few(folder: str, count: int, notes: Sequence[str] = ()) -> DataError:
    return DataError(
        folder,
        "; ".join(["holds too few pictures", *notes[:3]]),
        expected=f"{FEWEST_PICTURES} different ones at least, JPEG or PNG, better {ENOUGH_PICTURES} or more",
        received=count,
        fix="add photographs like those that the network is to see",
    )


def _held(pictures: int) -> int:
    return max(1, min(pictures // HELD_SHARE, max(MOST_HELD, pictures // FEWEST_SHARE)))


def _every_file(path: Path) -> list[Path]:
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _files(path: Path, number: int, seed: int) -> list[Path]:
    # As many as are wanted, drawn from all folders.
    every = _every_file(path)
    if len(every) <= number:
        return every
    chosen = np.random.default_rng(seed).choice(len(every), number, replace=False)
    return [every[i] for i in sorted(chosen)]


def _decoded(
    files: Sequence[Path], size: int, channels: int, *, crops: int, seed: int, progress: str
) -> tuple[list[list[np.ndarray]], list[str]]:
    random = np.random.default_rng(seed)
    found, notes = [], []
    with progress_bar(len(files), progress, "picture") as bar:
        for file in files:
            cut: list[np.ndarray] = []

            def prepare(pixels: np.ndarray, cut: list[np.ndarray] = cut) -> np.ndarray:
                cut.extend(_crops(pixels, size, crops, random))
                return cut[0]

            try:
                first = load_image(file, size, channels, prepare)
            except (FormatError, ImageError) as problem:
                notes.append(str(problem))
            else:
                # load_image puts the channels of what it returns in the chip's order, the others are RGB yet.
                found.append([first, *(np.ascontiguousarray(one[:, :, ::-1]) for one in cut[1:])])
            bar.update()
    return found, notes


def _crops(pixels: np.ndarray, size: int, number: int, random: np.random.Generator) -> list[np.ndarray]:
    """Return squares of a picture [H,W,C], resized: the middle one, then mirrored ones, then others."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    result = []
    for index in range(number):
        share = CENTRAL_CROP if index == 0 else random.uniform(SMALLEST_CROP, 1.0)
        side = max(1, round(shorter * share))
        if index == 0:
            top, left = (height - side) // 2, (width - side) // 2
        else:
            top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        square = pixels[top : top + side, left : left + side]
        result.append(resized(square[:, ::-1] if index % 2 else square, size))
    return result


def _records(path: Path, size: int, channels: int, number: int, seed: int) -> list[list[np.ndarray]]:
    from gti import data_utils

    batches = data_utils.load(
        path, image_size=size, channels=channels, batch_size=64, classes=None, training=True, augment=False, seed=seed,
        as_codes=False,
    )  # fmt: skip
    with data_utils.naming_errors(path):
        pixels = np.concatenate([batch for batch, _ in batches.take(-(-number // 64)).as_numpy_iterator()])
    return [[one] for one in pixels[:number]]
