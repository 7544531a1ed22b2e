"""The emulator against Y, a plain float32 TensorFlow forward of the same convolutions, and how its cost grows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from gti.chip.network.types import Network
from scripts.benchmarks import networks
from scripts.benchmarks.figures import Figure, Scale, compare
from scripts.benchmarks.measure import Actions, Spread, Worker, start_tensorflow

PART = "emulator"
YARDSTICK = "TensorFlow float32"
# Goals of the kit for VGG16 at 224: times as fast as Y by batch size, and the memory of the process.
GOALS = {1: 4.9, 8: 5.2}
GOAL_MEGABYTES = 350.0
GROWTH_BATCHES = (2, 4, 16)
CHANNELS = (16, 32, 64, 128, 256, 512, 1024)
SIZES = (56, 112, 224, 448)  # 28 is the first of the channels' series

Cases = Mapping[str, tuple[Network, int]]  # network and batch size


def emulator_side(cases: Cases) -> Actions:
    """Return a forward pass of the emulator for every case."""
    from gti.chip.emulator.emulator import Emulator

    @functools.cache
    def emulator(network: Network) -> Emulator:
        return Emulator(network, networks.random_weights(network), engine="numba")

    return {
        name: partial(emulator(network).output, networks.random_images(network, batch))
        for name, (network, batch) in cases.items()
    }


def tensorflow_side(cases: Cases) -> Actions:
    """Return a float32 forward pass in TensorFlow for every case."""
    start_tensorflow()
    import tensorflow as tf

    forward = functools.cache(plain_forward)

    def run(network: Network, images: Any) -> np.ndarray:
        return forward(network)(images).numpy()

    return {
        name: partial(run, network, tf.constant(networks.random_images(network, batch), tf.float32))
        for name, (network, batch) in cases.items()
    }


def plain_forward(network: Network) -> Any:
    """Return a tf.function of the network's convolutions in float32."""
    import tensorflow as tf

    random = np.random.RandomState(0)
    variables = [
        (
            tf.Variable((random.randn(3, 3, c.input_channels, c.output_channels) * 0.05).astype(np.float32)),
            tf.Variable(np.zeros(c.output_channels, np.float32)),
        )
        for c in network.convolutions
    ]

    def forward(x: Any) -> Any:
        for conv, (filters, biases) in zip(network.convolutions, variables, strict=True):
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, filters, 1, "SAME"), biases))
            if conv.pooled:
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return x

    return tf.function(forward)


def single_convolutions() -> tuple[Cases, Cases]:
    """Return the two growth series of one convolution: by channels, and by image size."""
    channels = {f"one convolution, 28x28, {n} -> {n}": (networks.one_convolution(28, n, n), 1) for n in CHANNELS}
    sizes = {f"one convolution, {n}x{n}, 16 -> 16": (networks.one_convolution(n, 16, 16), 1) for n in SIZES}
    return channels, sizes


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figures of the emulator."""
    network = networks.of_net(scale.net)
    title = networks.title(scale.net)
    batches = {f"{title}, batch {batch}": (network, batch) for batch in (1, scale.batch)}
    with Worker(emulator_side, batches) as ours, Worker(tensorflow_side, batches) as theirs:
        for name, (_, batch) in batches.items():
            yield compare(
                PART, name, "speed", ((ours, name), (theirs, name)), YARDSTICK,
                rounds=scale.rounds, min_seconds=scale.min_seconds, goal=GOALS.get(batch),
            )  # fmt: skip
        peak = ours.peak_megabytes()
        name = f"memory of the process, batch {scale.batch}"
        yield Figure(PART, name, "megabytes", Spread(peak, peak, peak), GOAL_MEGABYTES)
    if not scale.growth:
        return
    batches = {f"{title}, batch {batch}": (network, batch) for batch in GROWTH_BATCHES}
    for cases in (batches, *single_convolutions()):
        with Worker(emulator_side, cases) as ours, Worker(tensorflow_side, cases) as theirs:
            for name in cases:
                yield compare(
                    PART, name, "speed", ((ours, name), (theirs, name)), YARDSTICK,
                    rounds=scale.rounds, min_seconds=scale.min_seconds / 2,
                )  # fmt: skip
