"""Nodes of ONNX, operator by operator, as layers in Keras' words.

ONNX computes on [N,C,H,W]; graphs that Keras exported are [N,H,W,C] with transpositions around every convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gti.importing.graph import Weight, in_memory
from gti.importing.onnx_constants import Node
from gti.importing.onnx_walk import Value, Walk, permuted


def _padding(node: Node, kernel: list[int]) -> Any:
    """Return Keras' word for a node's padding, or the sides where it has none."""
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return "same"
    pads = node.get("pads") or [0] * (2 * len(kernel))
    if auto == "VALID" or not any(pads):
        return "valid"
    if pads == [k // 2 for k in kernel] * 2 and all(k % 2 for k in kernel):
        return "same"
    return f"{pads} (top, left, bottom, right)"


def _size(
    size: int | None, kernel: int, stride: int, padding: Any, *, dilation: int = 1, up: bool = False
) -> int | None:
    if size is None or stride < 1:
        return None
    if padding == "same":
        return -(-size // stride)
    free = size - (dilation * (kernel - 1) + 1)
    return (-(-free // stride) if up else free // stride) + 1 if padding == "valid" and free >= 0 else None


def _map(walk: Walk, node: Node) -> tuple[int | None, int | None, int | None]:
    value = walk.value(node)
    if value.shape is None or len(value.shape) != 3:
        if value.shape is not None and len(value.shape) == 1:
            return (value.shape[0], 1, 1)
        return (None, None, None)
    return (value.shape[0], value.shape[1], value.shape[2])


def _conv(walk: Walk, node: Node) -> None:
    kernel = walk.weight(node, 1, 4)
    outputs, _, height, width = kernel.shape
    groups, strides = node.get("group", 1), node.get("strides") or [1, 1]
    dilations = node.get("dilations") or [1, 1]
    channels, rows, columns = _map(walk, node)
    padding = _padding(node, [height, width])
    config = {
        "filters": outputs,
        "kernel_size": [height, width],
        "strides": strides,
        "padding": padding,
        "dilation_rate": dilations,
        "groups": groups,
        "depthwise": groups > 1 and groups == channels,
        "data_format": "channels_last" if walk.value(node).layout != "hwc" else "channels_first",
    }
    shape = (
        outputs,
        _size(rows, height, strides[0], padding, dilation=dilations[0]),
        _size(columns, width, strides[-1], padding, dilation=dilations[-1]),
    )
    weights = {"kernel": permuted(kernel, (2, 3, 1, 0)), "bias": walk.array(node, 2)}
    walk.add(node, "Conv2D", config, shape, "chw", weights=weights)


def _batch_norm(walk: Walk, node: Node) -> None:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: walk.weight(node, i, 1) for i, name in enumerate(names, 1)}
    config = {"epsilon": float(node.get("epsilon", 1e-5))}
    walk.add(node, "BatchNormalization", config, walk.value(node).shape, weights=weights)


def _activation(name: str) -> Callable[[Walk, Node], None]:
    return lambda walk, node: walk.add(node, "Activation", {"activation": name}, walk.value(node).shape)


def _relu(walk: Walk, node: Node) -> None:
    walk.add(node, "ReLU", {}, walk.value(node).shape)


def _clip(walk: Walk, node: Node) -> None:
    low, high = (
        node.get(name) if node.get(name) is not None else walk.small(node, i) for i, name in ((1, "min"), (2, "max"))
    )
    limits = [None if v is None else float(np.asarray(v).reshape(-1)[0]) for v in (low, high)]
    if limits[0] != 0:
        walk.unknown(node)
        return
    high = limits[1] if limits[1] is not None and limits[1] < 1e30 else None
    walk.add(node, "ReLU", {"max_value": high}, walk.value(node).shape)


def _leaky(walk: Walk, node: Node) -> None:
    walk.add(node, "ReLU", {"negative_slope": float(node.get("alpha", 0.01))}, walk.value(node).shape)


def _pool(kind: str) -> Callable[[Walk, Node], None]:
    def pool(walk: Walk, node: Node) -> None:
        window = node.get("kernel_shape") or [1, 1]
        strides = node.get("strides") or [1] * len(window)
        channels, rows, columns = _map(walk, node)
        padding, up = _padding(node, window), bool(node.get("ceil_mode", 0))
        shape = (
            channels,
            _size(rows, window[0], strides[0], padding, up=up),
            _size(columns, window[-1], strides[-1], padding, up=up),
        )
        config = {"pool_size": window, "strides": strides, "padding": "same" if up and padding == "valid" else padding}
        walk.add(node, kind, config, shape)

    return pool


def _global(kind: str) -> Callable[[Walk, Node], None]:
    return lambda walk, node: walk.add(node, kind, {}, (_map(walk, node)[0], 1, 1))


def _reduce(kind: str) -> Callable[[Walk, Node], None]:
    def reduce(walk: Walk, node: Node) -> None:
        axes = sorted(n % 4 for n in walk.numbers(node, "axes", 1) or [])
        value = walk.value(node)
        if value.layout == "flat" or axes != ([2, 3] if value.layout == "chw" else [1, 2]):
            walk.unknown(node)
            return
        channels = _map(walk, node)[0]
        if node.get("keepdims", 1):
            walk.add(node, kind, {}, (channels, 1, 1))
        else:
            walk.add(node, kind, {}, (channels,), "flat")

    return reduce


def _flat(walk: Walk, node: Node) -> None:
    value = walk.value(node)
    known = value.shape is not None and None not in value.shape
    features = (math.prod(n for n in value.shape if n is not None),) if known and value.shape else None
    walk.add(node, "Flatten", {"order": value.layout if value.layout != "flat" else "hwc"}, features, "flat")


def _flatten(walk: Walk, node: Node) -> None:
    if node.get("axis", 1) == 1:
        _flat(walk, node)
    else:
        walk.unknown(node)


def _reshape(walk: Walk, node: Node) -> None:
    shape = walk.numbers(node, "shape", 1)
    value = walk.value(node)
    size = math.prod(n for n in value.shape if n is not None) if value.shape and None not in value.shape else None
    # The batch is kept or open; behind it all features lie in one axis, besides axes of one.
    features = [n for n in shape[1:] if n != 1] if shape and len(shape) > 1 else [0, 0]
    if value.shape is not None and value.shape[1:] == (1, 1) and features in ([-1], [value.shape[0]]):
        walk.same(node, shape=(value.shape[0],), layout="flat")
    elif len(features) == 1 and features[0] in (-1, size):
        _flat(walk, node)
    else:
        walk.unknown(node)


def _squeeze(walk: Walk, node: Node) -> None:
    value = walk.value(node)
    if value.shape is not None and value.shape[1:] == (1, 1):
        walk.same(node, shape=value.shape[:1], layout="flat")
    else:
        walk.unknown(node)


def _unsqueeze(walk: Walk, node: Node) -> None:
    value = walk.value(node)
    if value.shape is not None and len(value.shape) == 1:
        walk.same(node)
    else:
        walk.unknown(node)


def _transpose(walk: Walk, node: Node) -> None:
    order, value = list(node.get("perm") or []), walk.value(node)
    if order == [0, 3, 1, 2] and value.layout == "chw" and not walk.layers and value.shape is not None:
        height, width, channels = value.shape  # an image whose sizes are open: the first node says how it lies
        walk.same(node, shape=(channels, height, width))
        return
    turned = {("chw", (0, 2, 3, 1)): "hwc", ("hwc", (0, 3, 1, 2)): "chw"}.get((value.layout, tuple(order)))
    if turned:
        walk.same(node, layout=turned)
    elif order == list(range(len(order))):
        walk.same(node)
    else:
        walk.unknown(node)


def _gemm(walk: Walk, node: Node) -> None:
    kernel = walk.weight(node, 1, 2)
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if node.get("transA", 0):
        walk.unknown(node)
        return
    if node.get("transB", 0):
        kernel = permuted(kernel, (1, 0))
    _dense(walk, node, _times(kernel, alpha), _vector(walk.array(node, 2), beta))


def _vector(weight: Weight | None, factor: float) -> Weight | None:
    if weight is None:
        return None
    size = math.prod(weight.shape)
    return Weight((size,), lambda: weight.read().reshape(size) * np.float32(factor))


def _times(weight: Weight, factor: float) -> Weight:
    return weight if factor == 1 else Weight(weight.shape, lambda: weight.read() * np.float32(factor))


def _matmul(walk: Walk, node: Node) -> None:
    if node.inputs[0] in walk.values and walk.array(node, 1) is not None:
        _dense(walk, node, walk.weight(node, 1, 2), None)
    else:
        walk.unknown(node)


def _dense(walk: Walk, node: Node, kernel: Weight, bias: Weight | None) -> None:
    units = kernel.shape[1]
    walk.add(node, "Dense", {"units": units}, (units,), "flat", weights={"kernel": kernel, "bias": bias})


def _arithmetic(walk: Walk, node: Node) -> None:
    """A value and a constant per channel: scale and offset; two values: a branch."""
    known = [i for i, name in enumerate(node.inputs) if name in walk.values]
    if len(known) != 1 or len(node.inputs) != 2:
        walk.unknown(node)
        return
    constant = walk.small(node, 1 - known[0])
    value = walk.value(node, known[0])
    vector = None if constant is None else _per_channel(constant.astype(np.float64), value)
    if vector is None or (node.kind == "Div" and known[0] == 1):
        walk.unknown(node)
        return
    scale, offset = np.ones(1), np.zeros(1)
    with np.errstate(all="ignore"):
        if node.kind == "Add":
            offset = vector
        elif node.kind == "Sub":
            scale, offset = (np.ones(1), -vector) if known[0] == 0 else (-np.ones(1), vector)
        else:
            scale = vector if node.kind == "Mul" else 1 / vector
    node.inputs = [node.inputs[known[0]]]
    walk.add(node, "Scale", {}, value.shape, weights={"scale": in_memory(scale), "offset": in_memory(offset)})


def _per_channel(constant: np.ndarray, value: Value) -> np.ndarray | None:
    """Return a constant as one number a channel (or one for all), None where it differs from pixel to pixel."""
    axis = -3 if value.layout == "chw" else -1
    if constant.size == 1:
        return constant.reshape(1)
    if constant.ndim >= -axis and constant.shape[axis] == constant.size:
        return constant.reshape(-1)
    if value.shape is not None and value.shape[1:] == (1, 1) and constant.ndim == 1:
        return constant
    return None


def _pad(walk: Walk, node: Node) -> None:
    pads = walk.numbers(node, "pads", 1)
    fill = walk.small(node, 2)
    value = walk.value(node)
    first = 2 if value.layout == "chw" else 1
    if (
        pads is None
        or len(pads) != 8
        or node.get("mode", "constant") != "constant"
        or (fill is not None and fill.any())
        or float(node.get("value", 0.0))
        or any(n for i, n in enumerate(pads) if i % 4 not in (first, first + 1))
    ):
        walk.unknown(node)
        return
    top, left, bottom, right = pads[first], pads[first + 1], pads[first + 4], pads[first + 5]
    channels, rows, columns = _map(walk, node)
    shape = (
        channels,
        None if rows is None else rows + top + bottom,
        None if columns is None else columns + left + right,
    )
    if any(pads):
        walk.add(node, "ZeroPadding2D", {"padding": [[top, bottom], [left, right]]}, shape)
    else:
        walk.same(node)


def _resize(walk: Walk, node: Node) -> None:
    channels, rows, columns = _map(walk, node)
    scales = node.get("scales")
    if scales is None:
        index = 1 if node.kind == "Upsample" or len(node.inputs) == 2 else 2
        array = walk.small(node, index)
        scales = array.reshape(-1) if array is not None and array.size else None
        sizes = walk.small(node, 3)
        if scales is None and sizes is not None and rows and columns:
            full = sizes.reshape(-1)
            scales = [1, 1, full[2] / rows, full[3] / columns]
    first = 2 if walk.value(node).layout == "chw" else 1
    mode = node.get("mode", "nearest")
    if scales is None or len(scales) != 4:
        walk.unknown(node)
        return
    factors = [float(n) for n in scales[first : first + 2]]
    size = [int(n) if n == int(n) else n for n in factors]
    shape = (channels, *(None if n is None else int(n * f) for n, f in zip((rows, columns), factors, strict=True)))
    walk.add(node, "UpSampling2D", {"size": size, "interpolation": mode}, shape)


def _dropout(walk: Walk, node: Node) -> None:
    ratio = walk.small(node, 1)
    rate = float(node.get("ratio", 0.5) if ratio is None else ratio.reshape(-1)[0])
    node.inputs = node.inputs[:1]
    walk.add(node, "Dropout", {"rate": rate}, walk.value(node).shape)


HANDLERS: dict[str, Callable[[Walk, Node], None]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "MaxPool": _pool("MaxPooling2D"),
    "AveragePool": _pool("AveragePooling2D"),
    "GlobalAveragePool": _global("GlobalAveragePooling2D"),
    "GlobalMaxPool": _global("GlobalMaxPooling2D"),
    "ReduceMean": _reduce("GlobalAveragePooling2D"),
    "ReduceMax": _reduce("GlobalMaxPooling2D"),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "Dropout": _dropout,
    "Identity": lambda walk, node: walk.same(node),
    "Cast": lambda walk, node: walk.same(node) if node.get("to") in (1, 10, 11, 16) else walk.unknown(node),
    "Softmax": _activation("softmax"),
    "LogSoftmax": _activation("log_softmax"),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Elu": _activation("elu"),
    "Selu": _activation("selu"),
    "Softplus": _activation("softplus"),
    "HardSwish": _activation("hard_swish"),
    "Gelu": _activation("gelu"),
}
