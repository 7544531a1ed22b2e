"""The search for the fewest frames that tell all behaviours of a stage apart.

Networks and images are drawn at random from the stage's templates; the one that separates the most pairs of
combinations for its cost is taken, again and again, until no candidate separates another pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gti.chip.emulator.behaviours import Behaviours
from gti.chip.identify.cases import Key
from gti.chip.identify.predictions import Prediction, predicted
from gti.chip.identify.stages import Stage

Pairs = npt.NDArray[np.bool_]  # [combination, combination]
# A load takes some times as long as a frame.
_LOAD, _FRAME = 4, 1
_IMAGES = 3  # of each network
_FEW = 4


def candidates(stage: Stage, nets: int) -> Iterator[Key]:
    """Yield frames of `nets` networks of each template."""
    for (template, mode), net, image in itertools.product(stage.frames, range(nets), range(_IMAGES)):
        yield Key(template, net, image, mode)


def separated(key: Key, universe: Sequence[Behaviours]) -> Pairs:
    """Return which pairs of combinations a frame tells apart.

    A chip that may answer anything is taken not to answer by chance what another must.
    """
    names: dict[bytes, int] = {}
    numbers = np.array([names.setdefault(_signature(predicted(key, one)), len(names)) for one in universe])
    pairs: Pairs = numbers[:, None] != numbers
    return pairs


def _signature(prediction: Prediction) -> bytes:
    if prediction.answer is None:
        return b"silence"
    return bytes([prediction.any_low_bits]) + b"".join(values.tobytes() for values in prediction.answer)


def to_separate(stage: Stage, universe: Sequence[Behaviours]) -> Pairs:
    """Return the pairs that differ in a question of the stage."""
    own = [tuple(one[question] for question in stage.questions) for one in universe]
    numbers = np.array([sorted(set(own)).index(one) for one in own])
    pairs: Pairs = numbers[:, None] != numbers
    return pairs


def search(stage: Stage, nets: int, note: Callable[[str], None] = lambda text: None) -> list[Key]:
    """Return the frames of a stage, those of one load side by side; `nets`: networks of each template to look at.

    After the first frame four times as many are looked at, for what is left.
    """
    universe = stage.universe()
    left = to_separate(stage, universe)
    chosen: list[Key] = []
    # Where a stage has several kinds of frames, each is asked for once: they are different ways into the chip.
    wanted = list(stage.frames) if len(stage.frames) > 1 else []
    while left.any() or wanted:
        still = np.flatnonzero(left.any(0)) if left.any() else np.arange(len(universe))
        part = [universe[i] for i in still]
        pairs_left = left[np.ix_(still, still)]
        loaded = {key[:2] + key[3:] for key in chosen}
        best, gain = None, 0.0
        for key in candidates(stage, nets if not chosen else 4 * nets):
            if key in chosen or (wanted and (key.template, key.mode) != wanted[0]) or not _lively(key, part):
                continue
            cost = _FRAME + _LOAD * (key[:2] + key[3:] not in loaded)
            value = float(np.count_nonzero(separated(key, part) & pairs_left)) / cost
            if best is None or value > gain:
                best, gain = key, value
        if best is None or (not gain and not wanted):
            break
        wanted = wanted[1:]
        chosen.append(best)
        left = left & ~separated(best, universe)
        note(f"{stage.name}: {best}, {np.count_nonzero(left) // 2} pairs left")
    order = {key[:2] + key[3:]: i for i, key in reversed(list(enumerate(chosen)))}
    return sorted(chosen, key=lambda key: order[key[:2] + key[3:]])


def _lively(key: Key, universe: Sequence[Behaviours]) -> bool:
    """Return whether hardly any answer is one value all over: broken sticks give those, so they are asked for again."""
    answers = [predicted(key, one).answer or [] for one in universe]
    ends = [{int(end) for values in answer for end in (values.min(), values.max())} for answer in answers]
    return sum(len(one) == 1 for one in ends) <= len(universe) // _FEW
