"""The .MODEL container: a JSON header and the layers' data in one file (docs/model_format.md).

`compose` packs a network.json and its data files, `parse` reads a container without trusting it, `decompose` splits
it. The bytes of a blob are never interpreted here; see `gti.chip.formats.blobs` for fully connected layers and labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gti import files
from gti.chip.formats.canonical_json import canonical, indented
from gti.errors import ModelFileError

MAX_FILE_BYTES = 1024 * 1024 * 1024
MAX_HEADER_BYTES = 1024 * 1024
MAX_LAYERS = 1024
# What the container reserves for the keys that composing adds to a layer [docs/model_format.md, layout].
_ROOM_PER_LAYER = 128


class ModelLayer(NamedTuple):
    """One entry of "layer"."""

    entry: dict[str, Any]  # as in the header
    blob: memoryview | None  # its data inside the container

    @property
    def operation(self) -> str:
        """Kind of the layer, for example "GTICNN" or "FC"; empty where the header names none."""
        value = self.entry.get("operation")
        return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class ModelFile:
    """A parsed container."""

    header: dict[str, Any]
    layers: tuple[ModelLayer, ...]
    header_text: bytes  # up to the first NUL
    base: int  # where the first blob begins (the length of the file when there is none)
    length: int  # bytes

    def first(self, operation: str) -> ModelLayer | None:
        """Return the first layer of that kind, or None."""
        return next((layer for layer in self.layers if layer.operation == operation), None)


def layer_path(index: int, entry: Mapping[str, Any]) -> str:
    """Return the name of layer `index` (0-based) in messages, for example `layer 2 (FC fc6)`."""
    words = [word for word in (entry.get("operation"), entry.get("name")) if isinstance(word, str) and word]
    return f"layer {index + 1} ({' '.join(words)})" if words else f"layer {index + 1}"


def name_of(path: str | os.PathLike[str]) -> str:
    """Return the name of a network that a file's path gives: its stem, with escapes for what is not UTF-8 in it."""
    return Path(path).stem.encode("utf-8", "backslashreplace").decode()


def is_model(data: bytes | memoryview) -> bool:
    """Return whether `data` begins like a container: a JSON object."""
    head = bytes(data[:1024]).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"{")


def compose(network_json: bytes, data: Mapping[str, bytes] | str | os.PathLike[str]) -> bytes:
    """Return the container of the text `network_json` and the data files it names.

    `data` maps file names to contents, or is the folder that holds the files; names that lead out of it are refused.
    White space of the text counts: it decides where the blobs begin. Raises ModelFileError.
    """
    name = "network.json"
    if len(network_json) > MAX_HEADER_BYTES:
        raise ModelFileError(
            name, "is too large", expected=f"at most {MAX_HEADER_BYTES} bytes", received=len(network_json)
        )
    header = files.parse_json(network_json, name, error=ModelFileError)
    entries = entries_of(header, name)
    base = len(network_json) + _ROOM_PER_LAYER * len(entries)
    packed: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    position = base
    for index, entry in enumerate(entries):
        result = dict(entry)
        file_name = result.get("data file")
        if file_name is None:
            result["data file"] = None
        else:
            path = layer_path(index, entry)
            del result["data file"]
            blob = _part(_data_of(file_name, data, path, MAX_FILE_BYTES - position), entry, path)
            result |= {"data offset": position, "data size": len(blob)}
            blobs.append(blob)
            position += len(blob)
        packed.append(result)
    text = canonical({**header, "layer": packed}).encode()
    if not entries:
        return text
    if len(text) >= base:
        raise ModelFileError(
            name,
            "its compact form does not fit before the first blob",
            expected=f"less than {base} bytes",
            received=f"{len(text)} bytes",
            fix="append blanks to the text",
        )
    return b"".join([text, bytes(base - len(text)), *blobs])


def parse(data: bytes | memoryview, name: str = ".MODEL data") -> ModelFile:
    """Return header and blobs of the container `data`; blobs are views, nothing is copied.

    Raises ModelFileError when the header is no JSON object followed by a NUL, when a blob lies outside the file, inside
    the header or over another blob, when anything but NULs lies between them, or when the file goes on behind
    the last.
    """
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    if not is_model(view):
        raise ModelFileError(
            name,
            "is not a .MODEL file",
            expected="a JSON object, then NUL bytes and data",
            received=f"{len(view)} bytes that begin with {bytes(view[:8]).hex(' ') or 'nothing'}",
            fix="pass a file written by gti build or by the project's convert_to_chip.py",
        )
    text = bytes(view[: MAX_HEADER_BYTES + 1])
    end = text.find(b"\0")
    if end < 0 and len(text) > MAX_HEADER_BYTES:
        raise ModelFileError(name, "has no end of its header", expected=f"a NUL within {MAX_HEADER_BYTES} bytes")
    text = text if end < 0 else text[:end]
    header = files.parse_json(text, name, error=ModelFileError)
    entries = entries_of(header, name)
    if end < 0 and entries:
        raise ModelFileError(
            name,
            "has no NUL after its header: a model.json, without the data of the layers",
            expected="JSON text, then at least one NUL",
            received=f"{len(view)} bytes without a NUL",
            fix="pass the .model that convert_to_chip.py or gti build has written",
        )
    ranges = [_range(entry, f"{name}, {layer_path(i, entry)}", len(text), len(view)) for i, entry in enumerate(entries)]
    base = _check_cover(ranges, view, len(text), name)
    layers = tuple(
        ModelLayer(entry, None if place is None else view[place[0] : place[0] + place[1]])
        for entry, place in zip(entries, ranges, strict=True)
    )
    return ModelFile(header, layers, text, base, len(view))


