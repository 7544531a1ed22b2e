"""Which sublayers a read-out mode delivers, for everything that knows the network and not the registers.

The chip's side, from the registers that the host sends, is `gti.chip.wire.readout.select`.
"""

from __future__ import annotations

from gti.chip.network.types import Convolution, Network
from gti.chip.wire.registers import MODE_NAMES, Mode
from gti.errors import UsageError


def delivered(network: Network, mode: Mode) -> list[Convolution]:
    """Return the sublayers whose maps `mode` delivers, in its order (docs/usb_protocol.md, section 7).

    FC delivers the last one pooled, the others before pooling. Raises UsageError for FILE_5 and FILE_6, which read what
    a file selects.
    """
    every = network.convolutions
    match mode:
        case Mode.LEARN:
            return list(every)
        case Mode.SUBLAST:
            return [c for c in every if c.sub == network.layers[c.major - 1].sublayer_number]
        case Mode.LASTMAJOR:
            return [c for c in every if c.major == every[-1].major]
        case Mode.SINGLE | Mode.FC:
            return [every[-1]]
    raise UsageError(f"read-out mode {mode:d}", "has no list of layers", expected=", ".join(MODE_NAMES))
