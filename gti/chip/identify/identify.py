"""What a stick does: every stage of frames, and the behaviours that explain all of its answers.

A stage begins with every combination of its questions' alternatives (and of the earlier ones that its results depend
on); each answer leaves those that predict it. An answer that nothing predicts is asked for again before it is believed,
and silence counts only if the stick answers afterwards.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gti.chip.emulator.behaviours import ASSUMED, QUESTIONS, TABLE, Behaviours, combinations
from gti.chip.identify import bring_up, stages
from gti.chip.identify.bench import Bench
from gti.chip.identify.cases import TEMPLATES, Key, case
from gti.chip.identify.predictions import Answer, predicted
from gti.chip.identify.shrink import Failing, shrink
from gti.chip.identify.stages import Stage
from gti.chip.usb.transport import Settings

_ASK_AGAIN = 3
_SAME = "on such a chip they give the same codes in every network"
_NOT_SEPARATED = "the frames that would tell them apart were not answered"
NO_QUESTION = "no question for a mass-storage bridge"
CERTAIN, EITHER, NONE, NOT_REACHED = "certain", "either", "none of these", "not reached"


@dataclass(frozen=True)
class Finding:
    """The answer to one question of the table."""

    question: str
    answers: tuple[str, ...]  # names of alternatives; one where it is certain, none where nothing is known
    sure: str  # certain, either, none of these, not reached
    why: str

    @property
    def does(self) -> str:
        """What this stick does, in words."""
        means = {one.name: one.means for one in TABLE[self.question].alternatives}
        return " or ".join(means[name] for name in self.answers) or self.sure

    @property
    def follows(self) -> str:
        """What follows for the owner, "" for nothing."""
        follow = {one.name: one.follows for one in TABLE[self.question].alternatives}
        return follow[self.answers[0]] if len(self.answers) == 1 else ""


@dataclass
class Identity:
    """Everything that was found out about one stick."""

    findings: list[Finding]
    behaviours: Behaviours  # one combination that explains every answer
    settings: Settings | None  # with which it answers; None: it does not
    base: Settings  # those that they are changes of
    name: str
    kind: str
    serial: str
    counts: Counter[str]
    failing: list[Failing] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)


class _Dead(Exception):  # noqa: N818  (the end of an examination, no fault of the program)
    """The stick answers no more."""


class _Knowledge:
    """What is left of each stage's combinations; None: nothing explains it."""

    def __init__(self) -> None:
        self.left: dict[str, list[Behaviours] | None] = {}

    def contexts(self, given: Sequence[str]) -> list[Behaviours]:
        """Return the combinations of earlier questions that are still possible."""
        result = [ASSUMED]
        for stage in stages.STAGES:
            names = [name for name in given if name in stage.questions]
            if names:
                known = self.left.get(stage.name) or list(combinations(names))
                parts = dict.fromkeys(one.of(names) for one in known)
                result = [_merged(one, part) for one in result for part in parts]
        return result

    def prune(self, given: Sequence[str], contexts: Iterable[Behaviours]) -> None:
        """Leave of earlier stages what later answers allow."""
        kept = list(contexts)
        for stage in stages.STAGES:
            names = [name for name in given if name in stage.questions]
            known = self.left.get(stage.name)
            if names and known:
                possible = {one.of(names) for one in kept}
                self.left[stage.name] = [one for one in known if one.of(names) in possible]


def _merged(one: Behaviours, other: Behaviours) -> Behaviours:
    return one.changed(**dict(other.others))


