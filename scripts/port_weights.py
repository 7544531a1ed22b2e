#!/usr/bin/env python
"""Weights alone for a net that is there: `scripts/import_model.py` with the flags of older instructions.

    python scripts/port_weights.py --net vgg16 --chip 2801 --weights vgg16.h5 --input bgr --background

The same as `import_model.py vgg16.h5 ...`, except that --mean defaults to that of ImageNet.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti.arguments import refuse_old
from gti.cli import run
from scripts import import_model

OLD_FLAGS = {
    "--npy": "pass the weights as .npz: --weights FILE.npz; .npy dictionaries are pickles, which are not read",
    "--save_checkpoint_to": "pass --checkpoint_dir DIR",
}
IMAGENET_MEAN = ("123.68", "116.779", "103.939")


def main() -> None:
    words = sys.argv[1:]
    if "--weights" in words[:-1]:
        at = words.index("--weights")
        words = [words[at + 1], *words[:at], *words[at + 2 :]]
    refuse_old(words, OLD_FLAGS)
    if "--mean" not in words and "codes" not in words:
        words += ["--mean", *IMAGENET_MEAN]
    import_model.main(words)


if __name__ == "__main__":
    run(main)
