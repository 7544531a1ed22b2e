"""The stages of an identification: questions that are answered together, and the frames that answer them.

`PLAN` holds the seeds that `search.py` found (`scripts/dev/identify_proof.py --search` prints them); a test proves that
they tell every pair of alternatives apart that can be told apart at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from gti.chip.emulator.behaviours import Behaviours, combinations
from gti.chip.identify.cases import Key


class Stage(NamedTuple):
    """Questions that one set of frames answers; `given` are those of earlier stages on which its results depend."""

    name: str
    questions: tuple[str, ...]
    given: tuple[str, ...]
    frames: tuple[tuple[str, str], ...]  # (template, mode): where its frames are drawn from

    def universe(self) -> list[Behaviours]:
        """Return every combination of all questions that play a part."""
        return list(combinations((*self.given, *self.questions)))


CORE = ("rounding", "saturation", "accumulator", "bias")
# Behind each stage in which a stick may stay silent stands one in which it answers: that it still does is seen there.
STAGES = (
    Stage("sums", CORE, (), (("sums", "single"), ("wide_sums", "single"))),
    Stage("signs", ("borders", "one_bit_sign"), (), (("signs", "single"),)),
    Stage("pooled", ("pooling", "fc_low_bits"), (), (("pooled", "fc"),)),
    Stage("one_coef", ("one_coef",), (), (("one_coef", "single"),)),
    Stage("sampled", ("sampling",), ("fc_low_bits",), (("sampled", "fc"),)),
    Stage("depthwise", ("depthwise",), (), (("depthwise", "single"),)),
    Stage(
        "maps",
        ("learn_maps", "sublast_maps"),
        ("pooling",),
        (("maps", "learn"), ("maps", "sublast"), ("maps", "lastmajor")),
    ),
    Stage("shortcut", ("shortcuts",), ("saturation",), (("shortcut", "single"),)),
    Stage("ten_bit", ("ten_bit",), (), (("ten_bit", "single"),)),
    Stage(
        "doubled",
        ("upsample_size", "upsample_fill"),
        ("pooling", "fc_low_bits"),
        (("doubled", "fc"), ("doubled_after", "fc")),
    ),
    Stage("units", ("activation_memory",), (), (("units", "single"),)),
    Stage("rows", ("filter_memory",), (), (("rows", "learn"),)),
)
PLAN: dict[str, tuple[tuple[str, int, int, str], ...]] = {
    "sums": (("sums", 9, 0, "single"), ("wide_sums", 0, 0, "single"), ("sums", 85, 0, "single")),
    "signs": (("signs", 0, 0, "single"),),
    "pooled": (("pooled", 0, 0, "fc"),),
    "one_coef": (("one_coef", 0, 0, "single"),),
    "sampled": (("sampled", 0, 0, "fc"),),
    "depthwise": (("depthwise", 0, 0, "single"),),
    "maps": (("maps", 0, 0, "learn"), ("maps", 0, 0, "sublast"), ("maps", 0, 0, "lastmajor")),
    "shortcut": (("shortcut", 0, 0, "single"),),
    "ten_bit": (("ten_bit", 0, 0, "single"),),
    "doubled": (("doubled", 0, 0, "fc"), ("doubled_after", 0, 0, "fc")),
    "units": (("units", 0, 0, "single"),),
    "rows": (("rows", 0, 0, "learn"),),
}


def keys(stage: Stage) -> list[Key]:
    """Return the frames of a stage in the plan."""
    return [Key(*one) for one in PLAN[stage.name]]


def same_codes(one: Behaviours, other: Behaviours) -> bool:
    """Return whether two combinations of `CORE` give the same codes whatever the sums, so that no frame can tell.

    Roundings that differ below 0 alone do so where results below 0 end at 0. 24 bits that saturate are more than the
    largest code at the largest shift, 15. Where the low bits remain, 20 bits hold them at every shift, unless rounding
    looks at the sign.
    """
    if any(one[question] != other[question] for question in ("saturation", "bias")):
        return False
    saturation, bias = one["saturation"], one["bias"]
    roundings, accumulators = ({one[question], other[question]} for question in ("rounding", "accumulator"))
    below = saturation != "wrap_signed" and bias == "full"
    same_rounding = len(roundings) == 1 or (below and roundings in ({"half_up", "half_away"}, {"floor", "truncate"}))
    clipped = saturation in ("clip", "below_top") and bias != "as_code"
    same_width = (
        len(accumulators) == 1
        or (clipped and accumulators == {"wide", "saturate24"})
        or (
            saturation == "wrap_signed"
            and not roundings & {"half_away", "truncate"}
            and accumulators <= {"wide", "wrap24", "wrap20"}
        )
    )
    return same_rounding and same_width


def loads(frames: Iterable[Key]) -> int:
    """Return how many loads frames take in their order: one for each change of network or mode."""
    return len([1 for _ in itertools.groupby(frames, lambda key: (key.template, key.net, key.mode))])


def asked() -> list[str]:
    """Return every question that the stages answer."""
    return [name for stage in STAGES for name in stage.questions]
