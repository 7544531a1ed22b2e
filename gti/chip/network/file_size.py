"""How many filter rows and bytes a network takes in a .DAT (docs/dat_format.md, sections 1 and 3)."""

from __future__ import annotations

from typing import Final

from gti.chip import spec
from gti.chip.network.types import Network

TAPS: Final = 9
KERNELS_PER_LINE: Final = {1: 4, 3: 2}  # by coef_bits; a row holds a line of each of the 16 engines
_ROOM: Final = 1024000  # what current converters add to the rows, and 64 bytes to each row [section 1]
_ROOM_OF_A_ROW: Final = 256


def groups(channels: int) -> int:
    """Return how many groups of 16 engines hold `channels`."""
    return max(1, -(-channels // spec.ENGINES))


def rows_of(output_channels: int, input_channels: int, coef_bits: int) -> int:
    """Return the rows of one convolution [section 3.1]."""
    return groups(output_channels) * groups(input_channels) * spec.ENGINES // KERNELS_PER_LINE[coef_bits]


def row_count(network: Network) -> int:
    """Return the number of filter rows of `network`, extra passes included."""
    rows = sum(rows_of(c.output_channels, c.input_channels, c.coef_bits) for c in network.convolutions)
    return rows + sum(groups(layer.output_channels) for layer in network.layers if layer.extra_pass)


def file_length(rows: int) -> int:
    """Return the length in bytes that current converters give a file of `rows` rows [section 1]."""
    return max(spec.MIN_FILE_BYTES, spec.HEADER_BYTES + _ROOM + _ROOM_OF_A_ROW * rows)
