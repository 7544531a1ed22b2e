"""Convert a quantized checkpoint to the chip's files.

    python convert_to_chip.py --net digits --chip 2801 --checkpoint checkpoints/best --fuse

Writes nets/<chip>_<net>.dat and .model, and beside them what they hold, shifts and file names included, as .dat.json
and .model.json. The templates <chip>_<net>_dat.json and _model.json stay as they are without --update_templates.
GTI_DEBUG_CONVERSION=True logs max|W|, max|B|, gains and shift of every layer.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from gti import cli, names, param_parser

if TYPE_CHECKING:
    from gti.chip.network.types import Network
    from gti.packing import Host
    from gti.training.restore import Source


def main() -> None:
    args = param_parser.parse(param_parser.convert_parser())
    from gti import looks

    network = looks.conversion(args)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti.training import restore

    # The fully connected layers, most of a VGG16, stay on the host and in the checkpoint.
    source, network = restore.open_for_chip(
        args.checkpoint,
        args.net,
        network,
        fuse=args.fuse,
        image_size=args.image_size,
        wanted=lambda name: names.is_chip_variable(name, args.net),
    )
    convert(args, network, source)


def convert(args: Namespace, network: Network, source: Source, host: Host | None = None) -> None:
    """Convert the checkpoint `source`, write its files, with the layers of `host` behind the chip, and tell of them."""
    from gti import converter, packing
    from gti.training import checkpoint, restore

    if converter.debug_conversion():
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("gti.converter").setLevel(logging.DEBUG)
    filter_step = restore.filter_step(args.filter_step, source)
    conversion = converter.convert(network, source.arrays, net=args.net, filter_step=filter_step)
    change = restore.change_of_filter_step(args.filter_step, source)
    for warning in filter(None, (change, *conversion.warnings, packing.fc_readout_problem(network, args.net))):
        print(f"warning: {warning}", file=sys.stderr)
    lost = [
        f"{convolution.name} {share:.1%}"
        for convolution, share in zip(conversion.network.convolutions, conversion.vanished, strict=True)
    ]
    print(f"kernels that become 0 on the chip: {', '.join(lost)}")
    paths = packing.write_files(
        conversion,
        net=args.net,
        nets_dir=args.nets_dir,
        output_dir=args.output_dir,
        stage=source.stage.label if source.stage else "",
        parent=checkpoint.digest(source.prefix),
        num_chips=getattr(args, "num_chips", None),
        preparation=packing.preparation(
            network, args.data_dir, trained=None if args.data_given else source.crop_fraction
        ),
        host=host,
        update_templates=getattr(args, "update_templates", False),
    )
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if args.report:
        from gti.report import steps

        about = {"net": args.net, "chip": args.chip, "checkpoint": source.prefix, "filter step": filter_step}
        print(steps.add_conversion(args.report, conversion, source.arrays, net=args.net, about=about))


if __name__ == "__main__":
    cli.run(main)
