"""Pack a whole network, chip layers and host layers, into one .MODEL (user guide, section 6.5, option a):

    python addon/convert_full.py --net digits --chip 2801 --checkpoint checkpoints/best --fuse

Writes nets/<chip>_<net>.dat, one nets/<chip>_<net>_<layer>.bin per fully connected layer, and all of them with the
labels in nets/<chip>_<net>_full.model, which addon/infer_full.py runs without TensorFlow and without the checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from gti import cli, param_parser
from gti.errors import UsageError, sentence

if TYPE_CHECKING:
    import keras

LABELS_RETURNED = 5


def parser() -> param_parser.Parser:
    """Return the flags: those of convert_to_chip.py that a file for one stick can have, and the labels."""
    flags = param_parser.conversion_parser("Pack chip layers, host layers and labels of a checkpoint into one .MODEL.")
    flags.add_argument("--labels_file", metavar="FILE", help="default: the label file of the data set")
    flags.add_argument(
        "--top", type=param_parser.count(1), default=LABELS_RETURNED, metavar="N", help="labels in a result"
    )
    return flags


def host_entries(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> list[tuple[dict[str, Any], bytes | None]]:
    """Return (entry of the .MODEL, data) of each host layer of `model`; `arrays` are its variables by name.

    The first fully connected layer takes the chip's result as [C,H,W]; in TensorFlow it takes [H,W,C], so its inputs
    are reordered (user guide, section 5.4). Raises UsageError for layers that a .MODEL does not know.
    """
    from gti.chip.formats.blobs import encode_fc
    from gti.model import base

    host = base.host_model(model)
    shape: tuple[int, ...] = tuple(host.input_shape[1:])  # (H, W, C), or (inputs,) after the first FC layer
    entries: list[tuple[dict[str, Any], bytes | None]] = []
    for layer in host.layers:
        kind = type(layer).__name__
        if kind in ("InputLayer", "ChipFlatten", "Dropout"):
            continue
        if kind in _POOLINGS and len(shape) == 3:
            shape = (1, 1, shape[2])
            entries.append((_entry(layer.name, "POOLING", shape[2]) | {"mode": _POOLINGS[kind]}, None))
        elif kind == "HostDense":
            weights = arrays[f"{model.net}/{layer.name}/weights"]
            outputs = weights.shape[1]
            if len(shape) == 3:
                weights = weights.reshape(*shape, outputs).transpose(2, 0, 1, 3).reshape(-1, outputs)
            entry = _entry(layer.name, "FC", outputs)
            if layer.activation:
                entry["activation"] = layer.activation
            entries.append((entry, encode_fc(weights.T, arrays[f"{model.net}/{layer.name}/biases"])))
            shape = (outputs,)
        else:
            raise UsageError(
                sentence(
                    f"host layer {layer.name} of {model.net}",
                    "cannot be packed into a .MODEL",
                    expected="HostDense, Dropout, GlobalAveragePooling2D or GlobalMaxPooling2D",
                    received=kind,
                    fix="use convert_to_chip.py and chip_infer.py, which run the host layers in TensorFlow",
                )
            )
    return entries


_POOLINGS = {"GlobalAveragePooling2D": "average", "GlobalMaxPooling2D": "max"}


def _entry(name: str, operation: str, channels: int) -> dict[str, Any]:
    shape = {"output width": 1, "output height": 1, "output channels": channels}
    return {"name": name, "operation": operation, "data file": None, "data offset": None, **shape}


def full_model(
    chip_json: dict[str, Any],
    dat: bytes,
    host: Sequence[tuple[dict[str, Any], bytes | None]],
    names: Sequence[str],
    *,
    stem: str,
    top: int,
) -> tuple[bytes, dict[str, bytes]]:
    """Return the .MODEL and the data files in it by name.

    `chip_json`: the net's model JSON (reader and chip layer); `names`: of all classes, background first; `stem`: start
    of the file names, `<chip>_<net>`.
    """
    from gti import converter
    from gti.chip.formats.model_file import compose
    from gti.chip.spec import FC_SHIFT
    from gti.chip.wire.protocol import Mode

    data = {f"{stem}.dat": dat}
    chip = converter.chip_layer(chip_json, f"{stem}_model.json")
    # Host layers take codes 0..31 of the FC read-out, whatever the template says about other uses.
    chip |= {"data file": f"{stem}.dat", "mode": int(Mode.FC), "output scaledown": FC_SHIFT, "output type": "float"}
    layers = list(chip_json["layer"])
    for entry, blob in host:
        if blob is not None:
            entry["data file"], entry["data offset"] = f"{stem}_{entry['name']}.bin", 0
            data[entry["data file"]] = blob
        layers.append(entry)
    labels = f"{stem}_labels.txt"
    # The line number is the label: the numbers of the label file's own form are left out.
    data[labels] = "".join(f"{name}\n" for name in names).encode()
    layers.append(_entry("softmax", "SOFTMAX", len(names)))
    layers.append(_entry("label", "LABEL", min(top, len(names))) | {"data file": labels, "data offset": 0})
    text = json.dumps({**chip_json, "layer": layers}, indent=2, ensure_ascii=False) + "\n"
    return compose(text.encode(), data), data


def main() -> None:
    args = param_parser.parse(parser())

    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import converter, files, fusion, stage
    from gti.chip.host import preprocessing
    from gti.chip.runtime import known_answer
    from gti.data.labels import find_labels, read_labels
    from gti.model import base
    from gti.stage import Stage
    from gti.training import checkpoint, restore

    wanted = Stage.FUSED if args.fuse else Stage.QUANT_ACT
    source = restore.open_checkpoint(args.checkpoint, net=args.net, chip=args.chip, preferred=wanted)
    stage.check_convert(source.stage, args.fuse, source.prefix)
    labels_file = args.labels_file or find_labels(Path(args.data_dir) / "val")
    if labels_file is None:
        raise UsageError(
            sentence("--labels_file", f"there is no label file of {args.data_dir}", fix="pass --labels_file FILE")
        )
    names = read_labels(labels_file)
    classes = source.metadata.classes if source.metadata else len(names)
    if classes != len(names):
        raise UsageError(
            sentence(
                str(labels_file),
                "does not fit the checkpoint",
                expected=f"{classes} classes, background included",
                received=len(names),
                fix="pass the label file that the network was trained with",
            )
        )
    image_size = args.image_size or (source.metadata.image_size if source.metadata else None)
    network = base.load_network(args.net, chip=args.chip, image_size=image_size, nets_dir=args.nets_dir)
    if network.convolutions[-1].ten_bit:
        raise UsageError(
            sentence(
                f"net {args.net}",
                "has ten-bit activations, which no layer of a .MODEL takes",
                fix="use convert_to_chip.py and chip_infer.py",
            )
        )
    problem = converter.fc_readout_problem(network, args.net)
    if problem:
        raise UsageError(problem)
    restore.refuse_change_of_network(source, network)
    for folder in filter(None, (args.output_dir, args.report)):
        files.make_writable_folder(folder)
    filter_step = restore.filter_step(args, source)
    conversion = converter.convert(network, source.arrays, net=args.net, filter_step=filter_step)
    for warning in filter(None, (restore.change_of_filter_step(args, source), *conversion.warnings)):
        print(f"warning: {warning}", file=sys.stderr)
    model = base.build(
        args.net,
        chip=args.chip,
        classes=classes,
        image_size=image_size,
        quant_w=True,
        quant_act=True,
        fuse=True,
        filter_step=filter_step,
        nets_dir=args.nets_dir,
    )
    # Fusion brings the host layers to chip units, the codes that the file's layers pass on.
    shapes = {name: tuple(variable.shape) for name, variable in base.named_variables(model).items()}
    caps = [base.cap_name(args.net, convolution) for convolution in network.convolutions]
    fused = fusion.fuse(network, source.arrays, net=args.net)
    arrays = checkpoint.select(fused, shapes, source.prefix, optional=caps)
    stem = f"{args.chip}_{args.net}"
    chip_json, chip = converter.read_templates(network, net=args.net, chip=args.chip, nets_dir=args.nets_dir)
    dat = conversion.dat()
    label = source.stage.label if source.stage else ""
    chip[known_answer.KEY] = conversion.known_answer(dat, label, checkpoint.digest(source.prefix))
    chip_json[preprocessing.KEY] = converter.preparation(network, args.data_dir).entry()
    container, data = full_model(chip_json, dat, host_entries(model, arrays), names, stem=stem, top=args.top)
    output = Path(args.output_dir)
    written = {name: blob for name, blob in data.items() if not name.endswith("_labels.txt")}
    written[f"{stem}_full.model"] = container
    for name, blob in written.items():
        files.write_atomic(output / name, blob)
        print(f"{output / name}: {len(blob):,} bytes")
    if args.report:
        from gti.report import steps

        about = {"net": args.net, "chip": args.chip, "checkpoint": source.prefix, "filter step": filter_step}
        print(steps.add_conversion(args.report, conversion, source.arrays, net=args.net, about=about))


if __name__ == "__main__":
    cli.run(main)
