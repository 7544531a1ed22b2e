"""scripts/dev/soak.py in its short form, and that it can fail."""

from __future__ import annotations

import itertools
import sys

import pytest

from gti.chip.runtime.classifier import Classifier
from scripts.dev import soak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_short_soak():
    report = soak.soak(600, 50)
    assert soak.passed(report), report
    assert report["refused"] == 1
    assert report["counters"]["frames"] == 599
    assert report["counters"]["recovered"] > 0
    for change in ({"wrong or missing": 1}, {"memory": {"grown": 1 << 30}}, {"descriptors": {"early": 6, "end": 7}}):
        assert not soak.passed({**report, **change})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_wrong_answer_is_seen(monkeypatch: pytest.MonkeyPatch):
    right = Classifier.features
    calls = itertools.count(1)

    def sometimes_wrong(self, image, order="RGB"):
        number = next(calls)  # of this call: four threads ask at once
        result = right(self, image, order)
        return result + 1 if number == soak.IMAGES + 30 else result

    monkeypatch.setattr(Classifier, "features", sometimes_wrong)
    assert soak.soak(200, 100)["wrong or missing"] == 1
