"""Which kernels a known answer covers: those whose removal changes a code of the maps that are compared.

A kernel is one input channel's 3x3 weights of one output channel. It is covered when its sublayer, on the right input,
gives another code somewhere if the kernel is replaced by zeros; then its negative is seen as well, which moves each sum
twice as far. In place of a kernel that is all zeros stand nine weights of the sublayer's mean size. Smaller changes
(one level of one weight, one unit of a step) may leave every code as it is and are not counted.

On maps of up to `POSITIONS` pixels the answer is exact. Of larger ones so many are looked at, spread over the map: what
changes there is seen for sure, and some kernels may be covered without being counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import Convolution, ConvolutionWeights, Network

POSITIONS = 256
_FIRST = 4  # pixels looked at together at first; most kernels are seen at once, so that later rounds are small
_CELLS = 1 << 20  # pixels times kernels of a round, so that memory stays bounded

Unseen = list[npt.NDArray[np.bool_]]  # [out,in] of each sublayer: kernels that no image has shown yet


def all_unseen(network: Network) -> Unseen:
    """Return every kernel of a network as not seen."""
    return [np.ones((conv.output_channels, conv.input_channels), np.bool_) for conv in network.convolutions]


def share(unseen: Unseen) -> float:
    """Return the share of kernels that were seen, 0..1."""
    return 1 - sum(int(one.sum()) for one in unseen) / sum(one.size for one in unseen)


def traced(
    emulator: Emulator, image: npt.NDArray[np.uint8]
) -> Iterator[tuple[Convolution, npt.NDArray[np.uint8], npt.NDArray[np.generic]]]:
    """Yield (sublayer, the codes [H,W,C] that it takes, those [C,H,W] that it gives) of `image`, uint8 [H,W,C]."""
    network = emulator.network
    taken = arithmetic.five_bit(image[None])
    for conv, codes in emulator.sublayers(image[None]):
        if conv.upsampled:
            taken = arithmetic.upsample(taken, network.layers[conv.major - 1].upsample_mode)
        yield conv, taken[0], codes[0]
        taken = codes.transpose(0, 2, 3, 1)
        if conv.pooled:
            taken = arithmetic.pool(taken, network.sampling_method)


def look(
    conv: Convolution, layer: ConvolutionWeights, taken: npt.NDArray[np.uint8], unseen: npt.NDArray[np.bool_]
) -> None:
    """Clear the kernels of `unseen` [out,in] whose removal changes a code, `taken`: codes [H,W,C] of the sublayer."""
    rows = np.flatnonzero(unseen.any(1))
    if not len(rows):
        return
    still = unseen[rows]
    _look(conv, replace(layer, filters=layer.filters[rows], biases=layer.biases[rows]), taken, still)
    unseen[rows] = still


def _look(
    conv: Convolution, layer: ConvolutionWeights, taken: npt.NDArray[np.uint8], unseen: npt.NDArray[np.bool_]
) -> None:
    patches = _patches(taken)  # [in, pixel, 9]
    filters = layer.filters.reshape(*unseen.shape, 9)
    rule = arithmetic.requantization(conv.shift, conv.ten_bit)
    products = patches.transpose(1, 0, 2).reshape(patches.shape[1], -1).astype(np.float64)
    sums = (products @ filters.reshape(len(filters), -1).T.astype(np.float64)).astype(np.int64) + layer.biases
    codes = arithmetic.requantize(sums, *rule).T  # [out, pixel]
    sums = sums.T
    size = np.abs(filters.astype(np.int32))
    empty = np.logical_not(filters.any(2))
    stand_in = max(1, round(float(size.mean())))
    reach = np.where(empty, 9 * stand_in, size.sum(2)).astype(np.int64) * spec.MAX_CODE
    highest = arithmetic.requantize(sums.max(1)[:, None] + reach, *rule)
    lowest = arithmetic.requantize(sums.min(1)[:, None] - reach, *rule)
    # Nothing to see: an input that is zero all over, or sums that no kernel brings to another code.
    possible = unseen & patches.any((1, 2)) & ((highest != codes.min(1)[:, None]) | (lowest != codes.max(1)[:, None]))
    outs, ins = np.nonzero(possible)
    start, count = 0, _FIRST
    while len(outs) and start < patches.shape[1]:
        stop = start + min(count, max(1, _CELLS // len(outs)))
        kernels = np.where(empty[outs, ins, None], -stand_in, filters[outs, ins]).astype(np.float32)
        # At most 9 * 31 * 2047: exact.
        parts = np.matmul(patches[ins, start:stop], kernels[:, :, None])[:, :, 0].astype(np.int64)
        after = arithmetic.requantize(sums[outs, start:stop] - parts, *rule)
        seen = np.any(after != codes[outs, start:stop], axis=1)
        unseen[outs[seen], ins[seen]] = False
        outs, ins = outs[~seen], ins[~seen]
        start, count = stop, 2 * count


def _patches(taken: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the 3x3 pixels around up to `POSITIONS` places of [H,W,C], float32 [C, place, 9]."""
    height, width, _ = taken.shape
    padded = np.pad(taken, ((1, 1), (1, 1), (0, 0)))
    step = max(1, round(height * width * 0.618))  # the golden section spreads every beginning of the row evenly
    while math.gcd(step, height * width) > 1:
        step += 1
    places = np.arange(min(POSITIONS, height * width)) * step % (height * width)
    rows, columns = places // width, places % width
    around = [padded[rows + y, columns + x] for y in range(3) for x in range(3)]
    return np.ascontiguousarray(np.stack(around, 2).transpose(1, 0, 2), np.float32)


def cover(
    emulator: Emulator, weights: Sequence[ConvolutionWeights], image: npt.NDArray[np.uint8], unseen: Unseen
) -> None:
    """Clear the kernels of `unseen` that `image`, uint8 [H,W,C], covers."""
    for conv, taken, _ in traced(emulator, image):
        look(conv, weights[conv.index], taken, unseen[conv.index])
