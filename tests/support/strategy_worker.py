"""A short training run for tests of strategies, in a process of its own: prints its losses as JSON.

    strategy_worker.py FOLDER REPLICAS [cifar]

REPLICAS logical CPUs under MirroredStrategy; 0 takes TF_CONFIG. With the host part of `cifar` there is batch norm, and
the run is done again with a stop after its second epoch: the largest difference of any variable is "resumed", and that
between replicas "apart". Imported by nothing.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf


def main() -> None:
    folder, replicas = Path(sys.argv[1]), int(sys.argv[2])
    if replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)

    import small_nets

    from gti.stage import Stage
    from gti.training import loop as training
    from gti.training import strategies
    from gti.training.metadata import Metadata
    from gti.training.optimization import Settings

    strategies.make_deterministic(7)
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    else:
        strategy = strategies.make_strategy()

    random = np.random.default_rng(0)
    images = random.integers(0, 32, (28, 14, 14, 3)).astype(np.float32)
    labels = random.integers(0, 4, 28).astype(np.int32)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

    def data(seed: int) -> tf.data.Dataset:
        examples = tf.data.Dataset.from_tensor_slices((images, labels))
        return (examples.shuffle(28, seed=seed) if seed else examples).batch(8).with_options(options)

    network = small_nets.small_network((14, 3, 16, 1, 3, True))
    nets = folder / f"nets{os.getpid()}"
    nets.mkdir(parents=True)
    net = sys.argv[3] if len(sys.argv) > 3 else "digits"
    settings = Settings(
        optimizer="muon" if net == "cifar" else "sgd",
        num_epochs=3, learning_rate=1e-3, schedule="cosine", warmup_steps=3, nesterov=True,
        label_smoothing=0.1, ema=0.9, seed=7,
    )  # fmt: skip

    def make(done: int = 0) -> training.Trainer:
        tf.keras.utils.set_random_seed(7 + done)
        with strategy.scope():
            options = {"caps": small_nets.some_caps(network, net), "train_caps": True, "clip_bias": True}
            options |= {"filter_step": "learned", "train_steps": True} if net == "cifar" else {}
            model = small_nets.build(network, nets, net, classes=4, quant_w=True, quant_act=True, **options)
            teacher = small_nets.build(network, nets, net, classes=4)
        if done:  # the teacher is the one that the first run had
            for variable, value in zip(teacher.variables, taught, strict=True):
                variable.assign(value)
        else:
            taught.extend(variable.numpy() for variable in teacher.variables)
        return training.Trainer(model, settings, strategy=strategy, steps=12, done=done, teacher=teacher)

    taught: list[np.ndarray] = []
    start = Metadata(net, "2801", Stage.QUANT_ACT, 0, 0, 4, 14)
    trainer = make()
    result = training.fit(trainer, data, data(0), folder / "ck", start)
    losses = [[loss, figures.loss, figures.accuracy, figures.count] for loss, figures in result.history]
    found = {"losses": losses, "replicas": strategy.num_replicas_in_sync, "step": result.metadata.step}
    if net == "cifar":
        import small_training

        prefix = result.prefix.replace("epoch-3", "epoch-2")
        second = make(done=8)
        metadata = small_training.restore(second, prefix)
        second.settings = replace(settings, num_epochs=1)
        training.fit(second, data, data(0), folder / "again", metadata)
        found["resumed"] = max(
            float(np.abs(value - again[name]).max())
            for expected, again in (
                (trainer.arrays(), second.arrays()),
                (trainer.optimizer_arrays(), second.optimizer_arrays()),
            )
            for name, value in expected.items()
        )
        trainer.train_epoch(data(1), 1)  # an evaluation would have copied what the average holds
        copies = [[copy.numpy() for copy in v.value.values] for v in trainer.variables.values()]
        found["apart"] = max(float(np.ptp(np.stack(arrays), axis=0).max()) for arrays in copies)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
