"""From a checkpoint and the flags to a model with its weights: what train, eval and set_relu_caps have in common."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gti import caps, nets
from gti import stage as stage_rules
from gti.data import folders
from gti.data.labels import labels_of
from gti.errors import CheckpointError, UsageError, sentence
from gti.stage import LEARNED, MEAN, Stage
from gti.training import checkpoint, checkpoint_folder
from gti.training.metadata import Metadata

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

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes that it was trained for, index = label; () where it does not tell."""
        return self.metadata.labels if self.metadata else ()

    @property
    def crop_fraction(self) -> float | None:
        """Crop of the pictures that it was trained with, None where it does not tell."""
        return self.metadata.crop_fraction if self.metadata else None

    @property
    def data(self) -> dict[str, Any]:
        """What `data_utils.load` takes of it: the labels of class folders and the crop of pictures."""
        return {"names": self.labels, "crop_fraction": self.crop_fraction}


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    net: str,
    stages: Collection[Stage] = tuple(Stage),
    preferred: Stage | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Source:
    """Read the checkpoint that `path` means: a prefix, or of a folder the newest of `stages`.

    Of a folder, one of the stage `preferred` comes first. Only variables whose name is `wanted` are read. Raises
    CheckpointError, also for a checkpoint of another net.
    """
    prefix = checkpoint_folder.resolve(path, net=net, stages=stages, preferred=preferred)
    arrays, metadata = checkpoint.load(prefix, wanted)
    checkpoint.check_net(metadata, net, prefix)
    return Source(prefix, arrays, metadata)


