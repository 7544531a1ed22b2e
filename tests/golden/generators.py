"""Weights and images of the golden cases, from NumPy's legacy stream, which never changes between versions.

A golden case is a dat.json, a seed, and digests of what it leads to; these functions make the rest from the seed.
Both follow the network order; `in` of the first convolution is the JSON's input_channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

LEVELS = {1: np.array([-1, 1]), 3: np.array([-4, -2, -1, 0, 1, 2, 4])}
BIAS_LIMIT = {1: 2**11, 3: 2**17}


def _convolutions(config: dict) -> Iterator[tuple[int, int, int, int]]:
    """Yield (coef_bits, out, in, shift) of each convolution of a dat.json."""
    for layer in config["layer"]:
        channels = layer["input_channels"]
        for shift in layer["scaling"]:
            yield layer["coef_bits"], layer["output_channels"], channels, shift
            channels = layer["output_channels"]


def full_range_weights(config: dict, seed: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Generator A: (filters int16 [out,in,3,3], biases int32 [out], shift) over the whole range of the format."""
    random = np.random.RandomState(seed)
    result = []
    for bits, out, channels, shift in _convolutions(config):
        masks = LEVELS[bits][random.randint(0, len(LEVELS[bits]), size=(out, channels, 3, 3))]
        scales = random.randint(0, 512 if bits == 3 else 2048, size=(out, channels))
        biases = random.randint(-BIAS_LIMIT[bits], BIAS_LIMIT[bits], size=out)
        result.append(((masks * scales[:, :, None, None]).astype(np.int16), biases.astype(np.int32), shift))
    return result


def lively_weights(config: dict, seed: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Generator B: as A, but scaled so that activations neither die nor saturate."""
    random = np.random.RandomState(seed)
    result = []
    for bits, out, channels, shift in _convolutions(config):
        masks = LEVELS[bits][random.randint(0, len(LEVELS[bits]), size=(out, channels, 3, 3))]
        top = int(12 * 2**shift / (9 * channels * (6 if bits == 3 else 1) * 150 / 3) ** 0.5)
        top = max(2, min(top, 511 if bits == 3 else 2047))
        scales = random.randint(1, top + 1, size=(out, channels))
        limit = BIAS_LIMIT[bits] - 1
        biases = np.clip(random.randint(-4 * 2**shift, 12 * 2**shift + 1, size=out), -limit, limit)
        result.append(((masks * scales[:, :, None, None]).astype(np.int16), biases.astype(np.int32), shift))
    return result


def image(config: dict, seed: int) -> np.ndarray:
    """Return the 8-bit image uint8 [H, W, C] that belongs to generator B."""
    first = config["layer"][0]
    shape = (first["image_size"], first["image_size"], first["input_channels"])
    return np.random.RandomState(seed + 1).randint(0, 256, size=shape).astype(np.uint8)


def digest(codes: np.ndarray) -> str:
    """Return the sha256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(codes).tobytes()).hexdigest()
