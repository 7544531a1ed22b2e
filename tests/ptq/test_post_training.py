"""A network quantized without training: nearer to float than rounding, and exactly what conversion writes."""

from __future__ import annotations

import numpy as np
import pytest
import small_nets

from gti import converter
from gti.chip.emulator.emulator import Emulator
from gti.errors import QuantizationError
from gti.ptq import float_maps, post_training
from gti.ptq import layer as layer_module
from gti.stage import MSE


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Small networks need few positions and no long search."""
    monkeypatch.setattr(post_training, "POSITIONS", 3000)
    monkeypatch.setattr(layer_module, "MOST_WALKS", 3)


def photographs(count: int, size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return smooth random pictures, uint8 [N, size, size, C]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 7, size // 7, channels))
    large = coarse.repeat(7, axis=1).repeat(7, axis=2).astype(float)
    blurred = sum(np.roll(large, (y, x), axis=(1, 2)) for y in range(-2, 3) for x in range(-2, 3)) / 25
    return np.rint(blurred).astype(np.uint8)


def float_arrays(network, net: str = "digits", seed: int = 0, **norm) -> dict[str, np.ndarray]:
    """Return random variables whose activations neither vanish nor explode."""
    random = np.random.default_rng(seed)
    arrays = {}
    for convolution in network.convolutions:
        scope, outputs = f"{net}/{convolution.name}", convolution.output_channels
        gain = np.sqrt(2 / 9 / convolution.input_channels) / (1 if convolution.index else 16)
        shape = (3, 3, convolution.input_channels, outputs)
        arrays[f"{scope}/filters"] = (random.normal(size=shape) * gain).astype(np.float32)
        arrays[f"{scope}/biases"] = (random.normal(size=outputs) * 0.2).astype(np.float32)
        if norm:
            for part, (low, high) in norm.items():
                name = f"{scope}/batch_normalization/{part}"
                arrays[name] = random.uniform(low, high, outputs).astype(np.float32)
    channels, height, width = network.output_shape
    arrays[f"{net}/fc/weights"] = random.normal(size=(channels * height * width, 4)).astype(np.float32)
    arrays[f"{net}/fc/biases"] = np.zeros(4, np.float32)
    return arrays


def quantized(network, arrays, images, **options):
    floats = post_training.float_filters(network, arrays, net="digits")
    return post_training.quantize(network, floats, images, range(len(images) - 8, len(images)), **options)


NORM = {"gamma": (0.5, 1.5), "beta": (-0.3, 0.3), "moving_mean": (-0.5, 0.5), "moving_variance": (0.5, 2.0)}
NETWORKS = {
    name: small_nets.NETWORKS[name] for name in ("mixed bits", "top-left pooling", "ten bits", "repeat", "zero fill")
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_found_is_what_conversion_writes(name: str) -> None:
    network = NETWORKS[name]
    norm = NORM if name == "mixed bits" else {}
    arrays = float_arrays(network, **norm)
    images = photographs(24, network.input_shape[0])
    result = quantized(network, arrays, images)
    fused = result.arrays(network, arrays, net="digits")
    conversion = converter.convert(network, fused, net="digits", filter_step=MSE)
    for layer, written in zip(result.layers, conversion.weights, strict=True):
        np.testing.assert_array_equal(layer.weights.filters, written.filters)
        np.testing.assert_array_equal(layer.weights.biases, written.biases)
        assert layer.weights.shift == written.shift
    # The emulator's result in float units is near the float network's, and the figures are those of these very codes.
    last = network.convolutions[-1]
    codes = Emulator(conversion.network, conversion.weights).output(images[-8:])
    maps = float_result(network, arrays, images[-8:])
    found = (
        codes.transpose(0, 2, 3, 1)
        / (32 if last.ten_bit else 1)
        * result.layers[-1].caps
        / (31.96875 if last.ten_bit else 31)
    )
    cosines = [float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))) for a, b in zip(found, maps, strict=True)]
    np.testing.assert_allclose(result.images, cosines, rtol=1e-5)
    assert np.mean(cosines) > 0.9
    # Host weights take chip units.
    gain = result.layers[-1].caps[0] / (31.96875 if last.ten_bit else 31)
    np.testing.assert_allclose(fused["digits/fc/weights"], arrays["digits/fc/weights"] * gain, rtol=1e-6)


def float_result(network, arrays, images: np.ndarray) -> np.ndarray:
    """Return the float network's last map in NumPy, float64 [N,H,W,C], from 5-bit codes."""
    x = np.clip(((images.astype(int) >> 2) + 1) >> 1, 0, 31).astype(float)
    for convolution in network.convolutions:
        scope = f"digits/{convolution.name}"
        filters, biases = (arrays[f"{scope}/{part}"].astype(float) for part in ("filters", "biases"))
        norm = f"{scope}/batch_normalization"
        if f"{norm}/gamma" in arrays:
            factor = arrays[f"{norm}/gamma"] / np.sqrt(arrays[f"{norm}/moving_variance"] + 1e-3)
            filters = filters * factor
            biases = arrays[f"{norm}/beta"] + factor * (biases - arrays[f"{norm}/moving_mean"])
        if convolution.upsampled:
            mode = network.layers[convolution.major - 1].upsample_mode
            doubled = x.repeat(2, axis=1).repeat(2, axis=2)
            if mode == "zero":
                doubled[:, 1::2] = doubled[:, :, 1::2] = 0
            x = doubled
        size = x.shape[1]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = biases + sum(
            padded[:, dy : dy + size, dx : dx + size] @ filters[dy, dx] for dy in range(3) for dx in range(3)
        )
        x = np.maximum(x, 0)
        if convolution.pooled:
            windows = x.reshape(len(x), size // 2, 2, size // 2, 2, -1)
            x = windows[:, :, 0, :, 0] if network.sampling_method else windows.max(axis=(2, 4))
    return x


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "least"), [(3, 0.995), (1, 0.95)])
def test_compensation_beats_rounding(bits: int, least: float) -> None:
    network = small_nets.small_network((28, 3, 16, 2, bits, True), (14, 16, 32, 2, bits, True))
    arrays, images = float_arrays(network), photographs(32, 28)
    rounded = quantized(network, arrays, images, compensate=False)
    result = quantized(network, arrays, images)
    noise = [1 - np.mean(some.images) for some in (rounded, result)]
    assert noise[1] < 0.3 * noise[0]
    assert np.mean(result.images) > least
    for layer in result.layers:
        assert layer.agreements["corrected"].decibels > layer.agreements["plain"].decibels
        assert layer.agreements["refined"].decibels >= layer.agreements["compensated"].decibels - 0.1


