"""Model files of small VGG-like networks with random weights, for tests and fuzzing: ONNX as PyTorch and as Keras
export it, PyTorch's own files without PyTorch."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CLASSES = 28, 6
BLOCKS = ((16, 16), (32,))  # output channels; 2x2 pooling behind each block


class Vgg:
    """Weights of a VGG-like network in PyTorch's layouts; `flat` or a global average in front of the head."""

    def __init__(self, *, blocks=BLOCKS, batch_norm=False, flat=True, hidden=20, seed=0, channels=3):
        random = np.random.default_rng(seed)
        self.blocks, self.batch_norm, self.flat, self.channels = blocks, batch_norm, flat, channels
        self.convolutions, self.norms, self.dense = [], [], []
        inputs = channels
        for outputs in (n for block in blocks for n in block):
            shape = (outputs, inputs, 3, 3)
            self.convolutions.append(
                (normal(random, shape, np.sqrt(2 / (9 * inputs))), normal(random, (outputs,), 0.5))
            )
            self.norms.append(
                [
                    random.uniform(0.5, 1.5, outputs).astype(np.float32),
                    normal(random, (outputs,), 0.2),
                    normal(random, (outputs,), 0.3),
                    random.uniform(0.3, 2, outputs).astype(np.float32),
                ]
            )
            inputs = outputs
        self.pixels = SIZE >> len(blocks)
        inputs = inputs * self.pixels**2 if flat else inputs
        for outputs in (hidden, CLASSES) if hidden else (CLASSES,):
            self.dense.append((normal(random, (outputs, inputs), np.sqrt(2 / inputs)), normal(random, (outputs,), 0.5)))
            inputs = outputs


def normal(random, shape, scale) -> np.ndarray:
    return (random.normal(size=shape) * scale).astype(np.float32)


class Builder:
    """Collects the nodes and arrays of an ONNX graph; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []

    def array(self, value, dtype=np.float32) -> str:
        name = f"array_{len(self.arrays)}"
        self.arrays.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}:0"], name, **attributes))
        return f"{name}:0"

    def model(self, result: str, shape, *, opset=17, output=CLASSES, metadata=None) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, [None, output])],
            self.arrays,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        helper.set_model_props(model, metadata or {})
        return model


def torch_style(vgg: Vgg, *, opset=17, softmax=False, **options) -> onnx.ModelProto:
    """Return the graph as PyTorch exports it: [N,C,H,W] throughout, Flatten of [C,H,W], Gemm with transB."""
    b, x, i = Builder(), "image", 0
    for block in vgg.blocks:
        for _ in block:
            w, bias = vgg.convolutions[i]
            x = b.node("Conv", x, b.array(w), b.array(bias), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
            if vgg.batch_norm:
                x = b.node("BatchNormalization", x, *map(b.array, vgg.norms[i]), epsilon=1e-5)
            x, i = b.node("Relu", x), i + 1
        x = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    if vgg.flat:  # an adaptive pooling that changes nothing
        x = b.node("AveragePool", x, kernel_shape=[1, 1], strides=[1, 1])
    else:
        x = b.node("GlobalAveragePool", x)
    x = b.node("Flatten", x, axis=1)
    for n, (w, bias) in enumerate(vgg.dense):
        x = b.node("Gemm", x, b.array(w), b.array(bias), transB=1)
        x = b.node("Relu", x) if n < len(vgg.dense) - 1 else x
    x = b.node("Softmax", x, axis=1) if softmax else x
    return b.model(x, ["N", vgg.channels, SIZE, SIZE], opset=opset, **options)


def keras_style(vgg: Vgg, *, rescaling=None, opset=15, softmax=True) -> onnx.ModelProto:
    """Return the graph as tf2onnx writes Keras models: [N,H,W,C] with Transposes, a Reshape to a computed shape."""
    b, x, i = Builder(), "image", 0
    if rescaling:
        x = b.node("Mul", x, b.array(rescaling[0]))
        x = b.node("Add", x, b.array(np.asarray(rescaling[1], np.float32).reshape(1, 1, 1, -1)))
    for block in vgg.blocks:
        for _ in block:
            w, bias = vgg.convolutions[i]
            x = b.node("Transpose", x, perm=[0, 3, 1, 2])
            x = b.node("Conv", x, b.array(w), auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[1, 1])
            x = b.node("Transpose", x, perm=[0, 2, 3, 1])
            x = b.node("Add", x, b.array(bias))
            if vgg.batch_norm:
                gamma, beta, mean, variance = vgg.norms[i]
                scale = gamma / np.sqrt(variance + 1e-5)
                x = b.node("Add", b.node("Mul", x, b.array(scale)), b.array(beta - mean * scale))
            x, i = b.node("Relu", x), i + 1
        x = b.node("Transpose", x, perm=[0, 3, 1, 2])
        x = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID")
        x = b.node("Transpose", x, perm=[0, 2, 3, 1])
    if vgg.flat:
        batch = b.node(
            "Slice", b.node("Shape", x), b.array([0], np.int64), b.array([1], np.int64), b.array([0], np.int64)
        )
        x = b.node("Reshape", x, b.node("Concat", batch, b.array([-1], np.int64), axis=0))
    else:
        x = b.node("ReduceMean", x, axes=[1, 2], keepdims=0)
    for n, (w, bias) in enumerate(vgg.dense):
        first = n == 0 and vgg.flat
        if first:  # [C,H,W] -> [H,W,C]
            w = w.reshape(len(w), -1, vgg.pixels, vgg.pixels).transpose(0, 2, 3, 1).reshape(len(w), -1)
        x = b.node("Add", b.node("MatMul", x, b.array(w.T)), b.array(bias))
        x = b.node("Relu", x) if n < len(vgg.dense) - 1 else x
    x = b.node("Softmax", x, axis=-1) if softmax else x
    return b.model(x, ["N", SIZE, SIZE, vgg.channels], opset=opset)


def state_dict(vgg: Vgg) -> dict[str, np.ndarray]:
    """Return the arrays under the names of torchvision's VGG."""
    found: dict[str, np.ndarray] = {}
    number = i = 0
    for block in vgg.blocks:
        for _ in block:
            w, bias = vgg.convolutions[i]
            found |= {f"features.{number}.weight": w, f"features.{number}.bias": bias}
            if vgg.batch_norm:
                names = ("weight", "bias", "running_mean", "running_var")
                found |= {f"features.{number + 1}.{n}": v for n, v in zip(names, vgg.norms[i], strict=True)}
                found[f"features.{number + 1}.num_batches_tracked"] = np.array(7, np.int64)
            number, i = number + 2 + vgg.batch_norm, i + 1
        number += 1
    for n, (w, bias) in enumerate(vgg.dense):
        found |= {f"classifier.{3 * n}.weight": w, f"classifier.{3 * n}.bias": bias}
    return found


