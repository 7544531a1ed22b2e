"""Numbers of the GTI 2801, each with its source; no other module repeats one.

Sources: [guide] the vendor's user guide 2.1.3.1; [dat] docs/dat_format.md; [num] docs/numerics.md;
[wire] docs/usb_protocol.md.
"""

from __future__ import annotations

from typing import Final

CHIP: Final = "2801"
CHIP_TYPE: Final = 2801

# Shapes [dat, section 6]
IMAGE_SIZES: Final = (448, 224, 112, 56, 28, 14)
OUTPUT_CHANNELS: Final = (16, 32, 64, 128, 256, 512, 1024)
FIRST_INPUT_CHANNELS: Final = (1, 2, 3, 4, 8, 12, 16, 32, 64, 128, 256, 512, 1024)
MAX_MAJOR_LAYERS: Final = 6
MAX_SUBLAYERS: Final = 12
# D words of major layers 4..6 never reach the file: no sublayer 10+, one_coef or shortcuts there [dat, section 2.5].
MAX_SUBLAYERS_LATE: Final = 9
FIRST_LATE_MAJOR_LAYER: Final = 4
FC_READOUT_SIZE: Final = 7
FC_SHIFT: Final = 3  # FC read-out: codes in the upper five of 8 bits [guide, output scaledown 3; wire, section 7]
# How upsampling fills each 2x2 window: with the pixel, or with the pixel at its top left and zeros [guide, appendix A].
UPSAMPLE_MODES: Final = ("repeat", "zero")

# Coefficients [num, section 3]: bits of the scale (signed) and of the bias (signed, two's complement) per coef_bits.
COEF_BITS: Final = (1, 3)
SCALE_BITS: Final = {1: 12, 3: 12}
BIAS_BITS: Final = {1: 12, 3: 18}
MAX_SHIFT_STORED: Final = 15
MAX_SHIFT_TRAINED: Final = 12
MAX_WEIGHT: Final = 2047
# 4 * 512 = 2048 does not fit: the integer step of a 3-bit kernel ends at 511 [num, section 3].
MAX_STEP_3BIT: Final = 511
MAX_ALPHA_1BIT: Final = 2047

# Activations [guide, section 5; num, sections 4 and 6]
MAX_CODE: Final = 31
MAX_CODE_TEN_BIT: Final = 1023
TEN_BIT_FACTOR: Final = 32
# Keyed by Convolution.ten_bit: the largest code, and the activation it stands for in a fused network.
TOP_CODE: Final = {False: MAX_CODE, True: MAX_CODE_TEN_BIT}
FUSED_CAP: Final = {False: 31.0, True: MAX_CODE_TEN_BIT / TEN_BIT_FACTOR}
# Of the batch norm that training may use and fusion folds away [num, section 5].
BATCH_NORM_EPSILON: Final = 1e-3

# Activation memory [dat, section 4]
ADDRESS_UNIT: Final = 3136
BLOCK_UNITS: Final = 256
MEMORY_UNITS: Final = 1280

# File [dat, section 1]
HEADER_WORDS: Final = 23
HEADER_BYTES: Final = 92
ROW_BYTES: Final = 192
MIN_FILE_BYTES: Final = 5242880
ENGINES: Final = 16

# USB stream [wire, sections 5 to 7]: lengths in words, one data byte each
RESET_WORDS: Final = 8
DATA_PREFIX: Final = 3
DATA_UNIT: Final = 8
COEFFICIENT_TAIL: Final = 32768
IMAGE_TAIL: Final = 1024
LAYER_REGISTER_BYTES: Final = 84
REGISTER_SLOTS: Final = 7
READ_UNIT: Final = 1024
TILE: Final = 14
POOLED_TILE: Final = 7
OUTPUT_GROUP: Final = 16
GROUPED_FROM: Final = 256

# Speed. [product] the vendor's public product pages of the Lightspeeur 2801S and of USB sticks with it: advertised,
# never measured by this project, and silent on what one "operation" is; two per multiply-accumulate is the trade's
# custom (docs/check.md).
ADVERTISED_TOPS: Final = {"300 mW": 2.8, "100 MHz": 5.6}
OPERATIONS_PER_MAC: Final = 2
# Bytes per second on the bus at best: FTDI's data sheets (16 or 32 bits at 100 MHz), and for USB 2 thirteen packets of
# 512 bytes per 125 us (USB 2.0 specification, table 5-10).
BUS_BYTES_PER_SECOND: Final = {"FT601, USB 3": 400e6, "FT600, USB 3": 200e6, "FT601, USB 2": 53.248e6}
