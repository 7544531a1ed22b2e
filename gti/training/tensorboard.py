"""Event files that TensorBoard reads, written without it: scalars and histograms."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from gti.errors import UsageError

HISTOGRAM_BUCKETS = 40


def write(
    folder: str | os.PathLike[str],
    step: int,
    scalars: Mapping[str, float],
    histograms: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write one event file of `step` into `folder`: numbers by tag, and arrays by tag as histograms of their values.

    Raises UsageError where the folder cannot be written.
    """
    value = tf.compat.v1.Summary.Value
    values = [value(tag=tag, simple_value=number) for tag, number in scalars.items()]
    values += [value(tag=tag, histo=_histogram(array)) for tag, array in (histograms or {}).items() if array.size]
    summary = tf.compat.v1.Summary(value=values)
    now = time.time()
    path = Path(folder) / f"events.out.tfevents.{now:017.6f}.{step:06d}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tf.io.TFRecordWriter(os.fsencode(path)) as writer:
            writer.write(tf.compat.v1.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            writer.write(tf.compat.v1.Event(wall_time=now, step=step, summary=summary).SerializeToString())
    except (OSError, tf.errors.OpError) as problem:
        raise UsageError(str(folder), f"cannot be written ({problem})", fix="pass another --log_dir") from None


def _histogram(array: np.ndarray) -> tf.compat.v1.HistogramProto:
    values = array.astype(np.float64).ravel()
    counts, edges = np.histogram(values, HISTOGRAM_BUCKETS)
    return tf.compat.v1.HistogramProto(
        min=values.min(),
        max=values.max(),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )
