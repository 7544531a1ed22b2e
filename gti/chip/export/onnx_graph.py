"""The chip's integer arithmetic as ONNX operators: docs/export.md says which, and why they are exact.

A weight is 64 * high + low with both in int8, so that two `ConvInteger` give the sums in int32. Tensors are
[N, C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.errors import NetworkError

PART = 64  # a weight is PART * high + low
BATCH = "N"


class Graph:
    """Nodes and constants in the order in which they are added; tensors are their names."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.shapes: dict[str, ValueInfoProto] = {}

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Add an array once and return its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value, dtype), name)
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, doc: str = "", **attributes: Any) -> str:
        """Add a node named like its output, and return that name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, doc_string=doc, **attributes))
        return output

    def shape(self, name: str, element: int, sizes: Sequence[int], doc: str = "") -> ValueInfoProto:
        """Note type and sizes (without the batch) of a tensor that viewers and outputs show."""
        self.shapes[name] = helper.make_tensor_value_info(name, element, [BATCH, *sizes], doc)
        return self.shapes[name]


def five_bit(graph: Graph, image: str, output: str) -> str:
    """Add the transform of 8-bit pixels to codes: ((x >> 2) + 1) >> 1 is (x + 4) / 8 in whole numbers."""
    wide = graph.node("Cast", [image], f"{output}/int32", to=TensorProto.INT32)
    rounded = graph.node("Add", [wide, graph.constant("four", 4, np.int32)], f"{output}/plus_four")
    eighth = graph.node("Div", [rounded, graph.constant("eight", 8, np.int32)], f"{output}/eighth")
    low = graph.node("Min", [eighth, graph.constant("max_code", spec.MAX_CODE, np.int32)], f"{output}/clip")
    return graph.node("Cast", [low], output, "codes 0..31 of the 8-bit pixels", to=TensorProto.UINT8)


def add_network(
    graph: Graph, codes: str, network: Network, weights: Sequence[ConvolutionWeights], prefix: str = ""
) -> tuple[dict[Convolution, str], str]:
    """Add every sublayer behind the tensor `codes`; return (the map of each before pooling, the output after it).

    Tensors are named `prefix` and the sublayer (`conv1_2`), `pool<major>` and `upsample<major>`. Raises NetworkError
    for filters beyond the format's 2047 and for sums beyond int32.
    """
    maps: dict[Convolution, str] = {}
    for conv, layer in zip(network.convolutions, weights, strict=True):
        major = network.layers[conv.major - 1]
        if conv.upsampled:
            codes = _upsample(graph, codes, f"{prefix}upsample{conv.major}", major.upsample_mode, major.image_size)
        pool = f"{prefix}pool{conv.major}" if conv.pooled else ""
        maps[conv], codes = _sublayer(
            graph, codes, conv, layer, prefix=prefix, pool=pool, sampling=network.sampling_method
        )
    return maps, codes


def code_type(conv: Convolution) -> int:
    """Return the ONNX element type of a sublayer's codes."""
    return TensorProto.UINT16 if conv.ten_bit else TensorProto.UINT8


