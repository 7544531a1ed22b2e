"""A .DAT or .MODEL file as a folder that people can read and change, and back, byte for byte (docs/model_format.md).

    dat.json, weights.npz    network and integers of a .DAT: w<i> int16 [out, in, 3, 3], b<i> int32 [out], shifts
    exact.json               its header words and length, where a current converter would write others
    rows.npz                 filter rows whose bits the integers do not tell
    tail.bin                 what follows the rows, where that is not zeros
    network.json, layer*     header of a .MODEL and the data of its layers
    header.bin               the header as it is, where network.json would give another one

The files after the first line of each kind are written only where they are needed.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gti import files
from gti.chip import spec
from gti.chip.formats import dat, dat_header, model_file, npy, sdk_folder, upsampling
from gti.chip.formats.canonical_json import canonical
from gti.chip.formats.model_file import ModelFile
from gti.chip.network import file_size
from gti.chip.network import json_form as network
from gti.chip.network.types import ConvolutionWeights, Network
from gti.errors import DatError, FormatError, ModelFileError, UsageError, sentence

log = logging.getLogger(__name__)

_SUFFIXES = {"GTICNN": ".dat", "FC": ".bin", "LABEL": ".txt"}
_MAX_GAPS = 16 * 1024 * 1024
_LOCATION = ("data file", "data offset", "data size")


def is_container(data: bytes, name: str) -> bool:
    """Return True for a .MODEL and False for a .DAT, by content. Raises FormatError for anything else."""
    if model_file.is_model(data):
        return True
    if dat.is_dat(data):
        return False
    raise FormatError(
        name,
        "is neither a .DAT nor a .MODEL file",
        received=f"{len(data)} bytes that begin with {data[:8].hex(' ') or 'nothing'}",
        fix="pass a file written by gti build or by the project's convert_to_chip.py",
    )


def chip_data(data: bytes, name: str) -> tuple[bytes, str]:
    """Return the .DAT bytes of a .DAT or of the first GTICNN layer of a .MODEL, and the name for messages.

    Raises FormatError.
    """
    blob, where, _ = _chip_layer(data, name)
    return blob, where


def chip_network(data: bytes, name: str, ten_bit: int | None = None) -> tuple[dat.Dat, list[str]]:
    """Return the decoded network of `chip_data`, with what a .MODEL's header tells beside it, and the guesses made.

    `ten_bit`: `activation_bit_mode` of `dat.decode`. Raises FormatError.
    """
    blob, where, entry = _chip_layer(data, name)
    decoded = dat.decode(blob, activation_bit_mode=ten_bit, name=where)
    network = upsampling.applied(decoded.network, upsampling.modes_in(entry))
    return replace(decoded, network=network), dat.guesses(blob, activation_bit_mode=ten_bit, name=where)


def _chip_layer(data: bytes, name: str) -> tuple[bytes, str, Mapping[str, Any]]:
    if not is_container(data, name):
        return data, name, {}
    for index, layer in enumerate(model_file.parse(data, name).layers):
        if layer.operation == "GTICNN" and layer.blob is not None:
            return bytes(layer.blob), f"{name}, {model_file.layer_path(index, layer.entry)}", layer.entry
    raise ModelFileError(
        name, "holds no network for the chip", expected="a GTICNN layer with data", fix="convert it again"
    )


def extract(data: bytes, folder: str | os.PathLike[str], name: str, ten_bit: int | None = None) -> list[str]:
    """Write the .DAT or .MODEL file `data` into the new or empty `folder`, and return remarks for the user.

    `ten_bit`: `activation_bit_mode` of `dat.decode`, of the last network. Nothing is left behind on failure. Raises
    FormatError for a file that cannot be read and UsageError for a folder that cannot be written.
    """
    if is_container(data, name):
        parts, remarks = container_parts(data, name, ten_bit)
    else:
        parts = dat_parts(data, name, ten_bit)
        remarks = dat.guesses(data, activation_bit_mode=ten_bit, name=name)
    _write_folder(Path(folder), parts)
    return remarks


def build(folder: str | os.PathLike[str], target: str) -> bytes:
    """Return the file that `folder` describes: a .MODEL where it holds network.json, else a .DAT.

    A folder into which the vendor's tools took a container apart (`sdk_folder`) is taken for a .MODEL.

    A `target` name that ends with `.dat` or `.model` decides where both are possible. Raises FormatError, NetworkError
    and UsageError.
    """
    base = Path(folder)
    if not base.is_dir():
        raise UsageError(str(base), "is no folder", fix="pass the folder that extract has written")
    has = {kind for kind in ("network.json", "dat.json") if _has(base, kind)}
    if not has and (taken_apart := sdk_folder.find(base)):
        return _read_back_container(sdk_folder.compose(taken_apart), base)
    suffix = Path(target).suffix.lower()
    if suffix == ".dat" and "dat.json" in has:
        has = {"dat.json"}
    if suffix == ".model" and "network.json" not in has:
        raise UsageError(str(base), "holds no network.json, which a .MODEL is built from")
    if "network.json" in has:
        return _build_container(base)
    if "dat.json" in has:
        return _build_dat(base)
    raise UsageError(
        str(base), "holds nothing to build", expected="network.json (for a .MODEL) or dat.json (for a .DAT)"
    )


def dat_parts(
    data: bytes, name: str, ten_bit: int | None = None, entry: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, bytes]:
    """Return the files of a .DAT's folder by name; `entry`: of its layer in a .MODEL. Raises DatError."""
    decoded = dat.decode(data, activation_bit_mode=ten_bit, name=name)
    decoded = replace(decoded, network=upsampling.applied(decoded.network, upsampling.modes_in(entry)))
    numbered = list(enumerate(decoded.weights))
    arrays = {f"w{i}": values.filters for i, values in numbered}
    arrays |= {f"b{i}": values.biases for i, values in numbered}
    arrays["shifts"] = np.array([values.shift for values in decoded.weights], np.int32)
    parts = {"dat.json": files.json_bytes(network.to_json(decoded.network)), "weights.npz": npy.npz_bytes(arrays)}
    strict = True
    try:
        plain = dat.encode(decoded.network, decoded.weights)
    except DatError:
        strict = False
        plain = dat.encode(decoded.network, decoded.weights, strict=False)
    exact: dict[str, object] = {}
    if not strict:
        exact["strict"] = False
    if decoded.header != dat.read_header(plain):
        exact["header"] = [f"0x{word:08x}" for word in decoded.header]
    if decoded.length != len(plain):
        exact["length"] = decoded.length
    if exact:
        parts["exact.json"] = files.json_bytes(exact)
    if decoded.tail:
        parts["tail.bin"] = decoded.tail
    wanted, computed = _rows(data, decoded.rows), _rows(plain, decoded.rows)
    differing = np.flatnonzero((wanted != computed).any(axis=1))
    if differing.size:
        rows = {"index": differing, "wanted": wanted[differing], "computed": computed[differing]}
        parts["rows.npz"] = npy.npz_bytes(rows)
    return parts


