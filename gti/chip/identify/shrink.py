"""From a case that nothing explains to the smallest one: halves of the last sublayer, of the image, of its planes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gti.chip.emulator.behaviours import Behaviours
from gti.chip.identify.bench import Bench
from gti.chip.identify.cases import Case, of_net
from gti.chip.identify.predictions import Answer, any_agrees, predict

_MOST_TRIES = 40


@dataclass(frozen=True)
class Failing:
    """A case, what came, and the combinations that were left, none of which predicts it."""

    stage: str
    case: Case
    answer: Answer
    left: tuple[Behaviours, ...]

    @property
    def lines(self) -> list[str]:
        """The case in words: what is not zero in it, the first codes that differ."""
        network, weights, _ = self.case.net
        last, values = network.convolutions[-1], weights[-1]
        outputs = np.flatnonzero(values.filters.any((1, 2, 3)) | (values.biases != 0))
        rows, columns = np.flatnonzero(self.case.planes.any((0, 2))), np.flatnonzero(self.case.planes.any((0, 1)))
        found = [
            f"stage {self.stage}, read-out {self.case.key.mode}: {network.input_shape[2]} planes of"
            f" {network.input_shape[0]}x{network.input_shape[1]}, {len(network.convolutions)} sublayers",
            f"not zero: {len(outputs)} of {last.output_channels} outputs of the last sublayer, pixels in rows"
            f" {_span(rows)} and columns {_span(columns)}",
        ]
        if len(outputs) == 1:
            output = int(outputs[0])
            kernels = values.filters[output]
            taps = [f"input {i}: {kernels[i].ravel().tolist()}" for i in np.flatnonzero(kernels.any((1, 2)))[:4]]
            found.append(f"output {output}, shift {values.shift}, bias {int(values.biases[output])}, {'; '.join(taps)}")
        if len(rows) and len(rows) * len(columns) <= 16:
            part = self.case.planes[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            found.append(f"codes of these pixels: {(part[part.any((1, 2))] >> 3).tolist()[:4]}")
        return [*found, *self._codes()]

    def _codes(self) -> Iterator[str]:
        if self.answer is None:
            yield "no result came"
            return
        expected = [predict(self.case, one).answer for one in self.left[:4]]
        for number, maps in enumerate(self.answer):
            ours = [one[number] for one in expected if one is not None]
            wrong = np.argwhere(maps != ours[0]) if ours else np.argwhere(maps)
            if len(wrong):
                place = tuple(int(i) for i in wrong[0])
                text = ", ".join(str(int(one[place])) for one in ours) or "nothing"
                yield (
                    f"map {number}: {len(wrong)} of {maps.size} values differ; channel {place[0]}, row {place[1]},"
                    f" column {place[2]}: {int(maps[place])} came, {text} explained"
                )


def _span(places: np.ndarray) -> str:
    return f"{places[0]}..{places[-1]}" if len(places) else "none"


def shrink(failing: Failing, bench: Bench, note: Callable[[str], None] = lambda text: None) -> Failing:
    """Return the smallest failing case that halving finds; each try is a load and a frame."""
    tries = 0
    for halves in (_outputs, _planes, _rows, _columns):
        going = True
        while going and tries < _MOST_TRIES:
            going = False
            for smaller in halves(failing.case):
                tries += 1
                answer = bench.answer(smaller)
                if not any_agrees(smaller, failing.left, answer):
                    failing, going = replace(failing, case=smaller, answer=answer), True
                    break
    note(f"smallest failing case after {tries} tries")
    return failing


def _halves(places: np.ndarray) -> Sequence[np.ndarray]:
    return np.array_split(places, 2) if len(places) > 1 else ()


def _outputs(one: Case) -> Iterator[Case]:
    """Yield the case with one half of the last sublayer's outputs."""
    weights = one.net.weights
    last = weights[-1]
    for kept in _halves(np.flatnonzero(last.filters.any((1, 2, 3)) | (last.biases != 0))):
        filters, biases = np.zeros_like(last.filters), np.zeros_like(last.biases)
        filters[kept], biases[kept] = last.filters[kept], last.biases[kept]
        net, data = of_net(one.net._replace(weights=(*weights[:-1], replace(last, filters=filters, biases=biases))))
        yield one._replace(net=net, dat=data)


def _parts_of_the_image(one: Case, axis: int) -> Iterator[Case]:
    others = tuple(other for other in range(3) if other != axis)
    for kept in _halves(np.flatnonzero(one.planes.any(others))):
        mask = np.zeros(one.planes.shape[axis], np.uint8)
        mask[kept] = 1
        shape = [1, 1, 1]
        shape[axis] = -1
        yield one._replace(planes=one.planes * mask.reshape(shape))


def _planes(one: Case) -> Iterator[Case]:
    return _parts_of_the_image(one, 0)


def _rows(one: Case) -> Iterator[Case]:
    return _parts_of_the_image(one, 1)


def _columns(one: Case) -> Iterator[Case]:
    return _parts_of_the_image(one, 2)
