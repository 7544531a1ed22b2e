"""Evaluate a checkpoint on the whole validation set (user guide, sections 6.3 and 7.1.5):

python eval.py --net digits --chip 2801 --checkpoint checkpoints/best --quant_w --quant_act --fuse
"""

from __future__ import annotations

from gti import cli, files, stage
from gti.param_parser import eval_parser, parse
from gti.stage import Stage


def main() -> None:
    args = parse(eval_parser())

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import data_utils
    from gti.model.exact import ExactModel
    from gti.training import restore
    from gti.training.evaluation import evaluate

    restore.check_inputs(args, args.val_data_dir)
    if args.report:
        files.check_writable(args.report)
    fused = args.stage is Stage.FUSED
    stages = (Stage.FUSED,) if fused else tuple(s for s in Stage if s <= args.stage)
    source = restore.open_checkpoint(args.checkpoint, net=args.net, chip=args.chip, stages=stages, preferred=args.stage)
    note = stage.check_eval(source.stage, args.stage, source.prefix)
    if note:
        print(f"note: {note}")
    change = restore.change_of_filter_step(args, source)
    if change:
        print(f"warning: {change}")
    caps = restore.origin_of_caps(args, source)
    if caps:
        print(caps)
    classes = restore.number_of_classes(args, source, args.val_data_dir)
    model = restore.build_model(args, args.stage, source, classes)
    size, _, channels = model.network.input_shape
    dataset = data_utils.load(
        args.val_data_dir, image_size=size, channels=channels, classes=classes, batch_size=args.val_batch_size
    )
    # A fused model is evaluated in the chip's integers, code for code what a stick gives.
    forward = ExactModel(model) if fused else None
    with data_utils.naming_errors(args.val_data_dir):
        figures = evaluate(model, dataset, forward=forward, progress="evaluate")
    print(f"{source.prefix} ({args.stage.label}): {figures}")
    if args.report:
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
        files.write_json(args.report, report)


if __name__ == "__main__":
    cli.run(main)
