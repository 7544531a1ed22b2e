"""Small networks for the tests of models, fusion and conversion; their host part is that of `digits` or `cifar`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from gti import files, names
from gti.chip.network import json_form as networks
from gti.chip.network.types import MajorLayer, Network
from gti.model import base


def small_network(*layers: tuple[int, int, int, int, int, bool], **options: Any) -> Network:
    """Return a Network of (image_size, input, output channels, sublayers, coef_bits, pooling) tuples.

    `options`: of the Network, and `upsample={major: mode}`.
    """
    upsample = options.pop("upsample", {})
    majors = tuple(
        MajorLayer(
            image_size=size,
            input_channels=inputs,
            output_channels=outputs,
            sublayer_number=count,
            coef_bits=bits,
            scaling=(0,) * count,
            pooling=pooling,
            upsample_enable=major in upsample,
            upsample_mode=upsample.get(major, "repeat"),
        )
        for major, (size, inputs, outputs, count, bits, pooling) in enumerate(layers, 1)
    )
    return Network(majors, **options)


TWO_MAJORS = ((14, 3, 16, 2, 3, False), (14, 16, 32, 1, 1, True))
NETWORKS = {
    "mixed bits": small_network((28, 3, 16, 1, 1, True), (14, 16, 32, 2, 3, True)),
    "top-left pooling": small_network(*TWO_MAJORS, sampling_method=1),
    "ten bits": small_network(*TWO_MAJORS, activation_bit_mode=1),
    "no pooling": small_network((14, 4, 16, 2, 1, False)),
    "repeat": small_network((14, 3, 16, 1, 3, False), (14, 16, 16, 2, 1, True), upsample={2: "repeat"}),
    "zero fill": small_network((14, 3, 16, 1, 3, False), (14, 16, 16, 2, 1, True), upsample={2: "zero"}),
}


def write_json(network: Network, folder: Path, net: str = "digits") -> Path:
    """Write the dat.json and model.json of `network` to `folder`, as the net `net`; return `folder`."""
    files.write_json(folder / f"2801_{net}_dat.json", networks.to_json(network))
    model = {"name": net, "layer": [{"operation": "GTICNN", "name": "chip", "data file": None, "device": {}}]}
    files.write_json(folder / f"2801_{net}_model.json", model)
    return folder


def build(network: Network, folder: Path, net: str = "digits", classes: int = 5, **options: Any) -> keras.Model:
    """Return the model of `network` in a stage, with the host part of `net`."""
    return base.build(net, classes=classes, nets_dir=write_json(network, folder, net), **options)


def randomise(model: keras.Model, seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Fill every variable but the caps with random values of a trained network's size; return all by name."""
    random = np.random.default_rng(seed)
    for name, variable in base.named_variables(model).items():
        shape = variable.shape
        if name.endswith(("filters", "weights")):
            variable.assign(random.normal(size=shape) * scale * np.sqrt(2 / np.prod(shape[:-1])))
        elif name.endswith(("variance", "gamma")):
            variable.assign(random.uniform(0.5, 2.0, shape))
        elif name.endswith(("biases", "beta", "mean")):
            variable.assign(random.normal(size=shape) * scale * 0.3)
    return values(model)


def values(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the values of a model's variables by name."""
    return {name: variable.numpy() for name, variable in base.named_variables(model).items()}


def assign(model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
    """Set every variable of `model`."""
    for name, variable in base.named_variables(model).items():
        variable.assign(arrays[name])


def some_caps(network: Network, net: str = "digits") -> dict[str, float]:
    """Return a different cap for every sublayer."""
    return {names.cap(net, c.name): 3.0 + 2.5 * c.index for c in network.convolutions}


def images(network: Network, count: int, seed: int) -> np.ndarray:
    """Return random images in codes 0..31, float32 [count, H, W, C]."""
    return np.random.default_rng(seed).integers(0, 32, (count, *network.input_shape)).astype(np.float32)
