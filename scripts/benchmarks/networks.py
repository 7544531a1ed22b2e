"""Networks, weights and images of the benchmarks; without TensorFlow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from gti.chip import spec
from gti.chip.network import json_form as networks
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network

NETS = Path(__file__).resolve().parents[2] / "nets"
SHIFT = 12


def of_net(net: str) -> Network:
    """Return the chip part of one of the kit's nets."""
    network = networks.load(NETS / f"{spec.CHIP}_{net}_dat.json")
    return replace(
        network,
        layers=tuple(replace(layer, scaling=(SHIFT,) * layer.sublayer_number) for layer in network.layers),
    )


def title(net: str) -> str:
    """Return the name of a net in the tables, for example `VGG16 224`."""
    return f"{net.upper() if net.startswith('vgg') else net} {of_net(net).input_shape[0]}"


def six_convolutions() -> Network:
    """Return a small network for images of 56x56: three major layers of 32, 64 and 128 channels."""
    layers = []
    inputs, size = 3, 56
    for outputs in (32, 64, 128):
        layers.append(MajorLayer(size, inputs, outputs, 2, 3, (SHIFT,) * 2, pooling=True))
        inputs, size = outputs, size // 2
    return Network(tuple(layers))


def one_convolution(image_size: int, inputs: int, outputs: int) -> Network:
    """Return a network of one 3-bit convolution without pooling."""
    return Network((MajorLayer(image_size, inputs, outputs, 1, 3, (SHIFT,), pooling=False),))


def random_weights(network: Network, seed: int = 0) -> list[ConvolutionWeights]:
    """Return weights as conversion writes them: one scale per kernel, whose size is that of trained networks."""
    random = np.random.RandomState(seed)
    result = []
    for conv in network.convolutions:
        levels = np.array([-4, -2, -1, 0, 1, 2, 4] if conv.coef_bits == 3 else [-1, 1], np.int16)
        kernels = (conv.output_channels, conv.input_channels)
        pattern = levels[random.randint(0, len(levels), (*kernels, 3, 3))]
        scales = random.randint(1, 64, kernels).astype(np.int16)
        biases = random.randint(-spec.MAX_WEIGHT, spec.MAX_WEIGHT + 1, conv.output_channels).astype(np.int32)
        layer = network.layers[conv.major - 1]
        result.append(ConvolutionWeights(pattern * scales[:, :, None, None], biases, layer.scaling[conv.sub - 1]))
    return result


def random_images(network: Network, count: int) -> np.ndarray:
    """Return uint8 images [count, H, W, C]."""
    return np.random.RandomState(1).randint(0, 256, (count, *network.input_shape)).astype(np.uint8)
