"""The command line of gti trace, on captured sessions and on input that is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden import captures
from places import ROOT

from gti.chip.usb import trace
from gti.commands import trace as command
from gti.errors import DatError, FormatError, GtiError, ImageError, UsageError

SCRIPT = ROOT / "scripts" / "usb_trace.py"
CASES = [case for case in captures.cases("wire.json") + captures.cases("eusb.json") if isinstance(case["dat"], str)]
# Two frames, one of a kind: FT601, FT600 with three planes of 28x28, eUSB.
FTDI = next(case for case in CASES if case["name"] == "syn04_m0")
EUSB = next(case for case in CASES if case["framing"] == "EUSB")


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    command.main()


def stick(case: dict) -> list[str]:
    if case["framing"] == "EUSB":
        return ["--transport", "eusb"]
    return ["--pid", "601f" if case["framing"] == "FT601" else "601e"]


@pytest.fixture
def session(tmp_path):
    """Return a function that writes a case's .dat and images and returns their options."""

    def write(case: dict) -> list[str]:
        (tmp_path / "net.dat").write_bytes(captures.network(case))
        options = ["--model", str(tmp_path / "net.dat"), "--mode", str(case["mode"]), *stick(case)]
        for k in range(len(case["frames"])):
            np.save(tmp_path / f"{k}.npy", captures.image(case, k).transpose(1, 2, 0))
        return options

    return write


