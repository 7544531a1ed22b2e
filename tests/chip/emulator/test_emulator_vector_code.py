"""The register tile in every form and size that the kernels use, and the end of a sublayer, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from sweeps import first_quick

from gti.chip.emulator import arithmetic, kernels_numba, vector_code
from gti.chip.emulator.vector_code import (
    LARGEST,
    TOP_LEFT,
    WHOLE_WINDOW,
    multiply_panel,
    store_window,
    transform_input,
)

# The transforms as published (A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016).
B = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
}
G = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array([[1 / 4, 0, 0], [-1 / 6] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                 [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]),
}  # fmt: skip
# What the kit's integer filter transform multiplies the rows of G with.
FACTORS = {2: np.array([2, 2, 2, 2]), 4: np.array([4, -6, -6, 24, 24, 1])}


def _compiled(width: int, tiles: int):
    # One function each: the sizes are literals in the source, and nothing compiled before is reused.
    return {
        (64, 6): lambda: njit(lambda v, stride, u, pairs, m: multiply_panel(6, 4, v, stride, u, pairs, m)),
        (64, 5): lambda: njit(lambda v, stride, u, pairs, m: multiply_panel(5, 4, v, stride, u, pairs, m)),
        (32, 8): lambda: njit(lambda v, stride, u, pairs, m: multiply_panel(8, 2, v, stride, u, pairs, m)),
        (32, 7): lambda: njit(lambda v, stride, u, pairs, m: multiply_panel(7, 2, v, stride, u, pairs, m)),
        (16, 6): lambda: njit(lambda v, stride, u, pairs, m: multiply_panel(6, 1, v, stride, u, pairs, m)),
        (16, 5): lambda: njit(lambda v, stride, u, pairs, m: multiply_panel(5, 1, v, stride, u, pairs, m)),
    }[width, tiles]()


@pytest.mark.parametrize("pairs_in_one_instruction", [True, False], ids=["x86", "neon"])
@pytest.mark.parametrize("width", list(kernels_numba.REGISTER_TILES))
@pytest.mark.parametrize(("fewer", "called"), first_quick(2, [(0, False), (1, True), (1, False), (0, True)]))
def test_register_tiles(
    *, width: int, fewer: int, called: bool, pairs_in_one_instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_code, "adds_pairs", lambda triple: pairs_in_one_instruction)
    monkeypatch.setattr(vector_code, "vectors_of_64_bytes", lambda: not called)
    tiles = kernels_numba.REGISTER_TILES[width] - fewer
    multiply = _compiled(width, tiles)
    for pairs in (1, 2, 37):
        random = np.random.RandomState(pairs)
        room = pairs + 3  # rows may lie further apart than they are long
        values = random.randint(-(2**15), 2**15, size=(tiles, room, 2)).astype(np.int16)
        filters = random.randint(-(2**15) + 1, 2**15, size=(pairs, width, 2)).astype(np.int16)
        sums = np.full((tiles + 1, width), 7, np.int32)
        multiply(values.ctypes.data, room * 4, filters.ctypes.data, pairs, sums.ctypes.data)
        exact = np.einsum("tpk,pok->to", values[:, :pairs].astype(np.int64), filters.astype(np.int64))
        np.testing.assert_array_equal(sums[:tiles], exact.astype(np.int32), f"{pairs} pairs")  # modulo 2**32
        np.testing.assert_array_equal(sums[tiles], 7)  # nothing beyond


@njit
def _transform(window, source, start, row, pixel, target, position):  # noqa: PLR0917
    if window == 2:
        transform_input(2, 16, source.ctypes.data + start, row, pixel, target.ctypes.data, position)
    else:
        transform_input(4, 16, source.ctypes.data + start, row, pixel, target.ctypes.data, position)


# Values of B'dB for codes 0..31: the sum of the positive or of the negative coefficients, times 31.
@pytest.mark.parametrize(("window", "lowest", "highest"), [(2, -62, 124), (4, -1550, 2108)])
def test_input_transform_and_its_range(window: int, lowest: int, highest: int) -> None:
    side = window + 2
    coefficients = np.einsum("yi,xj->yxij", B[window], B[window]).reshape(-1, side, side)
    assert 31 * np.minimum(coefficients, 0).sum(axis=(1, 2)).min() == lowest
    assert 31 * np.maximum(coefficients, 0).sum(axis=(1, 2)).max() == highest
    random = np.random.RandomState(window)
    patches = [random.randint(0, 32, (side, side)) for _ in range(16)]
    patches += [31 * (sign * c > 0) for c in coefficients for sign in (1, -1)]  # each extreme of each position
    source = np.zeros((side + 1, side + 2, 24), np.uint8)
    for first in range(0, len(patches) // 16 * 16, 16):
        patch = np.stack(patches[first : first + 16], axis=-1)
        source[:] = 255
        source[1 : side + 1, 1 : side + 1, 4:20] = patch
        target = np.full((side * side, 20), 77, np.int16)
        row, pixel, _ = source.strides
        _transform(window, source, row + pixel + 4, row, pixel, target, 40)
        expected = np.einsum("yi,xj,ijc->yxc", B[window], B[window], patch)
        np.testing.assert_array_equal(target[:, :16], expected.reshape(-1, 16))
        assert np.all(target[:, 16:] == 77)


@njit
def _store(window, whole, top_left, codes, sums, position, biases, numbers, target, row, pixel):  # noqa: PLR0917
    n = (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4])
    m, b, out = sums.ctypes.data, biases.ctypes.data, codes.ctypes.data + target
    if window == 2:
        if whole:
            store_window(2, WHOLE_WINDOW, codes, m, position, b, n, out, row, pixel)
        elif top_left:
            store_window(2, TOP_LEFT, codes, m, position, b, n, out, row, pixel)
        else:
            store_window(2, LARGEST, codes, m, position, b, n, out, row, pixel)
    elif whole:
        store_window(4, WHOLE_WINDOW, codes, m, position, b, n, out, row, pixel)
    elif top_left:
        store_window(4, TOP_LEFT, codes, m, position, b, n, out, row, pixel)
    else:
        store_window(4, LARGEST, codes, m, position, b, n, out, row, pixel)


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("kept", ["window", "top left", "largest"])
@pytest.mark.parametrize(("shift", "ten_bit"), [(0, False), (12, False), (15, False), (0, True), (5, True), (12, True)])
def test_windows(window: int, kept: str, shift: int, ten_bit: bool) -> None:
    """The end of a sublayer, of sums that are products of transformed filters and codes."""
    random = np.random.RandomState(shift)
    side = window + 2
    # One input channel a lane, with weights of up to 2**shift / 4: codes in between and both clips.
    largest = max(1, (1 << shift) // 4)
    kernels = random.randint(-largest, largest + 1, size=(3, 3, 16))
    patch = random.randint(0, 32, size=(side, side, 16))
    biases = random.randint(-(1 << shift), (1 << shift) + 1, size=16).clip(-2047, 2047).astype(np.int32)
    direct = sum(kernels[y, x] * patch[y : y + window, x : x + window] for y in range(3) for x in range(3))
    rows = FACTORS[window][:, None] * G[window]
    filters = np.rint(np.einsum("yi,xj,ijo->yxo", rows, rows, kernels)).astype(np.int64)
    values = np.einsum("yi,xj,ijo->yxo", B[window], B[window], patch)
    sums = np.full((side * side, 20), 10**9, np.int32)
    sums[:, :16] = (filters * values).reshape(-1, 16).astype(np.int32)
    numbers = arithmetic.requantization(shift, ten_bit)
    codes = np.full((side, side, 24), 99, np.uint16 if ten_bit else np.uint8)
    row, pixel, _ = codes.strides
    start = codes.strides[0] + pixel + 4 * codes.itemsize  # of pixel (1, 1), channel 4
    whole, top_left, limits = kept == "window", kept == "top left", np.array(numbers, np.int32)
    _store(window, whole, top_left, codes, sums, 80, biases, limits, start, row, pixel)
    # the formula of docs/numerics.md, section 6, in floating point: halves up, which doubles hold exactly
    expected = np.clip(np.floor((direct + biases) * (32 if ten_bit else 1) / 2**shift + 0.5), 0, numbers.top)
    if not whole:
        windows = expected.reshape(window // 2, 2, window // 2, 2, 16)
        expected = windows[:, 0, :, 0] if top_left else windows.max(axis=(1, 3))
    result = np.full_like(codes, 99)
    result[1 : len(expected) + 1, 1 : len(expected) + 1, 4:20] = expected
    np.testing.assert_array_equal(codes, result)
    assert len(np.unique(expected)) >= 4


@pytest.mark.parametrize(
    ("triple", "expected"), [("x86_64-unknown-linux-gnu", True), ("aarch64-unknown-linux-gnu", False), ("", False)]
)
def test_targets(triple: str, expected: bool) -> None:
    assert vector_code.adds_pairs(triple) == expected


def test_kernels_compile_without_a_place_for_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit_without_cache(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(kernels_numba, "njit", njit_without_cache)
    assert kernels_numba._kernel(lambda x: x + 1)(1) == 2
