"""Random networks and networks at the bounds of the engines' integers, every code against the formulas in 64 bits.

GTI_NETWORKS=2000 (default 40) is the number of random networks; a quarter as many stand at the bounds.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from emulated import layer, lively_weights, reference

from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import ConvolutionWeights, Network

COUNT = int(os.environ.get("GTI_NETWORKS", "40"))
INT32_MAX = 2**31 - 1
# What must stay at or below its limit, by the largest sum of one-sided weights without a bias (docs/emulator.md).
SUMS = {"F(4x4)": INT32_MAX // (64 * 31), "F(2x2)": INT32_MAX // (4 * 31), "float32": 2**24 // 31}
# Largest |w| of nine equal weights whose transforms, 49 or 9 times as large, take one to four parts of 16 bits.
MAGNITUDES = [parts * (2**15 - 1) // times for times in (49, 9) for parts in (1, 2, 3, 4)]


def assert_exact(network: Network, weights: list[ConvolutionWeights], pixels: np.ndarray, threads: int) -> None:
    sublayers, output = reference(network, weights, pixels)
    for engine in ("numba", "numpy"):
        emulator = Emulator(network, weights, engine=engine, threads=threads)
        for (conv, got), expected in zip(emulator.sublayers(pixels), sublayers, strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=f"{engine}, {conv.path}")
        np.testing.assert_array_equal(emulator.output(pixels), output, err_msg=engine)


def random_network(random: np.random.RandomState) -> Network:
    size, channels = (
        int(random.randint(1, 21)),
        int(random.choice([1, 2, 3, 4, 5, 12, 16, 31, 32, 40, 64, 70, 256, 520])),
    )
    if channels > 100:
        size = min(size, 8)
    layers = []
    for _ in range(random.randint(1, 4)):
        wide = channels > 100
        outputs = int(random.choice([16, 17, 64] if wide else [1, 16, 17, 32, 48, 64, 80, 128, 200]))
        upsampled = bool(random.randint(0, 3) == 0) and size <= 8
        working = 2 * size if upsampled else size
        layers.append(
            layer(
                size,
                channels,
                outputs,
                tuple(int(shift) for shift in random.randint(0, 16, size=random.randint(1, 3))),
                coef_bits=int(random.choice([1, 3])),
                pooling=bool(random.randint(0, 2)) and working % 2 == 0,
                upsample_enable=upsampled,
                upsample_mode=str(random.choice(["repeat", "zero"])),
            )
        )
        size, channels = layers[-1].output_size, outputs
        if size > 20:
            break
    return Network(
        tuple(layers), sampling_method=int(random.randint(0, 2)), activation_bit_mode=int(random.randint(0, 2))
    )


def random_weights(network: Network, random: np.random.RandomState) -> list[ConvolutionWeights]:
    """Lively weights, most of them; else some kernels, or all, with magnitudes up to the format's end and beyond."""
    weights = lively_weights(network, int(random.randint(2**31)))
    for index, ordinary in enumerate(weights):
        kind, shape = random.randint(0, 6), ordinary.filters.shape
        limit = int(random.choice([668, 669, 2047, 2675, 32767]))
        if kind == 0:
            filters = random.randint(-limit, limit + 1, size=shape)
        elif kind == 1:
            filters = np.where(random.randint(0, 2, size=shape), limit, -limit)
        elif kind == 2:
            filters = ordinary.filters.copy()
            filters[random.randint(shape[0]), random.randint(shape[1])] = random.choice([-limit, limit])
        else:
            continue
        biases = random.randint(-(2**20), 2**20, size=shape[0]).astype(np.int32)
        weights[index] = ConvolutionWeights(filters.astype(np.int16), biases, ordinary.shift)
    return weights


