"""PyTorch's state dictionaries -> Graph: `.safetensors`, and `.pth` (a zip with a pickle) without running the pickle.

Such a file holds arrays without a network. In torchvision's naming of VGG (`features.N`, `classifier.N`) the numbers
tell it: what lies between two numbers are the layers without arrays.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gti.errors import FormatError, UsageError, install
from gti.importing.graph import Graph, Layer, Weight, Weights

MAX_PICKLE_BYTES = 4 * 1024**2  # of the names; ResNet-152 has 200 KB
MAX_HEADER_BYTES = 4 * 1024**2  # of a safetensors file
MAX_TENSORS = 16384
_EPSILON = 1e-5  # of PyTorch's batch norm, which no file holds
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_SAVE_AGAIN = "with PyTorch: torch.save(torch.load(FILE, weights_only=True), NEW), or export the model to ONNX"
_NUMBERED = re.compile(r"(?:.*\.)?(features|classifier)\.(\d+)\.(\w+)")


def load(path: str | os.PathLike[str], *, arrays: bool = True) -> Graph:
    """Return the VGG-like network of a `.safetensors` or `.pth` file. Raises FormatError for anything else."""
    name = os.fspath(path)
    return torchvision_graph(read(path), name)


def read(path: str | os.PathLike[str]) -> Weights:
    """Return the arrays of a `.safetensors` or `.pth` file by their names. Raises FormatError, UsageError."""
    name = os.fspath(path)
    return _safetensors(name) if name.lower().endswith(".safetensors") else _pth(name)


def _safetensors(name: str) -> Weights:
    header = int.from_bytes(_head(name)[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise FormatError(
            name, "its header is too large", expected=f"at most {MAX_HEADER_BYTES} bytes", received=header
        )
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        fix = f"pip install safetensors, or {install('import')}"
        raise UsageError(name, "the package safetensors is not installed", fix=fix) from None
    try:
        file = safe_open(name, framework="np")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as problem:
        raise FormatError(name, f"is no safetensors file ({str(problem)[:120]})", fix="copy the file again") from None

    def reader(key: str) -> Callable[[], np.ndarray]:
        def read_it() -> np.ndarray:
            try:
                return np.asarray(file.get_tensor(key), np.float32)
            except Exception as problem:  # types that NumPy lacks
                raise FormatError(f"{name}, {key}", f"cannot be read ({str(problem)[:120]})") from None

        return read_it

    return {key: Weight(shape, reader(key)) for key, shape in shapes.items()}


# .pth


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage, which is a member of the zip.

    A tuple: of anything with a `__dict__` the opcode BUILD would change the fields after they were checked.
    """

    kind: str
    storage: str
    length: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _State(dict):  # type: ignore[type-arg]
    """A state dictionary; the attributes that PyTorch gives it are left out."""

    def __setstate__(self, state: object) -> None: ...


