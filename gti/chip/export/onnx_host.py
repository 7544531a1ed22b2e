"""The host layers of a full .MODEL as ONNX operators in float32: fully connected, pooling, softmax, order of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from gti.chip.export.onnx_graph import BATCH, Graph
from gti.chip.formats.blobs import decode_fc, parse_labels
from gti.chip.formats.model_file import ModelLayer
from gti.chip.spec import FC_SHIFT, MAX_CODE
from gti.chip.wire import readout
from gti.chip.wire.registers import Mode

PROBABILITIES, ORDER, LABELS = "probabilities", "order", "labels"


def add_reversal(graph: Graph, image: str, channels: int) -> str:
    """Turn the planes of the image round, as a reader of the file does."""
    indices = graph.constant("reader/order", np.arange(channels)[::-1], np.int64)
    return graph.node("Gather", [image, indices], "reader", "planes in the chip's order", axis=1)


def add_host(graph: Graph, maps: Sequence[str], layers: Sequence[ModelLayer], mode: int) -> list[ValueInfoProto]:
    """Add the layers behind the chip's, which `gti.chip.host.host_layers` has accepted; return the outputs.

    `layers`: from the GTICNN layer on; `maps`: what the read-out `mode` delivers.
    """
    chip, *behind = layers
    value = _delivered(graph, maps, mode, int(chip.entry.get("output scaledown") or 0))
    for number, layer in enumerate(behind, 2):
        name = f"host/{layer.entry.get('name') or number}"
        name = name if name not in {node.name for node in graph.nodes} else f"{name}/{number}"
        if layer.operation == "LABEL":
            return _labels(graph, value, layer)
        value = _STEPS[layer.operation](graph, value, name, layer)
    raise AssertionError("host layers end in labels")


def _delivered(graph: Graph, maps: Sequence[str], mode: int, scaledown: int) -> str:
    """Add what makes floats of codes: a table of 32, which for the usual scaledown is a cast."""
    codes = np.arange(MAX_CODE + 1, dtype=np.uint8)
    values = codes << np.uint8(FC_SHIFT if mode == Mode.FC else 0)
    table = readout.tensor([values], scaledown)
    found = []
    for name in maps:
        if np.array_equal(table, codes):
            found.append(graph.node("Cast", [name], f"host/{name}", to=TensorProto.FLOAT))
        else:
            index = graph.node("Cast", [name], f"host/{name}/index", to=TensorProto.INT32)
            choices = graph.constant("host/values", table, np.float32)
            found.append(graph.node("Gather", [choices, index], f"host/{name}", f"output scaledown {scaledown}"))
    if len(found) == 1:
        return found[0]
    flat = [graph.node("Flatten", [name], f"{name}/flat", axis=1) for name in found]
    return graph.node("Concat", flat, "host/maps", axis=1)


def _fc(graph: Graph, value: str, name: str, layer: ModelLayer) -> str:
    weights, biases = decode_fc(layer.blob or b"", name)
    flat = graph.node("Flatten", [value], f"{name}/flat", axis=1)
    inputs = [flat, graph.constant(f"{name}/weights", weights, np.float32)]
    inputs.append(graph.constant(f"{name}/biases", biases, np.float32))
    relu = layer.entry.get("activation") == "relu"
    doc = f"fully connected, {weights.shape[1]} -> {weights.shape[0]}"
    result = graph.node("Gemm", inputs, f"{name}/linear" if relu else name, doc, transB=1)
    return graph.node("Relu", [result], name) if relu else result


def _pooling(graph: Graph, value: str, name: str, layer: ModelLayer) -> str:
    mode = layer.entry.get("mode") or "center"
    doc = f"pooling of each channel to one value: {mode}"
    if mode in ("max", "average"):
        kind = "GlobalMaxPool" if mode == "max" else "GlobalAveragePool"
        return graph.node(kind, [value], name, doc)
    if mode == "center":
        shape = graph.node("Shape", [value], f"{name}/shape", start=2, end=4)
        places = graph.node("Div", [shape, graph.constant("two", 2, np.int64)], f"{name}/from")
    else:
        places = graph.constant(f"{name}/from", [mode == "top_left"] * 2, np.int64)
    ends = graph.node("Add", [places, graph.constant("one", 1, np.int64)], f"{name}/to")
    axes = graph.constant("rows_and_columns", [2, 3], np.int64)
    return graph.node("Slice", [value, places, ends, axes], name, doc)


def _softmax(graph: Graph, value: str, name: str, layer: ModelLayer) -> str:
    flat = graph.node("Flatten", [value], f"{name}/flat", axis=1)
    return graph.node("Softmax", [flat], name, axis=1)


def _labels(graph: Graph, value: str, layer: ModelLayer) -> list[ValueInfoProto]:
    """Add the order of classes, most probable first and the first of equals first, and their labels."""
    names = parse_labels(layer.blob or b"", "labels")
    flat = graph.node("Flatten", [value], PROBABILITIES, "of each class, in the order of the label file", axis=1)
    count = graph.node("Shape", [flat], f"{ORDER}/classes", start=1, end=2)
    most = layer.entry.get("output channels")
    if most is not None:
        count = graph.node("Min", [count, graph.constant(f"{ORDER}/most", [most], np.int64)], f"{ORDER}/count")
    graph.nodes.append(
        helper.make_node(
            "TopK", [flat, count], [f"{ORDER}/values", ORDER], name=ORDER, axis=1, doc_string="most probable first"
        )
    )
    text = "labels/texts"
    graph.constants[text] = numpy_helper.from_array(np.array(names, np.object_), text)
    graph.node("Gather", [text, ORDER], LABELS, "labels, most probable first", axis=0)
    shapes = ((PROBABILITIES, TensorProto.FLOAT), (ORDER, TensorProto.INT64), (LABELS, TensorProto.STRING))
    return [helper.make_tensor_value_info(name, kind, [BATCH, None]) for name, kind in shapes]


_STEPS: dict[str, Callable[[Graph, str, str, ModelLayer], str]] = {
    "FC": _fc,
    "POOLING": _pooling,
    "SOFTMAX": _softmax,
}
