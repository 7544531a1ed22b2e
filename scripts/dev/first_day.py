#!/usr/bin/env python
"""A newcomer's first day, typed: own photographs, a net copied from a template, a net from a Keras model.

    python scripts/dev/first_day.py [--work_dir DIR]

The kit is copied to DIR (default: a temporary folder), and every command runs there. Wrong turns must end with exit
status 2 and one sentence that names what is wrong; the right way must succeed, no flag but --net, --chip and the
checkpoint given twice. Takes some minutes; exit status 1 where anything is otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from gti import cli
from gti.errors import UsageError
from scripts.walkthrough import copy_kit

CLASSES = ("amber", "blue", "coral")
COLOURS = ((250, 190, 20), (30, 60, 220), (240, 100, 90))
MINE = ("--net", "mine", "--chip", "2801")
QUICK = ("--optimizer", "adam", "--learning_rate", "1e-3", "--num_epochs", "3", "--train_batch_size", "8")
KERAS_MODEL = """
import keras
layers = [keras.Input((28, 28, 3))]
for channels in (16, 32):
    layers += [keras.layers.Conv2D(channels, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D()]
layers += [keras.layers.Flatten(), keras.layers.Dense(4)]
keras.utils.set_random_seed(0)
keras.Sequential(layers).save("own.keras")
"""


class Day:
    """The folder in which the commands run, and what went otherwise than it must."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: list[str] = []

    def _run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        print(f"$ python {shlex.join(words)}", flush=True)
        return subprocess.run([sys.executable, *words], cwd=self.folder, capture_output=True, text=True, check=False)

    def right(self, *words: str, says: tuple[str, ...] = ()) -> str:
        """Run a command that must succeed and print all of `says`; return its output."""
        done = self._run(words)
        missing = [word for word in says if word not in done.stdout + done.stderr]
        if done.returncode or missing:
            self.failures.append(f"{shlex.join(words)}: status {done.returncode}, not said: {missing}")
            print(f"FAILED\n{done.stdout[-1500:]}{done.stderr[-1500:]}", flush=True)
        return done.stdout

    def wrong(self, *words: str, says: tuple[str, ...]) -> None:
        """Run a command that must end with status 2 and a sentence with all of `says`, without a traceback."""
        done = self._run(words)
        print(f"    {done.stderr.strip()}", flush=True)
        missing = [word for word in says if word not in done.stderr]
        if done.returncode != 2 or missing or "Traceback" in done.stderr:
            self.failures.append(f"{shlex.join(words)}: status {done.returncode}, not said: {missing}")
            print(f"FAILED\n{done.stdout[-1500:]}{done.stderr[-1500:]}", flush=True)


def take_photographs(folder: Path) -> None:
    """Draw photographs of mixed kinds: turned by the camera, CMYK, opaque alpha; and other files."""
    from PIL import Image

    random = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for part, count in (("train", 8), ("val", 4)):
        for name, colour in zip(CLASSES, COLOURS, strict=True):
            home = folder / part / name
            home.mkdir(parents=True)
            for number in range(count):
                noise = random.integers(-30, 31, (60, 80, 3))
                picture = Image.fromarray(np.clip(noise + np.array(colour), 0, 255).astype(np.uint8))
                if number % 4 == 0:
                    picture.save(home / f"IMG_{number}.JPG", exif=turned)
                elif number % 4 == 1:
                    picture.convert("CMYK").save(home / f"{number}.jpeg")
                elif number % 4 == 2:
                    picture.convert("RGBA").save(home / f"{number}.png")
                else:
                    # A name that is not UTF-8.
                    picture.save(home / os.fsdecode(b"\xe9%d.jpg" % number))
    (folder / "train" / "amber" / "more").mkdir()
    for name in ("a.webp", "b.bmp", "scan"):
        (folder / "train" / "blue" / name).write_bytes(b"x")


def net_from_a_template(day: Day) -> None:
    """Copy the net digits as the net mine, with every mistake of a copy on the way."""
    nets = day.folder / "nets"
    for kind in ("dat", "model"):
        text = (nets / f"2801_digits_{kind}.json").read_text()
        (nets / f"2801_mine_{kind}.json").write_text(text)
    day.wrong("scripts/check.py", "--net", "mine", says=("mine",))
    good = (day.folder / "gti" / "model" / "digits.py").read_text()
    module = nets / "mine.py"
    for bad, word in (
        (good.replace('HostDense(classes, name="fc")', "keras.layers.Dense(classes)"), "HostDense"),
        (good.replace('name="fc"', 'activation="softmax"'), "softmax"),
        ("import no_such_package\n" + good, "no_such_package"),
        (good + "\n(", "line"),
    ):
        module.write_text(bad)
        day.wrong("scripts/check.py", "--net", "mine", says=("mine.py", word))
    module.write_text(good)
    path = nets / "2801_mine_model.json"
    model_json = path.read_text()
    value = json.loads(model_json)
    value["layer"][1]["output channels"] = 32
    path.write_text(json.dumps(value))
    day.wrong("train.py", *MINE, "--data_dir", "photos", says=("2801_mine_model.json", "output channels"))
    path.write_text(model_json)
    day.right("scripts/check.py", "--net", "mine")


def bad_photographs(day: Day) -> None:
    """Put pictures among the photographs that cannot be used: all are named at once."""
    from PIL import Image

    home = day.folder / "photos" / "train" / "coral"
    Image.new("RGBA", (30, 30), (9, 9, 9, 90)).save(home / "glass.png")
    Image.fromarray(np.zeros((30, 30), np.uint16)).save(home / "deep.png")
    (home / "page.jpg").write_text("<html>")
    day.wrong("train.py", *MINE, "--data_dir", "photos", says=("glass.png", "deep.png", "page.jpg"))
    for name in ("glass.png", "deep.png", "page.jpg"):
        (home / name).unlink()


def all_stages(day: Day) -> None:
    """Train in every stage, convert, classify; the photographs move to another folder on the way."""
    best = ("--checkpoint", "checkpoints/best")
    resume = ("--resume_from", "checkpoints/best")
    day.wrong("train.py", *MINE, "--data_dir", "photos", "--quant_w", says=("--resume_from",))
    day.wrong("train.py", *MINE, "--data_dir", "photos", "--train_size", "24", says=("old kit",))
    day.wrong("train.py", *MINE, "--data_dir", "photo", says=("no such data folder",))
    table = ("24 images of 3 classes", "amber", "1 .webp", "1 .bmp", "1 without suffix", "1 sub-folders")
    day.right("train.py", *MINE, "--data_dir", "photos", *QUICK, says=table)
    day.wrong("train.py", *MINE, *resume, "--quant_w", "--quant_act", says=("quant",))
    day.wrong("convert_to_chip.py", *MINE, *best, says=("quant_act",))
    day.right("train.py", *MINE, *resume, "--quant_w", *QUICK, says=("24 images",))
    day.wrong("train.py", *MINE, *resume, "--quant_w", "--quant_act", says=("set_relu_caps.py",))
    day.right("set_relu_caps.py", *MINE, *best, "--quant_w")
    day.right("train.py", *MINE, *resume, "--quant_w", "--quant_act", *QUICK)
    day.right("train.py", *MINE, *resume, "--quant_w", "--quant_act", "--fuse", *QUICK)
    (day.folder / "photos").rename(day.folder / "holiday")
    stages = ("--quant_w", "--quant_act", "--fuse")
    day.wrong("eval.py", *MINE, *best, *stages, says=("no such data folder",))
    day.right("eval.py", *MINE, *best, *stages, "--data_dir", "holiday/val", says=("12 images",))
    templates = [(day.folder / "nets" / f"2801_mine_{kind}.json").read_bytes() for kind in ("dat", "model")]
    day.right("convert_to_chip.py", *MINE, *best, "--fuse", says=("2801_mine.model", "become 0"))
    day.right("chip_infer.py", *MINE, *best, "--data_dir", "holiday", "--device", "virtual", says=("12 images",))
    day.right("addon/convert_full.py", *MINE, *best, "--fuse", says=("2801_mine_full.model",))
    if templates != [(day.folder / "nets" / f"2801_mine_{kind}.json").read_bytes() for kind in ("dat", "model")]:
        day.failures.append("conversion has changed the templates")
    for name in CLASSES:
        photo = f"holiday/val/{name}/IMG_0.JPG"
        day.right("addon/classify.py", "nets/2801_mine_full.model", photo, says=(name,))


def net_from_keras(day: Day) -> None:
    """Import a Keras model, quantize it without training, and pack it with the labels of the photographs."""
    other = ("--net", "other", "--chip", "2801")
    subprocess.run([sys.executable, "-c", KERAS_MODEL], cwd=day.folder, check=True, capture_output=True)
    day.right("scripts/import_model.py", "own.keras", *other, "--input", "rgb", says=("2801_other_dat.json",))
    day.right("scripts/check.py", "--net", "other")
    quantized = ("--checkpoint", "checkpoints", "--checkpoint_dir", "checkpoints/ptq", "--images", "holiday/train")
    day.right("scripts/ptq.py", *other, *quantized, says=("fused checkpoint",))
    converted = ("--checkpoint", "checkpoints/ptq", "--fuse")
    (day.folder / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    day.wrong("addon/convert_full.py", *other, *converted, says=("--labels_file",))
    day.right("addon/convert_full.py", *other, *converted, "--labels_file", "names.txt", says=("other_full.model",))
    day.right("addon/classify.py", "nets/2801_other_full.model", "holiday/val/blue/IMG_0.JPG")


def main() -> int:
    """Live the day; return 1 where anything went otherwise than it must."""
    parser = argparse.ArgumentParser(description="Type a newcomer's first day, wrong turns included.")
    parser.add_argument("--work_dir", metavar="DIR", help="an absent or empty folder; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_dir or temporary).resolve()
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(str(folder), "is not empty", fix="pass another --work_dir")
        copy_kit(folder)
        day = Day(folder)
        take_photographs(folder / "photos")
        net_from_a_template(day)
        bad_photographs(day)
        all_stages(day)
        net_from_keras(day)
    for failure in day.failures:
        print(f"FAILED: {failure}")
    print(f"{len(day.failures)} of the day's steps went otherwise than they must")
    return 1 if day.failures else 0


if __name__ == "__main__":
    cli.run(main)
