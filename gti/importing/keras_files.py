"""Keras files -> Graph: `.keras` (a zip of config.json and HDF5 weights) and `.h5` (configuration as an attribute).

The configuration names the layers, so a file from anywhere is read without running it, and without TensorFlow. Models
inside the model (a backbone under a new head) are laid out flat. Arrays are found by the layer's place in the model.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gti.errors import FormatError
from gti.files import MAX_JSON_BYTES, parse_json
from gti.importing import pretrained
from gti.importing.graph import Graph, Layer, Weight, Weights

CONFIG_NAME = "config.json"
MODELS = frozenset({"Functional", "Sequential", "Model"})
MAX_DEPTH = 8
# Variables in the order in which Keras 3 numbers them.
_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "Normalization": ("mean", "variance"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "ChipConv2D": ("kernel", "bias"),
    "HostDense": ("kernel", "bias"),
}
_OLD_NAMES = {"filters": "kernel", "weights": "kernel", "biases": "bias"}  # of gti.layers
Arrays = Mapping[tuple[str, ...], Weight]  # by place in the file


def load(path: str | os.PathLike[str], *, arrays: bool = True) -> Graph:
    """Return the model of a `.keras` or `.h5` file. Raises FormatError, also for `.h5` files of weights alone."""
    name = os.fspath(path)
    if name.lower().endswith(".keras"):
        config = _config_of_archive(name)
        return graph(config, name, (lambda: _numbered(pretrained.hdf5_of_archive(name))) if arrays else dict)
    text = pretrained.hdf5_config(name)
    if text is None:
        raise FormatError(
            name,
            "holds weights without a model",
            fix='save the whole model with model.save("NAME.keras"), or pass the --net whose weights they are',
        )
    config = parse_json(text, f"{name}, model_config")
    return graph(config, name, (lambda: _named(pretrained.hdf5(name))) if arrays else dict)


def _config_of_archive(name: str) -> Any:
    try:
        if not os.path.isfile(name):
            raise FormatError(name, "no such file", fix="check the path")
        with zipfile.ZipFile(name) as archive:
            if archive.getinfo(CONFIG_NAME).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("packed in an unusual way")  # the other methods unpack without a bound
            with archive.open(CONFIG_NAME) as file:
                data = file.read(MAX_JSON_BYTES + 1)
    except KeyError:
        raise FormatError(name, "is no Keras model", expected=f"a zip with {CONFIG_NAME} inside") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as problem:
        fix = 'save the model with model.save("NAME.keras")'
        raise FormatError(name, f"is no .keras file ({problem})", expected="a zip archive", fix=fix) from None
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(name, "its configuration is too large", expected=f"at most {MAX_JSON_BYTES} bytes")
    return parse_json(data, f"{name}/{CONFIG_NAME}")


def graph(config: Any, source: str, arrays: Callable[[], Arrays] = dict) -> Graph:
    """Return the layers of a Functional or Sequential configuration; `arrays` reads the file's weights when asked.

    Raises FormatError for any other value, and for arrays that are not there.
    """
    try:
        kind, body = config["class_name"], config["config"]
        flat, ends = _flat(body, kind == "Sequential")
        name = str(body.get("name", "model"))
        inputs = [place.layer for place in flat if place.layer.kind == "InputLayer"]
        shape = next((s for layer in inputs if (s := _shape(layer.config))), None) or body.get("build_input_shape")
        if not shape and flat:
            shape = flat[0].layer.input_shape or _shape(flat[0].layer.config)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError):
        raise FormatError(
            source,
            "its configuration is not one of Keras 3",
            expected="a Functional or Sequential model with layers",
            fix='save the model with model.save("NAME.keras")',
        ) from None
    places = [place for place in flat if place.layer.kind != "InputLayer"]
    found = arrays() if any(place.layer.kind in _VARIABLES for place in places) else {}
    layers = tuple(replace(place.layer, weights=_weights(place, found)) for place in places)
    outputs = () if kind == "Sequential" else ends
    return Graph(name, tuple(layer.name for layer in inputs), shape or [], layers, outputs)


@dataclass(frozen=True)
class _Place:
    """A layer and where its variables lie: `layers/conv2d_1` in new files, (outermost name, own name) in old ones."""

    layer: Layer
    numbered: str
    named: tuple[str, str]


def _flat(
    body: Mapping[str, Any], sequential: bool, folder: str = "", prefix: str = "", feed: str = ""
) -> tuple[list[_Place], tuple[str, ...]]:
    """Return all layers of a model, those of models inside it in their place, and the names of its results.

    `feed` is the layer that a model inside takes its input from, "" for the outermost.
    """
    if folder.count("/") > 2 * MAX_DEPTH:
        raise ValueError("models inside models without end")
    found: list[_Place] = []
    called: dict[str, str] = {}  # own names -> names in the result
    counts: Counter[str] = Counter()
    before = feed
    for entry in body["layers"]:
        kind, config = str(entry["class_name"]), entry["config"]
        if not isinstance(config, Mapping):
            raise TypeError("a layer's options are an object")
        own = str(entry.get("name") or config.get("name"))
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", re.sub(r"\W+", "", kind)).lower()
        number = f"_{counts[snake]}" if counts[snake] else ""
        counts[snake] += 1
        where = f"{folder}layers/{snake}{number}"
        sources = (before or "input",) if sequential else tuple(called.get(s, s) for s in _sources(entry))
        if kind == "InputLayer" and feed:
            called[own] = before = feed
            continue
        if "layers" in config and len(sources) == 1:
            inside, results = _flat(
                config, kind == "Sequential", where + "/", f"{prefix}{own}/", before if sequential else sources[0]
            )
            found += inside
            called[own] = before = results[0]
            continue
        called[own] = before = prefix + own
        shape = (entry.get("build_config") or {}).get("input_shape") or []
        shape = shape if isinstance(shape, Sequence) else []
        layer = Layer(kind, prefix + own, config, () if kind == "InputLayer" else sources, {}, shape)
        found.append(_Place(layer, where, ((prefix + own).split("/")[0], own)))
    return found, (before,) if sequential else tuple(called.get(n, n) for n in _words(body.get("output_layers")))


def _shape(config: Mapping[str, Any]) -> Any:
    return config.get("batch_shape") or config.get("batch_input_shape")


def _sources(entry: Mapping[str, Any]) -> tuple[str, ...]:
    # Every use of the layer is a node; every tensor in a node names the layer that it comes from.
    found: list[str] = []
    pending: list[Any] = list(entry.get("inbound_nodes", []))
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            if value.get("class_name") == "__keras_tensor__":
                found.append(str(value["config"]["keras_history"][0]))
            else:
                pending.extend(value.values())
        elif isinstance(value, (list, tuple)):
            if len(value) in (3, 4) and isinstance(value[0], str) and isinstance(value[1], int):  # Keras 2
                found.append(value[0])
            else:
                pending.extend(value)
    return tuple(found)


def _words(value: Any) -> tuple[str, ...]:
    # Outputs are [name, node, tensor], one of them, a list or an object of them.
    found: list[str] = []
    pending: list[Any] = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend(reversed(value))
    return tuple(found)


def _weights(place: _Place, arrays: Arrays) -> dict[str, Weight]:
    """Return the variables of a layer by Keras' names, from either layout."""
    layer = place.layer
    variables: dict[str, Weight] = {}
    names = _VARIABLES.get(layer.kind, ())
    if layer.kind == "BatchNormalization":
        names = tuple(n for n, o in zip(names, ("scale", "center", "", ""), strict=True) if layer.config.get(o, True))
    for number, name in enumerate(names):
        for key in ((place.numbered, str(number)), (*place.named, name)):
            if key in arrays:
                variables[name] = arrays[key]
    for number, name in enumerate(_VARIABLES["BatchNormalization"]):  # of a ChipConv2D
        for key in ((f"{place.numbered}/batch_normalization", str(number)), (*place.named, f"norm/{name}")):
            if layer.kind == "ChipConv2D" and key in arrays:
                variables[name] = arrays[key]
    return variables


def _numbered(weights: Weights) -> Arrays:
    """Return the arrays of a Keras 3 weights file by (place, number)."""
    result: dict[tuple[str, ...], Weight] = {}
    for path, weight in weights.items():
        place, _, number = path.replace("_layer_checkpoint_dependencies", "layers").rpartition("/vars/")
        result[place, number] = weight
    return result


def _named(weights: Weights) -> Arrays:
    """Return the arrays of an `.h5` file by (outermost layer, own layer, variable)."""
    result: dict[tuple[str, ...], Weight] = {}
    for path, weight in weights.items():
        parts = path.removeprefix("model_weights/").removesuffix(":0").split("/")
        if len(parts) < 2:
            continue
        name = _OLD_NAMES.get(parts[-1], parts[-1])
        result[parts[0], parts[-2], name] = weight
        if parts[-2] == "batch_normalization" and len(parts) > 2:
            result[parts[0], parts[-3], f"norm/{name}"] = weight
    return result