def container_parts(data: bytes, name: str, ten_bit: int | None = None) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a .MODEL's folder by name, and remarks. Raises ModelFileError."""
    model = model_file.parse(data, name)
    parts = _container_files(model, data)
    remarks = []
    chips = 0
    count = sum(layer.operation == "GTICNN" and layer.blob is not None for layer in model.layers)
    for index, layer in enumerate(model.layers):
        if layer.operation != "GTICNN" or layer.blob is None:
            continue
        chips += 1
        where = f"{name}, {model_file.layer_path(index, layer.entry)}"
        try:
            mode = ten_bit if chips == count else None
            inner = dat_parts(bytes(layer.blob), where, mode, layer.entry)
            remarks += dat.guesses(layer.blob, activation_bit_mode=mode, name=where)
        except DatError as problem:
            remarks.append(f"its data stay packed: {problem}")
            continue
        prefix = "" if chips == 1 else f"chip{chips}/"
        parts |= {prefix + part: content for part, content in inner.items()}
    return parts, remarks


def _container_files(model: ModelFile, data: bytes) -> dict[str, bytes]:
    blobs = [(i, layer) for i, layer in enumerate(model.layers) if layer.blob is not None]
    spoken = {i: f"layer{i + 1}{_SUFFIXES.get(layer.operation, '.data')}" for i, layer in blobs}
    short = {i: str(k) for k, (i, _) in enumerate(blobs, 1)}
    content = {i: bytes(layer.blob) for i, layer in blobs if layer.blob is not None}
    room = model.base - 128 * len(model.layers) if model.layers else len(model.header_text)
    for names in (spoken, short):
        text = _network_text(model, names)
        # White space of the text moves the blobs: trailing blanks bring them to where they are.
        padded = text + b" " * (room - len(text))
        parts = {names[i]: blob for i, blob in content.items()}
        if len(padded) <= room and _composes_to(padded, parts, data):
            return {"network.json": padded, **parts}
    parts = {spoken[i]: blob for i, blob in content.items()}
    return {"network.json": _network_text(model, spoken), "header.bin": data[: model.base], **parts}


