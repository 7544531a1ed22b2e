#!/usr/bin/env python
"""Write the corpus of damaged files, tests/corpus/, and what the kit answers to each, tests/corpus/corpus.json:

    python scripts/dev/make_corpus.py            # write
    python scripts/dev/make_corpus.py --check    # compare only; exit status 1 where a file or an answer differs

One file for each rule of a format, named after the rule; `<target>` is the parser of scripts/dev/fuzzing/targets.py.
Every answer is a sentence for users: read the changes of corpus.json before they are committed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from gti import cli, files
from gti.errors import GtiError
from scripts.dev.fuzzing import seeds
from scripts.dev.fuzzing.targets import TARGETS, clean_up

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "corpus"
INDEX = "corpus.json"

Entry = tuple[str, str, bytes]  # (target, name, content)


def entries() -> Iterator[Entry]:
    """Yield every damaged file; a section of the list of bad inputs after the other."""
    yield from _dats()
    yield from _models()
    yield from _jsons()
    yield from _networks()
    yield from _compositions()
    yield from _blobs()
    yield from _texts()
    yield from _arrays()
    yield from _pictures()
    yield from _recordings()
    yield from _keras()


def _dats() -> Iterator[Entry]:
    tiny = seeds.dat_file(seeds.networks()["tiny"])
    yield "dat", "empty", b""
    yield "dat", "one-byte", tiny[:1]
    yield "dat", "magic-only", tiny[:4]
    yield "dat", "header-cut", tiny[:91]
    yield "dat", "header-only", tiny[:92]
    yield "dat", "rows-cut", tiny[:-1]
    yield "dat", "wrong-magic", b"\2" + tiny[1:]
    yield "dat", "big-endian", b"".join(tiny[i : i + 4][::-1] for i in range(0, 92, 4)) + tiny[92:]
    yield "dat", "picture", b"\x89PNG\r\n\x1a\n" + tiny[8:]
    yield "dat", "no-layers", _word(tiny, 1, _word_of(tiny, 1) & ~0xE0)
    yield "dat", "seven-layers", _word(tiny, 1, _word_of(tiny, 1) | 0xE0)
    yield "dat", "six-layers-of-nothing", _word(tiny, 1, _word_of(tiny, 1) & ~0xE0 | 0xC0)
    yield "dat", "no-sublayers", _word(tiny, 3, _word_of(tiny, 3) & ~0xF0)
    yield "dat", "fifteen-sublayers", _word(tiny, 3, _word_of(tiny, 3) | 0xF0)
    yield "dat", "size-13", _word(tiny, 2, _word_of(tiny, 2) & ~0xFF | 13)
    yield "dat", "size-0", _word(tiny, 2, _word_of(tiny, 2) & ~0xFF)
    yield "dat", "outputs-2047", _word(tiny, 2, _word_of(tiny, 2) | 0x7FF << 19)
    yield "dat", "outputs-0", _word(tiny, 2, _word_of(tiny, 2) & ~(0x7FF << 19))
    yield "dat", "inputs-differ", _word(tiny, 2, _word_of(tiny, 2) & ~(0x7FF << 8) | 32 << 8)
    yield "dat", "input-code-15", _word(tiny, 1, _word_of(tiny, 1) | 15 << 16)
    yield "dat", "address-beyond", _word(tiny, 3, _word_of(tiny, 3) | 0x7FF << 19)
    yield "dat", "all-ones", b"\1\0\0\0" + b"\xff" * 500
    yield "dat", "all-zeros", bytes(500)
    yield "driver", "header-cut", tiny[:91]
    yield "driver", "no-layers", _word(tiny, 1, _word_of(tiny, 1) & ~0xE0)
    yield "driver", "layers-of-nothing", tiny[:4] + b"\x60" + tiny[5:8] + bytes(84)


def _word_of(data: bytes, index: int) -> int:
    return int(struct.unpack_from("<I", data, 4 * index)[0])


def _word(data: bytes, index: int, value: int) -> bytes:
    return data[: 4 * index] + struct.pack("<I", value) + data[4 * index + 4 :]


def _container(header: Any, blob: bytes = b"ABCDEFGH", base: int = 512) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return text.ljust(base, b"\0") + blob


def _layers(**changes: Any) -> dict[str, Any]:
    layer = {"operation": "FC", "name": "fc6", "data offset": 512, "data size": 8} | changes
    return {"layer": [{key: value for key, value in layer.items() if value != "absent"}]}


def _models() -> Iterator[Entry]:
    good = _container(_layers())
    yield "model", "empty", b""
    yield "model", "no-json", b"PK\3\4" + good
    yield "model", "cut-in-header", good[:40]
    yield "model", "cut-in-data", good[:-1]
    yield "model", "no-nul", json.dumps(_layers()).encode()
    yield "model", "trailing-byte", good + b"x"
    yield "model", "trailing-file", good + seeds.archives()["rows"]
    yield "model", "hidden-data", good[:500] + b"PK\3\4" + good[504:]
    yield "model", "a-list", _container([1, 2])
    yield "model", "no-layers-key", _container({"name": "x"})
    yield "model", "layer-no-list", _container({"layer": {}})
    yield "model", "layer-of-numbers", _container({"layer": [1]})
    yield "model", "1025-layers", _container({"layer": [{}] * 1025}, base=5000)
    for name, offset, size in (
        ("offset-0", 0, 8), ("offset-in-header", 10, 8), ("offset-past-end", 521, 8), ("offset-2e63", 2**63, 8),
        ("size-9", 512, 9), ("size-2e32", 512, 2**32), ("size-negative", 512, -1), ("offset-text", "512", 8),
        ("offset-true", True, 8), ("size-float", 512, 8.0), ("size-null", 512, None), ("size-absent", 512, "absent"),
    ):  # fmt: skip
        yield "model", name, _container(_layers(**{"data offset": offset, "data size": size}))
    twice = _layers()["layer"] * 2
    yield "model", "same-data-twice", _container({"layer": twice})
    yield "model", "overlap", _container({"layer": [twice[0], twice[0] | {"data offset": 516, "data size": 4}]})
    for name, path in (("data-file", "x.bin"), ("data-file-outside", "../../etc/passwd")):
        yield "model", name, _container(_layers(**{"data file": path}))
    yield "model", "escape-in-name", _container(_layers(name="\x1b[2J\u202efc", **{"data size": 99}))
    yield "model", "duplicate-key", _container(b'{"layer": [], "layer": []}')
    yield "model", "nan", _container(b'{"layer": [{"x": NaN}]}')
    yield "model", "deep", _container(b'{"layer": ' + b"[" * 10_000, base=10_100)


def _jsons() -> Iterator[Entry]:
    yield "json", "empty", b""
    yield "json", "not-utf-8", b'{"a": "\xff"}'
    yield "json", "utf-16", '{"a": 1}'.encode("utf-16")
    yield "json", "nul", b'{"a": 1}\0'
    yield "json", "cut", b'{"a": [1, 2'
    yield "json", "two-values", b"{} {}"
    yield "json", "comment", b"{} // no"
    yield "json", "duplicate-key", b'{"a": 1, "a": 2}'
    yield "json", "duplicate-escape-key", b'{"\\u001b[2J": 1, "\\u001b[2J": 2}'
    for name in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        yield "json", f"number-{name.lower()}", f'{{"a": {name}}}'.encode()
    yield "json", "integer-41-digits", b'{"a": ' + b"9" * 41 + b"}"
    yield "json", "integer-10000-digits", b"1" * 10_000
    yield "json", "nested-65", b"[" * 65 + b"]" * 65
    yield "json", "nested-10000", b"[" * 10_000 + b"]" * 10_000
    yield "json", "nested-objects", b'{"a":' * 5000 + b"1" + b"}" * 5000
    yield "json", "half-a-character", b'{"a": "\\ud800"}'
    yield "metadata", "a-list", b"[]"
    yield "metadata", "stage-unknown", json.dumps({**json.loads(seeds.metadata()), "stage": "\x1b[2J"}).encode()
    yield "metadata", "epoch-negative", json.dumps({**json.loads(seeds.metadata()), "epoch": -1}).encode()
    yield "metadata", "accuracy-2", json.dumps({**json.loads(seeds.metadata()), "accuracy": 2}).encode()
    yield "metadata", "net-missing", json.dumps({"chip": "2801"}).encode()


def _networks() -> Iterator[Entry]:
    """Rules of the chip, one broken in each file; the exact sentences of all rules are in tests/test_errors.py."""
    good = json.loads(seeds.dat_json(seeds.networks()["rgb"]))

    def changed(layer: int | None = None, **changes: Any) -> bytes:
        value = json.loads(json.dumps(good))
        part = value["model"][0] if layer is None else value["layer"][layer]
        for key, new in changes.items():
            part.pop(key) if new == "absent" else part.update({key: new})
        return json.dumps(value).encode()

    yield "dat.json", "a-list", b"[]"
    yield "dat.json", "no-layers", json.dumps({**good, "layer": []}).encode()
    yield "dat.json", "layer-null", json.dumps({**good, "layer": None}).encode()
    yield "dat.json", "layer-of-null", json.dumps({**good, "layer": [None]}).encode()
    yield "dat.json", "two-models", json.dumps({**good, "model": good["model"] * 2}).encode()
    yield "dat.json", "ten-thousand-layers", json.dumps({**good, "layer": [0] * 10_000}).encode()
    for key in ("image_size", "input_channels", "output_channels", "sublayer_number", "scaling", "coef_bits"):
        yield "dat.json", f"{key}-missing", changed(0, **{key: "absent"})
        yield "dat.json", f"{key}-null", changed(0, **{key: None})
        yield "dat.json", f"{key}-text", changed(0, **{key: "3"})
        yield "dat.json", f"{key}-huge", changed(0, **{key: 10**39})
    for name, value in (
        ("13", [4] * 13),
        ("minus-1", [-1, 4]),
        ("16", [16, 4]),
        ("float", [4.0, 4]),
        ("true", [True, 4]),
    ):
        yield "dat.json", f"scaling-{name}", changed(0, scaling=value)
    yield "dat.json", "image-size-448-late", changed(1, image_size=448)
    yield "dat.json", "channels-17", changed(0, output_channels=17)
    yield "dat.json", "coef-bits-2", changed(0, coef_bits=2)
    yield "dat.json", "upsample-mode-escape", changed(0, upsample_mode="\x1b[2J")
    yield "dat.json", "chip-2803", changed(ChipType=2803)
    yield "dat.json", "chip-absent", changed(ChipType="absent")
    yield "dat.json", "chip-capital", changed(ChipType="absent", chiptype=2801)


def _compositions() -> Iterator[Entry]:
    text, _ = seeds.full_model(seeds.networks()["rgb"])
    good = json.loads(text)

    def named(name: Any) -> bytes:
        value = json.loads(json.dumps(good))
        value["layer"][2]["data file"] = name
        return json.dumps(value, indent=2).encode()

    for name, path in (
        ("dot-dot", "../fc.bin"), ("absolute", "/etc/passwd"), ("drive", "C:\\fc.bin"), ("missing", "other.bin"),
        ("link", "link.bin"), ("folder", "."), ("escape", "\x1b[2J"), ("number", 7),
        ("list", ["fc.bin"]), ("empty-name", ""),
    ):  # fmt: skip
        yield "network.json", f"data-file-{name}", named(path)
    value = json.loads(json.dumps(good))
    value["layer"][2] |= {"data offset": 10**9, "data size": 1}
    yield "network.json", "offset-beyond-file", json.dumps(value).encode()


def _blobs() -> Iterator[Entry]:
    values = np.arange(6, dtype="<f4").tobytes()
    for name, inputs, outputs in (
        ("fits-not", 2, 3), ("zero-inputs", 0, 6), ("negative", -1, -6), ("wraps", 65536, 65536),
        ("huge", 2**31 - 1, 2**31 - 1),
    ):  # fmt: skip
        yield "fc", name, struct.pack("<ii", inputs, outputs) + values
    yield "fc", "seven-bytes", bytes(7)
    for name, bad in (("nan", "nan"), ("infinity", "inf")):
        yield "fc", name, struct.pack("<ii", 2, 2) + np.array([1, 2, bad, 4, 5, 6], "<f4").tobytes()
    yield "fc", "nan-bias", struct.pack("<ii", 2, 2) + np.array([1, 2, 3, 4, 5, "nan"], "<f4").tobytes()
    yield "label-data", "not-utf-8", b"cat\nd\xf6g\n"
    yield "label-data", "nul", b"cat\0dog\n"


def _texts() -> Iterator[Entry]:
    yield "labels", "empty", b""
    yield "labels", "blank-lines", b"\r\n\n  \n"
    yield "labels", "not-utf-8", b"0 background\n1 d\xf6g\n"
    yield "labels", "number-twice", b"0 background\n1 cat\n1 dog\n"
    yield "labels", "name-twice", b"cat\ndog\ncat\n"
    yield "labels", "gap", b"0 background\n1 cat\n3 dog\n"
    yield "labels", "escape-twice", b"\x1b[2J\x07\n\x1b[2J\x07\n"
    yield "labels", "long-name-twice", (b"a" * 10_000 + b"\n") * 2


def _npy(header: str, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def _arrays() -> Iterator[Entry]:
    yield "npy", "empty", b""
    yield "npy", "magic-only", b"\x93NUMPY\1\0"
    for name, descr, shape, body in (
        ("objects", "|O", "(1,)", b"\x80\4K\1."),
        ("huge-shape", "|u1", "(1000000000000,)", b"x"),
        ("negative", "|u1", "(-1, -1)", b"x"),
        ("wraps", "<f8", "(4294967296, 4294967296)", b""),
        ("no-type", "?!", "(1,)", b"x"), ("empty-items", "|V0", "(1,)", b""),
        ("one-short", "<u4", "(2,)", bytes(7)), ("one-long", "<u4", "(2,)", bytes(9)),
    ):  # fmt: skip
        yield "npy", name, _npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n", body)
    yield "npy", "nested-header", _npy("(" * 5000)
    yield "npy", "code-in-header", _npy("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': ()}")
    good = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4,)}\n", b"abcd")
    yield "npz", "not-zip", b"PK\3\4 and no more"
    for name, members, method in (
        ("bomb", {"w0.npy": bytes(40_000_000)}, zipfile.ZIP_DEFLATED), ("bzip2", {"w0.npy": good}, zipfile.ZIP_BZIP2),
        ("no-array", {"w0.npy": b"hello"}, zipfile.ZIP_STORED),
        ("twice", {"w0.npy": good, "w0": good}, zipfile.ZIP_STORED),
        ("4097-members", {f"{i}.npy": b"" for i in range(4097)}, zipfile.ZIP_STORED),
    ):  # fmt: skip
        yield "npz", name, _zip(members, method)


def _zip(members: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def _png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def _pictures() -> Iterator[Entry]:
    floats = io.BytesIO()
    np.save(floats, np.zeros((32, 32, 3), np.float32))
    planar = io.BytesIO()
    np.save(planar, np.zeros((3, 32, 32), np.uint8))
    for name, suffix, content in (
        ("empty", "png", b""), ("text", "jpg", b"hello"), ("no-pixels", "png", _png(0, 0)),
        ("cut", "png", _png(32, 32)[:60]),
        ("pixels-missing", "png", _png(32, 32, data=bytes(10))), ("bomb-100-megapixels", "png", _png(10_000, 10_000)),
        ("bomb-2e62-pixels", "png", _png(2**31 - 1, 2**31 - 1)), ("bomb-25-megapixels", "png", _png(5000, 5000)),
        ("16-bit-grey", "png", _png(32, 32, depth=16, color=0, data=bytes(32 * 65))),
        ("transparent", "png", _png(32, 32, color=6, data=bytes(32 * 129))),
        ("floats", "npy", floats.getvalue()), ("planes-first", "npy", planar.getvalue()),
        ("one-byte-short", "bin", bytes(3071)),
    ):  # fmt: skip
        yield "image", name, suffix.encode() + b"\0" + content


def _recordings() -> Iterator[Entry]:
    good = gzip.decompress(seeds.recording())
    yield "recording", "empty", b""
    yield "recording", "not-gzip", b"{}"
    first, rest = good.split(b"\n", 1)
    for name, text in (
        ("other-format", b'{"format": "other"}\n'), ("a-list", b"[]\n"), ("nested", b"[" * 10_000 + b"\n"),
        ("not-utf-8", b"\xff\n"),
        ("unknown-call", first + b'\n{"call": "__class__", "args": []}\n'),
        ("no-arguments", first + b'\n{"call": "open_device"}\n'),
        ("error-of-numbers", first + b'\n{"call": "open_device", "args": [], "error": [1, 2, 3]}\n'),
        ("devices-no-list", first + b'\n{"call": "enumerate_devices", "args": [], "result": 5}\n'),
        ("no-base64", rest.join([first + b"\n", b""]).replace(b"AAEC", b"\x22: 1 ")),
        ("bomb", b"[" + bytes(20_000_000)),
    ):  # fmt: skip
        yield "recording", name, gzip.compress(text, 9, mtime=0)


def _keras() -> Iterator[Entry]:
    yield "keras", "not-zip", b"hello"
    yield "keras", "no-config", _zip({"x": b""}, zipfile.ZIP_STORED)
    yield "keras", "config-no-json", _zip({"config.json": b"hello"}, zipfile.ZIP_STORED)
    yield "keras", "config-a-list", _zip({"config.json": b"[]"}, zipfile.ZIP_STORED)
    yield "keras", "config-bomb", _zip({"config.json": b" " * 20_000_000}, zipfile.ZIP_DEFLATED)
    yield "keras", "config-bzip2", _zip({"config.json": b"{}"}, zipfile.ZIP_BZIP2)


def answer(target: str, data: bytes) -> tuple[str, str]:
    """Return (class, message) of the error that a parser answers; ("", "") where it accepts."""
    try:
        TARGETS[target].run(data)
    except GtiError as error:
        from scripts.dev.fuzzing.targets import neutral

        return type(error).__name__, neutral(str(error))
    return "", ""


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--check", action="store_true", help="write nothing")
    args = flags.parse_args()
    index: dict[str, dict[str, str]] = {}
    content: dict[str, bytes] = {}
    for target, name, data in entries():
        file = f"{target}/{name}"
        kind, message = answer(target, data)
        index[file] = {"error": kind, "message": message}
        content[file] = data
    clean_up()
    content[INDEX] = files.json_bytes(index)
    differing = [name for name, data in content.items() if _differs(FOLDER / name, data)]
    if args.check:
        print("\n".join(differing) or f"{len(index)} files are up to date")
        return 1 if differing else 0
    for name in differing:
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(FOLDER / name, content[name])
    print(f"{FOLDER}: {len(index)} files, {len(differing)} written")
    return 0


def _differs(path: Path, data: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != data


if __name__ == "__main__":
    cli.run(main)
