"""ONNX files -> Graph: reading the file with care, its constants, and the walk over its nodes (see `onnx_walk`).

A file is looked through before `onnx` unpacks it: small messages unpack to a hundred times their size. Arrays are read
when they are wanted. Batches count as one image, which makes every Shape a constant.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gti import files
from gti.errors import FormatError, UsageError, install, sentence
from gti.importing.graph import Graph, Layer, Weight
from gti.importing.onnx_constants import MAX_RANK, Node, array_of
from gti.importing.onnx_nodes import HANDLERS
from gti.importing.onnx_walk import Value, Walk

# protobuf's own limit.
MAX_FILE_BYTES = 2**31 - 1
# Of everything but the arrays; VGG16 has 20 KB, a network of 10,000 nodes 2 MB. In memory it takes 50 times as much.
MAX_STRUCTURE_BYTES = 8 * 1024**2
OLDEST_OPSET = 7
MAX_NODES = 10_000
_LABEL_KEYS = ("names", "labels", "classes", "class_names")

# Messages of ONNX that hold arrays: field number -> message; True: an array's bytes, which unpack to their own size.
_TENSOR: Mapping[int, Any] = {4: True, 9: True, 10: True}
_ATTRIBUTE: Mapping[int, Any] = {5: _TENSOR}
_NODE: Mapping[int, Any] = {5: _ATTRIBUTE}
_MODEL: Mapping[int, Any] = {7: {1: _NODE, 5: _TENSOR}}


def load(path: str | os.PathLike[str], *, arrays: bool = True) -> Graph:
    """Return the model of an `.onnx` file. Raises FormatError; UsageError where `onnx` is not installed."""
    name = os.fspath(path)
    data = files.read_bytes(path, limit=MAX_FILE_BYTES)
    try:
        structure = _structure_bytes(memoryview(data), _MODEL)
    except (IndexError, ValueError):
        raise _damaged(name, "its messages do not fit into each other") from None
    if structure > MAX_STRUCTURE_BYTES:
        raise FormatError(
            name,
            "describes too much besides arrays",
            expected=f"at most {MAX_STRUCTURE_BYTES} bytes",
            received=f"{structure} bytes",
            fix="export the network again, with its weights as initializers",
        )
    try:
        import onnx
    except ImportError:
        raise UsageError(
            name, "the package onnx is not installed", fix=f"pip install onnx, or {install('import')}"
        ) from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as problem:  # protobuf has several ways to say it
        raise _damaged(name, str(problem).split("\n")[0][:120]) from None
    del data
    _check_opset(model, name, onnx.defs.onnx_opset_version())
    if not 0 < len(model.graph.node) <= MAX_NODES:
        raise FormatError(name, "holds no network", expected=f"1 to {MAX_NODES} nodes", received=len(model.graph.node))
    try:
        return _graph(model, name)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as problem:
        raise _damaged(name, f"{type(problem).__name__}: {problem}"[:120]) from None


def _damaged(name: str, reason: str) -> FormatError:
    return FormatError(sentence(name, f"is not an ONNX file ({reason})", fix="copy or export the file again"))


def _structure_bytes(data: memoryview, message: Mapping[int, Any]) -> int:
    """Return how many bytes of a protobuf message are no arrays. Raises IndexError, ValueError where it breaks off."""
    total, at, end = 0, 0, len(data)
    while at < end:
        begin = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(data, at)
            if size > end - at:
                raise ValueError("a field ends behind the message")
            inside = message.get(tag >> 3)
            total += at - begin
            if inside is not True:
                total += size if inside is None else _structure_bytes(data[at : at + size], inside)
            at += size
        elif kind in (0, 1, 5):
            at = _varint(data, at)[1] if kind == 0 else at + (8 if kind == 1 else 4)
            total += at - begin
        else:
            raise ValueError("a field of an unknown kind")
        if total > MAX_STRUCTURE_BYTES:
            break
    return total


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without end")


def _check_opset(model: Any, name: str, newest: int) -> None:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= version <= newest:
        raise FormatError(
            name,
            "is written for operators that are not known here",
            expected=f"opset {OLDEST_OPSET} to {newest}",
            received=f"opset {version}",
            fix="export it with opset_version=17",
        )


def _graph(model: Any, name: str) -> Graph:
    graph = model.graph
    walk = Walk(dict(_initializers(graph, name)))
    inputs = [value for value in graph.input if value.name not in walk.constants]
    for value in inputs:
        walk.values[value.name] = _input(value, name)
    for proto in _needed(graph, name):
        node = Node(proto)
        if node.domain not in ("", "ai.onnx"):
            walk.unknown(node, f"{node.domain}.{node.kind}")
        elif not walk.constant(node):
            HANDLERS.get(node.kind, Walk.unknown)(walk, node)
    outputs = [walk.values[value.name].source for value in graph.output if value.name in walk.values]
    if not outputs or not inputs:
        raise FormatError(name, "its result does not depend on an image", fix="export the model again")
    image = walk.values[inputs[0].name]
    shape = image.shape if image.shape is not None and len(image.shape) == 3 else (None, None, None)
    layers = tuple(walk.layers)
    title = graph.name or "model"
    names = tuple(value.name for value in inputs)
    return Graph(title, names, [None, *shape[1:], shape[0]], layers, tuple(outputs), _labels(model, walk.layers))


def _input(value: Any, name: str) -> Value:
    dims = [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim
    ]
    if len(dims) > MAX_RANK:
        raise FormatError(f"{name}, input {value.name}", "has too many dimensions", received=len(dims))
    if len(dims) != 4:
        return Value(value.name, None, "flat")
    # Keras' exports take [N,H,W,C], all others [N,C,H,W].
    last = dims[3] is not None and dims[3] <= 4 and (dims[1] is None or dims[1] > 4)
    channels, height, width = (dims[3], dims[1], dims[2]) if last else (dims[1], dims[2], dims[3])
    return Value(value.name, (channels, height, width), "hwc" if last else "chw")


def _initializers(graph: Any, name: str) -> Iterator[tuple[str, Weight]]:
    if graph.sparse_initializer:
        raise FormatError(name, "holds sparse arrays", fix="export it with dense ones")
    for tensor in graph.initializer:
        yield tensor.name, array_of(tensor, name)


def _needed(graph: Any, name: str) -> list[Any]:
    """Return the nodes that the outputs depend on, in order. Raises FormatError where one comes before its input."""
    makers = {output: i for i, node in enumerate(graph.node) for output in node.output if output}
    wanted = {value.name for value in graph.output}
    needed = []
    for i in range(len(graph.node) - 1, -1, -1):
        node = graph.node[i]
        if not wanted.isdisjoint(node.output):
            needed.append(node)
            wanted.update(node.input)
            late = next((n for n in node.input if n and makers.get(n, -1) >= i), None)
            if late is not None:
                raise FormatError(name, "its nodes are out of order", received=f"{node.name or node.op_type} "
                                           f"takes {late} before it is made", fix="export it again")  # fmt: skip
    return needed[::-1]


def _labels(model: Any, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return the names of the classes that the exporter left in the metadata, () where there are none."""
    text = next((p.value for p in model.metadata_props if p.key.lower() in _LABEL_KEYS), "")[: files.MAX_JSON_BYTES]
    value: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if value is None and text:
        value = [part.strip() for part in text.replace("\n", ",").split(",")]
    if isinstance(value, dict) and all(str(key).isdigit() for key in value):  # {0: "cat", 1: "dog"}
        value = [value[key] for key in sorted(value, key=lambda key: int(str(key)))]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in value):
        return ()
    return tuple(item.strip() for item in value)