def _sublayer(
    graph: Graph, codes: str, conv: Convolution, layer: ConvolutionWeights, *, prefix: str, pool: str, sampling: int
) -> tuple[str, str]:
    """Add one sublayer and, where `pool` names its result, pooling; return (the map, what comes after pooling)."""
    _check_sums(conv, layer)
    name = prefix + conv.name
    low = (layer.filters + PART // 2) % PART - PART // 2
    high = (layer.filters - low) // PART
    sums = []
    for part, filters in (("high", high), ("low", low)):
        kernel = graph.constant(f"{name}/filters_{part}", filters, np.int8)
        sums.append(graph.node("ConvInteger", [codes, kernel], f"{name}/{part}", kernel_shape=[3, 3], pads=[1] * 4))
    upper = graph.node("Mul", [sums[0], graph.constant("part", PART, np.int32)], f"{name}/high_times_{PART}")
    both = graph.node("Add", [upper, sums[1]], f"{name}/products")
    bias = graph.constant(f"{name}/biases", layer.biases[None, :, None, None], np.int32)
    total = graph.node("Add", [both, bias], f"{name}/accumulator", "exact sum of products and bias")
    value = graph.node("Cast", [total], f"{name}/double", to=TensorProto.DOUBLE)
    step = 2.0**-conv.shift * (spec.TEN_BIT_FACTOR if conv.ten_bit else 1)
    value = graph.node("Mul", [value, graph.constant(f"{name}/step", step, np.float64)], f"{name}/scaled")
    value = graph.node("Add", [value, graph.constant("half", 0.5, np.float64)], f"{name}/plus_half")
    value = graph.node("Floor", [value], f"{name}/rounded")
    top = graph.constant(f"top_{spec.TOP_CODE[conv.ten_bit]}", spec.TOP_CODE[conv.ten_bit], np.float64)
    value = graph.node("Clip", [value, graph.constant("bottom", 0, np.float64), top], f"{name}/clip")
    doc = (
        f"codes of {conv.path}: 3x3, {conv.input_channels} -> {conv.output_channels} channels, {conv.coef_bits}-bit"
        f" filters, shift {conv.shift}, codes 0..{spec.TOP_CODE[conv.ten_bit]}; before pooling"
    )
    graph.node("Cast", [value], name, doc, to=code_type(conv))
    graph.shape(name, code_type(conv), (conv.output_channels, conv.size, conv.size), doc)
    return name, _pool(graph, name, value, conv, output=pool, sampling=sampling) if pool else name


def _pool(graph: Graph, codes: str, value: str, conv: Convolution, *, output: str, sampling: int) -> str:
    doc = f"2x2 pooling of {conv.path}"
    if sampling == arithmetic.TOP_LEFT:
        ends, steps = [np.iinfo(np.int64).max] * 2, [2, 2]
        places = [
            graph.constant(f"top_left/{word}", numbers, np.int64)
            for word, numbers in (("starts", [0, 0]), ("ends", ends), ("axes", [2, 3]), ("steps", steps))
        ]
        graph.node("Slice", [codes, *places], output, f"{doc}: the top-left pixel")
    else:
        # MaxPool knows no uint16: ten-bit codes are pooled before their cast.
        source, target = (value, f"{output}/double") if conv.ten_bit else (codes, output)
        graph.node("MaxPool", [source], target, f"{doc}: the maximum", kernel_shape=[2, 2], strides=[2, 2])
        if conv.ten_bit:
            graph.node("Cast", [target], output, to=code_type(conv))
    graph.shape(output, code_type(conv), (conv.output_channels, conv.size // 2, conv.size // 2), doc)
    return output


def _upsample(graph: Graph, codes: str, output: str, fill: str, size: int) -> str:
    repeated = output if fill == "repeat" else f"{output}/repeated"
    scales = graph.constant("doubled", [1, 1, 2, 2], np.float32)
    rule = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.node("Resize", [codes, "", scales], repeated, "each pixel four times", **rule)
    if fill == "repeat":
        return repeated
    mask = np.zeros((2 * size, 2 * size), np.bool_)
    mask[::2, ::2] = True
    kept = graph.constant(f"{output}/kept", mask, np.bool_)
    zero = graph.constant("zero", 0, np.uint8)
    return graph.node("Where", [kept, repeated, zero], output, "each pixel at the top left of a 2x2 of zeros")


def _check_sums(conv: Convolution, layer: ConvolutionWeights) -> None:
    """Raise NetworkError where a part of a weight is beyond int8 or a sum may be beyond int32."""
    largest = int(np.abs(layer.filters.astype(np.int32)).max(initial=0))
    if largest > PART * 127:
        raise NetworkError(conv.path, "has filters beyond the format", expected="-2047..2047", received=largest)
    sums = np.abs(layer.filters.astype(np.int64)).sum((1, 2, 3)) * spec.MAX_CODE + np.abs(layer.biases.astype(np.int64))
    if int(sums.max(initial=0)) + PART * spec.MAX_CODE * 9 * conv.input_channels >= 2**31:
        raise NetworkError(
            conv.path, "has sums beyond 32 bits", expected="less than 2**31", received=int(sums.max(initial=0))
        )
