"""The register tile in every form and size that the kernels use, and the end of a sublayer, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from gti.chip.emulator import arithmetic, kernels_numba, vector_code
from gti.chip.emulator.vector_code import LARGEST, TOP_LEFT, WHOLE_WINDOW, multiply_panel, store_window


def _compiled(width: int):
    # One function each: the sizes are literals in the source, and nothing compiled before is reused.
    if width == 64:
        return njit(lambda v, stride, u, pairs, m: multiply_panel(6, 4, v, stride, u, pairs, m))
    if width == 32:
        return njit(lambda v, stride, u, pairs, m: multiply_panel(8, 2, v, stride, u, pairs, m))
    return njit(lambda v, stride, u, pairs, m: multiply_panel(6, 1, v, stride, u, pairs, m))


@pytest.mark.parametrize("pairs_in_one_instruction", [True, False], ids=["x86", "neon"])
@pytest.mark.parametrize("width", list(kernels_numba.REGISTER_TILES))
@pytest.mark.parametrize("pairs", [1, 2, 37])
def test_register_tiles(
    width: int, pairs: int, pairs_in_one_instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_code, "adds_pairs", lambda triple: pairs_in_one_instruction)
    random = np.random.RandomState(pairs)
    tiles, room = kernels_numba.REGISTER_TILES[width], pairs + 3  # rows may lie further apart than they are long
    values = random.randint(-(2**15), 2**15, size=(tiles, room, 2)).astype(np.int16)
    filters = random.randint(-(2**15) + 1, 2**15, size=(pairs, width, 2)).astype(np.int16)
    sums = np.full((tiles + 1, width), 7, np.int32)
    _compiled(width)(values.ctypes.data, room * 4, filters.ctypes.data, pairs, sums.ctypes.data)
    exact = np.einsum("tpk,pok->to", values[:, :pairs].astype(np.int64), filters.astype(np.int64))
    np.testing.assert_array_equal(sums[:tiles], exact.astype(np.int32))  # modulo 2**32
    np.testing.assert_array_equal(sums[tiles], 7)  # nothing beyond


@njit
def _store(whole, top_left, codes, sums, position, biases, numbers, target, row, pixel):  # noqa: PLR0917
    n = (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4])
    m, b, out = sums.ctypes.data, biases.ctypes.data, codes.ctypes.data + target
    if whole:
        store_window(WHOLE_WINDOW, codes, m, position, b, n, out, row, pixel)
    elif top_left:
        store_window(TOP_LEFT, codes, m, position, b, n, out, row, pixel)
    else:
        store_window(LARGEST, codes, m, position, b, n, out, row, pixel)


@pytest.mark.parametrize("kept", ["window", "top left", "largest"])
@pytest.mark.parametrize(("shift", "ten_bit"), [(0, False), (12, False), (15, False), (0, True), (5, True), (12, True)])
def test_windows(kept: str, shift: int, ten_bit: bool) -> None:
    random = np.random.RandomState(shift)
    windows = random.randint(-(1 << shift) * 2, (1 << shift) * 40, size=(2, 2, 16))  # two dozen codes and both clips
    biases = random.randint(-(1 << shift), (1 << shift) + 1, size=16).clip(-2047, 2047).astype(np.int32)
    # Sums whose transform A'mA is four times the window: as m = B (4 w) B' with A'B = 1.
    spread = np.array([[1, 0], [0, 0], [0, 0], [0, -1]])
    sums = np.full((16, 20), 10**9, np.int32)
    sums[:, :16] = np.einsum("yi,xj,ijo->yxo", spread, spread, 4 * windows).reshape(16, 16)
    numbers = arithmetic.requantization(shift, ten_bit)
    codes = np.full((4, 4, 24), 99, np.uint16 if ten_bit else np.uint8)
    row, pixel, _ = codes.strides
    start = codes.strides[0] + pixel + 4 * codes.itemsize  # of pixel (1, 1), channel 4
    _store(
        kept == "window", kept == "top left", codes, sums, 80, biases, np.array(numbers, np.int32), start, row, pixel
    )
    # the formula of docs/numerics.md, section 6, in floating point: halves up, which doubles hold exactly
    expected = np.clip(np.floor((windows + biases) * (32 if ten_bit else 1) / 2**shift + 0.5), 0, numbers.top)
    result = np.full_like(codes, 99)
    if kept == "window":
        result[1:3, 1:3, 4:20] = expected
    else:
        result[1, 1, 4:20] = expected[0, 0] if kept == "top left" else expected.max(axis=(0, 1))
    np.testing.assert_array_equal(codes, result)
    assert len(np.unique(expected)) > 5


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
