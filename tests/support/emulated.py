"""Networks with random integer weights for the emulator's tests; sizes and channels are free of the chip's rules."""

from __future__ import annotations

import numpy as np
from golden import generators

from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network


def layer(size: int, inputs: int, outputs: int, shifts: tuple[int, ...], **options) -> MajorLayer:
    """Return a major layer of len(shifts) sublayers; `options` are fields of MajorLayer."""
    options = {"coef_bits": 3, **options}
    return MajorLayer(
        image_size=size,
        input_channels=inputs,
        output_channels=outputs,
        sublayer_number=len(shifts),
        scaling=shifts,
        **options,
    )


def lively_weights(network: Network, seed: int) -> list[ConvolutionWeights]:
    """Return weights of generator B of the golden cases: activations neither die nor saturate."""
    config = {
        "layer": [
            {
                "coef_bits": major.coef_bits,
                "input_channels": major.input_channels,
                "output_channels": major.output_channels,
                "scaling": major.scaling,
            }
            for major in network.layers
        ]
    }
    return [ConvolutionWeights(*layer_weights) for layer_weights in generators.lively_weights(config, seed)]


def images(network: Network, count: int, seed: int) -> np.ndarray:
    """Return random 8-bit images, uint8 [count, H, W, C]."""
    return np.random.RandomState(seed).randint(0, 256, size=(count, *network.input_shape)).astype(np.uint8)