@pytest.mark.slow
def test_read_layers_have_one_scale_and_the_same_seed_gives_the_same() -> None:
    network = small_nets.small_network((14, 3, 16, 2, 3, False), (14, 16, 32, 1, 1, True))
    arrays, images = float_arrays(network), photographs(16, 14)
    result = quantized(network, arrays, images, read=("conv1_2",), dampings=(0.03,))
    assert [len(np.unique(layer.caps)) > 1 for layer in result.layers] == [True, False, False]
    again = quantized(network, arrays, images, read=("conv1_2",), dampings=(0.03,))
    assert again.images == result.images


def test_caps_leave_the_least_error() -> None:
    random = np.random.default_rng(0)
    maps = np.maximum(random.normal(size=(4, 20, 20, 3)), 0).astype(np.float32) * np.array([1, 3, 0.001], np.float32)
    maps[..., 1][0, 0, 0] = 14  # one value far above the others: clipped
    caps = float_maps.best_caps(maps, 31, one=False)

    def error(cap: float, channel: int) -> float:
        values = maps[..., channel].astype(float)
        return float(np.sum((np.clip(np.floor(values / cap * 31 + 0.5), 0, 31) * cap / 31 - values) ** 2))

    for channel in (0, 1):
        best = min(error(cap, channel) for cap in np.linspace(0.2, 1, 200) * maps[..., channel].max())
        assert error(caps[channel], channel) <= 1.1 * best + 1e-9
    assert caps[2] == pytest.approx(caps.max() / 16)  # hardly ever on: pictures not seen may need more
    one = float_maps.best_caps(maps, 31, one=True)
    assert len(np.unique(one)) == 1
    assert float_maps.best_caps(np.zeros((1, 4, 4, 2), np.float32), 31, one=True).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.update({"digits/conv1_1/filters": np.full((3, 3, 3, 16), np.nan, np.float32)}), "not numbers"),
        (lambda a: a.pop("digits/conv2_1/filters"), "missing"),
        (lambda a: a.update({"digits/conv1_1/filters": np.zeros((3, 3, 4, 16), np.float32)}), "shape"),
    ],
)
def test_weights_that_cannot_serve_are_named(change, word: str) -> None:
    network = small_nets.small_network((14, 3, 16, 1, 3, False), (14, 16, 32, 1, 1, True))
    arrays = float_arrays(network)
    change(arrays)
    with pytest.raises(QuantizationError, match=word):
        post_training.float_filters(network, arrays, net="digits")


def test_images_are_limited_by_memory() -> None:
    vgg = small_nets.small_network((224, 3, 64, 2, 3, True))
    # conv1_2: 64 channels in, and a quarter of as many values out, five bytes each
    assert post_training.most_images(vgg) == (4 << 30) // (5 * (224 * 224 * 64 + 112 * 112 * 64))
