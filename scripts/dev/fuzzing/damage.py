"""Strategies of Hypothesis that damage a good file: its bytes, its JSON values, and the structures around them."""

from __future__ import annotations

import copy
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from scripts.dev.fuzzing.seeds import archive

Damage = Callable[[bytes], SearchStrategy[bytes]]

EDGES = st.sampled_from((0, 1, 2, 7, 15, 16, 31, 127, 255, 1023, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63))
NUMBERS = st.tuples(st.sampled_from("<>"), st.sampled_from("BHIQ"), EDGES).map(
    lambda drawn: struct.pack(drawn[0] + drawn[1], drawn[2] % (1 << 8 * struct.calcsize(drawn[1])))
)
LENGTHS = st.sampled_from((0, 1, 1, 2, 4, 8, 16, 92, 192, 1024, 2**31))
# What JSON may hold and nobody expects; RAW is text that json.dumps would not write.
_ODD: tuple[Any, ...] = (
    None, True, False, 10**39, 2**53, -(2**63), 0.0, -0.0, 0.5, 3.0, 1e-308, 1e308, "", "3", "a" * 5000, "../x",
    "/etc/passwd", "C:\\x", "\x1b[2Jgone", "\x00", "\u202eevil", "\ud800", "__class__",
    [], {}, [[]], [0] * 300, [{}] * 40, {"": None},
)  # fmt: skip
VALUES: SearchStrategy[Any] = st.sampled_from(_ODD).map(copy.deepcopy)
RAW = st.sampled_from(
    ("NaN", "-Infinity", "1e999", "1" * 5000, "-0", "[" * 100, "{", '"', "'x'", "tru", "\\u12", '{"a":1,"a":2}')
)
_MARK = "\ue000raw"


@st.composite
def of_bytes(draw: DrawFn, data: bytes) -> bytes:
    """Replace, double, leave out or cut off pieces; the beginning is hit more often than the rest."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), 128)) | st.integers(0, len(data)))
        piece = data[at : at + draw(LENGTHS)]
        copies = st.sampled_from([piece[:2048] * times for times in (2, 3, 50)])
        new = draw(st.binary(max_size=64) | NUMBERS | copies | st.just(bytes(len(piece))))
        data = data[:at] + new + data[at + len(piece) :]
    return data


@st.composite
def of_json(draw: DrawFn, data: bytes) -> bytes:
    """Replace, leave out, double, rename or move values of a JSON text, or damage its bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(of_bytes(data))
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 4))):
        places = _places(value)
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        other, name = places[draw(st.integers(0, len(places) - 1))]
        new = draw(VALUES | EDGES | st.just(_MARK) | st.just([holder[key]]) | st.just(copy.deepcopy(other[name])))
        if isinstance(holder[key], int):
            new = draw(st.sampled_from((new, *(holder[key] + step for step in (-16, -1, 1, 16)))))
        action = draw(st.sampled_from(("replace", "replace", "leave out", "more")))
        if action == "leave out":
            del holder[key]
        elif action == "replace":
            holder[key] = new
        elif isinstance(holder, list):
            holder[key:key] = [holder[key]] * draw(st.sampled_from((1, 2, 20)))
        else:
            holder[draw(st.sampled_from((key.upper(), key + " ", "__class__", "", "x" * 300)))] = holder.pop(key)
    return json.dumps(value).replace(json.dumps(_MARK), draw(RAW)).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (holder, key or index) of every value inside `value`."""
    result = []
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        result += [(holder, key) for key in keys]
        stack += [holder[key] for key in keys]
    return result


def of_model(data: bytes) -> SearchStrategy[bytes]:
    """Damage the header of a container, or its blobs, which stay where they are, or all its bytes."""
    end = data.index(b"\0")
    base = len(data) - len(data[end:].lstrip(b"\0"))
    header = of_json(data[:end]).map(lambda text: text.ljust(base, b"\0") + data[base:])
    return st.one_of(header, header, of_bytes(data[base:]).map(lambda blobs: data[:base] + blobs), of_bytes(data))


@st.composite
def of_zip(draw: DrawFn, data: bytes) -> bytes:
    """Damage, rename, blow up or repack a member of an archive, or damage the archive's bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(of_bytes(data))
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    name = draw(st.sampled_from(list(members)))
    action = draw(st.sampled_from(("content", "content", "content", "name", "size")))
    if action == "name":
        members[draw(st.sampled_from(("../x.npy", "/x", "", "w0", "\x1b[2J.npy")))] = members.pop(name)
    else:
        zeros = draw(st.sampled_from((10**6, 3 * 10**6)))
        members[name] = bytes(zeros) if action == "size" else draw(by_content(members[name]))
    packing = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return archive(members, draw(st.sampled_from(packing)))


@st.composite
def of_recording(draw: DrawFn, data: bytes) -> bytes:
    """Leave out, double, move or damage a line of a recording, or damage the packed bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(of_bytes(data))
    lines = gzip.decompress(data).splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    odd = st.sampled_from((b"[" * 5000, b"1" * 5000, b"a" * 20000, bytes(100), b"\xff", b"[]"))
    new = draw(st.lists(of_json(lines[at]) | odd | st.just(lines[draw(st.integers(0, len(lines) - 1))]), max_size=2))
    return gzip.compress(b"\n".join([*lines[:at], *new, *lines[at + 1 :]]) + b"\n", 1, mtime=0)


def by_content(data: bytes) -> SearchStrategy[bytes]:
    """Damage a file as what it looks like: JSON, an archive, or bytes."""
    if data.startswith(b"{") and b"\0" not in data:
        return of_json(data)
    return of_zip(data) if data.startswith(b"PK") else of_bytes(data)


def named(damage: Damage) -> Damage:
    """Return a damage of `<name>NUL<content>` that leaves the name alone."""

    def change(data: bytes) -> SearchStrategy[bytes]:
        name, _, content = data.partition(b"\0")
        return damage(content).map(lambda damaged: name + b"\0" + damaged)

    return change
