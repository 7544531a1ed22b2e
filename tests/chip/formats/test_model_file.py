"""The .MODEL container, its JSON text, FC blobs and labels: golden bytes, refusals, hostile files."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gti.chip.formats import blobs, model_file
from gti.chip.formats.canonical_json import canonical, indented
from gti.errors import ModelFileError

# Made by the vendor's composer: text and files in, container, header text and decomposed files (sha256) out.
GOLDEN = json.loads((places.GOLDEN / "model_cases.json").read_text())


def files_of(case: dict) -> dict[str, bytes]:
    return {name: bytes.fromhex(content) for name, content in case["files"].items()}


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_containers(case: dict, tmp_path: Path) -> None:
    data = model_file.compose(case["json"].encode(), files_of(case))
    assert len(data) == case["model_len"]
    assert hashlib.sha256(data).hexdigest() == case["model_sha256"]
    for name, content in files_of(case).items():
        (tmp_path / name).write_bytes(content)
    assert model_file.compose(case["json"].encode(), tmp_path) == data
    model = model_file.parse(data)
    assert model.header_text.decode() == case["header"]
    parts = model_file.decompose(model, "x.model")
    assert {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()} == case["decomposed"]


def test_golden_blobs_come_back() -> None:
    for case in GOLDEN:
        model = model_file.parse(model_file.compose(case["json"].encode(), files_of(case)))
        named = [layer.get("data file") for layer in json.loads(case["json"])["layer"]]
        for name, (entry, blob) in zip(named, model.layers, strict=True):
            assert (bytes(blob) if blob is not None else None) == (files_of(case)[name] if name else None)
            assert ("data size" in entry) == (name is not None)


# Text of numbers: docs/model_format.md, header text.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-(2**63), "-9223372036854775808"),
        (2**64 - 1, "18446744073709551615"),
        (2**64, "1.8446744073709552e+19"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (0.0001, "0.0001"),
        (0.00012345, "0.00012345"),
        (0.00001, "1e-05"),
        (1e14, "100000000000000.0"),
        (123456789012345.6, "123456789012345.6"),
        (1e15, "1e+15"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert canonical(value) == text
    assert json.loads(text) == value


def test_canonical_text() -> None:
    value = {"b": [1, {"z": None, "a": True}], "a/é": '"\\\b\f\n\r\t\x01\x1f\x7f', "Z": {}, "e": []}
    text = '{"Z":{},"a/é":"\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\x7f","b":[1,{"a":true,"z":null}],"e":[]}'
    assert canonical(value) == text
    # Keys sort by their UTF-8 bytes: U+FFFF (ef bf bf) before U+10000 (f0 90 80 80).
    assert canonical({"\U00010000": 1, "\uffff": 2}) == '{"\uffff":2,"\U00010000":1}'
    assert (
        indented({"b": [1, 2], "a": {}, "c": []})
        == '{\n    "a": {},\n    "b": [\n        1,\n        2\n    ],\n    "c": []\n}'
    )
    with pytest.raises(ModelFileError, match="character"):
        canonical("\ud800")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=settings.default.max_examples * 3 // 2)
@given(JSON)
def test_canonical_text_reads_back(value: object) -> None:
    assert json.loads(canonical(value)) == value
    assert json.loads(indented(value)) == value


def container(**changes: object) -> dict[str, Any]:
    """Return a header of two layers, of which the first has 8 bytes of data at 512."""
    layer = {"operation": "GTICNN", "name": "cnn", "data offset": 512, "data size": 8}
    return {"layer": [layer | changes, {"operation": "POOLING", "data file": None}]}


def pack(header: object, blob: bytes = b"ABCDEFGH", base: int = 512) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return text.ljust(base, b"\0") + blob


def test_pretty_headers_gaps_and_order_are_read() -> None:
    header = container()
    header["layer"].append({"operation": "LABEL", "data offset": 530, "data size": 2})
    header["layer"].append({"operation": "FC", "data offset": 528, "data size": 2})
    for text in (json.dumps(header, indent=4), " \n" + json.dumps(header), "\ufeff" + json.dumps(header)):
        model = model_file.parse(pack(text.encode(), b"ABCDEFGH" + bytes(8) + b"wxyz", 512))
        assert [bytes(layer.blob) if layer.blob else None for layer in model.layers] == [
            b"ABCDEFGH",
            None,
            b"yz",
            b"wx",
        ]
        assert model.base == 512
        first = model.first("GTICNN")
        assert first is not None
        assert first.entry["name"] == "cnn"


def doubled() -> dict[str, Any]:
    header = container()
    header["layer"].append({"operation": "FC", "data offset": 516, "data size": 4})
    return header


REFUSED = [
    (b"", ".MODEL"),
    (b"PK\3\4zip", "begin with 50 4b 03 04"),
    (b"[1, 2]\0\0", "5b 31"),
    (b'{"layer": [}\0', "JSON"),
    (b'{"a": 1}\0', '"layer"'),
    (b'{"layer": 3}\0', '"layer"'),
    (b'{"layer": [3]}\0', '"layer"'),
    (b'{"layer": [{}]}', "NUL"),
    (b'{"layer": [], "layer": []}\0', "stands twice"),
    (b'{"layer": [], "x": NaN}\0', "number"),
    (b'{"layer": [], "x": 1e999}\0', "beyond"),
    (b'{"layer": ' + b"[" * 100000 + b"\0", "nested"),
    (b'{"layer": [], "x": "\xff"}\0', "UTF-8"),
    (b"{" + b" " * (1024 * 1024 + 1), "header"),
    (pack({"layer": [{}] * 1025}, b"", 8192), "received 1025"),
    (pack(container(**{"data offset": 10})), "layer 1 (GTICNN cnn)"),
    (pack(container(**{"data offset": 521})), "521"),
    (pack(container(**{"data size": 9})), "received 9 bytes from 512 on"),
    (pack(container(**{"data size": 2**63})), "9223372036854775808"),
    (pack(container(**{"data offset": 2**64 - 4})), "18446744073709551612"),
    (pack(container(**{"data offset": -1})), '"data offset"'),
    (pack(container(**{"data size": 8.0})), '"data size"'),
    (pack(container(**{"data size": True})), '"data size"'),
    (pack(container(**{"data size": None})), '"data size"'),
    (pack(container(**{"data offset": None})), '"data offset"'),
    (pack(container(**{"data file": "../x.dat"})), "container"),
    (pack(doubled()), "overlap"),
    (pack(container(), b"ABCDEFGH!"), "received 521 bytes"),
    (pack(container(), b"ABCDEFGH" + bytes(4)), "524"),
    (pack(container(**{"data offset": 516}), b"xyz\0ABCDEFGH"), "belong to no layer; expected NUL bytes"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refused_containers(data: bytes, words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        model_file.parse(data, "bad.model")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"layer": [{"data file": "none.bin"}]}', "none.bin"),
        (b'{"layer": [{"data file": 3}]}', '"data file"'),
        (b'{"layer": [{"data file": "a", "data offset": 2}]}', '"data size"'),
        (b'{"layer": [{"data file": "a", "data offset": 9, "data size": 1}]}', "inside"),
        (b'{"layer": [{"data file": "a", "data offset": -1}]}', "-1"),
        (b'{"layer": [{"data file": "a", "data size": "1"}]}', '"data size"'),
        (b"{}", '"layer"'),
        (b'[{"layer": []}]', "JSON"),
        # 40 numbers of 3 characters become 8 characters each: more than the 128 bytes reserved.
        (b'{"layer":[{}],"x":[' + b",".join([b"1e9"] * 40) + b"]}", "append"),
    ],
)
def test_refused_composing(text: bytes, words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        model_file.compose(text, {"a": b"data"})
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "C:\\x", "a\x1bb", "", "link"])
def test_names_stay_inside_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path / "secret")
    text = json.dumps({"layer": [{"data file": name}]}).encode()
    with pytest.raises(ModelFileError, match="file name"):
        model_file.compose(text, folder)


def test_parts_of_data_files() -> None:
    text = b'{"layer":[{"data file":"a","data offset":1,"data size":2},{"data file":"a","data offset":null},{}]}'
    model = model_file.parse(model_file.compose(text, {"a": b"wxyz"}))
    assert [bytes(layer.blob) if layer.blob else None for layer in model.layers] == [b"xy", b"wxyz", None]
    assert model.layers[2].entry == {"data file": None}
    assert model_file.compose(b'{"layer": [], "b": 1}', {}) == b'{"b":1,"layer":[]}'


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data())
def test_mutated_containers_give_a_model_or_a_sentence(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(GOLDEN))
    content = bytearray(model_file.compose(case["json"].encode(), files_of(case)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(("set", "cut", "insert", "end")))
        if kind == "set":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place : place + data.draw(st.integers(1, 9))]
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(max_size=9))
        elif place:
            del content[place:]
    try:
        model = model_file.parse(bytes(content))
    except ModelFileError:
        return
    assert all(layer.blob is None or len(layer.blob) == layer.entry["data size"] for layer in model.layers)


def test_fc_round_trip() -> None:
    weights = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    biases = np.array([1, -2, 3], np.float64)
    data = blobs.encode_fc(weights, biases)
    assert data == struct.pack("<2i12f3f", 4, 3, *weights.ravel(), *biases)
    again = blobs.decode_fc(data)
    assert np.array_equal(again[0], weights)
    assert np.array_equal(again[1], biases)
    assert blobs.fc_sizes(memoryview(data)) == (4, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (bytes(7), "7 bytes"),
        (struct.pack("<2i", 0, 1) + bytes(4), "at least 1"),
        (struct.pack("<2i", -1, 1), "length"),
        (struct.pack("<2i2f", 1, 1, 0, 0) + b"x", "expected 16 bytes, received 17 bytes"),
        # 65536 * 65536 wraps to 0 in 32 bits
        (struct.pack("<2i", 65536, 65536) + bytes(4 * 65536), "65536"),
        (struct.pack("<2i", 2**31 - 1, 2**31 - 1), "length"),
        (struct.pack("<2i2f", 1, 1, float("nan"), 0), "1 of its weights are not finite, the first at [0, 0]"),
        (struct.pack("<2i2f", 1, 1, 0, float("inf")), "1 of its biases are not finite, the first at [0]"),
    ],
)
def test_refused_fc(data: bytes, words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        blobs.decode_fc(data, "fc.bin")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w, b: (w, b[:2]), r"\[2\]"),
        (lambda w, b: (w[0], b), r"\[4\]"),
        (lambda w, b: (w * np.nan, b), "nan"),
        (lambda w, b: (w + 1e39, b), "inf"),
    ],
)
def test_refused_fc_arrays(change: Callable[[np.ndarray, np.ndarray], tuple], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        blobs.encode_fc(*change(np.ones((3, 4)), np.ones(3)))


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"\n", [""]),
        ("\ufeffgrün\n".encode(), ["grün"]),
    ],
)
def test_labels(data: bytes, labels: list[str]) -> None:
    assert blobs.parse_labels(data) == labels


@pytest.mark.parametrize(("data", "words"), [(b"a\xff", "UTF-8"), (b"a\0b", "NUL"), (b"\n" * 1_000_001, "lines")])
def test_refused_labels(data: bytes, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        blobs.parse_labels(data)


def test_labels_read_back_as_they_are_written() -> None:
    labels = ["background", "big cat", "chat à poil", " ", "a\u2028b"]
    assert blobs.parse_labels(blobs.encode_labels(labels)) == labels
    assert blobs.parse_labels(blobs.encode_labels(["caf\udce9"])) == ["caf\\udce9"]
    for strange in ("a\nb", "a\0b", "a\r"):
        with pytest.raises(ModelFileError, match="ends a line"):
            blobs.encode_labels(["background", strange])
