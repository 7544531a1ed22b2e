"""The one form that every model file becomes: layers in Keras' words, with their arrays, and which one feeds which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gti.files import is_number, is_whole


@dataclass(frozen=True)
class Weight:
    """One array of a file, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Weights = dict[str, Weight]


@dataclass(frozen=True)
class Layer:
    """One layer with its options as Keras writes them.

    `weights` by Keras' names: kernel [height, width, in, out] or [in, out], bias, gamma, beta, moving_mean,
    moving_variance, and for `Scale` (a multiplication and an addition per channel) scale and offset.
    """

    kind: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] | None = None  # None: the layer before
    weights: Mapping[str, Weight] = field(default_factory=dict)
    input_shape: Sequence[Any] = ()  # as it stands in the file, where it does


@dataclass(frozen=True)
class Graph:
    """A model: its layers in network order without the inputs, which are named like the sources of `outputs`."""

    name: str
    inputs: tuple[str, ...]
    input_shape: Any  # [batch, height, width, channels], None where it is open; [] where the file does not say
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...] = ()  # empty: the last layer
    labels: tuple[str, ...] = ()  # names of the classes, where the file has them


def in_memory(array: np.ndarray) -> Weight:
    """Return `array` as a Weight."""
    return Weight(array.shape, lambda: array)


def pair(value: Any) -> tuple[int, int]:
    """Return an option that Keras takes as one number or as two, (0, 0) for anything else."""
    values = value if isinstance(value, (list, tuple)) else (value, value)
    return (whole(values[0], 0), whole(values[-1], 0)) if values else (0, 0)


def whole(value: Any, default: int) -> int:
    """Return `value` where it is a whole number, else `default`."""
    return value if is_whole(value) else default


def real(value: Any, default: float) -> float:
    """Return `value` where it is a number, else `default`."""
    return float(value) if is_number(value) else default


def name_of(value: Any) -> str:
    """Return the name of an activation, which Keras writes as a word or as a serialized function or layer."""
    if isinstance(value, Mapping):
        # A layer's own name says nothing: LeakyReLU(name="relu").
        value = value["config"] if isinstance(value.get("config"), str) else value.get("class_name")
    return str(value if value is not None else "linear")
