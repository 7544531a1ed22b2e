"""Where two .DAT or .MODEL files differ first, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import islice

import numpy as np

from gti.chip import spec
from gti.chip.formats import dat, model_file
from gti.chip.formats.dat import Dat
from gti.chip.network.rules import major_path
from gti.chip.network.types import MajorLayer
from gti.errors import DatError, printable

_MAX_LINES = 20


def diff_dat(a: bytes, b: bytes, names: tuple[str, str], ten_bit: int | None = None) -> list[str]:
    """Return what differs between two .DAT files, the first thing first; empty when they are equal byte for byte.

    `ten_bit`: `activation_bit_mode` of `dat.decode`, for both. Raises DatError when one of them cannot be read.
    """
    if a == b:
        return []
    left, right = (
        dat.decode(data, activation_bit_mode=ten_bit, name=name) for data, name in zip((a, b), names, strict=True)
    )
    found = list(islice(_networks(left, right), _MAX_LINES))
    if not found and left.network.layers == right.network.layers:
        found = list(islice(_weights(left, right), _MAX_LINES))
    if not found:
        found = list(islice(_rest(left, right, a, b), _MAX_LINES))
    return found


def diff_model(a: bytes, b: bytes, names: tuple[str, str], ten_bit: int | None = None) -> list[str]:
    """Return what differs between two containers, like `diff_dat`. Raises ModelFileError."""
    if a == b:
        return []
    left, right = (model_file.parse(data, name) for data, name in zip((a, b), names, strict=True))
    found = list(islice(_json(left.header, right.header, "header"), _MAX_LINES))
    for i, (one, other) in enumerate(zip(left.layers, right.layers, strict=False)):
        if one.blob is None or other.blob is None or one.blob == other.blob:
            continue
        path = model_file.layer_path(i, one.entry)
        try:
            inside = (f"{names[0]}, {path}", f"{names[1]}, {path}")
            inner = diff_dat(bytes(one.blob), bytes(other.blob), inside, ten_bit)
        except DatError:
            inner = [_bytes(bytes(one.blob), bytes(other.blob))]
        found += [f"{path}: {line}" for line in inner]
    if not found:
        found.append(_bytes(a, b))
    return found[:_MAX_LINES]


def _networks(left: Dat, right: Dat) -> Iterator[str]:
    one, other = left.network, right.network
    for key in ("sampling_method", "activation_bit_mode"):
        if getattr(one, key) != getattr(other, key):
            yield f"header, {key}: {getattr(one, key)} and {getattr(other, key)}"
    if len(one.layers) != len(other.layers):
        yield f"header, major layers: {len(one.layers)} and {len(other.layers)}"
    for m, (a, b) in enumerate(zip(one.layers, other.layers, strict=False), 1):
        for key in (field.name for field in fields(MajorLayer) if field.name != "extra"):
            if getattr(a, key) == getattr(b, key):
                continue
            if key == "scaling" and len(a.scaling) == len(b.scaling):
                sub = next(s for s, (x, y) in enumerate(zip(a.scaling, b.scaling, strict=True)) if x != y)
                conv = next(c for c in one.convolutions if (c.major, c.sub) == (m, sub + 1))
                yield f"header, {conv.path}: shift {a.scaling[sub]} and {b.scaling[sub]}"
            else:
                yield f"header, {major_path(m)}: {key} {getattr(a, key)} and {getattr(b, key)}"


def _weights(left: Dat, right: Dat) -> Iterator[str]:
    for conv, one, other in zip(left.network.convolutions, left.weights, right.weights, strict=True):
        kernels = np.argwhere((one.filters != other.filters).any(axis=(2, 3)))
        if kernels.size:
            o, i = (int(k) for k in kernels[0])
            a, b = (w.filters[o, i].ravel() for w in (one, other))
            tap = int(np.flatnonzero(a != b)[0])
            yield (
                f"{conv.path}: {len(kernels)} kernels, the first is output {o}, input {i}: row {tap // 3}, column "
                f"{tap % 3} is {a[tap]} and {b[tap]} (kernels {a.tolist()} and {b.tolist()})"
            )
        biases = np.flatnonzero(one.biases != other.biases)
        if biases.size:
            o = int(biases[0])
            yield f"{conv.path}: {len(biases)} biases, the first is output {o}: {one.biases[o]} and {other.biases[o]}"


def _rest(left: Dat, right: Dat, a: bytes, b: bytes) -> Iterator[str]:
    """Yield differences that change neither network nor weights."""
    for i, (x, y) in enumerate(zip(left.header, right.header, strict=True)):
        if x != y:
            yield f"header word {i} (byte {4 * i}): 0x{x:08x} and 0x{y:08x}, which name the same network"
    if left.length != right.length:
        yield f"length: {left.length} and {right.length} bytes"
    end = spec.HEADER_BYTES + spec.ROW_BYTES * left.rows
    if a[spec.HEADER_BYTES : end] != b[spec.HEADER_BYTES : end]:
        yield f"filter rows: {_bytes(a[:end], b[:end])}, in bits that change no weight"
    if left.tail != right.tail:
        yield f"padding after the rows: {_bytes(a, b)}"


def _json(a: object, b: object, path: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                yield f"{path}: {printable(key)!r} is in the {'first' if key in a else 'second'} file only"
            else:
                yield from _json(a[key], b[key], f"{path}, {printable(key)}")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{path}: {len(a)} and {len(b)} entries"
        for i, (x, y) in enumerate(zip(a, b, strict=False), 1):
            yield from _json(x, y, f"{path} {i}")
    elif a != b or type(a) is not type(b):
        yield f"{path}: {printable(repr(a))} and {printable(repr(b))}"


def _bytes(a: bytes, b: bytes) -> str:
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} bytes"
    place = int(np.flatnonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))[0])
    return f"byte {place} is 0x{a[place]:02x} and 0x{b[place]:02x}"
