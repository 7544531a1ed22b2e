"""The answer "unknown": the rule, its form in a header, damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gti.chip.host import unknown
from gti.errors import ModelFileError

FEATURES = np.array([[1, 0, 0], [1, 0.1, 0], [1, 0.2, 0], [0, 1, 0], [0, 1, 0.1], [0, 3, 0.6]], np.float32)
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_what_points_another_way_is_unknown_however_long_it_is():
    rule = unknown.learn(FEATURES, LABELS, 0.0)
    assert not any(rule.says(x) for x in FEATURES)
    assert not rule.says(np.array([50, 3, 0]).reshape(3, 1, 1))
    assert rule.says(np.array([0, 0, 1.0]))
    assert rule.says(np.array([1, 1, 0.0]))
    assert rule.says(np.zeros(3))


def test_the_threshold_leaves_the_photograph_itself_out():
    """Worked anew: the cosine with the mean direction of the others of its class, and with the other classes."""
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    best = []
    for n in range(6):
        means = [unit[(c == LABELS) & (np.arange(6) != n)].mean(axis=0) for c in (0, 1)]
        best.append(max(unit[n] @ mean / np.linalg.norm(mean) for mean in means))
    for share in (0.0, 0.5):
        assert unknown.learn(FEATURES, LABELS, share).least == pytest.approx(np.quantile(best, share), abs=1e-4)


def test_the_header_keeps_the_rule():
    rule = unknown.learn(FEATURES, LABELS, 0.1)
    again = unknown.from_header({"unknown": rule.entry()}, "a.model")
    assert again is not None
    assert (again.label, again.least) == (rule.label, rule.least)
    np.testing.assert_allclose(again.centres, rule.centres, atol=1e-3)
    assert unknown.from_header({}, "a.model") is None


GOOD = {"label": "unknown", "least cosine": 0.5, "centres": [[1.0, 0.0], [0.0, 1.0]]}


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (7, "JSON object"),
        ({"label": ""}, "label"),
        ({"label": None}, "label"),
        ({"least cosine": 1.5}, "least cosine"),
        ({"least cosine": True}, "least cosine"),
        ({"centres": []}, "centres"),
        ({"centres": [[1.0, 0.0], [1.0]]}, "centres"),
        ({"centres": [["1", "0"]]}, "centres"),
        ({"centres": [[0.0, 0.0]]}, "centres"),
        ({"centres": [[1e300, 0.0]]}, "centres"),
        ({"centres": "none"}, "centres"),
    ],
)
def test_a_damaged_rule_is_refused(damage: Any, word: str):
    value = GOOD | damage if isinstance(damage, dict) else damage
    with pytest.raises(ModelFileError, match=word):
        unknown.from_header({"unknown": value}, "a.model")
