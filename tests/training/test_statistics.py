"""Batch-norm statistics over many batches, against NumPy over all values together."""

from __future__ import annotations

import numpy as np
import pytest
import small_nets
import small_training
import tensorflow as tf

from gti.errors import DataError
from gti.stage import Stage
from gti.training import restore
from gti.training.metadata import Metadata
from gti.training.statistics import reestimate

NETWORK = small_nets.small_network((14, 3, 16, 2, 3, True))
OPTIONS = {"quant_w": True, "quant_act": True, "caps": small_nets.some_caps(NETWORK, "cifar")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = small_nets.build(NETWORK, tmp_path_factory.mktemp("nets"), "cifar", classes=4, **OPTIONS)
    small_nets.randomise(model, seed=5)
    return model


def data(count: int = 24, batch: int = 8) -> tf.data.Dataset:
    images, labels = small_training.examples(count)
    images[::3] *= np.float32(0.25)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch)


def test_the_first_layer_has_the_statistics_of_all_values(model):
    found = reestimate(model, data())
    layer = model.get_layer("conv1_1")
    filters, biases = layer.effective_weights()
    images = np.concatenate([batch.numpy() for batch, _ in data()])
    sums = (tf.nn.conv2d(images, filters, 1, "SAME") + biases).numpy().astype(np.float64).reshape(-1, 16)
    scope = "cifar/conv1_1/batch_normalization"
    np.testing.assert_allclose(found[f"{scope}/moving_mean"], sums.mean(axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[f"{scope}/moving_variance"], sums.var(axis=0), rtol=1e-3)
    assert len(found) == 4


def test_later_layers_see_batches_normalised_by_themselves(model):
    # One batch: its own statistics in every layer, by hand through both.
    (images, _), *_ = data(8)
    x = images.numpy()
    found = reestimate(model, data(8))
    for layer in (model.get_layer("conv1_1"), model.get_layer("conv1_2")):
        filters, biases = layer.effective_weights()
        x = (tf.nn.conv2d(x, filters, 1, "SAME") + biases).numpy()
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        norm = layer.batch_normalization
        scope = f"cifar/{layer.name}/batch_normalization"
        np.testing.assert_allclose(found[f"{scope}/moving_mean"], mean, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(found[f"{scope}/moving_variance"], variance, rtol=2e-3)
        x = (x - mean) / np.sqrt(variance + 1e-3) * norm.gamma.numpy() + norm.beta.numpy()
        step = layer.initial_cap / 31
        x = (np.floor(np.clip(x, 0, layer.initial_cap) / step + 0.5) * step).astype(np.float32)


def test_the_model_comes_back_as_it_was_and_a_small_last_batch_is_left_out(model):
    before = small_nets.values(model)
    found, whole = reestimate(model, data(20)), reestimate(model, data(20).take(2))
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value)
    for name, value in small_nets.values(model).items():
        np.testing.assert_array_equal(value, before[name])
    assert model.get_layer("conv1_1").batch_normalization.momentum == 0.9
    with pytest.raises(DataError):
        reestimate(model, data().take(0))
    for name, value in small_nets.values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_net_without_batch_norm_has_none(tmp_path):
    assert reestimate(small_training.make_model(tmp_path, seed=1), data()) == {}


def test_a_checkpoint_on_its_way_into_fused_gets_them(model, tmp_path):
    small_nets.write_json(NETWORK, tmp_path, "cifar")
    arrays = small_nets.values(model)
    metadata = Metadata("cifar", "2801", Stage.QUANT_ACT, 1, 1, 4, 14)
    source = restore.Source("a", arrays, metadata)
    found = restore.with_statistics(source, "cifar", NETWORK, 4, data(), nets_dir=tmp_path)
    expected = reestimate(model, data())
    for name, value in found.arrays.items():
        np.testing.assert_array_equal(value, expected.get(name, arrays[name]))
    fused = restore.Source("b", {"cifar/conv1_1/filters": arrays["cifar/conv1_1/filters"]}, metadata)
    assert restore.with_statistics(fused, "cifar", NETWORK, 4, data(), nets_dir=tmp_path) is fused
