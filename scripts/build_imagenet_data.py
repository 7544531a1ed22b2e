#!/usr/bin/env python
"""Turn ImageNet, one folder of JPEG images per synset, into TFRecords (user guide, section 7.1.1).

    python scripts/build_imagenet_data.py --train_directory train --validation_directory val \\
        --train_shards 1024 --validation_shards 128 --num_threads 8 --output_directory data/imagenet \\
        --labels_file imagenet_lsvrc_2015_synsets.txt --imagenet_metadata_file imagenet_metadata.txt

The labels file holds one synset (`n01440764`) a line, in the order of the labels 1, 2, 3, ...; the metadata file, one
line `n01440764<TAB>tench, Tinca tinca` per synset, gives the classes their names. The validation images must lie in
synset folders like the training images. Everything else is as in build_image_data.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti.cli import run
from gti.errors import DataError, FormatError
from scripts.build_image_data import build_sets, check, parser

MAX_METADATA_BYTES = 64 * 1024 * 1024


def read_metadata(path: str) -> dict[str, str]:
    """Return {synset: name} of an ImageNet metadata file. Raises DataError for lines of another form."""
    from gti.files import read_bytes

    try:
        text = read_bytes(path, limit=MAX_METADATA_BYTES).decode("utf-8")
    except FormatError as problem:
        raise DataError(str(problem)) from None
    except UnicodeDecodeError as problem:
        raise DataError(path, f"is not UTF-8 text at byte {problem.start}") from None
    from gti.data.labels import refuse_strange

    names = {}
    for number, whole in enumerate(text.split("\n"), 1):
        line = whole.removesuffix("\r")
        refuse_strange(line, path, f" in line {number}")
        synset, tab, name = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not synset or not name.strip():
            raise DataError(f"{path}, line {number}", "is no metadata", expected="SYNSET<TAB>NAME", received=line[:60])
        names[synset] = name.strip()
    return names


def main() -> None:
    flags = parser("Turn ImageNet, one folder of JPEG images per synset, into TFRecords.")
    flags.add_argument("--imagenet_metadata_file", help="SYNSET<TAB>NAME lines; without it synsets name the classes")
    args = flags.parse_args()
    check(args)
    from gti.data.labels import read_labels

    synsets = read_labels(args.labels_file, args.labels_format)
    names = synsets
    if args.imagenet_metadata_file:
        known = read_metadata(args.imagenet_metadata_file)
        missing = [synset for synset in synsets[1:] if synset not in known]
        if missing:
            raise DataError(
                args.imagenet_metadata_file,
                "does not name every synset of the labels file",
                expected=f"{len(synsets) - 1} synsets",
                received=f"none for {', '.join(missing[:5])}",
                fix="pass the metadata file that belongs to the labels",
            )
        # Two synsets may share a name (crane, maillot): the synset keeps them apart.
        names = [synsets[0], *(f"{synset} {known[synset]}" for synset in synsets[1:])]
    build_sets(args, names, synsets)


if __name__ == "__main__":
    run(main)
