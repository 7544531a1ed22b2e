"""Find out which major layers may have 1-bit filters, and what that costs (docs/ptq.md):

    python scripts/search_bits.py --net cifar10 --chip 2801 --checkpoint checkpoints/best --images photos --rows 1200 \
        --out nets_mixed

Each major layer gets 1 bit where all others have 3, is quantized without training, fine-tuned if --tune_steps says so,
and evaluated. What they cost alone, added up, gives the frontier of filter rows and accuracy. --rows or --max_drop
chooses a point of it, which is measured; --out writes its JSON pair.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, files, param_parser, stage
from gti.errors import UsageError
from gti.stage import MSE, Stage

if TYPE_CHECKING:
    from gti.chip.network.types import Network
    from gti.training.restore import Source


def main() -> None:
    args = param_parser.parse(param_parser.search_parser())
    from gti import looks, nets
    from gti.ptq import bit_search, pictures

    chosen = args.rows is not None or args.max_drop is not None
    if args.out and not chosen:
        raise UsageError("--out", "no point is chosen", expected="--rows N or --max_drop P", received="neither")
    network = looks.network(args)
    prefix, found = looks.checkpoint(args, args.checkpoint, (Stage.FLOAT,))
    stage.check_ptq(found, prefix)
    looks.data(args, args.train_data_dir, args.val_data_dir)
    pictures.look(args.images)
    looks.outputs(args, args.out)
    if args.out:
        files.check_writable(nets.dat_json(args.net, args.out), nets.dat_json(args.net, args.nets_dir))

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti.training import restore, strategies

    strategies.make_deterministic(args.seed)
    source = restore.open_checkpoint(args.checkpoint, net=args.net, stages=(Stage.FLOAT,))
    stage.check_ptq(source.stage, source.prefix)
    restore.data_of(args, source)
    network = restore.network_for(network, args.net, source, args.image_size)
    accuracy = measure(args, network, source)

    baseline = accuracy(bit_search.alone(network))
    print(f"3 bits everywhere: accuracy {baseline:.4f}")
    drops = {}
    for major in bit_search.candidates(network):
        drops[major] = baseline - accuracy(bit_search.alone(network, major))
        print(f"1 bit in major {major + 1}: {100 * drops[major]:.2f} points lost")
    points = bit_search.frontier(network, drops)
    print(bit_search.table(network, baseline, drops, points))
    report = {
        "net": args.net,
        "checkpoint": source.prefix,
        "accuracy": baseline,
        "drops": {str(major + 1): drop for major, drop in drops.items()},
        "frontier": [asdict(point) for point in points],
    }
    if chosen:
        limit = None if args.max_drop is None else args.max_drop / 100
        point = bit_search.choose(points, rows=args.rows, max_drop=limit)
        measured = accuracy(point.bits)
        report |= {"chosen": asdict(point), "chosen_accuracy": measured}
        print(
            f"chosen: bits {','.join(map(str, point.bits))}, {point.rows:,} rows, accuracy {measured:.4f}, "
            f"{100 * (baseline - measured):.2f} points lost ({100 * point.drop:.2f} as a sum)"
        )
        if args.out:
            write_pair(args, bit_search.with_bits(network, point.bits))
    if args.json:
        files.write_json(args.json, report)


def measure(args: Namespace, network: Network, source: Source) -> Callable[[Sequence[int]], float]:
    """Return a function: bits of the major layers -> accuracy of the chip's integers on the validation set."""
    from gti import data_utils
    from gti.model.exact import ExactModel
    from gti.ptq import bit_search, pictures, post_training
    from gti.training import evaluation, loop, optimization, restore
    from gti.training.metadata import Metadata

    classes = restore.number_of_classes(args.classes, source, args.val_data_dir)
    size, _, channels = network.input_shape
    number = min(args.num_images, post_training.most_images(network))
    taken = pictures.read(args.images, size, channels, number, seed=args.seed, progress="pictures")
    floats = post_training.float_filters(network, source.arrays, net=args.net)
    shape = {"image_size": size, "channels": channels, "classes": classes, **source.data}
    val_data = data_utils.load(args.val_data_dir, **shape, batch_size=args.val_batch_size)
    settings = optimization.Settings(
        optimizer="adam", learning_rate=args.learning_rate, schedule="cosine", steps_per_epoch=args.tune_steps
    )

    def accuracy(bits: Sequence[int]) -> float:
        changed = bit_search.with_bits(network, bits)
        title = ",".join(map(str, bits))
        found = post_training.quantize(changed, floats, taken.pixels, taken.held_back, seed=args.seed, progress=title)
        arrays = found.arrays(changed, source.arrays, net=args.net)
        metadata = Metadata(args.net, args.chip, Stage.FUSED, 0, 0, classes, size, filter_step=MSE)
        fused = restore.Source(source.prefix, arrays, metadata)
        model = restore.build_model(args.net, changed, Stage.FUSED, fused, classes, nets_dir=args.nets_dir)
        if args.tune_steps:
            trainer = loop.Trainer(model, settings, steps=args.tune_steps)
            batches = data_utils.load(
                args.train_data_dir, **shape, batch_size=args.train_batch_size, training=True, seed=args.seed
            )
            trainer.train_epoch(batches.repeat(), args.seed, progress="fine-tune")
        return float(evaluation.evaluate(model, val_data, forward=ExactModel(model), progress="evaluate").accuracy)

    return accuracy


def write_pair(args: Namespace, network: Network) -> None:
    """Write the JSON pair of the chosen `network` to --out, beside nothing else of the net that it needs."""
    from gti import nets
    from gti.chip.network import json_form

    target = nets.dat_json(args.net, args.out)
    files.write_json(target, json_form.to_json(network))
    for path in (nets.model_json(args.net, args.nets_dir), nets.users_module(args.net, args.nets_dir)):
        if path and path.exists():
            files.write_atomic(Path(args.out) / path.name, path.read_bytes())
    print(f"{target}: train and convert with --nets_dir {args.out}")


if __name__ == "__main__":
    cli.run(main)
