"""Calibrate the caps of the ReLUs on the chip (user guide, section 6.3):

python set_relu_caps.py --net digits --chip 2801 --checkpoint checkpoints/best --quant_w
"""

from __future__ import annotations

from gti import cli, files, stage
from gti.param_parser import calibration_parser, model_options, parse
from gti.stage import Stage


def main() -> None:
    args = parse(calibration_parser())
    from gti import caps, looks

    wanted = Stage.QUANT_W if args.quant_w else Stage.FLOAT
    stages = tuple(s for s in Stage if s <= wanted)
    network = looks.network(args)
    prefix, found = looks.checkpoint(args, args.checkpoint, stages, preferred=wanted)
    stage.check_calibrate(found, args.quant_w, prefix)
    looks.data(args, args.train_data_dir)
    path = caps.settings_file(args.net, args.settings_file)
    looks.output_file(args, "settings_file", path)
    looks.outputs(args)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import data_utils
    from gti.data import data_check
    from gti.training import calibration, checkpoint, restore

    source = restore.open_checkpoint(args.checkpoint, net=args.net, stages=stages, preferred=wanted)
    restore.data_of(args, source)
    data_check.inspect(args.train_data_dir, names=source.labels)
    stage.check_calibrate(source.stage, args.quant_w, source.prefix)
    print(f"calibrating {source.prefix}")
    change = restore.change_of_filter_step(args.filter_step, source)
    if change:
        print(f"warning: {change}")
    classes = restore.number_of_classes(args.classes, source, args.train_data_dir)
    network = restore.network_for(network, args.net, source, args.image_size)
    model = restore.build_model(args.net, network, wanted, source, classes, **model_options(args))
    size, _, channels = network.input_shape

    def batches():
        # The same choice of training images at every call, as evaluation sees them: no random crops.
        return data_utils.load(
            args.train_data_dir,
            image_size=size,
            channels=channels,
            classes=classes,
            batch_size=args.train_batch_size,
            training=True,
            augment=False,
            seed=args.seed,
            **source.data,
        ).take(args.num_batches)

    with data_utils.naming_errors(args.train_data_dir):
        ranges = calibration.calibrate(model, batches, percentile=args.percentile, progress=True)
    print(calibration.table(ranges))
    for one in ranges:
        if one.warning:
            print(f"warning: {one.warning}")
    details = {
        "net": args.net,
        "chip": args.chip,
        "checkpoint": checkpoint.digest(source.prefix),
        "quant_w": args.quant_w,
        "percentile": args.percentile,
        "num_batches": args.num_batches,
        "batch_size": args.train_batch_size,
    }
    files.write_json(path, calibration.settings(ranges, details))
    print(f"{len(ranges)} caps written to {path}")
    if args.report:
        from gti.report import steps

        about = {"net": args.net, "chip": args.chip, "calibrated on": source.prefix}
        found_caps = {one.variable: one.cap for one in ranges}
        print(steps.add_calibration(args.report, model, batches(), found_caps, about))


if __name__ == "__main__":
    cli.run(main)
