"""Teach: class folders and a small backbone become a full .MODEL that answers, and says "unknown"."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_data
import sticks

from addon import infer_full  # the launcher: it keeps its name and flags
from gti.chip.formats import model_file, npy
from gti.chip.formats.blobs import decode_fc
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.network.types import MajorLayer, Network
from gti.chip.runtime import features, known_answer, teach
from gti.chip.runtime.classifier import Classifier
from gti.chip.runtime.opening import open_stick_or_emulator
from gti.commands import teach as script
from gti.errors import DataError, FormatError, ModelFileError, UsageError

NETWORK = Network((MajorLayer(28, 3, 16, 1, 3, (4,), pooling=True), MajorLayer(14, 16, 32, 1, 3, (6,), pooling=True)))
COLOURS = {"blue": (20, 30, 220), "green": (30, 200, 40), "red": (210, 40, 20)}


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    """A PNG of 30x40 pixels of about one colour, RGB."""
    noise = np.random.default_rng(seed).integers(-25, 26, (30, 40, 3))
    return small_data.png(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def model(network: Network = NETWORK, reader: dict[str, Any] | None = None, order: str = "BGR") -> bytes:
    """A .MODEL of the chip's layers alone, with a contract."""
    size, _, planes = network.input_shape
    chip = {"operation": "GTICNN", "name": "chip", "data file": "c", "mode": 3, "device": {"chip": "2801"}}
    layers = [{"operation": "IMAGEREADER", "name": "reader", **(reader or {})}, chip]
    header = {"name": "small", "layer": layers, "preprocessing": Preprocessing(size, planes, order, 1.0).entry()}
    return model_file.compose(json.dumps(header).encode(), {"c": sticks.dat_bytes(network)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A backbone, three classes of four photographs, and two photographs that nobody has seen."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(picture(colour, 10 * number + i))
    (tmp_path / "blue.png").write_bytes(picture(COLOURS["blue"], 99))
    chequered = (np.indices((30, 40)).sum(axis=0) % 2 * 255).astype(np.uint8)
    (tmp_path / "none.png").write_bytes(small_data.png(np.repeat(chequered[:, :, None], 3, axis=2)))
    (tmp_path / "b.model").write_bytes(model())
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: Any) -> int:
    words = ["teach.py", folder / "b.model", folder / "photos", "--out", folder / "my.model", *flags]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    return script.main()


def answers(path: Path, *images: Path) -> list[str]:
    with Classifier(path, ["virtual"]) as classifier:
        return [labels[0].text for labels in classifier.classify(map(classifier.preprocessing.load, images))]


def test_what_is_taught_is_answered(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    assert run(monkeypatch, folder, "--device", "emulator", "--unknown", "0.01") == 0
    shown = capsys.readouterr().out
    assert "12 photographs of 3 classes, 12 of them new" in shown
    assert "held-out accuracy 1.000 (12 of 12" in shown
    assert answers(folder / "my.model", folder / "blue.png", folder / "none.png") == ["blue", "unknown"]
    monkeypatch.setattr(sys, "argv", ["infer_full.py", str(folder / "my.model"), str(folder / "none.png")])
    infer_full.main()
    first, *rest = json.loads(capsys.readouterr().out)["result"]
    assert first == {"index": 3, "label": "unknown", "probability": 1.0}
    assert {one["label"] for one in rest} <= set(COLOURS)

    # The file: a container that splits and composes, with the backbone's contract and an answer that verifies.
    container = model_file.load(folder / "my.model")
    parts = model_file.decompose(container, "x")
    again = model_file.parse(model_file.compose(parts["x.0"], parts))
    assert [layer.operation for layer in again.layers] == ["IMAGEREADER", "GTICNN", "POOLING", "FC", "SOFTMAX", "LABEL"]
    assert container.header["preprocessing"] == Preprocessing(28, 3, "BGR", 1.0).entry()
    (part,) = known_answer.read(container, "my.model")
    assert known_answer.check_codes(part.answer, part.data, part.name)[0] == []


def test_probabilities_are_those_of_the_formula(folder: Path):
    """Mean of the codes over the positions, one linear layer, softmax: stated anew from the file's own numbers."""
    backbone = features.load_backbone(folder / "b.model")
    lesson = teach.learn(backbone, folder / "photos", device="emulator", unknown=0)
    (folder / "my.model").write_bytes(teach.to_model(lesson, backbone, "my", top=3))
    with open_stick_or_emulator(backbone.path, "virtual") as stick:
        codes = stick.evaluate(backbone.preprocessing.load(folder / "blue.png"))[0]
    fc = model_file.load(folder / "my.model").first("FC")
    assert fc is not None
    weights, biases = decode_fc(fc.blob or b"")
    powers = np.exp(weights @ codes.reshape(49, 32).mean(axis=0) + biases)
    with Classifier(folder / "my.model", ["virtual"]) as classifier:
        (labels,) = classifier.classify([classifier.preprocessing.load(folder / "blue.png")])
    assert len(labels) == 3
    for label in labels:
        assert label.probability == pytest.approx(powers[label.index] / powers.sum(), abs=1e-4)


@pytest.mark.slow
def test_only_new_photographs_are_computed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    run(monkeypatch, folder)
    (folder / "photos" / "grey").mkdir()
    for i in range(2):
        (folder / "photos" / "grey" / f"{i}.png").write_bytes(picture((120, 120, 120), 50 + i))
    capsys.readouterr()
    run(monkeypatch, folder, "--device", "virtual")
    assert "14 photographs of 4 classes, 2 of them new" in capsys.readouterr().out
    # Features of photographs that were prepared in another way are not used.
    other = features.load_backbone(folder / "b.model")
    cache = folder / "my.model.features.npz"
    assert len(features.read_cache(cache, other)) == 14
    cropped = features.Backbone(other.path, other.loaded, Preprocessing(28, 3, "BGR", 0.5), None, {})
    assert features.read_cache(cache, cropped) == {}


def test_a_reader_that_turns_the_planes_round(folder: Path):
    """The same network behind a reader of RGB photographs sees the same, so it learns the same."""
    turning = {"input format": "CS_RGB24_PLANAR", "output format": "CS_BGR24_PLANAR"}
    (folder / "rgb.model").write_bytes(model(reader=turning, order="RGB"))
    paths = [folder / "blue.png", folder / "photos" / "red" / "0.png"]
    computed = [
        features.compute(features.load_backbone(folder / name), paths, device="emulator").values
        for name in ("b.model", "rgb.model")
    ]
    np.testing.assert_array_equal(*computed)
    assert np.ptp(computed[0], axis=0).max() > 0


def test_photographs_that_cannot_be_read_are_named_and_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    (folder / "photos" / "red" / "broken.jpg").write_bytes(b"no picture")
    assert run(monkeypatch, folder) == 1
    shown = capsys.readouterr()
    assert "broken.jpg" in shown.err
    assert "12 photographs of 3 classes, 12 of them new, 1 left out" in shown.out
    assert answers(folder / "my.model", folder / "blue.png") == ["blue"]


def few(folder: Path, classes: int, photographs: int) -> None:
    for number, name in enumerate(COLOURS):
        for i in range(4):
            if number >= classes or i >= photographs:
                (folder / "photos" / name / f"{i}.png").unlink()
        if number >= classes:
            (folder / "photos" / name).rmdir()


def unreadable(folder: Path) -> None:
    for path in (folder / "photos" / "red").iterdir():
        path.write_bytes(b"no picture")


def backbone(data: bytes) -> Any:
    return lambda folder: (folder / "b.model").write_bytes(data)


FOURTEEN = Network((MajorLayer(28, 3, 16, 1, 3, (4,), pooling=True),))
TEN_BIT = Network((MajorLayer(14, 3, 16, 1, 3, (4,), pooling=True),), activation_bit_mode=1)


@pytest.mark.parametrize(
    ("spoil", "flags", "error", "words"),
    [
        (lambda folder: few(folder, 1, 4), [], DataError, ["photos", "two folders"]),
        (lambda folder: few(folder, 0, 0), [], DataError, ["two folders"]),
        (lambda folder: few(folder, 3, 1), [], DataError, ["blue", "green", "red", "at least two"]),
        (unreadable, [], DataError, ["red", "at least two", "0.png"]),
        (lambda folder: (folder / "photos" / "red").rename(folder / "photos" / "unknown"), [], DataError, ["rename"]),
        (backbone(model(FOURTEEN)), [], ModelFileError, ["7x7", "14x14"]),
        (backbone(model(TEN_BIT)), [], ModelFileError, ["ten-bit"]),
        (backbone(b"no model"), [], FormatError, ["b.model"]),
        (backbone(model(order="RGB")), [], ModelFileError, ["channel order"]),
        (lambda folder: None, ["--features", "PHOTO"], FormatError, ["blue.png"]),
        (lambda folder: None, ["--out", "BACKBONE"], UsageError, ["b.model", "overwritten"]),
        (lambda folder: None, ["--features", "BACKBONE"], UsageError, ["b.model", "overwritten"]),
        (lambda folder: None, ["--out", "OF_A_CLASS"], UsageError, ["overwritten"]),
        (lambda folder: None, ["--features", "OUT"], UsageError, ["--features"]),
        (lambda folder: None, ["--unknown", "1.5"], UsageError, ["unknown"]),
        (lambda folder: None, ["--top", "0"], UsageError, ["--top"]),
    ],
)
def test_what_cannot_be_taught_is_said_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, spoil: Any, flags: list[str], error: type, words: list[str]
):
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    named = {"PHOTO": "blue.png", "BACKBONE": "b.model", "OUT": "my.model", "OF_A_CLASS": "photos/red/0.png"}
    flags = [str(folder / named[flag]) if flag in named else flag for flag in flags]
    with pytest.raises(error) as caught:
        run(monkeypatch, folder, *flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".npz"}
    assert left == before


@pytest.mark.parametrize("key", ["backbone", "photos", "features"])
def test_a_damaged_cache_is_refused(folder: Path, key: str):
    backbone = features.load_backbone(folder / "b.model")
    cache = folder / "c.npz"
    features.compute(backbone, [folder / "blue.png"], cache, "emulator")
    arrays = npy.parse_npz(cache.read_bytes(), "c.npz")
    cache.write_bytes(npy.npz_bytes(arrays | {key: arrays[key].astype(np.float64)[..., None]}))
    with pytest.raises(FormatError, match="features"):
        features.read_cache(cache, backbone)
