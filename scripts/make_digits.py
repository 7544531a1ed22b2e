#!/usr/bin/env python
"""Write the handwritten digits of scikit-learn as TFRecords: data/digits/{train,val} and data/digits_labels.txt.

    python scripts/make_digits.py

1797 real images of 8x8 pixels, enlarged to 28x28, three channels, PNG. Labels 1..10 mean the digits 0..9; label 0 is
the background class that TFRecords of the user guide have (section 7.1.1). The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti.cli import run

NAME = "digits"
IMAGE_SIZE = 28
CLASS_NAMES = ("background", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VALIDATION_SHARE = 0.2
# A mirrored digit is another shape, and digits fill the image to its edge: no flip, no crop in the evaluation.
PIPELINE = {"crop_fraction": 1.0, "flip": False}
# A digit of the source has 17 grey levels, 0..16.
SOURCE_TOP = 16


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write scikit-learn's handwritten digits as TFRecords.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_directory", default="data", help="folder in which digits/ appears")
    parser.add_argument("--train_shards", type=int, default=2, help="files of the training set")
    parser.add_argument("--validation_shards", type=int, default=1, help="files of the validation set")
    parser.add_argument("--seed", type=int, default=0, help="of the split into training and validation")
    return parser.parse_args()


def enlarge(digit, size: int = IMAGE_SIZE) -> bytes:
    """Return the PNG of a digit, float [8,8], 0..16, enlarged with Lanczos' filter to RGB [size,size,3]."""
    import numpy as np
    from PIL import Image

    grey = np.floor(np.clip(digit, 0, SOURCE_TOP) * (255 / SOURCE_TOP) + 0.5).astype(np.uint8)
    image = Image.fromarray(grey).resize((size, size), Image.Resampling.LANCZOS).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def main() -> int | None:
    args = parse()
    from gti.errors import UsageError

    for flag, least, most in (("train_shards", 1, 100), ("validation_shards", 1, 100), ("seed", 0, 2**32 - 1)):
        if not least <= getattr(args, flag) <= most:
            raise UsageError(
                f"--{flag}", "is out of range", expected=f"{least} to {most}", received=getattr(args, flag)
            )

    from gti.files import make_writable_folder, write_atomic, write_json

    output = Path(args.output_directory)
    make_writable_folder(output / NAME)

    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from gti.data.labels import labels_text
    from gti.data.tfrecords import ImageRecord, spread, write_shards
    from gti.progress import progress_bar
    from gti.quiet import import_tensorflow

    import_tensorflow()
    digits = load_digits()
    train, val = train_test_split(
        np.arange(len(digits.target)), test_size=VALIDATION_SHARE, random_state=args.seed, stratify=digits.target
    )
    with progress_bar(len(digits.target), NAME, "image") as bar:

        def records(chosen):
            for index in chosen:
                label = int(digits.target[index]) + 1
                encoded = enlarge(digits.images[index])
                bar.update()
                yield ImageRecord(
                    encoded, "PNG", IMAGE_SIZE, IMAGE_SIZE, label, CLASS_NAMES[label], f"{NAME}_{index:04d}.png"
                )

        for part, indices, count in (("train", train, args.train_shards), ("val", val, args.validation_shards)):
            shards = [records(indices[chosen.start : chosen.stop]) for chosen in spread(len(indices), count)]
            write_shards(output / NAME / part, NAME, shards)
    write_json(output / NAME / "pipeline.json", PIPELINE)
    write_atomic(output / f"{NAME}_labels.txt", labels_text(list(CLASS_NAMES)).encode())
    print(f"{output / NAME}: {len(train)} training and {len(val)} validation images, {len(CLASS_NAMES)} classes")
    return None


if __name__ == "__main__":
    run(main)
