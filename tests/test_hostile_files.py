"""Files that nobody should trust: one for each rule, damaged ones by Hypothesis, links and bombs."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damaged_files import entries
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from places import ROOT
from sweeps import first_quick

from gti import files
from gti.chip.formats import dat, model_file, model_folder
from gti.chip.formats.blobs import MAX_LABELS, parse_labels
from gti.chip.formats.npy import parse_npz
from gti.chip.host.image import load_image
from gti.chip.loaded_model import load_model
from gti.chip.network import file_size
from gti.chip.usb import trace
from gti.commands import flags
from gti.errors import (
    CheckpointError,
    DataError,
    DatError,
    FormatError,
    GtiError,
    ImageError,
    ModelFileError,
    NetworkError,
    UsageError,
)
from scripts.dev import fuzz
from scripts.dev.fuzzing import damage, seeds, targets
from scripts.dev.fuzzing.targets import TARGETS

LIGHT = [target for target in TARGETS.values() if not target.heavy]
# What a parser raises; FormatError where it is not named.
ERRORS: dict[str, type[GtiError]] = {
    "dat": DatError, "driver": DatError, "model": ModelFileError, "network.json": ModelFileError, "fc": ModelFileError,
    "label-data": ModelFileError, "labels": DataError, "dat.json": NetworkError, "metadata": CheckpointError,
}  # fmt: skip
OTHERS = {"json, character": ModelFileError} | dict.fromkeys(
    ["image, pixels", "image, too large", "image, 8 bits", "image, transparent", "image, float32",
     "image, planes first", "image, wrong length"], ImageError,
)  # fmt: skip
HANG_SECONDS = 20


@pytest.mark.parametrize("target", dict.fromkeys(entry[0] for entry in entries()))
def test_every_rule_refuses_its_file(target: str) -> None:
    answers, expected = {}, {}
    for _, name, word, data in (entry for entry in entries() if entry[0] == target):
        kind = OTHERS.get(f"{target}, {word}", ERRORS.get(target, FormatError))
        expected[name] = f"{kind.__name__}: {word}"
        try:
            TARGETS[target].run(data)
            answers[name] = "accepted"
        except GtiError as error:
            answers[name] = f"{type(error).__name__}: {word if word in str(error) else error}"
        problem, _ = fuzz.judge(TARGETS[target], data, HANG_SECONDS)
        assert not problem, f"{name}: {problem}"
    assert answers == expected


@pytest.mark.parametrize("target", LIGHT, ids=lambda target: target.name)
def test_good_files_are_accepted(target: targets.Target) -> None:
    for data in target.seeds():
        target.run(data)


@pytest.mark.slow
@pytest.mark.parametrize("target", LIGHT, ids=lambda target: target.name)
def test_damaged_files(target: targets.Target) -> None:
    refused = []

    @settings(max_examples=200, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(target.damaged())
    def damaged(data: bytes) -> None:
        problem, refusal = fuzz.judge(target, data, HANG_SECONDS)
        assert not problem, problem
        refused.append(bool(refusal))

    damaged()
    assert len(refused) > sum(refused) > 0  # some are refused, some are still good


@pytest.mark.slow
@settings(max_examples=300, database=None)
@given(st.binary(max_size=600))
@pytest.mark.parametrize("name", ["dat", "model", "json", "npy", "npz", "recording", "fc", "label-data", "driver"])
def test_noise(name: str, data: bytes) -> None:
    assert not fuzz.judge(TARGETS[name], data, HANG_SECONDS)[0]


def test_the_fuzzer_finds_planted_defects(tmp_path: Path) -> None:
    def bad(data: bytes) -> None:
        if len(data) > 10 and data != b"good" * 50:
            raise KeyError("x")

    result = fuzz.campaign(targets.Target("planted", bad, lambda: [b"good" * 50]), 200, 1, tmp_path)
    assert result["defect"] == "KeyError: 'x'"
    (kept,) = tmp_path.glob("planted-*.bin")
    assert kept.read_bytes().replace(b"\0", b"", 1) == b"good" * 50  # the least damage: one byte more
    assert "KeyError" in kept.with_suffix(".txt").read_text()


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (lambda data: sum(1 for _ in iter(int, 1)), "took too much time"),
        pytest.param(lambda data: b"x" * (100 * 2**20 + fuzz.peak()), "memory grew", marks=pytest.mark.slow),
        (lambda data: (_ for _ in ()).throw(FormatError("x: \x1b[2J is not good.")), "control characters"),
        (lambda data: (_ for _ in ()).throw(FormatError("x" * 30_000)), "characters long"),
    ],
)
def test_limits_of_an_input(run, word: str) -> None:
    problem, _ = fuzz.judge(targets.Target("planted", run, lambda: []), b"", 0.2 if "time" in word else HANG_SECONDS)
    assert word in problem


def test_the_fuzzer_repeats_itself() -> None:
    inputs: list[list[bytes]] = [[], []]
    for one in inputs:
        target = targets.Target("counted", one.append, lambda: [seeds.model(seeds.networks()["rgb"])], damage.of_model)
        assert fuzz.campaign(target, 30, seed=5)["inputs"] == 30
    assert inputs[0] == inputs[1]


# Round trips


@pytest.mark.parametrize("name", seeds.networks())
@pytest.mark.parametrize("padded", [True, False])
def test_taken_apart_and_built_again(name: str, padded: bool, tmp_path: Path) -> None:
    net = seeds.networks()[name]
    data = seeds.dat_file(net, padded=padded)
    model_folder.extract(data, tmp_path / "dat", "x.dat")
    assert model_folder.build(tmp_path / "dat", "x.dat") == data
    container = model_file.compose(*_with_dat(net, data))
    model_folder.extract(container, tmp_path / "model", "x.model")
    assert model_folder.build(tmp_path / "model", "x.model") == container


def _with_dat(net: dat.Network, data: bytes) -> tuple[bytes, dict[str, bytes]]:
    text, parts = seeds.full_model(net)
    return text, {**parts, "chip.dat": data}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "nets").glob("*.dat")) + sorted((ROOT / "nets").glob("*.model")), ids=lambda p: p.name
)
def test_nets_of_the_kit_build_again(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    model_folder.extract(data, tmp_path / "parts", path.name)
    assert model_folder.build(tmp_path / "parts", path.name) == data


# Names and links


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../x", "a//x", "/etc/passwd", "~/x", "C:x", "a\\x", "\x1b[2J", "x\0", "x\n", "\u202ex",
     "a" * 256],
)  # fmt: skip
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        files.inside(tmp_path, name)
    assert str(caught.value).isprintable()


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "good").write_bytes(b"data")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "near").symlink_to("good")
    (folder / "away").symlink_to(tmp_path)
    assert files.inside(folder, "good").read_bytes() == b"data"
    for name in ("link", "near", "away/secret"):
        with pytest.raises(FormatError, match="outside"):
            files.inside(folder, name)
        text = json.dumps({"layer": [{"operation": "FC", "data file": name}]}) + " " * 100
        with pytest.raises(ModelFileError, match="outside"):
            model_file.compose(text.encode(), folder)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FormatError, match="regular"):
            files.read_bytes(path, limit=100)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(10 * 1024**3)
    for read in (dat.load, model_file.load, files.read_json):
        with pytest.raises(FormatError, match="large"):
            read(sparse)


def test_extracting_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    good = seeds.dat_file(seeds.networks()["rgb"])
    with pytest.raises(DatError):
        model_folder.extract(good[:-1], tmp_path / "parts", "x.dat")
    assert not list(tmp_path.iterdir())


# Sizes and bombs: what would fill the memory is refused before it does


def memory_of(code: str, *arguments: Path) -> int:
    """Return by how many bytes `code` (which defines `use`) raises the peak memory of a fresh process."""
    program = (
        "import resource, sys\n"
        "unit = 1 if sys.platform == 'darwin' else 1024\n"
        "peak = lambda: unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "from gti.errors import GtiError\n" + code + "\nbefore = peak()\n"
        "try:\n    use()\nexcept GtiError as error:\n    print(error, file=sys.stderr)\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def _deep(rng: random.Random) -> bytes:
    return b"[" * files.MAX_JSON_BYTES


def _containers(rng: random.Random) -> bytes:
    return b"[" + b"[]," * (files.MAX_JSON_BYTES // 3 - 2) + b"1]"


def _numbers(rng: random.Random) -> bytes:
    return b"[" + b"0.1," * (files.MAX_JSON_BYTES // 4 - 2) + b"1]"


@pytest.mark.parametrize("make", first_quick(1, [_containers, _deep, _numbers]))
def test_memory_of_json(make, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(make(random.Random(0)))
    code = "from gti.chip.network import json_form as network\ndef use(): network.load(sys.argv[1])"
    assert memory_of(code, path) < 10 * path.stat().st_size + 64 * 2**20


@pytest.mark.slow
def test_memory_of_archives_and_recordings(tmp_path: Path) -> None:
    bomb = tmp_path / "x.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (29000000,)}\n"
        text = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
        archive.writestr("x.npy", text + bytes(29_000_000))
    code = "from gti.chip.formats.npy import parse_npz\ndef use(): parse_npz(open(sys.argv[1], 'rb').read(), 'x')"
    assert memory_of(code, bomb) < 10 * bomb.stat().st_size + 64 * 2**20
    session = tmp_path / "x.gz"
    first = json.dumps({"format": trace.FORMAT, "device": "usb", "settings": {}}).encode() + b"\n"
    for body in (bytes(200_000_000), b'{"call":"close_device","args":[],"result":0}\n' * 4_000_000):
        session.write_bytes(gzip.compress(first + body, 1))
        code = "from gti.chip.usb import trace\ndef use(): trace.ReplayBackend(sys.argv[1])"
        assert memory_of(code, session) < 10 * session.stat().st_size + 64 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "side", "options"),
    [
        ("png", 2800, {}),
        ("png", 2800, {"orientation": 6}),
        ("webp", 1990, {}),
        ("jpeg", 6000, {}),  # 36 million pixels: decoded at half its size
        ("jpeg", 2800, {"progressive": True, "subsampling": 0}),
    ],
)
def test_memory_of_pictures(suffix: str, side: int, options: dict, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = options.pop("orientation", 1)
    Image.new("RGB", (side, side), (10, 20, 30)).save(path, exif=exif, **options)
    code = (
        "import numpy, PIL.ImageOps\nfrom gti.chip.host.image import load_image\n"
        "def use(): load_image(sys.argv[1], 224)"
    )
    assert memory_of(code, path) < 10 * path.stat().st_size + 64 * 2**20
    assert np.abs(load_image(path, 224).astype(int) - (30, 20, 10)).max() <= 2


@pytest.mark.parametrize(("suffix", "side"), [("png", 3000), ("webp", 2100), ("gif", 2900)])
def test_pictures_that_unpack_to_too_much(suffix: str, side: int, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new("P" if suffix == "gif" else "RGB", (side, side)).save(path)
    with pytest.raises(ImageError, match="pixels"):
        load_image(path, 224)


def test_sizes_at_their_limits() -> None:
    with pytest.raises(FormatError, match="received 1048577 bytes"):
        files.parse_json(b" " * (files.MAX_JSON_BYTES + 1), "x")
    with pytest.raises(ModelFileError, match="has too many lines; expected at most 1000000, received 1000001"):
        parse_labels(b"\n" * MAX_LABELS)
    assert len(parse_labels(b"\n" * (MAX_LABELS - 1))) == MAX_LABELS - 1
    with pytest.raises(ModelFileError, match="large"):
        parse_labels(b"x" * (4 * 1024 * 1024 + 1))
    with pytest.raises(FormatError, match="arrays"):
        parse_npz(b"PK\1\2" * 4097, "x")


@pytest.mark.parametrize("read", [model_file.load, load_model])
def test_a_model_of_more_than_a_gibibyte_is_refused_before_it_is_read(read, tmp_path: Path) -> None:
    path = tmp_path / "huge.model"
    with open(path, "wb") as file:
        file.truncate(model_file.MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(FormatError, match="1073741824"):
        read(path)


def test_padding_of_a_dat_is_bounded(tmp_path: Path) -> None:
    net = seeds.networks()["tiny"]
    rows = file_size.row_count(net)
    most = dat.max_length(rows)
    assert dat.decode(seeds.dat_file(net).ljust(most, b"\0")).length == most
    with pytest.raises(DatError, match="behind"):
        dat.decode(seeds.dat_file(net).ljust(most + 1, b"\0"))
    with pytest.raises(DatError, match="tail"):
        dat.encode(net, seeds.weights(net), length=most + 1)


def test_a_kept_header_cannot_ask_for_memory(tmp_path: Path) -> None:
    folder = targets.folders()["model"]
    text, _, rest = (folder / "header.bin").read_bytes().partition(b"\0")
    value = json.loads(text)
    value["layer"][-1]["data offset"] = 10**9
    (tmp_path / "m").mkdir()
    for path in folder.iterdir():
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "m" / "header.bin").write_bytes(json.dumps(value).encode() + b"\0" + rest)
    with pytest.raises(ModelFileError, match="network"):
        model_folder.build(tmp_path / "m", "x.model")


def test_messages_never_reach_the_terminal_raw() -> None:
    text = "\x1b]0;owned\x07\x9b2J\u202e\u2066\ud800\x00"
    for data in (
        json.dumps({"layer": [{"name": text, "operation": text, "data offset": 1, "data size": -1}]}).encode() + b"\0",
    ):
        with pytest.raises(GtiError) as caught:
            model_file.parse(data, text)
        assert str(caught.value).isprintable()


def test_results_with_labels_of_a_file_stay_json() -> None:
    text = '{"label":"d\u00f6g \x9b2J\x7f\u202e\U000e0001"}'
    shown = flags.for_terminals(text)
    assert shown.isprintable()
    assert "d\u00f6g" in shown
    assert json.loads(shown) == json.loads(text)


def test_finite_values_of_a_large_fc_layer_are_counted_in_little_memory(tmp_path: Path) -> None:
    values = np.full(2_000_000 + 1000, np.nan, "<f4")
    path = tmp_path / "fc.bin"
    path.write_bytes(np.array([2000, 1000], "<i4").tobytes() + values.tobytes())
    code = "from gti.chip.formats.blobs import decode_fc\ndef use(): decode_fc(open(sys.argv[1], 'rb').read())"
    assert memory_of(code, path) < 5 * path.stat().st_size


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--targets", "nothing"], "nothing"),
        (["--inputs", "0"], "--inputs"),
        (["-runs=1"], "--corpus"),
    ],
)
def test_the_fuzzer_refuses(words: list[str], word: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *words])
    with pytest.raises(UsageError, match=word):
        fuzz.main()


@pytest.mark.slow
def test_coverage_guides_the_fuzzer(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="Atheris is not installed; it is no dependency")
    words = ["--targets", "label-data", "--corpus", str(tmp_path / "corpus"), "-runs=300", "-seed=1"]
    done = subprocess.run(
        [sys.executable, "scripts/dev/fuzz.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "corpus").iterdir())) >= len(TARGETS["label-data"].seeds())
