#!/usr/bin/env python
"""Make a float checkpoint of pretrained weights, to be fine-tuned for the chip:

    python scripts/port_weights.py --net vgg16 --chip 2801 --weights vgg16.h5 --input bgr --background
    python train.py --net vgg16 --chip 2801 --resume_from checkpoints --quant_w

The mean and the order of the channels move into the first layer, so that the network takes five-bit BGR images.
Formats and what is exact: docs/porting.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import param_parser
from gti.chip.spec import CHIP
from gti.cli import run
from gti.errors import UsageError, sentence
from gti.importing.porting import IMAGENET_MEAN, ORDERS


def parser() -> param_parser.Parser:
    """Return the flags."""
    flags = param_parser.Parser(
        "Port pretrained float weights (Keras .h5, .weights.h5, .keras; .npz; TensorFlow checkpoint) to a net.",
        "Keras' own VGG16 takes BGR, as keras.applications.vgg16.preprocess_input makes it; most others take RGB.",
    )
    flags.add_argument("--net", required=True, type=param_parser.net_name, help="model name: gti/model/<net>.py")
    flags.add_argument("--chip", required=True, choices=[CHIP], help="target chip")
    flags.add_argument(
        "--nets_dir", default="nets", type=param_parser.path, metavar="DIR", help="folder of <chip>_<net>_dat.json"
    )
    flags.add_argument(
        "--weights",
        required=True,
        type=param_parser.path,
        metavar="FILE",
        help="weights file, or prefix of a checkpoint",
    )
    flags.add_argument(
        "--input",
        required=True,
        choices=ORDERS,
        help="what the source takes: 8-bit pixels minus the mean in this channel order, or the chip's codes",
    )
    flags.add_argument(
        "--mean",
        nargs=3,
        type=param_parser.number(0, 255),
        default=IMAGENET_MEAN,
        metavar=("R", "G", "B"),
        help="mean that the source subtracts, always in the order R G B",
    )
    flags.add_argument("--image_size", type=param_parser.count(1), metavar="PIXELS", help="default: the net's")
    flags.add_argument("--classes", type=param_parser.count(2), metavar="N", help="default: the source's")
    flags.add_argument("--background", action="store_true", help="add a class 0 in front of the source's classes")
    flags.add_argument("--new_layers", nargs="+", default=[], metavar="LAYER", help="host layers to start anew")
    flags.add_argument("--seed", type=param_parser.count(0), default=0, metavar="N", help="of new layers")
    flags.add_argument(
        "--checkpoint_dir",
        default="checkpoints",
        type=param_parser.path,
        metavar="DIR",
        help="folder for the checkpoint",
    )
    return flags


def main() -> None:
    args = param_parser.parse(parser())

    from gti.quiet import import_tensorflow

    import_tensorflow()
    import keras

    from gti import files
    from gti.importing import porting, pretrained
    from gti.model import base
    from gti.stage import Stage
    from gti.training import checkpoint, checkpoint_folder
    from gti.training.checkpoint import Metadata

    prefix = Path(args.checkpoint_dir) / checkpoint.file_name(args.net, args.chip, Stage.FLOAT, 0)
    checkpoint.refuse_existing(prefix)
    files.make_writable_folder(args.checkpoint_dir)
    weights = pretrained.read(args.weights, args.net)
    classes = args.classes
    if classes is None:
        classes = None if args.new_layers else porting.number_of_classes(weights)
        if classes is None:
            raise UsageError(sentence("--classes", "the source does not tell the number", expected="--classes N"))
        classes += args.background
    keras.utils.set_random_seed(args.seed)
    model = base.build(args.net, chip=args.chip, classes=classes, image_size=args.image_size, nets_dir=args.nets_dir)
    arrays = porting.port(
        weights,
        model,
        source=porting.InputOf(args.input, tuple(args.mean)),
        name=args.weights,
        background=args.background,
        new_layers=args.new_layers,
    )
    metadata = Metadata(
        net=args.net,
        chip=args.chip,
        stage=Stage.FLOAT,
        epoch=0,
        step=0,
        classes=classes,
        image_size=model.network.layers[0].image_size,
        seed=args.seed,
    )
    checkpoint.save(prefix, arrays, metadata)
    checkpoint_folder.publish(prefix, keep=5)
    fresh = f", new: {', '.join(args.new_layers)}" if args.new_layers else ""
    print(f"{prefix}: {len(arrays)} variables, {classes} classes{fresh}")
    if args.input != "codes":
        print(f"input {args.input} minus {' '.join(f'{m:g}' for m in args.mean)} folded into the first layer")


if __name__ == "__main__":
    run(main)
