"""Costs of quantization in training, of calibration, and of evaluation, each against what it cannot do without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gti import caps, files, nets
from gti.chip.network import json_form as network_files
from gti.chip.network.types import Network
from scripts.benchmarks import networks
from scripts.benchmarks.figures import Figure, Scale, compare
from scripts.benchmarks.measure import Actions, Worker, start_tensorflow

GOAL_STEP = 1.05
GOAL_CALIBRATION = 1.1
GOAL_EVALUATION = 1.05
CLASSES = 1000
SMALL_TITLE = "6 convolutions 56"
# A batch of the small network takes an eighth of VGG16's forward pass.
BATCHES_OF_SMALL = 8
# Lets codes be spread over 0..31 with fresh weights; the time of a step does not depend on it.
CAP = 8.0
STAGES: dict[str, dict[str, bool]] = {
    "float": {},
    "quant_w": {"quant_w": True},
    "quant_act": {"quant_w": True, "quant_act": True},
    "fused": {"quant_w": True, "quant_act": True, "fuse": True},
}


# Why a step costs what it costs, where that is more than its goal.
_ONE_PASS = "one more pass over the activations than float, whose ReLU is part of the convolution"
REMARK = {"quant_w": "filters are quantized in every step", "quant_act": _ONE_PASS, "fused": _ONE_PASS}


def build(net: str, network: Network, stage: str, classes: int = CLASSES) -> Any:
    """Return the model of `network` with the host layers of `net`, in a stage."""
    from gti.model import base

    with tempfile.TemporaryDirectory() as folder:
        files.write_json(nets.dat_json(net, folder), network_files.to_json(network))
        options: dict[str, Any] = dict(STAGES[stage])
        start = dict.fromkeys(caps.names_of(net, network), CAP)
        return base.build(net, classes=classes, nets_dir=folder, caps=start, **options)


def data(network: Network, batch: int, batches: int, classes: int = CLASSES) -> Any:
    """Return a data set of random codes and labels, made once: the same batch again and again."""
    import tensorflow as tf

    random = np.random.RandomState(3)
    images = tf.constant(random.randint(0, 32, (batch, *network.input_shape)), tf.float32)
    labels = tf.constant(random.randint(1, classes, batch), tf.int32)
    options = tf.data.Options()
    # There is nothing to tune, and the tuner's thread at times lets the end of an iterator wait for its next look.
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensors((images, labels)).repeat(batches).with_options(options)


def epoch_side(net: str, network: Network, batch: int, steps: int, stages: tuple[str, ...]) -> Actions:
    """Return an epoch of `steps` training steps of every stage, out of the kit's own trainer."""
    start_tensorflow()
    from gti.training.loop import Trainer
    from gti.training.optimization import Settings

    def epoch(trainer: Trainer) -> None:
        trainer.train_epoch(batches, seed=0)

    batches = data(network, batch, steps)
    rate = Settings(learning_rate=1e-9)  # weights that stay as they are
    return {stage: partial(epoch, Trainer(build(net, network, stage), rate)) for stage in stages}


def measure_steps(scale: Scale) -> Iterator[Figure]:
    """Yield the cost of a training step of every stage relative to the float one."""
    cases = [("digits", networks.six_convolutions(), scale.small_batch, scale.small_steps, SMALL_TITLE, True)]
    if scale.large_training:
        cases.append((scale.net, networks.of_net(scale.net), scale.batch, 1, networks.title(scale.net), False))
    for net, network, batch, steps, title, small in cases:
        stages = tuple(STAGES) if small else ("float", "quant_act", "fused")
        with Worker(epoch_side, net, network, batch, steps, stages) as worker:
            for stage in stages[1:]:
                name = f"{title}, batch {batch}: {stage}, {steps} step" + "s" * (steps > 1)
                yield compare(
                    "qat", name, "cost", ((worker, stage), (worker, "float")), "the same in float",
                    rounds=scale.step_rounds, min_seconds=scale.min_seconds, goal=GOAL_STEP, remark=REMARK[stage],
                )  # fmt: skip


def calibration_side(net: str, network: Network, batch: int, batches: int) -> Actions:
    """Return a calibration, and the forward passes that it needs with nothing done to their outputs."""
    start_tensorflow()
    import keras
    import tensorflow as tf

    from gti.model.base import chip_layers
    from gti.training import calibration

    model = build(net, network, "quant_w")
    images = data(network, batch, batches)
    chip = keras.Model(model.input, chip_layers(model)[-1].output)

    def passes() -> None:
        # Traced anew, as in every run of set_relu_caps.py.
        forward = tf.function(lambda x: chip(x, training=False))
        for codes, _ in images:
            forward(codes).numpy()

    return {"calibrate": lambda: calibration.calibrate(model, lambda: images), "forward": passes}


