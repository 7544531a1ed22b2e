"""Graph -> the Network of the chip and the host's steps, with everything that neither can do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gti.chip import spec
from gti.chip.network.budget import HostLayer
from gti.chip.network.rules import Violation
from gti.chip.network.types import Network
from gti.errors import FormatError
from gti.files import is_whole
from gti.importing import keras_files, model_files
from gti.importing.chip_part import (
    CHIP_CONVOLUTION,
    CHIP_POOLING,
    CONVOLUTIONS,
    INERT,
    POOLINGS,
    SCALES,
    ChipReader,
    Sublayer,
    legal_channels,
)
from gti.importing.graph import Graph, Layer, name_of, pair, whole
from gti.importing.host_part import DENSE, GLOBAL, HostReader, Step

_BEHIND_CONVOLUTION = frozenset({"BatchNormalization", "ReLU", "Activation", *SCALES})


@dataclass(frozen=True)
class Architecture:
    """A model as the kit sees it: chip part, fully connected host layers, and what does not fit.

    Where `problems` is not empty, `network` is the closest reading of the model.
    """

    name: str
    network: Network
    host: tuple[HostLayer, ...]
    problems: tuple[Violation, ...]
    uncounted: tuple[str, ...] = ()  # convolutions that the host computes: no part of `host`
    sublayers: tuple[Sublayer, ...] = ()
    steps: tuple[Step, ...] = ()  # of the host
    host_problems: tuple[Violation, ...] = ()  # why the host's part cannot be written
    input_scales: tuple[Layer, ...] = ()  # in front of the first convolution
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a user should know of the reading
    legal_sizes: tuple[int, ...] = ()  # image sizes of the chip that give the same result, the nearest first


def load(
    path: str | os.PathLike[str],
    *,
    coef_bits: Sequence[int] = (3,),
    image_size: int | None = None,
    arrays: bool = True,
) -> Architecture:
    """Return the architecture of a model file; plain convolutions count as `coef_bits` wide.

    Without `arrays` a Keras file's weights are not looked for. Raises FormatError when the file holds no model of named
    layers, UsageError for other numbers of `coef_bits`.
    """
    graph = model_files.load(path, arrays=arrays)
    return from_graph(graph, os.fspath(path), coef_bits=coef_bits, image_size=image_size)


def of_model(model: Any, *, coef_bits: Sequence[int] = (3,)) -> Architecture:
    """Return the architecture of a Keras model in memory, without its arrays; see `load`."""
    kind = type(model).__name__
    config = {"class_name": "Sequential" if kind == "Sequential" else "Functional", "config": model.get_config()}
    name = f"model {model.name}"
    return from_graph(keras_files.graph(config, name), name, coef_bits=coef_bits)


def from_graph(
    model: Graph, source: str, *, coef_bits: Sequence[int] = (3,), image_size: int | None = None
) -> Architecture:
    """Return the architecture of a Graph; see `load`. `image_size` takes the place of the size in the file."""
    layers = _linear_head(model.layers)
    end = _chip_end(layers)
    reader = ChipReader(0)
    _check_chain(layers[:end], reader)
    _check_host(replace(model, layers=tuple(layers)), end, reader)
    size, channels = _image(model.input_shape, reader, layers, image_size)
    for layer in layers[:end]:
        reader.read(layer)
    if not reader.sublayers:
        raise FormatError(
            source, "holds no convolution for the chip", expected="3x3 convolutions in front of the host part"
        )
    last, result = reader.sublayers[-1].output_channels, _sizes(reader.sublayers, size)[-1]
    host = HostReader(result, last, legal_channels(last))
    host.read(layers[end:])
    sizes = _legal_sizes(reader.sublayers, size, fixed=bool(host.steps) and host.steps[0].kind not in GLOBAL)
    reader.image_size = _checked_size(reader, size if image_size is None else image_size, sizes, result)
    network = reader.finish(channels, coef_bits)
    return Architecture(
        name=model.name,
        network=network,
        host=_host(layers[end:]) if host.problems else host.layers(),
        problems=tuple(reader.problems),
        uncounted=tuple(layer.name for layer in layers[end:] if "Conv" in layer.kind) if host.problems else (),
        sublayers=tuple(reader.sublayers),
        steps=tuple(host.steps),
        host_problems=tuple(host.problems),
        input_scales=tuple(reader.input_scales),
        labels=model.labels,
        notes=(*_notes(reader.sublayers), *host.notes),
        legal_sizes=sizes,
    )


def _linear_head(layers: Sequence[Layer]) -> list[Layer]:
    # A linear 1x1 convolution in front of the last global average is a fully connected layer behind it.
    result = list(layers)
    at = max((i for i, layer in enumerate(result) if layer.kind == "GlobalAveragePooling2D"), default=0)
    head = max((i for i in range(at) if result[i].kind not in INERT), default=None)
    if head is None or not _is_linear_1x1(result[head]) or any(layer.kind in DENSE for layer in result[at:]):
        return result
    convolution, average = result[head], result[at]
    between = [
        replace(layer, sources=convolution.sources if i == 0 else layer.sources)
        for i, layer in enumerate(result[head + 1 : at + 1])
    ]
    if average.sources == (convolution.name,):
        average = replace(average, sources=convolution.sources)
        between[-1] = average
    moved = replace(convolution, sources=(average.name,))
    behind = [
        replace(layer, sources=tuple(moved.name if s == average.name else s for s in layer.sources))
        if layer.sources
        else layer
        for layer in result[at + 1 :]
    ]
    return [*result[:head], *between, moved, *behind]


def _is_linear_1x1(layer: Layer) -> bool:
    config = layer.config
    return (
        layer.kind == "Conv2D"
        and pair(config.get("kernel_size", 0)) == (1, 1)
        and pair(config.get("strides", 1)) == (1, 1)
        and config.get("groups", 1) == 1
        and name_of(config.get("activation")) == "linear"
    )


def _chip_end(layers: Sequence[Layer]) -> int:
    """Return where the host's part begins: behind the last chip layer, the kit's own kinds first."""
    own = any(layer.kind == CHIP_CONVOLUTION for layer in layers)
    kinds = {CHIP_CONVOLUTION, CHIP_POOLING} if own else CONVOLUTIONS | POOLINGS
    end = max((i + 1 for i, layer in enumerate(layers) if layer.kind in kinds), default=0)
    if own:
        return end
    # 1x1 convolutions of what a global pooling left are fully connected layers, and poolings at the end the host's
    # where the chip has none such.
    average = max((i for i, layer in enumerate(layers) if layer.kind in GLOBAL), default=end)
    if all(_is_linear_1x1(layer) or layer.kind not in CONVOLUTIONS | POOLINGS for layer in layers[average:]):
        end = min(end, average)
    while end and (layers[end - 1].kind in INERT or _is_hosts_pooling(layers[end - 1])):
        end -= 1
    # What belongs to the last convolution of a plain model stands behind it.
    while end < len(layers) and layers[end].kind in _BEHIND_CONVOLUTION:
        end += 1
    return end


def _is_hosts_pooling(layer: Layer) -> bool:
    window = pair(layer.config.get("pool_size", 2))
    return layer.kind == "AveragePooling2D" or (
        layer.kind == "MaxPooling2D" and window != (2, 2) and pair(layer.config.get("strides") or window) == window
    )


def _check_chain(layers: Sequence[Layer], reader: ChipReader) -> None:
    for i, layer in enumerate(layers):
        if layer.sources is None:
            continue
        if len(layer.sources) != 1:
            reader.unfit(layer.name, "the chip runs a single chain of layers", "one input",
                         f"{len(layer.sources)} inputs", "use each layer once, without branches")  # fmt: skip
        elif i and layer.sources[0] != layers[i - 1].name:
            reader.unfit(layer.name, "the chip runs a single chain of layers", f"input from {layers[i - 1].name}",
                         f"input from {layer.sources[0]}", "use each layer once, without branches")  # fmt: skip


def _check_host(model: Graph, end: int, reader: ChipReader) -> None:
    for layer in model.layers:
        if "layers" in layer.config:
            reader.unfit(layer.name, "a model inside the model has several inputs", "one input", layer.kind,
                         "put its layers into the model itself")  # fmt: skip
    for name in model.inputs[1:]:
        reader.unfit(name, "the network has another input", "one image", f"{len(model.inputs)} inputs",
                     "leave every input but the image out")  # fmt: skip
    last = model.layers[end - 1].name if end else ""
    # What the host cannot see: the image, and every map that the chip keeps for its next layer.
    hidden = {*model.inputs, *(layer.name for layer in model.layers[:end])} - {last}
    for layer in model.layers[end:]:
        for name in dict.fromkeys(layer.sources or ()):
            if name in hidden:
                reader.unfit(layer.name, "the host receives the last map of the chip only", f"input from {last}",
                             f"input from {name}", f"feed the host's layers from {last} alone")  # fmt: skip
    for name in dict.fromkeys(model.outputs):
        if name in hidden:
            reader.unfit(name, "the host receives the last map of the chip only", f"an output of {last} or behind it",
                         f"an output of {name}", "leave this output out")  # fmt: skip


def _image(shape: Any, reader: ChipReader, layers: Sequence[Layer], image_size: int | None) -> tuple[int, int]:
    if not isinstance(shape, (list, tuple)) or len(shape) != 4:
        shape = [None, None, None, None]
    height, width, channels = shape[1:]
    if channels is None:  # the first convolution knows
        first = next((layer for layer in layers if "kernel" in layer.weights), None)
        channels = first.weights["kernel"].shape[2] if first and len(first.weights["kernel"].shape) == 4 else None
    if height is None and width is None and image_size:
        height = width = image_size
    if any(not is_whole(n) or n < 1 for n in (height, width, channels)):
        reader.unfit("input", "the image size is open", "[batch, size, size, channels]", list(shape),
                     "pass --image_size, or give keras.Input a fixed shape, for example (224, 224, 3)")  # fmt: skip
        return image_size or 224, 3
    size = max(height, width)
    if height != width:
        reader.unfit("input", "images of the chip are square", f"{width}x{width}", f"{height}x{width}",
                     f"use ({size}, {size}, {channels})")  # fmt: skip
    return size, channels


def _sizes(sublayers: Sequence[Sublayer], size: int) -> list[int]:
    """Return the sizes at which the sublayers work, and that of the result, for images of `size`."""
    sizes = []
    for sublayer in sublayers:
        size = size * 2 if sublayer.upsample else size
        sizes.append(size)
        if sublayer.pooled:
            size = (size + sublayer.rounds_up) // 2
    return [*sizes, size]


def _legal_sizes(sublayers: Sequence[Sublayer], size: int, *, fixed: bool) -> tuple[int, ...]:
    """Return the image sizes of the chip at which every sublayer has a size of the chip, the nearest to `size` first.

    `fixed`: the host takes a result of one size.
    """
    wanted = _sizes(sublayers, size)[-1]
    found = [
        legal
        for legal in spec.IMAGE_SIZES
        if all(n in spec.IMAGE_SIZES for n in _sizes(sublayers, legal)[:-1])
        and (not fixed or _sizes(sublayers, legal)[-1] == wanted)
    ]
    return tuple(sorted(found, key=lambda legal: (abs(legal - size), -legal)))


def _checked_size(reader: ChipReader, size: int, legal: Sequence[int], result: int) -> int:
    """Return the image size of the network: `size`, or the nearest one where the chip lacks it, which is said."""
    if size in legal or (size in spec.IMAGE_SIZES and not legal):  # else the chip's own rules say it
        return size
    if legal:
        fix = f"pass --image_size {legal[0]}, which gives the same {result}x{result} result"
        reader.unfit("input", "the chip has no such image size here", " or ".join(map(str, legal[:3])), size, fix)
    else:
        sizes = ", ".join(map(str, sorted(spec.IMAGE_SIZES)))
        reader.unfit("input", "no image size of the chip gives the same result", f"one that ends at {result}x{result}",
                     size, f"build the model for one of {sizes}, or with a global pooling")  # fmt: skip
    return legal[0] if legal else size


def _notes(sublayers: Sequence[Sublayer]) -> list[str]:
    notes = []
    padded = [
        f"{s.layer.name} {s.output_channels} -> {legal_channels(s.output_channels)}"
        for s in sublayers
        if legal_channels(s.output_channels) != s.output_channels
    ]
    if padded:
        notes.append(f"channels padded up with zero filters: {', '.join(padded)}")
    kernels = [s.layer.name for s in sublayers if pair(s.layer.config.get("kernel_size", 3)) == (1, 1)]
    if kernels:
        notes.append(f"1x1 filters stand in the centre of 3x3 ones: {', '.join(kernels)}")
    limits = sorted({s.limit for s in sublayers if s.limit})
    if limits:
        notes.append(
            f"activations end at {', '.join(f'{n:g}' for n in limits)} in the source; float training has no limit, "
            "calibration sets one"
        )
    return notes


def _host(layers: Sequence[Layer]) -> tuple[HostLayer, ...]:
    result = []
    for layer in layers:
        if layer.kind in DENSE:
            kernel = layer.weights.get("kernel")
            shape = kernel.shape[:1] if kernel else layer.input_shape[-1:]
            result.append(
                HostLayer(layer.name, whole(shape[0] if shape else None, 0), whole(layer.config.get("units"), 0))
            )
    return tuple(result)
