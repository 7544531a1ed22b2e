"""The model files that are read, by their suffix."""

from __future__ import annotations

import os
from importlib import import_module

from gti.errors import UsageError
from gti.importing.graph import Graph

READERS = {
    ".keras": "keras_files",
    ".h5": "keras_files",
    ".hdf5": "keras_files",
    ".onnx": "onnx_files",
    ".pth": "torch_files",
    ".pt": "torch_files",
    ".safetensors": "torch_files",
}
EXPECTED = ".onnx, .keras, .h5, .safetensors or .pth"


def load(path: str | os.PathLike[str], *, arrays: bool = True) -> Graph:
    """Return the model in a file; a Keras file without `arrays` is not looked through for them.

    Raises FormatError for a damaged file, UsageError for one of another kind.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in READERS:
        raise UsageError(name, "is no model file", expected=EXPECTED, fix="check the path")
    graph: Graph = import_module(f"gti.importing.{READERS[suffix]}").load(path, arrays=arrays)
    return graph
