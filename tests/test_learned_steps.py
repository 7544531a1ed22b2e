"""Learned steps of 3-bit filters: values and LSQ's gradients against NumPy, and their way to the chip's integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_nets
import tensorflow as tf

from gti import converter, fusion, param_parser, quantize
from gti.errors import UsageError
from gti.model import base
from gti.model.exact import ExactModel
from gti.stage import LEARNED, MSE, Stage
from gti.training import checkpoint, restore
from gti.training.metadata import Metadata

NETWORK = small_nets.small_network((14, 3, 16, 2, 3, False), (14, 16, 16, 1, 1, True))
QUANTIZED = {"quant_w": True, "quant_act": True, "caps": small_nets.some_caps(NETWORK, "cifar")}
SHIFT = 8


def kernels(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    filters = random.normal(size=(3, 3, 4, 5)).astype(np.float32)
    steps = random.uniform(0.1, 0.6, (4, 5)).astype(np.float32)
    return filters, steps, random.normal(size=(3, 3, 4, 5)).astype(np.float32)


def stated(filters: np.ndarray, steps: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    # Integers, and the steps that they have: round, 1..511; the level that is nearest.
    integer = np.clip(np.floor(steps.astype(np.float64) * 2**shift + 0.5), 1, 511)
    levels = np.array([0, 1, 2, 4])
    distance = np.abs(np.abs(filters)[..., None] - levels * (integer * 2.0**-shift)[..., None])
    return np.sign(filters) * levels[distance.argmin(axis=-1)] * integer, integer * 2.0**-shift


@pytest.mark.parametrize("shift", [3, SHIFT, 12])
def test_values_are_the_nearest_levels_of_the_integer_step(shift):
    filters, steps, _ = kernels()
    found = quantize.quantize_filters_to_steps(filters, steps, tf.constant(shift))
    np.testing.assert_array_equal(found, stated(filters, steps, shift)[0] * 2.0**-shift)


def test_gradients_are_those_of_lsq():
    # Esser et al. 2020, equation 3, for levels 0, 1, 2, 4: r = |w| / s; d/ds = sign(w) * (c - r), 4 from r = 4 on.
    filters, steps, upstream = kernels()
    filters[0, 0] *= 5  # some beyond the largest level
    with tf.GradientTape() as tape:
        w, s = tf.constant(filters), tf.constant(steps)
        tape.watch([w, s])
        out = quantize.quantize_filters_to_steps(w, s, tf.constant(SHIFT))
    to_filters, to_steps = tape.gradient(out, [w, s], output_gradients=upstream)
    integers, real = stated(filters, steps, SHIFT)
    ratio = np.abs(filters) / real
    assert (ratio >= 4).any()
    levels = np.abs(integers) * 2.0**-SHIFT / real
    along = np.sign(filters) * np.where(ratio < 4, levels - ratio, 4)
    np.testing.assert_allclose(to_filters, upstream * (ratio < 4))
    np.testing.assert_allclose(to_steps, (upstream * along).sum(axis=(0, 1)) / 6, rtol=1e-4, atol=1e-5)  # sqrt(9 * 4)


def test_learning_begins_where_mse_is():
    filters, _, _ = kernels()
    steps = quantize.starting_steps(filters)
    learned = quantize.integer_filters(filters, None, 3, LEARNED, steps)
    least = quantize.integer_filters(filters, None, 3, MSE)
    np.testing.assert_array_equal(learned[0], least[0])
    assert np.all(quantize.starting_steps(np.zeros_like(filters)).numpy() > 0)


def learned_model(folder, **more):
    model = small_nets.build(NETWORK, folder, "cifar", filter_step=LEARNED, train_steps=True, **{**QUANTIZED, **more})
    small_nets.randomise(model, seed=3)
    random = np.random.default_rng(1)
    for layer in base.chip_layers(model):
        if layer.filter_steps is not None:
            layer.filter_steps.assign(random.uniform(0.02, 0.2, layer.filter_steps.shape))
    return model


def test_only_three_bit_layers_have_steps_and_they_train(tmp_path):
    model = learned_model(tmp_path)
    trained = {variable.path for variable in model.trainable_variables}
    assert {path for path in trained if "steps" in path} == {"conv1_1/filter_steps", "conv1_2/filter_steps"}
    fixed = small_nets.build(NETWORK, tmp_path, "cifar", filter_step=LEARNED, **QUANTIZED)
    assert not [v.path for v in fixed.trainable_variables if "steps" in v.path]
    constraint = model.get_layer("conv1_1").filter_steps.constraint
    assert np.all(np.asarray(constraint(tf.constant([-1.0, 0.5]))) == np.float32([1e-6, 0.5]))


def test_steps_go_through_fusion_to_the_integers_of_the_chip(tmp_path):
    small_nets.write_json(NETWORK, tmp_path, "cifar")
    arrays = small_nets.values(learned_model(tmp_path))
    metadata = Metadata("cifar", "2801", Stage.QUANT_ACT, 1, 1, 5, 14, filter_step=LEARNED)
    checkpoint.save(tmp_path / "ck", arrays, metadata)
    source = restore.open_checkpoint(tmp_path / "ck", net="cifar")
    assert restore.filter_step(None, source) == LEARNED
    fused = restore.build_model("cifar", NETWORK, Stage.FUSED, source, 5, nets_dir=tmp_path)
    scope = "cifar/conv1_1"
    factor = np.abs(fusion.batch_norm_factor(arrays, scope)) * 31 / arrays[f"{scope}/relu_cap"]
    steps = fused.get_layer("conv1_1").filter_steps.numpy()
    np.testing.assert_allclose(steps, arrays[f"{scope}/filter_steps"] * factor, rtol=1e-6)
    # One owner: what is evaluated, converted and computed exactly are the same integers.
    converted = converter.convert(NETWORK, arrays, net="cifar", filter_step=LEARNED)
    images = small_nets.images(NETWORK, 2, seed=0)
    exact = ExactModel(fused)
    for layer, sublayer, weights in zip(base.chip_layers(fused), exact._sublayers, converted.weights, strict=True):
        in_chip_order = layer.effective_weights()[0].numpy().transpose(3, 2, 0, 1) * 2.0**weights.shift
        np.testing.assert_array_equal(weights.filters, in_chip_order)
        np.testing.assert_array_equal(sum(sublayer.parts), weights.filters.transpose(2, 3, 1, 0))
    assert exact.codes(images)[-1].shape == (2, 14, 14, 16)
    by_mse = converter.convert(NETWORK, arrays, net="cifar", filter_step=MSE)
    assert np.any(by_mse.weights[0].filters != converted.weights[0].filters)
    np.testing.assert_array_equal(by_mse.weights[2].filters, converted.weights[2].filters)  # 1 bit


def test_a_checkpoint_of_another_rule_gets_steps_and_gives_them_up(tmp_path):
    small_nets.write_json(NETWORK, tmp_path, "cifar")
    arrays = small_nets.values(learned_model(tmp_path))
    plain = {name: array for name, array in arrays.items() if not name.endswith("filter_steps")}
    metadata = Metadata("cifar", "2801", Stage.QUANT_ACT, 1, 1, 5, 14, filter_step=MSE)
    source = restore.Source("a", plain, metadata)
    model = restore.build_model("cifar", NETWORK, Stage.QUANT_ACT, source, 5, nets_dir=tmp_path, filter_step=LEARNED)
    found = model.get_layer("conv1_2").filter_steps.numpy()
    np.testing.assert_array_equal(found, quantize.starting_steps(arrays["cifar/conv1_2/filters"]))
    learned = restore.Source("b", arrays, replace(metadata, filter_step=LEARNED))
    model = restore.build_model("cifar", NETWORK, Stage.QUANT_ACT, learned, 5, nets_dir=tmp_path, filter_step=MSE)
    assert model.get_layer("conv1_2").filter_steps is None
    assert restore.change_of_filter_step(LEARNED, source) == ""
    assert "filter_step" in restore.change_of_filter_step(MSE, learned)


def test_the_flag_is_a_rule_of_its_own():
    def parsed(*flags):
        return param_parser.parse(
            param_parser.train_parser(), ["--net", "a", "--chip", "2801", "--train_steps", *flags]
        )

    assert parsed("--quant_w").filter_step == LEARNED
    for flags in ((), ("--quant_w", "--filter_step", "mse")):
        with pytest.raises(UsageError, match="--train_steps"):
            parsed(*flags)
