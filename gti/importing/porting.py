"""Float weights -> a float checkpoint of a net, whose input is five-bit BGR (docs/import.md).

A source network takes 8-bit pixels minus a mean, divided by a deviation. `8 * code` stands for the pixel of a code
0..31, so that with `a = 8 / std`

    W . ((8 * code - mean) / std) + b  ==  (a * W) . code + (b - sum(W * mean / std))

which is exact wherever the filter lies inside the image. Outside of it the source sees 0, the mean colour, and the
chip sees code 0, black: the network of the kit is the source network on an image with a black frame of one pixel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gti.chip.network.types import Network
from gti.errors import CheckpointError, UsageError
from gti.importing import folding
from gti.importing.graph import Layer, Weight, Weights
from gti.training import checkpoint

if TYPE_CHECKING:
    import keras

# Pixels that one code stands for: 256 pixel values, 32 codes (docs/numerics.md section 1).
PIXELS_PER_CODE = 8
# Mean of the ImageNet training images in R, G, B (Simonyan and Zisserman 2014, as published with VGG16).
IMAGENET_MEAN = (123.68, 116.779, 103.939)
ORDERS = ("rgb", "bgr", "codes")
# Names of the fully connected layers in Keras' VGG16, first to last.
KERAS_DENSE = ("fc1", "fc2", "predictions")
_CHIP_SCOPE = re.compile(r"conv\d+_\d+")


@dataclass(frozen=True)
class InputOf:
    """What a source network takes: (pixel - mean) / std, or codes as the chip; then what its first layers scale.

    `mean` and `std` are always R, G, B; `scales` are layers in front of the first convolution, in the source's order.
    """

    order: str  # "rgb", "bgr" or "codes"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scales: tuple[Layer, ...] = ()


def fold_input(filters: np.ndarray, biases: np.ndarray, source: InputOf) -> tuple[np.ndarray, np.ndarray]:
    """Return (filters [3, 3, in, out], biases [out]), float32, of the first layer for codes 0..31 in B, G, R.

    Exact up to rounding wherever the 3x3 window lies inside the image; see the module's first lines for the frame.
    Raises UsageError for a first layer that takes no image, or a grey one with a mean for each colour.
    """
    if source.order == "codes" and not source.scales:
        return filters, biases
    channels = filters.shape[2]
    mean, std = np.zeros(channels), np.ones(channels)
    if source.order != "codes":
        same = len(set(source.mean)) == len(set(source.std)) == 1
        if channels != 3 and not (channels == 1 and same):
            raise UsageError(
                "--input",
                "is about colour images",
                expected="a first layer with 3 input channels, 1 with the same mean and std three times, or "
                "--input codes",
                received=f"{channels} channels",
            )
        step = 1 if source.order == "rgb" else -1
        mean, std = np.array(source.mean)[::step][:channels], np.array(source.std)[::step][:channels]
    factor, offset = folding.scales(source.scales, channels)
    wide = filters.astype(np.float64)
    shifted = biases.astype(np.float64) + np.einsum("hwio,i->o", wide, offset - factor * mean / std)
    wide = wide * (factor / std * (1 if source.order == "codes" else PIXELS_PER_CODE))[:, None]
    if source.order == "rgb":
        wide = wide[:, :, ::-1]
    return wide.astype(np.float32), shifted.astype(np.float32)


def with_background(weights: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the last layer [in, classes], [classes] with a class 0 in front that is never the most probable.

    Its logit is the mean of all others. TFRecords of the user guide count classes from 1 (section 7.1.1).
    """
    weights = np.concatenate([weights.mean(axis=1, keepdims=True, dtype=np.float64), weights], axis=1)
    biases = np.concatenate([biases.mean(keepdims=True, dtype=np.float64), biases])
    return weights.astype(np.float32), biases.astype(np.float32)


def host_layer_names(model: keras.Model) -> list[str]:
    """Return the names of the fully connected layers of a model, first to last."""
    return [layer.name for layer in model.layers if any(v.path.endswith("/weights") for v in layer.weights)]


def number_of_classes(weights: Weights) -> int | None:
    """Return the number of outputs of the last fully connected layer of a source, None where it has none."""
    dense = [weight.shape for name, weight in weights.items() if _is_dense(name)]
    return dense[-1][-1] if dense else None


