"""The host's part of a full .MODEL in NumPy: image reader, pooling, fully connected layers, softmax, labels.

Everything comes from the container: no TensorFlow, no checkpoint (docs/model_format.md, layer parameters). Tensors are
planar, [C,H,W], as on the chip; a fully connected layer flattens them in that order. Steps compute many images
together, [N,C,H,W]; each image's result is, to the bit, what it would be alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gti.chip.formats.blobs import decode_fc, parse_labels
from gti.chip.formats.canonical_json import canonical
from gti.chip.formats.model_file import ModelLayer, layer_path
from gti.chip.host.unknown import KEY, Unknown
from gti.chip.wire import readout
from gti.errors import ImageError, ModelFileError
from gti.files import is_whole

Image = npt.NDArray[np.uint8]
Tensor = npt.NDArray[Any]
Chip = Callable[[Image], Sequence[Image]]
Step = Callable[[Any], Any]

PLANES_BGR = "CS_BGR24_PLANAR"
PLANES_RGB = "CS_RGB24_PLANAR"
POOLING_MODES = ("max", "average", "sample", "center", "top_left")
_DEFAULT_POOLING = "center"


@dataclass(slots=True, unsafe_hash=True)  # not frozen: to make it takes three times as long, for every class of a frame
class Label:
    """One class in a result."""

    index: int  # 0 = background
    text: str
    probability: float  # 0..1


@dataclass(frozen=True)
class Outcome:
    """What a full model makes of one image."""

    tensors: dict[str, Tensor]  # result of each layer by its name, [C,H,W] or flat
    result: dict[str, Any]  # {"result": [{"index", "label", "probability"}, ...]}, most probable first

    def text(self) -> str:
        """Return the result as the compact JSON text of docs/model_format.md."""
        return canonical(self.result)


class HostLayers:
    """The layers of one .MODEL, decoded and checked once, ready for many images.

    `layers`: of the container, chip layer included; `name`: of the file, for messages. Raises ModelFileError that
    names the layer for kinds, modes and data that cannot be executed, and for a model without host layers. `unknown`:
    the file's rule for images that are like no class. `labels`: every text that a result may name.
    """

    def __init__(self, layers: Sequence[ModelLayer], name: str, unknown: Unknown | None = None) -> None:
        kinds = [layer.operation for layer in layers]
        if kinds.count("GTICNN") != 1:
            raise ModelFileError(
                name, "cannot be run as a whole", expected="one GTICNN layer", received=kinds.count("GTICNN")
            )
        if "LABEL" not in kinds:
            raise ModelFileError(
                name,
                "holds no host layers that end in labels",
                expected="GTICNN, FC, SOFTMAX and LABEL layers",
                received=", ".join(kinds),
                fix="make a full model with addon/convert_full.py of the project, or with gti teach",
            )
        if kinds[-1] != "LABEL" or kinds.count("LABEL") != 1:
            raise ModelFileError(name, "goes on behind its labels", expected="LABEL as the last layer")
        first = kinds.index("GTICNN")
        places = [f"{name}, {layer_path(index, layer.entry)}" for index, layer in enumerate(layers)]
        self._readers = [
            _reader(layer, place) if layer.operation == "IMAGEREADER" else _refuse(layer, place)
            for layer, place in zip(layers[:first], places[:first], strict=True)
        ]
        self._chip_name = _name(layers[first], first)
        self._chip_tensor = _chip(layers[first], places[first])
        self._steps: list[tuple[str, Step]] = []
        for index in range(first + 1, len(layers)):
            make: Callable[[ModelLayer, str], Step] = _STEPS.get(layers[index].operation, _refuse)
            self._steps.append((_name(layers[index], index), make(layers[index], places[index])))
        self.labels = parse_labels(_blob(layers[-1], places[-1])) + ([unknown.label] if unknown is not None else [])
        self._judge = _Judge(unknown, layers, f'{name}, "{KEY}"') if unknown is not None else None

    @property
    def input_order(self) -> str:
        """Channel order of the images that `run` takes: "BGR", or "RGB" where a reader turns the planes round."""
        return "RGB" if sum(reader.swaps for reader in self._readers) % 2 else "BGR"

    def run(self, image: Image, chip: Chip) -> Outcome:
        """Return the outcome of `image`, uint8 [H,W,C] in `input_order`.

        `chip`: image in the chip's channel order -> maps uint8 [C,H,W] as the stick delivers them (FC mode: 8-bit).
        Raises ImageError for an image of another size, ModelFileError where sizes do not fit together.
        """
        return self.outcome(chip(self.chip_image(image)))

    def chip_image(self, image: Image) -> Image:
        """Return what the readers make of `image`: what goes to the chip. Errors as `run`."""
        for reader in self._readers:
            image = reader(image)
        return image

    def outcome(self, maps: Sequence[Image]) -> Outcome:
        """Return the outcome of the maps that the chip delivered. Errors as `run`."""
        tensors, (labels,) = self._computed([maps])
        entries = [{"index": one.index, "label": one.text, "probability": one.probability} for one in labels]
        return Outcome({name: batch[0] for name, batch in tensors.items()}, {"result": entries})

    def labels_of(self, batch: Sequence[Sequence[Image]]) -> list[list[Label]]:
        """Return the labels of the maps of each image, most probable first, computed together. Errors as `run`."""
        return self._computed(batch)[1]

    def _computed(self, batch: Sequence[Sequence[Image]]) -> tuple[dict[str, Tensor], list[list[Label]]]:
        """Return the tensors of each layer, [N,...], and the labels of each image."""
        value: Any = self._chip_tensor(batch)
        tensors: dict[str, Tensor] = {self._chip_name: value}
        unknown = [False] * len(batch)
        for number, (name, step) in enumerate(self._steps):
            if self._judge is not None and number == self._judge.position:
                unknown = [self._judge.says_unknown(x) for x in value]
            value = step(value)
            if isinstance(value, np.ndarray):
                tensors[name] = value
        if self._judge is not None:
            value = [self._judge.answer(one) if due else one for one, due in zip(value, unknown, strict=True)]
        return tensors, value


class _Judge:
    """Looks at what the first fully connected layer takes, and puts "unknown" before the labels where it is due."""

    def __init__(self, unknown: Unknown, layers: Sequence[ModelLayer], where: str) -> None:
        self._unknown, self._where = unknown, where
        behind = [layer.operation for layer in layers[[layer.operation for layer in layers].index("GTICNN") + 1 :]]
        if "FC" not in behind:
            raise ModelFileError(where, "has no layer to look at", expected="an FC layer behind the chip's")
        self.position = behind.index("FC")
        self._most = layers[-1].entry.get("output channels")

    def says_unknown(self, x: Tensor) -> bool:
        if x.size != self._unknown.centres.shape[1]:
            raise ModelFileError(
                self._where,
                "does not fit the first FC layer",
                expected=f"centres of {x.size} numbers",
                received=self._unknown.centres.shape[1],
            )
        return self._unknown.says(x)

    def answer(self, labels: list[Label]) -> list[Label]:
        return [Label(len(self._unknown.centres), self._unknown.label, 1.0), *labels][: self._most]


def reader_order(entry: Mapping[str, Any] | None) -> str:
    """Return the channel order of the images that an IMAGEREADER entry takes, "BGR" or "RGB"; None: there is none."""
    formats = [(entry or {}).get(key) for key in ("input format", "output format")]
    # Only this pair of names is acted on; others pass the data unchanged.
    return "RGB" if formats in ([PLANES_BGR, PLANES_RGB], [PLANES_RGB, PLANES_BGR]) else "BGR"


def _name(layer: ModelLayer, index: int) -> str:
    name = layer.entry.get("name")
    return name if isinstance(name, str) else f"layer {index + 1}"


def _refuse(layer: ModelLayer, where: str) -> Any:
    raise ModelFileError(
        where,
        "is a layer that cannot be run at this place",
        expected="IMAGEREADER, then GTICNN, then " + ", ".join(_STEPS),
        received=layer.operation or "no operation",
    )


def _text(layer: ModelLayer, key: str, default: str, allowed: Sequence[str], where: str) -> str:
    value = layer.entry.get(key)
    if value is None:
        return default
    if value not in allowed:
        raise ModelFileError(where, f'"{key}" is unknown', expected=" or ".join(allowed), received=value)
    return str(value)


def _whole(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    value = entry.get(key)
    if value is not None and not is_whole(value):
        raise ModelFileError(where, f'"{key}" has the wrong type', expected="a whole number", received=value)
    return value


class _Reader:
    """Checks the image's size and turns the planes round where the two formats differ."""

    def __init__(self, swaps: bool, shape: tuple[int | None, int | None, int | None], where: str) -> None:
        self.swaps = swaps
        self._shape = shape  # (height, width, channels)
        self._where = where

    def __call__(self, image: Image) -> Image:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            received = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ImageError("image", "is no picture", expected="uint8 [H,W,C]", received=received)
        if any(want is not None and want != have for want, have in zip(self._shape, image.shape, strict=True)):
            raise ImageError(
                "image",
                f"has another size than {self._where} takes, which does not resize",
                expected=list(self._shape),
                received=list(image.shape),
                fix="resize the image",
            )
        return np.ascontiguousarray(image[:, :, ::-1]) if self.swaps else image


