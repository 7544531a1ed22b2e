"""Host part of `tenbit`: ten-bit activation out of the chip's last layer, 224x224 -> 7x7x256.

Ten-bit codes take the room of two channels on the chip, so the last layer has half the channels of the five-bit VGG16
(user guide section 5.1).
"""

from __future__ import annotations

from typing import Any

import keras

from gti.layers import ChipFlatten, HostDense

BATCH_NORM = False


def host_layers(x: Any, *, classes: int) -> Any:
    """Return logits [batch, classes] from the chip's result [batch, 7, 7, 256]."""
    x = ChipFlatten(name="flatten")(x)
    x = HostDense(512, "relu", name="fc6")(x)
    x = keras.layers.Dropout(0.5, name="dropout6")(x)
    return HostDense(classes, name="fc7")(x)
