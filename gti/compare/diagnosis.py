"""Why two stages that must agree do not: wrong integers in the file, or an image that was prepared in another way.

Nothing here guesses: a cause is named only when undoing it makes the codes equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.emulator.arithmetic import five_bit
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import Convolution, ConvolutionWeights
from gti.compare.stages import Pair
from gti.compare.sublayer_maps import Maps

Pixels = npt.NDArray[np.uint8]  # [N,H,W,C]
MOST_SUBLAYERS = 3  # whose integers are listed; a file of another checkpoint differs everywhere

# What happens to images between a data set and a chip, and how it is said.
PREPARATIONS: tuple[tuple[str, Callable[[Pixels], Pixels]], ...] = (
    ("as they are", lambda x: x),
    ("with red and blue swapped (RGB for BGR)", lambda x: x[..., ::-1]),
    ("after the five-bit transform, which was then done twice (send 8-bit pixels)", five_bit),
    (
        "after the five-bit transform, which was then done twice, and with red and blue swapped",
        lambda x: five_bit(x)[..., ::-1],
    ),
    ("as planes [C,H,W] taken for [H,W,C]", lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape)),
    ("with rows and columns swapped", lambda x: x.transpose(0, 2, 1, 3)),
    ("mirrored left to right", lambda x: x[:, :, ::-1]),
    ("upside down", lambda x: x[:, ::-1]),
    ("with inverted brightness", lambda x: 255 - x),
)


def explain(
    pair: Pair,
    pixels: Pixels,
    first: int,
    *,
    emulators: Mapping[str, Emulator],
    integers: Mapping[str, Sequence[str]],
) -> list[str]:
    """Return a sentence for each cause that explains why the exact stages of `pair` differ on one image.

    `pixels` [1,H,W,C] is that image, `first` its number. `emulators`: for each stage by name the emulator of the
    integers that it has. `integers`: what `integer_differences` found in the file of a stage, against the checkpoint.
    """
    layer = pair.diverging
    if layer is None:
        return []
    sides = [(source, source.maps(pixels, first)) for source in (pair.expected, pair.received)]
    found = [f"{pair.received.name}: in its file, {words}." for words in integers.get(pair.received.name, ())]
    for source, maps in sides:
        words = preparation_of(emulators[source.name], pixels, maps)
        if words and words != PREPARATIONS[0][0]:
            found.append(f"{source.name}: it saw the images {words}.")
    ours, theirs = (maps[layer.convolution.index].nchw() for _, maps in sides)
    words = rearrangement(ours, theirs)
    if words:
        found.append(f"{pair.received.name}: in its maps of {layer.convolution.path}, {words}.")
    if not found:
        found.append(
            f"{pair.name}: the integers of the file are right, and no way of preparing images that is known here "
            "explains the difference."
        )
    return found


def preparation_of(emulator: Emulator, pixels: Pixels, received: Sequence[Maps]) -> str | None:
    """Return how `pixels` must have been prepared for `emulator` to compute all `received` maps, or None.

    "as they are" is tried first, and is the answer of a stage that did nothing wrong.
    """
    wanted = [maps.nchw() for maps in received]
    for words, prepare in PREPARATIONS:
        computed = emulator.sublayers(np.ascontiguousarray(prepare(pixels)))
        if all(np.array_equal(codes, maps) for (_, codes), maps in zip(computed, wanted, strict=True)):
            return words
    return None


def rearrangement(expected: npt.NDArray[Any], received: npt.NDArray[Any]) -> str:
    """Return how the maps `received` [N,C,H,W] are the `expected` ones in another order, "" where they are not."""
    if expected.shape[2] == expected.shape[3] and np.array_equal(expected.transpose(0, 1, 3, 2), received):
        return "rows and columns are swapped"
    by_channel = [np.ascontiguousarray(maps.transpose(1, 0, 2, 3)) for maps in (expected, received)]
    return _permutation([[maps.tobytes() for maps in side] for side in by_channel], "channels")


def integer_differences(
    convolutions: Sequence[Convolution],
    expected: Sequence[ConvolutionWeights],
    received: Sequence[ConvolutionWeights],
) -> list[str]:
    """Return what is different in the integers of each sublayer, the first sublayer first."""
    found = []
    for convolution, ours, theirs in zip(convolutions, expected, received, strict=True):
        words = _of_sublayer(ours, theirs)
        if words:
            found.append(f"{convolution.path}: {'; '.join(words)}")
    if len(found) > MOST_SUBLAYERS:
        rest = len(found) - MOST_SUBLAYERS
        return [*found[:MOST_SUBLAYERS], f"the integers of {rest} more sublayers differ"]
    return found


def _of_sublayer(ours: ConvolutionWeights, theirs: ConvolutionWeights) -> list[str]:
    words = []
    if ours.shift != theirs.shift:
        words.append(f"the shift is {theirs.shift} instead of {ours.shift}")
    outputs, inputs = (
        _permutation(
            [[_bytes(w, i, axis) for i in range(w.filters.shape[axis])] for w in (ours, theirs)],
            f"{name} channels",
        )
        for axis, name in ((0, "output"), (1, "input"))
    )
    same_biases = np.array_equal(ours.biases, theirs.biases)
    if outputs or (inputs and same_biases):
        return [*words, outputs or inputs]
    return words + _kernels(ours.filters, theirs.filters) + _biases(ours.biases, theirs.biases)


def _bytes(weights: ConvolutionWeights, index: int, axis: int) -> bytes:
    filters = np.ascontiguousarray(weights.filters.take(index, axis)).tobytes()
    return filters + weights.biases[index].tobytes() if axis == 0 else filters


def _permutation(sides: Sequence[Sequence[bytes]], what: str) -> str:
    """Return in words how the second side is the first one in another order; "" where it is the same, or is not."""
    ours, theirs = sides
    moved = [i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
    if not moved or sorted(ours[i] for i in moved) != sorted(theirs[i] for i in moved):
        return ""
    if len(moved) == 2:
        return f"{what} {moved[0]} and {moved[1]} are swapped"
    return f"{len(moved)} {what} are in another order, the first is number {moved[0]}"


def _kernels(ours: npt.NDArray[np.int16], theirs: npt.NDArray[np.int16]) -> list[str]:
    places = np.argwhere((ours != theirs).any(axis=(2, 3)))
    if not places.size:
        return []
    output, channel = (int(n) for n in places[0])
    before, after = ours[output, channel], theirs[output, channel]
    taps = np.argwhere(before != after)
    row, column = (int(n) for n in taps[0])
    words = f"output {output}, input {channel}"
    if len(places) > 1:
        words = f"{len(places)} of {ours.shape[0] * ours.shape[1]} kernels differ, the first is {words}"
    else:
        words = f"the kernel of {words} differs"
    words += f": row {row}, column {column} is {after[row, column]} instead of {before[row, column]}"
    if len(taps) > 1:
        words += f", {len(taps)} of 9 weights ({after.ravel().tolist()} instead of {before.ravel().tolist()})"
    return [words]


def _biases(ours: npt.NDArray[np.int32], theirs: npt.NDArray[np.int32]) -> list[str]:
    places = np.flatnonzero(ours != theirs)
    if not places.size:
        return []
    output = int(places[0])
    words = f"the bias of output {output} is {theirs[output]} instead of {ours[output]}"
    return [words if len(places) == 1 else f"{len(places)} biases differ, the first: {words}"]