def port(
    weights: Weights,
    model: keras.Model,
    *,
    source: InputOf,
    name: str,
    background: bool = False,
    new_layers: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Return every variable of the float `model` by name, from the source's `weights`; float32.

    `background` adds a class 0 to the last layer. The host layers `new_layers` keep the model's values. `name` is the
    file, for messages. Raises CheckpointError that lists every variable which is missing, of another shape, or
    not used, UsageError for layers that cannot be new.
    """
    from gti.model import base

    variables = base.named_variables(model)
    network: Network = model.network
    hosts = host_layer_names(model)
    unknown = [layer for layer in new_layers if layer not in hosts]
    if unknown:
        raise UsageError("--new_layers", "names no host layer", expected=", ".join(hosts), received=", ".join(unknown))
    head = hosts[-1]
    if background and head in new_layers:
        raise UsageError("--background", "needs the classes of the source", fix=f"leave {head} out of the new")
    found = _renamed(weights, network, hosts, model.net)
    kept = {n: v for n, v in variables.items() if n.split("/")[1] in new_layers}
    shapes = {n: tuple(v.shape) for n, v in variables.items() if n not in kept}
    if background:
        for kind in ("weights", "biases"):
            full = f"{model.net}/{head}/{kind}"
            shapes[full] = (*shapes[full][:-1], shapes[full][-1] - 1)
    found = {n: _flattened(weight, shapes.get(n)) for n, weight in found.items()}
    _refuse_mismatches({n: w for n, w in found.items() if n not in kept}, shapes, name, head)

    arrays = {n: np.asarray(v, np.float32) for n, v in kept.items()}
    arrays |= {n: np.asarray(found[n].read(), np.float32).reshape(shape) for n, shape in shapes.items()}
    bad = [n for n, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise CheckpointError(name, f"holds values that are no numbers in {', '.join(bad[:8])}")
    first = f"{model.net}/{network.convolutions[0].name}"
    arrays[f"{first}/filters"], arrays[f"{first}/biases"] = fold_input(
        arrays[f"{first}/filters"], arrays[f"{first}/biases"], source
    )
    if background:
        last = f"{model.net}/{head}"
        arrays[f"{last}/weights"], arrays[f"{last}/biases"] = with_background(
            arrays[f"{last}/weights"], arrays[f"{last}/biases"]
        )
    return {n: arrays[n] for n in variables}


def _is_dense(name: str) -> bool:
    scope, _, kind = name.rpartition("/")
    return kind == "filters" and not _CHIP_SCOPE.fullmatch(scope) and not scope.startswith("conv#")


def _renamed(weights: Weights, network: Network, hosts: Sequence[str], net: str) -> Weights:
    # Names of the source -> names of the variables; what fits nothing keeps its own, for the message.
    layers = {f"conv#{c.index}": c.name for c in network.convolutions}
    layers |= {f"dense#{number}": host for number, host in enumerate(hosts)}
    if len(hosts) == len(KERAS_DENSE):
        layers |= {theirs: ours for theirs, ours in zip(KERAS_DENSE, hosts, strict=True) if theirs not in hosts}
    else:  # another number of layers: the last one is the last one
        layers[KERAS_DENSE[-1]] = hosts[-1]
    result: Weights = {}
    for name, weight in weights.items():
        scope, _, kind = name.rpartition("/")
        if checkpoint.TF1_EXTRAS.search(name) or kind == "relu_cap":
            continue
        layer = layers.get(scope, scope)
        if layer in hosts and kind == "filters":
            kind = "weights"
        result[f"{net}/{layer}/{kind}" if layer else name] = weight
    return result


def _flattened(weight: Weight, wanted: tuple[int, ...] | None) -> Weight:
    """Return fully connected layers that a source wrote as convolutions as [in, out]; the values keep their order."""
    if wanted is None or len(wanted) != 2 or len(weight.shape) != 4:
        return weight
    if (math.prod(weight.shape[:-1]), weight.shape[-1]) != wanted:
        return weight
    return replace(weight, shape=wanted)


def _refuse_mismatches(
    found: Mapping[str, Weight], shapes: Mapping[str, tuple[int, ...]], name: str, head: str
) -> None:
    problems = []
    for full, shape in shapes.items():
        if full not in found:
            problems.append(f"{full} is missing")
        elif found[full].shape != shape:
            problems.append(f"{full} has the shape {list(found[full].shape)}, the net's is {list(shape)}")
    problems += [f"{full} is no variable of the net" for full in found if full not in shapes]
    if problems:
        differ = f"{len(problems)} variables differ" if len(problems) > 1 else "1 variable differs"
        raise CheckpointError(
            f"{name}: does not fit the net; {differ}: {'; '.join(problems)}. Fix: pass weights "
            f"of this net; for other classes --new_layers {head}, for a class 0 in front --background."
        )
