"""Files of pretrained weights, read without trust: Keras (.h5, .weights.h5, .keras), NumPy (.npz), TensorFlow.

Every format becomes the same dictionary: `<layer>/<kind>` -> `Weight`, with the layer and kind names of this kit where
they can be told (`conv1_1/filters`, `fc6/weights`). Keras 3 files without layer names give `conv#0`, `dense#0`, ...,
numbered in network order.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gti import files, quiet
from gti.chip.formats import npy
from gti.errors import CheckpointError, FormatError, sentence
from gti.importing.graph import Weight, Weights, in_memory
from gti.names import natural
from gti.training import checkpoint

MAX_FILE_BYTES = 4 * 1024**3
# Layer groups of a Keras 3 file and variables in them; a VGG16 has 23 layers.
MAX_VARIABLES = 4096

_SAFE_CONVERSION = (
    "such a file runs code when it is opened; convert one that you trust, on a machine without anything of value, to "
    ".npz (docs/import.md has the four lines) and pass that"
)
_KINDS = {
    "filters": "filters",
    "kernel": "filters",
    "weights": "filters",
    "weight": "filters",
    "w": "filters",
    "biases": "biases",
    "bias": "biases",
    "b": "biases",
}
_LAYER = re.compile(r"(?:block(\d+)_conv|conv(\d+)_)(\d+)")
_BATCH_NORM = re.compile(r"(?:batch_normalization|bn|BatchNorm)")


def read(path: str | os.PathLike[str], net: str) -> Weights:
    """Return the arrays of a weights file or TensorFlow checkpoint prefix, by `<layer>/<kind>`.

    Filters are [height, width, in, out] and [in, out]. Names may begin with `net`. Raises FormatError for a file
    that is damaged or of no known kind, and for pickled ones; CheckpointError for a damaged checkpoint.
    """
    text = os.fspath(path)
    prefix = text.removesuffix(".index")
    if checkpoint.index_path(prefix).is_file():
        quiet.import_tensorflow()
        arrays, _ = checkpoint.load(prefix)
        found = {name: in_memory(array) for name, array in arrays.items()}
    elif text.endswith(".npz"):
        data = files.read_bytes(path, limit=MAX_FILE_BYTES)
        found = {name: in_memory(array) for name, array in npy.parse_npz(data, text).items()}
    elif text.endswith(".npy"):
        raise _npy_refused(path)
    elif text.endswith((".h5", ".hdf5")):
        found = _layers_of(hdf5(text))
    elif text.endswith(".keras"):
        found = _layers_of(hdf5_of_archive(text))
    else:
        raise CheckpointError(
            text,
            "is no weights file",
            expected=".h5, .weights.h5, .keras, .npz, or the prefix of a TensorFlow checkpoint",
            fix="check the path",
        )
    result: Weights = {}
    for name, weight in found.items():
        known = canonical_name(name, net)
        if known in result:
            raise FormatError(text, f"holds {known} twice", fix="keep one of the two")
        result[known] = weight
    return result


def canonical_name(name: str, net: str) -> str:
    """Return `<layer>/<kind>` for the name of an array in any of the formats; names that say nothing stay.

    `vgg16/conv1_1/filters`, `block1_conv1/kernel:0`, `block1_conv1/block1_conv1_W_1:0`, `conv1_1_W` and
    `vgg_16/conv1/conv1_1/weights` all are `conv1_1/filters`.
    """
    parts = re.sub(r":0$", "", name).split("/")
    if len(parts) == 1:  # conv1_1_W of flat dictionaries
        match = re.fullmatch(r"(.+)_(\w+)", parts[0])
        parts = [match[1], match[2]] if match and match[2].lower() in _KINDS else parts
    if len(parts) < 2:
        return name
    scope, kind = parts[:-1], parts[-1]
    old_keras = re.fullmatch(rf"{re.escape(scope[-1])}_([Wb])(_\d+)?", kind)
    kind = _KINDS.get(old_keras[1].lower() if old_keras else kind.lower(), kind)
    if len(scope) > 1 and _BATCH_NORM.fullmatch(scope[-1]):
        scope, kind = scope[:-1], f"batch_normalization/{kind}"
    layer = next((f"conv{m[1] or m[2]}_{m[3]}" for part in reversed(scope) if (m := _LAYER.fullmatch(part))), "")
    if layer:
        return f"{layer}/{kind}"
    if kind not in ("filters", "biases"):
        return "/".join([*(scope[1:] if scope[0] == net else scope), kind])
    return f"{scope[-1]}/{kind}"


def _npy_refused(path: str | os.PathLike[str]) -> FormatError:
    text = os.fspath(path)
    head = files.read_bytes(path, limit=MAX_FILE_BYTES)[: npy.MAX_HEADER_BYTES]
    _, dtype, _, _ = npy.read_layout(head, text)
    if dtype.hasobject:
        return FormatError(sentence(text, "is a pickled dictionary, which is not opened", fix=_SAFE_CONVERSION))
    return FormatError(
        sentence(text, "holds one array without names", expected="a .npz with an array per variable", received=dtype)
    )


def hdf5_of_archive(name: str) -> Weights:
    """Return the arrays of `model.weights.h5` in a `.keras` file by their paths in it. Raises FormatError."""
    if not os.path.isfile(name):
        raise FormatError(name, "no such file", fix="check the path")
    try:
        with zipfile.ZipFile(name) as archive:
            member = archive.getinfo("model.weights.h5")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("packed in an unusual way")
            if member.file_size > min(MAX_FILE_BYTES, 64 * 1024**2 + 10 * os.path.getsize(name)):
                raise FormatError(name, "unpacks to too much", received=f"{member.file_size} bytes")
            with archive.open(member) as file:
                data = file.read(member.file_size + 1)
    except KeyError:
        raise FormatError(name, "holds no model.weights.h5", fix="save it with model.save again") from None
    except FormatError:
        raise
    except Exception as problem:  # a damaged archive fails in many ways
        raise FormatError(name, f"is not a .keras archive ({problem})", fix="copy the file again") from None
    return hdf5(name, data)


def hdf5_config(name: str) -> bytes | None:
    """Return the model's configuration in a `.h5` file, None where it holds weights alone. Raises FormatError."""
    file = _opened(name, None)
    try:
        text = file.attrs.get("model_config")
    except Exception as problem:  # a damaged file fails in many ways
        raise _not_hdf5(name, problem) from None
    # What is no UTF-8 h5py gives as surrogates: back to the bytes, which are refused as such.
    return (
        text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text if isinstance(text, bytes) else None
    )


