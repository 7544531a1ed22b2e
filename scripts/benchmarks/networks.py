"""Networks, weights and images of the benchmarks; without TensorFlow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from gti.chip import network as networks
from gti.chip import spec
from gti.chip.network import ConvolutionWeights, MajorLayer, Network

NETS = Path(__file__).resolve().parents[2] / "nets"
SHIFT = 12


def vgg16(image_size: int = 224) -> Network:
    """Return the kit's VGG16 for images of `image_size`."""
    network = networks.load(NETS / f"{spec.CHIP}_vgg16_dat.json")
    layers = (
        replace(
            layer,
            image_size=layer.image_size * image_size // network.layers[0].image_size,
            scaling=(SHIFT,) * layer.sublayer_number,
        )
        for layer in network.layers
    )
    return replace(network, layers=tuple(layers))


def six_convolutions(image_size: int = 56) -> Network:
    """Return a small network of three major layers, 32, 64 and 128 channels."""
    layers = []
    inputs, size = 3, image_size
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
