"""From HED's weights to a .MODEL for edges, on a network of two blocks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hed_files
import numpy as np
import pytest
import small_data
from hed_files import convolved

from gti import edges
from gti.chip.emulator import arithmetic
from gti.chip.formats import model_file
from gti.chip.host import edge_head
from gti.chip.runtime import known_answer
from gti.chip.runtime.edges import EdgeModel
from gti.errors import DataError, FormatError, UsageError
from gti.importing import hed
from scripts import make_edges


def photographs(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [count, 28, 28, 3]."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 3, 7, 7)).astype(np.float32)
    planes = [[edge_head.resize(plane, (28, 28)) for plane in picture] for picture in coarse]
    return np.array(planes).transpose(0, 2, 3, 1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[hed.Hed, edges.Edges, Path]:
    folder = tmp_path_factory.mktemp("hed")
    found = hed.read(hed_files.write(folder / "w.h5"), (3, 3))
    result = edges.make(found, photographs(16), (0, 5, 10))
    (folder / "e.model").write_bytes(result.to_model("edges"))
    return found, result, folder / "e.model"


def float_logits(found: hed.Hed, image: np.ndarray) -> np.ndarray:
    """The float network on the chip's five bits, in float64: convolutions, 2x2 maxima, planes, enlarging."""
    maps = arithmetic.five_bit(image).astype(np.float64)
    total: Any = found.bias
    for convolution, (filters, biases) in zip(found.network.convolutions, found.filters, strict=True):
        maps = np.maximum(convolved(maps, filters, biases), 0)
        if convolution.pooled:
            total = total + edge_head.resize(maps @ found.sides[convolution.major - 1], (28, 28))
            maps = maps.reshape(len(maps) // 2, 2, len(maps) // 2, 2, -1).max(axis=(1, 3))
    return np.asarray(total)


@pytest.mark.slow
def test_the_float_network_is_the_formula(made: Any):
    found, _, _ = made
    images = photographs(2, seed=3)
    expected = [float_logits(found, image) for image in images]
    np.testing.assert_allclose(edges.float_logits(found, images), expected, atol=1e-3)


@pytest.mark.slow
def test_the_chip_finds_the_edges_of_the_float_network(made: Any):
    """Photographs that nothing was fitted to; the correlation that is told is that of the photographs held back."""
    found, result, path = made
    with EdgeModel(path, "emulator") as model:
        unseen = [
            edges.correlation(model.logits(image), float_logits(found, image)) for image in photographs(4, seed=9)
        ]
        held = [
            edges.correlation(model.logits(photographs(16)[i]), float_logits(found, photographs(16)[i]))
            for i in (0, 5, 10)
        ]
    assert np.mean(unseen) > 0.9
    np.testing.assert_allclose(result.correlations, held, atol=1e-3)


@pytest.mark.slow
def test_the_file_is_a_container_of_the_vendors_form(made: Any):
    _, result, path = made
    container = model_file.load(path)
    assert [layer.operation for layer in container.layers] == ["IMAGEREADER", "GTICNN"]
    assert container.layers[1].entry["mode"] == 3  # SUBLAST: the last map of every major layer
    parts = model_file.decompose(container, "x")
    assert model_file.parse(model_file.compose(parts["x.0"], parts)).header["edges"] == result.head.entry()
    (part,) = known_answer.read(container, "e.model")
    assert known_answer.check_codes(part.answer, part.data, part.name)[0] == []


def run(monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["make_edges.py", *map(str, words)])
    make_edges.main()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hed_files.write(tmp_path / "w.h5")
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(photographs(6)):
        (tmp_path / "photos" / f"{number}.png").write_bytes(small_data.png(pixels))
    return tmp_path


@pytest.mark.slow
def test_the_script_writes_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    words = [folder / "w.h5", "--images", folder / "photos", "--num_images", 8, "--coef_bits", "3,1"]
    run(monkeypatch, *words, "--out", folder / "e.model")
    assert "photographs held back: 0." in capsys.readouterr().out
    with EdgeModel(folder / "e.model", "virtual") as model:
        assert model.logits(photographs(1)[0]).shape == (28, 28)


@pytest.mark.parametrize(
    ("weights", "images", "flags", "error", "text"),
    [
        ("none.h5", "photos", [], FormatError, "none.h5"),
        ("photos/0.png", "photos", [], FormatError, "HDF5"),
        ("w.h5", "none", [], DataError, "none"),
        ("w.h5", "empty", [], DataError, "empty"),
        ("w.h5", "photos", ["--coef_bits", "3,2"], UsageError, "coef_bits"),
        ("w.h5", "photos", ["--coef_bits", "3,3,3"], UsageError, "coef_bits"),
        ("w.h5", "photos", ["--num_images", "0"], UsageError, "num_images"),
        ("w.h5", "photos", ["--out", "none/e.model"], UsageError, "e.model"),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    weights: str,
    images: str,
    flags: list[str],
    error: type,
    text: str,
):
    (folder / "empty").mkdir()
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=text):
        run(monkeypatch, weights, "--images", images, *(["--out", "e.model"] if "--out" not in flags else []), *flags)
    assert sorted(folder.rglob("*")) == before
