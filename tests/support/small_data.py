"""Small data sets of random pictures, and what is said of a set that is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gti.data import tfrecords
from gti.errors import DataError


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def record(pixels: np.ndarray, label: int) -> tfrecords.ImageRecord:
    return tfrecords.ImageRecord(png(pixels), "PNG", pixels.shape[0], pixels.shape[1], label, f"class{label}", "a.png")


def random_images(count: int, height: int = 16, width: int = 16, seed: int = 0) -> list[np.ndarray]:
    r = np.random.RandomState(seed)
    return [r.randint(0, 256, size=(height, width, 3)).astype(np.uint8) for _ in range(count)]


def write(folder: Path, images: list[np.ndarray], labels: list[int], shards: int = 2) -> list[Path]:
    records = [record(image, label) for image, label in zip(images, labels, strict=True)]
    parts = [records[part.start : part.stop] for part in tfrecords.spread(len(records), shards)]
    return tfrecords.write_shards(folder, "set", parts)


def refusal(folder, classes=4, **more) -> str:
    from gti import data_utils  # here, for tests without TensorFlow take their pictures from this module

    with pytest.raises(DataError) as caught:
        data_utils.load(folder, image_size=14, batch_size=2, classes=classes, **more)
    return str(caught.value)
