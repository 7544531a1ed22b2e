"""Sweeps of many alike cases: `make quick` takes the first of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import pytest


def first_quick(quick: int, values: Iterable[Any]) -> list[Any]:
    """Return `values` for `parametrize`; all but the first `quick` are marked slow. A tuple is one case's values."""
    rest = iter(values)
    first = list(islice(rest, quick))
    return first + [pytest.param(*(one if type(one) is tuple else (one,)), marks=pytest.mark.slow) for one in rest]
