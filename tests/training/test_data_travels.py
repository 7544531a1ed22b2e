"""Labels, crop and place of the training data travel in the checkpoint: no script behind train.py asks for them."""

from __future__ import annotations

import numpy as np
import pytest
from converted_net import run_script
from PIL import Image
from small_nets import small_network, write_json

from gti.errors import DataError
from gti.training import checkpoint

COMMON = ("--net", "digits", "--chip", "2801")
NAMES = ("ant", "bee", "cat")


@pytest.mark.slow
def test_data_and_labels_are_named_once(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in NAMES:
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            pixels = random.integers(0, 256, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / part / name / "1.png")
    (tmp_path / "photos" / "pipeline.json").write_text('{"crop_fraction": 0.75}')
    nets = write_json(small_network((14, 3, 16, 1, 3, True)), tmp_path)
    monkeypatch.chdir(tmp_path)
    common = (*COMMON, "--nets_dir", nets)
    run_script("train.py", *common, "--data_dir", "photos", "--num_epochs", 0, "--checkpoint_dir", "ck")
    metadata = checkpoint.read_metadata("ck/digits-2801-epoch-0")
    assert metadata is not None
    assert (metadata.labels, metadata.classes, metadata.crop_fraction) == (("", *NAMES), 4, 0.75)
    assert metadata.data_dirs == tuple(str(tmp_path / "photos" / part) for part in ("train", "val"))
    assert "warning" not in capsys.readouterr().out
    run_script("eval.py", *common, "--checkpoint", "ck")
    assert "3 images" in capsys.readouterr().out
    one = ("--data_dir", "photos/train", "--num_epochs", 0, "--checkpoint_dir", "ck_one")
    run_script("train.py", *common, *one)
    assert "the same images train and validate" in capsys.readouterr().out
    # Moved, and without a class: labels and crop are still those of the training.
    (tmp_path / "photos" / "pipeline.json").unlink()
    (tmp_path / "photos").rename("elsewhere")
    (tmp_path / "elsewhere" / "val" / "ant" / "1.png").unlink()
    (tmp_path / "elsewhere" / "val" / "ant").rmdir()
    with pytest.raises(DataError, match="folder"):
        run_script("eval.py", *common, "--checkpoint", "ck")
    run_script("eval.py", *common, "--checkpoint", "ck", "--data_dir", "elsewhere/val")
    assert "2 images" in capsys.readouterr().out
    quantized = ("--quant_w", "--num_epochs", 0, "--checkpoint_dir", "ck", "--data_dir", "elsewhere")
    run_script("train.py", *common, "--resume_from", "ck", *quantized)
    metadata = checkpoint.read_metadata("ck/digits-2801-qw-epoch-0")
    assert metadata is not None
    assert (metadata.labels, metadata.crop_fraction) == (("", *NAMES), 0.75)
