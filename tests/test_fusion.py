"""Fusion: the same results before and after, nothing happens twice, and bad variables are all named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_nets import NETWORKS, TWO_MAJORS, assign, build, images, randomise, small_network, some_caps
from sweeps import first_quick

from gti import fusion
from gti.errors import QuantizationError

F = np.float32


def arrays_of(network: object, caps: tuple[float, ...] = (2.0, 8.0, 5.0), batch_norm: bool = False) -> dict:
    random = np.random.default_rng(0)
    result = {}
    for cap, c in zip(caps, network.convolutions, strict=True):
        result[f"net/{c.name}/filters"] = random.normal(size=(3, 3, c.input_channels, c.output_channels)).astype(F)
        result[f"net/{c.name}/biases"] = random.normal(size=c.output_channels).astype(F)
        result[f"net/{c.name}/relu_cap"] = F(cap)
        if batch_norm:
            for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                result[f"net/{c.name}/batch_normalization/{part}"] = random.uniform(0.5, 2, c.output_channels).astype(F)
    result["net/fc10/weights"] = np.ones((32 * 7 * 7, 4), F)
    result["net/fc9/weights"] = np.full((32 * 7 * 7, 32 * 7 * 7), 2, F)
    result["net/fc9/biases"] = np.ones(4, F)
    return result


def test_scales_of_the_guide() -> None:
    # Caps 2, 8, 5: W1 * 31/2; W2 * 2/8; W3 * 8/5; B * 31/cap; host weights * 5/31.
    network = small_network(*TWO_MAJORS)
    arrays = arrays_of(network)
    fused = fusion.fuse(network, arrays, net="net")
    for name, filters, biases in (
        ("conv1_1", 31 / 2, 31 / 2),
        ("conv1_2", 2 / 8, 31 / 8),
        ("conv2_1", 8 / 5, 31 / 5),
    ):
        np.testing.assert_allclose(fused[f"net/{name}/filters"], arrays[f"net/{name}/filters"] * filters, rtol=3e-7)
        np.testing.assert_allclose(fused[f"net/{name}/biases"], arrays[f"net/{name}/biases"] * biases, rtol=3e-7)
        assert fused[f"net/{name}/relu_cap"] == 31
    np.testing.assert_allclose(fused["net/fc9/weights"], 2 * 5 / 31, rtol=3e-7)
    assert (fused["net/fc10/weights"] == 1).all()  # fc9 comes before fc10
    assert (fused["net/fc9/biases"] == 1).all()


def test_ten_bits_end_at_1023_32nds() -> None:
    network = small_network(*TWO_MAJORS, activation_bit_mode=1)
    arrays = arrays_of(network)
    fused = fusion.fuse(network, arrays, net="net")
    assert fused["net/conv2_1/relu_cap"] == 31.96875
    # W3 * (8 / 31) * (31.96875 / 5), B3 * 31.96875 / 5, host * 5 / 31.96875.
    gain = 8 / 31 * 31.96875 / 5
    np.testing.assert_allclose(fused["net/conv2_1/filters"], arrays["net/conv2_1/filters"] * gain, rtol=3e-7)
    np.testing.assert_allclose(fused["net/conv2_1/biases"], arrays["net/conv2_1/biases"] * 31.96875 / 5, rtol=3e-7)
    np.testing.assert_allclose(fused["net/fc9/weights"], 2 * 5 / 31.96875, rtol=3e-7)


@pytest.mark.parametrize("ten_bits", [0, 1])
def test_fusing_a_fused_network_changes_nothing(ten_bits: int) -> None:
    network = small_network(*TWO_MAJORS, activation_bit_mode=ten_bits)
    once = fusion.fuse(network, arrays_of(network, batch_norm=True), net="net")
    twice = fusion.fuse(network, once, net="net")
    assert sorted(once) == sorted(twice)
    assert not any("batch_normalization" in name for name in once)
    for name, array in once.items():
        np.testing.assert_array_equal(array, twice[name])


def test_batch_norm_by_hand() -> None:
    # sqrt(3.999 + 0.001) = 2, so f = 3 / 2 and b = 7 + 1.5 * (1 - 5) = 1.
    scope = "net/conv1_1"
    arrays = {
        f"{scope}/filters": np.ones((3, 3, 1, 1), F),
        f"{scope}/biases": np.ones(1, F),
        f"{scope}/batch_normalization/gamma": np.full(1, 3.0),
        f"{scope}/batch_normalization/beta": np.full(1, 7.0),
        f"{scope}/batch_normalization/moving_mean": np.full(1, 5.0),
        f"{scope}/batch_normalization/moving_variance": np.full(1, 3.999),
    }
    filters, biases = fusion.fold_batch_norm(arrays, scope)
    np.testing.assert_allclose(filters, 1.5)
    np.testing.assert_allclose(biases, [1.0])


@pytest.mark.parametrize("gamma", [0.0, -2.0, 1e-42, 3.0])
@pytest.mark.parametrize("variance", [0.0, 1e-42, 4.0])
def test_batch_norm_of_any_values_is_the_formula(gamma: float, variance: float) -> None:
    # In float64: f = W gamma / sqrt(variance + 0.001), b = beta + (B - mean) gamma / sqrt(variance + 0.001).
    scope = "net/conv1_1"
    values = {"gamma": gamma, "beta": 0.5, "moving_mean": -1.5, "moving_variance": variance}
    arrays = {f"{scope}/batch_normalization/{name}": np.full(2, value, F) for name, value in values.items()}
    arrays |= {
        f"{scope}/filters": np.linspace(-1, 1, 18, dtype=F).reshape(3, 3, 1, 2),
        f"{scope}/biases": np.ones(2, F),
    }
    filters, biases = fusion.fold_batch_norm(arrays, scope)
    gain = float(F(gamma)) / np.sqrt(float(F(variance)) + 0.001)
    expected = arrays[f"{scope}/filters"].astype(float) * gain
    np.testing.assert_allclose(filters, expected, rtol=1e-6, atol=1e-44)
    np.testing.assert_allclose(biases, np.full(2, 0.5 + 2.5 * gain), rtol=1e-6)


@pytest.mark.parametrize("net", ["digits", "cifar"], ids=["plain", "batch norm"])
@pytest.mark.parametrize("name", first_quick(2, ["mixed bits", "ten bits", "zero fill", "top-left pooling"]))
def test_logits_are_equal_before_and_after(net: str, name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    x = images(network, 4, seed=7)
    plain = build(network, tmp_path, net)
    arrays = randomise(plain, seed=1) | {k: F(v) for k, v in some_caps(network, net).items()}
    fused = build(network, tmp_path, net, fuse=True)
    assign(fused, fusion.fuse(network, arrays, net=net))
    before, after = plain(x).numpy(), fused(x).numpy()
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_learned_steps_grow_as_their_filters() -> None:
    network = small_network(*TWO_MAJORS)
    arrays = arrays_of(network, batch_norm=True)
    arrays["net/conv1_2/batch_normalization/gamma"] *= -1  # a step stays a size
    steps = {c.name: (c.input_channels, c.output_channels) for c in network.convolutions}
    given = {f"net/{name}/filter_steps": np.full(shape, 0.25, F) for name, shape in steps.items()}
    fused = fusion.fuse(network, arrays | given, net="net")
    for name in steps:
        grown = np.abs(fused[f"net/{name}/filters"] / arrays[f"net/{name}/filters"])[1, 1]
        np.testing.assert_allclose(fused[f"net/{name}/filter_steps"], 0.25 * grown, rtol=1e-5)


def test_missing_biases_are_zeros() -> None:
    network = small_network(*TWO_MAJORS)
    arrays = arrays_of(network)
    del arrays["net/conv1_1/biases"]
    assert (fusion.fuse(network, arrays, net="net")["net/conv1_1/biases"] == 0).all()


def test_every_bad_variable_is_named() -> None:
    network = small_network(*TWO_MAJORS)
    arrays = arrays_of(network, batch_norm=True)
    del arrays["net/conv1_1/relu_cap"]
    arrays["net/conv1_2/relu_cap"] = F(0)
    arrays["net/conv1_2/filters"] = np.zeros((3, 3, 16, 32), F)
    arrays["net/conv2_1/biases"] = np.full(32, np.nan, F)
    arrays["net/conv2_1/batch_normalization/moving_variance"] = np.full(32, -1, F)
    with pytest.raises(QuantizationError) as caught:
        fusion.fuse(network, arrays, net="net")
    message = str(caught.value)
    for words in (
        "net/conv1_1/relu_cap is missing",
        "net/conv1_2/relu_cap is 0",
        "net/conv1_2/filters has the shape [3, 3, 16, 32] instead of [3, 3, 16, 16]",
        "net/conv2_1/biases holds values that are not numbers",
        "moving_variance holds negative values",
    ):
        assert words in message


def test_no_host_layer_fits() -> None:
    network = small_network(*TWO_MAJORS)
    arrays = {k: v for k, v in arrays_of(network).items() if "/fc" not in k}
    assert "net/conv1_1/filters" in fusion.fuse_chip(network, arrays, net="net")
    with pytest.raises(QuantizationError, match="result"):
        fusion.fuse(network, arrays, net="net")


def test_only_the_first_host_layer_that_takes_the_result_gets_the_gain() -> None:
    network = small_network(*TWO_MAJORS)
    channels, height, width = network.output_shape
    arrays = {k: v for k, v in arrays_of(network).items() if "/fc" not in k}
    arrays["net/conv2_1/relu_cap"] = F(15.5)  # gain 15.5 / 31
    host = {
        "net/aux/weights": np.ones((channels + 1, 4), F),  # before in the alphabet, and does not fit
        "net/bn/weights": np.ones((channels, 4, 1), F),  # fits in length only
        "net/fc9/weights": np.ones((channels * height * width, channels), F),
        "net/fc9/biases": np.ones(channels, F),
        "net/fc10/weights": np.ones((channels, 4), F),  # would fit, and follows fc9 in natural order
        "other/fc1/weights": np.ones((channels, 4), F),
    }
    fused = fusion.fuse(network, arrays | host, net="net")
    assert {name: float(fused[name].flat[0]) for name in host if name in fused} == {
        "net/aux/weights": 1.0,
        "net/bn/weights": 1.0,
        "net/fc9/weights": 0.5,
        "net/fc9/biases": 1.0,
        "net/fc10/weights": 1.0,
    }
    named = fusion.fuse(network, arrays | host, net="net", host_layer="fc10")
    assert (named["net/fc9/weights"].flat[0], named["net/fc10/weights"].flat[0]) == (1.0, 0.5)