# The one in Python: that in C allocates as many places as the largest number of a memo says, 16 bytes each.
_Plain: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_Plain):  # type: ignore[misc]
    """Builds state dictionaries of tensors' descriptions and calls nothing else."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Plain.dispatch)

    def __init__(self, file: Any, name: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._name = name

    # Python hashes a tuple of tuples by recursion that nothing stops: a deep one ends the process, and one of shared
    # parts takes for ever. So names and numbers alone are keys, and what hashes besides dictionaries is not built.

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack)
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack)
        super().load_dict()

    def load_set(self) -> None:
        raise ValueError("it has a set")

    for _code, _load in (
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
        (pickle.EMPTY_SET, load_set),
        (pickle.FROZENSET, load_set),
    ):
        dispatch[_code[0]] = _load
    del _code, _load

    def find_class(self, module: str, name: str) -> Any:
        # Made anew for every file: a pickle can set attributes of what it is given.
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: _State()  # noqa: PLW0108
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _tensor(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise FormatError(
            self._name,
            "holds more than arrays, and nothing of it is run",
            expected="a state dictionary of tensors",
            received=f"{module}.{name}",
            fix="with PyTorch: torch.save(model.state_dict(), NEW), or export the model to ONNX",
        )

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], str):
            raise ValueError("no storage")
        return (pid[1], pid[2], pid[4])


def _check_keys(keys_and_values: Sequence[Any]) -> None:
    for key in keys_and_values[::2]:
        if not (type(key) is str or key is None or (type(key) in (int, float, bool) and abs(key) < 2**63)):
            raise ValueError("a dictionary's key is neither name nor number")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    kind, key, count = storage
    if kind not in _STORAGES.values():
        raise ValueError("a storage of an unknown kind")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("a tensor of another number of strides than sizes")
    numbers = [count, offset, *shape, *strides]
    if not isinstance(key, str) or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise ValueError("a tensor of impossible sizes")
    reach = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if 0 not in shape and (reach > count or math.prod(shape) > count):
        raise ValueError("a tensor that leaves its storage")
    return _Tensor(kind, key, count, offset, tuple(shape), tuple(strides))


def _pth(name: str) -> Weights:
    head = _head(name)
    if not head.startswith(b"PK"):
        old = head[:2] == b"\x80\x02" or head[257:262] == b"ustar"
        raise FormatError(
            name,
            "is of the old kind, a pickle or tar archive, which is not opened" if old else "is no .pth file",
            expected="the zip that PyTorch writes since version 1.6",
            fix=_SAVE_AGAIN,
        )
    try:
        archive = zipfile.ZipFile(name)
        member = next(info for info in archive.infolist() if re.fullmatch(r"[^/]+/data\.pkl", info.filename))
        if member.file_size > MAX_PICKLE_BYTES:
            raise FormatError(
                name, "holds too much besides arrays", expected=MAX_PICKLE_BYTES, received=member.file_size
            )
        folder = member.filename.removesuffix("data.pkl")
        state = _Unpickler(io.BytesIO(archive.read(member)), name).load()
    except FormatError:
        raise
    except StopIteration:
        raise FormatError(name, "is no .pth file", expected="a zip with data.pkl inside", fix=_SAVE_AGAIN) from None
    except Exception as problem:  # a damaged archive or pickle fails in many ways
        reason = str(problem).split("\n")[0][:120]
        raise FormatError(name, f"is no .pth file ({reason})", fix="copy the file again") from None
    if isinstance(state, Mapping):  # checkpoints of trainings wrap it
        state = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), Mapping)), state)
    found = {str(k): t for k, t in state.items() if isinstance(t, _Tensor)} if isinstance(state, Mapping) else {}
    if not 0 < len(found) <= MAX_TENSORS:
        raise FormatError(name, "holds no state dictionary", fix="with PyTorch: torch.save(model.state_dict(), NEW)")
    return {key: Weight(t.shape, _storage_reader(archive, folder, t, f"{name}, {key}")) for key, t in found.items()}


def _head(name: str) -> bytes:
    if not os.path.isfile(name):
        raise FormatError(name, "no such file", fix="check the path")
    try:
        with open(name, "rb") as file:
            return file.read(512)
    except OSError as problem:
        raise FormatError(name, f"cannot be opened ({problem.strerror})") from None


def _storage_reader(archive: zipfile.ZipFile, folder: str, tensor: _Tensor, where: str) -> Callable[[], np.ndarray]:
    def read_it() -> np.ndarray:
        wide = tensor.kind == "bf16"
        item = np.dtype("<u2" if wide else tensor.kind)
        try:
            member = archive.getinfo(f"{folder}data/{tensor.storage}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != tensor.length * item.itemsize:
                raise ValueError("another length than the tensor says")
            values = np.frombuffer(archive.read(member), item)
        except Exception as problem:  # missing, damaged, of another length
            reason = str(problem).split("\n")[0][:120]
            raise FormatError(where, f"cannot be read ({reason})", fix="copy the file again") from None
        if wide:  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        steps = [step * values.itemsize for step in tensor.strides]
        view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, steps, writeable=False)
        return view.astype(np.float32)

    return read_it


# torchvision's naming


def torchvision_graph(weights: Weights, source: str) -> Graph:
    """Return the network that arrays named like torchvision's VGG belong to. Raises FormatError for other names."""
    features: dict[int, dict[str, Weight]] = {}
    classifier: dict[int, dict[str, Weight]] = {}
    others = []
    for name, weight in weights.items():
        match = _NUMBERED.fullmatch(name)
        if match and len(match[2]) < 5:
            part = features if match[1] == "features" else classifier
            part.setdefault(int(match[2]), {})[match[3]] = weight
        else:
            others.append(name)
    convolutions = [n for n in sorted(features) if len(_shape(features[n])) == 4]
    dense = [n for n in sorted(classifier) if len(_shape(classifier[n])) == 2]
    norms = {n + 1 for n in convolutions if "running_mean" in features.get(n + 1, {})}
    # Arrays that no layer takes belong to a layer that is not known here: left out, the result would be another one.
    others += [f"features.{n}" for n in sorted(features) if n not in norms.union(convolutions)]
    others += [f"classifier.{n}" for n in sorted(classifier) if n not in dense]
    if others or not convolutions or not dense:
        raise FormatError(
            source,
            "holds no network that its names tell",
            expected="arrays named features.N and classifier.N as in torchvision's VGG",
            received=", ".join((others or list(weights))[:4]),
            fix="export the model with torch.onnx.export and import the .onnx file",
        )
    layers: list[Layer] = []
    for n, after in zip(convolutions, [*convolutions[1:], None], strict=True):
        layers.append(_convolution(n, features[n]))
        norm = features.get(n + 1, {})
        batch_norm = n + 1 in norms
        if batch_norm:
            layers.append(_batch_norm(n + 1, norm))
        end = n + 1 + batch_norm
        layers.append(Layer("ReLU", f"features.{end}"))
        # Behind the last convolution torchvision pools too.
        if after is None or after - end > 1:
            layers.append(Layer("MaxPooling2D", f"features.{end + 1}", {"pool_size": 2}))
    pools = sum(layer.kind == "MaxPooling2D" for layer in layers)
    channels, inputs = _shape(features[convolutions[-1]])[0], _shape(classifier[dense[0]])[1]
    # torchvision pools adaptively to 7x7, which changes nothing at the size that the network is made for.
    size = math.isqrt(max(inputs // max(channels, 1), 1)) << pools
    layers.append(Layer("Flatten", "flatten", {"order": "chw"}))
    for n, after in zip(dense, [*dense[1:], None], strict=True):
        units, _ = _shape(classifier[n])
        layers.append(Layer("Dense", f"classifier.{n}", {"units": units}, None, _dense(classifier[n])))
        if after is not None and after - n > 1:
            layers.append(Layer("ReLU", f"classifier.{n + 1}"))
        if after is not None and after - n > 2:
            layers.append(Layer("Dropout", f"classifier.{n + 2}", {"rate": 0.5}))
    first = _shape(features[convolutions[0]])[1]
    return Graph("vgg", ("image",), [None, size, size, first], tuple(layers))


def _shape(arrays: Mapping[str, Weight]) -> tuple[int, ...]:
    return arrays["weight"].shape if "weight" in arrays else ()


def _turned(weight: Weight, order: tuple[int, ...]) -> Weight:
    return Weight(tuple(weight.shape[i] for i in order), lambda: weight.read().transpose(order))


def _convolution(number: int, arrays: Mapping[str, Weight]) -> Layer:
    outputs, _, height, width = _shape(arrays)
    config = {"filters": outputs, "kernel_size": [height, width], "padding": "same"}
    weights = {"kernel": _turned(arrays["weight"], (2, 3, 1, 0))}
    if "bias" in arrays:
        weights["bias"] = arrays["bias"]
    return Layer("Conv2D", f"features.{number}", config, None, weights)


def _batch_norm(number: int, arrays: Mapping[str, Weight]) -> Layer:
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    weights = {ours: arrays[theirs] for ours, theirs in names.items() if theirs in arrays}
    return Layer("BatchNormalization", f"features.{number}", {"epsilon": _EPSILON}, None, weights)


def _dense(arrays: Mapping[str, Weight]) -> dict[str, Weight]:
    weights = {"kernel": _turned(arrays["weight"], (1, 0))}
    if "bias" in arrays:
        weights["bias"] = arrays["bias"]
    return weights
