"""The verbs about files, through scripts/model_tool.py: round trips byte for byte, differences, runs, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden import generators
from places import ROOT

from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import blobs, dat, model_file, npy, upsampling
from gti.chip.network import json_form
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.runtime import known_answer
from gti.errors import GtiError, ModelFileError, NetworkError, UsageError
from scripts import model_tool

GOLDEN = json.loads((ROOT / "tests" / "golden" / "model_cases.json").read_text())
NETWORK = Network(
    (
        MajorLayer(28, 3, 16, 2, 3, (8, 9), pooling=True, one_coef=(0, 1)),
        MajorLayer(14, 16, 32, 1, 1, (8,), pooling=True),
    )
)


def weights() -> list[ConvolutionWeights]:
    layers = [
        {
            "coef_bits": m.coef_bits,
            "output_channels": m.output_channels,
            "input_channels": m.input_channels,
            "scaling": m.scaling,
        }
        for m in NETWORK.layers
    ]
    made = [ConvolutionWeights(*values) for values in generators.lively_weights({"layer": layers}, 5)]
    # The second sublayer is a 1x1 convolution: nothing but its centre taps.
    made[1].filters[:, :, np.arange(9).reshape(3, 3) != 4] = 0
    return made


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["model_tool.py", *map(str, arguments)])
    return model_tool.main()


def round_trip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, suffix: str) -> set[str]:
    """Extract and build `data`, assert equality, and return the names of the files in between."""
    source, parts, target = tmp_path / f"in{suffix}", tmp_path / "parts", tmp_path / f"out{suffix}"
    source.write_bytes(data)
    assert call(monkeypatch, "extract", source, parts) == 0
    assert call(monkeypatch, "build", parts, target) == 0
    assert target.read_bytes() == data
    return {path.relative_to(parts).as_posix() for path in parts.rglob("*") if path.is_file()}


def stray_bits() -> bytes:
    """A file with a bias in a line that holds none, a step for a kernel of zeros, and too large an alpha."""
    data = bytearray(dat.encode(NETWORK, weights(), length=100_000))
    data[92 + 11] ^= 0x80
    first = 92 + 192 * (8 + 8)
    for place in (92 + 12 * 9, first + 5, first + 6):
        data[place] ^= 0xFF
    return bytes(data)


def test_dat_round_trips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = dat.encode(NETWORK, weights())
    tail = plain[:50_000] + b"\7" + plain[50_001:]
    header = list(dat.read_header(plain))
    header[1] ^= 1 << 20  # a bit without meaning
    cases = {
        "plain": (plain, set()),
        "tail": (tail, {"tail.bin"}),
        "short": (plain[:50_000], {"exact.json"}),
        "header": (dat.encode(NETWORK, weights(), header=header), {"exact.json"}),
        "stray": (stray_bits(), {"exact.json", "rows.npz"}),
        "channels": (plain[:6] + b"\1" + plain[7:], {"rows.npz"}),  # one input channel in place of three
    }
    for name, (data, more) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        assert round_trip(monkeypatch, folder, data, ".dat") == {"dat.json", "weights.npz"} | more, name


def test_changed_weights_win_over_kept_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = stray_bits()
    round_trip(monkeypatch, tmp_path, data, ".dat")
    path = tmp_path / "parts" / "weights.npz"
    arrays = npy.parse_npz(path.read_bytes(), "weights.npz")
    arrays["w0"][0, 0] *= -1
    path.write_bytes(npy.npz_bytes(arrays))
    assert call(monkeypatch, "build", tmp_path / "parts", tmp_path / "changed.dat") == 0
    changed = dat.load(tmp_path / "changed.dat")
    assert np.array_equal(changed.weights[0].filters, arrays["w0"])
    assert np.array_equal(changed.weights[2].filters, dat.decode(data).weights[2].filters)


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_containers_round_trip(case: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {name: bytes.fromhex(content) for name, content in case["files"].items()}
    data = model_file.compose(case["json"].encode(), files)
    names = round_trip(monkeypatch, tmp_path, data, ".model")
    assert "network.json" in names
    assert "header.bin" not in names


def full_model() -> bytes:
    text = json.dumps(
        {
            "name": "test",
            "layer": [
                {"operation": "GTICNN", "name": "chip", "data file": "chip.dat", "mode": 0},
                {"operation": "FC", "name": "fc", "data file": "fc.bin"},
                {"operation": "LABEL", "name": "labels", "data file": "l.txt"},
            ],
        },
        indent=1,
    )
    fc = blobs.encode_fc(np.ones((2, 1568), np.float32), np.zeros(2, np.float32))
    chip = dat.encode(NETWORK, weights(), length=20_000)
    return model_file.compose(text.encode(), {"chip.dat": chip, "fc.bin": fc, "l.txt": b"one\ntwo\n"})


def test_models_with_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = round_trip(monkeypatch, tmp_path, full_model(), ".model")
    assert names == {"network.json", "layer1.dat", "layer2.bin", "layer3.txt", "dat.json", "weights.npz", "exact.json"}
    # The suffix of the target decides: the chip's part alone.
    assert call(monkeypatch, "build", tmp_path / "parts", tmp_path / "chip.dat") == 0
    assert (tmp_path / "chip.dat").read_bytes() == (tmp_path / "parts" / "layer1.dat").read_bytes()


def test_headers_of_other_tools_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    header = json.dumps(
        {"layer": [{"operation": "X", "data offset": 300, "data size": 3}, {"data file": None}]}, indent=7
    )
    data = header.encode().ljust(300, b"\0") + b"abc"
    assert "header.bin" in round_trip(monkeypatch, tmp_path, data, ".model")
    (tmp_path / "parts" / "layer1.data").write_bytes(b"abcd")
    with pytest.raises(GtiError, match=r"header\.bin"):
        call(monkeypatch, "build", tmp_path / "parts", tmp_path / "again.model")


def test_info(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(full_model())
    assert call(monkeypatch, "info", path) == 0
    text = capsys.readouterr().out
    assert "1568 -> 2" in text
    assert "2 labels" in text
    assert "input 28 x 28 x 3, output 7 x 7 x 32, codes 0..31" in text
    lines = [line.split() for line in text.split("\n") if line[:4] in ("1.1 ", "1.2 ", "2.1 ")]
    # name, size, in, out, bits, shift, gains, rows, addresses of the major layer, what follows
    assert [line[:7] for line in lines] == [
        ["1.1", "conv1_1", "28", "3", "16", "3", "8"],
        ["1.2", "conv1_2", "28", "16", "16", "3", "9"],
        ["2.1", "conv2_1", "14", "16", "32", "1", "8"],
    ]
    assert [line[8:] for line in lines] == [["8", "0", "256"], ["8", "pooling,", "1x1"], ["8", "0", "256", "pooling"]]
    assert [line[7] for line in lines] == [gains(w) for w in weights()]


def gains(values: ConvolutionWeights) -> str:
    """Smallest and largest non-zero step: the smallest non-zero magnitude of each kernel."""
    kernels = np.abs(values.filters.astype(int)).reshape(-1, 9)
    steps = [kernel[kernel > 0].min() for kernel in kernels if kernel.any()]
    return f"{min(steps)}..{max(steps)}"


def bias(values: list[ConvolutionWeights]) -> None:
    values[1].biases[7] += 1


def kernel(values: list[ConvolutionWeights]) -> None:
    values[2].filters[3, 4] *= -1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bias, "major 1 / sub 2 (conv1_2): 1 biases, the first is output 7"),
        (kernel, "major 2 / sub 1 (conv2_1): 1 kernels, the first is output 3, input 4: row 0, column 0 is"),
    ],
)
def test_diff_names_the_place(
    change: object, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = weights()
    change(other)  # type: ignore[operator]
    (tmp_path / "a.dat").write_bytes(dat.encode(NETWORK, weights()))
    (tmp_path / "b.dat").write_bytes(dat.encode(NETWORK, other))
    assert call(monkeypatch, "diff", tmp_path / "a.dat", tmp_path / "a.dat") == 0
    assert call(monkeypatch, "diff", tmp_path / "a.dat", tmp_path / "b.dat") == 1
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "equal"
    assert lines[1].startswith(words)


def test_diff_of_headers_and_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = dat.encode(NETWORK, weights(), length=20_000)
    shifted = bytearray(plain)
    shifted[12] += 1  # the shift of major 1, sublayer 1
    first = model_file.compose(b'{"layer":[{"operation":"GTICNN","data file":"a","mode":0}]}', {"a": plain})
    second = model_file.compose(b'{"layer":[{"operation":"GTICNN","data file":"a","mode":1}]}', {"a": bytes(shifted)})
    for name, data in (("a.model", first), ("b.model", second), ("a.dat", plain), ("b.dat", plain + b"\0")):
        (tmp_path / name).write_bytes(data)
    assert call(monkeypatch, "diff", tmp_path / "a.model", tmp_path / "b.model") == 1
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "header, layer 1, mode: 0 and 1"
    assert lines[1].startswith("layer 1 (GTICNN): header, major 1 / sub 1 (conv1_1): shift 8 and 9")
    assert call(monkeypatch, "diff", tmp_path / "a.dat", tmp_path / "b.dat") == 1
    assert capsys.readouterr().out == "length: 20000 and 20001 bytes\n"
    with pytest.raises(GtiError, match=r"\.MODEL.*\.DAT"):
        call(monkeypatch, "diff", tmp_path / "a.model", tmp_path / "a.dat")


@pytest.mark.parametrize("mode", ["fc", "learn", "single", "sublast", "lastmajor"])
def test_run_gives_what_the_emulator_gives(mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = np.random.RandomState(1).randint(0, 256, (28, 28, 3)).astype(np.uint8)
    np.save(tmp_path / "i.npy", image)
    (tmp_path / "x.model").write_bytes(full_model())
    out = tmp_path / "o.npz"
    command = ("run", tmp_path / "x.model", "--image", tmp_path / "i.npy", "--mode", mode, "--out", out)
    network = Network((NETWORK.layers[0], NETWORK.layers[1]))
    expected = Emulator(network, weights(), engine="numpy").read_out(image, mode)
    assert call(monkeypatch, *command, "--engine", "numpy") == 0
    with np.load(out) as maps:
        assert list(maps) == [f"map{i}" for i in range(len(expected))]
        for i, codes in enumerate(expected):
            assert maps[f"map{i}"].dtype == np.uint8
            assert np.array_equal(maps[f"map{i}"], codes)


def test_run_on_a_stick_and_from_its_recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", np.random.RandomState(2).randint(0, 256, (28, 28, 3)).astype(np.uint8))
    (tmp_path / "x.model").write_bytes(full_model())
    command = ("run", tmp_path / "x.model", "--image", tmp_path / "i.npy", "--mode", "learn", "--out")
    session = tmp_path / "session.gz"
    assert call(monkeypatch, *command, tmp_path / "emulator.npz") == 0
    assert call(monkeypatch, *command, tmp_path / "stick.npz", "--device", "virtual", "--record", session) == 0
    assert call(monkeypatch, *command, tmp_path / "replay.npz", "--device", f"replay:{session}") == 0
    contents = [(tmp_path / f"{name}.npz").read_bytes() for name in ("emulator", "stick", "replay")]
    assert contents[0] == contents[1] == contents[2]
    with pytest.raises(GtiError, match="record"):
        call(monkeypatch, *command, tmp_path / "o.npz", "--record", session)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (("--device", "virtual", "--engine", "numpy"), "--engine numpy: chooses how the emulator computes"),
        (("--device", ""), "--device: is not understood"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "verify"])
def test_a_stick_is_meant_as_it_is_named(
    verb: str, device: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save(tmp_path / "i.npy", np.zeros((28, 28, 3), np.uint8))
    (tmp_path / "x.model").write_bytes(full_model())
    monkeypatch.setattr(known_answer, "read", lambda *_: [None])
    more = ("--image", tmp_path / "i.npy", "--out", tmp_path / "o.npz") if verb == "run" else ()
    with pytest.raises(GtiError) as caught:
        call(monkeypatch, verb, tmp_path / "x.model", *more, *device)
    assert words in str(caught.value)


def test_mistakes_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "zip").write_bytes(b"PK\3\4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.dat").write_bytes(dat.encode(NETWORK, weights(), length=20_000))
    for arguments, words in (
        (("info", tmp_path / "none"), "file"),
        (("info", tmp_path), "regular"),
        (("info", tmp_path / "zip"), ".DAT"),
        (("extract", tmp_path / "a.dat", tmp_path / "full"), "empty"),
        (("build", tmp_path / "none", tmp_path / "o.dat"), "folder"),
        (("build", tmp_path / "empty", tmp_path / "o.dat"), "build"),
        (("build", tmp_path / "empty", tmp_path / "o.model"), "network.json"),
    ):
        with pytest.raises(GtiError) as caught:
            call(monkeypatch, *arguments)
        assert words in str(caught.value)
    assert not (tmp_path / "o.dat").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.npz", b"x", "file"),
        ("weights.npz", npy.npz_bytes({"w0": np.zeros(3)}), "missing shifts, b0, w1, b1, w2, b2"),
        ("dat.json", b"{", "JSON"),
        ("dat.json", b"[]", "JSON"),
        ("exact.json", b'{"header": [1, 2]}', "damaged"),
        ("exact.json", b'{"length": "x"}', "damaged"),
        ("exact.json", b'{"length": 99999999999999}', "header"),
        ("rows.npz", npy.npz_bytes({"index": np.zeros(3)}), "damaged"),
        (
            "rows.npz",
            npy.npz_bytes(
                {"index": np.array([9999]), **dict.fromkeys(("wanted", "computed"), np.zeros((1, 192), np.uint8))}
            ),
            "larger",
        ),
    ],
)
def test_damaged_folders(
    name: str, content: bytes, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    round_trip(monkeypatch, tmp_path, dat.encode(NETWORK, weights(), length=20_000), ".dat")
    (tmp_path / "parts" / name).write_bytes(content)
    with pytest.raises(GtiError) as caught:
        call(monkeypatch, "build", tmp_path / "parts", tmp_path / "again.dat")
    assert words in str(caught.value)
    assert not (tmp_path / "again.dat").exists()


def test_command_line_is_light_and_mistakes_leave_with_2(tmp_path: Path) -> None:
    script = [sys.executable, "-X", "importtime", "scripts/model_tool.py", "info"]
    done = subprocess.run([*script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not {"tensorflow", "numba", "numpy"} & imported
    failed = subprocess.run(
        [sys.executable, "scripts/model_tool.py", "info", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


def unchained() -> bytes:
    """Return a .DAT whose second major layer takes 28x28 where it gets 14x14: the vendor's converter writes such."""
    network = Network((NETWORK.layers[0], replace(NETWORK.layers[1], image_size=28)))
    return dat.encode(network, weights())