# PyTorch's zip, without PyTorch


class Torch:
    """A global of PyTorch in a pickle, and a call of one."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments = name, arguments


class Storage:
    """A storage in a pickle: PyTorch keeps it beside the pickle."""

    def __init__(self, key: int, kind: str, count: int) -> None:
        self.id = ("storage", Torch(f"torch.{kind}"), str(key), "cpu", count)


_Pickler: Any = pickle._Pickler  # type: ignore[attr-defined]  # the one whose opcodes can be written by hand


class TorchPickler(_Pickler):
    """Writes what PyTorch's own pickler writes."""

    def persistent_id(self, item):
        return item.id if isinstance(item, Storage) else None

    def save(self, item, *rest, **options):
        if not isinstance(item, Torch):
            return super().save(item, *rest, **options)
        module, _, name = item.name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        if item.arguments:
            super().save(item.arguments)
            self.write(pickle.REDUCE)
        return None


KINDS = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}


def torch_zip(arrays: dict[str, np.ndarray], *, wrap=lambda state: state) -> bytes:
    """Return what torch.save makes of tensors with these values."""
    state: OrderedDict[str, object] = OrderedDict()
    members: dict[str, bytes] = {}
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    for key, (name, array) in enumerate(arrays.items()):
        data = np.ascontiguousarray(array)
        strides = tuple(step // data.itemsize for step in data.strides)
        storage = Storage(key, KINDS[data.dtype.str[1:]], data.size)
        state[name] = Torch("torch._utils._rebuild_tensor_v2", storage, 0, data.shape, strides, False, OrderedDict())
        members[f"archive/data/{key}"] = data.tobytes()
    return torch_archive(wrap(state), members)


def torch_archive(value: object, members: dict[str, bytes]) -> bytes:
    stream, file = io.BytesIO(), io.BytesIO()
    TorchPickler(stream, 2).dump(value)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {"archive/data.pkl": stream.getvalue(), "archive/version": b"3\n", **members}.items():
            archive.writestr(name, data)
    return file.getvalue()


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
