"""Which checkpoint is the best one, and figures of a set whose last batch leaves replicas without images."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from places import ROOT

from gti.stage import Stage
from gti.training.evaluation import Evaluation
from gti.training.loop import is_better
from gti.training.metadata import Metadata


@pytest.mark.parametrize(
    ("best", "found", "better"),
    [
        ((None, None), (0.1, 9.0), True),
        ((0.5, 1.0), (0.6, 2.0), True),
        ((0.5, 1.0), (0.4, 0.1), False),
        ((0.5, 1.0), (0.5, 0.9), True),
        ((0.5, 1.0), (0.5, 1.0), False),
        ((0.5, None), (0.5, 0.1), False),  # a checkpoint that does not tell its loss stays
    ],
)
def test_the_best_has_the_lower_loss_among_equals(best, found, better):
    metadata = Metadata("digits", "2801", Stage.FLOAT, 1, 1, 4, 28, best_accuracy=best[0], best_loss=best[1])
    assert is_better(Evaluation(found[0], 1.0, found[1], 10), metadata) is better
    assert Metadata.from_json(metadata.to_json().encode(), "p") == metadata


WORKER = """
import json, sys, tempfile
from pathlib import Path
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import small_nets
from gti.training.loop import Settings, Trainer
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
random = np.random.default_rng(0)
images, labels = random.integers(0, 32, (13, 14, 14, 3)).astype(np.float32), random.integers(0, 4, 13).astype(np.int32)
with strategy.scope():
    network = small_nets.small_network((14, 3, 16, 1, 3, True))
    model = small_nets.build(network, Path(tempfile.mkdtemp()), net="vgg_bn", classes=4, quant_w=True)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4).with_options(options)
figures = Trainer(model, Settings(), strategy=strategy).evaluate(data)
hits = float((model.predict(images, verbose=0).argmax(axis=1) == labels).mean())
print(json.dumps([figures.count, figures.accuracy, hits]))
"""


@pytest.mark.slow
def test_evaluation_with_a_replica_without_images():
    # Of no images the convolution gives a map of the wrong channels, at which batch norm stops.
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "support")}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, accuracy, hits = json.loads(done.stdout.splitlines()[-1])
    assert count == 13
    assert accuracy == pytest.approx(hits)
