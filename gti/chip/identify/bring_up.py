"""Bringing a stick up: settings of the driver, cheapest first, until the known frame answers; then what each is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gti.chip.emulator.behaviours import ASSUMED, TABLE
from gti.chip.identify.bench import Bench
from gti.chip.identify.cases import Key, case
from gti.chip.identify.predictions import predicted
from gti.chip.usb import ft60x
from gti.chip.usb.transport import Settings

# Known frames, whose codes are the same whatever the chip's arithmetic. Each try takes another network than the one
# before: a load that did not arrive leaves the old network in the chip, which would answer right.
KNOWN = tuple(Key("known", net, 0, "single") for net in range(4))
LARGE = 1 << 16
_END_MS = 20.0
_READ_MS = 500.0  # the vendor's runtime gives a chip 200
_RETRIES = 4

RIGHT, WRONG, SILENT = "right", "wrong", "silent"
REFUSED = "right, but the bridge refused to drive GPIO"
_OF_ALL = ("settle", "load_length")
_OF_BRIDGES = ("gpio", "write_command", "chunks", "end_of_result")


@dataclass
class BroughtUp:
    """What bringing up found."""

    settings: Settings | None = None  # with which the known frame answers; None: with none
    best: Try | None = None  # what they are
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of the questions of the bridge
    notes: dict[str, str] = field(default_factory=dict)  # how sure each is
    tried: list[str] = field(default_factory=list)  # settings, and what came


@dataclass(frozen=True)
class Try:
    """Settings of one try, and whether the file is filled to a converter's length."""

    gpio: bool = False
    settle_ms: float = 100.0
    chunk: int = 2048
    write_command: bool = False
    whole: bool = False
    end_ms: float = 0.0

    def changed(self, **changes: object) -> Try:
        """Return a copy."""
        return Try(**(vars(self) | changes))

    def settings(self, base: Settings) -> Settings:
        """Return these settings; retries make a fault of the bus no reason to think otherwise."""
        return base.changed(
            gpio=self.gpio,
            settle_ms=self.settle_ms,
            write_chunk=self.chunk,
            read_chunk=self.chunk,
            write_command=self.write_command,
            check_end_ms=self.end_ms,
            read_timeout_ms=_READ_MS,
            retries=_RETRIES,
        )

    @property
    def text(self) -> str:
        """What differs from the driver's defaults, in words."""
        parts = [
            "" if self.gpio else "gpio=false",
            f"settle_ms={self.settle_ms:g}",
            f"write_chunk={self.chunk}" if self.chunk != 2048 else "",
            "write_command=true" if self.write_command else "",
            "whole files" if self.whole else "",
            f"check_end_ms={self.end_ms:g}" if self.end_ms else "",
        ]
        return ", ".join(filter(None, parts))


def tries(bridge: bool) -> Iterator[Try]:
    """Yield what is tried until the known frame answers; `bridge`: of an FT60x, with GPIO and session commands."""
    every = [
        Try(gpio=gpio, settle_ms=settle, chunk=chunk, write_command=command, whole=whole)
        for whole in (False, True)
        for command in ((False, True) if bridge else (False,))
        for chunk in ((2048, 512) if bridge else (2048,))
        for settle in (100.0, 1000.0)
        for gpio in ((False, True) if bridge else (False,))
    ]

    def cost(one: Try) -> int:
        # GPIO is left alone first: what was once driven high stays so.
        return 4 * (one.write_command + (one.chunk != 2048) + (one.settle_ms > 100)) + one.gpio + 16 * one.whole

    return iter(sorted(every, key=cost))


def bring_up(bench: Bench, note: Callable[[str], None] = lambda text: None) -> BroughtUp:
    """Find settings with which the stick answers the known frame, and what each setting is needed for."""
    found = BroughtUp()
    bridge = bench.kind != "eUSB"
    driven = False
    for one in tries(bridge):
        if driven and not one.gpio and not undriven(bench):
            continue
        driven = one.gpio
        outcome = attempt(bench, one)
        found.tried.append(f"{one.text}: {outcome}")
        note(found.tried[-1])
        if outcome in (RIGHT, REFUSED):
            _examine(bench, one, bridge, found, note)
            return found
    return found


def attempt(bench: Bench, one: Try) -> str:
    """Return how the stick answers the known frame: right, wrong or silent with the reason."""
    bench.whole_files = one.whole
    known = KNOWN[bench.counts["loads"] % len(KNOWN)]
    answer = bench.answer(case(known), one.settings(bench.base))
    if answer is None:
        return f"{SILENT} ({bench.last_fault})"
    expected = predicted(known, ASSUMED).answer
    assert expected is not None
    wrong = int(np.count_nonzero(answer[0] != expected[0]))
    if wrong:
        return f"{WRONG} ({wrong} of {expected[0].size} codes)"
    return REFUSED if one.gpio and bench.kind != "eUSB" and not bench.gpio_driven else RIGHT


def undriven(bench: Bench) -> bool:
    """Reset the port, so that GPIO is as when the stick was plugged in; False where that fails."""
    return any(bench.reset_port() for _ in range(_RETRIES))


def alive(bench: Bench) -> bool:
    """Return whether the stick answers the known frame still, and right."""
    known = KNOWN[bench.counts["loads"] % len(KNOWN)]
    return predicted(known, ASSUMED).agrees(bench.answer(case(known)))