def test_sizes_that_do_not_chain_are_held_but_not_run(monkeypatch, tmp_path, capsys) -> None:
    data = unchained()
    round_trip(monkeypatch, tmp_path, data, ".dat")
    plain = tmp_path / "plain.dat"
    plain.write_bytes(dat.encode(NETWORK, weights()))
    assert call(monkeypatch, "info", tmp_path / "in.dat") == 0
    assert "unknown: major 2: image_size" in capsys.readouterr().out
    assert call(monkeypatch, "diff", tmp_path / "in.dat", plain) == 1
    assert "image_size 28 and 14" in capsys.readouterr().out
    np.save(tmp_path / "image.npy", np.zeros((28, 28, 3), np.uint8))
    for device in ([], ["--device", "virtual"]):
        flags = ["--image", tmp_path / "image.npy", "--mode", "single", "--out", tmp_path / "o.npz", *device]
        with pytest.raises(NetworkError, match="major 2"):
            call(monkeypatch, "run", tmp_path / "in.dat", *flags)


def test_ten_bit_overrides_the_guess(monkeypatch, tmp_path, capsys) -> None:
    network = Network((MajorLayer(56, 16, 32, 1, 3, (4,)),))
    zeros = [ConvolutionWeights(np.zeros((32, 16, 3, 3), np.int16), np.zeros(32, np.int32), 4)]
    path = tmp_path / "a.dat"
    path.write_bytes(dat.encode(network, zeros))
    shown = {}
    for flag in ("auto", "0", "1"):
        assert call(monkeypatch, "info", path, "--ten_bit", flag) == 0
        shown[flag] = capsys.readouterr().out
    assert "guess: major 1" in shown["auto"]
    assert "ten-bit codes" in shown["auto"]
    assert "guess" not in shown["0"] + shown["1"]
    assert "codes 0..31" in shown["0"]
    assert call(monkeypatch, "extract", path, tmp_path / "parts", "--ten_bit", "0") == 0
    assert json.loads((tmp_path / "parts" / "dat.json").read_text())["layer"][0]["output_channels"] == 32