def _reader(layer: ModelLayer, where: str) -> _Reader:
    swaps = reader_order(layer.entry) == "RGB"
    height, width, channels = (_whole(layer.entry, f"output {key}", where) for key in ("height", "width", "channels"))
    return _Reader(swaps, (height, width, channels), where)


def _chip(layer: ModelLayer, where: str) -> Callable[[Sequence[Sequence[Image]]], Tensor]:
    scaledown = _whole(layer.entry, "output scaledown", where) or 0
    if layer.entry.get("output type") not in (None, "float"):
        raise ModelFileError(
            where,
            "delivers bytes, which host layers cannot take",
            expected='"output type": "float"',
            received=layer.entry["output type"],
        )

    def tensor(batch: Sequence[Sequence[Image]]) -> Tensor:
        flat = readout.tensor([one for maps in batch for one in maps], scaledown)
        return flat.reshape(len(batch), *(batch[0][0].shape if len(batch[0]) == 1 else (-1,)))

    return tensor


def _fc(layer: ModelLayer, where: str) -> Step:
    relu = _text(layer, "activation", "", ("relu",), where) == "relu"
    weights, biases = decode_fc(_blob(layer, where), where)

    def step(x: Tensor) -> Tensor:
        if x[0].size != weights.shape[1]:
            raise ModelFileError(
                where, "does not fit the layer before", expected=f"{weights.shape[1]} inputs", received=x[0].size
            )
        # Matrix times vector, image after image: a product of two matrices would add up in another order.
        vectors = x.reshape(len(x), -1, 1).astype(np.float32, copy=False)
        y: Tensor = np.matmul(weights, vectors)[:, :, 0] + biases
        return np.maximum(y, np.float32(0)) if relu else y

    return step


