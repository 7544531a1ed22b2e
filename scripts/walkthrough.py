#!/usr/bin/env python
"""Type every command of docs/walkthrough.md, in order, on a few pictures that this script draws.

    python scripts/walkthrough.py                  VGG16 at 224x224, in a copy of the kit under runs/walkthrough
    python scripts/walkthrough.py --net digits     the same commands for a small network: two minutes

The page is the script: its `console` blocks are what runs, line by line. It stops at the first command that fails.
Needs about 10 GB of disk and 6 GB of memory for VGG16, whose checkpoints hold 138 million variables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli
from gti.chip.spec import CHIP
from gti.errors import FormatError, UsageError

if TYPE_CHECKING:
    from gti.chip.network.types import Network

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "walkthrough.md"
NET = "vgg16"  # the net of the page
LAST_SUBLAYER = "conv5_3"  # and the sublayer that its commands name
KIT = ("gti", "nets", "scripts", "addon", "docs")  # what the copy holds, beside the root scripts
FLOWERS = ("daisy", "dandelion", "tulip")
PICTURES = {"train": 4, "val": 2}  # of each class
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One line of the page: `cd` or a Python script, its arguments, and the environment variables in front of it."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.words)])


def commands(page: str, net: str = NET, last_sublayer: str = LAST_SUBLAYER) -> list[Command]:
    """Return the commands of a page's `console` blocks, written for `net` instead of the page's own.

    Understood are `python SCRIPT ...`, `cd FOLDER`, `NAME=value` alone (used as $NAME later) or in front of a command,
    comments, and lines continued with a backslash. Raises FormatError for anything else.
    """
    result = []
    variables: dict[str, str] = {}
    for block in _BLOCK.findall(page):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.replace(NET, net).replace(LAST_SUBLAYER, last_sublayer)
            words = shlex.split(Template(text).safe_substitute(variables), comments=True)
            settings = []
            while words and _ASSIGNMENT.fullmatch(words[0]):
                settings.append(words.pop(0).split("=", 1))
            if not words:
                variables |= dict(settings)
            elif words[0] in ("python", "cd") and len(words) > 1 and "$" not in "".join(words):
                result.append(Command(tuple(words), dict(settings)))
            else:
                raise FormatError(
                    PAGE.name, "holds a line that is no command of the kit", expected="python SCRIPT", received=line
                )
    return result


def copy_kit(folder: Path) -> None:
    """Copy the kit's code and nets to `folder`, without anything that was trained or converted."""
    for name in KIT:
        shutil.copytree(
            ROOT / name,
            folder / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*_settings.json", "*.dat", "*.model", "*.bin", "*.dat.json", "*.model.json"),
        )
    for script in ROOT.glob("*.py"):
        shutil.copy2(script, folder)


def draw_pictures(folder: Path, size: int) -> None:
    """Draw PICTURES of each class under `folder`/{train,val}/<class>/, and labels.txt.

    A class is a colour and the width of its stripes; pictures of a class differ in phase and noise. JPEG and PNG take
    turns, and none is square: the pipeline has something to crop and to resize.
    """
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    height, width = size + size // 4, size + size // 2
    y, x = np.mgrid[:height, :width] / size
    for part, count in PICTURES.items():
        for number, flower in enumerate(FLOWERS):
            home = folder / part / flower
            home.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                wave = 0.5 + 0.5 * np.sin(2 * np.pi * (3 * (number + 1) * (x + y) + random.random()))
                colour = np.roll([220, 120, 40], number)
                pixels = wave[..., None] * colour + random.normal(scale=8, size=(height, width, 3)) + 20
                picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                picture.save(home / f"{index}.{('jpg', 'png')[index % 2]}")
    (folder / "labels.txt").write_text("".join(f"{flower}\n" for flower in FLOWERS), encoding="utf-8")


def run(command: Command, folder: Path) -> None:
    """Run one command in `folder`. Raises UsageError with its exit status when it fails."""
    words = (sys.executable, *command.words[1:])
    status = subprocess.run(words, cwd=folder, env={**os.environ, **command.environment}, check=False).returncode
    if status:
        raise UsageError(str(command), f"failed with exit status {status}")


def walk(steps: list[Command], folder: Path) -> None:
    """Run `steps`, the first of them in `folder`, and print each with the seconds that it took."""
    here = folder
    for number, command in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] $ {command}", flush=True)
        if command.words[0] == "cd":
            here = (here / command.words[1]).resolve()
            continue
        started = time.monotonic()
        run(command, here)
        print(f"{time.monotonic() - started:.1f} s", flush=True)


def network_of(net: str) -> Network:
    """Return the network of `net`. Raises FormatError where it has no dat.json."""
    from gti.chip.network import json_form as networks

    return networks.load(ROOT / "nets" / f"{CHIP}_{net}_dat.json")


def check_results(folder: Path, net: str) -> None:
    """Print what the walk left, and raise FormatError where the .MODEL files do not hold the network of `net`."""
    from gti.chip.formats import dat
    from gti.chip.loaded_model import load_model

    network = network_of(net)
    shape = [(layer.image_size, layer.output_channels, layer.sublayer_number) for layer in network.layers]
    for name in (f"{CHIP}_{net}.model", f"{CHIP}_{net}_full.model"):
        path = folder / "nets" / name
        decoded = dat.decode(load_model(path).dat).network
        found = [(layer.image_size, layer.output_channels, layer.sublayer_number) for layer in decoded.layers]
        if found != shape:
            raise FormatError(str(path), "is another network", expected=shape, received=found)
        print(f"{path}: {path.stat().st_size:,} bytes")
    scaling = [
        layer["scaling"] for layer in json.loads((folder / "nets" / f"{CHIP}_{net}.dat.json").read_text())["layer"]
    ]
    print(f"shifts of the sublayers: {scaling}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Type every command of docs/walkthrough.md on a few drawn pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--net", default=NET, help="the net that takes the place of VGG16")
    parser.add_argument("--work_dir", default="runs/walkthrough", help="folder for the copy of the kit; must not exist")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints, gigabytes for VGG16, afterwards")
    return parser.parse_args()


def main() -> None:
    args = parse()
    network = network_of(args.net)
    folder = Path(args.work_dir).resolve()
    if folder.exists():
        raise UsageError(str(folder), "is there already", fix="delete it, or pass another --work_dir")
    steps = commands(PAGE.read_text(encoding="utf-8"), args.net, network.convolutions[-1].name)
    started = time.monotonic()
    copy_kit(folder)
    draw_pictures(folder / "pictures", network.input_shape[0])
    walk(steps, folder)
    print(f"\nall {len(steps)} commands ran, {time.monotonic() - started:.0f} s")
    check_results(folder, args.net)
    if not args.keep:
        shutil.rmtree(folder / "checkpoints")


if __name__ == "__main__":
    cli.run(main)
