"""Folders of JPEG and PNG images -> TFRecord shards, as scripts/build_image_data.py writes them."""

from __future__ import annotations

import io
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gti.chip.host.image import is_small
from gti.data.tfrecords import IMAGE_SUFFIXES, ImageRecord, spread, write_shards
from gti.errors import DataError, sentence

_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Source:
    """One image file and its class."""

    path: Path
    label: int
    text: str


@dataclass
class Report:
    """What became of a folder's images."""

    written: int = 0
    skipped: list[str] = field(default_factory=list)  # one sentence each


def find_images(
    folder: str | os.PathLike[str], names: Sequence[str], *, folders: Sequence[str] | None = None
) -> list[Source]:
    """Return the images of the class sub-folders of `folder`, in order of label and file name.

    `names` are the classes, index = label, 0 = background (whose folder may be absent); `folders` the names of their
    sub-folders where they differ from `names`. Raises DataError for a missing folder and for classes without images.
    """
    base = Path(folder)
    if not base.is_dir():
        raise DataError(
            str(base), "no such folder", expected="one sub-folder of images per class", fix="check the path"
        )
    sources: list[Source] = []
    empty: list[str] = []
    for label, (name, sub) in enumerate(zip(names, folders or names, strict=True)):
        path = base / sub
        images = sorted(p for p in path.iterdir() if _is_image(p)) if path.is_dir() else []
        if not images and label > 0:
            empty.append(sub)
        sources += [Source(image, label, name) for image in images]
    if empty:
        raise DataError(
            str(base),
            f"{len(empty)} classes of the label file have no images",
            expected="JPEG or PNG files in a sub-folder of that name",
            received=f"none in {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}",
            fix="correct the label file or add the images",
        )
    return sources


def unlisted_folders(folder: str | os.PathLike[str], folders: Sequence[str]) -> list[str]:
    """Return the sub-folders of `folder` that no class stands for."""
    listed = set(folders)
    return sorted(p.name for p in Path(folder).iterdir() if p.is_dir() and p.name not in listed and p.name[0] != ".")


def other_files(folder: str | os.PathLike[str], folders: Sequence[str]) -> list[Path]:
    """Return what lies in the class sub-folders and is no image by its name, without files that systems leave there."""
    paths = (
        path for sub in folders if (Path(folder) / sub).is_dir() for path in sorted((Path(folder) / sub).iterdir())
    )
    return [path for path in paths if not _is_image(path) and path.name[0] != "." and path.name not in _SYSTEM_FILES]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(source: Source) -> ImageRecord:
    """Return the record of an image file after decoding it completely.

    8-bit RGB and grey images go in byte by byte as they are. What readers of records see otherwise than picture viewers
    (turned by EXIF, CMYK, palettes, alpha, 16 bits) is written anew as a PNG of the pixels that inference sees; alpha
    and low bytes, which inference refuses, are dropped. Raises ValueError with the reason for a file that is no image,
    is cut off, or is too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if not source.path.is_file():  # a pipe would be waited for without end
            raise ValueError("is not a regular file")
        data = source.path.read_bytes()
        picture: Image.Image = Image.open(io.BytesIO(data))
        if not is_small(picture.width, picture.height, len(data), progressive="progressive" in picture.info):
            raise ValueError(f"has {picture.width}x{picture.height} pixels, too many for {len(data)} bytes")
        form = picture.format  # of the file; converted images have none
        picture.load()
        as_it_is = (
            form in ("JPEG", "PNG")
            and picture.mode in ("RGB", "L")
            and picture.getexif().get(_ORIENTATION, 1) == 1
            and "transparency" not in picture.info
        )
        if not as_it_is:
            picture = ImageOps.exif_transpose(_to_eight_bits(picture)).convert("RGB")
            buffer = io.BytesIO()
            form = "PNG"
            picture.save(buffer, format=form)
            data = buffer.getvalue()
    except UnidentifiedImageError:
        # Pillow's own sentence holds the address of an object.
        raise ValueError("is no image that can be read") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        # Pillow reports damage in any of these classes.
        reason = getattr(problem, "strerror", None) or str(problem)
        raise ValueError(reason or type(problem).__name__) from None
    return ImageRecord(data, str(form), picture.height, picture.width, source.label, source.text, source.path.name)


def _to_eight_bits(image):
    # Pillow clips 16-bit grey instead of scaling it.
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image


def build(
    sources: Sequence[Source],
    folder: str | os.PathLike[str],
    name: str,
    *,
    shards: int,
    threads: int,
    seed: int,
    progress: Callable[[str | None], None] = lambda skipped: None,
) -> Report:
    """Write `sources`, shuffled with `seed`, to `shards` files in `folder`; unreadable images are left out.

    `progress` is called once per image, with a sentence where it was skipped, else None. The bytes depend on the
    sources, `shards` and `seed`, not on `threads`. Raises DataError when no image can be read at all.
    """
    order = list(sources)
    random.Random(seed).shuffle(order)
    report = Report()
    with ThreadPoolExecutor(threads) as pool:

        def records(part: range) -> Iterator[ImageRecord]:
            for source, future in _ahead(pool, order[part.start : part.stop], 4 * threads):
                try:
                    record = future.result()
                except ValueError as problem:
                    reason = sentence(str(source.path), f"is skipped: {problem}")
                    report.skipped.append(reason)
                    progress(reason)
                    continue
                report.written += 1
                progress(None)
                yield record
            if part.stop == len(order) and report.written == 0:
                # Raised before the shards are moved into place: an older data set survives.
                raise DataError(
                    str(folder),
                    "no image could be read",
                    expected="JPEG or PNG images",
                    received="; ".join(report.skipped[:1]) or "no files",
                )

        write_shards(folder, name, [records(part) for part in spread(len(order), shards)])
    return report


def _ahead(
    pool: ThreadPoolExecutor, sources: Sequence[Source], depth: int
) -> Iterator[tuple[Source, Future[ImageRecord]]]:
    # Results in order while at most `depth` images are in memory.
    waiting: deque[tuple[Source, Future[ImageRecord]]] = deque()
    for source in sources:
        waiting.append((source, pool.submit(read_image, source)))
        if len(waiting) >= depth:
            yield waiting.popleft()
    yield from waiting
