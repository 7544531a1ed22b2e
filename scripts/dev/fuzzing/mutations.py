"""Small damages to good files: of bytes, of JSON values, and of the structures around them."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]

_INTEGERS = (0, 1, -1, 2, 7, 15, 16, 17, 31, 127, 128, 255, 256, 1023, 1025, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1,
             2**53, 2**63 - 1, 2**63, -(2**31), -(2**63))  # fmt: skip
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
# What JSON may hold and nobody expects; the last ones are text that json.dumps would not write.
_VALUES: tuple[Any, ...] = (
    None, True, False, *_INTEGERS, 10**39, 0.0, -0.0, 0.5, 3.0, 1e-308, 1e308, "", "3", "a" * 5000, "../x",
    "/etc/passwd", "C:\\x", "\x1b[2Jgone", "\x00", "\u202eevil", "\ud800", "__class__",
    [], {}, [[]], [0] * 300, [{}] * 40, {"": None},
)  # fmt: skip
_RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 5000,
    "-0",
    "[" * 100,
    "{",
    '"',
    "'x'",
    "tru",
    "\\u12",
    '{"a":1,"a":2}',
)
_MARK = "\ue000raw"


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to four places damaged; the beginning is hit more often than the rest."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _damage(result, rng)
    return bytes(result)


def _damage(data: bytearray, rng: random.Random) -> None:
    size = len(data)
    if not size:
        data.extend(rng.randbytes(rng.randrange(1, 64)))
        return
    at = rng.randrange(min(size, 128) if rng.random() < 0.5 else size)
    length = rng.choice((1, 2, 4, 16, 92, 192, 1024))
    kind = rng.randrange(9)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 2:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice(_INTEGERS) % (1 << 8 * width)
        order = rng.choice("<>")
        data[at : at + width] = struct.pack(order + _FORMATS[width], value)
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = rng.randbytes(length)
    elif kind == 5:
        data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 50))
    elif kind == 6:
        del data[at:]
    elif kind == 7:
        other = rng.randrange(size)
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    else:
        data.extend(rng.choice((bytes(length), rng.randbytes(length), bytes(data[:1024]))))


def of_value(value: Any, rng: random.Random) -> Any:
    """Return the JSON `value` with one node replaced, deleted, doubled, renamed or moved; `value` stays as it is."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = _MARK + str(rng.randrange(len(_RAW)))
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice((key.upper(), key + " ", "__class__", "", "x" * 300))] = holder.pop(key)
    elif kind == 2 or (kind == 3 and isinstance(holder, list)):
        holder[key:key] = [holder[key]] * rng.choice((1, 2, 20))
    elif kind == 3:
        other, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
    elif kind == 4 and isinstance(holder[key], int):
        holder[key] += rng.choice((-1, 1, 16, -16))
    elif kind == 5:
        holder[key] = [holder[key]]
    else:
        holder[key] = rng.choice(_VALUES)
    return value


def _places(value: Any) -> Any:
    stack = [value]
    while stack:
        holder = stack.pop()
        items = list(
            holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        )
        for key, inner in items:
            yield holder, key
            stack.append(inner)


def text_of(value: Any) -> bytes:
    """Return the JSON text of a value from `of_value`."""
    text = json.dumps(value)
    for index, raw in enumerate(_RAW):
        text = text.replace(json.dumps(_MARK + str(index)), raw)
    return text.encode("utf-8", "surrogatepass")


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON text with its value or its bytes damaged."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = of_value(value, rng)
    return text_of(value)


def of_model(data: bytes, rng: random.Random) -> bytes:
    """Return a container with its header, or bytes of its blobs, damaged; the blobs stay where they are."""
    end = data.index(b"\0")
    base = len(data) - len(data[end:].lstrip(b"\0"))
    choice = rng.random()
    if choice < 0.55:
        text = of_json(data[:end], rng)
        return text.ljust(base, b"\0") + data[base:]
    if choice < 0.85:
        return data[:base] + of_bytes(data[base:], rng)
    return of_bytes(data, rng)


def of_zip(data: bytes, rng: random.Random) -> bytes:
    """Return a zip archive with a member, its name or packing, or the archive's bytes damaged."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    kind = rng.randrange(5)
    if kind == 0:
        members[rng.choice(("../x.npy", "/x", "", "w0", "\x1b[2J.npy"))] = members.pop(name)
    elif kind == 1:
        members[name] = bytes(rng.choice((10**6, 3 * 10**6)))
    elif members[name].startswith(b"{"):
        members[name] = of_json(members[name], rng)
    else:
        members[name] = of_bytes(members[name], rng)
    method = (
        rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        if rng.random() < 0.3
        else 0
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for key, content in members.items():
            archive.writestr(zipfile.ZipInfo(key), content, method)
    return buffer.getvalue()


def of_recording(data: bytes, rng: random.Random) -> bytes:
    """Return a recording with a line, the order of its lines, or the packed bytes damaged."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    lines = gzip.decompress(data).splitlines()
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == 2:
        lines[at] = rng.choice((b"[" * 5000, b"1" * 5000, b"a" * 20000, bytes(100), b"\xff", b"[]"))
    else:
        lines[at] = of_json(lines[at], rng)
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(b"\n".join(lines) + b"\n") + packer.flush()


def named(mutate: Mutate) -> Mutate:
    """Return a mutation of `<name>NUL<content>` that leaves the name alone."""

    def change(data: bytes, rng: random.Random) -> bytes:
        name, _, content = data.partition(b"\0")
        return name + b"\0" + mutate(content, rng)

    return change


def by_content(data: bytes, rng: random.Random) -> bytes:
    """Return `<name>NUL<content>` with the content damaged as its kind allows."""
    content = data.partition(b"\0")[2]
    kind = (
        of_json
        if content.startswith(b"{") and b"\0" not in content
        else of_zip
        if content.startswith(b"PK")
        else of_bytes
    )
    return named(kind)(data, rng)
