"""Quantize a float checkpoint without training and without labels, from a few pictures (docs/ptq.md):

    python scripts/ptq.py --net vgg16 --chip 2801 --checkpoint checkpoints/best --images photos --checkpoint_dir ptq
    python convert_to_chip.py --net vgg16 --chip 2801 --checkpoint ptq --fuse

Writes a fused checkpoint, which convert_to_chip.py turns into exactly the integers that were found here.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, param_parser


def main() -> None:
    with ExitStack() as held:
        quantize(held)


def quantize(held: ExitStack) -> None:
    """Do all of it; what holds the checkpoint folder is put into `held`."""
    args = param_parser.parse(param_parser.ptq_parser())
    from gti import files, looks, stage
    from gti.ptq import pictures
    from gti.stage import MSE, Stage

    network = looks.network(args)
    prefix, found_stage = looks.checkpoint(args, args.checkpoint, (Stage.FLOAT,))
    stage.check_ptq(found_stage, prefix)
    pictures.look(args.images)
    looks.outputs(args, args.checkpoint_dir)
    from gti.training import checkpoint, ownership

    held.enter_context(ownership.owned(args.checkpoint_dir))
    target = Path(args.checkpoint_dir) / checkpoint.file_name(args.net, Stage.FUSED, 0)
    checkpoint.refuse_existing(target)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti.ptq import figures, post_training
    from gti.training import checkpoint_folder, restore
    from gti.training.checkpoint import Metadata

    source = restore.open_checkpoint(args.checkpoint, net=args.net, stages=(Stage.FLOAT,))
    stage.check_ptq(source.stage, source.prefix)
    classes = restore.number_of_classes(args.classes, source)
    network = restore.network_for(network, args.net, source, args.image_size)
    # A float model of the net takes every variable, or says which do not fit.
    restore.build_model(args.net, network, Stage.FLOAT, source, classes, nets_dir=args.nets_dir)
    floats = post_training.float_filters(network, source.arrays, net=args.net)
    size, _, channels = network.input_shape
    number = min(args.num_images, post_training.most_images(network))
    if number < args.num_images:
        print(f"warning: {number} images are taken, more of them would not fit in memory", file=sys.stderr)
    found = pictures.read(args.images, size, channels, number, seed=args.seed, progress="pictures")
    for note in found.notes:
        print(f"warning: {note}", file=sys.stderr)
    held_out = len(found.held_back)
    print(
        f"{source.prefix}: fitted to {len(found.pixels) - held_out} images of {found.different - held_out} pictures, "
        f"judged by {held_out} pictures that are held back"
    )
    result = post_training.quantize(
        network,
        floats,
        found.pixels,
        found.held_back,
        compensate=args.method == "compensate",
        seed=args.seed,
        progress="quantize",
    )
    measured = figures.as_json(result)
    print(figures.table(measured))
    print(f"cosine with the float network at the result, on pictures held back: {measured['cosine']:.4f}")
    metadata = Metadata(
        net=args.net,
        chip=args.chip,
        stage=Stage.FUSED,
        epoch=0,
        step=0,
        classes=classes,
        image_size=size,
        ten_bit=network.convolutions[-1].ten_bit,
        seed=args.seed,
        parent=checkpoint.digest(source.prefix),
        network=restore.traits(network),
        filter_step=MSE,
        labels=source.labels,
        data_dirs=source.metadata.data_dirs if source.metadata else (),
        crop_fraction=source.crop_fraction,
    )
    checkpoint.save(target, result.arrays(network, source.arrays, net=args.net), metadata)
    checkpoint_folder.publish(target, keep=5)
    print(f"fused checkpoint {target}")
    if args.json:
        files.write_json(args.json, measured | {"checkpoint": str(target), "pictures": found.different})
    if args.report:
        from gti.report import steps

        about = {"net": args.net, "chip": args.chip, "quantized from": source.prefix}
        print(steps.add_quantization(args.report, network, measured, about))


if __name__ == "__main__":
    cli.run(main)
