#!/usr/bin/env python
"""Which sublayer diverges, and why: float -> quant_w -> quant_act -> fused -> emulator -> stick.

    python scripts/compare.py --net digits --chip 2801 --checkpoint_dir checkpoints/demo

Prints a table for each pair of stages. The fused Keras model, the emulator with the .MODEL and the stick must agree
code for code; where they do not, the first wrong code is named and its cause is looked for. Exit status 1 then, and
when a limit of the other stages is exceeded. docs/compare.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, names, param_parser
from gti.errors import CheckpointError, UsageError
from gti.stage import Stage

if TYPE_CHECKING:
    import keras

    from gti.chip.formats.dat import Dat
    from gti.chip.network.types import Network
    from gti.compare.stages import Comparison, Pair
    from gti.compare.sublayer_maps import Source
    from gti.converter import Conversion
    from gti.training.restore import Source as Checkpoint


@dataclass
class Stages:
    """What is compared, and what is not."""

    network: Network
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conversion: Conversion | None = None  # of the checkpoint behind the stage fused


def find_checkpoints(args: argparse.Namespace) -> dict[Stage, Checkpoint]:
    """Return the checkpoint of each stage: the one that its flag names, or the best one in --checkpoint_dir."""
    from gti.training import restore

    folder = Path("checkpoints" if args.checkpoint_dir is None else args.checkpoint_dir)
    found = {}
    for stage in Stage:
        path = getattr(args, f"{stage.label}_checkpoint")
        source = None
        if path:
            source = restore.open_checkpoint(path, net=args.net, stages=(stage,))
            check_stage(source.prefix, source.stage, stage)
        else:
            prefix = best_checkpoint(folder, args.net, stage)
            source = restore.open_checkpoint(prefix, net=args.net) if prefix else None
        if source is not None:
            found[stage] = source
    return found


def check_stage(prefix: str, found: Stage | None, wanted: Stage) -> None:
    """Raise CheckpointError where the checkpoint `prefix` is known to be of another stage than its flag says."""
    if found not in (None, wanted):
        raise CheckpointError(
            prefix,
            "is a checkpoint of another stage",
            expected=wanted.label,
            received=found.label,
            fix=f"pass it as --{found.label}_checkpoint",
        )


def look(args: argparse.Namespace) -> None:
    """Look at all that flags and files tell of a mistake, before TensorFlow is imported."""
    from gti import looks, nets

    looks.network(args)
    if args.checkpoint_dir is not None and not Path(args.checkpoint_dir).is_dir():
        raise CheckpointError(
            args.checkpoint_dir, "is no folder", expected="--checkpoint_dir with checkpoints", fix="check the path"
        )
    for stage in Stage:
        path = getattr(args, f"{stage.label}_checkpoint")
        if path:
            check_stage(*looks.checkpoint(args, path, (stage,)), stage)
    if args.data_given:
        looks.data(args, args.val_data_dir)
    looks.converted_file(args.model_file or str(nets.model_file(args.net, args.nets_dir)))
    if args.device != "none":
        looks.device(args)
    if args.recorded and not Path(args.recorded).is_dir():
        raise UsageError(
            f"--recorded {args.recorded}", "is no folder", expected="what chip_infer.py --layer_outputs wrote"
        )
    looks.outputs(args)


def best_checkpoint(folder: Path, net: str, stage: Stage) -> str | None:
    """Return the prefix of the stage's checkpoint with the best accuracy in `folder` or its best/, or None.

    That in best/ comes first where accuracies are equal; without accuracies, the newest does.
    """
    from gti.training import checkpoint, checkpoint_folder

    candidates = []
    for home in (folder / checkpoint_folder.BEST, folder):
        for index in sorted(home.glob(f"{names.checkpoint_stem(net)}{stage.suffix}-epoch-*.index")):
            prefix = str(index).removesuffix(".index")
            metadata = checkpoint.read_metadata(prefix)
            if metadata is not None and metadata.stage is stage and metadata.accuracy is not None:
                candidates.append((metadata.accuracy, prefix))
    if candidates:
        return max(candidates, key=lambda candidate: candidate[0])[1]
    return checkpoint_folder.latest(folder, net=net, stages=(stage,)) if folder.is_dir() else None


def keras_stages(args: argparse.Namespace, checkpoints: dict[Stage, Checkpoint], parent: str) -> Stages:
    """Return the stages that run in TensorFlow; `parent`: digest of the checkpoint that the .MODEL was made of."""
    from gti import caps as all_caps
    from gti import converter, nets
    from gti.compare import sublayer_maps
    from gti.training import checkpoint, restore

    newest = next((checkpoints[stage] for stage in reversed(Stage) if stage in checkpoints), None)
    network = restore.network_for(nets.load(args.net, nets_dir=args.nets_dir), args.net, newest, args.image_size)
    result = Stages(network)
    cap_names = all_caps.names_of(args.net, network)
    caps: dict[str, float] = {}
    if Stage.QUANT_ACT in checkpoints:
        caps = all_caps.in_variables(checkpoints[Stage.QUANT_ACT].arrays, cap_names)
    if len(caps) < len(cap_names) and all_caps.settings_file(args.net, args.settings_file).exists():
        caps = all_caps.calibrated(args.net, args.settings_file)
    for stage in (Stage.FLOAT, Stage.QUANT_W, Stage.QUANT_ACT):
        if stage not in checkpoints:
            result.notes.append(f"{stage.label} is left out: no checkpoint (--{stage.label}_checkpoint)")
        elif any(name not in caps for name in cap_names):
            result.notes.append(f"{stage.label} is left out: no caps to count its codes in (--settings_file)")
        else:
            source = checkpoints[stage]
            model = restored(args, network, stage, source)
            result.sources.append(sublayer_maps.of_keras(stage.label, source.prefix, model, caps))
    converted = converted_checkpoint(checkpoints, parent)
    if converted is None:
        result.notes.append("fused is left out: no checkpoint of the stage fused or quant_act (--fused_checkpoint)")
        return result
    if parent and checkpoint.digest(converted.prefix) != parent:
        result.notes.append(f"the .MODEL was made of another checkpoint ({parent}) than {converted.prefix}")
    model = restored(args, network, Stage.FUSED, converted)
    result.sources.append(sublayer_maps.of_fused(converted.prefix, model))
    filter_step = restore.filter_step(args.filter_step, converted)
    result.conversion = converter.convert(network, converted.arrays, net=args.net, filter_step=filter_step)
    return result


def converted_checkpoint(checkpoints: dict[Stage, Checkpoint], parent: str) -> Checkpoint | None:
    """Return the checkpoint that the .MODEL was made of where its digest tells, else the fused or quant_act one."""
    from gti.training import checkpoint

    candidates = [checkpoints[stage] for stage in (Stage.FUSED, Stage.QUANT_ACT) if stage in checkpoints]
    made_of = [source for source in candidates if checkpoint.digest(source.prefix) == parent]
    return next(iter([*made_of, *candidates]), None)


def restored(args: argparse.Namespace, network: Network, stage: Stage, source: Checkpoint) -> keras.Model:
    """Return the model of a checkpoint in `stage`."""
    from gti.training import restore

    classes = restore.number_of_classes(args.classes, source, args.val_data_dir)
    return restore.build_model(args.net, network, stage, source, classes, **param_parser.model_options(args))


def read_file(path: str, network: Network) -> tuple[Dat, bytes]:
    """Return the .DAT of the .model or .dat `path`, which must be of the same network but for its shifts."""
    from dataclasses import replace

    from gti.chip.formats import dat, model_folder
    from gti.files import read_bytes

    data, name = model_folder.chip_data(read_bytes(path, limit=dat.MAX_FILE_BYTES), path)
    decoded = dat.decode(data, activation_bit_mode=network.activation_bit_mode, name=name)
    shapes = [[replace(convolution, shift=0) for convolution in one.convolutions] for one in (network, decoded.network)]
    if shapes[0] != shapes[1] or network.sampling_method != decoded.network.sampling_method:
        raise UsageError(
            path,
            "is another network than the net's dat.json",
            expected=f"images {list(network.input_shape)}, {len(shapes[0])} sublayers",
            received=f"images {list(decoded.network.input_shape)}, {len(shapes[1])} sublayers",
            fix="convert the checkpoint again, or pass another --model_file",
        )
    return decoded, data


def parent_of(path: str) -> str:
    """Return the digest of the checkpoint that a .model was made of, "" where it does not tell."""
    from gti.chip.formats import model_file
    from gti.chip.runtime import known_answer
    from gti.errors import ModelFileError

    try:
        return known_answer.read(model_file.load(path), path)[0].answer.parent
    except ModelFileError:
        return ""


def run(args: argparse.Namespace) -> tuple[Comparison, Stages]:
    """Compare what the flags name."""
    from gti import data_utils, nets
    from gti.chip.driver import GtiModel
    from gti.chip.emulator.emulator import Emulator
    from gti.chip.formats import file_diff
    from gti.compare import diagnosis, sublayer_maps
    from gti.compare.stages import Limits, compare
    from gti.progress import progress_bar

    path = args.model_file or str(nets.model_file(args.net, args.nets_dir))
    checkpoints = find_checkpoints(args)
    trained = next(reversed(checkpoints.values()), None)
    from gti.training import restore

    restore.data_of(args, trained)
    stages = keras_stages(args, checkpoints, parent_of(path))
    network = stages.network
    decoded, data = read_file(path, network)
    integers: list[str] = []
    emulators = {}
    if stages.conversion is not None:
        conversion = stages.conversion
        integers = diagnosis.integer_differences(network.convolutions, conversion.weights, decoded.weights)
        emulators["fused"] = Emulator(conversion.network, conversion.weights)
        if not integers:
            # Bits that no integer tells, such as the step of a kernel of zeros.
            names = (stages.sources[-1].origin, path)
            stages.notes += [f"{path}: {words}" for words in file_diff.diff_dat(conversion.dat(), data, names)[:1]]
    emulator = sublayer_maps.emulator_of(decoded, network)
    emulators |= dict.fromkeys(("emulator", "stick", "recorded"), emulator)
    stages.sources.append(sublayer_maps.of_emulator(path, emulator))

    with ExitStack() as stack:
        if args.device != "none" and any(layer.upsample_enable for layer in network.layers):
            stages.notes.append("stick is left out: maps of layers that double their input cannot be read out")
        elif args.device != "none":
            stick = stack.enter_context(GtiModel(path, args.device))
            stages.sources.append(sublayer_maps.of_stick(stick))
        batches, most = args.num_batches, None
        if args.recorded:
            stages.sources.append(sublayer_maps.of_recording(args.recorded, network.convolutions))
            most = sublayer_maps.recorded_images(args.recorded)
        for source in stages.sources:
            print(f"{source.name}: {source.origin}")
        for note in stages.notes:
            print(f"note: {note}")

        size, _, channels = network.input_shape
        dataset = data_utils.load(
            args.val_data_dir,
            image_size=size,
            channels=channels,
            classes=None,
            batch_size=args.val_batch_size,
            as_codes=False,
            **(trained.data if trained else {}),
        )
        with data_utils.naming_errors(args.val_data_dir):
            images = [pixels for pixels, _ in dataset.take(batches).as_numpy_iterator()]
        images = limited(images, most)
        limits = Limits(args.max_difference, args.mean_difference, args.min_cosine)
        total = sum(map(len, images)) * len(stages.sources)
        with progress_bar(total, "compare", "image") as bar:
            result = compare(stages.sources, network.convolutions, images, limits=limits, progress=bar.update)
        for pair in result.pairs:
            if pair.diverging is None:
                continue
            result.findings.append(pair.sentence())
            if pair.exact and pair.diverging.place is not None:
                number = pair.diverging.place.image
                batch, index = divmod(number, args.val_batch_size)
                image = images[batch][index : index + 1]
                causes = {"emulator": integers}
                result.findings += diagnosis.explain(pair, image, number, emulators=emulators, integers=causes)
        if integers and not any(pair.exact and pair.diverging for pair in result.pairs):
            result.findings += [f"{path}: {words}, which changes no code of these images." for words in integers]
    return result, stages


def limited(batches: Sequence[Any], most: int | None) -> list[Any]:
    """Return the first `most` images of `batches`, all of them for None."""
    result = []
    for batch in batches:
        kept = batch if most is None else batch[:most]
        if most is not None:
            most -= len(kept)
        if len(kept):
            result.append(kept)
    return result


def table(pair: Pair) -> str:
    """Return the figures of a pair of stages as text."""
    lines = [
        f"{pair.name}" + (" (every code must be equal)" if pair.exact else ""),
        f"{'layer':<10}{'codes':>12}{'differ':>12}{'max':>8}{'mean':>9}{'cosine':>9}{'at cap':>8}{'zeros':>8}",
    ]
    lines += [
        f"{layer.convolution.name:<10}{layer.values:>12,}{layer.different:>12,}{layer.largest:>8.4g}{layer.mean:>9.4f}"
        f"{layer.cosine:>9.5f}{layer.saturated:>8.2%}{layer.zeros:>8.1%}"
        for layer in pair.layers
    ]
    return "\n".join(lines)


def main() -> int:
    args = param_parser.parse(param_parser.compare_parser())

    look(args)
    from gti.quiet import import_tensorflow

    import_tensorflow()
    result, stages = run(args)
    for pair in result.pairs:
        print(f"\n{table(pair)}")
    print()
    for finding in result.findings:
        print(f"DIFFERENCE {finding}")
    compared, equal = result.exact_codes
    exact = ", ".join(source.name for source in stages.sources if source.exact)
    if compared and compared == equal:
        print(f"all codes equal: {exact}, {compared:,} codes, {result.images} images")
    elif compared:
        print(f"{compared - equal:,} of {compared:,} codes differ: {exact}, {result.images} images")
    if args.json:
        from gti import files

        facts = {"net": args.net, "chip": args.chip, "notes": stages.notes}
        files.write_json(args.json, facts | result.to_json())
    if args.report:
        from gti.report import steps

        print(f"report: {steps.add_comparison(args.report, result.report_pairs())}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    cli.run(main)
