"""Host part of `cifar`: a VGG-like net for small photographs, 28x28 -> 7x7x128."""

from __future__ import annotations

from typing import Any

import keras

from gti.layers import ChipFlatten, HostDense

BATCH_NORM = True


def host_layers(x: Any, *, classes: int) -> Any:
    """Return logits [batch, classes] from the chip's result [batch, 7, 7, 128]."""
    x = ChipFlatten(name="flatten")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    return HostDense(classes, name="fc")(x)