def _examine(bench: Bench, good: Try, bridge: bool, found: BroughtUp, note: Callable[[str], None]) -> None:
    """Fill in what each question of the bridge is answered with; `good`: a try that answered right."""
    easy = good.changed(settle_ms=0.0)
    if bridge:
        easy = easy.changed(gpio=True, chunk=LARGE, end_ms=_END_MS)
    if good == next(tries(bridge)):
        # Everything that may do without more, at once; one by one where that fails.
        outcome = attempt(bench, easy)
        note(f"{easy.text}: {outcome}")
        if outcome == RIGHT:
            found.answers = {name: (TABLE[name].names[0],) for name in (*_OF_ALL, *(_OF_BRIDGES if bridge else ()))}
            _settle(bench, easy.changed(end_ms=0.0), found)
            return
    compared = _Comparison(bench, note, driven=True)
    try:
        best = _one_by_one(compared, good, bridge, found.answers)
        if bridge and _doubted(compared, good, found):
            best = best.changed(gpio=good.gpio)
            if not good.gpio:
                undriven(bench)
        _settle(bench, best, found)
    except _Gone:
        found.answers.clear()
        found.notes = dict.fromkeys((*_OF_ALL, *_OF_BRIDGES), f"the stick answers no more: {bench.last_fault}")
        _settle(bench, good, found)


def _settle(bench: Bench, best: Try, found: BroughtUp) -> None:
    # A pause that the stick can do without costs little here, and one that is nearly too short would cost much.
    found.best = best.changed(settle_ms=max(best.settle_ms, 100.0))
    found.settings = bench.settings = found.best.settings(bench.base)
    bench.whole_files = best.whole


def confirm(bench: Bench, found: BroughtUp) -> None:
    """Take back, when all else was asked, what a long disturbance of the bus looks like: bytes behind a result."""
    if found.best is None or found.answers.get("end_of_result") != ("padded",):
        return
    if attempt(bench, found.best.changed(end_ms=_END_MS)) in (RIGHT, REFUSED):
        del found.answers["end_of_result"]
        found.notes["end_of_result"] = "bytes followed each result for a while, and then no more"


class _Gone(Exception):  # noqa: N818  (the end of an examination, no fault of the program)
    """A try that was right before is no more."""


class _Comparison:
    """Tries beside one that is known to work."""

    def __init__(self, bench: Bench, note: Callable[[str], None], driven: bool) -> None:
        self._bench = bench
        self.doubtful = False  # a try with GPIO driven was not, or one without may have been
        self._note = note
        self.outcome = ""  # of the last try that failed
        self._last = ""
        self._driven = driven  # GPIO, by the last try

    def works(self, one: Try, good: Try) -> bool:
        """Return whether `one` works; that it does not is believed where it fails twice and `good` works in between."""
        for _ in range(3):
            if self._right(one):
                return True
            self.outcome = self._last
            if not self._right(good):
                continue
            if self._right(one):
                return True
            if self._right(good):
                return False
        raise _Gone

    def _right(self, one: Try) -> bool:
        if self._driven and not one.gpio and not undriven(self._bench):
            self.doubtful = True
        self._driven = one.gpio
        self._last = attempt(self._bench, one)
        self.doubtful |= self._last == REFUSED
        self._note(f"{one.text}: {self._last}")
        return self._last in (RIGHT, REFUSED)


def _one_by_one(compared: _Comparison, good: Try, bridge: bool, answers: dict[str, tuple[str, ...]]) -> Try:
    """Return the easiest settings that work, and fill in what each is needed for."""
    best = good

    def choose(question: str, options: Sequence[tuple[str, Try]]) -> Try:
        """Take the first option that works; the last one is `best`, which does."""
        for name, one in options[:-1]:
            if compared.works(one, best):
                answers[question] = (name,)
                return one
        answers[question] = (options[-1][0],)
        return best

    whole = [("any", best.changed(whole=False))] if good.whole else []
    best = choose("load_length", [*whole, ("full" if good.whole else "any", best)])
    pauses = [("none", best.changed(settle_ms=0.0))]
    pauses += [("short", best.changed(settle_ms=100.0))] if good.settle_ms > 100 else []
    best = choose("settle", [*pauses, ("long" if good.settle_ms > 100 else "short", best)])
    if not bridge:
        return best
    commands = [("optional", best.changed(write_command=False))] if good.write_command else []
    best = choose("write_command", [*commands, ("needed" if good.write_command else "optional", best)])
    sizes = [("any", best.changed(chunk=LARGE))]
    sizes += [("2048", best.changed(chunk=2048))] if good.chunk == 512 else []
    best = choose("chunks", [*sizes, (str(good.chunk), best)])
    if compared.works(best.changed(end_ms=_END_MS), best):
        answers["end_of_result"] = ("exact",)
    elif ft60x.MORE_FOLLOWED in compared.outcome:
        answers["end_of_result"] = ("padded",)
    if not good.gpio:
        return choose("gpio", [("any", best.changed(gpio=True)), ("untouched", best)])
    answers["gpio"] = ("any",) if compared.works(best.changed(gpio=False), best) else ("high",)
    return best


def _doubted(compared: _Comparison, good: Try, found: BroughtUp) -> bool:
    """Take the answer about GPIO back where it may have come about otherwise, and return whether that was so."""
    before = f"{good.changed(gpio=False).text}: "
    failed = good.gpio and any(text.startswith(before) for text in found.tried)
    if compared.doubtful:
        why = "the bridge refused to drive GPIO, or its port could not be reset"
    elif failed and found.answers.get("gpio") == ("any",):
        why = "it answered with GPIO left alone after a reset of the port, not before: plug it in anew and try again"
    else:
        return False
    found.answers.pop("gpio", None)
    found.notes["gpio"] = why
    return True
