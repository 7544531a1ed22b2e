"""Layers of a Keras configuration (the `config.json` of a .keras file): kinds, options, and which one feeds which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gti.errors import FormatError, sentence


@dataclass(frozen=True)
class Layer:
    """One layer with its options as Keras writes them."""

    kind: str
    name: str
    config: Mapping[str, Any]
    input_shape: Sequence[Any]
    sources: tuple[str, ...] | None  # None in a Sequential: the layer before

    @property
    def is_model(self) -> bool:
        """Whether it is a model of its own."""
        return "layers" in self.config


@dataclass(frozen=True)
class Graph:
    """A model: its layers in Keras' order without the inputs, which are named like the sources of `outputs`."""

    name: str
    inputs: tuple[str, ...]
    input_shape: Any  # as it stands in the file, [] where it does not say
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]  # empty in a Sequential: its last layer


def graph(config: Any, source: str) -> Graph:
    """Return the layers of a Functional or Sequential configuration. Raises FormatError for any other value."""
    try:
        kind, body = config["class_name"], config["config"]
        layers = [_layer(entry, kind == "Sequential") for entry in body["layers"]]
        name = str(body.get("name", "model"))
        outputs = () if kind == "Sequential" else _words(body.get("output_layers"))
        inputs = [layer for layer in layers if layer.kind == "InputLayer"]
        shape = inputs[0].config.get("batch_shape") if inputs else None
        shape = shape or body.get("build_input_shape") or (layers[0].input_shape if layers else [])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise FormatError(
            sentence(
                source,
                "its configuration is not one of Keras 3",
                expected="a Functional or Sequential model with layers",
                fix='build the model from gti.layers and save it with model.save("NAME.keras")',
            )
        ) from None
    rest = tuple(layer for layer in layers if layer.kind != "InputLayer")
    return Graph(name, tuple(layer.name for layer in inputs), shape, rest, outputs)


def _layer(entry: Mapping[str, Any], sequential: bool) -> Layer:
    config = entry["config"]
    if not isinstance(config, Mapping):
        raise TypeError("a layer's options are an object")
    name = str(entry.get("name") or config.get("name"))
    shape = (entry.get("build_config") or {}).get("input_shape") or []
    if not isinstance(shape, Sequence):
        shape = []
    return Layer(str(entry["class_name"]), name, config, shape, None if sequential else _sources(entry))


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


def pair(value: Any) -> tuple[int, int]:
    """Return an option that Keras takes as one number or as two, (0, 0) for anything else."""
    values = value if isinstance(value, (list, tuple)) else (value, value)
    return (whole(values[0], 0), whole(values[-1], 0)) if values else (0, 0)


def whole(value: Any, default: int) -> int:
    """Return `value` where it is a whole number, else `default`."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def name_of(value: Any) -> str:
    """Return the name of an activation, which Keras writes as a word or as a serialized function or layer."""
    if isinstance(value, Mapping):
        # A layer's own name says nothing: LeakyReLU(name="relu").
        value = value["config"] if isinstance(value.get("config"), str) else value.get("class_name")
    return str(value if value is not None else "linear")
