#!/usr/bin/env python
"""Turn folders of JPEG and PNG images into TFRecords (user guide, section 7.1.1).

    python scripts/build_image_data.py --train_directory train --train_shards 5 \\
        --validation_directory val --validation_shards 5 --num_threads 5 \\
        --output_directory data/flowers --labels_file labels.txt

`train/` and `val/` hold one folder of images per class, `labels.txt` one class name a line. Written are
`data/flowers/{train,val}/flowers_00000-of-00005.tfrecord` and `data/flowers/flowers_labels.txt`. Label 0 is the
background class: four classes in labels.txt make `--classes 5` in training. Images that cannot be read and files of
other types are named, counted and left out; the same seed gives the same files, whatever the number of threads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti.arguments import Parser
from gti.cli import run
from gti.errors import UsageError, sentence
from gti.flag_groups import labels_format

MAX_SHARDS = 99999


def parser(description: str) -> Parser:
    """Return the flags that this script and build_imagenet_data.py share."""
    flags = Parser(description)
    flags.add_argument("--train_directory", required=True, help="folder of one sub-folder per class")
    flags.add_argument("--validation_directory", help="the same for validation; without it only train/ is written")
    flags.add_argument("--output_directory", required=True, help="for example data/flowers; its name names the shards")
    flags.add_argument("--labels_file", required=True, help="one class (= folder) name a line, without the background")
    labels_format(flags)
    flags.add_argument("--train_shards", type=int, default=5, help="files of the training set")
    flags.add_argument("--validation_shards", type=int, default=5, help="files of the validation set")
    flags.add_argument("--num_threads", type=int, default=2, help="images decoded at the same time")
    flags.add_argument("--seed", type=int, default=12345, help="of the order of the images")
    return flags


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for impossible numbers."""
    for flag, top in (("train_shards", MAX_SHARDS), ("validation_shards", MAX_SHARDS), ("num_threads", 256)):
        value = getattr(args, flag)
        if not 1 <= value <= top:
            raise UsageError(f"--{flag}", "is out of range", expected=f"1 to {top}", received=value)


def build_sets(args: argparse.Namespace, names: Sequence[str], folders: Sequence[str]) -> None:
    """Write the training and validation sets of the classes `names` (index = label) in the sub-folders `folders`."""
    from gti.data.image_folders import build, find_images, other_files, unlisted_folders
    from gti.data.labels import labels_text
    from gti.files import write_atomic
    from gti.progress import progress_bar
    from gti.quiet import import_tensorflow

    output = Path(args.output_directory)
    name = output.resolve().name
    parts = [("train", args.train_directory, args.train_shards)]
    if args.validation_directory:
        parts.append(("val", args.validation_directory, args.validation_shards))
    # All folders are looked through before the first file is written.
    found = {part: find_images(directory, names, folders=folders) for part, directory, _ in parts}
    for part, directory, shards in parts:
        if shards > len(found[part]):
            raise UsageError(
                directory,
                f"has too few images for {shards} shards",
                expected=f"at least {shards}",
                received=len(found[part]),
                fix="pass fewer shards",
            )
        for extra in unlisted_folders(directory, folders):
            print(f"note: {Path(directory) / extra} is no class of {args.labels_file} and is left out", file=sys.stderr)
    labels_file = output / f"{name}_labels.txt"
    for folder in (output, *(output / part for part, _, _ in parts)):
        _check_output(folder, "a folder")
    _check_output(labels_file, "a file")
    import_tensorflow()
    for part, directory, shards in parts:
        others = other_files(directory, folders)
        for path in others:
            print(
                sentence(str(path), "is skipped: it is no file whose name ends in .jpg, .jpeg or .png"), file=sys.stderr
            )
        with progress_bar(len(found[part]), part, "image") as bar:

            def progress(skipped: str | None, bar: Any = bar) -> None:
                if skipped:
                    bar.write(skipped, file=sys.stderr)
                bar.update()

            report = build(
                found[part],
                output / part,
                name,
                shards=shards,
                threads=args.num_threads,
                seed=args.seed,
                progress=progress,
            )
        print(
            f"{output / part}: {report.written} images in {shards} shards, {len(report.skipped) + len(others)} skipped"
        )
    write_atomic(labels_file, labels_text(list(names)).encode())
    print(f"{output}: {len(names)} classes with the background: train with --classes {len(names)}")


def _check_output(path: Path, expected: str) -> None:
    # Before the images are read, which may take hours.
    received = "a folder" if path.is_dir() else "a file"
    if path.exists() and received != expected:
        raise UsageError(
            str(path),
            "is in the way of what is to be written",
            expected=expected,
            received=received,
            fix="remove it or pass another --output_directory",
        )


def main() -> None:
    args = parser("Turn folders of JPEG and PNG images into TFRecords.").parse_args()
    check(args)
    from gti.data.labels import read_labels

    names = read_labels(args.labels_file, args.labels_format)
    build_sets(args, names, names)


if __name__ == "__main__":
    run(main)
