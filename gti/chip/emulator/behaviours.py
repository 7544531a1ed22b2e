"""What only silicon can tell: one table of questions, today's assumption first, the alternatives behind it.

An alternative has a name, what a chip or stick does that has it, and the small function or value that plays it. Of the
arithmetic `arithmetic.alternative_codes` and `engine_behaviours` take them, of the read-out `gti.chip.virtual.memory`,
of the bridge `gti.chip.virtual.bridge`; `Question.obeyed` names the module. Which one a stick has is found out by
`gti doctor --identify` (docs/identify.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gti.errors import UsageError


class Alternative(NamedTuple):
    """One thing that silicon may do."""

    name: str
    means: str
    value: Any = None  # the function or number that plays it
    follows: str = ""  # for the owner of such a stick; "" where nothing does


class Question(NamedTuple):
    """One thing that nobody has seen silicon do; the first alternative is today's assumption."""

    name: str
    asks: str
    obeyed: str  # the module that plays the alternatives
    alternatives: tuple[Alternative, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the alternatives."""
        return tuple(one.name for one in self.alternatives)


# Rounding: integers and a number of places above 0 -> integers
def _half_up(values: Any, places: int) -> Any:
    return values + (1 << places - 1) >> places


def _floor(values: Any, places: int) -> Any:
    return values >> places


def _half_away(values: Any, places: int) -> Any:
    return np.sign(values) * (np.abs(values) + (1 << places - 1) >> places)


def _half_even(values: Any, places: int) -> Any:
    below = values >> places
    rest, half = values - (below << places), 1 << places - 1
    return below + ((rest > half) | ((rest == half) & (below & 1 == 1)))


def _truncate(values: Any, places: int) -> Any:
    return np.sign(values) * (np.abs(values) >> places)


# Saturation: integers and the largest code, a power of two less one -> codes
def _clip(values: Any, top: int) -> Any:
    return np.clip(values, 0, top)


def _wrap(values: Any, top: int) -> Any:
    return np.maximum(values, 0) & top


def _wrap_signed(values: Any, top: int) -> Any:
    return values & top


def _below_top(values: Any, top: int) -> Any:
    return np.clip(values, 0, top - 1)


# Accumulators: sums -> sums as `bits` hold them
def _wide(sums: Any) -> Any:
    return sums


def _wrapping(bits: int) -> Callable[[Any], Any]:
    half = 1 << bits - 1
    return lambda sums: (sums + half & (1 << bits) - 1) - half


def _saturating(bits: int) -> Callable[[Any], Any]:
    half = 1 << bits - 1
    return lambda sums: np.clip(sums, -half, half - 1)


# Pooling of a 2x2 window of codes; today's assumptions are `arithmetic.pool_window`
def _average(*window: Any) -> Any:
    return (sum(codes.astype(np.int32) for codes in window) + 2 >> 2).astype(window[0].dtype)


def _average_down(*window: Any) -> Any:
    return (sum(codes.astype(np.int32) for codes in window) >> 2).astype(window[0].dtype)


def _corner(number: int) -> Callable[..., Any]:
    return lambda *window: window[number]


# A pooled map [C,h,w] in a map of the size before pooling [C,H,W]
def _in_corner(pooled: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result = np.zeros(shape, pooled.dtype)
    result[:, : pooled.shape[1], : pooled.shape[2]] = pooled
    return result


def _in_a_row(pooled: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result = np.zeros((shape[0], shape[1] * shape[2]), pooled.dtype)
    result[:, : pooled.shape[1] * pooled.shape[2]] = pooled.reshape(shape[0], -1)
    return result.reshape(shape)


def _maps(mode: str) -> tuple[Alternative, ...]:
    used = f"maps of pooled layers read in {mode} are pooled already"
    return (
        Alternative("before", "as they are before pooling"),
        Alternative("after", "pooled, in the top left of a map of the size before", _in_corner, used),
        Alternative("after_packed", "pooled, one value after the other in a map of the size before", _in_a_row, used),
    )


_ENGINE = "gti/chip/emulator/engine_behaviours.py"
_ARITHMETIC = "gti/chip/emulator/arithmetic.py"
_MEMORY = "gti/chip/virtual/memory.py"
_BRIDGE = "gti/chip/virtual/bridge.py"
_CHIP = "gti/chip/virtual/chip.py"
_CODES = "codes differ from those that training computed: give the profile to compare and verify"
_REFUSED = Alternative("refused", "no result comes", None, "leave such layers out")


def _question(name: str, asks: str, obeyed: str, *alternatives: Alternative) -> Question:
    return Question(name, asks, obeyed, alternatives)


QUESTIONS = (
    _question(
        "rounding",
        "last rounding bit of acc / 2**shift",
        _ARITHMETIC,
        Alternative("half_up", "to the nearest, halves up", _half_up),
        Alternative("floor", "down", _floor, _CODES),
        Alternative("half_away", "to the nearest, halves away from zero", _half_away),
        Alternative("half_even", "to the nearest, halves to the even number", _half_even, _CODES),
        Alternative("truncate", "towards zero", _truncate, _CODES),
    ),
    _question(
        "saturation",
        "results beyond the codes",
        _ARITHMETIC,
        Alternative("clip", "0 below, the largest code above", _clip),
        Alternative("wrap", "0 below; above, the low bits remain", _wrap, _CODES),
        Alternative("wrap_signed", "the low bits remain, of negative numbers too", _wrap_signed, _CODES),
        Alternative("below_top", "0 below, the largest code less one above", _below_top, _CODES),
    ),
    _question(
        "accumulator",
        "width of the accumulator (the total is meant: the order of additions is not asked)",
        _ARITHMETIC,
        Alternative("wide", "every sum has room", _wide),
        Alternative("wrap24", "24 bits that wrap", _wrapping(24), _CODES),
        Alternative("wrap20", "20 bits that wrap", _wrapping(20), _CODES),
        Alternative("wrap16", "16 bits that wrap", _wrapping(16), _CODES),
        Alternative("saturate24", "24 bits that saturate", _saturating(24), _CODES),
        Alternative("saturate20", "20 bits that saturate", _saturating(20), _CODES),
        Alternative("saturate16", "16 bits that saturate", _saturating(16), _CODES),
    ),
    _question(
        "bias",
        "where the bias is added",
        _ARITHMETIC,
        Alternative("full", "to the full accumulator"),
        Alternative("after_shift", "shifted by itself, to the shifted sum", None, _CODES),
        Alternative("as_code", "as it is, to the shifted sum", None, _CODES),
    ),
    _question(
        "borders",
        "what surrounds a map",
        _ENGINE,
        Alternative("zeros", "zeros", "constant"),
        Alternative("replicated", "the map's outermost pixels once more", "edge", _CODES),
    ),
    _question(
        "one_bit_sign",
        "what a sign bit of 0 means in 1-bit filters; conversion writes it for weight 0",
        _ENGINE,
        Alternative("plus", "+ alpha", 1),
        Alternative("minus", "- alpha", -1, "1-bit filters act negated: convert with 3 bits"),
    ),
    _question(
        "pooling",
        "2x2 pooling, SamplingMethod 0",
        _ARITHMETIC,
        Alternative("maximum", "the largest code"),
        Alternative("average", "the mean, halves up", _average, _CODES),
        Alternative("average_down", "the mean, rounded down", _average_down, _CODES),
    ),
    _question(
        "sampling",
        "2x2 pooling, SamplingMethod 1",
        _ARITHMETIC,
        Alternative("top_left", "the pixel at the top left"),
        Alternative("top_right", "the pixel at the top right", _corner(1), _CODES),
        Alternative("bottom_left", "the pixel at the bottom left", _corner(2), _CODES),
        Alternative("bottom_right", "the pixel at the bottom right", _corner(3), _CODES),
        Alternative("average", "the mean, halves up", _average, _CODES),
    ),
    _question("learn_maps", "maps of pooled layers in LEARN and LASTMAJOR", _MEMORY, *_maps("LEARN and LASTMAJOR")),
    _question("sublast_maps", "maps of pooled layers in SUBLAST", _MEMORY, *_maps("SUBLAST")),
    _question(
        "fc_low_bits",
        "the low three bits of FC values",
        _MEMORY,
        Alternative("zero", "zero"),
        Alternative("data", "something else", None, "set check_low_bits=false (the profile does)"),
    ),
    _question(
        "one_coef",
        "weights of one_coef layers",
        _ENGINE,
        _REFUSED,
        Alternative("centre", "the centre weight alone counts", (4,)),
        Alternative("first", "the first weight alone counts, at the centre", (0,)),
        Alternative("all", "all nine weights count", tuple(range(9))),
    ),
    _question(
        "depthwise",
        "layers with depth_enable (which no converter writes usably), from the second sublayer on",
        _ENGINE,
        _REFUSED,
        Alternative("diagonal", "an output channel sees the input channel of its number alone"),
        Alternative("all", "an output channel sees every input channel"),
    ),
    _question(
        "shortcuts",
        "shortcuts: the input of sublayer s, at the end of sublayer s + 1",
        _ENGINE,
        _REFUSED,
        Alternative("before", "added before requantizing"),
        Alternative("after", "added to the codes, the sum clipped"),
        Alternative("ignored", "not added"),
    ),
    _question(
        "upsample_size",
        "image_size of a layer that doubles its input",
        _ENGINE,
        Alternative("before", "the size before doubling"),
        Alternative("after", "the size after doubling", None, "write twice the size into the dat.json"),
    ),
    _question(
        "upsample_fill",
        "what a doubled layer is filled with, where the network does not say",
        _ENGINE,
        Alternative("repeat", "each pixel, four times", ""),
        Alternative("zero", "each pixel at the top left, beside three zeros", "zero", "use upsample_mode zero"),
    ),
    _question(
        "ten_bit",
        "ten-bit results on the wire",
        _MEMORY,
        Alternative("halves", "the high five bits of all channels, then the low ones", "halves"),
        Alternative("pairs", "high and low five bits of each channel in turn", "pairs"),
    ),
    _question(
        "filter_memory",
        "rows of the filter memory; rows beyond it read as zeros",
        _MEMORY,
        Alternative("unlimited", "66,048 rows and more", 0),
        Alternative("57344", "57,344 (10.5 MiB)", 57344, "keep to 57,344 rows"),
        Alternative("49152", "49,152 (9 MiB)", 49152, "keep to 49,152 rows"),
        Alternative("40960", "40,960 (7.5 MiB)", 40960, "keep to 40,960 rows"),
        Alternative("32768", "32,768 (6 MiB)", 32768, "keep to 32,768 rows"),
        Alternative("28672", "28,672 (5.25 MiB), VGG16 and little more", 28672, "keep to 28,672 rows"),
    ),
    _question(
        "activation_memory",
        "units of 3,136 bytes of the activation memory; channels beyond it read as zeros",
        _ENGINE,
        Alternative("1280", "1,280, as the plan has it", 1280),
        Alternative("1024", "1,024", 1024, "keep the plan of every layer within 1,024 units"),
        Alternative("768", "768", 768, "keep the plan of every layer within 768 units"),
        Alternative("512", "512", 512, "keep the plan of every layer within 512 units"),
    ),
    _question(
        "load_length",
        "how much of a .DAT must be loaded",
        _CHIP,
        Alternative("any", "what holds the filter rows", 0),
        Alternative("full", "a whole file of 5 MiB", 5 << 20),
    ),
    _question(
        "gpio",
        "GPIO 0 and 1 of the bridge (both bytes of the request hold 3: their order cannot matter)",
        _BRIDGE,
        Alternative("any", "do not matter"),
        Alternative("high", "must be outputs and high"),
        Alternative("untouched", "must be left alone"),
    ),
    _question(
        "settle",
        "the pause that a stick needs after opening",
        _BRIDGE,
        Alternative("none", "none", 0),
        Alternative("short", "up to 100 ms", 50),
        Alternative("long", "up to a second", 500),
    ),
    _question(
        "write_command",
        "whether writes must be announced on EP 0x01",
        _BRIDGE,
        Alternative("optional", "they need not"),
        Alternative("needed", "they must"),
    ),
    _question(
        "chunks",
        "bytes of one write",
        _BRIDGE,
        Alternative("any", "65,536 and more", 1 << 62),
        Alternative("2048", "2,048 at most", 2048),
        Alternative("512", "512 at most", 512),
    ),
    _question(
        "end_of_result",
        "what follows a result",
        _BRIDGE,
        Alternative("exact", "nothing"),
        Alternative("padded", "further words", 1024, "flush before every frame (the default)"),
    ),
)
TABLE = {question.name: question for question in QUESTIONS}
OF_THE_BRIDGE = tuple(question.name for question in QUESTIONS if question.obeyed in (_BRIDGE, _CHIP))


_FIRST = {question.name: question.names[0] for question in QUESTIONS}


@dataclass(frozen=True)
class Behaviours:
    """One alternative for each question of the table; `others` holds those that are not today's assumption."""

    others: tuple[tuple[str, str], ...] = ()  # (question, alternative) in the table's order

    def __getitem__(self, question: str) -> str:
        """Return the name of the alternative of `question`."""
        return dict(self.others).get(question, _FIRST[question])

    def value(self, question: str) -> Any:
        """Return what plays the alternative of `question`."""
        chosen = self[question]
        return next(one.value for one in TABLE[question].alternatives if one.name == chosen)

    def changed(self, **chosen: str) -> Behaviours:
        """Return a copy with other alternatives. Raises UsageError for names that the table does not have."""
        for question, name in chosen.items():
            if question not in TABLE:
                raise UsageError(
                    f"behaviour {question}", "is no question of the table", expected=", ".join(TABLE), received=question
                )
            if name not in TABLE[question].names:
                raise UsageError(
                    f"behaviour {question}",
                    "has no such alternative",
                    expected=", ".join(TABLE[question].names),
                    received=name,
                )
        merged = dict(self.others) | chosen
        return Behaviours(
            tuple((q.name, merged[q.name]) for q in QUESTIONS if merged.get(q.name, _FIRST[q.name]) != _FIRST[q.name])
        )

    def of(self, questions: Iterable[str]) -> Behaviours:
        """Return the alternatives of `questions`, today's assumptions for all others."""
        wanted = set(questions)
        return Behaviours(tuple(pair for pair in self.others if pair[0] in wanted))

    @property
    def text(self) -> str:
        """Return the form that `parse` reads, "" for today's assumptions."""
        return ",".join(f"{question}={name}" for question, name in self.others)

    @property
    def of_the_chip(self) -> Behaviours:
        """What concerns codes, not the bridge."""
        return self.of(set(TABLE) - set(OF_THE_BRIDGE))


ASSUMED = Behaviours()


def parse(text: str) -> Behaviours:
    """Return the behaviours of a text such as `rounding=floor,learn_maps=after`. Raises UsageError."""
    chosen: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        question, equals, name = part.partition("=")
        if not equals:
            raise UsageError(
                "behaviours", "are not understood", expected="QUESTION=ALTERNATIVE,...", received=text[:200]
            )
        question, name = question.strip(), name.strip()
        if chosen.setdefault(question, name) != name:
            raise UsageError(
                f"behaviour {question}",
                "is given twice",
                expected="one of them",
                received=f"{chosen[question]}, {name}",
            )
    return ASSUMED.changed(**chosen)


def combinations(questions: Iterable[str]) -> Iterator[Behaviours]:
    """Yield every combination of the alternatives of `questions`, today's assumption first."""
    names = list(questions)
    for chosen in itertools.product(*(TABLE[name].names for name in names)):
        yield ASSUMED.changed(**dict(zip(names, chosen, strict=True)))
