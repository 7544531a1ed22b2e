"""Host part of `vgg_bn`: VGG-like with batch norm after every convolution, 224x224 -> 7x7x256."""

from __future__ import annotations

from typing import Any

import keras

from gti.layers import ChipFlatten, HostDense

BATCH_NORM = True


def host_layers(x: Any, *, classes: int) -> Any:
    """Return logits [batch, classes] from the chip's result [batch, 7, 7, 256]."""
    x = ChipFlatten(name="flatten")(x)
    x = HostDense(512, "relu", name="fc6")(x)
    x = keras.layers.Dropout(0.5, name="dropout6")(x)
    return HostDense(classes, name="fc7")(x)
