"""How codes of a ten-bit last layer might travel: as twice as many 5-bit maps.

A file with ActivationBitMode 1 doubles the output channels in the last layer's register (docs/dat_format.md, 2.3),
so the chip probably delivers two values of five bits for each code. Their order is not known: the layouts here are
guesses, in use between the driver and the stick in software, and on a real stick only where a setting asks for one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LAYOUTS = ("halves", "pairs")


def split_codes(codes: npt.NDArray[np.uint16], layout: str) -> npt.NDArray[np.uint8]:
    """Return codes 0..1023 [C,H,W] as 5-bit maps, uint8 [2C,H,W]: high bits and low bits.

    "halves": all high maps, then all low maps; "pairs": high and low map of each channel in turn.
    """
    parts = np.stack([codes >> 5, codes & 31], axis=0 if layout == "halves" else 1).astype(np.uint8)
    return parts.reshape(-1, *codes.shape[1:])


def join_codes(maps: npt.NDArray[np.uint8], layout: str) -> npt.NDArray[np.uint16]:
    """Return the codes 0..1023, uint16 [C,H,W], of maps [2C,H,W]; the inverse of `split_codes`."""
    shape = maps.shape[1:]
    parts = maps.astype(np.uint16)
    high, low = parts.reshape(2, -1, *shape) if layout == "halves" else parts.reshape(-1, 2, *shape).swapaxes(0, 1)
    codes: npt.NDArray[np.uint16] = high << 5 | low
    return codes
