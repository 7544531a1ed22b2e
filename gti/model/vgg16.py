"""Host part of `vgg16`: the three fully connected layers of VGG16 (Simonyan and Zisserman 2014, table 1, column D)."""

from __future__ import annotations

from typing import Any

import keras

from gti.layers import ChipFlatten, HostDense

BATCH_NORM = False


def host_layers(x: Any, *, classes: int) -> Any:
    """Return logits [batch, classes] from the chip's result [batch, 7, 7, 512]."""
    x = ChipFlatten(name="flatten")(x)
    x = HostDense(4096, "relu", name="fc6")(x)
    x = keras.layers.Dropout(0.5, name="dropout6")(x)
    x = HostDense(4096, "relu", name="fc7")(x)
    x = keras.layers.Dropout(0.5, name="dropout7")(x)
    return HostDense(classes, name="fc8")(x)
