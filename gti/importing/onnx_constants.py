"""Constants of an ONNX file: its arrays, the attributes of nodes, and what exporters compute from constants alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gti.errors import FormatError
from gti.importing.graph import Weight, in_memory

MAX_RANK = 8
# Of arrays that are computed with while reading: shapes, paddings, scales of channels.
MAX_FOLDED = 65536


class Node:
    """A node with its attributes as Python values."""

    def __init__(self, proto: Any) -> None:
        self.kind = str(proto.op_type)
        self.domain = str(proto.domain)
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self.name = str(proto.name or (proto.output[0] if proto.output else proto.op_type))
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute: numbers, text, lists of them, or a tensor as the file has it."""
        import onnx

        if name not in self._attributes:
            return default
        value = onnx.helper.get_attribute_value(self._attributes[name])
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def array_of(tensor: Any, name: str) -> Weight:
    """Return a tensor of the file. Raises FormatError where it lies in another file or is not what it claims."""
    import onnx

    where = f"{name}, array {tensor.name}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise FormatError(
            where,
            "lies in another file",
            expected="arrays inside the file",
            fix="save it with onnx.save(model, FILE, save_as_external_data=False)",
        )
    shape = tuple(tensor.dims)
    if len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise FormatError(where, "has an impossible shape", received=list(shape)[: MAX_RANK + 1])

    def read() -> np.ndarray:
        try:
            array = onnx.numpy_helper.to_array(tensor)
            array = array if array.dtype.kind in "biu" else array.astype(np.float32, copy=False)
        except Exception as problem:  # shapes that do not fit the data, unknown types
            reason = str(problem).split("\n")[0][:120]
            raise FormatError(where, f"cannot be read ({reason})", fix="export the model again") from None
        return array.reshape(shape)

    return Weight(shape, read)


def constant(node: Node) -> Weight:
    """Return the value of a Constant node. Raises ValueError for texts and the like, FormatError."""
    tensor = node.get("value")
    if tensor is not None:
        return array_of(tensor, f"node {node.name}")
    for name in ("value_int", "value_ints", "value_float", "value_floats"):
        if node.get(name) is not None:
            return in_memory(np.array(node.get(name), np.int64 if "int" in name else np.float32))
    raise ValueError(f"node {node.name}: a constant of another kind than numbers")


def _axes(node: Node, more: tuple[np.ndarray, ...]) -> tuple[int, ...]:
    axes = node.get("axes") if not more else more[0]
    return tuple(int(n) for n in np.atleast_1d(axes)) if axes is not None else ()


def _slice(node: Node, data: np.ndarray, *more: np.ndarray) -> np.ndarray:
    if more:
        starts, ends = more[0], more[1]
        axes = more[2] if len(more) > 2 else np.arange(len(starts))
        steps = more[3] if len(more) > 3 else np.ones(len(starts), np.int64)
    else:
        starts, ends = np.array(node.get("starts")), np.array(node.get("ends"))
        axes, steps = np.array(node.get("axes", range(len(starts)))), np.ones(len(starts), np.int64)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index: list[slice] = [slice(None)] * data.ndim
        index[int(axis)] = slice(int(start), int(end), int(step))
        data = data[tuple(index)]
    return data


def _unsqueezed(node: Node, data: np.ndarray, *more: np.ndarray) -> np.ndarray:
    return np.expand_dims(data, _axes(node, more))


# What exporters compute shapes and scales with.
_FOLDED: dict[str, Callable[..., Any]] = {
    "Gather": lambda node, data, index: np.take(data, index.astype(np.int64), axis=node.get("axis", 0)),
    "Concat": lambda node, *parts: np.concatenate(parts, axis=node.get("axis", 0)),
    "Slice": _slice,
    "Squeeze": lambda node, data, *more: np.squeeze(data, _axes(node, more) or None),
    "Unsqueeze": _unsqueezed,
    "Cast": lambda node, data: data.astype({6: np.int32, 7: np.int64, 1: np.float32, 11: np.float32}[node.get("to")]),
    "Reshape": lambda node, data, shape: data.reshape([int(n) for n in shape]),
    "ReduceProd": lambda node, data, *more: np.prod(data, keepdims=bool(node.get("keepdims", 1))),
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a // b if a.dtype.kind in "iu" else a / b,
    "Sqrt": lambda node, a: np.sqrt(a),
    "Neg": lambda node, a: -a,
    "Reciprocal": lambda node, a: 1 / a,
}


def folded(node: Node, weights: Sequence[Weight]) -> np.ndarray | None:
    """Return what a node makes of constants, None where it is no computation of shapes or they are large."""
    fold = _FOLDED.get(node.kind)
    if fold is None or any(math.prod(weight.shape) > MAX_FOLDED for weight in weights):
        return None
    with np.errstate(all="ignore"):
        result = np.asarray(fold(node, *[weight.read() for weight in weights]))
    if result.size > MAX_FOLDED:
        raise ValueError(f"node {node.name}: a computed array of {result.size} numbers")
    return result