def images(tmp_path: Path, case: dict) -> list[str]:
    return [word for k in range(len(case["frames"])) for word in ("--image", str(tmp_path / f"{k}.npy"))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_captured_sessions(monkeypatch, tmp_path, session, case):
    options = session(case)
    run(monkeypatch, "encode", *options, *images(tmp_path, case), "--out", tmp_path / "out")
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    expected = {f"frame{k}.bin": frame["write"] for k, frame in enumerate(case["frames"])}
    assert written == {"load.bin": case["load"], **expected}
    for k, frame in enumerate(case["frames"]):
        (tmp_path / "raw.bin").write_bytes(captures.raw_result(case, k))
        kind = "float" if case["output_type"] in {None, "float"} else "byte"
        values = ["--scaledown", case["scaledown"] or 0, "--type", kind]
        run(monkeypatch, "decode", *options, *values, "--read", tmp_path / "raw.bin", "--out", tmp_path / "t.npy")
        tensor = np.load(tmp_path / "t.npy")
        assert tensor.ndim == 1
        assert tensor.dtype == (np.float32 if kind == "float" else np.uint8)
        assert hashlib.sha256(tensor.tobytes()).hexdigest() == frame["tensor"]


@pytest.mark.parametrize(
    ("case", "speed", "chunk"), [(FTDI, "480", 2048), (EUSB, "480", 65536), (EUSB, "5000", 1048576)]
)
def test_encode_says_how_the_bytes_are_cut(*, monkeypatch, tmp_path, session, capsys, case, speed, chunk):
    options = session(case)
    run(monkeypatch, "encode", *options, *images(tmp_path, case), "--speed", speed, "--out", tmp_path)
    size = (tmp_path / "load.bin").stat().st_size
    assert f"load.bin: {size} bytes, {-(-size // chunk)} writes of at most {chunk}" in capsys.readouterr().out


def test_show_lists_a_session(monkeypatch, tmp_path, session, capsys):
    options = session(FTDI)
    run(monkeypatch, "encode", *options, *images(tmp_path, FTDI), "--out", tmp_path)
    capsys.readouterr()
    run(monkeypatch, "show", tmp_path / "load.bin", tmp_path / "frame0.bin", tmp_path / "frame1.bin")
    text = capsys.readouterr().out
    assert text.count("2-byte words") == 3
    lines = [line.split() for line in text.splitlines()]
    # The load: 1092 - 92 + 3 = 1003 bytes, rounded up to 1008, and 32768 zeros.
    assert ["176", str(1008 + 32768), "LOAD_FILTER_IMAGE", "00", "00", "00"] in [line[:6] for line in lines]
    # Mode 0 on the reg0 0x441 of this file.
    assert text.count("= global register 0x00002441") == 2
    assert text.count("= image 1 x 28 x 28; result 16384 bytes: 256x7x7, 8 bits a value") == 2
    assert text.count("= layer registers") == 1
    assert text.count("= coefficients: ") == 1
    assert text.count("= reset") == 3
    assert "refused" not in text


def test_show_says_what_a_stream_lacks(monkeypatch, tmp_path, session, capsys):
    options = session(FTDI)
    run(monkeypatch, "encode", *options, *images(tmp_path, FTDI), "--out", tmp_path)
    capsys.readouterr()
    run(monkeypatch, "show", tmp_path / "frame1.bin")
    assert "refused: not complete, or registers are missing" in capsys.readouterr().out
    (tmp_path / "odd.bin").write_bytes(b"\0\0\1\x40\2\3\4")
    run(monkeypatch, "show", "--pid", "601e", tmp_path / "odd.bin")
    text = capsys.readouterr().out
    assert "unknown 0x40" in text
    assert "1 words no host sends" in text
    assert "1 bytes after the last whole word" in text


def test_the_width_of_the_words_is_found(monkeypatch, tmp_path, session, capsys):
    for case, width in ((FTDI, 2), (EUSB, 4)):
        run(monkeypatch, "encode", *session(case), *images(tmp_path, case), "--out", tmp_path)
        run(monkeypatch, "show", tmp_path / "frame0.bin")
        assert f"{width}-byte words" in capsys.readouterr().out
    (tmp_path / "none.bin").write_bytes(b"text that is no stream")
    with pytest.raises(FormatError, match="stream"):
        run(monkeypatch, "show", tmp_path / "none.bin")


@pytest.mark.parametrize(
    ("change", "error", "fragment"),
    [
        (lambda path: (path / "net.dat").write_bytes(b""), DatError, "header"),
        (lambda path: (path / "net.dat").unlink(), GtiError, "file"),
        (lambda path: (path / "0.npy").write_bytes(b"\x93NUMPY"), ImageError, ".npy"),
        (lambda path: np.save(path / "0.npy", np.zeros((28, 28), np.uint8)), ImageError, "image"),
        (lambda path: np.save(path / "0.npy", np.zeros((14, 14, 1), np.uint8)), ImageError, "sent"),
        (lambda path: np.save(path / "0.npy", np.zeros((28, 28, 1), np.float32)), ImageError, "float32"),
        (lambda path: np.save(path / "0.npy", np.array([None])), ImageError, ".npy"),
        (lambda path: (path / "out").write_bytes(b""), UsageError, "cannot be made"),
    ],
)
def test_encode_refuses_and_writes_nothing(*, monkeypatch, tmp_path, session, change, error, fragment):
    options = session(FTDI)
    change(tmp_path)
    with pytest.raises(error) as caught:
        run(monkeypatch, "encode", *options, *images(tmp_path, FTDI), "--out", tmp_path / "out")
    assert fragment in str(caught.value)
    assert not (tmp_path / "out").is_dir()


def test_decode_refuses_another_length(monkeypatch, tmp_path, session):
    options = session(FTDI)
    (tmp_path / "raw.bin").write_bytes(bytes(16384 * 4))
    with pytest.raises(FormatError, match="received 65536 bytes"):
        run(monkeypatch, "decode", *options, "--read", tmp_path / "raw.bin", "--out", tmp_path / "t.npy")
    assert not (tmp_path / "t.npy").exists()


def test_a_model_brings_mode_scaledown_and_type(monkeypatch, tmp_path, session):
    case = next(case for case in CASES if case["name"] == "syn02_m4")
    session(case)
    dat = captures.network(case)
    layer = {"operation": "GTICNN", "name": "cnn", "mode": 4, "output scaledown": 2, "output type": "byte"}
    layer |= {"device": {"chip": "2801"}, "data offset": 1000, "data size": len(dat)}
    text = json.dumps({"layer": [layer], "name": "test"}, separators=(",", ":"), sort_keys=True)
    (tmp_path / "net.model").write_bytes(text.encode().ljust(1000, b"\0") + dat)
    options = ["--model", tmp_path / "net.model"]
    run(monkeypatch, "encode", *options, *images(tmp_path, case), "--out", tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out/load.bin").read_bytes()).hexdigest() == case["load"]
    assert hashlib.sha256((tmp_path / "out/frame1.bin").read_bytes()).hexdigest() == case["frames"][1]["write"]

    (tmp_path / "raw.bin").write_bytes(captures.raw_result(case, 0))
    for name, values in (("shifted", []), ("plain", ["--scaledown", "0", "--type", "float"])):
        run(monkeypatch, "decode", *options, *values, "--read", tmp_path / "raw.bin", "--out", tmp_path / f"{name}.npy")
    shifted, plain = np.load(tmp_path / "shifted.npy"), np.load(tmp_path / "plain.npy")
    assert hashlib.sha256(plain.tobytes()).hexdigest() == case["frames"][0]["tensor"]
    assert shifted.dtype == np.uint8
    np.testing.assert_array_equal(shifted, plain.astype(np.uint8) >> 2)


def test_help_is_light():
    code = (
        f"import sys, runpy; sys.argv = ['usb_trace.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        f"except SystemExit as end: print(end.code, [m for m in ('numpy', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


def test_a_mistake_is_one_sentence_and_status_2(tmp_path):
    words = [sys.executable, str(SCRIPT), "show", str(tmp_path / "none.bin")]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_recording_that_breaks_off_says_so(monkeypatch, tmp_path, capsys):
    file = tmp_path / "session.gz"
    lines = [{"format": trace.FORMAT, "device": "x"}, {"call": "close_device", "args": ["#1"], "result": None}]
    data = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    for kept, notes in ((data, 0), (data[:-6], 1)):
        file.write_bytes(kept)
        run(monkeypatch, "show", file)
        assert capsys.readouterr().err.count("the recording breaks off here") == notes


@pytest.mark.parametrize("words", [[], ["decode"], ["encode", "--nosuch"], ["show", "--pid", "1"]])
def test_flags_are_refused_in_one_sentence(words):
    with pytest.raises(UsageError, match="gti trace"):
        command.main(words)
