"""Edges: a small .MODEL with an edge head, its answers on the emulator and over the wire, and the script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_data
import sticks
from PIL import Image

from gti.chip.formats import dat, model_file
from gti.chip.host import edge_head
from gti.chip.host.edge_head import EdgeHead
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.runtime.edges import EdgeModel
from gti.commands import edges as script
from gti.errors import ImageError, ModelFileError, UsageError

NETWORK = sticks.small_network()  # 28x28x3, last maps 16 x 28 x 28 and 32 x 14 x 14
RANDOM = np.random.default_rng(5)
HEAD = EdgeHead((RANDOM.normal(0, 0.05, 16), RANDOM.normal(0, 0.05, 32)), 13.0)


def edge_model(head: EdgeHead | None = HEAD) -> bytes:
    chip = {"operation": "GTICNN", "name": "chip", "data file": "c", "mode": 3, "device": {"chip": "2801"}}
    header: dict[str, Any] = {"name": "edges", "layer": [chip], "preprocessing": Preprocessing(28, 3).entry()}
    if head is not None:
        header["edges"] = head.entry()
    return model_file.compose(json.dumps(header).encode(), {"c": sticks.dat_bytes(NETWORK)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "e.model").write_bytes(edge_model())
    (tmp_path / "photos").mkdir()
    for name, size in (("a", (30, 44)), ("b", (28, 28))):
        pixels = RANDOM.integers(0, 256, (*size, 3)).astype(np.uint8)
        (tmp_path / "photos" / f"{name}.png").write_bytes(small_data.png(pixels))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["edges.py", *map(str, words)])
    return script.main()


@pytest.mark.parametrize("device", ["emulator", "virtual", "virtual:eusb"])
def test_emulator_and_wire_give_the_edges_of_the_last_maps(folder: Path, device: str):
    """The last sublayer of every major layer before pooling, as the emulator computes it from the file's integers."""
    from gti.chip.emulator.emulator import Emulator

    decoded = dat.decode(sticks.dat_bytes(NETWORK))
    with EdgeModel(folder / "e.model", device) as model:
        pixels, own = model.load(folder / "photos" / "b.png")
        assert own == (28, 28)
        maps = {
            (c.major, c.sub): codes[0]
            for c, codes in Emulator(decoded.network, decoded.weights).sublayers(pixels[None])
        }
        expected = HEAD.logits([maps[1, 2], maps[2, 1]])
        np.testing.assert_allclose(model.logits(pixels), expected, atol=1e-4)
        chance = model.edges(pixels[:, :, ::-1], "RGB")
        np.testing.assert_allclose(chance, edge_head.probabilities(expected), atol=1e-4)
        assert np.ptp(chance) > 0.1
        with pytest.raises(ImageError):
            model.edges(pixels.astype(np.float32), "RGB")


def test_a_picture_is_as_large_as_its_photograph(folder: Path, monkeypatch: pytest.MonkeyPatch):
    photo = folder / "photos" / "a.png"
    assert run(monkeypatch, folder / "e.model", photo, "--out", folder / "own.png") == 0
    assert run(monkeypatch, folder / "e.model", photo, "--out", folder / "small.png", "--size", 28, "--invert") == 0
    own, small = (np.asarray(Image.open(folder / name)) for name in ("own.png", "small.png"))
    assert (own.dtype, own.shape, small.shape) == (np.uint8, (30, 44), (28, 28))
    with EdgeModel(folder / "e.model", "emulator") as model:
        chance = model.edges(np.asarray(Image.open(photo)), "RGB")
        logits = model.logits(model.load(photo)[0])
    np.testing.assert_array_equal(own, edge_head.picture(chance))
    np.testing.assert_array_equal(small, 255 - edge_head.picture(edge_head.probabilities(logits)))


@pytest.mark.parametrize(("suffix", "kind"), [("", "PNG"), (".JPG", "JPEG"), (".pgm", "PPM"), (".tiff", "TIFF")])
def test_a_picture_is_of_the_kind_that_its_suffix_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, kind: str
):
    photo = folder / "photos" / "a.png"
    for name in (f"e{suffix}", "e.png"):
        assert run(monkeypatch, folder / "e.model", photo, "--out", folder / name) == 0
    found, lossless = Image.open(folder / f"e{suffix}"), Image.open(folder / "e.png")
    assert (found.format, lossless.format) == (kind, "PNG")
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(lossless))
    assert difference.max() <= (20 if kind == "JPEG" else 0)


def test_a_folder_and_a_photograph_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    (folder / "photos" / "c.jpg").write_bytes(b"no picture")
    assert run(monkeypatch, folder / "e.model", folder / "photos", "--out", folder / "out") == 1
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.png"]
    assert "c.jpg" in capsys.readouterr().err


def test_the_camera_shows_edges(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[np.ndarray] = []

    class Cv2:
        """What the script asks of OpenCV: a film of two frames."""

        class VideoCapture:
            def __init__(self, source: Any) -> None:
                self.left = 2

            def isOpened(self) -> bool:  # noqa: N802
                return True

            def read(self) -> tuple[bool, Any]:
                self.left -= 1
                return self.left >= 0, np.zeros((20, 40, 3), np.uint8)

            def release(self) -> None:
                pass

        error = RuntimeError
        namedWindow = staticmethod(lambda title: None)  # noqa: N815
        imshow = staticmethod(lambda title, picture: shown.append(picture))
        waitKey = staticmethod(lambda delay: -1)  # noqa: N815
        destroyAllWindows = staticmethod(lambda: None)  # noqa: N815

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setitem(sys.modules, "cv2", Cv2)  # type: ignore[arg-type]
    assert run(monkeypatch, folder / "e.model", "--camera", "film.mp4", "--device", "emulator") == 0
    assert [(picture.dtype, picture.shape) for picture in shown] == [(np.uint8, (20, 40))] * 2


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["e.model", "--out", "x.png"], UsageError, "camera"),
        (["e.model", "photos/a.png"], UsageError, "--out"),
        (["e.model", "photos/a.png", "--camera", "0", "--out", "x.png"], UsageError, "camera"),
        (["e.model", "photos/a.png", "--out", "x.png", "--size", "0"], UsageError, "--size"),
        (["e.model", "photos/a.png", "--out", "photos"], UsageError, "folder"),
        (["e.model", "photos/a.png", "--out", "none/x.png"], UsageError, "x.png"),
        (["e.model", "photos/a.png", "--out", "x.svg"], UsageError, "svg"),
        (["e.model", "photos/a.png", "photos/a.png", "--out", "out"], UsageError, "one name"),
        (["e.model", "photos/a.png", "--out", "photos/a.png"], UsageError, "overwritten"),
        (["e.model", "photos/a.png", "--out", "e.model"], UsageError, "overwritten"),
        (["e.model", "photos", "--out", "photos"], UsageError, "replace"),
        (["e.model", "photos", "--out", "photos/../photos"], UsageError, "replace"),
        (["plain.model", "photos/a.png", "--out", "x.png"], ModelFileError, "make_edges"),
        (["c.dat", "photos/a.png", "--out", "x.png"], ModelFileError, "make_edges"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], error: type, text: str
):
    (folder / "plain.model").write_bytes(edge_model(None))
    (folder / "c.dat").write_bytes(sticks.dat_bytes(NETWORK))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=text):
        run(monkeypatch, *words)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
