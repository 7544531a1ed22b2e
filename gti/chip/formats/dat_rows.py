"""Filter rows of a .DAT file: the integer filters and biases of one convolution <-> 192-byte rows.

The layout is stated in docs/dat_format.md section 3. A row holds one 96-bit line of each of the 16 engines; here a
line is three little-endian 32-bit words, so rows are uint32 arrays [row, engine, word]. Kernels are handled with
their nine taps as the leading axis and in blocks that stay in the cache, so every step is one vector operation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gti.chip import spec
from gti.chip.network.file_size import KERNELS_PER_LINE, TAPS, groups

LINE_WORDS = 3
_BLOCK_KERNELS = 8192
_TAP = np.arange(TAPS, dtype=np.uint16)[:, None]
_STEP_MASK = np.uint64(0xFFF)
_PLANE = np.uint64(0x1FF)

# Line k of engine e holds the kernel of input (e - k) mod 16 [section 3.1]: index into [engine, input] for [k, engine].
_ENGINE = np.arange(spec.ENGINES)
_TO_LINES = (_ENGINE[None, :] * spec.ENGINES + (_ENGINE[None, :] - _ENGINE[:, None]) % spec.ENGINES).ravel()
_FROM_LINES = np.argsort(_TO_LINES)

# The identity line of the extra shortcut pass [section 3.3].
IDENTITY_LINE = np.array([0x00002010, 0x00400000, 0x00000004], dtype="<u4")


def pack(filters: np.ndarray, biases: np.ndarray, coef_bits: int, rows: np.ndarray) -> bool:
    """Write one convolution into `rows` (uint32 [row, 16, 3], zeros) and return whether it is represented exactly.

    `filters` int16 [out, in, 3, 3], `biases` int32 [out]. What is not exact is stored as docs/dat_format.md section 3.4
    says: unequal 1-bit magnitudes take the first one, 3-bit coefficients off {0, 1, 2, 4} * step become 0.
    """
    planes_of = _planes_3bit if coef_bits == 3 else _planes_1bit
    inputs = groups(filters.shape[1])
    lines = spec.ENGINES // KERNELS_PER_LINE[coef_bits]
    target = rows.reshape(groups(filters.shape[0]), inputs, lines, spec.ENGINES, LINE_WORDS)
    exact = True
    for first, count in _blocks(filters.shape[0], filters.shape[1]):
        taps = _taps(filters, first, count, inputs)
        planes, scale, fine = planes_of(taps)
        exact = exact and fine
        shape = (count, inputs, lines, KERNELS_PER_LINE[coef_bits], spec.ENGINES)
        low, high = _lines(
            _into_lines(planes, count, inputs, shape), _into_lines(scale, count, inputs, shape), coef_bits
        )
        bias = np.zeros(count * spec.ENGINES, np.int64)
        given = biases[first * spec.ENGINES : (first + count) * spec.ENGINES]
        bias[: given.size] = given
        high[:, -1, -1] |= _bias_field(bias, coef_bits).reshape(count, spec.ENGINES)
        block = target[first : first + count]
        block[..., 0] = low.astype(np.uint32)
        block[..., 1] = (low >> np.uint64(32)).astype(np.uint32)
        block[..., 2] = high
    limit = 1 << (spec.BIAS_BITS[coef_bits] - 1)
    return exact and bool(np.all((biases >= -limit) & (biases < limit)))


def unpack(
    rows: np.ndarray, output_channels: int, input_channels: int, coef_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return filters int16 [out, in, 3, 3] and biases int32 [out] of one convolution; `rows` as in `pack`."""
    inputs = groups(input_channels)
    lines = spec.ENGINES // KERNELS_PER_LINE[coef_bits]
    source = rows.reshape(groups(output_channels), inputs, lines, spec.ENGINES, LINE_WORDS)
    filters = np.empty((output_channels, input_channels, 3, 3), np.int16)
    for first, count in _blocks(output_channels, input_channels):
        block = source[first : first + count]
        low = block[..., 0] | block[..., 1].astype(np.uint64) << np.uint64(32)
        values = (_values_3bit if coef_bits == 3 else _values_1bit)(low, block[..., 2], count, inputs)
        start = first * spec.ENGINES
        stop = min(start + count * spec.ENGINES, output_channels)
        natural = values.reshape(TAPS, count * spec.ENGINES, inputs * spec.ENGINES)
        target = filters[start:stop].reshape(stop - start, input_channels, TAPS)
        for j in range(TAPS):  # faster than one transposed copy
            target[:, :, j] = natural[j, : stop - start, :input_channels]
    last = source[:, -1, -1, :, 2].reshape(-1)[:output_channels]
    return filters, _bias_value(last, coef_bits)


def identity_rows(output_channels: int) -> np.ndarray:
    """Return the rows of the extra shortcut pass of a 3-bit layer [section 3.3]."""
    return np.broadcast_to(IDENTITY_LINE, (groups(output_channels), spec.ENGINES, LINE_WORDS))


