"""scripts/dev/identify_proof.py in short: some sticks with faults on the bus, and what its judge finds wrong."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from still_clock import still

from gti.chip.emulator.behaviours import QUESTIONS
from scripts.dev import identify_proof

LARGE = ("filter_memory", "activation_memory")  # of 50 MB; the script examines them too


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    still(monkeypatch)
    caplog.set_level(logging.CRITICAL, "gti.chip")


def test_every_single_alternative_is_a_job():
    texts = [job.behaviours for job in identify_proof.singles()]
    assert len(texts) == len(set(texts)) == 1 + sum(len(question.names) - 1 for question in QUESTIONS)


@pytest.mark.parametrize("question", [q.name for q in QUESTIONS if q.name not in (*LARGE, "load_length")])
def test_single_alternatives_are_named(question: str):
    for job in identify_proof.singles():
        if job.behaviours.startswith(f"{question}="):
            verdict = identify_proof.run(job._replace(left_out=identify_proof.MEMORIES))
            assert not verdict.wrong
            assert verdict.counts["not reached"] == len(LARGE)


def test_combinations_with_faults_are_never_mistaken():
    counts: Counter[str] = Counter()
    for seed in range(1, 13):
        job = identify_proof.combination(seed)
        if "load_length=full" in job.behaviours:
            continue  # megabytes for every try
        verdict = identify_proof.run(job._replace(left_out=identify_proof.MEMORIES))
        assert not verdict.wrong, verdict.job
        counts.update(verdict.counts)
    assert counts["named"] > 100


def test_the_judge_sees_a_wrong_answer():
    job = next(job for job in identify_proof.singles() if job.behaviours == "rounding=floor")
    right = identify_proof.run(job._replace(left_out=identify_proof.MEMORIES))
    assert not right.wrong
    found = identify_proof.judge(job, identify_proof.parse("rounding=half_even"), _identity())
    assert found.wrong


def _identity() -> identify_proof.Identity:
    from contextlib import ExitStack

    with ExitStack() as held:
        stick = identify_proof.bench.connect("virtual", held)
        return identify_proof.identify(stick, left_out=identify_proof.MEMORIES)