def load(path: str | os.PathLike[str]) -> ModelFile:
    """Return the parsed container `path`; see `parse`."""
    return parse(files.read_bytes(path, limit=MAX_FILE_BYTES, error=ModelFileError), os.fspath(path))


def decompose(model: ModelFile, name: str) -> dict[str, bytes]:
    """Return the files into which the vendor's tool splits a container called `name`: `name`.0, `name`.1, ...

    The first is the header as indented JSON that names the others; each blob is one file, in layer order.
    """
    result: dict[str, bytes] = {}
    entries: list[dict[str, Any]] = []
    for layer in model.layers:
        entry = {key: value for key, value in layer.entry.items() if key != "data size"}
        if layer.blob is None:
            entry |= {"data file": None, "data offset": None}
        else:
            part = f"{name}.{len(result) + 1}"
            result[part] = bytes(layer.blob)
            entry |= {"data file": part, "data offset": 0}
        entries.append(entry)
    return {f"{name}.0": indented({**model.header, "layer": entries}).encode(), **result}


def entries_of(header: object, name: str) -> list[dict[str, Any]]:
    """Return the layers of a header, as they stand in it. Raises ModelFileError where it has none to speak of."""
    if not isinstance(header, dict):
        raise ModelFileError(name, "is not a JSON object", expected='{"layer": [...]}')
    entries = header.get("layer")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelFileError(name, '"layer" is missing or not a list of objects', expected='{"layer": [{...}, ...]}')
    if len(entries) > MAX_LAYERS:
        raise ModelFileError(name, "has too many layers", expected=f"at most {MAX_LAYERS}", received=len(entries))
    return entries


def _data_of(file_name: object, data: Mapping[str, bytes] | str | os.PathLike[str], path: str, room: int) -> bytes:
    if not isinstance(file_name, str):
        raise ModelFileError(path, '"data file" has the wrong type', expected="a file name or null", received=file_name)
    if not isinstance(data, Mapping):
        return files.read_bytes(
            files.inside(Path(data), file_name, error=ModelFileError), limit=room, error=ModelFileError
        )
    if file_name not in data:
        raise ModelFileError(
            path, "its data file is missing", expected=file_name, fix="give the file, or set it to null"
        )
    return bytes(data[file_name])


def _part(blob: bytes, entry: Mapping[str, Any], path: str) -> bytes:
    """Return the part of a data file that "data offset" and "data size" select; the size is clipped to the file."""
    offset = entry.get("data offset") or 0
    size = entry.get("data size")
    for key, value in (("data offset", offset), ("data size", 0 if size is None else size)):
        if not files.is_whole(value) or not 0 <= value <= MAX_FILE_BYTES:
            raise ModelFileError(
                path, f'"{key}" is no byte count', expected=f"0..{MAX_FILE_BYTES}", received=json.dumps(value)
            )
    if offset and (size is None or offset > len(blob)):
        raise ModelFileError(
            path,
            '"data offset" needs a "data size" and must lie inside the data file',
            expected=f"0..{len(blob)} and a size",
            received=f"{offset} and {'no size' if size is None else size}",
            fix='leave both out, or give "data size" too',
        )
    return blob if size is None else blob[offset : offset + size]


def _range(entry: Mapping[str, Any], path: str, text_end: int, length: int) -> tuple[int, int] | None:
    """Return (offset, size) of a layer's blob, or None for a layer without data."""
    offset, size = entry.get("data offset"), entry.get("data size")
    if entry.get("data file") is not None:
        raise ModelFileError(
            path,
            'names a "data file" inside a container',
            expected='"data offset" and "data size"',
            fix="compose the container from network.json and its files",
        )
    if "data file" in entry or (offset is None and size is None):
        return None
    for key, value in (("data offset", offset), ("data size", size)):
        if not files.is_whole(value) or value < 0:
            raise ModelFileError(
                path, f'"{key}" is no byte count', expected="an integer of at least 0", received=json.dumps(value)
            )
    assert isinstance(offset, int)
    assert isinstance(size, int)
    if not text_end < offset <= length or size > length - offset:
        raise ModelFileError(
            path,
            "its data lie outside the file",
            expected=f"bytes {text_end + 1}..{length}",
            received=f"{size} bytes from {offset} on",
            fix="copy or build the file again",
        )
    return offset, size


def _check_cover(ranges: list[tuple[int, int] | None], view: memoryview, text_end: int, name: str) -> int:
    """Return where the first blob begins. Raises ModelFileError for overlaps and for data that belong to no layer."""
    position = text_end
    base = len(view)
    for order, (offset, size) in enumerate(sorted(place for place in ranges if place is not None)):
        if offset < position:
            raise ModelFileError(name, "has layers whose data overlap", expected=f"from {position} on", received=offset)
        _refuse_stray(view[position:offset], position, name)
        base = offset if order == 0 else base
        position = offset + size
    if base < len(view) and position < len(view):
        raise ModelFileError(
            name,
            "goes on behind its last layer",
            expected=f"{position} bytes",
            received=f"{len(view)} bytes",
            fix="build the container again",
        )
    _refuse_stray(view[position:], position, name)
    return base


def _refuse_stray(gap: memoryview, start: int, name: str) -> None:
    rest = bytes(gap).lstrip(b"\0")
    if rest:
        raise ModelFileError(
            name,
            "holds data that belong to no layer",
            expected="NUL bytes outside the layers' data",
            received=f"byte 0x{rest[0]:02x} at {start + len(gap) - len(rest)}",
            fix="build the container again",
        )
