"""Convert a quantized checkpoint to the chip's files.

    python convert_to_chip.py --net digits --chip 2801 --checkpoint checkpoints/best --fuse

Writes nets/<chip>_<net>.dat and .model, and the shifts and file names into the JSON pair beside them.
GTI_DEBUG_CONVERSION=True logs max|W|, max|B|, gains and shift of every layer.
"""

from __future__ import annotations

import logging
import sys

from gti import cli, param_parser


def main() -> None:
    args = param_parser.parse(param_parser.convert_parser())

    if args.report:
        import jinja2  # noqa: F401  (where it is missing, that is said before the work)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import converter, files, fusion, stage
    from gti.model import base
    from gti.training import checkpoint, restore

    if converter.debug_conversion():
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("gti.converter").setLevel(logging.DEBUG)
    # The fully connected layers, most of a VGG16, stay on the host and in the checkpoint.
    source = restore.open_checkpoint(
        args.checkpoint,
        net=args.net,
        chip=args.chip,
        preferred=stage.Stage.FUSED if args.fuse else stage.Stage.QUANT_ACT,
        wanted=lambda name: fusion.is_chip_variable(name, args.net),
    )
    stage.check_convert(source.stage, args.fuse, source.prefix)
    image_size = args.image_size or (source.metadata.image_size if source.metadata else None)
    network = base.load_network(args.net, chip=args.chip, image_size=image_size, nets_dir=args.nets_dir)
    if args.ten_bit_act:
        base.check_ten_bit(args.net, network)
    restore.refuse_change_of_network(source, network)
    for folder in filter(None, (args.output_dir, args.report)):
        files.make_writable_folder(folder)
    filter_step = restore.filter_step(args, source)
    conversion = converter.convert(network, source.arrays, net=args.net, filter_step=filter_step)
    change = restore.change_of_filter_step(args, source)
    for warning in filter(None, (change, *conversion.warnings, converter.fc_readout_problem(network, args.net))):
        print(f"warning: {warning}", file=sys.stderr)
    paths = converter.write_files(
        conversion,
        net=args.net,
        chip=args.chip,
        nets_dir=args.nets_dir,
        output_dir=args.output_dir,
        stage=source.stage.label if source.stage else "",
        parent=checkpoint.digest(source.prefix),
        num_chips=args.num_chips,
        preparation=converter.preparation(network, args.data_dir),
    )
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if args.report:
        from gti.report import steps

        about = {"net": args.net, "chip": args.chip, "checkpoint": source.prefix, "filter step": filter_step}
        print(steps.add_conversion(args.report, conversion, source.arrays, net=args.net, about=about))


if __name__ == "__main__":
    cli.run(main)
