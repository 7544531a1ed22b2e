"""scripts/dev/load_test.py in its short form."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from scripts.dev import load_test


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_clients_get_their_own_answers_while_the_stick_comes_and_goes():
    report = load_test.measure(12, 4.0)
    assert load_test.passed(report), report
    for change in ({"wrong": 1}, {"503 for the stick": 0}, {"answers in the last second": 0}, {"descriptors grown": 1}):
        assert not load_test.passed({**report, **change})
