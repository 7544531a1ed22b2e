"""Small full .MODEL files, chip and host layers with labels, for the tests of the runtime."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from sticks import dat_bytes

from gti.chip.formats.blobs import encode_fc
from gti.chip.formats.model_file import compose
from gti.chip.host.preprocessing import KEY, Preprocessing
from gti.chip.network.types import MajorLayer, Network

NETWORK = Network((MajorLayer(14, 3, 16, 1, 3, (4,), pooling=True),))
NAMES = ["background", "cat", "dog", "café"]
CONTRACT = Preprocessing(14, 3, "BGR", 0.875)
_ENTRY = CONTRACT.entry()


def host_weights() -> tuple[np.ndarray, np.ndarray]:
    """Weights [4, 784] and biases [4] of the one fully connected layer."""
    random = np.random.RandomState(3)
    return (random.normal(size=(4, 784)) * 0.003).astype(np.float32), random.normal(size=4).astype(np.float32)


def full_model(contract: Any = _ENTRY, mode: int = 0, reader: dict[str, Any] | None = None) -> bytes:
    """Return a .MODEL; `contract`: value of its preprocessing, None for none."""
    layers: list[dict[str, Any]] = [{"operation": "IMAGEREADER", "name": "reader", **reader}] if reader else []
    layers += [
        {"operation": "GTICNN", "name": "chip", "data file": "chip", "mode": mode, "output scaledown": 3},
        {"operation": "FC", "name": "fc", "data file": "fc"},
        {"operation": "SOFTMAX", "name": "softmax"},
        {"operation": "LABEL", "name": "label", "data file": "labels"},
    ]
    header: dict[str, Any] = {"name": "small", "layer": layers}
    if contract is not None:
        header[KEY] = contract
    data = {
        "chip": dat_bytes(NETWORK),
        "fc": encode_fc(*host_weights()),
        "labels": "".join(f"{name}\n" for name in NAMES).encode(),
    }
    return compose(json.dumps(header).encode(), data)


def probabilities(codes: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes, float64 [4], for the chip's codes [C,H,W]."""
    weights, biases = host_weights()
    logits = weights.astype(np.float64) @ codes.reshape(-1) + biases
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
