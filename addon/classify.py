"""Classify image files with a full .MODEL, on sticks or without any, and without TensorFlow:

    python addon/classify.py nets/2801_digits_full.model photo.jpg more_photos/
    python addon/classify.py nets/2801_digits_full.model photos/ --device usb:0,usb:1

Prints one line per image: file, label and probability, and at the end frames per second. Folders are searched for
images, in order of their names. The .MODEL says how pictures are cropped and resized (docs/runtime.md). Exit status 1
when some of the images could not be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli
from gti.chip.host.image_search import find_images
from gti.errors import FormatError, ImageError, UsageError, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gti.chip.host.preprocessing import Preprocessing


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", help="full .MODEL, as addon/convert_full.py makes it")
    flags.add_argument("images", nargs="+", metavar="IMAGE", help="image file, .npy (uint8 [H,W,C]), or folder of them")
    flags.add_argument(
        "--device",
        default="auto",
        help="auto | usb | usb:<serial or index> | virtual | eusb:<serial or node> | replay:FILE; several sticks as a"
        " list with commas (default: auto)",
    )
    flags.add_argument("--top", type=int, default=1, metavar="N", help="labels printed per image (default: 1)")
    flags.add_argument("--record", metavar="FILE", help="write every USB transfer to FILE")
    return flags


class Reader:
    """Reads images for the network; those that cannot be used are told about and left out."""

    def __init__(self, preprocessing: Preprocessing, paths: Sequence[Path]) -> None:
        self.refused = 0
        self.read: list[Path] = []  # in the order of the results to come
        self._preprocessing = preprocessing
        self._paths = paths

    def images(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the pixels of each image."""
        for path in self._paths:
            try:
                pixels = self._preprocessing.load(path)
            except (ImageError, FormatError) as problem:
                self.refused += 1
                print(f"error: {problem}", file=sys.stderr)
                continue
            self.read.append(path)
            yield pixels


def main() -> int:
    """Parse the command line and classify."""
    args = parser().parse_args()
    if args.top < 1:
        raise UsageError("--top", "prints nothing", expected="at least 1", received=args.top)
    paths = find_images(args.images)

    from gti.chip.runtime.classifier import Classifier

    with Classifier(args.model, args.device.split(","), record=args.record) as model:
        for description in model.device_descriptions:
            print(description, file=sys.stderr)
        if not model.has_contract:
            print("note: the file does not say how pictures are prepared; whole pictures are resized", file=sys.stderr)
        reader = Reader(model.preprocessing, paths)
        started, first, count = time.monotonic(), 0.0, 0
        for labels in model.classify(reader.images()):
            if not count and len(labels) < args.top:
                print(f"note: --top {args.top}, but the file gives {len(labels)} labels an image", file=sys.stderr)
            texts = [f"{printable(label.text)} {label.probability:.4f}" for label in labels[: args.top]]
            print(f"{printable(str(reader.read[count]))}: {', '.join(texts)}", flush=True)
            count += 1
            first = first or time.monotonic()
        ended = time.monotonic()
    # The first result waits for everything that is done once: it does not count.
    rate = f", {(count - 1) / (ended - first):.1f} fps" if count > 1 else ""
    left_out = f", {reader.refused} left out" if reader.refused else ""
    print(f"{count} images in {ended - started:.2f} s{rate}{left_out}")
    return 1 if reader.refused else 0


if __name__ == "__main__":
    cli.run(main)
