#!/usr/bin/env python
"""Bring a pretrained network to the kit: a model file becomes a net of its own, with its weights.

    python scripts/import_model.py my.onnx --net mine --chip 2801 --input rgb --mean 123.675 116.28 103.53 \
        --std 58.395 57.12 57.375
    python scripts/import_model.py my.keras --net mine --chip 2801 --input bgr --mean 123.68 116.779 103.939
    python scripts/import_model.py vgg16.safetensors --net vgg16 --chip 2801 --input rgb

Writes <nets_dir>/2801_mine_dat.json and _model.json, the host's part mine.py, and a float checkpoint; for a net that is
there already, the checkpoint alone. What cannot run is named with what to write instead. docs/import.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gti import arguments, param_parser
from gti.chip.spec import CHIP
from gti.cli import run
from gti.errors import UsageError

ORDERS = ("bgr", "rgb", "codes")
# What torchvision's weights are trained with: mean and deviation of ImageNet in 0..1, times 255.
TORCHVISION = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def parser() -> arguments.Parser:
    """Return the flags."""
    flags = arguments.Parser(
        "Import a pretrained network: .onnx, .keras, .h5; .pth and .safetensors in torchvision's naming of VGG. For a "
        "net that is there, weights alone too (.weights.h5, .npz, TensorFlow checkpoint).",
        "Keras' own VGG16 takes --input bgr --mean 123.68 116.779 103.939; pixels in 0..1 are --std 255 255 255. "
        "Without --mean and --std pixels count as they are, and torchvision's names as its normalisation.",
    )
    flags.add_argument("model", type=arguments.path, metavar="MODEL", help="model file, or prefix of a checkpoint")
    flags.add_argument("--net", required=True, type=arguments.net_name, help="name of the net, new or there already")
    flags.add_argument("--chip", required=True, choices=[CHIP], help="target chip")
    flags.add_argument(
        "--nets_dir", default="nets", type=arguments.path, metavar="DIR", help="folder of the net's files"
    )
    flags.add_argument(
        "--checkpoint_dir", default="checkpoints", type=arguments.path, metavar="DIR", help="for the checkpoint"
    )
    flags.add_argument(
        "--coef_bits", type=bits, metavar="N,N,...", help="3 or 1, for all or for each block up to a pooling (3)"
    )
    flags.add_argument(
        "--input",
        required=True,
        choices=ORDERS,
        help="order of the pixels 0..255 that the source takes, or codes 0..31 as the chip",
    )
    number = arguments.number
    rgb = ("R", "G", "B")
    flags.add_argument("--mean", nargs=3, metavar=rgb, type=number(0, 255), help="subtracted from pixels, in R G B")
    flags.add_argument("--std", nargs=3, metavar=rgb, type=number(1e-3, 1e4), help="then divided by, in R G B")
    flags.add_argument("--image_size", type=arguments.count(1), metavar="PIXELS", help="default: the model's")
    flags.add_argument("--classes", type=arguments.count(2), metavar="N", help="default: the model's")
    flags.add_argument("--background", action="store_true", help="add a class 0 in front of the model's classes")
    flags.add_argument("--new_layers", nargs="+", default=[], metavar="LAYER", help="host layers to start anew")
    flags.add_argument("--seed", type=arguments.count(0), default=0, metavar="N", help="of new layers")
    return flags


def bits(text: str) -> tuple[int, ...]:
    """Return numbers of coefficient bits. Raises ArgumentTypeError."""
    parts = text.split(",")
    if not all(part in ("1", "3") for part in parts):
        raise argparse.ArgumentTypeError(f"expected 1 or 3, or several separated by commas, received {text!r}")
    return tuple(map(int, parts))


def main(words: list[str] | None = None) -> None:
    args = param_parser.parse(parser()) if words is None else parser().parse_args(words)

    from gti.importing import new_net, porting

    torchvision = Path(args.model).suffix.lower() in (".pth", ".pt", ".safetensors")
    default = TORCHVISION if torchvision and not (args.mean or args.std) else PLAIN
    if args.input == "codes" and (args.mean or args.std):
        raise UsageError(
            "--input codes", "codes have no --mean and no --std", fix="leave them out, or pass --input bgr"
        )
    source = porting.InputOf(args.input, tuple(args.mean or default[0]), tuple(args.std or default[1]))
    wanted = new_net.Wanted(
        net=args.net,
        chip=args.chip,
        nets_dir=args.nets_dir,
        checkpoint_dir=args.checkpoint_dir,
        source=source,
        coef_bits=args.coef_bits,
        image_size=args.image_size,
        classes=args.classes,
        background=args.background,
        new_layers=tuple(args.new_layers),
        seed=args.seed,
    )
    for line in new_net.bring(args.model, wanted):
        print(line)
    if args.input == "codes":
        print("input: codes 0..31 in the order B G R, as the chip")
    else:
        mean, std = (" ".join(f"{n:g}" for n in numbers) for numbers in (source.mean, source.std))
        order = " ".join(args.input.upper())
        print(f"input: 8-bit {order}, minus {mean}, divided by {std} (in R G B), folded into the first layer")
    where = "" if args.nets_dir == "nets" else f" --nets_dir {args.nets_dir}"
    net = f"--net {args.net} --chip {args.chip}{where}"
    print(
        f"Next: scripts/ptq.py {net} --checkpoint {args.checkpoint_dir} --images PHOTOS --checkpoint_dir ptq "
        f"(docs/ptq.md), or train.py {net} --resume_from {args.checkpoint_dir} --quant_w."
    )


if __name__ == "__main__":
    run(main)
