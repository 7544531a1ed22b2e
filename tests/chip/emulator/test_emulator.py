"""The emulator against golden digests, against sums written out by hand, and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import places
import pytest
from emulated import images, layer, lively_weights
from golden import generators

from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.json_form import from_json
from gti.chip.network.types import ConvolutionWeights, Network
from gti.chip.wire.registers import MODE_NAMES
from gti.errors import GtiError, ImageError, NetworkError, UsageError

# Digests of an independent 64-bit implementation: sha256 of each sublayer's codes [C, H, W] before pooling and of the
# output; weights and image from generator B.
GOLDEN = json.loads((places.GOLDEN / "emulator_digests.json").read_text())


def _quick(case: dict) -> bool:
    """Whether the reference engine needs well under a second for the case."""
    convolutions = from_json(case["config"], "golden").convolutions
    return sum(9 * c.size**2 * c.input_channels * c.output_channels for c in convolutions) < 50e6


@pytest.mark.parametrize(
    ("engine", "case"),
    [("numba", case) for case in GOLDEN] + [("numpy", case) for case in GOLDEN if _quick(case)],
    ids=lambda value: value if isinstance(value, str) else str(value["seed"]),
)
def test_golden_networks(engine: str, case: dict) -> None:
    network = from_json(case["config"], "golden")
    weights = [ConvolutionWeights(*w) for w in generators.lively_weights(case["config"], case["seed"])]
    emulator = Emulator(network, weights, engine=engine)
    image = generators.image(case["config"], case["seed"])
    assert [generators.digest(codes) for codes in emulator.read_out(image, "learn")] == case["sublayers"]
    output = emulator.output(image[None])
    assert list(output.shape[1:]) == case["output_shape"]
    assert generators.digest(output) == case["output"]


def test_five_bit_input() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    expected = [min(((x >> 2) + 1) >> 1, 31) for x in range(256)]  # the user guide's formula in unbounded integers
    assert arithmetic.five_bit(pixels).tolist() == expected
    assert arithmetic.five_bit(pixels).dtype == np.uint8
    assert (expected[0], expected[3], expected[4], expected[255]) == (0, 0, 1, 31)


@pytest.mark.parametrize(
    ("accumulator", "shift", "ten_bit", "code"),
    [  # by hand: half up, clipped
        (0, 0, False, 0),
        (-1, 0, False, 0),
        (7, 0, False, 7),
        (32, 0, False, 31),
        (3, 1, False, 2),  # 1.5 -> 2
        (1, 2, False, 0),  # 0.25
        (2, 2, False, 1),  # 0.5 -> 1
        (-2, 2, False, 0),  # -0.5 -> -1 or 0, both clipped
        (31 * 4096 + 2047, 12, False, 31),
        (30 * 4096 + 2048, 12, False, 31),  # 30.5 -> 31
        (30 * 4096 + 2047, 12, False, 30),
        (16383, 15, False, 0),
        (16384, 15, False, 1),
        (3, 0, True, 96),  # 3 * 32
        (32, 0, True, 1023),  # 1024 is clipped
        (10**6, 0, True, 1023),
        (5, 3, True, 20),  # 5 * 32 / 8
        (1, 6, True, 1),  # 0.5 -> 1
        (1, 7, True, 0),
        (1023 * 128, 12, True, 1023),
        (1023 * 128 - 65, 12, True, 1022),
        (-5, 3, True, 0),
    ],
)
def test_requantization(accumulator: int, shift: int, ten_bit: bool, code: int) -> None:
    numbers = arithmetic.requantization(shift, ten_bit)
    assert arithmetic.requantize(np.array([accumulator], np.int64), *numbers).tolist() == [code]


@pytest.mark.parametrize("ten_bit", [False, True])
@pytest.mark.parametrize("shift", range(16))
def test_requantization_equals_exact_fractions(shift: int, ten_bit: bool) -> None:
    near = [k * 2**shift // (64 if ten_bit else 2) + d for k in range(-4, 70) for d in (-1, 0, 1)]
    expected = []
    for accumulator in near:
        # floor(x + 1/2) of x = acc * factor / 2**shift, in integers
        rounded = (2 * accumulator * (32 if ten_bit else 1) + 2**shift) // 2 ** (shift + 1)
        expected.append(min(max(rounded, 0), 1023 if ten_bit else 31))
    got = arithmetic.requantize(np.array(near, np.int64), *arithmetic.requantization(shift, ten_bit))
    assert got.tolist() == expected


def test_pooling_and_upsampling() -> None:
    codes = np.array([[1, 5, 0, 0], [7, 2, 3, 9]], np.uint8).reshape(1, 2, 4, 1)
    assert arithmetic.pool(codes, 0).ravel().tolist() == [7, 9]
    assert arithmetic.pool(codes, 1).ravel().tolist() == [1, 0]
    small = np.array([[1, 2]], np.uint8).reshape(1, 1, 2, 1)
    assert arithmetic.upsample(small, "repeat").reshape(2, 4).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert arithmetic.upsample(small, "zero").reshape(2, 4).tolist() == [[1, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_convolution_written_out(engine: str) -> None:
    """Every output code of a 4x4 image with 2 channels as a sum over its taps in Python integers."""
    network = Network((layer(4, 2, 16, (2,)),))
    random = np.random.RandomState(3)
    filters = random.randint(-4, 5, size=(16, 2, 3, 3)).astype(np.int16)
    biases = random.randint(-40, 40, size=16).astype(np.int32)
    image = images(network, 1, 4)[0]
    (got,) = Emulator(network, [ConvolutionWeights(filters, biases, 2)], engine=engine).read_out(image, "learn")
    codes = [[[min(((int(v) >> 2) + 1) >> 1, 31) for v in pixel] for pixel in row] for row in image]
    for o in range(16):
        for y in range(4):
            for x in range(4):
                total = int(biases[o])
                for i in range(2):
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < 4 and 0 <= x + dx < 4:
                                total += int(filters[o, i, dy + 1, dx + 1]) * codes[y + dy][x + dx][i]
                assert got[o, y, x] == min(max((total + 2) >> 2, 0), 31)


def three_layers(**last) -> Network:
    return Network(
        (
            layer(56, 3, 16, (9, 8), pooling=True),
            layer(28, 16, 32, (9,), pooling=True, coef_bits=1),
            layer(14, 32, 16, (8, 9), **{"pooling": True, **last}),
        )
    )


@pytest.mark.parametrize(
    ("mode", "maps"),
    [  # names of the sublayers that the read-out delivers, in order
        ("learn", ["conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv3_2"]),
        ("single", ["conv3_2"]),
        ("sublast", ["conv1_2", "conv2_1", "conv3_2"]),
        ("lastmajor", ["conv3_1", "conv3_2"]),
    ],
)
def test_read_out_modes(mode: str, maps: list[str]) -> None:
    network = three_layers()
    emulator = Emulator(network, lively_weights(network, 1))
    image = images(network, 1, 2)
    by_name = {conv.name: codes[0] for conv, codes in emulator.sublayers(image)}
    got = emulator.read_out(image[0], mode)
    assert len(got) == len(maps)
    for codes, name in zip(got, maps, strict=True):
        np.testing.assert_array_equal(codes, by_name[name])
    assert by_name["conv1_2"].shape == (16, 56, 56)  # before pooling
    (pooled,) = emulator.read_out(image[0], "fc")
    assert pooled.shape == (16, 7, 7)
    last = by_name["conv3_2"]
    np.testing.assert_array_equal(pooled, last.reshape(16, 7, 2, 7, 2).max(axis=(2, 4)))


def test_fc_read_out_needs_7x7() -> None:
    network = three_layers(pooling=False)
    emulator = Emulator(network, lively_weights(network, 1))
    with pytest.raises(GtiError, match=r"7x7.*14x14"):
        emulator.read_out(images(network, 1, 2)[0], "fc")


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_batch_equals_its_images(engine: str) -> None:
    network = three_layers()
    emulator = Emulator(network, lively_weights(network, 5), engine=engine)
    batch = images(network, 5, 6)
    outputs = emulator.output(batch)
    every = list(emulator.sublayers(batch))
    for n in range(5):
        np.testing.assert_array_equal(outputs[n], emulator.output(batch[n : n + 1])[0])
        for (_, together), alone in zip(every, emulator.read_out(batch[n], "learn"), strict=True):
            np.testing.assert_array_equal(together[n], alone)


def test_large_batches_are_computed_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    network = three_layers()
    weights = lively_weights(network, 5)
    batch = images(network, 7, 6)
    expected = Emulator(network, weights).output(batch)
    monkeypatch.setattr("gti.chip.emulator.emulator._GROUP_BYTES", 3 * 56 * 56 * 16)  # three images at a time
    np.testing.assert_array_equal(Emulator(network, weights).output(batch), expected)


def test_images_are_checked() -> None:
    network = three_layers()
    emulator = Emulator(network, lively_weights(network, 1), engine="numpy")
    good = images(network, 1, 1)
    with pytest.raises(ImageError, match="floating-point"):
        emulator.output(good.astype(np.float32))
    with pytest.raises(ImageError, match="planes first"):
        emulator.output(good.transpose(0, 3, 1, 2))
    with pytest.raises(ImageError, match=r"expected \[H, W, C\]"):
        emulator.read_out(good, "learn")
    with pytest.raises(UsageError, match=", ".join(MODE_NAMES)):
        emulator.read_out(good[0], "all")


def test_arguments_are_checked() -> None:
    network = three_layers()
    weights = lively_weights(network, 1)
    with pytest.raises(UsageError, match=r"engine: .*numba.*received tf"):
        Emulator(network, weights, engine="tf")
    with pytest.raises(UsageError, match=r"threads: must be positive"):
        Emulator(network, weights, threads=0)
    with pytest.raises(UsageError, match=r"upsample_fill: is unknown; expected repeat or zero"):
        Emulator(network, weights, upsample_fill="bilinear")


def test_unknown_arithmetic_and_wrong_weights_are_refused_together() -> None:
    network = three_layers(shortcuts=(1,))
    network = replace(network, layers=(replace(network.layers[0], one_coef=(0, 1)), *network.layers[1:]))
    weights = lively_weights(network, 1)
    weights[2] = replace(weights[2], shift=3)
    weights[3] = replace(weights[3], filters=weights[3].filters[:, :-1])
    weights[4] = replace(weights[4], biases=weights[4].biases.astype(np.int64))
    with pytest.raises(NetworkError) as caught:
        Emulator(network, weights)
    assert [violation.split(";")[0].split(".")[0] for violation in caught.value.violations] == [
        "major 3: has shortcuts, whose arithmetic on the chip is unknown",
        "major 1 / sub 2 (conv1_2): is one_coef and has weights beside the centre, whose effect on the chip is unknown",
        "major 2 / sub 1 (conv2_1): has weights of another shift than the network's scaling says",
        "major 3 / sub 1 (conv3_1): has filters of the wrong shape or type",
        "major 3 / sub 2 (conv3_2): has biases of the wrong shape or type",
    ]
    with pytest.raises(NetworkError, match=r"expected 5 sublayers .* received 4"):
        Emulator(network, weights[:4])


def test_layers_that_do_not_follow_each_other_are_refused() -> None:
    network = Network((layer(14, 3, 16, (8,)), layer(28, 32, 16, (8,), upsample_enable=True, upsample_mode="cubic")))
    with pytest.raises(NetworkError) as caught:
        Emulator(network, lively_weights(network, 1))
    assert "expected image_size 14, input_channels 16, received 28, 32" in str(caught.value)
    assert "received cubic" in str(caught.value)
    odd = Network((layer(7, 3, 16, (8,), pooling=True),))
    with pytest.raises(NetworkError, match="odd"):
        Emulator(odd, lively_weights(odd, 1))


def test_one_coef_with_centre_weights_is_an_ordinary_convolution() -> None:
    network = Network((layer(14, 16, 16, (6,), one_coef=(1,)),))
    weights = lively_weights(network, 1)[0]
    filters = np.zeros_like(weights.filters)
    filters[:, :, 1, 1] = weights.filters[:, :, 1, 1]
    weights = replace(weights, filters=filters)
    plain = replace(network, layers=(replace(network.layers[0], one_coef=()),))
    image = images(network, 1, 1)
    np.testing.assert_array_equal(
        Emulator(network, [weights]).output(image), Emulator(plain, [weights], engine="numpy").output(image)
    )


def test_importing_the_emulator_is_light() -> None:
    code = (
        "import sys, gti.chip.emulator.emulator\n"
        "print([m for m in ('numba', 'tensorflow', 'llvmlite') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
