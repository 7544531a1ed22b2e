"""Classify image files with a full .MODEL, on sticks or without any, and without TensorFlow:

    gti classify nets/2801_digits_full.model photo.jpg more_photos/
    gti classify nets/2801_digits_full.model photos/ --device usb:0,usb:1
    curl -s https://camera/still.jpg | gti classify nets/2801_digits_full.model - --json

Prints one line per image: file, label and probability, and at the end frames per second. Folders are searched for
images, in order of their names. The .MODEL says how pictures are cropped and resized (docs/runtime.md). Exit status 1
when some of the images could not be used; they are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from gti.commands import flags, pictures
from gti.commands.pictures import Picture
from gti.errors import FormatError, ImageError, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gti.chip.host.preprocessing import Preprocessing
    from gti.chip.runtime.classifier import Label

FORMATS = ("text", "json", "vendor")


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("classify", __doc__)
    result.add_argument("model", type=flags.model_file, help="full .MODEL, chip layers and host layers in one file")
    result.add_argument("images", nargs="+", metavar="IMAGE", help=pictures.HELP)
    result.add_argument("--top", type=int, metavar="N", help="labels per image (default: 1, in JSON all of the file)")
    result.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help='json: {"file", "result"} or {"file", "error"} a line; vendor: the JSON of the vendor\'s runtime',
    )
    result.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    flags.add_device(result, more="; several sticks as a list with commas")
    return result


class Reader:
    """Reads images for the network; those that cannot be used are told about and left out."""

    def __init__(self, preprocessing: Preprocessing, images: Sequence[Picture], *, as_json: bool) -> None:
        self.refused = 0
        self.read: list[Picture] = []  # in the order of the results to come
        self._preprocessing = preprocessing
        self._images = images
        self._as_json = as_json

    def images(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the pixels of each image."""
        for image in self._images:
            try:
                pixels = self._preprocessing.load(image.path)
            except (ImageError, FormatError) as problem:
                self.refused += 1
                flags.note(f"error: {image.told(problem)}")
                if self._as_json:
                    print(flags.json_line({"file": image.name, "error": image.told(problem)}), flush=True)
                continue
            self.read.append(image)
            yield pixels


def line(image: Picture, labels: Sequence[Label], form: str) -> str:
    """Return what is printed about one image."""
    if form == "text":
        texts = ", ".join(f"{printable(label.text)} {label.probability:.4f}" for label in labels)
        return f"{printable(image.name)}: {texts}"
    result = [{"index": one.index, "label": one.text, "probability": one.probability} for one in labels]
    if form == "json":
        return flags.json_line({"file": image.name, "result": result})
    from gti.chip.formats.canonical_json import canonical

    return flags.for_terminals(canonical({"result": result}))


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line and classify."""
    args = parser().parse_args(words)
    flags.at_least_one("--top", args.top, "prints nothing")
    with ExitStack() as stack:
        return _classify(args, pictures.find(args.images, stack))


def _classify(args: argparse.Namespace, images: Sequence[Picture]) -> int:
    options = flags.stick_options(args)

    from gti.chip.runtime.classifier import Classifier

    with Classifier(args.model, flags.devices(args.device), **options) as model:
        for description in model.device_descriptions:
            flags.note(description)
        if not model.has_contract:
            flags.note("note: the file does not say how pictures are prepared; whole pictures are resized")
        reader = Reader(model.preprocessing, images, as_json=args.format == "json")
        top = args.top if args.top or args.format != "text" else 1
        started, first, count = time.monotonic(), 0.0, 0
        for labels in model.classify(reader.images()):
            if not count and args.top and len(labels) < args.top:
                flags.note(f"note: --top {args.top}, but the file gives {len(labels)} labels an image")
            print(line(reader.read[count], labels[:top], args.format), flush=True)
            count += 1
            if count == model.together:
                first = time.monotonic()
        ended = time.monotonic()
    # The first results wait for everything that is done once: they do not count.
    later = count - model.together
    rate = f", {later / (ended - first):.1f} fps" if later > 0 and ended > first else ""
    left_out = f", {reader.refused} left out" if reader.refused else ""
    summary = f"{count} images in {ended - started:.2f} s{rate}{left_out}"
    print(summary, file=sys.stdout if args.format == "text" else sys.stderr)
    return 1 if reader.refused else 0
