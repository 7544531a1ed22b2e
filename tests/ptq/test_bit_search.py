"""Which layers have 1 bit: the frontier against every combination, and the choice of a point."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import small_nets

from gti.chip.network import file_size
from gti.errors import UsageError
from gti.ptq import bit_search

NETWORK = small_nets.small_network(
    (56, 3, 16, 1, 3, True), (28, 16, 32, 2, 3, True), (14, 32, 64, 2, 1, False), (14, 64, 128, 1, 3, True)
)


def test_bits_are_those_of_the_major_layers():
    changed = bit_search.with_bits(NETWORK, (3, 1, 3, 1))
    assert [c.coef_bits for c in changed.convolutions] == [3, 1, 1, 3, 3, 1]
    assert bit_search.alone(NETWORK) == (3, 3, 3, 3)
    assert bit_search.alone(NETWORK, 2) == (3, 3, 1, 3)
    assert bit_search.candidates(NETWORK) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(6))
def test_the_frontier_is_that_of_every_combination(seed):
    drops = dict(enumerate(np.random.default_rng(seed).normal(0.01, 0.02, 4)))
    every = []
    for bits in product((3, 1), repeat=4):
        rows = file_size.row_count(bit_search.with_bits(NETWORK, bits))
        every.append((rows, sum(max(drops[m], 0) for m in range(4) if bits[m] == 1)))
    best = {
        (rows, drop)
        for rows, drop in every
        if not any((r <= rows and d < drop) or (r < rows and d <= drop) for r, d in every)
    }
    found = bit_search.frontier(NETWORK, drops)
    assert {(p.rows, round(p.drop, 12)) for p in found} == {(rows, round(drop, 12)) for rows, drop in best}
    for point in found:
        assert point.rows == file_size.row_count(bit_search.with_bits(NETWORK, point.bits))
    assert [p.rows for p in found] == sorted((p.rows for p in found), reverse=True)


def test_layers_that_are_no_candidates_keep_three_bits():
    assert {p.bits[0] for p in bit_search.frontier(NETWORK, {1: 0.01, 3: 0.02})} == {3}


POINTS = [bit_search.Point((3, 3), 100, 0.0), bit_search.Point((1, 3), 80, 0.01), bit_search.Point((1, 1), 50, 0.05)]


@pytest.mark.parametrize(
    ("limits", "rows"),
    [({"rows": 100}, 100), ({"rows": 99}, 80), ({"rows": 50}, 50), ({"max_drop": 0.0}, 100), ({"max_drop": 0.02}, 80)],
)
def test_the_choice(limits, rows):
    assert bit_search.choose(POINTS, **limits).rows == rows


def test_nothing_is_small_enough():
    with pytest.raises(UsageError, match="50"):
        bit_search.choose(POINTS, rows=49)


def test_the_table_names_every_candidate():
    drops = {0: 0.001, 3: 0.02}
    text = bit_search.table(NETWORK, 0.9, drops, bit_search.frontier(NETWORK, drops))
    assert "major 1" in text
    assert "major 4" in text
    assert "3,3,3,3" in text