def test_build_refuses_what_reads_back_as_something_else(monkeypatch, tmp_path) -> None:
    source = tmp_path / "in.dat"
    source.write_bytes(dat.encode(NETWORK, weights()))
    assert call(monkeypatch, "extract", source, tmp_path / "parts") == 0
    words = list(dat.read_header(source.read_bytes()))
    words[4] ^= 1  # another shift of the second sublayer
    (tmp_path / "parts" / "exact.json").write_text(json.dumps({"header": [hex(word) for word in words]}))
    with pytest.raises(GtiError, match="reads back"):
        call(monkeypatch, "build", tmp_path / "parts", tmp_path / "out.dat")
    assert not (tmp_path / "out.dat").exists()


@pytest.mark.parametrize("name", ["dat.json", "weights.npz"])
def test_a_folder_is_not_built_into_its_own_files(monkeypatch, tmp_path, name) -> None:
    (tmp_path / "in.dat").write_bytes(dat.encode(NETWORK, weights()))
    assert call(monkeypatch, "extract", tmp_path / "in.dat", tmp_path / "parts") == 0
    before = (tmp_path / "parts" / name).read_bytes()
    with pytest.raises(UsageError, match="overwritten"):
        call(monkeypatch, "build", tmp_path / "parts", tmp_path / "parts" / name)
    assert (tmp_path / "parts" / name).read_bytes() == before


