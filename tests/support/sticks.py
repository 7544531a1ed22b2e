"""Small networks and sticks in software for the tests of the USB path."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gti.chip.driver import GtiModel
from gti.chip.formats import dat
from gti.chip.network import file_size
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.usb import devices
from gti.chip.usb.transport import VIRTUAL_SETTINGS, Settings
from gti.chip.virtual.faults import Fault, FaultPlan
from gti.chip.virtual.sticks import virtual_backend

KINDS = ("ft601", "ft600", "eusb")


def tiny_network(**changes: Any) -> Network:
    """One 3-bit sublayer, 14x14x1 -> 7x7x16."""
    return Network((MajorLayer(14, 1, 16, 1, 3, (4,), pooling=True),), **changes)


def small_network() -> Network:
    """Two major layers, both kinds of coefficients, 28x28x3 -> 7x7x32."""
    return Network(
        (
            MajorLayer(28, 3, 16, 2, 3, (6, 6), pooling=True),
            MajorLayer(14, 16, 32, 1, 1, (5,), pooling=True),
        )
    )


def lively_weights(network: Network, seed: int) -> list[ConvolutionWeights]:
    """Weights that keep activations spread over the codes."""
    random = np.random.RandomState(seed)
    result = []
    for conv in network.convolutions:
        levels = np.array([-4, -2, -1, 0, 1, 2, 4] if conv.coef_bits == 3 else [-1, 1])
        shape = (conv.output_channels, conv.input_channels)
        masks = levels[random.randint(0, len(levels), (*shape, 3, 3))]
        scales = random.randint(1, 6, shape)[:, :, None, None]
        biases = random.randint(-200, 500, conv.output_channels).astype(np.int32)
        result.append(ConvolutionWeights((masks * scales).astype(np.int16), biases, conv.shift))
    return result


@functools.lru_cache
def dat_bytes(network: Network, seed: int = 1) -> bytes:
    """A .DAT without padding, so that loading it is quick."""
    rows = file_size.row_count(network)
    return dat.encode(network, lively_weights(network, seed), length=92 + 192 * rows)


def images(network: Network, count: int, seed: int = 2) -> np.ndarray:
    """Random 8-bit images [N,H,W,C]."""
    return np.random.RandomState(seed).randint(0, 256, (count, *network.input_shape)).astype(np.uint8)


def stick(kind: str, faults: tuple[Fault, ...] = (), settings: Settings = VIRTUAL_SETTINGS, **chip: Any) -> Any:
    """Return (backend, transport) of one stick in software with a fault plan."""
    backend = virtual_backend(kind, plans=[FaultPlan(faults)], **chip)
    return backend, devices.transport_on(backend, kind, settings)


def open_model(path: Any, kind: str = "ft601", faults: tuple[Fault, ...] = (), **options: Any) -> tuple[Any, GtiModel]:
    """Return (backend, model) on one stick in software."""
    settings = options.pop("settings", VIRTUAL_SETTINGS)
    backend, transport = stick(kind, faults, settings, **options.pop("chip", {}))
    return backend, GtiModel(path, transport=transport, settings=settings, **options)