def _pooling(layer: ModelLayer, where: str) -> Step:
    mode = _text(layer, "mode", _DEFAULT_POOLING, POOLING_MODES, where)
    for key in ("output width", "output height"):
        if _whole(layer.entry, key, where) not in (None, 1):
            raise ModelFileError(
                where, "pools to more than one value a channel", expected=f'"{key}": 1', received=layer.entry[key]
            )

    poolings: dict[str, Callable[[Tensor], Tensor]] = {
        "max": lambda x: x.max(axis=(2, 3)),
        "average": lambda x: x.mean(axis=(2, 3), dtype=np.float32),
        "sample": lambda x: x[:, :, 0, 0],
        "center": lambda x: x[:, :, x.shape[2] // 2, x.shape[3] // 2],
        "top_left": lambda x: x[:, :, 1, 1],
    }

    def step(x: Tensor) -> Tensor:
        least = 2 if mode == "top_left" else 1
        if x.ndim != 4 or min(x.shape[2:]) < least:
            raise ModelFileError(
                where,
                f"mode {mode} has nothing to pool",
                expected=f"a tensor [C,H,W] of at least {least}x{least}",
                received=list(x.shape[1:]),
            )
        pooled: Tensor = poolings[mode](x)
        return pooled[:, :, None, None]

    return step


def _softmax(layer: ModelLayer, where: str) -> Step:
    def step(x: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1)
        powers: Tensor = np.exp(rows.astype(np.float32, copy=False) - rows.max(axis=1, keepdims=True))
        shares: Tensor = powers / powers.sum(axis=1, keepdims=True)
        return shares.reshape(x.shape)

    return step


def _label(layer: ModelLayer, where: str) -> Step:
    labels = parse_labels(_blob(layer, where), where)
    most = _whole(layer.entry, "output channels", where)
    if most is not None and most < 1:
        raise ModelFileError(where, "returns no labels", expected='"output channels" >= 1', received=most)

    def step(x: Tensor) -> list[list[Label]]:
        probabilities = x.reshape(len(x), -1)
        if probabilities.shape[1] > len(labels):
            raise ModelFileError(
                where,
                "names too few classes",
                expected=f"{probabilities.shape[1]} lines, as many as the layer before has outputs",
                received=len(labels),
                fix="pass the label file that the network was trained with",
            )
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :most]
        shares = np.take_along_axis(probabilities, order, axis=1)
        return [
            [Label(index, labels[index], share) for index, share in zip(*one, strict=True)]
            for one in zip(order.tolist(), shares.tolist(), strict=True)  # Python's numbers all at once: faster
        ]

    return step


def _blob(layer: ModelLayer, where: str) -> memoryview:
    if layer.blob is None:
        raise ModelFileError(where, "has no data", fix="make the model again")
    return layer.blob


_STEPS: dict[str, Callable[[ModelLayer, str], Step]] = {
    "FC": _fc,
    "POOLING": _pooling,
    "SOFTMAX": _softmax,
    "LABEL": _label,
}
