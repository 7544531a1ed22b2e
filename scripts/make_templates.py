"""Write the JSON pair of a new network from a Keras model that is built of gti.layers:

    python scripts/make_templates.py my_model.keras --net mynet --chip 2801

Reads the model's configuration alone: no weights, no code, no TensorFlow. What the chip cannot do is refused, with all
the reasons together; `scripts/check.py my_model.keras` shows what the model would cost.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, files
from gti.arguments import Parser, net_name
from gti.chip.spec import CHIP
from gti.errors import UsageError


def main() -> None:
    parser = Parser("Write the JSON pair of a network from a Keras model of gti.layers.")
    parser.add_argument("model", metavar="FILE.keras", help="Keras model, saved with model.save")
    parser.add_argument("--net", required=True, type=net_name, help="name of the network")
    parser.add_argument("--chip", required=True, choices=(CHIP,), help="target chip")
    parser.add_argument("--output_dir", default="nets", metavar="DIR", help="folder for the files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    args = parser.parse_args()

    from gti.importing import architecture, templates

    model = architecture.load(args.model, arrays=False)
    values = templates.templates(model, net=args.net, chip=args.chip)
    paths = [Path(args.output_dir) / f"{args.chip}_{args.net}_{kind}.json" for kind in ("dat", "model")]
    for path in paths:
        if path.exists() and not args.overwrite:
            raise UsageError(str(path), "exists already", fix="choose another --net, or pass --overwrite")
    for path, value in zip(paths, values, strict=True):
        files.write_json(path, value)
        print(path)
    print(f"Next: write the host layers in gti/model/{args.net}.py (docs/check.md shows one).")


if __name__ == "__main__":
    cli.run(main)