def open_for_chip(
    path: str | os.PathLike[str],
    net: str,
    network: Network,
    *,
    fuse: bool,
    image_size: int | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> tuple[Source, Network]:
    """Read the checkpoint that `path` means, to be converted with this --fuse; return it and its net's `network`.

    Raises CheckpointError, also for a stage that does not fit and for one that was trained for another dat.json.
    """
    source = open_checkpoint(path, net=net, preferred=stage_rules.converted(fuse), wanted=wanted)
    stage_rules.check_convert(source.stage, fuse, source.prefix)
    network = network_for(network, net, source, image_size)
    refuse_change_of_network(source, network)
    return source, network


def number_of_classes(given: int | None, source: Source | None, data_dir: str | os.PathLike[str] | None = None) -> int:
    """Return the `given` --classes, or the checkpoint's, or the number in the data set's label file (with background).

    Raises CheckpointError where --classes contradicts the checkpoint, UsageError where nothing tells.
    """
    metadata = source.metadata if source else None
    if metadata:
        if given not in (None, metadata.classes):
            raise CheckpointError(
                source.prefix if source else "",
                "has another number of classes",
                expected=f"--classes {metadata.classes}",
                received=f"--classes {given}",
                fix="leave --classes out",
            )
        return metadata.classes
    if given is not None:
        return given
    names = labels_of(data_dir) if data_dir else None
    if not names and data_dir and folders.holds_data(data_dir):
        names = list(folders.look(data_dir).names)
    if names:
        return len(names)
    raise UsageError(
        "--classes",
        "neither a checkpoint nor a label file nor class folders tell the number of classes",
        expected="--classes N, background included",
        fix="pass --classes, or put a label file beside the data",
    )


def data_of(args: Namespace, source: Source | None) -> None:
    """Let the data folders that no flag names be those that a checkpoint was trained on, where `data/<net>` is none.

    Raises DataError as `gti.data.folders.look`.
    """
    known = source.metadata.data_dirs if source and source.metadata else ()
    labels = source.labels if source else ()
    given = []
    for name, place in (("train_data_dir", 0), ("val_data_dir", 1)):
        if hasattr(args, name):
            if not args.data_given and len(known) == 2 and not os.path.isdir(getattr(args, name)):
                setattr(args, name, known[place])
            given.append(getattr(args, name))
            folders.look(given[-1], labels)
    if not labels:
        folders.check_same_classes(*given)


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


def filter_step(asked: str | None, source: Source | None) -> str:
    """Return the rule of 3-bit filters: --filter_step, else the one that the checkpoint was trained with, else mean."""
    return asked or _trained_step(source) or MEAN


def change_of_filter_step(asked: str | None, source: Source | None) -> str:
    """Return how --filter_step differs from the rule that a checkpoint was trained with, one sentence, or ""."""
    trained = _trained_step(source)
    if source is None or not asked or not trained or asked in (trained, LEARNED):
        return ""
    return sentence(
        source.prefix,
        "its 3-bit filters were trained with another step",
        expected="no --filter_step" if trained == LEARNED else f"--filter_step {trained}",
        received=f"--filter_step {asked}",
        fix="leave it out, or train on with the new one",
    )


def _trained_step(source: Source | None) -> str:
    # Quantized checkpoints that do not say are of the kit whose only rule was the mean; float ones have none.
    if source is None or source.stage is Stage.FLOAT:
        return ""
    return (source.metadata.filter_step if source.metadata else "") or MEAN


def build_model(
    net: str,
    network: Network,
    stage: Stage,
    source: Source | None,
    classes: int,
    *,
    settings_file: str | Path | None = None,
    nets_dir: str | Path | None = None,
    to_train: bool = False,
    filter_step: str | None = None,
    **options: bool,
) -> keras.Model:
    """Return the model of a net in `stage`, with the weights of `source` (None: fresh ones).

    Caps come from the checkpoint when it was trained with them, else from the settings file (None: the net's). A
    quant_act checkpoint is fused on its way into the stage fused. `options` are of `gti.model.base.build`. Raises
    CheckpointError that lists every variable which does not fit, and for a checkpoint of another dat.json, unless it is
    `to_train` in the stage quant_w. `filter_step` None: as the checkpoint was trained.
    """
    from gti import fusion, layers
    from gti.model import base

    if not (to_train and stage is Stage.QUANT_W):
        refuse_change_of_network(source, network)
    arrays = dict(source.arrays) if source else {}
    step_of_filters = filter_step or _trained_step(source) or MEAN
    cap_names = caps.names_of(net, network)
    start_caps: dict[str, float] = {}
    if stage >= Stage.QUANT_ACT and not (source and source.stage is Stage.FUSED):
        start_caps = _own_caps(source, cap_names) or caps.calibrated(net, settings_file)
        if stage is Stage.FUSED:
            arrays |= {name: np.array(cap, np.float32) for name, cap in start_caps.items()}
            arrays = fusion.fuse(network, arrays, net=net)
    arrays = base.with_steps(arrays, net, network, step_of_filters if stage >= Stage.QUANT_W else MEAN)

    def build() -> keras.Model:
        return base.build(
            net,
            network=network,
            classes=classes,
            quant_w=stage >= Stage.QUANT_W,
            quant_act=stage >= Stage.QUANT_ACT,
            fuse=stage is Stage.FUSED,
            caps=start_caps or None,
            nets_dir=nets_dir,
            filter_step=step_of_filters,
            **options,
        )

    if source is None:
        return build()
    tensors = source.arrays.tensors if isinstance(source.arrays, checkpoint.Variables) else {}
    as_read = [name for name in tensors if arrays.get(name) is source.arrays[name]]
    with layers.starting_from({name.removeprefix(f"{net}/"): tensors[name] for name in as_read}) as taken:
        model = build()
    variables = base.named_variables(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    for name, array in checkpoint.select(arrays, shapes, source.prefix, optional=cap_names).items():
        if name.removeprefix(f"{net}/") not in taken:
            variables[name].assign(array)
    return model


def into_fused(
    source: Source, net: str, network: Network, classes: int, batches: Any, *, progress: str = "", **options: Any
) -> tuple[Source, dict[str, np.ndarray]]:
    """Return a quant_act `source` with batch-norm statistics estimated from `batches`, and biases for the fused model.

    `batches`: a data set of (images, labels), training ones. `options`: of `build_model`. Raises as
    `gti.training.statistics`.
    """
    from gti.model import base
    from gti.training import statistics

    trained = build_model(net, network, Stage.QUANT_ACT, source, classes, **options)
    found = statistics.reestimate(trained, batches, progress=f"{progress}: batch norm" if progress else "")
    variables = base.named_variables(trained)
    for name, value in found.items():
        variables[name].assign(value)
    source = replace(source, arrays={**source.arrays, **found}) if found else source
    fused = build_model(net, network, Stage.FUSED, source, classes, **options)
    few = batches.take(statistics.CORRECTION_BATCHES)
    return source, statistics.correct_biases(fused, trained, few, progress=f"{progress}: biases" if progress else "")


def teacher(
    path: str | os.PathLike[str], net: str, network: Network, classes: int, *, nets_dir: str | Path | None = None
) -> tuple[str, keras.Model]:
    """Return the prefix of the float checkpoint that `path` means, and its model of a net's `network` and `classes`.

    Raises CheckpointError, also for a quantized one and for one of other classes or images.
    """
    source = open_checkpoint(path, net=net, stages=(Stage.FLOAT,))
    stage_rules.check_teacher(source.stage, source.prefix)
    metadata = source.metadata
    if metadata and (metadata.classes, metadata.image_size) != (classes, network.input_shape[0]):
        raise CheckpointError(
            source.prefix,
            "cannot teach",
            expected=f"{classes} classes, images of {network.input_shape[0]} pixels",
            received=f"{metadata.classes} classes, images of {metadata.image_size} pixels",
            fix="pass a float checkpoint of the same data",
        )
    return source.prefix, build_model(net, network, Stage.FLOAT, source, classes, nets_dir=nets_dir)


def origin_of_caps(
    net: str,
    network: Network,
    stage: Stage,
    source: Source | None,
    settings_file: str | Path | None = None,
) -> str:
    """Return a note of where the caps of a model in `stage` come from, "" where it has none to choose.

    A checkpoint that was trained with caps has its own. Raises UsageError for a --settings_file that says others, and
    FormatError for one that cannot be read.
    """
    if stage < Stage.QUANT_ACT:
        return ""
    names = caps.names_of(net, network)
    own = _own_caps(source, names)
    folded = source is not None and source.stage is Stage.FUSED
    if not own and not folded:
        return f"caps from {caps.settings_file(net, settings_file)}"
    prefix = source.prefix if source else ""
    if settings_file is not None:
        given = caps.load(settings_file, net)
        if folded or any(name not in given or np.float32(given[name]) != np.float32(own[name]) for name in names):
            raise UsageError(
                f"--settings_file {settings_file}",
                "its caps are not used: "
                + (f"those of {prefix} are folded into its weights" if folded else f"{prefix} has its own"),
                expected="no --settings_file, or a quant_w checkpoint",
                fix="leave it out, or train --quant_act with these caps anew from the quant_w checkpoint",
            )
    return "" if folded else f"caps from {prefix}"


def network_for(network: Network, net: str, source: Source | None, image_size: int | None) -> Network:
    """Return the net's `network` at the given --image_size, else at the checkpoint's."""
    if image_size is None and source and source.metadata:
        image_size = source.metadata.image_size
    return nets.at_size(network, net, image_size)


def _own_caps(source: Source | None, names: Collection[str]) -> dict[str, float]:
    # Those that a checkpoint was trained with; before quant_act it may carry some that mean nothing.
    if source is None or (source.stage is not None and source.stage < Stage.QUANT_ACT):
        return {}
    own = caps.in_variables(source.arrays, names)
    return own if len(own) == len(names) else {}
