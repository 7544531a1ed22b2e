"""The nets build from their JSON, name their variables as the guide does, and are exact when fused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_nets import NETWORKS, assign, build, images, randomise, small_network, some_caps, write_json
from sweeps import first_quick

from gti import caps, files, fusion, nets, quantize
from gti.chip import spec
from gti.chip.network.types import Network
from gti.errors import FormatError, GtiError, NetworkError, QuantizationError, UsageError
from gti.layers import ChipFlatten, HostDense
from gti.model import base, exact

F = np.float32


def int64_reference(network: Network, model: Any, codes: np.ndarray) -> list[np.ndarray]:
    """Section 6 of docs/numerics.md in int64: codes of every sublayer before pooling, [N, H, W, C]."""
    x = codes.astype(np.int64)
    result = []
    for convolution, layer in zip(network.convolutions, base.chip_layers(model), strict=True):
        if convolution.upsampled:
            x = x.repeat(2, 1).repeat(2, 2)
            if network.layers[convolution.major - 1].upsample_mode == "zero":
                x[:, 1::2] = 0
                x[:, :, 1::2] = 0
        weights, biases, shift = quantize.integer_filters(layer.filters, layer.biases, convolution.coef_bits)
        weights, shift = weights.numpy().astype(np.int64), int(shift)
        n = x.shape[1]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        total = np.zeros((*x.shape[:3], convolution.output_channels), np.int64) + biases.numpy().astype(np.int64)
        for dy in range(3):
            for dx in range(3):
                total += padded[:, dy : dy + n, dx : dx + n] @ weights[dy, dx]
        factor, top = (32, 1023) if convolution.ten_bit else (1, 31)
        x = np.clip((total * factor + ((1 << shift) >> 1)) >> shift, 0, top)
        result.append(x)
        if convolution.pooled:
            tiles = x.reshape(len(x), n // 2, 2, n // 2, 2, -1)
            x = tiles[:, :, 0, :, 0] if network.sampling_method == 1 else tiles.max((2, 4))
    return result


def fused_model(network: Network, folder: Path, seed: int, scale: float = 1.0) -> Any:
    trained = build(network, folder, quant_w=True, quant_act=True, caps=some_caps(network))
    model = build(network, folder, quant_w=True, quant_act=True, fuse=True)
    assign(model, fusion.fuse(network, randomise(trained, seed, scale), net="digits"))
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", first_quick(1, [1, 2]))
def test_fused_model_is_the_chip_code_for_code(name: str, seed: int, tmp_path: Path) -> None:
    network = NETWORKS[name]
    model = fused_model(network, tmp_path, seed)
    x = images(network, 3, seed)
    expected = int64_reference(network, model, x)
    got = exact.exact_codes(model, x)
    assert [g.dtype for g in got] == [np.uint16 if c.ten_bit else np.uint8 for c in network.convolutions]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.unique(one).size > 8  # a comparison of empty maps would prove nothing
    # The graph that trains is as exact as long as float32 holds the sums, which it does for networks this small.
    logits = exact.ExactModel(model)(x).numpy()
    np.testing.assert_array_equal(model(x, training=False).numpy(), logits)
    last = expected[-1] / (32 if network.convolutions[-1].ten_bit else 1)
    step = 1 / 32 if network.convolutions[-1].ten_bit else 1
    trained = model.get_layer(network.convolutions[-1].name).output
    np.testing.assert_array_equal(keras.Model(model.input, trained)(x).numpy() / step, last / step)


@pytest.mark.parametrize("coef_bits", [1, 3])
def test_exact_beyond_float32(coef_bits: int, tmp_path: Path) -> None:
    # One-sided weights near the largest integers on saturated inputs: sums pass 2**24, the bound of float32. The
    # odd integers make a lost low bit visible at shift 0 (weights up to 2047 leave no room for a shift).
    network = small_network((14, 256, 16, 1, coef_bits, False))
    model = build(network, tmp_path, quant_w=True, quant_act=True, fuse=True)
    random = np.random.default_rng(0)
    sign = np.where(np.arange(256) % 2 == 0, 1, -1)[:, None]
    filters = (sign * random.choice([1201, 1403, 2047], (3, 3, 256, 16))).astype(F)
    filters[1, 1, :, :] = (sign * 2047)[:, :]
    layer = base.chip_layers(model)[0]
    layer.filters.assign(filters)
    layer.biases.assign(np.arange(-8, 8) * 2 + 1)
    integers, biases, shift = quantize.integer_filters(layer.filters, layer.biases, coef_bits)
    assert int(shift) == 0
    assert not exact.fits_float32(integers.numpy(), biases.numpy())
    x = np.full((2, *network.input_shape), 31, F)
    x[1] = random.integers(28, 32, x.shape[1:])
    got = exact.exact_codes(model, x)[0]
    np.testing.assert_array_equal(got, int64_reference(network, model, x)[0])
    positive = np.maximum(integers.numpy(), 0).sum((0, 1, 2)).max()
    assert positive * 31 > 2**24


@pytest.mark.parametrize(("excess", "fits"), [(0, True), (1, False)])
def test_the_bound_itself(excess: int, fits: bool) -> None:
    # 31 * 541200 + 16 = 2**24 exactly; the negative side does not add to the positive one.
    filters = np.zeros((3, 3, 300, 2), F)
    filters[0, 0, :, 0] = 1804
    filters[1, 1, :, 0] = -1804
    biases = np.array([2**24 - 31 * 300 * 1804 + excess, 0])
    assert 31 * 300 * 1804 + biases[0] == 2**24 + excess
    assert exact.fits_float32(filters, biases) is fits


def test_only_fused_models_are_exact(tmp_path: Path) -> None:
    network = NETWORKS["mixed bits"]
    model = build(network, tmp_path, quant_w=True, quant_act=True, caps=some_caps(network))
    with pytest.raises(UsageError, match="fused"):
        exact.ExactModel(model)


def test_a_missing_json_of_a_net_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"2801_digits_dat\.json: .*--nets_dir"):
        nets.load("digits", nets_dir=tmp_path)


def test_chip_and_host_parts_make_the_whole(tmp_path: Path) -> None:
    network = NETWORKS["mixed bits"]
    model = build(network, tmp_path)
    randomise(model, seed=4)
    x = images(network, 2, 4)
    middle = keras.Model(model.input, base.chip_output(model))(x)
    assert tuple(middle.shape) == (2, 7, 7, 32)
    np.testing.assert_array_equal(base.host_model(model)(middle).numpy(), model(x).numpy())


@pytest.fixture
def light_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fully connected layers of VGG16 take half a gigabyte and say nothing about the chip part.
    from gti.model import vgg16

    monkeypatch.setattr(
        vgg16, "host_layers", lambda x, *, classes: HostDense(classes, name="fc8")(ChipFlatten(name="flatten")(x))
    )


@pytest.mark.slow
@pytest.mark.parametrize("net", nets.own_nets())
@pytest.mark.usefixtures("light_host")
def test_every_net_builds_in_every_stage(net: str) -> None:
    network = nets.load(net)
    batch_norm = base.net_module(net).BATCH_NORM
    for stage in ({}, {"quant_w": True}, {"quant_w": True, "quant_act": True}, {"fuse": True}):
        caps = some_caps(network, net) if "quant_act" in stage else None
        model = base.build(net, classes=5, caps=caps, **stage)
        assert (model.name, model.net, model.output.shape) == (net, net, (None, 5))
        assert model.network == network
        assert [layer.name for layer in base.chip_layers(model)] == [c.name for c in network.convolutions]
        channels, height, width = network.output_shape
        assert base.chip_output(model).shape == (None, height, width, channels)
        names = set(base.named_variables(model))
        for convolution in network.convolutions:
            scope = f"{net}/{convolution.name}"
            assert f"{scope}/filters" in names
            assert (f"{scope}/relu_cap" in names) == ("quant_act" in stage)
            assert (f"{scope}/batch_normalization/gamma" in names) == (batch_norm and "fuse" not in stage)
    assert (height, width) == (7, 7)
    assert {"digits", "cifar", "cifar10", "vgg16", "vgg_bn", "tenbit"} <= set(nets.own_nets())


@pytest.mark.usefixtures("light_host")
def test_variable_names_of_the_guide() -> None:
    caps = {f"vgg16/conv{m}_{s}/relu_cap": 1.0 for m, n in enumerate((2, 2, 3, 3, 3), 1) for s in range(1, n + 1)}
    model = base.build("vgg16", classes=3, quant_act=True, caps=caps)
    names = set(base.named_variables(model))
    assert names == {n.replace("relu_cap", part) for n in caps for part in ("filters", "biases", "relu_cap")} | {
        "vgg16/fc8/weights",
        "vgg16/fc8/biases",
    }
    assert base.last_relu_cap_name(model) == "vgg16/conv5_3/relu_cap"  # user guide section 7.1.7
    # Table 1 of the guide: 3-bit major layers 1-3, 1-bit 4-5.
    assert [layer.coef_bits for layer in model.network.layers] == [3, 3, 3, 1, 1]


@pytest.mark.slow
def test_real_vgg16_host_part() -> None:
    from gti.model import vgg16

    head = keras.Model(x := keras.Input((7, 7, 8)), vgg16.host_layers(x, classes=6))
    shapes = {v.path: tuple(v.shape) for v in head.trainable_variables if v.path.endswith("weights")}
    assert shapes == {"fc6/weights": (392, 4096), "fc7/weights": (4096, 4096), "fc8/weights": (4096, 6)}


def test_vgg16_at_448_says_why_not() -> None:
    with pytest.raises(NetworkError) as caught:
        nets.load("vgg16", image_size=448)
    assert "net vgg16 at 448x448" in str(caught.value)
    assert "memory" in str(caught.value)
    assert caught.value.violations


def test_a_net_may_be_scaled() -> None:
    # cifar at 56 ends in 14x14, which the memory holds.
    network = nets.load("cifar", image_size=56)
    assert [layer.image_size for layer in network.layers] == [56, 28]
    assert base.build("cifar", classes=3, image_size=56).input_shape == (None, 56, 56, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"net": "alexnet"}, UsageError, "vgg_bn"),
        ({"net": "../digits"}, UsageError, "net"),
        ({"net": "digits", "image_size": 32}, UsageError, "image"),
        ({"net": "digits", "classes": 0}, UsageError, "classes"),
        ({"net": "digits", "ten_bit_act": True}, UsageError, "ActivationBitMode"),
        (
            {"net": "digits", "quant_act": True, "caps": {}},
            QuantizationError,
            "major 1 / sub 1 .conv1_1., major 1 / sub",
        ),
        ({"net": "digits", "nets_dir": "nowhere"}, GtiError, "2801_digits_dat.json"),
    ],
)
def test_impossible_builds(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        base.build(arguments.pop("net"), **({"classes": 3} | arguments))


@pytest.mark.parametrize("key", ["one_coef", "resnet_shortcut_start_layers"])
def test_unknown_arithmetic_is_refused(key: str, tmp_path: Path) -> None:
    write_json(NETWORKS["no pooling"], tmp_path)
    path = tmp_path / "2801_digits_dat.json"
    value = files.read_json(path)
    value["layer"][0][key] = [1, 0] if key == "one_coef" else [1]
    files.write_json(path, value)
    with pytest.raises(NetworkError, match=f"{key} in major 1"):
        base.build("digits", classes=3, nets_dir=tmp_path)


def test_ten_bit_flag_fits_a_ten_bit_net() -> None:
    model = base.build("tenbit", classes=3, ten_bit_act=True, fuse=True)
    last = base.chip_layers(model)[-1]
    assert (last.max_code, last.initial_cap) == (1023, 31.96875)
    assert all(layer.max_code == spec.MAX_CODE for layer in base.chip_layers(model)[:-1])


def test_settings_file_gives_the_caps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nets.load("digits")
    given = some_caps(network)
    files.write_json(tmp_path / "digits_settings.json", {"relu_caps": given, "percentile": 99.99})
    monkeypatch.setattr(caps, "SETTINGS_DIR", tmp_path)
    (tmp_path / "digits.py").touch()
    model = base.build("digits", classes=3, quant_w=True, quant_act=True)
    assert {n: float(v.numpy()) for n, v in base.named_variables(model).items() if n.endswith("relu_cap")} == given


@pytest.mark.parametrize(
    "value", [[], {}, {"relu_caps": {"a": 0}}, {"relu_caps": {"a": "1"}}, {"relu_caps": {"a": True}}]
)
def test_bad_settings_files(value: object, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    files.write_json(path, value)
    with pytest.raises(FormatError, match=r"settings\.json"):
        caps.load(path)
    with pytest.raises(FormatError, match="no such file"):
        caps.load(tmp_path / "none.json")


def test_start_values_keep_images_in_range() -> None:
    # Activations of an untrained net on noise stay within an order of magnitude of the codes, in every layer.
    keras.utils.set_random_seed(0)
    model = base.build("digits", classes=11)
    x = images(model.network, 4, 0)
    for layer in base.chip_layers(model):
        y = keras.Model(model.input, layer.output)(x).numpy()
        assert 0.5 < y.std() < 20


@pytest.mark.parametrize("coef_bits", [1, 3])
def test_accelerators_round_float64_sums(coef_bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Their convolutions may transform weights: the float64 path has to give the same codes as the CPU's.
    network = small_network((14, 64, 32, 1, coef_bits, True))
    model = build(network, tmp_path, quant_w=True, quant_act=True, fuse=True)
    randomise(model, seed=2, scale=300.0)
    x = images(network, 2, 2)
    expected = int64_reference(network, model, x)
    monkeypatch.setattr(exact.tf.config, "list_logical_devices", lambda kind: [kind])
    np.testing.assert_array_equal(exact.exact_codes(model, x)[0], expected[0])
