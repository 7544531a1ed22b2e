"""Evaluate a checkpoint on the whole validation set (user guide, sections 6.3 and 7.1.5):

python eval.py --net digits --chip 2801 --checkpoint checkpoints/best --quant_w --quant_act --fuse
"""

from __future__ import annotations

from gti import cli, files, stage
from gti.param_parser import eval_parser, model_options, parse
from gti.stage import Stage


def main() -> None:
    args = parse(eval_parser())
    from gti import looks

    network = looks.network(args)
    fused = args.stage is Stage.FUSED
    stages = (Stage.FUSED,) if fused else tuple(s for s in Stage if s <= args.stage)
    prefix, found = looks.checkpoint(args, args.checkpoint, stages, preferred=args.stage)
    stage.check_eval(found, args.stage, prefix)
    looks.data(args, args.val_data_dir)
    looks.settings(args, network, found)
    looks.outputs(args)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import data_utils
    from gti.data import data_check
    from gti.model.exact import ExactModel
    from gti.training import restore
    from gti.training.evaluation import evaluate

    source = restore.open_checkpoint(args.checkpoint, net=args.net, stages=stages, preferred=args.stage)
    restore.data_of(args, source)
    unused = data_check.inspect(args.val_data_dir, names=source.labels).unused
    if unused:
        print(f"note: {args.val_data_dir}: {unused}")
    note = stage.check_eval(source.stage, args.stage, source.prefix)
    if note:
        print(f"note: {note}")
    change = restore.change_of_filter_step(args.filter_step, source)
    if change:
        print(f"warning: {change}")
    network = restore.network_for(network, args.net, source, args.image_size)
    origin = restore.origin_of_caps(args.net, network, args.stage, source, args.settings_file)
    if origin:
        print(origin)
    classes = restore.number_of_classes(args.classes, source, args.val_data_dir)
    model = restore.build_model(args.net, network, args.stage, source, classes, **model_options(args))
    size, _, channels = network.input_shape
    dataset = data_utils.load(
        args.val_data_dir,
        image_size=size,
        channels=channels,
        classes=classes,
        batch_size=args.val_batch_size,
        **source.data,
    )
    # A fused model is evaluated in the chip's integers, code for code what a stick gives.
    forward = ExactModel(model) if fused else None
    with data_utils.naming_errors(args.val_data_dir):
        figures = evaluate(model, dataset, forward=forward, progress="evaluate", classes=classes if args.report else 0)
    print(f"{source.prefix} ({args.stage.label}): {figures}")
    if args.json:
        report = {
            "net": args.net,
            "chip": args.chip,
            "checkpoint": source.prefix,
            "stage": args.stage.label,
            "accuracy": figures.accuracy,
            "top5": figures.top5,
            "loss": figures.loss,
            "count": figures.count,
        }
        files.write_json(args.json, report)
    if args.report:
        from gti.report import steps

        names = source.labels or [f"class {number}" for number in range(classes)]
        steps.add_classes(args.report, args.stage.label, figures.answers, names)
        print(steps.add_accuracy(args.report, args.stage.label, figures.accuracy))


if __name__ == "__main__":
    cli.run(main)
