"""HED and some photographs -> a .MODEL for edges, without training: the chip's integers, the head on their codes."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.formats.model_file import compose
from gti.chip.host import edge_head, preprocessing
from gti.chip.host.edge_head import EdgeHead
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.network.types import Convolution, Network
from gti.chip.runtime import known_answer
from gti.chip.wire.protocol import Mode
from gti.converter import with_shifts
from gti.importing.hed import Hed
from gti.ptq import float_maps, post_training
from gti.ptq.post_training import Quantized


@dataclass(frozen=True)
class Edges:
    """A network on the chip that finds edges, and how well it agrees with the float network."""

    network: Network
    data: bytes  # the .DAT
    answer: dict[str, Any]  # known answer
    head: EdgeHead
    correlations: tuple[float, ...]  # of the edges of each photograph held back with those of the float network
    quantized: Quantized

    def to_model(self, name: str) -> bytes:
        """Return the .MODEL; `name`: of the network, in its header."""
        last = self.network.layers[-1]
        size, _, planes = self.network.input_shape
        shape = {"output width": size, "output height": size, "output channels": planes}
        reader = {"name": "reader", "operation": "IMAGEREADER", "data file": None, "data offset": None, **shape}
        reader |= {"input format": "CS_BGR24_PLANAR", "output format": "CS_BGR24_PLANAR"}
        chip = {
            "name": "chip",
            "operation": "GTICNN",
            "data file": "chip.dat",
            "data offset": 0,
            "mode": int(Mode.SUBLAST),
            "output scaledown": 0,
            "output width": last.working_size,
            "output height": last.working_size,
            "output channels": last.output_channels,
            "device": {"chip": "2801", "name": None, "type": 0, "emmc delay": 12000},
            known_answer.KEY: self.answer,
        }
        header = {
            "name": name,
            "layer": [reader, chip],
            preprocessing.KEY: Preprocessing(size, planes, "BGR", None).entry(),
            edge_head.KEY: self.head.entry(),
        }
        return compose(json.dumps(header, ensure_ascii=False).encode(), {"chip.dat": self.data})


def make(hed: Hed, images: np.ndarray, held_back: Collection[int], *, progress: str = "") -> Edges:
    """Return HED in the chip's integers.

    `images`: uint8 [N,H,W,3], BGR, to quantize with; those with numbers in `held_back` give every figure.
    """
    quantized = post_training.quantize(hed.network, hed.filters, images, held_back, progress=progress)
    network = with_shifts(hed.network, [layer.weights.shift for layer in quantized.layers])
    emulator = Emulator(network, quantized.weights)
    scales = [layer.caps / 31.0 for layer in quantized.layers if ends_a_block(layer.convolution, network)]
    head = EdgeHead(tuple(side * scale for side, scale in zip(hed.sides, scales, strict=True)), hed.bias)
    judged = images[list(held_back)]
    found = tuple(
        correlation(head.logits(emulator.read_out(image, "sublast")), wanted)
        for image, wanted in zip(judged, float_logits(hed, judged), strict=True)
    )
    data = dat.encode(network, quantized.weights)
    answer = known_answer.make(network, quantized.weights, data).to_entry()
    return Edges(network, data, answer, head, found, quantized)


def correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the correlation of two edge maps, probabilities, of which the logits [H,W] are given."""
    a, b = (edge_head.probabilities(logits).ravel().astype(np.float64) for logits in (ours, theirs))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float(np.allclose(ours, theirs))


def ends_a_block(convolution: Convolution, network: Network) -> bool:
    """Return whether a sublayer is the last one of its major layer."""
    return convolution.sub == network.layers[convolution.major - 1].sublayer_number


def float_logits(hed: Hed, images: np.ndarray) -> list[np.ndarray]:
    """Return the logits [H,W] of the float network for each of `images`, uint8 [N,H,W,3], seen in the chip's 5 bits."""
    head = EdgeHead(hed.sides, hed.bias)
    maps = arithmetic.five_bit(images).astype(np.float32)
    blocks = []
    for convolution, (filters, biases) in zip(hed.network.convolutions, hed.filters, strict=True):
        ends = ends_a_block(convolution, hed.network)
        shape = (len(images), convolution.size, convolution.size) if ends else (1, 1, 1)
        image, row, column = (places.ravel() for places in np.indices(shape))
        sums, maps = float_maps.forward(
            maps, filters, biases, convolution=convolution, network=hed.network, picks=(image, row, column)
        )
        if ends:
            blocks.append(np.maximum(sums, 0).reshape(*shape, -1).transpose(0, 3, 1, 2))
    return [head.logits([block[number] for block in blocks]) for number in range(len(images))]