@pytest.mark.parametrize("name", ["dat.json", "weights.npz", "exact.json", "tail.bin", "rows.npz"])
def test_every_file_of_a_folder_is_guarded(monkeypatch, tmp_path, name) -> None:
    source, parts = tmp_path / "in.dat", tmp_path / "parts"
    source.write_bytes(dat.encode(NETWORK, weights()))
    assert call(monkeypatch, "extract", source, parts) == 0
    (parts / name).unlink(missing_ok=True)
    (tmp_path / "outside").write_bytes(b"{}")
    (parts / name).symlink_to(tmp_path / "outside")
    with pytest.raises(GtiError, match="outside the folder"):
        call(monkeypatch, "build", parts, tmp_path / "out.dat")


def test_upsample_mode_zero_survives_in_a_model(monkeypatch, tmp_path, caplog) -> None:
    layers = (
        MajorLayer(14, 3, 16, 1, 3, (6,), upsample_enable=True, upsample_mode="zero", pooling=True),
        MajorLayer(14, 16, 16, 1, 3, (6,), pooling=True),
    )
    network = Network(layers)
    values = [ConvolutionWeights(*one) for one in generators.lively_weights(json_form.to_json(network), 3)]
    data = dat.encode(network, values)
    entry = {"operation": "GTICNN", "name": "chip", "data file": "a.dat", "mode": 0}
    upsampling.put(network, entry)
    path = tmp_path / "a.model"
    path.write_bytes(model_file.compose(json.dumps({"layer": [entry]}).encode(), {"a.dat": data}))
    image = np.random.RandomState(1).randint(0, 256, (14, 14, 3)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    wanted = Emulator(network, values, engine="numpy").read_out(image, "fc")[0]
    assert (wanted != Emulator(network, values, "numpy", upsample_fill="repeat").read_out(image, "fc")[0]).any()
    for device in ([], ["--device", "virtual"]):
        out = tmp_path / "o.npz"
        assert call(monkeypatch, "run", path, "--image", tmp_path / "image.npy", "--out", out, *device) == 0
        assert (np.load(out)["map0"] == wanted).all()
    assert call(monkeypatch, "extract", path, tmp_path / "parts") == 0
    assert json.loads((tmp_path / "parts" / "dat.json").read_text())["layer"][0]["upsample_mode"] == "zero"
    assert call(monkeypatch, "build", tmp_path / "parts", tmp_path / "again.dat") == 0
    assert "is lost" in caplog.text


def taken_apart(folder: Path, form: str) -> list[bytes]:
    """Write a container of twelve layers with data as the vendor's tools take it apart; return the data in order."""
    blobs = [dat.encode(NETWORK, weights()), *(f"label {k}".encode() for k in range(11))]
    entries = [{"operation": "LABEL", "name": f"layer {k}", "data file": f"{k}"} for k in range(len(blobs))]
    entries[0] |= {"operation": "GTICNN", "mode": 0}
    entries.insert(0, {"operation": "IMAGEREADER", "name": "reader", "data file": None})
    text = json.dumps({"layer": entries}).encode()
    whole = model_file.parse(model_file.compose(text, {f"{k}": blob for k, blob in enumerate(blobs)}))
    parts = model_file.decompose(whole, "X.model")  # as the vendor's library does: test_model_file.py has its digests
    if form == "library, moved":
        parts["X.model.0"] = parts["X.model.0"].replace(b'"X.model.', b'"/home/else/X.model.')
    if form.startswith("tool"):
        header = json.loads(parts["X.model.0"])
        parts = {f"X.model.{k}": blob for k, blob in enumerate(blobs)}
        for k, entry in enumerate(header["layer"][1:]):
            entry["data file"] = f"X.model.{k}"
        parts["X.json"] = whole.header_text if form.endswith("as it was") else json.dumps(header).encode()
    folder.mkdir()
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    return blobs


@pytest.mark.parametrize("form", ["library", "library, moved", "tool", "tool, header as it was"])
def test_folders_of_the_sdks_tools_are_built(monkeypatch, tmp_path, form) -> None:
    blobs = taken_apart(tmp_path / "parts", form)
    assert call(monkeypatch, "build", tmp_path / "parts", tmp_path / "out.model") == 0
    layers = model_file.load(tmp_path / "out.model").layers
    assert [layer.blob and bytes(layer.blob) for layer in layers] == [None, *blobs]


@pytest.mark.parametrize("form", ["library", "tool", "tool, header as it was"])
def test_nothing_of_such_a_folder_is_left_out(monkeypatch, tmp_path, form) -> None:
    parts = tmp_path / "parts"
    taken_apart(parts, form)
    (parts / "X.model.77").write_bytes(b"of no layer")
    with pytest.raises(ModelFileError, match=r"no layer for X\.model\.77"):
        call(monkeypatch, "build", parts, tmp_path / "out.model")
    (parts / "X.model.77").unlink()
    (parts / "X.model.5").unlink()
    with pytest.raises(ModelFileError, match=r"its data file is missing; expected X\.model\.5 "):
        call(monkeypatch, "build", parts, tmp_path / "out.model")
    (parts / "Y.model.0").write_text('{"layer": []}')
    with pytest.raises(ModelFileError, match="several containers"):
        call(monkeypatch, "build", parts, tmp_path / "out.model")
    assert not (tmp_path / "out.model").exists()
