"""Host part of `cifar10`: a VGG-like net for small photographs, 28x28 -> 7x7x256, whose maps are averaged."""

from __future__ import annotations

from typing import Any

import keras

from gti.layers import HostDense

BATCH_NORM = True


def host_layers(x: Any, *, classes: int) -> Any:
    """Return logits [batch, classes] from the chip's result [batch, 7, 7, 256]."""
    return HostDense(classes, name="fc")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
