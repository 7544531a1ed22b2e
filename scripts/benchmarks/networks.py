"""Networks, weights, images and files for benchmarks and other long runs; without TensorFlow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from gti.chip import spec
from gti.chip.formats import dat
from gti.chip.formats.blobs import encode_fc
from gti.chip.formats.model_file import compose
from gti.chip.host import preprocessing
from gti.chip.network import file_size
from gti.chip.network import json_form as networks
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network

NETS = Path(__file__).resolve().parents[2] / "nets"
SHIFT = 12
# Of random weights, in codes 0..31: the deviation of the sums of products, and the largest bias.
DEVIATION, BIAS = 8, 10
# Mean squares of codes: of uniformly random pixels, and about those that keep their size from layer to layer, by
# coef_bits (biases of 1-bit layers are at most half a code).
_PIXELS, _CODES = 328, {1: 30, 3: 60}
_SHAPE = 5  # of the gamma distribution of scales
_LEVELS, _SIGNS = np.array([-4, -2, -1, 0, 1, 2, 4], np.int16), np.array([-1, 1], np.int16)


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
    """Return weights as conversion writes them, one scale per kernel, which keep activations alive in every layer.

    As in trained networks, scales of a sublayer lie close together, but one kernel in 10,000 has the largest one.
    """
    random = np.random.RandomState(seed)
    result = []
    for conv in network.convolutions:
        shift = network.layers[conv.major - 1].scaling[conv.sub - 1]
        levels, most = (_LEVELS, spec.MAX_STEP_3BIT) if conv.coef_bits == 3 else (_SIGNS, spec.MAX_ALPHA_1BIT)
        kernels = (conv.output_channels, conv.input_channels)
        pattern = levels[random.randint(0, len(levels), (*kernels, 3, 3), np.int8)]
        pattern[..., 1, 1] = _SIGNS[
            random.randint(0, 2, kernels)
        ]  # one step in every kernel: it is read back from that
        square = _CODES[conv.coef_bits] if conv.index else _PIXELS
        weight = DEVIATION * 2**shift / np.sqrt(9 * conv.input_channels * square)
        mean = weight / np.sqrt((1 + 1 / _SHAPE) * np.mean(levels.astype(float) ** 2))
        scales = np.clip(random.gamma(_SHAPE, mean / _SHAPE, kernels), 1, most)
        scales[random.random_sample(kernels) < 1e-4] = most
        bias = min(BIAS << shift, 2 ** (spec.BIAS_BITS[conv.coef_bits] - 1) - 1)
        biases = random.randint(-bias, bias + 1, conv.output_channels).astype(np.int32)
        pattern *= scales.astype(np.int16)[:, :, None, None]
        result.append(ConvolutionWeights(pattern, biases, shift))
    return result


def full_model(network: Network) -> bytes:
    """Return a .MODEL of `network` with random weights, ten classes behind it; its .DAT ends with its rows."""
    channels, height, width = network.output_shape
    random = np.random.RandomState(0)
    dense = random.normal(size=(10, channels * height * width)) * 0.003, random.normal(size=10)
    layers = [
        {"operation": "GTICNN", "name": "chip", "data file": "chip", "mode": 0, "output scaledown": spec.FC_SHIFT},
        {"operation": "FC", "name": "fc", "data file": "fc"},
        {"operation": "SOFTMAX", "name": "softmax"},
        {"operation": "LABEL", "name": "label", "data file": "labels"},
    ]
    size, _, planes = network.input_shape
    header = {"name": "bench", "layer": layers, preprocessing.KEY: preprocessing.Preprocessing(size, planes).entry()}
    length = spec.HEADER_BYTES + spec.ROW_BYTES * file_size.row_count(network)
    parts = {"chip": dat.encode(network, random_weights(network), length=length), "labels": b"a class\n" * 10}
    parts["fc"] = encode_fc(*(values.astype(np.float32) for values in dense))
    return compose(json.dumps(header).encode(), parts)


def random_images(network: Network, count: int) -> np.ndarray:
    """Return uint8 images [count, H, W, C]."""
    return np.random.RandomState(1).randint(0, 256, (count, *network.input_shape)).astype(np.uint8)