class Examination:
    """One identification of one stick."""

    def __init__(
        self, bench: Bench, note: Callable[[str], None] = lambda text: None, left_out: Collection[str] = ()
    ) -> None:
        self._bench = bench
        self._stages = [stage for stage in stages.STAGES if stage.name not in left_out]
        self._note = note
        self._knowledge = _Knowledge()
        self._why: dict[str, str] = {}  # stage -> how its answer came about
        self._failing: list[Failing] = []
        self._silent: list[str] = []  # stages whose silence no later answer has confirmed
        self._quiet: dict[str, None] = {}  # stages that met with silence at all

    def run(self) -> Identity:
        """Bring the stick up and put every question to it."""
        found = bring_up.bring_up(self._bench, self._note)
        reason = "the known frame was not answered" if found.settings is None else ""
        if found.settings is not None:
            try:
                for stage in self._stages:
                    self._note(stage.name)
                    self._run_stage(stage)
                self._confirm()
                bring_up.confirm(self._bench, found)
            except _Dead:
                reason = f"the stick answers no more: {self._bench.last_fault}"
                for name in self._quiet:
                    self._knowledge.left.pop(name, None)
        return self._identity(found, reason)

    def _confirm(self) -> None:
        """Let the stick show that it still answers; where transfers failed, ask again what was met with silence."""
        if self._silent and not bring_up.alive(self._bench):
            raise _Dead
        self._silent.clear()
        if self._bench.counts["disturbed"]:
            for stage in [stage for stage in stages.STAGES if stage.name in self._quiet]:
                self._note(f"{stage.name} again")
                self._run_stage(stage)
            if not bring_up.alive(self._bench):
                raise _Dead
            self._silent.clear()

    def _run_stage(self, stage: Stage) -> None:
        for _ in range(2):
            left, failing = self._filtered(stage)
            if left:
                self._knowledge.left[stage.name] = list(dict.fromkeys(one.of(stage.questions) for one in left))
                self._knowledge.prune(stage.given, (one.of(stage.given) for one in left))
                return
        self._knowledge.left[stage.name] = None
        if failing is not None and failing.answer is not None and stage.name not in ("units", "rows"):
            failing = shrink(failing, self._bench, lambda text: self._note(f"{stage.name}: {text}"))
        if failing is not None:
            self._failing.append(failing)

    def _filtered(self, stage: Stage) -> tuple[list[Behaviours], Failing | None]:
        """Return what explains the answers of a stage, or the first frame that nothing explains."""
        everything = [
            _merged(context, own)
            for context in self._knowledge.contexts(stage.given)
            for own in combinations(stage.questions)
        ]
        left = everything
        seen: set[Behaviours] = set()  # combinations for which a frame spoke
        frames = codes = 0
        for _, group in itertools.groupby(stages.keys(stage), lambda key: (key.template, key.net, key.mode)):
            keys = list(group)
            if seen and TEMPLATES[keys[0].template].undefined:
                break  # the chip has answered the other way of writing the network
            answers = list(self._bench.answers([case(key) for key in keys]))
            for key, first in zip(keys, answers, strict=True):
                answer = self._believed(stage, key, first, left)
                explained = _explaining(key, answer, left)
                frames += 1
                codes += 0 if answer is None else sum(values.size for values in answer)
                if not explained:
                    return [], Failing(stage.name, case(key), answer, tuple(left))
                left = explained
                seen |= {one for one in left if not predicted(key, one).undefined}
        left = [one for one in left if one in seen]
        if not left:
            return [], None
        self._why[stage.name] = f"{frames} frame{'s' if frames > 1 else ''}, {codes:,} codes"
        return left, None

    def _believed(self, stage: Stage, key: Key, answer: Answer, left: Sequence[Behaviours]) -> Answer:
        """Return an answer that something explains, or that came twice; _Dead where the stick answers no more."""
        for _ in range(_ASK_AGAIN):
            if _explaining(key, answer, left) and not _constant(answer):
                break
            again = self._bench.answer(case(key))
            if _same(again, answer):
                break
            answer = again
        if _constant(answer) and not bring_up.alive(self._bench):
            self._bench.last_fault = self._bench.last_fault or "every value of its results is the same"
            raise _Dead
        if answer is not None:
            self._silent.clear()
            return answer
        self._quiet[stage.name] = None
        waiting = bool(self._silent)
        self._silent.append(stage.name)
        if waiting or not _explaining(key, answer, left):
            if not bring_up.alive(self._bench):
                raise _Dead
            self._silent.clear()
        return answer

    def _identity(self, found: bring_up.BroughtUp, reason: str) -> Identity:
        findings = []
        chosen = ASSUMED
        for stage in stages.STAGES:
            left = self._knowledge.left.get(stage.name)
            if left:
                chosen = _merged(chosen, left[0])
        for question in QUESTIONS:
            if question.name in stages.asked():
                findings.append(self._finding(question.name, reason))
            else:
                findings.append(self._of_the_bridge(question.name, found, reason))
        chosen = chosen.changed(
            **{one.question: one.answers[0] for one in findings if one.answers and one.question not in stages.asked()}
        )
        return Identity(
            findings=findings,
            behaviours=chosen,
            settings=found.settings,
            base=self._bench.base,
            name=self._bench.name,
            kind=self._bench.kind,
            serial=self._bench.serial,
            counts=self._bench.counts,
            failing=self._failing,
            tried=found.tried,
        )

    def _finding(self, question: str, reason: str) -> Finding:
        stage = next(stage for stage in stages.STAGES if question in stage.questions)
        if stage.name not in self._knowledge.left:
            return Finding(question, (), NOT_REACHED, reason if stage in self._stages else "it was left out")
        left = self._knowledge.left[stage.name]
        if left is None:
            return Finding(question, (), NONE, "no alternative explains what came: see the failing case")
        names = tuple(name for name in TABLE[question].names if any(one[question] == name for one in left))
        if len(names) == 1:
            return Finding(question, names, CERTAIN, self._why[stage.name])
        broken = [name for name in stage.given if self._unknown(name)]
        if broken:
            return Finding(question, (), NOT_REACHED, f"it depends on {', '.join(broken)}")
        same = all(stages.same_codes(one, other) for one, other in itertools.combinations(left, 2))
        return Finding(question, names, EITHER, _SAME if same else _NOT_SEPARATED)

    def _unknown(self, question: str) -> bool:
        stage = next(stage for stage in stages.STAGES if question in stage.questions)
        return not self._knowledge.left.get(stage.name)

    def _of_the_bridge(self, question: str, found: bring_up.BroughtUp, reason: str) -> Finding:
        if question in found.answers:
            return Finding(question, found.answers[question], CERTAIN, found.notes.get(question, "the known frame"))
        if self._bench.kind == "eUSB":
            return Finding(question, (), NOT_REACHED, NO_QUESTION)
        why = found.notes.get(question) or reason or "the tries contradict each other"
        return Finding(question, (), NOT_REACHED, why)


def _explaining(key: Key, answer: Answer, left: Sequence[Behaviours]) -> list[Behaviours]:
    if key.template in ("rows", "units"):
        # One question alone, whose alternatives always differ: the first that agrees is the only one.
        return next(([one] for one in left if predicted(key, one).agrees(answer)), [])
    return [one for one in left if predicted(key, one).agrees(answer)]


def _constant(answer: Answer) -> bool:
    """Return whether an answer is one value all over, as broken sticks give it."""
    return answer is not None and len({int(end) for values in answer for end in (values.min(), values.max())}) == 1


def _same(one: Answer, other: Answer) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(values, more) for values, more in zip(one, other, strict=True))


def identify(bench: Bench, note: Callable[[str], None] = lambda text: None, left_out: Collection[str] = ()) -> Identity:
    """Return what the stick on `bench` does; stages `left_out` are not run.

    Raises DeviceError for what trying again does not mend.
    """
    return Examination(bench, note, left_out).run()
