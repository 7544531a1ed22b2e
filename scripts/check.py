"""Say, before any training, whether a network fits the chip, what it costs, and what to change where it does not:

    python scripts/check.py --net vgg16
    python scripts/check.py nets/2801_vgg16_dat.json --fc 4096,4096,1001
    python scripts/check.py my_model.onnx --json check.json

Model files (.onnx, .keras, .h5, .pth, .safetensors) are read as import_model.py reads them; no array and no code of
them is used. No file needs TensorFlow; the host layers of --net do, and are left out where it is not installed. Exit
status: 0 fits, 1 does not fit, 2 a mistake on the command line or in a file. docs/check.md says how the figures come
about, and how sure they are.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli
from gti.arguments import Parser, count, net_name
from gti.chip.spec import CHIP
from gti.errors import UsageError
from scripts.import_model import bits


def main() -> int:
    args = _arguments()

    from gti import files, nets
    from gti.importing import feasibility

    if args.json:
        files.check_writable(args.json, args.file or nets.dat_json(args.net, args.nets_dir))
    if args.net:
        path = nets.existing(nets.dat_json(args.net, args.nets_dir))
        study = feasibility.of_json(path, units=args.fc)
        _check_chain(args.net, args.nets_dir)
        if args.fc is None:
            study = feasibility.with_host_of_net(study, args.net, args.classes, args.nets_dir)
    elif args.file.endswith(".json"):
        study = feasibility.of_json(args.file, units=args.fc)
        folder, own = Path(args.file).parent, re.fullmatch(rf"{CHIP}_(\w+)_dat\.json", Path(args.file).name)
        if own and (folder / f"{own[1]}.py").exists():
            _check_chain(own[1], folder)
    else:
        _check_kind(args.file)
        study = feasibility.of_model_file(
            args.file, coef_bits=args.coef_bits, units=args.fc, image_size=args.image_size
        )
    print(feasibility.text(study))
    if args.json:
        files.write_json(args.json, feasibility.to_json(study))
    return 0 if study.fits else 1


def _check_chain(net: str, nets_dir: str | Path) -> None:
    # The files beside the dat.json that later steps need; what a dat.json breaks itself is told by the study.
    from gti import looks, nets
    from gti.errors import NetworkError

    try:
        network = nets.load(net, nets_dir=nets_dir)
    except NetworkError:
        return
    looks.chain(net, network, nets_dir)


def _check_kind(name: str) -> None:
    # A .keras file is opened by its name alone, and whatever else there is would be "no such file".
    expected = "a dat.json or a model file (.onnx, .keras, .h5, .pth, .safetensors)"
    if Path(name).exists() and not Path(name).is_file():
        raise UsageError(name, "is not a regular file", expected=expected, fix="pass a file's path")
    if name.lower().endswith((".model", ".dat")):
        raise UsageError(name, "is converted already", expected=expected, fix=f"gti info {name}")


def _arguments() -> Any:
    parser = Parser("Does a network fit the chip, and what does it cost? Exit status 0: fits, 1: does not, 2: mistake.")
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="dat.json or model file (.onnx, .keras, .h5, .pth, .safetensors)"
    )
    parser.add_argument("--net", type=net_name, help="a net of the kit, in place of FILE")
    parser.add_argument("--nets_dir", default="nets", metavar="DIR", help="folder of <chip>_<net>_dat.json")
    parser.add_argument(
        "--coef_bits", type=bits, default=(3,), metavar="N,N,...", help="of a model file, as import_model.py takes them"
    )
    parser.add_argument("--image_size", type=count(1), metavar="PIXELS", help="of a model file; default: as it says")
    parser.add_argument("--fc", type=_units, metavar="N,N,...", help="outputs of fully connected layers on the host")
    parser.add_argument(
        "--classes",
        type=count(2),
        metavar="N",
        help="with background, for --net; default: what the label file of data/<net> says, else 1001",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    args = parser.parse_args()
    if (args.file is None) == (args.net is None):
        raise UsageError(
            "check.py",
            "needs one network",
            expected="a file, or --net NAME",
            received="both" if args.net else "neither",
            fix="see check.py --help",
        )
    return args


def _units(text: str) -> Sequence[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**31 for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers above 0 separated by commas, received {text!r}")
    return [int(part) for part in parts]


if __name__ == "__main__":
    cli.run(main)
