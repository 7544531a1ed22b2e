"""scripts/search_bits.py: from a float checkpoint to the JSON pair of a choice, and what it refuses at once."""

from __future__ import annotations

import json

import pytest
import small_data
import small_nets
from converted_net import run_script
from PIL import Image

from gti import nets
from gti.chip.network import file_size
from gti.errors import UsageError
from gti.stage import Stage
from gti.training import checkpoint
from gti.training.checkpoint import Metadata

NETWORK = small_nets.small_network((14, 3, 16, 1, 3, False), (14, 16, 32, 1, 3, True))
CLASSES = 4
SCRIPT = "scripts/search_bits.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A net, a float checkpoint of it, pictures and a data set."""
    base = tmp_path_factory.mktemp("search")
    (base / "nets").mkdir()
    small_nets.write_json(NETWORK, base / "nets")
    model = small_nets.build(NETWORK, base / "nets", classes=CLASSES)
    arrays = small_nets.randomise(model, 0, scale=0.05)
    metadata = Metadata("digits", "2801", Stage.FLOAT, epoch=1, step=9, classes=CLASSES, image_size=14)
    checkpoint.save(base / "float" / checkpoint.file_name("digits", Stage.FLOAT, 1), arrays, metadata)
    images = small_data.random_images(24)
    labels = [1 + number % (CLASSES - 1) for number in range(24)]
    for part in ("train", "val"):
        small_data.write(base / "data" / part, images, labels)
    (base / "photos").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(base / "photos" / f"{index}.png")
    return base


def flags(folder, *more):
    known = {"nets_dir": "nets", "checkpoint": "float", "data_dir": "data", "images": "photos"}
    paths = [word for name, path in known.items() for word in (f"--{name}", folder / path)]
    return ["--net", "digits", "--chip", "2801", *paths, "--num_images", "24", "--classes", str(CLASSES), *more]


@pytest.mark.slow
def test_the_choice_is_measured_and_written(folder, tmp_path, capsys):
    rows = file_size.row_count(NETWORK) - 1
    run_script(SCRIPT, *flags(folder, "--rows", rows, "--out", tmp_path / "mixed", "--json", tmp_path / "f.json"))
    figures = json.loads((tmp_path / "f.json").read_text())
    assert set(figures["drops"]) == {"1", "2"}
    assert figures["chosen"]["rows"] <= rows
    written = nets.load("digits", nets_dir=tmp_path / "mixed")
    assert [layer.coef_bits for layer in written.layers] == figures["chosen"]["bits"]
    assert file_size.row_count(written) == figures["chosen"]["rows"]
    assert nets.model_json("digits", tmp_path / "mixed").exists()
    said = capsys.readouterr().out
    assert f"{figures['accuracy']:.4f}" in said
    assert f"{figures['chosen_accuracy']:.4f}" in said


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--out", "a"], "--rows"),
        (["--rows", "10", "--max_drop", "1"], "--max_drop"),
        (["--rows", "10", "--out", "NETS"], "nets"),
    ],
)
def test_mistakes_are_told_at_once(folder, more, word):
    more = [str(folder / "nets") if text == "NETS" else text for text in more]
    with pytest.raises(UsageError, match=word):
        run_script(SCRIPT, *flags(folder, *more))
