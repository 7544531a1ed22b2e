"""A model file becomes a net of the kit: JSON pair, host module, labels and float checkpoint, all of them or none."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from gti import files, nets
from gti.chip.network.types import Network
from gti.errors import CheckpointError, FormatError, NetworkError, UsageError, printable
from gti.importing import advice, folding, model_files, porting, pretrained, templates
from gti.importing import architecture as architectures
from gti.importing.architecture import Architecture
from gti.importing.graph import Weights
from gti.importing.host_part import module_text
from gti.stage import Stage

NEW_HEAD = "fc"


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    net: str
    chip: str
    nets_dir: str
    checkpoint_dir: str
    source: porting.InputOf
    coef_bits: tuple[int, ...] | None = None
    image_size: int | None = None
    classes: int | None = None
    background: bool = False
    new_layers: tuple[str, ...] = ()
    seed: int = 0


def is_known(wanted: Wanted) -> bool:
    """Return whether the net has its files already, here or in the kit."""
    own = Path(__file__).resolve().parents[1] / "model" / f"{wanted.net}.py"
    return own.is_file() or any(path.exists() for path in _paths(wanted).values() if "labels" not in path.name)


def _paths(wanted: Wanted) -> dict[str, Path]:
    folder = Path(wanted.nets_dir)
    names = {
        "dat": f"{wanted.chip}_{wanted.net}_dat.json",
        "model": f"{wanted.chip}_{wanted.net}_model.json",
        "module": f"{wanted.net}.py",
        "labels": f"{wanted.net}_labels.txt",
    }
    return {kind: folder / name for kind, name in names.items()}


def bring(model_file: str, wanted: Wanted) -> Iterator[str]:
    """Import a model file; yield what to tell the user, line by line.

    Raises FormatError for a damaged file, NetworkError with all the reasons why the chip cannot run it, UsageError and
    CheckpointError for weights of another net and outputs that cannot be written.
    """
    from gti.training import checkpoint, ownership

    prefix = Path(wanted.checkpoint_dir) / checkpoint.file_name(wanted.net, Stage.FLOAT, 0)
    checkpoint.refuse_existing(prefix)
    files.make_writable_folder(wanted.checkpoint_dir)
    with ownership.owned(wanted.checkpoint_dir):
        yield from _bring(model_file, wanted, prefix)


def _bring(model_file: str, wanted: Wanted, prefix: Path) -> Iterator[str]:
    known = is_known(wanted)
    model = _architecture(model_file, wanted, known)
    if model is None:
        yield from _port(model_file, wanted, prefix, pretrained.read(model_file, wanted.net))
        return
    yield from (f"note: {printable(note)}" for note in model.notes)
    wanted = replace(wanted, source=replace(wanted.source, scales=model.input_scales))
    batch_norm = folding.can_train_batch_norm(model.sublayers)
    outputs: dict[Path, bytes] = {}
    if not known:
        files.make_writable_folder(wanted.nets_dir)
        outputs = _new_files(model, model_file, wanted, batch_norm=batch_norm)
        if _has_norm(model):
            yield f"note: batch norm is {'kept for training' if batch_norm else 'folded into the convolutions'}"
        if not model.labels:
            yield (
                f"note: the file names no classes: write {_paths(wanted)['labels']}, a line `0 NAME`, `1 NAME`, ... "
                "for each, before addon/convert_full.py"
            )
    yield from _port(model_file, wanted, prefix, model, outputs)


def _has_norm(model: Architecture) -> bool:
    return any(layer.kind == "BatchNormalization" for sublayer in model.sublayers for layer in sublayer.after)


def _architecture(model_file: str, wanted: Wanted, known: bool) -> Architecture | None:
    """Return the model in the file, None for weights without one that belong to a known net."""
    suffix = os.path.splitext(model_file)[1].lower()
    weights_alone = suffix not in model_files.READERS or (
        suffix in (".h5", ".hdf5") and pretrained.hdf5_config(model_file) is None
    )
    if weights_alone:
        if not known:
            kinds = f"{model_files.EXPECTED}, or weights of a net that is there"
            raise FormatError(
                model_file,
                "holds no model" if Path(model_file).exists() else "no such file",
                expected=kinds,
                fix=f"save the whole model, or pass the --net that the weights are of ({wanted.net} is new)",
            )
        return None
    bits = wanted.coef_bits or (3,)
    model = architectures.load(model_file, coef_bits=bits, image_size=wanted.image_size)
    found = [*templates.problems(model), *model.host_problems]
    if found:
        raise NetworkError(advice.text(model_file, found), violations=found)
    return model


def _new_files(model: Architecture, model_file: str, wanted: Wanted, *, batch_norm: bool) -> dict[Path, bytes]:
    paths = _paths(wanted)
    dat, model_json = templates.templates(model, net=wanted.net, chip=wanted.chip)
    channels, height, width = model.network.output_shape
    text = module_text(
        model.steps,
        net=wanted.net,
        source=os.path.basename(model_file),
        shape=(height, width, channels),
        batch_norm=batch_norm,
    )
    outputs = {
        paths["dat"]: files.json_bytes(dat),
        paths["model"]: files.json_bytes(model_json),
        paths["module"]: text.encode(),
    }
    if model.labels:
        first = int(wanted.background)
        outputs[paths["labels"]] = "".join(f"{i} {n}\n" for i, n in enumerate(model.labels, first)).encode()
    return outputs


def _port(
    model_file: str,
    wanted: Wanted,
    prefix: Path,
    source: Architecture | Weights,
    outputs: Mapping[Path, bytes] = MappingProxyType({}),
) -> Iterator[str]:
    from gti.quiet import import_tensorflow

    import_tensorflow()
    import keras

    from gti.model import base
    from gti.training import checkpoint, checkpoint_folder
    from gti.training.metadata import Metadata

    weights: Weights
    with contextlib.ExitStack() as stack:
        nets_dir = wanted.nets_dir
        if outputs:  # tried where nothing can be half written
            nets_dir = stack.enter_context(tempfile.TemporaryDirectory())
            for path, data in outputs.items():
                (Path(nets_dir) / path.name).write_bytes(data)
        module = base.net_module(wanted.net, nets_dir)
        network = nets.load(wanted.net, image_size=wanted.image_size, nets_dir=nets_dir)
        new_layers = wanted.new_layers
        if isinstance(source, Architecture):
            if not outputs:
                _refuse_another_network(model_file, source, network, wanted)
            batch_norm = module.BATCH_NORM and folding.can_train_batch_norm(source.sublayers)
            weights = folding.chip_weights(source.sublayers, network, batch_norm=batch_norm)
            weights |= _host_weights(source)
            if outputs and not source.host:
                new_layers = (*new_layers, NEW_HEAD)
        else:
            weights = source
        classes = _classes(weights, wanted, new_layers)
        keras.utils.set_random_seed(wanted.seed)
        # Without new layers nothing but names and shapes is needed: VGG16's variables would take 550 MB.
        scope = contextlib.nullcontext() if new_layers else keras.StatelessScope(initialize_variables=False)
        with scope:
            built = base.build(wanted.net, network=network, classes=classes, nets_dir=nets_dir)
        arrays = porting.port(
            weights,
            built,
            source=wanted.source,
            name=model_file,
            background=wanted.background,
            new_layers=new_layers,
        )
    metadata = Metadata(
        net=wanted.net,
        chip=wanted.chip,
        stage=Stage.FLOAT,
        epoch=0,
        step=0,
        classes=classes,
        image_size=network.layers[0].image_size,
        seed=wanted.seed,
    )
    written: list[Path] = []
    try:
        for path, data in outputs.items():
            files.write_atomic(path, data)
            written.append(path)
        checkpoint.save(prefix, arrays, metadata)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    checkpoint_folder.publish(prefix, keep=5)
    yield from map(str, written)
    fresh = f", new: {', '.join(new_layers)}" if new_layers else ""
    yield f"{prefix}: {len(arrays)} variables, {classes} classes{fresh}"


def _host_weights(model: Architecture) -> Weights:
    result: Weights = {}
    for number, step in enumerate(s for s in model.steps if s.kind == "HostDense"):
        if step.kernel is None or step.bias is None:
            raise FormatError(f"layer {step.name}", "its weights are missing", fix="pass a file with weights")
        result[f"dense#{number}/filters"] = step.kernel
        result[f"dense#{number}/biases"] = step.bias
    return result


def _classes(weights: Weights, wanted: Wanted, new_layers: tuple[str, ...]) -> int:
    if wanted.classes is not None:
        return wanted.classes
    found = None if new_layers else porting.number_of_classes(weights)
    if found is None:
        raise UsageError("--classes", "the source does not tell the number", expected="--classes N")
    return found + wanted.background


def _refuse_another_network(model_file: str, model: Architecture, network: Network, wanted: Wanted) -> None:
    if wanted.coef_bits is not None:
        raise UsageError(
            "--coef_bits", f"the net {wanted.net} has its own", fix="leave it out, or choose another --net"
        )
    ours, theirs = (
        [(c.size, c.input_channels, c.output_channels, c.pooled, c.upsampled) for c in n.convolutions]
        for n in (network, model.network)
    )
    if ours != theirs:
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        raise CheckpointError(
            model_file,
            f"is of another network than the net {wanted.net}, from convolution {at + 1} on",
            expected=_described(ours, at),
            received=_described(theirs, at),
            fix="choose a --net that is not there yet",
        )


def _described(convolutions: list[tuple[int, int, int, bool, bool]], at: int) -> str:
    if at >= len(convolutions):
        return "no convolution"
    size, inputs, outputs, pooled, upsampled = convolutions[at]
    return f"{inputs} -> {outputs} at {size}x{size}{', upsampled' if upsampled else ''}{', pooled' if pooled else ''}"
