"""The walk over the nodes of an ONNX file: what flows between them, which layers they become, what is constant.

A value knows its layout, so transpositions are no layers, and a flattening knows the order of what it makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gti.errors import FormatError
from gti.importing import onnx_constants
from gti.importing.graph import Layer, Weight, in_memory
from gti.importing.onnx_constants import MAX_FOLDED, Node

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True)
class Value:
    """What flows between nodes: the layer that makes it, its shape without the batch, and how it lies."""

    source: str
    shape: Shape  # (channels, height, width) whatever the layout, or (features,); None: not known
    layout: str  # "chw", "hwc" or "flat"


@dataclass
class Walk:
    """The walk over the nodes: layers so far, constants and values by name."""

    constants: dict[str, Weight]
    values: dict[str, Value] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def value(self, node: Node, index: int = 0) -> Value:
        """Return an input that is no constant. Raises FormatError where there is none."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self.values:
            raise FormatError(f"node {node.name} ({node.kind})", f"lacks its input {index + 1}")
        return self.values[name]

    def array(self, node: Node, index: int) -> Weight | None:
        """Return a constant input, None where it is left out or no constant."""
        return self.constants.get(node.inputs[index]) if index < len(node.inputs) else None

    def weight(self, node: Node, index: int, rank: int) -> Weight:
        """Return a constant input of `rank` dimensions. Raises FormatError for another one."""
        found = self.array(node, index)
        if found is None or len(found.shape) != rank:
            raise FormatError(
                f"node {node.name} ({node.kind})",
                f"its input {index + 1} is no array of the file",
                expected=f"an initializer of {rank} dimensions",
                received="a computed value" if found is None else list(found.shape),
                fix="export a float model with its weights as initializers",
            )
        return found

    def small(self, node: Node, index: int) -> np.ndarray | None:
        """Return the value of a small constant input, None where there is none."""
        found = self.array(node, index)
        return found.read() if found is not None and math.prod(found.shape) <= MAX_FOLDED else None

    def numbers(self, node: Node, name: str, index: int) -> list[int] | None:
        """Return whole numbers that are an attribute in older operators and an input in newer ones."""
        listed = node.get(name)
        if listed is None:
            array = self.small(node, index)
            listed = None if array is None else array.reshape(-1)
        return None if listed is None else [int(n) for n in listed]

    def add(
        self,
        node: Node,
        kind: str,
        config: Mapping[str, Any],
        shape: Shape,
        layout: str = "",
        *,
        weights: Mapping[str, Weight | None] | None = None,
    ) -> None:
        """Append the layer that a node is; its value has `shape`, in the layout of its input."""
        before = self.value(node)
        name = self._named(node)
        found = {key: weight for key, weight in (weights or {}).items() if weight is not None}
        self.layers.append(Layer(kind, name, config, (before.source,), found))
        self.values[node.outputs[0]] = Value(name, shape, layout or before.layout)

    def _named(self, node: Node) -> str:
        name = f"{node.name}#{len(self.layers)}" if node.name in self.names else node.name
        self.names.add(name)
        return name

    def same(self, node: Node, **changes: Any) -> None:
        """Let the node's value be its input, but for `changes`."""
        self.values[node.outputs[0]] = replace(self.value(node), **changes)

    def unknown(self, node: Node, kind: str = "") -> None:
        """Append a layer that nobody knows; what flows on has an unknown shape unless the input's is likely."""
        sources = [self.values[name] for name in node.inputs if name in self.values]
        layer = self._named(node)
        self.layers.append(Layer(kind or node.kind, layer, {}, tuple(v.source for v in sources)))
        first = sources[0] if sources else Value("", None, "chw")
        for name in node.outputs:
            self.values[name] = replace(first, source=layer)

    def constant(self, node: Node) -> bool:
        """Compute a node whose inputs are all constants, or that asks for a shape; return whether it was one."""
        if node.kind == "Constant":
            self.constants[node.outputs[0]] = onnx_constants.constant(node)
            return True
        if node.kind == "Shape" and node.inputs and node.inputs[0] in self.values:
            shape = _full_shape(self.values[node.inputs[0]])
            if shape is None:
                return False
            self.constants[node.outputs[0]] = in_memory(np.array(shape, np.int64))
            return True
        inputs = [self.constants.get(name) for name in node.inputs if name]
        if not inputs or any(weight is None for weight in inputs):
            return False
        weights = [weight for weight in inputs if weight is not None]
        if node.kind == "Identity":
            self.constants[node.outputs[0]] = weights[0]
            return True
        if node.kind == "Transpose":
            order = tuple(node.get("perm") or range(len(weights[0].shape))[::-1])
            if sorted(order) != list(range(len(weights[0].shape))):
                raise ValueError(f"node {node.name}: no permutation")
            self.constants[node.outputs[0]] = permuted(weights[0], order)
            return True
        result = onnx_constants.folded(node, weights)
        if result is not None:
            self.constants[node.outputs[0]] = in_memory(result)
        return result is not None


def permuted(weight: Weight, order: tuple[int, ...]) -> Weight:
    """Return a weight with its axes in another order."""
    return Weight(tuple(weight.shape[i] for i in order), lambda: weight.read().transpose(order))


def _full_shape(value: Value) -> list[int] | None:
    if value.shape is None or None in value.shape:
        return None
    known = [n for n in value.shape if n is not None]
    if value.layout == "hwc":
        known = [*known[1:], known[0]]
    return [1, *known]
