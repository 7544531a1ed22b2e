"""Host part of `digits`: a small net for the demonstration on handwritten digits, 28x28 -> 7x7x64."""

from __future__ import annotations

from typing import Any

from gti.layers import ChipFlatten, HostDense

BATCH_NORM = False


def host_layers(x: Any, *, classes: int) -> Any:
    """Return logits [batch, classes] from the chip's result [batch, 7, 7, 64]."""
    return HostDense(classes, name="fc")(ChipFlatten(name="flatten")(x))