def measure_calibration(scale: Scale) -> Iterator[Figure]:
    """Yield the cost of calibration relative to its forward passes."""
    batches = scale.calibration_batches
    cases = [("digits", networks.six_convolutions(), scale.small_batch, BATCHES_OF_SMALL * batches, SMALL_TITLE)]
    if scale.large_training:
        cases.append((scale.net, networks.of_net(scale.net), scale.batch, batches, networks.title(scale.net)))
    for net, network, batch, batches, title in cases:
        name = f"{title}, {batches} batches of {batch}"
        with Worker(calibration_side, net, network, batch, batches) as worker:
            sides = (worker, "calibrate"), (worker, "forward")
            goal = GOAL_CALIBRATION
            yield compare("calibration", name, "cost", sides, "forward passes", rounds=scale.rounds, goal=goal)


def write_photographs(folder: Path, count: int) -> None:
    """Write a data folder of JPEG files in the size of ImageNet's average photograph, smooth as photographs are."""
    from PIL import Image

    random = np.random.RandomState(4)
    place = folder / "val" / "class_1"
    place.mkdir(parents=True)
    (folder / "labels.txt").write_text("class_1\n")
    for index in range(count):
        coarse = Image.fromarray(random.randint(0, 256, (24, 32, 3)).astype(np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{index:04d}.jpg", quality=90)


def evaluation_side(folder: str, network: Network, batch: int, stages: tuple[str, ...]) -> Actions:
    """Return evaluation as eval.py does it, from JPEG files on, and bare forward passes over as many images."""
    start_tensorflow()
    import tensorflow as tf

    from gti import data_utils
    from gti.training.evaluation import evaluate

    size, _, channels = network.input_shape
    shape: dict[str, Any] = {"image_size": size, "channels": channels, "classes": 2}

    def evaluation(model: Any) -> None:
        dataset = data_utils.load(folder, **shape, batch_size=batch)
        evaluate(model, dataset)

    def passes(model: Any, batches: list[Any]) -> None:
        forward = tf.function(lambda codes: model(codes, training=False), reduce_retracing=True)
        for codes in batches:
            forward(codes).numpy()

    def images(training: bool) -> Callable[[], None]:
        def run() -> None:
            for _ in data_utils.load(folder, **shape, batch_size=batch, training=training, seed=0):
                pass

        return run

    def decoded() -> None:
        paths = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
        dataset = tf.data.Dataset.from_tensor_slices(paths)
        dataset = dataset.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3), tf.data.AUTOTUNE)
        for _ in dataset.prefetch(tf.data.AUTOTUNE):
            pass

    held = [codes for codes, _ in data_utils.load(folder, **shape, batch_size=batch)]
    actions: dict[str, Callable[[], object]] = {"pipeline": images(False), "training": images(True), "decode": decoded}
    for stage in stages:
        model = build("digits", network, stage, classes=2)
        actions[f"evaluate {stage}"] = partial(evaluation, model)
        actions[f"forward {stage}"] = partial(passes, model, held)
    return actions


def measure_evaluation(scale: Scale) -> Iterator[Figure]:
    """Yield the cost of evaluation relative to bare forward passes, and of reading images relative to decoding them."""
    batches = 6 if scale.large_training else 2
    count = batches * scale.batch
    network = networks.of_net(scale.net)
    stages = ("float", "quant_act") if scale.large_training else ("quant_act",)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), count)
        with Worker(evaluation_side, str(Path(folder) / "val"), network, scale.batch, stages) as worker:
            for stage in stages:
                name = f"{networks.title(scale.net)}, {count} JPEG files: evaluate, {stage}"
                yield compare(
                    "pipeline", name, "cost", ((worker, f"evaluate {stage}"), (worker, f"forward {stage}")),
                    "forward passes, images in memory", rounds=scale.rounds, goal=GOAL_EVALUATION,
                )  # fmt: skip
            for action, words in (("pipeline", "evaluation"), ("training", "training, random crops")):
                name = f"{count} JPEG files to codes: {words}"
                yield compare(
                    "pipeline", name, "cost", ((worker, action), (worker, "decode")), "decoding alone",
                    rounds=scale.rounds, min_seconds=scale.min_seconds,
                )  # fmt: skip
