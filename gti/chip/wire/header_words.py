"""Where each fact stands in the 23 words of a .DAT header, which are also the chip's registers; the codes in them.

Source: docs/dat_format.md section 2, docs/usb_protocol.md section 4. Word 0 is the format, word 1 (G) the global
register; major layer i (from 0) has A, B, C at 2 + 3 i, and the first three layers D at 20 + i.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gti.chip.spec import ENGINES, IMAGE_SIZES


class Bits(NamedTuple):
    """A field of a word: `width` bits from bit `at` on."""

    at: int
    width: int = 1

    @property
    def mask(self) -> int:
        """The field with all its bits set."""
        return (1 << self.width) - 1 << self.at

    def of(self, word: int) -> int:
        """Return the field's value in `word`."""
        return (word & self.mask) >> self.at

    def put(self, value: int) -> int:
        """Return the word with this field alone; what does not fit is cut off."""
        return value << self.at & self.mask


GLOBAL: Final = 1
LATE: Final = 20  # D of the first major layer

# G
OUTPUT_CODE: Final = Bits(0, 3)
CLEARED: Final = Bits(4)  # the host sends it as 0
MAJOR_LAYERS: Final = Bits(5, 3)
FORMAT: Final = Bits(10, 2)  # CURRENT_FORMAT in every current file
UPPER_FORMAT: Final = Bits(11)  # of FORMAT; as a register: set in every mode but FC
LAST_LAYER_OUT: Final = Bits(12)  # as a register: the last sublayer of every major layer is delivered
FC: Final = Bits(13)  # the output is pooled from 14 to 7; as a register: it is delivered in 8 bits
INPUT_CODE: Final = Bits(16, 4)
TOP_LEFT: Final = Bits(31)  # SamplingMethod 1
# A
IMAGE_SIZE: Final = Bits(0, 8)
INPUT_CHANNELS: Final = Bits(8, 11)
OUTPUT_CHANNELS: Final = Bits(19, 11)  # of a ten-bit output twice as many as there are
POOLING: Final = Bits(30)
LEARNING: Final = Bits(31)  # all sublayers are delivered
# B
FIRST_SHIFT: Final = Bits(0, 4)
SUBLAYERS: Final = Bits(4, 4)
IN_ADDRESS: Final = Bits(8, 11)
OUT_ADDRESS: Final = Bits(19, 11)
THREE_BIT: Final = Bits(30)
# C and D
C_SHIFTS: Final = tuple(Bits(4 * j, 4) for j in range(8))  # of sublayers 2 to 9
D_SHIFTS: Final = tuple(Bits(4 * j, 4) for j in range(3))  # of sublayers 10 to 12
D_SHORTCUTS: Final = tuple(Bits(12 + j) for j in range(6))  # that start at sublayer 1, 3, 5, ...
D_ONE_COEF: Final = tuple(Bits(18 + j) for j in range(12))
D_DEPTH: Final = Bits(30)

MODE_BITS: Final = UPPER_FORMAT.mask | LAST_LAYER_OUT.mask | FC.mask
CURRENT_FORMAT: Final = 3
OLD_MARKER: Final = 0xAAAA  # word 22 of files of an older converter [section 2.5]

_CODE_OF_448: Final = 0xF0  # 448 does not fit into 8 bits
# Every other count of input channels, 3 (RGB) included, has code 0 [section 2.2].
INPUT_CODES: Final = {1: 1, 2: 2, 4: 4, 8: 5, 12: 6, 16: 7, 24: 8, 32: 9, 64: 10, 128: 11, 256: 12, 512: 13, 1024: 14}
INPUTS_OF_CODE: Final = {0: 3} | {code: channels for channels, code in INPUT_CODES.items()}
# Output size: log2 of how many times smaller than 56x56x16 the unpooled output is, plus 1 [section 2.2].
_OUTPUT_TERMS: Final = {7: 7, 14: 5, 28: 3, 56: 1, 112: -1, 224: -3, 448: -5}


def upsampling(i: int) -> Bits:
    """Return the field of G that doubles the input of major layer `i`, from 0."""
    return Bits(24 + i)


def size_code(size: int) -> int:
    """Return what IMAGE_SIZE holds for images of `size`."""
    return _CODE_OF_448 if size == 448 else size


def size_of_code(code: int) -> int:
    """Return the image size, the inverse of `size_code`."""
    return 448 if code == _CODE_OF_448 else code


def output_code(image_size: int, output_channels: int, pooling: bool) -> int:
    """Return OUTPUT_CODE for the last major layer [section 2.2]."""
    groups = -(-output_channels // ENGINES)
    if groups & (groups - 1):
        return 1
    code = _OUTPUT_TERMS[image_size] - (groups.bit_length() - 1) + pooling
    return max(1, min(code, 7))


def reads_as(code: int, image_size: int, stored_channels: int, pooling: bool, ten_bit: bool) -> bool:
    """Return whether OUTPUT_CODE `code` allows a last layer of five bits, or with `ten_bit` of ten.

    `stored_channels` are those of A. The code is made of the real count and clamped: it may allow both readings.
    """
    if image_size not in IMAGE_SIZES or stored_channels % (ENGINES << ten_bit):
        return False
    return code == output_code(image_size, stored_channels >> ten_bit, pooling)
