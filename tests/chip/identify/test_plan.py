"""The frames of the plan: they tell every pair of alternatives apart that any frame could, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sweeps import first_quick

from gti.chip.emulator import arithmetic
from gti.chip.emulator.behaviours import ASSUMED, OF_THE_BRIDGE, TABLE, Behaviours, combinations
from gti.chip.identify import bring_up, search, stages
from gti.chip.identify.cases import TEMPLATES, Key, case
from gti.chip.identify.predictions import Prediction, predict, predicted

LARGE = ("units", "rows")  # their pairs take seconds each
SMALL = [stage for stage in stages.STAGES if stage.name not in LARGE]
ALL_FRAMES = [key for stage in stages.STAGES for key in stages.keys(stage)]
SMALL_FRAMES = [key for stage in SMALL for key in stages.keys(stage)]


def test_every_question_is_asked_once():
    assert sorted([*stages.asked(), *OF_THE_BRIDGE]) == sorted(TABLE)


def test_the_plan_is_short():
    two_of_bringing_up = 2
    assert len(ALL_FRAMES) + two_of_bringing_up <= 40
    assert stages.loads(ALL_FRAMES) + two_of_bringing_up <= 20


def assert_separated(stage: stages.Stage):
    universe = stage.universe()
    left = search.to_separate(stage, universe)
    for key in stages.keys(stage):
        left &= ~search.separated(key, universe)
    pairs = [(universe[i], universe[j]) for i, j in np.argwhere(np.triu(left))]
    assert [(one.text, other.text) for one, other in pairs if not stages.same_codes(one, other)] == []


@pytest.mark.parametrize("stage", SMALL, ids=lambda stage: stage.name)
def test_every_pair_of_combinations_is_separated(stage: stages.Stage):
    assert_separated(stage)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_every_limit_of_the_memories_is_separated(name: str):
    assert_separated(next(stage for stage in stages.STAGES if stage.name == name))


def test_combinations_that_are_the_same_are_so_for_all_sums():
    # Sums and biases around every edge: halves, what 16, 20 and 24 bits hold, the largest sums of 1024 channels.
    near = np.arange(-9, 10)
    random = np.random.RandomState(0)
    universe = stages.STAGES[0].universe()
    pairs = [
        (one, other) for i, one in enumerate(universe) for other in universe[i + 1 :] if stages.same_codes(one, other)
    ]
    assert len(pairs) == 97
    involved = dict.fromkeys(one for pair in pairs for one in pair)
    for shift in (0, 1, 4, 10, 15):
        unit = 1 << shift
        edges = [sign * (1 << bits) + near * max(1, unit // 4) for bits in (15, 16, 19, 20, 23, 24) for sign in (1, -1)]
        sums = np.concatenate([near, near * unit // 2, *edges, random.randint(-(2**29), 2**29, 20)])[:, None]
        biases = np.concatenate([near, near * unit // 2, random.randint(-(2**17), 2**17, 20)])
        codes = {one: arithmetic.alternative_codes(sums, biases, shift, False, one) for one in involved}
        assert all(np.array_equal(codes[one], codes[other]) for one, other in pairs)


QUIET = [key for key in SMALL_FRAMES if "sums" not in key.template] + list(bring_up.KNOWN)


@pytest.mark.parametrize("key", first_quick(5, QUIET), ids=lambda key: f"{key.template}-{key.mode}")
def test_quiet_frames_depend_on_their_own_questions_alone(key: Key):
    own = TEMPLATES[key.template].questions
    every = [
        ASSUMED.changed(**{name: other})
        for name, question in TABLE.items()
        for other in question.names[1:]
        if name not in own and name not in OF_THE_BRIDGE and name != "filter_memory"
    ]
    random = np.random.RandomState(1)
    core = list(combinations(stages.CORE))
    every += [core[i] for i in random.choice(len(core), 12, replace=False)]
    mixed = [{name: str(random.choice(question.names)) for name, question in TABLE.items()} for _ in range(12)]
    for one in (ASSUMED.changed(**names | {"filter_memory": "unlimited"}) for names in mixed):
        assert same(predict(case(key), one), predict(case(key), one.of(own))), one.text
    contexts = [ASSUMED, *(ASSUMED.changed(**{name: TABLE[name].names[-1]}) for name in own)]
    for context in contexts:
        expected = predict(case(key), context)
        for one in every:
            there = one.of(set(TABLE) - set(own))
            assert same(predict(case(key), there.changed(**dict(context.others))), expected), (context.text, one.text)


def same(one: Prediction, other: Prediction) -> bool:
    if one.answer is None or other.answer is None:
        return one == other
    return one[1:] == other[1:] and all(np.array_equal(a, b) for a, b in zip(one.answer, other.answer, strict=True))


@pytest.mark.parametrize("key", stages.keys(stages.STAGES[0]))
def test_sums_are_predicted_as_the_stick_in_software_computes_them(key: Key):
    for one in list(combinations(stages.CORE))[::29]:
        assert same(predicted(key, one), predict(case(key), one))


def test_low_bits_of_any_kind_are_data():
    values = [np.array([[[8, 16]]], np.uint8)]
    data = Prediction(values, False, True)
    assert data.agrees([np.array([[[8, 17]]], np.uint8)])
    assert not data.agrees(values)
    assert not data.agrees([np.array([[[9, 24]]], np.uint8)])
    assert Prediction(values, False, False).agrees(values)


@pytest.mark.parametrize("name", ["signs", "one_coef"])
def test_the_search_finds_what_the_plan_holds(name: str):
    stage = next(stage for stage in stages.STAGES if stage.name == name)
    assert search.search(stage, 1) == stages.keys(stage)


def test_a_search_takes_a_second_frame_where_one_leaves_pairs():
    # Rounding half up and half to the even number, and the corner of the accumulators, from a stage of two questions.
    stage = stages.Stage("some", ("accumulator",), (), (("sums", "single"), ("wide_sums", "single")))
    frames = search.search(stage, 2)
    assert {key.template for key in frames} == {"sums", "wide_sums"}
    left = search.to_separate(stage, stage.universe())
    for key in frames:
        left &= ~search.separated(key, stage.universe())
    left_over = [(stage.universe()[i], stage.universe()[j]) for i, j in np.argwhere(np.triu(left))]
    assert all(stages.same_codes(Behaviours(one.others), other) for one, other in left_over)