def hdf5(name: str, data: bytes | None = None) -> Weights:
    """Return the arrays of an HDF5 file (or of its content `data`) by path, where floating-point; optimizers left out.

    The path of a layer's numbered variables ends in `/vars/0`. Raises FormatError for links, arrays in other files,
    and whatever else is not as Keras writes it.
    """
    file = _opened(name, data)
    try:
        datasets = list(_datasets(file, "", name))
    except FormatError:
        raise
    except Exception as problem:  # a damaged file fails in many ways
        raise _not_hdf5(name, problem) from None
    datasets.sort(key=lambda item: natural(item[0]))
    return {path: _NamedWeight(tuple(d.shape), _reader(d, f"{name}, {path}"), layer) for path, layer, d in datasets}


@dataclass(frozen=True)
class _NamedWeight(Weight):
    layer: str = ""  # the name of the layer, where a Keras 3 file has it


def _opened(name: str, data: bytes | None) -> Any:
    import h5py

    if data is None and not os.path.isfile(name):
        raise FormatError(name, "no such file", fix="check the path")
    try:
        # Not as a Python file: HDF5 that still holds one when the interpreter is torn down ends in a fault.
        return h5py.File(name if data is None else h5py.h5f.open_file_image(data), "r")
    except Exception as problem:  # a damaged file fails in many ways
        raise _not_hdf5(name, problem) from None


def _not_hdf5(name: str, problem: Exception) -> FormatError:
    reason = str(problem).split("\n")[0][:120]
    return FormatError(sentence(name, f"is not an HDF5 file ({reason})", fix="copy the file again"))


def _layers_of(weights: Weights) -> Weights:
    """Return the arrays of an HDF5 file by `<layer>/<variable>`."""
    numbers: dict[str, int] = {}
    result: Weights = {}
    for path, weight in weights.items():
        key = path
        match = re.fullmatch(r"(.*/)?([^/]+)/vars/(\d+)", path)
        if match:  # Keras 3: numbered variables of numbered layers
            kind = ("filters", "biases")[int(match[3])] if int(match[3]) < 2 else match[3]
            key = f"{getattr(weight, 'layer', '') or _numbered(match[2], numbers)}/{kind}"
        result[key] = weight
    return result


def _numbered(group: str, numbers: dict[str, int]) -> str:
    # conv2d, conv2d_1, ... arrive in natural order; two variables each.
    kind = {"conv2d": "conv", "dense": "dense"}.get(re.sub(r"_\d+$", "", group), "")
    if not kind:
        return group
    if group not in numbers:
        numbers[group] = sum(1 for other in numbers if re.sub(r"_\d+$", "", other) == re.sub(r"_\d+$", "", group))
    return f"{kind}#{numbers[group]}"


def _datasets(group: Any, path: str, name: str, depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """Yield (path, name of the Keras 3 layer or "", dataset) of every array; links out of the file are refused."""
    import h5py

    if depth > 16 or len(group) > MAX_VARIABLES:
        raise FormatError(name, "has no layout of Keras", received=f"group {path[:80]}")
    for key in group:
        where = f"{path}/{key}" if path else key
        if not path and key.startswith("optimizer"):
            continue
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise FormatError(name, "holds a link", expected="groups and arrays", received=where)
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, where, name, depth + 1)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise FormatError(name, "keeps arrays in other files", received=where)
            if item.dtype.kind != "f":  # seeds of dropout, counters
                continue
            layer = group.attrs.get("name", "")
            yield where, layer if isinstance(layer, str) else "", item


def _reader(dataset: Any, name: str) -> Callable[[], np.ndarray]:
    def read_it() -> np.ndarray:
        try:
            return np.asarray(dataset[()])
        except Exception as problem:  # damaged chunks fail in many ways
            raise FormatError(name, f"cannot be read ({problem})", fix="copy the file again") from None

    return read_it
