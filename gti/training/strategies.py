"""Where training runs: one device, several GPUs, several machines; and what makes a process repeatable."""

from __future__ import annotations

import json
import os

import keras
import tensorflow as tf

from gti.errors import UsageError


def make_deterministic(seed: int) -> None:
    """Make this process repeatable: `seed` for initial weights, and operations with one result on the same device."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def make_strategy(num_gpus: int = 0) -> tf.distribute.Strategy:
    """Return the strategy for TF_CONFIG (several machines), for `num_gpus` GPUs, or for one device (0).

    Must come before any other TensorFlow operation where TF_CONFIG is set. Raises UsageError for more GPUs than there
    are and for a TF_CONFIG that is no cluster.
    """
    available = tf.config.list_physical_devices("GPU")
    if num_gpus > len(available):
        raise UsageError(
            "--num_gpus",
            "there are fewer GPUs",
            expected=f"at most {len(available)}",
            received=num_gpus,
            fix="leave it out to train on one device",
        )
    text = os.environ.get("TF_CONFIG", "")
    if text:
        try:
            workers = json.loads(text)["cluster"]["worker"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                "TF_CONFIG",
                "describes no cluster",
                expected='{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
                received=text[:120],
            ) from None
        if len(workers) > 1:
            return tf.distribute.MultiWorkerMirroredStrategy()
    if num_gpus:
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(num_gpus)])
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process writes checkpoints and logs: of several workers, the first alone."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or (resolver.task_type == "worker" and resolver.task_id == 0)