def _network_text(model: ModelFile, names: Mapping[int, str]) -> bytes:
    entries: list[dict[str, Any]] = []
    for i, layer in enumerate(model.layers):
        if i in names:
            entry = {key: value for key, value in layer.entry.items() if key not in _LOCATION}
            entries.append({**entry, "data file": names[i]})
        else:
            entries.append(layer.entry)
    return canonical({**model.header, "layer": entries}).encode()


def _composes_to(text: bytes, parts: Mapping[str, bytes], data: bytes) -> bool:
    try:
        return model_file.compose(text, parts) == data
    except ModelFileError:
        return False


def _read_back_container(data: bytes, base: Path) -> bytes:
    model_file.parse(data, f"{base}, read back")
    return data


def _build_container(base: Path) -> bytes:
    text = _read(base, "network.json", model_file.MAX_HEADER_BYTES)
    if not _has(base, "header.bin"):
        return _read_back_container(model_file.compose(text, base), base)
    header = _read(base, "header.bin", model_file.MAX_FILE_BYTES)
    # Compose for its checks and its blobs; then lay the blobs where the kept header says.
    composed = model_file.parse(model_file.compose(text, base))
    kept = files.parse_json(header.split(b"\0", 1)[0], "header.bin", error=ModelFileError)
    entries = kept.get("layer") if isinstance(kept, dict) else None
    if not isinstance(entries, list) or _without_location(kept) != _without_location(composed.header):
        raise _stale(base)
    result = bytearray(header)
    # The header may claim any place; NULs between the data are few in every known file.
    most = len(header) + sum(len(layer.blob) for layer in composed.layers if layer.blob is not None) + _MAX_GAPS
    for entry, layer in zip(entries, composed.layers, strict=True):
        if layer.blob is None:
            continue
        offset, size = entry.get("data offset"), entry.get("data size")
        if size != len(layer.blob) or not isinstance(offset, int) or not 0 < offset <= most - size:
            raise _stale(base)
        result.extend(bytes(max(0, offset + size - len(result))))
        result[offset : offset + size] = layer.blob
    data = bytes(result)
    model_file.parse(data, str(base))
    return data


def _without_location(header: Mapping[str, Any]) -> dict[str, Any]:
    bare = [
        {key: value for key, value in entry.items() if key not in _LOCATION} if isinstance(entry, dict) else entry
        for entry in header["layer"]
    ]
    return {**header, "layer": bare}


def _stale(base: Path) -> ModelFileError:
    return ModelFileError(
        sentence(
            f"{base}/header.bin",
            "no longer fits network.json and the layers' files",
            fix="delete header.bin: the container then gets a new header",
        )
    )


def _build_dat(base: Path) -> bytes:
    chip_network = network.from_json(_read_json(base, "dat.json"), str(base / "dat.json"), to_file=True)
    if upsampling.lost(chip_network):
        log.warning("%s: %s", base, upsampling.lost(chip_network))
    weights = _weights(base, len(chip_network.convolutions))
    exact = _read_json(base, "exact.json") if _has(base, "exact.json") else {}
    header, length, strict = _exact(exact, str(base / "exact.json"))
    tail = _read(base, "tail.bin", dat.MAX_FILE_BYTES) if _has(base, "tail.bin") else b""
    data = dat.encode(chip_network, weights, header=header, length=length, tail=tail, strict=strict)
    if _has(base, "rows.npz"):
        rows = npy.parse_npz(_read(base, "rows.npz", dat.MAX_FILE_BYTES), str(base / "rows.npz"))
        data = _with_rows(data, rows, file_size.row_count(chip_network), str(base / "rows.npz"))
    if strict:  # else it is known to say something else than the folder
        _read_back(data, chip_network, weights, base)
    return data


def _read_back(data: bytes, chip_network: Network, weights: list[ConvolutionWeights], base: Path) -> None:
    """Raise DatError where the file `data` is read as another network than the folder describes."""
    found = dat.decode(data, activation_bit_mode=chip_network.activation_bit_mode, name=f"{base}, read back")
    same = dat_header.words_of(found.network) == dat_header.words_of(chip_network) and all(
        np.array_equal(a.filters, b.filters) and np.array_equal(a.biases, b.biases)
        for a, b in zip(found.weights, weights, strict=True)
    )
    if not same:
        raise DatError(
            str(base),
            "gives a file that reads back as something else",
            expected="a header in exact.json and rows in rows.npz that fit dat.json and weights.npz",
            fix="delete exact.json and rows.npz, or extract the file again",
        )


