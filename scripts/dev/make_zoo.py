#!/usr/bin/env python
"""A full .MODEL as gti/zoo holds it: without the padding behind the filter rows, which is most of a small network.

    python scripts/dev/make_zoo.py 2801_cifar10_full.model gti/zoo/2801_cifar.model

Every reader of this kit takes a .DAT of any length that holds its rows; the known answer gets the new digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import cli, files
from gti.chip import spec
from gti.chip.formats import dat, model_file
from gti.chip.network import file_size
from gti.chip.runtime import known_answer
from gti.errors import ModelFileError


def without_padding(data: bytes, name: str) -> bytes:
    """Return the .MODEL `data` with its .DAT cut behind the last filter row. Raises ModelFileError for lost data."""
    model = model_file.parse(data, name)
    header = json.loads(json.dumps(model.header))
    blobs = {}
    for number, (entry, layer) in enumerate(zip(header["layer"], model.layers, strict=True)):
        if layer.blob is None:
            continue
        blob = bytes(layer.blob)
        if entry["operation"] == "GTICNN":
            end = spec.HEADER_BYTES + spec.ROW_BYTES * file_size.row_count(dat.decode(blob).network)
            if any(blob[end:]):
                raise ModelFileError(name, "has data behind the filter rows", fix="convert the checkpoint again")
            blob = blob[:end]
            entry[known_answer.KEY]["dat"] = hashlib.sha256(blob).hexdigest()
        blobs[str(number)] = blob
        entry |= {"data file": str(number), "data offset": 0}
        del entry["data size"]
    return model_file.compose(json.dumps(header, ensure_ascii=False).encode(), blobs)


def main() -> None:
    """Parse the command line, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="full .MODEL of addon/convert_full.py")
    parser.add_argument("out", help="the .MODEL to write")
    args = parser.parse_args()
    files.check_writable(args.out, args.model)
    data = without_padding(files.read_bytes(args.model, limit=1 << 30), args.model)
    files.write_atomic(args.out, data)
    print(f"{args.out}: {len(data):,} bytes")


if __name__ == "__main__":
    cli.run(main)
