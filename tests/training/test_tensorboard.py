"""Event files, read back with TensorFlow's own protocol buffers."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf

from gti.errors import UsageError
from gti.training import tensorboard


def events(folder):
    (path,) = folder.glob("events.out.tfevents.*")
    records = tf.data.TFRecordDataset(os.fsencode(path)).as_numpy_iterator()
    return [tf.compat.v1.Event.FromString(record) for record in records]


@pytest.mark.parametrize("name", ["new", "caf\udce9"])  # the second is not UTF-8
def test_scalars_and_histograms(tmp_path, name):
    array = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    tensorboard.write(tmp_path / name, 7, {"loss": 0.25}, {"digits/conv1_1/filters": array, "empty": np.zeros(0)})
    header, event = events(tmp_path / name)
    assert header.file_version == "brain.Event:2"
    assert event.step == 7
    scalar, histogram = event.summary.value
    assert (scalar.tag, scalar.simple_value) == ("loss", 0.25)
    assert histogram.tag == "digits/conv1_1/filters"
    assert histogram.histo.num == array.size == sum(histogram.histo.bucket)
    assert (histogram.histo.min, histogram.histo.max) == (array.min(), array.max())
    assert histogram.histo.sum == pytest.approx(array.astype(float).sum())
    assert list(histogram.histo.bucket_limit) == sorted(histogram.histo.bucket_limit)
    below = sum(histogram.histo.bucket[:20])
    assert below == np.count_nonzero(array.astype(float) < histogram.histo.bucket_limit[19])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="written"):
        tensorboard.write(tmp_path / "file" / "logs", 1, {"loss": 1.0})
