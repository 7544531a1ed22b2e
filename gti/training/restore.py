"""From a checkpoint and the flags to a model with its weights: what train, eval and set_relu_caps have in common."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gti import param_parser
from gti.data.labels import find_labels, read_labels
from gti.errors import CheckpointError, UsageError, sentence
from gti.stage import MEAN, Stage
from gti.training import checkpoint, checkpoint_folder
from gti.training.checkpoint import Metadata

if TYPE_CHECKING:
    import keras

    from gti.chip.network.types import Network


@dataclass(frozen=True)
class Source:
    """A checkpoint in memory: its prefix, variables by name and metadata (None for one of the old kit)."""

    prefix: str
    arrays: Mapping[str, np.ndarray]
    metadata: Metadata | None

    @property
    def stage(self) -> Stage | None:
        """Stage of the checkpoint, None where it carries none."""
        return self.metadata.stage if self.metadata else None


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    net: str,
    chip: str,
    stages: Collection[Stage] = tuple(Stage),
    preferred: Stage | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Source:
    """Read the checkpoint that `path` means: a prefix, or of a folder the newest of `stages`.

    Of a folder, one of the stage `preferred` comes first. Only variables whose name is `wanted` are read. Raises
    CheckpointError, also for a checkpoint of another net.
    """
    prefix = checkpoint_folder.resolve(path, net=net, chip=chip, stages=stages, preferred=preferred)
    arrays, metadata = checkpoint.load(prefix, wanted)
    checkpoint.check_net(metadata, net, chip, prefix)
    return Source(prefix, arrays, metadata)


def check_inputs(args: Namespace, *data_dirs: str | os.PathLike[str]) -> None:
    """Check the net and the data folders of a command line, before anything that takes time or depends on them.

    Raises UsageError and NetworkError for the net, DataError for what `data_check.inspect` and
    `data_check.check_same_classes` find.
    """
    from gti.data import data_check
    from gti.model import base

    base.load_network(args.net, chip=args.chip, image_size=args.image_size, nets_dir=args.nets_dir)
    for folder in data_dirs:
        data_check.inspect(folder)
    data_check.check_same_classes(*data_dirs)


def number_of_classes(args: Namespace, source: Source | None, data_dir: str | os.PathLike[str] | None) -> int:
    """Return --classes, or the checkpoint's, or the number in the data set's label file (with background).

    Raises CheckpointError where --classes contradicts the checkpoint, UsageError where nothing tells.
    """
    metadata = source.metadata if source else None
    if metadata:
        if args.classes not in (None, metadata.classes):
            raise CheckpointError(
                sentence(
                    source.prefix if source else "",
                    "has another number of classes",
                    expected=f"--classes {metadata.classes}",
                    received=f"--classes {args.classes}",
                    fix="leave --classes out",
                )
            )
        return metadata.classes
    if args.classes is not None:
        return int(args.classes)
    labels = find_labels(data_dir) if data_dir else None
    if labels:
        return len(read_labels(labels))
    raise UsageError(
        sentence(
            "--classes",
            "neither a checkpoint nor a label file tells the number of classes",
            expected="--classes N, background included",
            fix="pass --classes, or put a label file beside the data",
        )
    )


def traits(network: Network) -> tuple[str, ...]:
    """Return what quantized weights are trained for, a line each; sizes and shifts are no part of it."""
    lines = [f"SamplingMethod {network.sampling_method}", f"ActivationBitMode {network.activation_bit_mode}"]
    for major, layer in enumerate(network.layers, 1):
        pooling, upsampling = ("on" if on else "off" for on in (layer.pooling, layer.upsample_enable))
        mode = f" ({layer.upsample_mode})" if layer.upsample_enable else ""
        lines.append(f"major {major}: coef_bits {layer.coef_bits}, pooling {pooling}, upsampling {upsampling}{mode}")
    return tuple(lines)


def change_of_network(source: Source | None, network: Network) -> str:
    """Return how `network` differs from the one that a checkpoint was trained for, one sentence.

    "" where it does not, and for checkpoints that do not tell: float ones, and those of earlier versions.
    """
    trained = source.metadata.network if source and source.metadata else ()
    now = traits(network)
    if source is None or not trained or trained == now:
        return ""
    return sentence(
        source.prefix,
        "was trained for another dat.json of the net",
        expected="; ".join(line for line in trained if line not in now) or f"{len(trained) - 2} major layers",
        received="; ".join(line for line in now if line not in trained) or f"{len(now) - 2} major layers",
        fix="put the values back, or train --quant_w with the new ones",
    )


def refuse_change_of_network(source: Source | None, network: Network) -> None:
    """Raise CheckpointError where `network` differs from the one that a checkpoint was trained for."""
    change = change_of_network(source, network)
    if change:
        raise CheckpointError(change)


def filter_step(args: Namespace, source: Source | None) -> str:
    """Return the rule of 3-bit filters: --filter_step, else the one that the checkpoint was trained with, else mean."""
    return _asked_step(args) or _trained_step(source) or MEAN


def change_of_filter_step(args: Namespace, source: Source | None) -> str:
    """Return how --filter_step differs from the rule that a checkpoint was trained with, one sentence, or ""."""
    asked, trained = _asked_step(args), _trained_step(source)
    if source is None or not asked or not trained or asked == trained:
        return ""
    return sentence(
        source.prefix,
        "its 3-bit filters were trained with another step",
        expected=f"--filter_step {trained}",
        received=f"--filter_step {asked}",
        fix="leave it out, or train on with the new one",
    )


def _asked_step(args: Namespace) -> str:
    return getattr(args, "filter_step", None) or ""


def _trained_step(source: Source | None) -> str:
    # Quantized checkpoints that do not say are of the kit whose only rule was the mean; float ones have none.
    if source is None or source.stage is Stage.FLOAT:
        return ""
    return (source.metadata.filter_step if source.metadata else "") or MEAN


def build_model(
    args: Namespace, stage: Stage, source: Source | None, classes: int, *, to_train: bool = False
) -> keras.Model:
    """Return the model of `args.net` in `stage`, with the weights of `source` (None: fresh ones).

    Caps come from the checkpoint when it was trained with them, else from the settings file. A quant_act checkpoint
    is fused on its way into the stage fused. Raises CheckpointError that lists every variable which does not fit, and
    for a checkpoint of another dat.json, unless it is `to_train` in the stage quant_w.
    """
    from gti import fusion
    from gti.model import base

    network = base.load_network(args.net, chip=args.chip, image_size=_image_size(args, source), nets_dir=args.nets_dir)
    if not (to_train and stage is Stage.QUANT_W):
        refuse_change_of_network(source, network)
    arrays = dict(source.arrays) if source else {}
    cap_names = [base.cap_name(args.net, convolution) for convolution in network.convolutions]
    caps: dict[str, float] = {}
    if stage >= Stage.QUANT_ACT and not (source and source.stage is Stage.FUSED):
        caps = _own_caps(source, cap_names) or load_caps(args)
        if stage is Stage.FUSED:
            arrays |= {name: np.array(cap, np.float32) for name, cap in caps.items()}
            arrays = fusion.fuse(network, arrays, net=args.net)
    model = base.build(
        args.net,
        chip=args.chip,
        classes=classes,
        image_size=network.layers[0].image_size,
        quant_w=stage >= Stage.QUANT_W,
        quant_act=stage >= Stage.QUANT_ACT,
        fuse=stage is Stage.FUSED,
        ten_bit_act=args.ten_bit_act,
        caps=caps or None,
        train_caps=getattr(args, "train_caps", False),
        clip_bias=getattr(args, "clip_bias", False),
        filter_step=filter_step(args, source),
        nets_dir=args.nets_dir,
    )
    if source:
        variables = base.named_variables(model)
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        for name, array in checkpoint.select(arrays, shapes, source.prefix, optional=cap_names).items():
            variables[name].assign(array)
    return model


def origin_of_caps(args: Namespace, source: Source | None) -> str:
    """Return a note of where the caps of a model in `args.stage` come from, "" where it has none to choose.

    A checkpoint that was trained with caps has its own. Raises UsageError for a --settings_file that says others, and
    FormatError for one that cannot be read.
    """
    from gti.model import base

    if args.stage < Stage.QUANT_ACT:
        return ""
    network = base.load_network(args.net, chip=args.chip, image_size=_image_size(args, source), nets_dir=args.nets_dir)
    names = [base.cap_name(args.net, convolution) for convolution in network.convolutions]
    own = _own_caps(source, names)
    folded = source is not None and source.stage is Stage.FUSED
    if not own and not folded:
        return f"caps from {param_parser.settings_file(args)}"
    prefix = source.prefix if source else ""
    if args.settings_file is not None:
        given = base.load_caps(args.settings_file)
        if folded or any(name not in given or np.float32(given[name]) != np.float32(own[name]) for name in names):
            raise UsageError(
                sentence(
                    f"--settings_file {args.settings_file}",
                    "its caps are not used: "
                    + (f"those of {prefix} are folded into its weights" if folded else f"{prefix} has its own"),
                    expected="no --settings_file, or a quant_w checkpoint",
                    fix="leave it out, or train --quant_act with these caps anew from the quant_w checkpoint",
                )
            )
    return "" if folded else f"caps from {prefix}"


def load_caps(args: Namespace) -> dict[str, float]:
    """Return the calibrated caps of the settings file. Raises UsageError where there is none yet."""
    from gti.model import base

    path = param_parser.settings_file(args)
    if not Path(path).exists():
        raise UsageError(
            sentence(
                str(path),
                "there are no calibrated caps yet, which quantized activations need",
                fix=f"run set_relu_caps.py --net {args.net} --chip {args.chip} --quant_w on the quant_w checkpoint",
            )
        )
    return base.load_caps(path)


def _own_caps(source: Source | None, names: Collection[str]) -> dict[str, float]:
    # Those that a checkpoint was trained with; before quant_act it may carry some that mean nothing.
    if source is None or (source.stage is not None and source.stage < Stage.QUANT_ACT):
        return {}
    if not all(name in source.arrays for name in names):
        return {}
    return {name: float(np.reshape(source.arrays[name], ())) for name in names}


def _image_size(args: Namespace, source: Source | None) -> int | None:
    if args.image_size is not None:
        return int(args.image_size)
    return source.metadata.image_size if source and source.metadata else None
