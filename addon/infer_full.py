"""Classify images with a full .MODEL alone: chip layers on the stick, host layers in NumPy (user guide, section 6.5):

    python addon/infer_full.py nets/2801_digits_full.model photo.jpg another.png

Prints one line of JSON per image: {"result":[{"index":I,"label":"...","probability":P},...]}, most probable first.
Neither TensorFlow nor the checkpoint is needed. Without a stick the virtual one computes; the first line says which.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, param_parser


def parser() -> param_parser.Parser:
    """Return the flags."""
    flags = param_parser.Parser("Classify images with a full .MODEL, without TensorFlow.")
    flags.add_argument("model", help="full .MODEL, as addon/convert_full.py makes it")
    flags.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, or .npy (uint8 [H,W,C], BGR)")
    flags.add_argument("--device", default="auto", help="auto | usb | usb:<serial or index> | virtual")
    return flags


def main() -> None:
    args = parser().parse_args()

    from gti.chip.driver import GtiModel
    from gti.chip.formats.canonical_json import canonical

    with GtiModel(args.model, device=args.device) as model:
        print(model.device_description, file=sys.stderr)
        preparation = model.loaded.preprocessing()
        for path in args.images:
            print(_for_terminals(canonical(model.full_inference(preparation.load(path)))))


def _for_terminals(text: str) -> str:
    """Return JSON `text` with the characters that a terminal may obey as \\u escapes: labels come from the file."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


if __name__ == "__main__":
    cli.run(main)
