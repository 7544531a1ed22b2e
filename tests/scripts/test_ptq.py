"""scripts/ptq.py: from a float checkpoint and pictures to a checkpoint that converts, and what it refuses at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import small_nets
from PIL import Image
from places import ROOT

from gti import converter
from gti.stage import MSE, Stage
from gti.training import checkpoint, ownership, restore
from gti.training.checkpoint import Metadata

NETWORK = small_nets.small_network((14, 3, 16, 1, 3, False), (14, 16, 32, 1, 1, True))
CLASSES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A net, a float checkpoint of it and pictures."""
    base = tmp_path_factory.mktemp("ptq")
    (base / "nets").mkdir()
    small_nets.write_json(NETWORK, base / "nets")
    model = small_nets.build(NETWORK, base / "nets", classes=CLASSES)
    arrays = small_nets.randomise(model, 0, scale=0.05)
    for stage in (Stage.FLOAT, Stage.QUANT_W):
        metadata = Metadata("digits", "2801", stage, epoch=1, step=9, classes=CLASSES, image_size=14)
        checkpoint.save(base / stage.label / checkpoint.file_name("digits", stage, 1), arrays, metadata)
    (base / "photos").mkdir()
    random = np.random.default_rng(0)
    for index in range(24):
        coarse = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((30, 20), Image.Resampling.BICUBIC).save(base / "photos" / f"{index}.png")
    return base


def run(folder, *flags):
    words = [sys.executable, ROOT / "scripts" / "ptq.py", "--net", "digits", "--chip", "2801", "--nets_dir", "nets"]
    return subprocess.run([*words, *flags], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_float_checkpoint_becomes_a_fused_one_that_converts(folder):
    done = run(
        folder,
        *("--checkpoint", "float", "--images", "photos", "--num_images", "30", "--checkpoint_dir", "out"),
        *("--json", "figures.json", "--report", "page"),
    )
    assert done.returncode == 0, done.stderr
    source = restore.open_checkpoint(folder / "out", net="digits", stages=(Stage.FUSED,))
    metadata = source.metadata
    assert (metadata.filter_step, metadata.classes, metadata.network) == (MSE, CLASSES, restore.traits(NETWORK))
    assert metadata.parent == checkpoint.digest(restore.open_checkpoint(folder / "float", net="digits").prefix)
    # Evaluation and conversion take it as it is.
    model = restore.build_model("digits", NETWORK, Stage.FUSED, source, CLASSES, nets_dir=folder / "nets")
    conversion = converter.convert(NETWORK, source.arrays, net="digits", filter_step=metadata.filter_step)
    for layer, weights in zip(small_layers(model), conversion.weights, strict=True):
        held = layer.effective_weights()[0].numpy() * 2**weights.shift
        np.testing.assert_array_equal(held.transpose(3, 2, 0, 1), weights.filters)
    figures = json.loads((folder / "figures.json").read_text())
    assert [layer["name"] for layer in figures["layers"]] == ["conv1_1", "conv2_1"]
    assert 0.5 < figures["cosine"] <= 1
    assert f"{figures['cosine']:.4f}" in done.stdout
    assert "Quantization without training" in (folder / "page" / "index.html").read_text()
    again = run(folder, "--checkpoint", "float", "--images", "photos", "--checkpoint_dir", "out")
    assert again.returncode == 2
    assert "never overwritten" in again.stderr


def small_layers(model):
    return [model.get_layer(convolution.name) for convolution in NETWORK.convolutions]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--checkpoint", "quant_w", "--images", "photos"), "quant_w"),
        (("--checkpoint", "absent", "--images", "photos"), "absent"),
        (("--checkpoint", "float", "--images", "absent"), "folder"),
        (("--checkpoint", "float", "--images", "nets"), "too few"),
    ],
)
def test_mistakes_are_one_sentence(folder, flags, word):
    done = run(folder, *flags, "--checkpoint_dir", "refused")
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("ptq.py", "--checkpoint", "float", "--images", "photos"),
        ("import_model.py", "digits.h5", "--input", "rgb"),
    ],
)
def test_a_folder_that_another_run_writes_to_is_refused(folder, words):
    with ownership.owned(folder / "held"):
        common = ("--net", "digits", "--chip", "2801", "--nets_dir", "nets", "--checkpoint_dir", "held")
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / words[0], *words[1:], *common],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"pid {os.getpid()}" in done.stderr
        assert [path.name for path in (folder / "held").iterdir()] == [ownership.FILE]
