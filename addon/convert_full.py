"""Pack a whole network, chip layers and host layers, into one .MODEL (user guide, section 6.5, option a):

    python addon/convert_full.py --net digits --chip 2801 --checkpoint checkpoints/best --fuse

Writes nets/<chip>_<net>.dat, one nets/<chip>_<net>_<layer>.bin per fully connected layer, and all of them with the
labels in nets/<chip>_<net>_full.model, which addon/infer_full.py runs without TensorFlow and without the checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import arguments, cli, flag_groups, param_parser
from gti.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    import keras
    import numpy as np

    from gti.training.restore import Source

LABELS_RETURNED = 5


def parser() -> arguments.Parser:
    """Return the flags: those of convert_to_chip.py that a file for one stick can have, and the labels."""
    flags = param_parser.conversion_parser("Pack chip layers, host layers and labels of a checkpoint into one .MODEL.")
    flags.add_argument(
        "--labels_file", type=arguments.path, metavar="FILE", help="default: the checkpoint's, or the data set's"
    )
    flag_groups.labels_format(flags)
    flags.add_argument(
        "--top", type=arguments.count(1), default=LABELS_RETURNED, metavar="N", help="labels in a result"
    )
    return flags


def host_entries(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> list[tuple[dict[str, Any], bytes | None]]:
    """Return (entry of the .MODEL, data) of each host layer of `model`; `arrays` are its variables by name.

    The first fully connected layer takes the chip's result as [C,H,W]; in TensorFlow it takes [H,W,C], so its inputs
    are reordered (user guide, section 5.4). Raises UsageError for layers that a .MODEL does not know.
    """
    from gti.chip.formats.blobs import encode_fc
    from gti.model import base
    from gti.packing import host_entry

    host = base.host_model(model)
    shape: tuple[int, ...] = tuple(host.input_shape[1:])  # (H, W, C), or (inputs,) after the first FC layer
    entries: list[tuple[dict[str, Any], bytes | None]] = []
    for layer in host.layers:
        kind = type(layer).__name__
        if kind in ("InputLayer", "ChipFlatten", "Dropout"):
            continue
        if kind in _POOLINGS and len(shape) == 3:
            shape = (1, 1, shape[2])
            entries.append((host_entry(layer.name, "POOLING", shape[2]) | {"mode": _POOLINGS[kind]}, None))
        elif kind == "HostDense":
            weights = arrays[f"{model.net}/{layer.name}/weights"]
            outputs = weights.shape[1]
            if len(shape) == 3:
                weights = weights.reshape(*shape, outputs).transpose(2, 0, 1, 3).reshape(-1, outputs)
            entry = host_entry(layer.name, "FC", outputs)
            if layer.activation:
                entry["activation"] = layer.activation
            entries.append((entry, encode_fc(weights.T, arrays[f"{model.net}/{layer.name}/biases"])))
            shape = (outputs,)
        else:
            raise UsageError(
                f"host layer {layer.name} of {model.net}",
                "cannot be packed into a .MODEL",
                expected="HostDense, Dropout, GlobalAveragePooling2D or GlobalMaxPooling2D",
                received=kind,
                fix="use convert_to_chip.py and chip_infer.py, which run the host layers in TensorFlow",
            )
    return entries


_POOLINGS = {"GlobalAveragePooling2D": "average", "GlobalMaxPooling2D": "max"}


def main() -> None:
    args = param_parser.parse(parser())
    from gti import looks, nets

    network = looks.conversion(args)
    nets.check_trainable(args.net, network)
    if network.convolutions[-1].ten_bit:
        raise UsageError(
            f"net {args.net}",
            "has ten-bit activations, which no layer of a .MODEL takes",
            fix="use convert_to_chip.py and chip_infer.py",
        )
    data_labels = read_labels(args)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from convert_to_chip import convert
    from gti import packing
    from gti.model import base
    from gti.stage import Stage
    from gti.training import restore

    source, network = restore.open_for_chip(
        args.checkpoint, args.net, network, fuse=args.fuse, image_size=args.image_size
    )
    labels_file, labels = data_labels or of_checkpoint(source, args)
    if source.metadata and source.metadata.classes != len(labels):
        raise misfit(labels_file, labels, source.metadata.classes)
    problem = packing.fc_readout_problem(network, args.net)
    if problem:
        raise UsageError(problem)
    # Fusion brings the host layers to chip units, the codes that the file's layers pass on.
    step = args.filter_step
    model = restore.build_model(
        args.net, network, Stage.FUSED, source, len(labels), nets_dir=args.nets_dir, filter_step=step
    )
    arrays = {name: variable.numpy() for name, variable in base.named_variables(model).items()}
    convert(args, network, source, packing.Host(host_entries(model, arrays), labels, args.top))


def read_labels(args: Namespace) -> tuple[str | Path, list[str]] | None:
    """Return the label file that the flags name, --labels_file or that of --data_dir, and its names, None without one.

    Raises DataError.
    """
    from gti.data import labels

    path = args.labels_file or (labels.find_labels(Path(args.data_dir) / "val") if args.data_given else None)
    return (path, labels.read_labels(path, args.labels_format)) if path else None


def of_checkpoint(source: Source, args: Namespace) -> tuple[str | Path, list[str]]:
    """Return where the names of the classes are, and the names.

    That is the checkpoint, the label file that import_model.py put beside the net's JSON, or the net's data set. Raises
    UsageError, DataError.
    """
    from gti.data import labels

    if source.labels:
        return source.prefix, [source.labels[0] or labels.BACKGROUND, *source.labels[1:]]
    imported = Path(args.nets_dir) / f"{args.net}_labels.txt"
    path = imported if imported.is_file() else labels.find_labels(Path(args.data_dir) / "val")
    if path is None:
        raise UsageError(
            "--labels_file",
            f"neither {source.prefix} nor {args.data_dir} tells the labels, and {imported} is not there",
            fix="pass --labels_file FILE, a text of one class a line: `0 NAME`, `1 NAME`, ...",
        )
    return path, labels.read_labels(path)


def misfit(labels_file: str | Path, labels: list[str], classes: int) -> UsageError:
    """Return what to say of a label file with another number of classes than the checkpoint's."""
    from gti.data.labels import BACKGROUND

    fix = "pass the label file that the network was trained with"
    if len(labels) == classes + 1 and labels[0] == BACKGROUND:
        fix += "; of a network without a class for the background, number the lines: `0 NAME`, `1 NAME`, ..."
    return UsageError(
        str(labels_file),
        "does not fit the checkpoint",
        expected=f"{classes} classes, background included",
        received=len(labels),
        fix=fix,
    )


if __name__ == "__main__":
    cli.run(main)