def random_pixels(network: Network, random: np.random.RandomState) -> np.ndarray:
    shape = (random.randint(1, 4), *network.input_shape)
    kind = random.randint(0, 4)
    if kind == 0:
        return np.where(random.randint(0, 2, size=shape), 255, 0).astype(np.uint8)
    if kind == 1:
        return np.full(shape, 255, np.uint8)
    return random.randint(0, 256, size=shape).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
def test_random_networks(tenth: int) -> None:
    for seed in range(tenth * COUNT // 10, (tenth + 1) * COUNT // 10):
        random = np.random.RandomState(seed)
        network = random_network(random)
        weights, pixels = random_weights(network, random), random_pixels(network, random)
        assert_exact(network, weights, pixels, threads=1 + seed % 3)


def network_at_a_bound(random: np.random.RandomState) -> tuple[Network, list[ConvolutionWeights], np.ndarray]:
    """One sublayer with an output channel at a bound, one below or one beyond, and the activations that reach it."""
    size, excess, sign = int(random.randint(3, 13)), int(random.randint(-1, 2)), int(random.choice([-1, 1]))
    kind, shift = random.randint(0, 5), int(random.randint(0, 16))
    outputs = int(random.choice([16, 32, 64]))
    half = 1 << shift - 1 if shift else 0
    biases = np.zeros(outputs, np.int32)
    if kind == 4:
        inputs = int(random.choice([2, 16, 33]))
        magnitude = int(random.choice(MAGNITUDES)) + excess
        alternating = np.array([1, random.choice([-1, 1]), 1])
        filters = np.full((outputs, inputs, 3, 3), sign * magnitude) * alternating * alternating[:, None]
        filters[1::2, random.randint(inputs)] *= -1
    else:
        inputs = 600 if kind == 1 else int(random.choice([256, 300]))
        total = int(list(SUMS.values())[kind % 3]) + excess
        if kind == 3:  # the accumulator, by its bias
            total = int(random.randint(1, SUMS["F(4x4)"]))
            biases[0] = sign * (INT32_MAX - 31 * total - half + excess)
        if kind == 2:  # float32, some of it by the bias
            total -= int(random.randint(0, 3))
            biases[0] = sign * (2**24 - 31 * total + excess)
        filters = np.zeros((outputs, inputs, 3, 3), np.int64)
        flat = filters[0].reshape(-1)
        flat[:] = total // flat.size
        flat[: total - flat.sum()] += 1
        random.shuffle(flat)
        filters *= sign
        filters[1:] = random.randint(-40, 41, size=filters[1:].shape)
    network = Network((layer(size, inputs, outputs, (shift,)),), activation_bit_mode=int(random.randint(0, 2)))
    # Activations 31 but where a kernel at one pixel is negative, or all of them.
    pixels = np.full((1, size, size, inputs), 255, np.uint8)
    if random.randint(0, 2):
        y, x = random.randint(0, size - 2, size=2)
        taps = filters[random.randint(outputs)].transpose(1, 2, 0)
        pixels[0, y : y + 3, x : x + 3] = np.where(taps > 0, 255, 0)
    return network, [ConvolutionWeights(filters.astype(np.int16), biases, shift)], pixels


@pytest.mark.parametrize("tenth", range(10))
def test_networks_at_the_bounds(tenth: int) -> None:
    count = -(-COUNT // 4)
    for seed in range(tenth * count // 10, (tenth + 1) * count // 10):
        network, weights, pixels = network_at_a_bound(np.random.RandomState(10**6 + seed))
        assert_exact(network, weights, pixels, threads=1 + seed % 2)


def test_networks_at_the_bounds_take_every_path() -> None:
    """The cases are on both sides of the bounds: each path is taken, some filters need further channels."""
    found, further = set(), 0
    for seed in range(60):
        network, weights, _ = network_at_a_bound(np.random.RandomState(10**6 + seed))
        (prepared,) = Emulator(network, weights, engine="numba", threads=1)._engine._layers
        found.add(prepared.window)
        further += len(prepared.further) > 0
    assert found == {0, 2, 4}
    assert further > 3