def _weights(base: Path, count: int) -> list[ConvolutionWeights]:
    name = str(base / "weights.npz")
    arrays = npy.parse_npz(_read(base, "weights.npz", dat.MAX_FILE_BYTES), name)
    wanted = ["shifts", *(f"{kind}{i}" for i in range(count) for kind in "wb")]
    missing = [key for key in wanted if key not in arrays]
    beyond = [key for key in (f"w{count}", f"b{count}") if key in arrays]
    shifts = arrays.get("shifts", np.zeros(0))
    if missing or beyond or shifts.shape != (count,) or shifts.dtype.kind not in "iu":
        raise DatError(
            name,
            "does not hold the arrays of the network",
            expected=f"w0, b0, ... w{count - 1}, b{count - 1} and {count} integer shifts",
            received=f"missing {', '.join(missing[:6])}"
            if missing
            else f"more arrays: {', '.join(beyond)}"
            if beyond
            else f"shifts {shifts.dtype} {list(shifts.shape)}",
            fix="write one pair of arrays for each sublayer in dat.json",
        )
    return [ConvolutionWeights(arrays[f"w{i}"], arrays[f"b{i}"], int(shifts[i])) for i in range(count)]


def _exact(value: object, name: str) -> tuple[tuple[int, ...] | None, int | None, bool]:
    problem = DatError(
        sentence(
            name, "is damaged", expected='{"header": 23 words like "0x00000001", "length": bytes}', fix="delete it"
        )
    )
    if not isinstance(value, dict):
        raise problem
    words, length, strict = value.get("header"), value.get("length"), value.get("strict", True)
    header = None
    if words is not None:
        if not isinstance(words, list) or len(words) != spec.HEADER_WORDS:
            raise problem
        try:
            header = tuple(int(word, 16) for word in words)
        except (TypeError, ValueError):
            raise problem from None
        if not all(0 <= word < 2**32 for word in header):
            raise problem
    if not isinstance(strict, bool) or (length is not None and (not isinstance(length, int) or length is True)):
        raise problem
    return header, length, strict


def _rows(data: bytes, count: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8, count * spec.ROW_BYTES, spec.HEADER_BYTES).reshape(count, spec.ROW_BYTES)


def _with_rows(data: bytes, kept: Mapping[str, np.ndarray], count: int, name: str) -> bytes:
    """Put the kept rows back where the weights still give what they gave at extraction; changed rows stay changed."""
    index, wanted, computed = (kept.get(key, np.zeros(0)) for key in ("index", "wanted", "computed"))
    shape = (index.size, spec.ROW_BYTES)
    sound = index.ndim == 1 and index.dtype.kind in "iu" and wanted.shape == computed.shape == shape
    if not sound or wanted.dtype != np.uint8 or computed.dtype != np.uint8 or (index.size and index.min() < 0):
        raise DatError(name, "is damaged", expected="index, wanted and computed rows", fix="delete it")
    if index.size and index.max() >= count:
        raise DatError(name, "belongs to a larger network", fix="delete it")
    result = bytearray(data)
    rows = np.frombuffer(result, np.uint8, count * spec.ROW_BYTES, spec.HEADER_BYTES).reshape(count, spec.ROW_BYTES)
    same = (rows[index] == computed).all(axis=1)
    rows[index[same]] = wanted[same]
    return bytes(result)


def _has(base: Path, name: str) -> bool:
    return os.path.lexists(base / name)  # a link that leads nowhere is a mistake, not an absent file


def _read(base: Path, name: str, limit: int) -> bytes:
    return files.read_bytes(files.inside(base, name), limit=limit)


def _read_json(base: Path, name: str) -> Any:
    return files.parse_json(_read(base, name, files.MAX_JSON_BYTES), str(base / name), error=DatError)


def _write_folder(folder: Path, parts: Mapping[str, bytes]) -> None:
    """Write `parts` beside `folder` and move them into place together."""
    folder = Path(os.path.realpath(folder))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(str(folder), "is not an empty folder", fix="name a new one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as problem:
        raise UsageError(str(folder), f"cannot be written ({problem.strerror})") from None
    try:
        for name, content in parts.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        temporary.chmod(0o777 & ~files.umask())
        os.replace(temporary, folder)
    except OSError as problem:
        raise UsageError(str(folder), f"cannot be written ({problem.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
