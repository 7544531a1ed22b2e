"""A small converted network with its checkpoint and data, for the tests of what comes after conversion."""

from __future__ import annotations

import functools
import logging
import runpy
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from small_nets import build, randomise, small_network, some_caps, values, write_json

from gti.data import tfrecords
from gti.data.image_folders import Source, read_image
from gti.stage import Stage
from gti.training import checkpoint
from gti.training.metadata import Metadata

CLASSES = 5
IMAGES = 11
NETWORK = small_network((28, 3, 16, 2, 3, True), (14, 16, 16, 1, 1, True))
COMMON = ("--net", "digits", "--chip", "2801")


@dataclass(frozen=True)
class Converted:
    """Where the parts are; `arrays` are the checkpoint's variables, `pixels` uint8 [N,H,W,C] BGR, `labels` 1.. ."""

    folder: Path
    checkpoint: Path
    arrays: dict[str, np.ndarray]
    pixels: np.ndarray
    labels: np.ndarray

    @property
    def flags(self) -> tuple[str, ...]:
        # Its own data, not data/digits: that folder is there on some machines only.
        data = ("--data_dir", str(self.folder / "data"))
        return (*COMMON, "--nets_dir", str(self.folder), "--checkpoint", str(self.checkpoint), *data)

    @property
    def model_file(self) -> Path:
        return self.folder / "2801_digits.model"


def run_script(script: str, *arguments: object) -> None:
    """Call a script's `main` in this process, which has TensorFlow already; its errors are raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.syspath_prepend(ROOT)
        try:
            runpy.run_path(str(ROOT / script))["main"]()
        finally:
            logging.getLogger("gti.converter").setLevel(logging.NOTSET)  # GTI_DEBUG_CONVERSION is of one script


def make(folder: Path, stage: Stage) -> Converted:
    """Return a network with random weights in `stage` (quant_act or fused), not yet converted, in `folder`.

    It is built once in a session and copied, so that every test may write into its own.
    """
    made = _made(stage)
    shutil.copytree(made.folder, folder, dirs_exist_ok=True)
    return replace(made, folder=folder, checkpoint=folder / made.checkpoint.relative_to(made.folder))


_scratch = tempfile.TemporaryDirectory(prefix="gti-tests-")


@functools.cache
def _made(stage: Stage) -> Converted:
    folder = Path(_scratch.name) / stage.name
    folder.mkdir()
    quantized = {"quant_w": True, "quant_act": True, "fuse": stage is Stage.FUSED}
    model = build(NETWORK, folder, classes=CLASSES, caps=some_caps(NETWORK), **quantized)
    write_json(NETWORK, folder)
    randomise(model, seed=3)
    arrays = values(model)
    if stage is Stage.FUSED:
        caps = {f"digits/{c.name}/relu_cap": np.float32(31) for c in NETWORK.convolutions}
        arrays = {**caps, **arrays}
    prefix = folder / "checkpoints" / checkpoint.file_name("digits", stage, 1)
    metadata = Metadata("digits", "2801", stage, epoch=1, step=1, classes=CLASSES, image_size=28)
    checkpoint.save(prefix, arrays, metadata)
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, size=(IMAGES, 28, 28, 3)).astype(np.uint8)
    labels = random.randint(1, CLASSES, size=IMAGES)
    _write_data(folder / "data" / "val", pixels, labels)
    for shared in (pixels, labels):
        shared.flags.writeable = False
    return Converted(folder, prefix, arrays, pixels, labels)


def _write_data(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    (folder.parent / "pipeline.json").write_text('{"crop_fraction": 1.0, "flip": false}')
    (folder.parent / "labels.txt").write_text("".join(f"class {n}\n" for n in range(1, CLASSES)))
    records = []
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder.parent / f"{index}.png"
        Image.fromarray(image[:, :, ::-1]).save(path)
        records.append(read_image(Source(path, int(label), f"class {label}")))
    tfrecords.write_shards(folder, "random", [records])
