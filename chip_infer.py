"""Classify the validation set on a stick, host layers in TensorFlow (user guide, sections 6.5 and 7.1.7):

python chip_infer.py --net digits --chip 2801 --checkpoint checkpoints/best --last_relu_cap digits/conv2_2/relu_cap

Without a stick the virtual one computes the same codes; the output says which of them it was. Like a stick it takes one
frame at a time, over USB; --engine_only leaves USB out and computes whole batches.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gti import cli, files, stage
from gti.errors import UsageError
from gti.param_parser import infer_parser, model_options, parse
from gti.stage import Stage

# Maps take a megabyte an image and more: without --num_examples so many images are saved.
IMAGES_WITH_LAYER_OUTPUTS = 8


def main() -> None:
    args = parse(infer_parser())
    if args.engine_only and (args.device != "auto" or args.record):
        raise UsageError(
            "--engine_only",
            "leaves out the stick and USB",
            expected="neither --device nor --record",
            received=f"--device {args.device}" if args.device != "auto" else f"--record {args.record}",
            fix="drop one of the flags",
        )

    from gti import caps, looks, nets

    network = looks.network(args)
    stages = (Stage.FUSED, Stage.QUANT_ACT)
    prefix, found = looks.checkpoint(args, args.checkpoint, stages, preferred=Stage.FUSED)
    stage.check_infer(found, prefix)
    looks.data(args, args.val_data_dir)
    model_file = args.model_file or str(nets.model_file(args.net, args.nets_dir))
    looks.converted_file(model_file)
    looks.device(args)
    if args.last_relu_cap and args.last_relu_cap not in caps.names_of(args.net, network):
        raise no_such_cap(args.last_relu_cap, f"the net {args.net}", caps.names_of(args.net, network))
    looks.outputs(args, args.layer_outputs)

    from gti.quiet import import_tensorflow

    import_tensorflow()
    import numpy as np
    import tensorflow as tf

    from gti import converter, data_utils
    from gti.chip.formats.splitting import split
    from gti.chip.host import preprocessing
    from gti.chip.loaded_model import load_chips
    from gti.chip.runtime.chain import open_model
    from gti.chip.runtime.engine_model import EngineModel
    from gti.chip.wire import protocol
    from gti.compare.inference import classify, save_layer_outputs
    from gti.data import data_check
    from gti.model import base
    from gti.progress import progress_bar
    from gti.training import restore

    source = restore.open_checkpoint(args.checkpoint, net=args.net, stages=stages, preferred=Stage.FUSED)
    restore.data_of(args, source)
    data_check.inspect(args.val_data_dir, names=source.labels)
    restored = stage.check_infer(source.stage, source.prefix)
    classes = restore.number_of_classes(args.classes, source, args.val_data_dir)
    network = restore.network_for(network, args.net, source, args.image_size)
    keras_model = restore.build_model(args.net, network, restored, source, classes, **model_options(args))
    host = base.host_model(keras_model)
    cap_name = args.last_relu_cap or base.last_relu_cap_name(keras_model)
    if cap_name not in source.arrays or np.size(source.arrays[cap_name]) != 1:
        raise no_such_cap(cap_name, source.prefix, [name for name in source.arrays if name.endswith("/relu_cap")])
    last_relu_cap = float(np.reshape(source.arrays[cap_name], ()))

    size, _, channels = network.input_shape
    shape: dict[str, Any] = {"image_size": size, "channels": channels, "classes": classes, **source.data}
    # The stick makes codes of the 8-bit pixels itself.
    dataset = data_utils.load(args.val_data_dir, **shape, batch_size=args.val_batch_size, as_codes=False)

    with (
        EngineModel(model_file)
        if args.engine_only
        else open_model(model_file, device=args.device, mode="fc", record=args.record)
    ) as model:
        print(f"{model_file} on {model.device_description}")
        if model.input_shape != network.input_shape:
            raise UsageError(
                model_file,
                f"is another network than {args.net}",
                expected=f"images {list(network.input_shape)}",
                received=list(model.input_shape),
                fix="convert the checkpoint again",
            )
        in_file = load_chips(Path(model_file))
        expected = converter.convert(network, source.arrays, net=args.net)
        parts = split(expected.network, expected.weights, len(in_file))
        if [part.dat for part in in_file] != [part.dat() for part in parts]:
            print(f"warning: {model_file} was not converted from {source.prefix}: convert it again", file=sys.stderr)
        contract = preprocessing.from_header(in_file[0].container.header, model_file) if in_file[0].container else None
        crop = data_utils.read_pipeline(args.val_data_dir, source.crop_fraction).crop_fraction
        if contract is not None and contract.crop_fraction != crop:
            print(
                f"warning: {model_file} was made for images cropped to {contract.crop_fraction}, "
                f"those of {args.val_data_dir} are cropped to {crop}",
                file=sys.stderr,
            )
        with data_utils.naming_errors(args.val_data_dir):
            if args.layer_outputs:
                # "mode" of the model JSON chooses the maps (user guide, section 6.7); mode 0 means all of them.
                mode = in_file[-1].mode or int(protocol.Mode.LEARN)
                wanted = args.num_examples or IMAGES_WITH_LAYER_OUTPUTS
                images = (image for batch, _ in dataset.as_numpy_iterator() for image in batch)
                for index, image in enumerate(itertools.islice(images, wanted)):
                    folder = Path(args.layer_outputs) / f"image_{index:05d}"
                    save_layer_outputs(folder, network, mode, model.layer_outputs(image, mode))
                print(f"{args.layer_outputs}: maps of the first {index + 1} images")
            forward = tf.function(lambda codes: host(codes, training=False), reduce_retracing=True)
            count = data_check.inspect(args.val_data_dir, names=source.labels).count
            with progress_bar(min(count, args.num_examples or count), "chip", "image") as bar:
                figures = classify(
                    model,
                    dataset.as_numpy_iterator(),
                    lambda codes: forward(tf.constant(codes)).numpy(),
                    last_relu_cap=last_relu_cap,
                    limit=args.num_examples,
                    progress=bar.update,
                )
        device = model.device_description
    print(f"{device}: accuracy {figures.accuracy:.4f}, top-5 {figures.top5:.4f}, {figures.count} images")
    if args.json:
        report = {
            "net": args.net,
            "chip": args.chip,
            "checkpoint": source.prefix,
            "model_file": model_file,
            "device": device,
            "accuracy": figures.accuracy,
            "top5": figures.top5,
            "count": figures.count,
        }
        files.write_json(args.json, report)
    if args.report:
        from gti.report import steps

        print(steps.add_accuracy(args.report, "chip", figures.accuracy))


def no_such_cap(name: str, where: str, caps: Iterable[str]) -> UsageError:
    """Return what to say of a --last_relu_cap that is none of the `caps` of `where`."""
    return UsageError(
        f"--last_relu_cap {name}",
        f"{where} has no cap of that name",
        expected="one of " + ", ".join(sorted(caps)),
        fix="leave the flag out: the net knows its last cap",
    )


if __name__ == "__main__":
    cli.run(main)
