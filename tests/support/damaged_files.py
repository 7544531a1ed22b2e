"""Damaged files, one for each rule of a format: the parser that refuses it, a name, a word of the refusal, the bytes.

A defect that fuzzing finds (scripts/dev/fuzz.py) gets a line here before it is mended.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from scripts.dev.fuzzing import seeds

Entry = tuple[str, str, str, bytes]  # (target of scripts/dev/fuzzing/targets.py, name, word, content)


@functools.cache
def entries() -> list[Entry]:
    families = (_dats, _models, _jsons, _networks, _compositions, _blobs, _arrays, _pictures, _recordings, _keras)
    return [entry for family in families for entry in family()]


def _dats() -> Iterator[Entry]:
    tiny = seeds.dat_file(seeds.networks()["tiny"])

    def word(index: int, keep: int, bits: int = 0) -> bytes:
        old = int.from_bytes(tiny[4 * index : 4 * index + 4], "little")
        return tiny[: 4 * index] + struct.pack("<I", old & keep | bits) + tiny[4 * index + 4 :]

    every = 2**32 - 1
    for name, data in (
        ("empty", b""), ("one-byte", tiny[:1]), ("magic-only", tiny[:4]), ("header-cut", tiny[:91]),
        ("wrong-magic", b"\2" + tiny[1:]), ("picture", b"\x89PNG\r\n\x1a\n" + tiny[8:]), ("all-zeros", bytes(500)),
        ("big-endian", np.frombuffer(tiny[:92], "<u4").astype(">u4").tobytes() + tiny[92:]),
        ("no-layers", word(1, ~0xE0)), ("seven-layers", word(1, every, 0xE0)),
        ("all-ones", b"\1\0\0\0" + b"\xff" * 500),
    ):  # fmt: skip
        yield "dat", name, ".DAT", data
    yield "dat", "header-only", "row", tiny[:92]
    yield "dat", "rows-cut", "row", tiny[:-1]
    yield "dat", "six-layers-of-nothing", "major 2 has no sublayers", word(1, ~0xE0, 0xC0)
    yield "dat", "no-sublayers", "no sublayers", word(3, ~0xF0)
    yield "dat", "fifteen-sublayers", "sublayer_number", word(3, every, 0xF0)
    yield "dat", "size-13", "image_size", word(2, ~0xFF, 13)
    yield "dat", "size-0", "image_size", word(2, ~0xFF)
    yield "dat", "outputs-2047", "output_channels", word(2, every, 0x7FF << 19)
    yield "dat", "outputs-0", "channels", word(2, ~(0x7FF << 19))
    yield "dat", "inputs-differ", "input code", word(2, ~(0x7FF << 8), 32 << 8)
    yield "dat", "input-code-15", "input_channels", word(1, every, 15 << 16)
    yield "dat", "address-beyond", "out_addr", word(3, every, 0x7FF << 19)
    yield "driver", "header-cut", "too short", tiny[:91]
    yield "driver", "no-layers", "count of 0", word(1, ~0xE0)
    yield "driver", "layers-of-nothing", "count of 3", tiny[:4] + b"\x60" + tiny[5:8] + bytes(84)


def _container(header: Any, blob: bytes = b"ABCDEFGH", base: int = 512) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return text.ljust(base, b"\0") + blob


def _layers(**changes: Any) -> dict[str, Any]:
    layer = {"operation": "FC", "name": "fc6", "data offset": 512, "data size": 8} | changes
    return {"layer": [{key: value for key, value in layer.items() if value != "absent"}]}


def _models() -> Iterator[Entry]:
    good = _container(_layers())
    (layer,) = _layers()["layer"]
    for name, data in (("empty", b""), ("no-json", b"PK\3\4" + good), ("a-list", _container([1, 2]))):
        yield "model", name, ".MODEL", data
    yield "model", "cut-in-header", "not JSON", good[:40]
    yield "model", "cut-in-data", "outside", good[:-1]
    yield "model", "no-nul", "no NUL", json.dumps(_layers()).encode()
    yield "model", "trailing-byte", "behind", good + b"x"
    yield "model", "trailing-file", "behind", good + seeds.archives()["rows"]
    yield "model", "hidden-data", "belong", good[:500] + b"PK\3\4" + good[504:]
    for name, value in (
        ("no-layers-key", {"name": "x"}),
        ("layer-no-list", {"layer": {}}),
        ("numbers", {"layer": [1]}),
    ):
        yield "model", name, "objects", _container(value)
    yield "model", "1025-layers", "layers", _container({"layer": [{}] * 1025}, base=5000)
    for word, cases in (
        ("outside", {"data offset": (0, 10, 521, 2**63), "data size": (9, 2**32)}),
        ("byte", {"data offset": ("512", True), "data size": (-1, 8.0, None, "absent")}),
    ):
        for key, values in cases.items():
            for value in values:
                yield "model", f"{key} {value!r}", word, _container(_layers(**{key: value}))
    yield "model", "same-data-twice", "overlap", _container({"layer": [layer, layer]})
    yield "model", "overlap", "overlap", _container({"layer": [layer, layer | {"data offset": 516, "data size": 4}]})
    for name, path in (("data-file", "x.bin"), ("data-file-outside", "../../etc/passwd")):
        yield "model", name, "container", _container(_layers(**{"data file": path}))
    yield (
        "model",
        "escape-in-name",
        r"FC \x1b[2J\x202efc",
        _container(_layers(name="\x1b[2J\u202efc", **{"data size": 99})),
    )
    yield "model", "duplicate-key", "stands twice", _container(b'{"layer": [], "layer": []}')
    yield "model", "nan", "NaN", _container(b'{"layer": [{"x": NaN}]}')
    yield "model", "deep", "too deeply", _container(b'{"layer": ' + b"[" * 10_000, base=10_100)


def _jsons() -> Iterator[Entry]:
    for word, texts in {
        "not JSON": (b"", b'{"a": 1}\0', b'{"a": [1, 2', b"{} {}", b"{} // no"),
        "not UTF-8": (b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16")),
        "stands twice": (b'{"a": 1, "a": 2}', b'{"\\u001b[2J": 1, "\\u001b[2J": 2}'),
        "a number that is none": (b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}'),
        "beyond double range": (b'{"a": 1e999}', b'{"a": -1e999}'),
        "too many digits": (b'{"a": ' + b"9" * 41 + b"}", b"1" * 10_000),
        "too deeply": (b"[" * 65 + b"]" * 65, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "character": (b'{"a": "\\ud800"}',),
    }.items():
        for text in texts:
            yield "json", f"{len(text)} bytes, {text[:30]!r}", word, text
    good = json.loads(seeds.metadata())
    yield "metadata", "a-list", "JSON", b"[]"
    for key, value in (("stage", "\x1b[2J"), ("epoch", -1), ("accuracy", 2)):
        yield "metadata", key, f"{key} is wrong", json.dumps({**good, key: value}).encode()
    yield "metadata", "net-missing", "lacks net", json.dumps({"chip": "2801"}).encode()


def _networks() -> Iterator[Entry]:
    good = json.loads(seeds.dat_json(seeds.networks()["rgb"]))

    def changed(layer: int | None = None, **changes: Any) -> bytes:
        value = json.loads(json.dumps(good))
        part = value["model"][0] if layer is None else value["layer"][layer]
        for key, new in changes.items():
            part.pop(key) if new == "absent" else part.update({key: new})
        return json.dumps(value).encode()

    yield "dat.json", "a-list", "JSON", b"[]"
    for name, word, value in (
        ("no-layers", "MajorLayerNumber", {"layer": []}), ("layer-null", "wrong type", {"layer": None}),
        ("layer-of-null", "JSON", {"layer": [None]}),
        ("two-models", "one object", {"model": good["model"] * 2}),
        ("ten-thousand-layers", "things to correct", {"layer": [0] * 10_000}),
    ):  # fmt: skip
        yield "dat.json", name, word, json.dumps({**good, **value}).encode()
    for key in ("image_size", "input_channels", "output_channels", "sublayer_number", "scaling", "coef_bits"):
        yield "dat.json", f"{key}-missing", f'"{key}"', changed(0, **{key: "absent"})
        yield "dat.json", f"{key}-null", f'"{key}"', changed(0, **{key: None})
        yield "dat.json", f"{key}-text", f'"{key}"', changed(0, **{key: "3"})
        yield "dat.json", f"{key}-huge", key, changed(0, **{key: 10**39})
    for word, values in {
        "shift": ([4] * 13,), "0..15": ([-1, 4], [16, 4]), "wrong type": ([4.5, 4], [True, 4]),
    }.items():  # fmt: skip
        for shifts in values:
            yield "dat.json", f"scaling {shifts}", word, changed(0, scaling=shifts)
    yield "dat.json", "image-size-448-late", "first major layer only", changed(1, image_size=448)
    yield "dat.json", "channels-17", "output_channels", changed(0, output_channels=17)
    yield "dat.json", "coef-bits-2", "coef_bits", changed(0, coef_bits=2)
    yield "dat.json", "upsample-mode-escape", r"\x1b[2J", changed(0, upsample_mode="\x1b[2J")
    yield "dat.json", "chip-2803", "ChipType", changed(ChipType=2803)
    yield "dat.json", "chip-absent", '"ChipType" is missing', changed(ChipType="absent")
    yield "dat.json", "chip-capital", '"ChipType" is missing', changed(ChipType="absent", chiptype=2801)


def _compositions() -> Iterator[Entry]:
    good = json.loads(seeds.full_model(seeds.networks()["rgb"])[0])

    def changed(**changes: Any) -> bytes:
        value = json.loads(json.dumps(good))
        value["layer"][2] |= changes
        return json.dumps(value, indent=2).encode()

    for word, names in {
        "leads outside": ("../fc.bin", "/etc/passwd", "C:\\fc.bin", "link.bin", ".", "\x1b[2J", ""),
        "no such file": ("other.bin",),
        "wrong type": (7, ["fc.bin"]),
    }.items():
        for name in names:
            yield "network.json", f"data file {name!r}", word, changed(**{"data file": name})
    beyond = {"data offset": 10**9, "data size": 1}
    yield "network.json", "offset-beyond-file", "inside", changed(**beyond)


def _blobs() -> Iterator[Entry]:
    values = np.arange(6, dtype="<f4")
    for name, inputs, outputs in (
        ("fits-not", 2, 3), ("zero-inputs", 0, 6), ("negative", -1, -6), ("wraps", 65536, 65536),
        ("huge", 2**31 - 1, 2**31 - 1),
    ):  # fmt: skip
        yield "fc", name, "length", struct.pack("<ii", inputs, outputs) + values.tobytes()
    yield "fc", "seven-bytes", "too short", bytes(7)
    for at, bad, word in ((2, np.nan, "weights"), (2, np.inf, "weights"), (5, np.nan, "biases")):
        holed = np.where(np.arange(6) == at, bad, values).astype("<f4")
        yield "fc", f"{bad} at {at}", f"{word}", struct.pack("<ii", 2, 2) + holed.tobytes()
    yield "label-data", "not-utf-8", "not UTF-8", b"cat\nd\xf6g\n"
    yield "label-data", "nul", "NUL", b"cat\0dog\n"
    for name, word, data in (
        ("empty", "no labels", b""), ("blank-lines", "no labels", b"\r\n\n  \n"),
        ("not-utf-8", "not UTF-8", b"0 background\n1 d\xf6g\n"), ("gap", "leaves out", b"0 background\n1 cat\n3 dog\n"),
        ("number-twice", "stands twice", b"0 background\n1 cat\n1 dog\n"),
        ("name-twice", "stands twice", b"cat\ndog\ncat\n"), ("long-name-twice", "aaa...", (b"a" * 10_000 + b"\n") * 2),
        ("escape-twice", "U+001B", b"\x1b[2J\x07\n\x1b[2J\x07\n"),
    ):  # fmt: skip
        yield "labels", name, word, data


def _npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + body


def _arrays() -> Iterator[Entry]:
    yield "npy", "empty", ".npy", b""
    yield "npy", "magic-only", ".npy", b"\x93NUMPY\1\0"
    for name, word, descr, shape, body in (
        ("objects", "Python objects", "|O", "(1,)", b"\x80\4K\1."), ("no-type", ".npy", "?!", "(1,)", b"x"),
        ("empty-items", "Python objects", "|V0", "(1,)", b""), ("negative", "length", "|u1", "(-1, -1)", b"x"),
        ("huge-shape", "length", "|u1", "(1000000000000,)", b"x"), ("one-short", "length", "<u4", "(2,)", bytes(7)),
        ("wraps", "length", "<f8", "(4294967296, 4294967296)", b""), ("one-long", "length", "<u4", "(2,)", bytes(9)),
    ):  # fmt: skip
        yield "npy", name, word, _npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n", body)
    yield "npy", "nested-header", ".npy", _npy("(" * 5000)
    code = "{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': ()}"
    yield "npy", "code-in-header", ".npy", _npy(code)
    good = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4,)}\n", b"abcd")
    yield "npz", "not-zip", ".npz", b"PK\3\4 and no more"
    for name, word, members, method in (
        ("bomb", "unpacks", {"w0.npy": bytes(40_000_000)}, zipfile.ZIP_DEFLATED),
        ("bzip2", "unusual way", {"w0.npy": good}, zipfile.ZIP_BZIP2),
        ("no-array", "'w0': is not a .npy", {"w0.npy": b"hello"}, zipfile.ZIP_STORED),
        ("twice", "two", {"w0.npy": good, "w0": good}, zipfile.ZIP_STORED),
        ("4097-members", "arrays", {f"{i}.npy": b"" for i in range(4097)}, zipfile.ZIP_STORED),
    ):
        yield "npz", name, word, seeds.archive(members, method)


def _png(side: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def _pictures() -> Iterator[Entry]:
    def saved(values: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, values)
        return buffer.getvalue()

    for name, suffix, word, content in (
        ("empty", "png", "no image", b""), ("text", "jpg", "no image", b"hello"),
        ("no-pixels", "png", "no image", _png(0)),
        ("cut", "png", "decoded", _png(32)[:60]),
        ("pixels-missing", "png", "decoded", _png(32, data=bytes(10))),
        ("bomb-100-megapixels", "png", "pixels", _png(10_000)),
        ("bomb-25-megapixels", "png", "pixels", _png(5000)),
        ("bomb-2e62-pixels", "png", "too large", _png(2**31 - 1)),
        ("16-bit-grey", "png", "8 bits", _png(32, depth=16, color=0, data=bytes(32 * 65))),
        ("transparent", "png", "transparent", _png(32, color=6, data=bytes(32 * 129))),
        ("floats", "npy", "float32", saved(np.zeros((32, 32, 3), np.float32))),
        ("planes-first", "npy", "planes first", saved(np.zeros((3, 32, 32), np.uint8))),
        ("one-byte-short", "bin", "wrong length", bytes(3071)),
    ):  # fmt: skip
        yield "image", name, word, suffix.encode() + b"\0" + content


def _recordings() -> Iterator[Entry]:
    good = gzip.decompress(seeds.recording())
    first = good.split(b"\n", 1)[0] + b"\n"
    yield "recording", "empty", "no recording", b""
    yield "recording", "not-gzip", "no recording", b"{}"
    for word, texts in {
        "no recording": (b'{"format": "other"}\n', b"[]\n", b"[" * 10_000 + b"\n", b"\xff\n", b"[" + bytes(20_000_000)),
        "call 1": (
            first + b'{"call": "__class__", "args": []}\n',
            first + b'{"call": "open_device"}\n',
            first + b'{"call": "open_device", "args": [], "error": [1, 2, 3]}\n',
            first + b'{"call": "enumerate_devices", "args": [], "result": 5}\n',
        ),
        "call 5": (good.replace(b"AAEC", b"\x22: 1 "),),
    }.items():
        for text in texts:
            yield "recording", repr(text[-40:]), word, gzip.compress(text, 1, mtime=0)


def _keras() -> Iterator[Entry]:
    yield "keras", "not-zip", "no .keras", b"hello"
    for name, word, members, method in (
        ("no-config", "Keras", {"x": b""}, zipfile.ZIP_STORED),
        ("config-no-json", "not JSON", {"config.json": b"hello"}, zipfile.ZIP_STORED),
        ("config-a-list", "Keras 3", {"config.json": b"[]"}, zipfile.ZIP_STORED),
        ("config-bomb", "too large", {"config.json": b" " * 20_000_000}, zipfile.ZIP_DEFLATED),
        ("config-bzip2", "unusual way", {"config.json": b"{}"}, zipfile.ZIP_BZIP2),
    ):
        yield "keras", name, word, seeds.archive(members, method)
