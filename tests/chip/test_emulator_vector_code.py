"""The register tile in every form and size that the kernels use, against sums in 64-bit integers."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from gti.chip import kernels_numba, vector_code
from gti.chip.vector_code import multiply_panel


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
