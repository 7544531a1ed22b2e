"""Coverage of known answers: what it counts as seen is seen when the kernel is really taken away."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import emulated
import numpy as np
import pytest

from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.runtime import coverage, known_answer
from gti.chip.runtime.known_answer import Images

NETWORKS = {
    "two bits": Network((MajorLayer(14, 3, 16, 2, 3, (8, 8)), MajorLayer(14, 16, 16, 1, 1, (5,), pooling=True))),
    "zero fill": Network(
        (
            MajorLayer(14, 3, 16, 1, 3, (8,)),
            MajorLayer(14, 16, 16, 1, 3, (9,), upsample_enable=True, upsample_mode="zero"),
        )
    ),
    "ten bits": Network((MajorLayer(14, 3, 16, 1, 3, (8,)), MajorLayer(14, 16, 16, 1, 3, (12,))), 2801, 0, 1),
}  # fmt: skip


def without(layer: ConvolutionWeights, out: int, into: int, factor: int = 0) -> ConvolutionWeights:
    """The sublayer with one kernel replaced by `factor` times it; a kernel of zeros by nine mean weights."""
    filters = layer.filters.copy()
    kernel = filters[out, into]
    mean = max(1, round(float(np.abs(layer.filters.astype(int)).mean())))
    filters[out, into] = factor * kernel if kernel.any() else mean
    return replace(layer, filters=filters)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_that_are_really_changed(name: str) -> None:
    """Every kernel of the first two sublayers, the formulas in 64-bit integers telling what an image shows."""
    network = NETWORKS[name]
    weights = emulated.lively_weights(network, 2)
    weights[0].filters[3] = 0  # kernels of zeros
    weights[1].biases[5] = -(2**17) + 1  # a channel that stays dark
    weights[1] = replace(weights[1], filters=weights[1].filters // 8)
    image = known_answer.known_image(known_answer.SEED, network.input_shape)
    unseen = coverage.all_unseen(network)
    coverage.cover(Emulator(network, weights, engine="numpy"), weights, image, unseen)
    true, _ = emulated.reference(network, weights, image[None])
    counts = [0, 0]
    for index in (0, 1):
        for out, into in np.ndindex(*unseen[index].shape):
            for factor in (0, -1):
                changed = [*weights]
                changed[index] = without(weights[index], out, into, factor)
                codes, _ = emulated.reference(network, changed, image[None])
                differs = any(not np.array_equal(a, b) for a, b in zip(codes, true, strict=True))
                if factor == 0 and network.convolutions[index].size ** 2 <= coverage.POSITIONS:
                    assert differs is not unseen[index][out, into], (index, out, into)
                elif not unseen[index][out, into]:
                    assert differs, (index, out, into, factor)
            counts[int(unseen[index][out, into])] += 1
    assert min(counts) >= 10, "both kinds must have been met"


def test_more_images_are_chosen_until_the_goal_is_reached() -> None:
    network = NETWORKS["two bits"]
    weights = emulated.lively_weights(network, 2)
    data = dat.encode(network, weights)
    answer = known_answer.make(network, weights, data)
    assert answer.more is not None
    assert answer.seeds[0] == known_answer.SEED
    seen, every = known_answer.coverage_of(answer, data, "x")
    alone, _ = known_answer.coverage_of(replace(answer, more=None), data, "x")
    assert every == 16 * (3 + 16 + 16)
    assert alone < seen
    assert seen / every >= known_answer.GOAL
    assert known_answer.check_codes(answer, data, "x", "numpy")[0] == []
    # A kernel that the first image does not show, and the others do.
    unseen = coverage.all_unseen(network)
    image = known_answer.known_image(known_answer.SEED, network.input_shape)
    emulator = Emulator(network, weights, engine="numpy")
    coverage.cover(emulator, weights, image, unseen)
    first = unseen[1].copy()
    for seed in answer.more.seeds:
        coverage.cover(emulator, weights, known_answer.known_image(seed, network.input_shape), unseen)
    out, into = np.argwhere(first & ~unseen[1])[0]
    changed = [weights[0], without(weights[1], out, into), weights[2]]
    broken = dat.encode(network, changed)
    alone_answer = replace(answer, more=None)
    assert "right" in known_answer.check_codes(alone_answer, broken, "x", "numpy")[0][0]
    assert known_answer.check_codes(answer, broken, "x", "numpy")[0][0].startswith("major 1 / sub 2")


def test_images_of_a_seed() -> None:
    # docs/compare.md: bytes of SHA-256 blocks for a third of the size, each three times; 255 from 128 on.
    seed = "known answer 3, black and white, blocks of 3"
    stream = hashlib.sha256(seed.encode() + bytes(8)).digest()
    coarse = np.frombuffer(stream[:27], np.uint8).reshape(3, 3, 3)
    image = known_answer.known_image(seed, (8, 8, 3))
    expected = np.array([[coarse[y // 3, x // 3] for x in range(8)] for y in range(8)])
    assert np.array_equal(image, np.where(expected >= 128, 255, 0))


def test_digests_of_several_images_run_through_them() -> None:
    network = NETWORKS["two bits"]
    emulator = Emulator(network, emulated.lively_weights(network, 2), engine="numpy")
    seeds = ("a", "b, blocks of 2")
    total = hashlib.sha256()
    for seed in seeds:
        maps = emulator.read_out(known_answer.known_image(seed, network.input_shape), "learn")
        total.update(maps[1].tobytes())
    found: Images = known_answer._digests(emulator, seeds)
    assert found.sublayers[1] == total.hexdigest()
