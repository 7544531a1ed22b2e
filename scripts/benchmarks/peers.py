"""The emulator against libraries for 8-bit networks, on the same convolutions in the same run.

They compute less (filters of 8 bits, the chip's have 12) and promise less: none of them is exact to the last code.
Each is given what it is made for: uint8 activations, int8 filters, ReLU and requantization fused into the convolution,
and as many threads as the emulator.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from gti.chip.emulator.emulator import usable_cores
from gti.chip.network.types import Convolution
from scripts.benchmarks import networks
from scripts.benchmarks.emulator import Cases, emulator_side, plain_forward
from scripts.benchmarks.figures import Figure, Scale, compare
from scripts.benchmarks.measure import Actions, Worker, start_tensorflow

PART = "peers"
GOAL = 1.25  # times as fast as each of them, so as the fastest
INPUT_SCALE = 1 / 255
# ONNX: the operators' version that has everything used here, and the file format that goes with it.
OPSET, IR_VERSION = 13, 8


def onnx_runtime_side(cases: Cases) -> Actions:
    """Return a forward pass of ONNX Runtime's QLinearConv for every case."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    actions = {}
    for name, (network, batch) in cases.items():
        model = onnx_model(network.convolutions, batch, fused=True)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        actions[name] = partial(session.run, None, {"x": _planes(networks.random_images(network, batch))})
    return actions


def openvino_side(cases: Cases) -> Actions:
    """Return a forward pass of OpenVINO, which makes 8-bit convolutions of the quantizers around them."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": usable_cores(), "PERFORMANCE_HINT": "LATENCY"}

    def run(request: Any, images: np.ndarray) -> list[np.ndarray]:
        return list(request.infer([images]).values())

    actions = {}
    for name, (network, batch) in cases.items():
        model = core.read_model(onnx_model(network.convolutions, batch, fused=False))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        actions[name] = partial(run, request, _planes(networks.random_images(network, batch)))
    return actions


def litert_side(cases: Cases) -> Actions:
    """Return a forward pass of LiteRT for every case, of a model that TensorFlow's converter quantizes to int8."""
    start_tensorflow()
    import tensorflow as tf
    from absl import logging
    from ai_edge_litert.interpreter import Interpreter

    logging.set_verbosity(logging.ERROR)

    def run(interpreter: Any, images: np.ndarray) -> list[np.ndarray]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(interpreter.get_output_details()[0]["index"])]

    actions = {}
    for name, (network, batch) in cases.items():
        images = networks.random_images(network, batch)
        example = tf.constant(images / 255, tf.float32)
        forward = plain_forward(network)  # kept: it holds the variables
        traced = forward.get_concrete_function(tf.TensorSpec(example.shape, tf.float32))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda example=example: iter([[example]])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
        interpreter = Interpreter(model_content=converter.convert(), num_threads=usable_cores())
        interpreter.allocate_tensors()
        actions[name] = partial(run, interpreter, images)
    return actions


def onnx_model(convolutions: tuple[Convolution, ...], batch: int, fused: bool) -> bytes:
    """Return an ONNX model of the convolutions, uint8 [N, C, H, W] to uint8, random int8 filters.

    `fused`: QLinearConv, as ONNX Runtime runs it; else a float convolution and ReLU between quantizers, from which
    OpenVINO makes the same.
    """
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.RandomState(0)
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    zero = constant("zero", np.array(0, np.uint8))
    scale, x = constant("input_scale", np.array(INPUT_SCALE, np.float32)), "x"
    if not fused:
        x = node("DequantizeLinear", [x, scale, zero], "input")
    for conv in convolutions:
        name = conv.name
        filters = random.randint(-127, 128, (conv.output_channels, conv.input_channels, 3, 3)).astype(np.int8)
        # So large that activations neither die nor saturate: He's deviation for filters, unit scales for activations.
        step = np.float32(np.sqrt(2 / (9 * conv.input_channels)) / 73)
        filter_scales = constant(f"{name}_scales", np.full(conv.output_channels, step))
        filter_zeros = constant(f"{name}_zeros", np.zeros(conv.output_channels, np.int8))
        weights = constant(f"{name}_filters", filters)
        shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
        if fused:
            biases = constant(f"{name}_biases", np.zeros(conv.output_channels, np.int32))
            x = node(
                "QLinearConv",
                [x, scale, zero, weights, filter_scales, filter_zeros, scale, zero, biases],
                name,
                **shape,
            )
        else:
            real = node("DequantizeLinear", [weights, filter_scales, filter_zeros], f"{name}_real", axis=0)
            x = node("Relu", [node("Conv", [x, real], f"{name}_sums", **shape)], f"{name}_relu")
            x = node("QuantizeLinear", [x, scale, zero], f"{name}_codes")
            x = node("DequantizeLinear", [x, scale, zero], name)
        if conv.pooled:
            x = node("MaxPool", [x], f"{name}_pooled", kernel_shape=[2, 2], strides=[2, 2])
    if not fused:
        x = node("QuantizeLinear", [x, scale, zero], "output")
    first, last = convolutions[0], convolutions[-1]
    size = last.size // 2 if last.pooled else last.size
    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, channels, side, side])
        for name, channels, side in (("x", first.input_channels, first.size), (x, last.output_channels, size))
    ]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model.SerializeToString()


def _planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


# Name, what must be installed for it, and what runs it.
PEERS: tuple[tuple[str, tuple[str, ...], Callable[[Cases], Actions]], ...] = (
    ("ONNX Runtime, QLinearConv", ("onnxruntime", "onnx"), onnx_runtime_side),
    ("LiteRT, int8", ("ai_edge_litert", "tensorflow"), litert_side),
    ("OpenVINO, int8", ("openvino", "onnx"), openvino_side),
)


def installed() -> list[tuple[str, Callable[[Cases], Actions]]]:
    """Return the name and the side of every library that is there."""
    return [
        (name, side) for name, packages, side in PEERS if all(importlib.util.find_spec(package) for package in packages)
    ]


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield how many times as fast as each installed library the emulator is."""
    network, title = networks.of_net(scale.net), networks.title(scale.net)
    cases = {f"{title}, batch {batch}": (network, batch) for batch in (1, scale.batch)}
    with Worker(emulator_side, cases) as ours:
        for peer, side in installed():
            with Worker(side, cases) as theirs:
                for name in cases:
                    yield compare(
                        PART, f"{name}, and {peer}", "speed", ((ours, name), (theirs, name)), peer,
                        rounds=scale.rounds, min_seconds=scale.min_seconds, goal=GOAL,
                    )  # fmt: skip