def scale_range(rows: np.ndarray, coef_bits: int) -> tuple[int, int]:
    """Return the smallest and largest non-zero step or alpha in `rows` (uint32 [row, 16, 3]); 0, 0 where all are 0."""
    low = rows[..., 0] | rows[..., 1].astype(np.uint64) << np.uint64(32)
    scales = _scales(low, rows[..., 2], coef_bits).astype(np.uint16)
    # Zeros wrap to 65535, so that the minimum is over the others.
    largest = int(scales.max(initial=0))
    return (int((scales - np.uint16(1)).min()) + 1, largest) if largest else (0, 0)


def off_grid(filters: np.ndarray, coef_bits: int) -> np.ndarray:
    """Return bool [out, in]: kernels that the file cannot hold exactly."""
    magnitude = np.abs(filters.reshape(*filters.shape[:2], TAPS).astype(np.int32))
    if coef_bits == 1:
        unequal: np.ndarray = (magnitude != magnitude[..., :1]).any(axis=-1)
        return unequal
    step = np.where(magnitude > 0, magnitude, np.iinfo(np.int32).max // 4).min(axis=-1, keepdims=True)
    on_grid = (magnitude == 0) | (magnitude == step) | (magnitude == 2 * step) | (magnitude == 4 * step)
    # A minimum of exactly 2047 collides with the converter's sentinel and is stored as step 0 [section 3.4].
    off: np.ndarray = ~on_grid.all(axis=-1) | (step[..., 0] == spec.MAX_WEIGHT)
    return off


def _blocks(output_channels: int, input_channels: int) -> Iterator[tuple[int, int]]:
    """Yield (first output group, number of groups) such that a block of kernels stays in the cache."""
    total = groups(output_channels)
    size = max(1, _BLOCK_KERNELS // (groups(input_channels) * spec.ENGINES * spec.ENGINES))
    for first in range(0, total, size):
        yield first, min(size, total - first)


def _taps(filters: np.ndarray, first: int, count: int, inputs: int) -> np.ndarray:
    """Return int16 [9, kernels] of output groups first .. first + count, missing channels as zeros."""
    outputs = count * spec.ENGINES
    block = filters[first * spec.ENGINES : first * spec.ENGINES + outputs]
    block = block.reshape(block.shape[0], block.shape[1], TAPS)
    full = block.shape[:2] == (outputs, inputs * spec.ENGINES)
    taps = (np.empty if full else np.zeros)((TAPS, outputs, inputs * spec.ENGINES), np.int16)
    for j in range(TAPS):  # faster than one transposed copy
        taps[j, : block.shape[0], : block.shape[1]] = block[:, :, j]
    return taps.reshape(TAPS, -1)


def _into_lines(values: np.ndarray, count: int, inputs: int, shape: tuple[int, ...]) -> np.ndarray:
    """Reorder per-kernel `values` [out, in] into [output group, input group, line, kernel of line, engine]."""
    grouped = values.reshape(count, spec.ENGINES, inputs, spec.ENGINES).transpose(0, 2, 1, 3)
    return np.take(grouped.reshape(count, inputs, -1), _TO_LINES, axis=-1).reshape(shape)


def _from_lines(values: np.ndarray, count: int, inputs: int) -> np.ndarray:
    """The inverse of `_into_lines`, flat in the order [out, in]."""
    grouped = np.take(values.reshape(count, inputs, -1), _FROM_LINES, axis=-1)
    return grouped.reshape(count, inputs, spec.ENGINES, spec.ENGINES).transpose(0, 2, 1, 3).reshape(-1)


def _gather_bits(bits: np.ndarray) -> np.ndarray:
    """Return uint16 [kernels]: bit j is bits[j], for bool `bits` [9, kernels]."""
    words: np.ndarray = np.bitwise_or.reduce(bits.view(np.uint8) << _TAP, axis=0, dtype=np.uint16)
    return words


def _planes_3bit(taps: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return bit planes of every kernel (uint64: plane 0, from bit 18 plane 1, from bit 36 signs), steps, exactness."""
    negative = taps < 0
    magnitude = np.abs(taps).view(np.uint16)
    # Zeros wrap to 65535, so that the minimum is over the others; a kernel of zeros gets step 0.
    step = (magnitude - np.uint16(1)).min(axis=0) + np.uint16(1)
    grid = np.maximum(step, 1)
    one, two, four = magnitude == grid, magnitude == grid * np.uint16(2), magnitude == grid * np.uint16(4)
    exact = bool((one | two | four | (magnitude == 0)).all())
    if not exact:
        # floor(magnitude / step + 0.5) decides; 3, 5, 6, ... are stored as 0.
        ratio = (2 * magnitude.astype(np.uint32) + grid) // (2 * grid.astype(np.uint32))
        one, two, four = (magnitude > 0) & (ratio == 1), ratio == 2, ratio == 4
        negative &= one | two | four
    if (step == spec.MAX_WEIGHT).any():
        exact = False
        step = np.where(step == spec.MAX_WEIGHT, np.uint16(0), step)
    planes = _gather_bits(one | four).astype(np.uint64)
    planes |= _gather_bits(two | four).astype(np.uint64) << np.uint64(18)
    planes |= _gather_bits(negative).astype(np.uint64) << np.uint64(36)
    return planes, step, exact


def _planes_1bit(taps: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return the sign plane of every kernel (uint64), alphas, exactness."""
    magnitude = np.abs(taps).view(np.uint16)
    exact = bool((magnitude == magnitude[0]).all())
    return _gather_bits(taps < 0).astype(np.uint64), magnitude[0].copy(), exact


def _lines(planes: np.ndarray, scale: np.ndarray, coef_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bits 63..0 (uint64) and 95..64 (uint32) of every line [section 3.2]; kernels of a line on axis 3."""
    scale = scale.astype(np.uint64) & _STEP_MASK
    low = planes[:, :, :, 0].copy()
    for h in range(1, planes.shape[3]):
        low |= planes[:, :, :, h] << np.uint64(TAPS * h)
    high = np.zeros(low.shape, np.uint64)
    for h in range(planes.shape[3]):
        position = (54 if coef_bits == 3 else 36) + 12 * h
        if position < 64:
            low |= scale[:, :, :, h] << np.uint64(position)
            if position > 52:
                high |= scale[:, :, :, h] >> np.uint64(64 - position)
        else:
            high |= scale[:, :, :, h] << np.uint64(position - 64)
    return low, high.astype(np.uint32)


def _scales(low: np.ndarray, high: np.ndarray, coef_bits: int) -> np.ndarray:
    """Return uint64 [..., kernel of line, engine]: the steps or alphas of lines [..., engine]."""
    fields = []
    for h in range(KERNELS_PER_LINE[coef_bits]):
        position = (54 if coef_bits == 3 else 36) + 12 * h
        if position < 64:
            field = low >> np.uint64(position)
            if position > 52:
                field |= high.astype(np.uint64) << np.uint64(64 - position)
        else:
            field = high.astype(np.uint64) >> np.uint64(position - 64)
        fields.append(field & _STEP_MASK)
    return np.stack(fields, axis=-2)


def _planes(low: np.ndarray, position: int, coef_bits: int) -> np.ndarray:
    """Return uint16 [..., kernel of line, engine]: nine bits of each kernel, from bit `position` of the line on."""
    fields = [(low >> np.uint64(position + TAPS * h)) & _PLANE for h in range(KERNELS_PER_LINE[coef_bits])]
    return np.stack(fields, axis=-2).astype(np.uint16)


def _spread_bits(plane: np.ndarray) -> np.ndarray:
    """Return int16 [9, kernels] of 0 and 1: the inverse of `_gather_bits`."""
    return (plane >> _TAP & np.uint16(1)).view(np.int16)


def _values_3bit(low: np.ndarray, high: np.ndarray, count: int, inputs: int) -> np.ndarray:
    step = _from_lines(_scales(low, high, 3).astype(np.int16), count, inputs)
    one, two, sign = (_spread_bits(_from_lines(_planes(low, at, 3), count, inputs)) for at in (0, 18, 36))
    # plane 1 : plane 0 = 00, 01, 10, 11 -> 0, 1, 2, 4
    return _signed((one + (two << 1) + (one & two)) * step, sign)


def _values_1bit(low: np.ndarray, high: np.ndarray, count: int, inputs: int) -> np.ndarray:
    alpha = _from_lines(_scales(low, high, 1).astype(np.int16), count, inputs)
    sign = _spread_bits(_from_lines(_planes(low, 0, 1), count, inputs))
    return _signed(alpha, sign)


def _signed(magnitudes: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Return the magnitudes, negative where `sign` is 1."""
    values: np.ndarray = (magnitudes ^ -sign) + sign
    return values


def _bias_field(bias: np.ndarray, coef_bits: int) -> np.ndarray:
    """Return uint32: the biases (int64) in their place in the last word of a line, wrapped to their width."""
    field = (bias & 0xFFF) << 20
    if coef_bits == 3:
        field |= (bias >> 12 & 0x3F) << 14
    return field.astype(np.uint32)


def _bias_value(word: np.ndarray, coef_bits: int) -> np.ndarray:
    """Return int32: the biases in the last words of lines; the inverse of `_bias_field`."""
    bias = (word >> 20).astype(np.int32)
    if coef_bits == 3:
        bias |= (word >> 14 & 0x3F).astype(np.int32) << 12
    sign = 1 << (spec.BIAS_BITS[coef_bits] - 1)
    return (bias ^ sign) - sign
