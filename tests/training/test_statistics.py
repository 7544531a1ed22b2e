"""Batch-norm statistics over many batches, against NumPy over all values together."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import small_nets
import small_training
import tensorflow as tf
from sweeps import first_quick

from gti import quantize
from gti.errors import DataError
from gti.layers import ChipConv2D
from gti.model.base import chip_layers, named_variables
from gti.stage import Stage
from gti.training import restore
from gti.training.metadata import Metadata
from gti.training.statistics import correct_biases, reestimate

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


def quant_act(folder, bits: int, net: str = "cifar", seed: int = 5):
    network = small_nets.small_network((14, 3, 16, 2, bits, True))
    caps = small_nets.some_caps(network, net)
    model = small_nets.build(network, folder, net, classes=4, quant_w=True, quant_act=True, caps=caps)
    arrays = small_nets.randomise(model, seed=seed)
    metadata = Metadata(net, "2801", Stage.QUANT_ACT, 1, 1, 4, 14)
    return network, model, restore.Source("a", arrays, metadata)


def mean_sums(model, layer, images) -> np.ndarray:
    inputs = keras.Model(model.input, layer.input)(images).numpy()
    filters, biases = (value.numpy().astype(np.float64) for value in layer.effective_weights())
    padded = np.pad(inputs.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    sums = sum(
        padded[:, y : y + 14, x : x + 14] @ filters[y, x] for y in range(3) for x in range(3)
    )  # [N, 14, 14, out]
    sums = sums + biases
    norm = layer.batch_normalization
    if norm is not None:
        gamma, beta, mean, variance = (np.asarray(v, np.float64) for v in norm.variables)
        sums = (sums - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    return sums.mean(axis=(0, 1, 2))


@pytest.mark.parametrize("bits", first_quick(1, [3, 1]))
def test_corrected_biases_give_the_means_of_the_trained_network(tmp_path, bits):
    network, trained, source = quant_act(tmp_path, bits)
    fused = restore.build_model("cifar", network, Stage.FUSED, source, 4, nets_dir=tmp_path)
    images = np.concatenate([batch.numpy() for batch, _ in data()])
    shifts = [layer.largest_bias() for layer in chip_layers(fused)]
    found = correct_biases(fused, trained, data())
    assert shifts == [layer.largest_bias() for layer in chip_layers(fused)]
    for layer, own in zip(chip_layers(fused), chip_layers(trained), strict=True):
        np.testing.assert_array_equal(found[f"cifar/{layer.name}/biases"], layer.biases.numpy())
        wanted = mean_sums(trained, own, images) * 31 / own.initial_cap
        step = layer.largest_bias() / quantize.bias_limit(bits)  # what a bias is rounded to
        inside = np.abs(layer.biases.numpy()) < layer.largest_bias()
        assert inside.any()
        np.testing.assert_allclose(mean_sums(fused, layer, images)[inside], wanted[inside], atol=1.01 * step + 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["cifar", "digits"], ids=["batch norm", "plain"])
def test_the_way_into_fused(tmp_path, net):
    network, model, source = quant_act(tmp_path, 1, net)
    found, biases = restore.into_fused(source, net, network, 4, data(), nets_dir=tmp_path)
    expected = reestimate(model, data())
    assert bool(expected) == (net == "cifar")
    for name, value in found.arrays.items():
        np.testing.assert_array_equal(value, expected.get(name, source.arrays[name]))
    assert set(biases) == {f"{net}/conv1_1/biases", f"{net}/conv1_2/biases"}
    fused = restore.build_model(net, network, Stage.FUSED, found, 4, nets_dir=tmp_path)
    assert any(np.any(named_variables(fused)[name].numpy() != value) for name, value in biases.items())


def test_no_bias_may_cost_its_layer_the_shift(tmp_path, monkeypatch):
    network, trained, source = quant_act(tmp_path, 1)
    fused = restore.build_model("cifar", network, Stage.FUSED, source, 4, nets_dir=tmp_path)
    for layer in chip_layers(fused):
        limit = layer.largest_bias()
        shift = int(quantize.layer_shift(layer.filters, layer.biases, 1))
        biases = layer.biases.numpy()
        for bias, kept in ((limit, True), (np.nextafter(np.float32(limit), np.float32(np.inf)), False)):
            changed = np.concatenate([[bias], biases[1:]]).astype(np.float32)
            bias_shift = int(quantize.range_shift(changed, quantize.bias_limit(1)))
            assert (bias_shift >= shift) == kept
    monkeypatch.setattr(ChipConv2D, "largest_bias", lambda layer: 0.25)
    found = correct_biases(fused, trained, data())
    assert max(np.abs(biases).max() for biases in found.values()) == 0.25
