"""Train or fine-tune a network, one stage after the other (user guide, sections 6.1 to 6.4):

python train.py --net digits --chip 2801
python train.py --net digits --chip 2801 --resume_from checkpoints/best --quant_w
python train.py --net digits --chip 2801 --resume_from checkpoints/best --quant_w --quant_act
python train.py --net digits --chip 2801 --resume_from checkpoints/best --quant_w --quant_act --fuse
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gti import cli, stage
from gti.errors import UsageError
from gti.param_parser import model_options, parse, train_parser
from gti.stage import Stage


def main() -> None:
    with ExitStack() as held:
        train(held)


def train(held: ExitStack) -> None:
    args = parse(train_parser())
    if args.resume_from is None and args.stage is not Stage.FLOAT:
        raise UsageError(
            args.stage.flags,
            "this stage starts from a checkpoint of the stage before",
            expected="--resume_from PREFIX",
            received="none",
            fix="train the float network first, then add one flag at a time",
        )

    from gti import looks
    from gti.data import folders
    from gti.training import ownership, restore

    network = looks.network(args)
    stages = stage.trainable_from(args.stage)
    found = None
    if args.resume_from:
        prefix, found = looks.checkpoint(args, args.resume_from, stages)
        stage.check_train(found, args.stage, prefix)
    if args.teacher:
        prefix, found_teacher = looks.checkpoint(args, args.teacher, (Stage.FLOAT,))
        stage.check_teacher(found_teacher, prefix)
    looks.data(args, args.train_data_dir, args.val_data_dir)
    if not args.resume_from:
        classes = restore.number_of_classes(args.classes, None, args.train_data_dir)
        for folder in (args.train_data_dir, args.val_data_dir):
            folders.check_classes(folder, classes)
        folders.refuse_empty_classes(args.train_data_dir)
    looks.settings(args, network, found)
    if "TF_CONFIG" not in os.environ:  # of several workers, only the first writes
        looks.outputs(args, args.checkpoint_dir, args.log_dir)
        held.enter_context(ownership.owned(args.checkpoint_dir))

    from gti.quiet import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from gti import data_utils
    from gti.data import data_check
    from gti.model import base
    from gti.training import checkpoint, checkpoint_folder, strategies
    from gti.training import loop as training
    from gti.training.metadata import Metadata
    from gti.training.optimization import Settings

    strategies.make_deterministic(args.seed)
    strategy = strategies.make_strategy(args.num_gpus)
    say = print if strategies.is_chief(strategy) else (lambda line: None)

    source = None
    if args.resume_from:
        source = restore.open_checkpoint(args.resume_from, net=args.net, stages=stages)
        stage.check_train(source.stage, args.stage, source.prefix)
    restore.data_of(args, source)
    names = source.labels if source else ()
    sets = [data_check.inspect(folder, names=names) for folder in (args.train_data_dir, args.val_data_dir)]
    for line in data_check.table(sets[0]) + data_check.table(sets[1]):
        say(line)
    if os.path.realpath(args.train_data_dir) == os.path.realpath(args.val_data_dir):
        say("warning: the same images train and validate, so the accuracy says nothing about new ones")
    if source:
        say(f"resuming from {source.prefix}" + (f" ({source.stage.label})" if source.stage is not None else ""))
    network = restore.network_for(network, args.net, source, args.image_size)
    origin = restore.origin_of_caps(args.net, network, args.stage, source, args.settings_file)
    if origin:
        say(origin)
    if strategies.is_chief(strategy) and "TF_CONFIG" in os.environ:
        looks.outputs(args, args.checkpoint_dir, args.log_dir)
        held.enter_context(ownership.owned(args.checkpoint_dir))
    classes = restore.number_of_classes(args.classes, source, args.train_data_dir)
    size, _, channels = network.input_shape
    shape: dict[str, Any] = {"image_size": size, "channels": channels, "classes": classes}
    shape |= source.data if source else {}
    val_data = data_utils.load(args.val_data_dir, **shape, batch_size=args.val_batch_size)

    def train_data(seed: int):
        return data_utils.load(
            args.train_data_dir,
            **shape,
            batch_size=args.train_batch_size,
            training=True,
            augment=not args.no_augment,
            seed=seed,
        )

    biases: dict[str, Any] = {}
    if args.stage is Stage.FUSED and source and source.stage is not Stage.FUSED and args.reestimate_batches:
        seed = training.epoch_seed(args.seed, 0, args.stage)
        tf.random.set_seed(seed)
        taken = train_data(seed).take(args.reestimate_batches)
        title = "fuse" if strategies.is_chief(strategy) else ""
        given = {name: getattr(args, name) for name in ("settings_file", "nets_dir", "filter_step", "ten_bit_act")}
        source, biases = restore.into_fused(source, args.net, network, classes, taken, progress=title, **given)
    with strategy.scope():
        model = restore.build_model(
            args.net, network, args.stage, source, classes, to_train=True, **model_options(args)
        )
        for name, value in biases.items():
            base.named_variables(model)[name].assign(value)
        teacher = None
        if args.teacher:
            prefix, teacher = restore.teacher(args.teacher, args.net, network, classes, nets_dir=args.nets_dir)
            say(f"taught by {prefix}")
    filter_step = restore.filter_step(args.filter_step, source)
    changes = restore.change_of_network(source, network), restore.change_of_filter_step(args.filter_step, source)
    for change in filter(None, changes):
        say(f"warning: {change}")

    metadata = source.metadata if source else None
    resumed = metadata if metadata and metadata.stage is args.stage else None
    epochs, done = args.num_epochs, 0
    if args.total_epochs:
        epochs, done = args.total_epochs - (resumed.epoch if resumed else 0), resumed.step if resumed else 0
        if epochs <= 0:
            say(f"nothing is left to train: {args.total_epochs} epochs of {args.stage.label} are done")
            return
    batches = int(train_data(args.seed).cardinality())
    settings = Settings(
        num_epochs=epochs,
        learning_rate=args.learning_rate,
        schedule=args.schedule,
        schedule_span=tuple(args.schedule_span),
        warmup_steps=args.warmup_steps,
        optimizer=args.optimizer,
        momentum=args.momentum,
        nesterov=args.nesterov,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        distill_weight=Settings.distill_weight if args.distill_weight is None else args.distill_weight,
        distill_temperature=args.distill_temperature or Settings.distill_temperature,
        compute_dtype=args.compute_dtype,
        ema=args.ema,
        seed=args.seed,
        keep=args.keep,
        steps_per_epoch=args.steps_per_epoch,
        log_dir=args.log_dir,
    )
    steps = (args.total_epochs or epochs) * min(batches, args.steps_per_epoch or batches)
    trainer = training.Trainer(model, settings, strategy=strategy, steps=steps, done=done, teacher=teacher)

    if resumed and source:
        start = training.continued(resumed, settings)
        kept = resumed.optimizer == args.optimizer and trainer.restore_optimizer(
            checkpoint.load_optimizer(source.prefix)
        )
        say(f"going on after epoch {start.epoch}, optimizer state {'resumed' if kept else 'reset'}")
    else:
        start = Metadata(
            net=args.net,
            chip=args.chip,
            stage=args.stage,
            epoch=0,
            step=0,
            classes=classes,
            image_size=size,
            ten_bit=args.ten_bit_act,
            optimizer=args.optimizer,
            seed=args.seed,
            parent=checkpoint.digest(source.prefix) if source else "",
        )
        if source:
            say(f"stage {args.stage.label} begins: new optimizer state")
    start = replace(
        start,
        labels=sets[0].names or names,
        data_dirs=tuple(map(os.path.abspath, (args.train_data_dir, args.val_data_dir))),
        crop_fraction=data_utils.read_pipeline(
            args.val_data_dir, source.crop_fraction if source else None
        ).crop_fraction,
    )
    if args.stage >= Stage.QUANT_W:
        start = replace(start, network=restore.traits(network), filter_step=filter_step)

    def record(figures: dict[str, Any]) -> None:
        if args.report and strategies.is_chief(strategy):
            from gti.report import steps as report

            report.add_epoch(args.report, figures, {"net": args.net, "chip": args.chip})

    try:
        with data_utils.naming_errors(args.train_data_dir, args.val_data_dir):
            result = training.fit(
                trainer, train_data, val_data, args.checkpoint_dir, start, report=say, record=record, progress=True
            )
    except KeyboardInterrupt:
        saved = checkpoint_folder.latest(args.checkpoint_dir, net=args.net, stages=(args.stage,))
        starts = ([args.checkpoint_dir] if saved else []) + ([source.prefix] if source else [])
        remedy = f"go on with --resume_from {', or from '.join(starts)}" if starts else "no checkpoint was saved yet"
        print(f"\nstopped; {remedy}", file=sys.stderr)
        raise
    say(f"last checkpoint {result.prefix}")
    if result.best:
        say(f"best checkpoint {result.best}: accuracy {result.metadata.best_accuracy:.4f}")


if __name__ == "__main__":
    # Hours of work do not end with the `| tee` that wrote them down.
    cli.run(main, needs_listener=False)
