"""Teach: photographs in class folders and a network on the chip -> a full .MODEL with classes of one's own.

The chip computes features, the host learns softmax regression on them: average pooling, one fully connected layer,
softmax, labels, all of them layers that every reader of a .MODEL knows. When to answer "unknown" stands in the header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.formats import dat
from gti.chip.formats.blobs import encode_fc, encode_labels
from gti.chip.formats.model_file import compose
from gti.chip.host import preprocessing, softmax_regression
from gti.chip.host import unknown as unknown_answer
from gti.chip.host.image_search import SUFFIXES
from gti.chip.host.softmax_regression import Regression
from gti.chip.host.unknown import Unknown
from gti.chip.runtime import features, known_answer
from gti.chip.runtime.features import Backbone
from gti.chip.runtime.wrapping import layer_entry, reader_entry
from gti.chip.spec import FC_READOUT_SIZE
from gti.chip.usb.transport import Settings
from gti.chip.wire.protocol import Mode
from gti.errors import DataError, GtiError, UsageError, listing, sentence

UNKNOWN_SHARE = 0.05
LABELS_RETURNED = 5
_FC_SCALEDOWN = 3  # the FC read-out delivers 8-bit values, codes * 8 (docs/usb_protocol.md, section 7)


@dataclass(frozen=True)
class Photo:
    """One photograph and its class, from 0."""

    path: Path
    label: int


def find_photos(folder: str | os.PathLike[str]) -> tuple[list[str], list[Photo]]:
    """Return the classes, one for each sub-folder of `folder` in order of their names, and the photographs in them.

    Raises DataError naming every reason why nothing can be learnt from the folder.
    """
    base = Path(folder)
    if not base.is_dir():
        raise DataError(
            str(base), "no such folder", expected="one sub-folder of photographs a class", fix="check the path"
        )
    inner = sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    photos = [
        Photo(path, label)
        for label, one in enumerate(inner)
        for path in sorted(one.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    names = [path.name for path in inner]
    _refuse_too_few(str(base), names, [photo.label for photo in photos])
    return names, photos


def _refuse_too_few(folder: str, names: Sequence[str], labels: Sequence[int]) -> None:
    problems = []
    if len(names) < 2:
        problems.append(
            sentence(
                folder, "nothing to tell apart", expected="at least two folders, a class each", received=len(names)
            )
        )
    for label, name in enumerate(names):
        count = sum(one == label for one in labels)
        if count < 2:
            problems.append(
                sentence(
                    f"{folder}/{name}",
                    "too few photographs to learn a class and to check it",
                    expected="at least two that can be read",
                    received=count,
                    fix="add some, or remove the folder",
                )
            )
        if not name.isprintable() or name == unknown_answer.LABEL:
            problems.append(sentence(f"{folder}/{name}", "is no name for a class", fix="rename the folder"))
    if problems:
        raise DataError(problems[0] if len(problems) == 1 else listing(folder, problems))


@dataclass(frozen=True)
class Lesson:
    """What was learnt, and how well photographs are told apart that the regression had not seen."""

    names: list[str]
    photos: list[Photo]
    refused: list[GtiError]  # photographs that could not be used
    new: int  # photographs whose features were not known yet
    description: str  # what computed them
    regression: Regression
    unknown: Unknown | None
    held_out: npt.NDArray[np.intp]  # of `photos`
    held_out_logits: npt.NDArray[np.float64]  # [held out, classes]

    @property
    def answers(self) -> npt.NDArray[np.intp]:
        """The class that each photograph that was held out was taken for."""
        classes: npt.NDArray[np.intp] = self.held_out_logits.argmax(axis=1)
        return classes

    @property
    def truth(self) -> npt.NDArray[np.intp]:
        """The class of each photograph that was held out."""
        return np.array([photo.label for photo in self.photos], np.intp)[self.held_out]

    @property
    def accuracy(self) -> float:
        """Share of the photographs held out that were taken for what they are."""
        return float(np.mean(self.answers == self.truth))

    @property
    def confusion(self) -> npt.NDArray[np.intp]:
        """How many of each class (row) were taken for each class (column)."""
        counts = np.zeros((len(self.names), len(self.names)), np.intp)
        np.add.at(counts, (self.truth, self.answers), 1)
        return counts


def learn(
    backbone: Backbone,
    folder: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    unknown: float = UNKNOWN_SHARE,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
    settings: Settings | None = None,
    record: str | os.PathLike[str] | None = None,
) -> Lesson:
    """Return what the class folders in `folder` teach.

    `cache`: file that keeps features; `unknown`: share of photographs of the classes that may be answered "unknown",
    0 to do without; `progress`: wraps the iterable of new photographs; `settings` and `record`: as `GtiModel`. Raises
    DataError for folders that teach nothing, FormatError for a `cache` that is none, DeviceError when no stick can be
    had.
    """
    if not 0 <= unknown < 1:
        raise UsageError("unknown", "is no share of the photographs", expected="0..1", received=unknown)
    names, photos = find_photos(folder)
    paths = [photo.path for photo in photos]
    computed = features.compute(backbone, paths, cache, device, progress, settings=settings, record=record)
    used = set(computed.paths)
    photos = [photo for photo in photos if photo.path in used]
    labels = np.array([photo.label for photo in photos], np.intp)
    try:
        _refuse_too_few(os.fspath(folder), names, labels.tolist())
    except DataError as problem:
        raise DataError("\n".join(map(str, [*computed.refused, problem]))) from None
    held_out, logits = softmax_regression.held_out_logits(computed.values, labels, len(names))
    regression = softmax_regression.fit(computed.values, labels, len(names))
    rule = unknown_answer.learn(computed.values, labels, unknown) if unknown else None
    return Lesson(
        names, photos, computed.refused, computed.new, computed.description, regression, rule, held_out, logits
    )


def to_model(lesson: Lesson, backbone: Backbone, name: str, top: int = LABELS_RETURNED) -> bytes:
    """Return the full .MODEL of a lesson; `name`: of the network, in its header; `top`: labels in a result."""
    names = lesson.names
    size, planes = backbone.loaded.size, backbone.loaded.planes
    reader = backbone.reader or reader_entry(size, planes)
    chip = layer_entry("chip", "GTICNN", FC_READOUT_SIZE, backbone.channels)
    chip |= {"device": {"chip": "2801"}} | backbone.chip
    chip.pop("data size", None)
    chip |= {
        "data file": "chip.dat",
        "data offset": 0,
        "mode": int(Mode.FC),
        "output scaledown": _FC_SCALEDOWN,
        "output type": "float",
    }
    if known_answer.KEY not in chip:
        found = dat.decode(backbone.loaded.dat, activation_bit_mode=0, name=str(backbone.path))
        chip[known_answer.KEY] = known_answer.make(found.network, found.weights, backbone.loaded.dat).to_entry()
    layers = [
        reader,
        chip,
        layer_entry("pool", "POOLING", 1, backbone.channels) | {"mode": "average"},
        layer_entry("fc", "FC", 1, len(names)) | {"data file": "fc.bin"},
        layer_entry("softmax", "SOFTMAX", 1, len(names)),
        layer_entry("label", "LABEL", 1, min(top, len(names))) | {"data file": "labels.txt"},
    ]
    header: dict[str, Any] = {"name": name, "layer": layers, preprocessing.KEY: backbone.preprocessing.entry()}
    if lesson.unknown is not None:
        header[unknown_answer.KEY] = lesson.unknown.entry()
    data = {
        "chip.dat": backbone.loaded.dat,
        "fc.bin": encode_fc(lesson.regression.weights, lesson.regression.biases),
        "labels.txt": encode_labels(names),
    }
    # Compact: the centres of many classes are many numbers.
    return compose(json.dumps(header, ensure_ascii=False).encode(), data)


def figures(lesson: Lesson) -> dict[str, Any]:
    """Return how well the classes are told apart, for programs."""
    return {
        "classes": lesson.names,
        "photographs": len(lesson.photos),
        "left out": [str(problem) for problem in lesson.refused],
        "held out": len(lesson.held_out),
        "accuracy": lesson.accuracy,
        "confusion": lesson.confusion.tolist(),
    }


def report(lesson: Lesson) -> list[str]:
    """Return lines for people: how well the classes are told apart, what is taken for what, and which photographs."""
    held, count = len(lesson.held_out), len(lesson.photos)
    how = "each by a regression that had not seen it" if held == count else f"{held} of {count}, held out"
    lines = [
        f"held-out accuracy {lesson.accuracy:.3f} ({int((lesson.answers == lesson.truth).sum())} of {held}, {how})"
    ]
    width = max(len(name) for name in lesson.names)
    lines += ["", f"{'is':>{width}}  taken for"]
    for name, row in zip(lesson.names, lesson.confusion, strict=True):
        others = ", ".join(
            f"{other} {n}" for other, n in sorted(zip(lesson.names, row, strict=True), key=lambda i: -i[1]) if n
        )
        lines.append(f"{name:>{width}}  {others}")
    wrong = np.flatnonzero(lesson.answers != lesson.truth)
    if len(wrong):
        shares = _softmax(lesson.held_out_logits[wrong])
        surest = np.argsort(-shares.max(axis=1), kind="stable")[:_MOST_SHOWN]
        lines += ["", "photographs that confuse it, the surest mistakes first:"]
        for index, share in zip(wrong[surest], shares[surest], strict=True):
            said, true = lesson.answers[index], lesson.truth[index]
            path = lesson.photos[lesson.held_out[index]].path
            lines.append(f"  {path}: {lesson.names[said]} {share[said]:.2f}, {lesson.names[true]} {share[true]:.2f}")
        if len(wrong) > _MOST_SHOWN:
            lines.append(f"  and {len(wrong) - _MOST_SHOWN} more")
    return lines


_MOST_SHOWN = 12


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
