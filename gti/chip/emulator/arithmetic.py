"""The chip's arithmetic beside the convolution itself: each rule stands here once, for both engines.

No silicon has confirmed the last rounding bit. What a chip may do otherwise stands in the table of `behaviours.py`, and
`alternative_codes` computes it. Formulas: docs/numerics.md section 6; five-bit input: user guide, section 5. Array axes
are [N, H, W, C].

`requantize` and `pool_window` use only functions that mean the same for NumPy arrays, for the scalars of compiled code
and for its vectors: the fast engine compiles these very functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gti.chip import spec
from gti.chip.emulator.behaviours import ASSUMED, Behaviours

TOP_LEFT = 1  # SamplingMethod of a network that pools by taking the top-left pixel


class Requantization(NamedTuple):
    """The numbers of `requantize` for one sublayer."""

    half: int  # added before the shift, so that halves round up
    right: int  # bits shifted out
    left: int  # bits shifted in afterwards: ten-bit codes of a shift below 5
    bottom: int  # smallest code
    top: int  # largest code


def requantization(shift: int, ten_bit: bool) -> Requantization:
    """Return the numbers that turn accumulators of a sublayer with `shift` into codes.

    Five bits: round(acc / 2**shift), ten bits: round(acc * 32 / 2**shift), both clipped to 0..31 or 0..1023.
    """
    places = shift - spec.TEN_BIT_FACTOR.bit_length() + 1 if ten_bit else shift
    right = max(places, 0)
    return Requantization(
        half=1 << (right - 1) if right else 0,
        right=right,
        left=max(-places, 0),
        bottom=0,
        top=spec.MAX_CODE_TEN_BIT if ten_bit else spec.MAX_CODE,
    )


def requantize(  # noqa: PLR0917 - compiled code has positions only
    accumulator: Any, half: Any, right: Any, left: Any, bottom: Any, top: Any
) -> Any:
    """Return the codes of integer accumulators: half up, clipped to bottom..top.

    The same rule stands for TensorFlow in `gti.quantize.requantize`: a change of one is one of both.

    Half up and half away from zero agree, because negative results end at 0. Clipping before the left shift
    keeps the shifted value small; it changes nothing, as every value above `top` stays above it.
    Functions in place of operators: compiled code keeps 32-bit scalars in 32 bits with them.
    """
    rounded = np.right_shift(np.add(accumulator, half), right)
    code = np.minimum(np.maximum(rounded, bottom), top)
    return np.minimum(np.left_shift(code, left), top)


def pool_window(top_left: Any, top_right: Any, bottom_left: Any, bottom_right: Any, take_top_left: bool) -> Any:
    """Return the pooled value of a 2x2 window: its maximum, or its top-left pixel."""
    if take_top_left:
        return top_left
    return np.maximum(np.maximum(top_left, top_right), np.maximum(bottom_left, bottom_right))


def alternative_codes(
    sums: np.ndarray, biases: np.ndarray, shift: int, ten_bit: bool, behaviours: Behaviours
) -> np.ndarray:
    """Return the codes that a chip with `behaviours` makes of sums (int64 [..., out], without biases int64 [out]).

    With `behaviours.ASSUMED` they are those of `requantize`.
    """
    rule = requantization(shift, ten_bit)
    width = behaviours.value("accumulator")

    def shifted(numbers: np.ndarray) -> np.ndarray:
        rounded: np.ndarray = behaviours.value("rounding")(numbers, rule.right) if rule.right else numbers << rule.left
        return rounded

    match behaviours["bias"]:
        case "full":
            values = shifted(width(sums + biases))
        case "after_shift":
            values = shifted(width(sums)) + shifted(biases)
        case _:
            values = shifted(width(sums)) + biases
    codes: np.ndarray = behaviours.value("saturation")(values, rule.top)
    return codes.astype(np.uint16 if ten_bit else np.uint8)


def pool(codes: np.ndarray, sampling_method: int, behaviours: Behaviours = ASSUMED) -> np.ndarray:
    """Return codes [N, H, W, C] pooled 2x2 with stride 2 to [N, H/2, W/2, C]."""
    window = (codes[:, 0::2, 0::2], codes[:, 0::2, 1::2], codes[:, 1::2, 0::2], codes[:, 1::2, 1::2])
    take_top_left = sampling_method == TOP_LEFT
    question = "sampling" if take_top_left else "pooling"
    if dict(behaviours.others).get(question):
        other: np.ndarray = behaviours.value(question)(*window)
        return other
    pooled: np.ndarray = pool_window(*window, take_top_left)
    return pooled


def upsample(codes: np.ndarray, fill: str) -> np.ndarray:
    """Return codes [N, H, W, C] doubled to [N, 2H, 2W, C].

    `fill` "repeat" copies each pixel to its 2x2 window, "zero" keeps it at the top-left beside three zeros.
    """
    count, height, width, channels = codes.shape
    result = np.zeros((count, height, 2, width, 2, channels), codes.dtype)
    if fill == "repeat":
        result[:] = codes[:, :, None, :, None]
    else:
        result[:, :, 0, :, 0] = codes
    return result.reshape(count, 2 * height, 2 * width, channels)


def five_bit(images: np.ndarray) -> np.ndarray:
    """Return the five-bit codes (uint8, 0..31) that the chip makes of 8-bit pixels (uint8), any shape."""
    codes: np.ndarray = np.minimum(((images >> 2) + 1) >> 1, spec.MAX_CODE)  # (255 >> 2) + 1 = 64 on the way at most
    return codes
