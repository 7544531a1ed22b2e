"""The fast engine against the reference engine: every class of shapes, and the bounds of its integers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from emulated import images, layer, lively_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from gti.chip.emulator import engine_numba, kernels_numba
from gti.chip.emulator.emulator import Emulator
from gti.chip.emulator.engine_numpy import convolve
from gti.chip.network.types import ConvolutionWeights, Network

INT32_MAX = 2**31 - 1
# Largest sum of one-sided weights for which the fast path is taken: 4 * 31 * sum <= 2**31 - 1.
LARGEST_SUM = INT32_MAX // (4 * 31)


def assert_engines_equal(network: Network, weights: list[ConvolutionWeights], batch: np.ndarray, **options) -> None:
    reference = Emulator(network, weights, engine="numpy", upsample_fill=options.get("upsample_fill"))
    fast = Emulator(network, weights, engine="numba", **options)
    for (conv, got), (_, expected) in zip(fast.sublayers(batch), reference.sublayers(batch), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected, err_msg=conv.path)
    output = fast.output(batch)
    np.testing.assert_array_equal(output, reference.output(batch))
    assert output.dtype == (np.uint16 if network.activation_bit_mode else np.uint8)


@pytest.fixture(params=[True, False], ids=["64-byte vectors", "smaller vectors"])
def vector_width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the register tiles of AVX-512 processors and with those of all others."""
    monkeypatch.setattr(engine_numba, "_vectors_of_64_bytes", lambda: request.param)


@pytest.mark.usefixtures("vector_width")
@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 8, 12, 16, 32, 64])
@pytest.mark.parametrize("outputs", [16, 32, 64, 128])
def test_channels(inputs: int, outputs: int) -> None:
    network = Network((layer(14, inputs, outputs, (8, 9), coef_bits=1 if inputs % 3 else 3, pooling=True),))
    assert_engines_equal(network, lively_weights(network, inputs), images(network, 2, outputs))


@pytest.mark.usefixtures("vector_width")
@pytest.mark.parametrize(("size", "count"), [(2, 7), (4, 1), (6, 3), (14, 1), (14, 11), (28, 3), (56, 1), (112, 1)])
@pytest.mark.parametrize("sampling_method", [0, 1])
def test_sizes(size: int, count: int, sampling_method: int) -> None:
    """Tiles fill register tiles and steps completely, in part, and over the border of images."""
    network = Network((layer(size, 3, 16, (8, 9), pooling=True),), sampling_method=sampling_method)
    assert_engines_equal(network, lively_weights(network, size), images(network, count, size))


def test_largest_size() -> None:
    network = Network((layer(448, 1, 16, (9,), pooling=True),))
    assert_engines_equal(network, lively_weights(network, 1), images(network, 1, 1))


@pytest.mark.parametrize("shift", range(16))
@pytest.mark.parametrize("ten_bit", [0, 1])
def test_shifts(shift: int, ten_bit: int) -> None:
    network = Network((layer(14, 16, 16, (shift,), pooling=bool(shift % 2)),), activation_bit_mode=ten_bit)
    assert_engines_equal(network, lively_weights(network, shift), images(network, 2, shift))


@pytest.mark.parametrize("upsample_fill", [None, "repeat", "zero"])
@pytest.mark.parametrize("upsample_mode", ["repeat", "zero"])
def test_upsampling(upsample_fill: str | None, upsample_mode: str) -> None:
    network = Network(
        (
            layer(14, 3, 32, (9,)),
            layer(14, 32, 16, (8, 9), upsample_enable=True, upsample_mode=upsample_mode, pooling=True, coef_bits=1),
            layer(14, 16, 16, (8,), upsample_enable=True, upsample_mode="zero"),
        )
    )
    assert_engines_equal(network, lively_weights(network, 3), images(network, 2, 3), upsample_fill=upsample_fill)


def test_the_fill_matters() -> None:
    network = Network((layer(14, 3, 16, (9,)), layer(14, 16, 16, (8,), upsample_enable=True)))
    weights, batch = lively_weights(network, 3), images(network, 1, 3)
    repeated, zeros = (Emulator(network, weights, upsample_fill=fill).output(batch) for fill in ("repeat", "zero"))
    assert np.any(repeated != zeros)
    np.testing.assert_array_equal(Emulator(network, weights).output(batch), repeated)


def test_odd_sizes_take_the_wide_path() -> None:
    network = Network((layer(7, 3, 16, (8, 8)),))
    assert_engines_equal(network, lively_weights(network, 1), images(network, 2, 1))


@pytest.fixture
def always_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads share even the small sublayers of these tests."""
    monkeypatch.setattr(engine_numba, "_WORTH_SHARING", 0)


@pytest.mark.usefixtures("always_share")
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_thread_counts(threads: int) -> None:
    network = Network((layer(28, 3, 64, (8,), pooling=True), layer(14, 64, 128, (9, 9), coef_bits=1)))
    assert_engines_equal(network, lively_weights(network, 8), images(network, 3, 8), threads=threads)


@pytest.mark.usefixtures("always_share")
def test_one_emulator_in_several_threads() -> None:
    network = Network((layer(28, 3, 32, (8,), pooling=True), layer(14, 32, 32, (9,))))
    emulator = Emulator(network, lively_weights(network, 8), engine="numba", threads=2)
    batches = [images(network, 1 + n % 3, n) for n in range(12)]
    expected = [emulator.output(batch) for batch in batches]
    results: dict[int, np.ndarray] = {}

    def work(n: int) -> None:
        for _ in range(5):
            results[n] = emulator.output(batches[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, want in enumerate(expected):
        np.testing.assert_array_equal(results[n], want)


def test_codes_of_sublayers_stay_valid_and_cannot_be_damaged() -> None:
    network = Network((layer(14, 3, 16, (8, 8)),))
    emulator = Emulator(network, lively_weights(network, 8), engine="numba")
    (_, first), (_, _) = emulator.sublayers(images(network, 1, 1))
    (_, again), (_, _) = emulator.sublayers(images(network, 1, 1))
    list(emulator.sublayers(images(network, 1, 2)))
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0


def one_sided(total: int, inputs: int) -> np.ndarray:
    """Return filters int16 [16, inputs, 3, 3], none negative, whose sum is `total` for output 0 and 0 for the rest."""
    filters = np.zeros((16, inputs, 3, 3), np.int16)
    filters[0] = total // (9 * inputs)
    filters[0].reshape(-1)[: total % (9 * inputs)] += 1
    assert filters[0].sum(dtype=np.int64) == total
    return filters


def saturated(network: Network) -> np.ndarray:
    return np.full((1, *network.input_shape), 255, np.uint8)  # all activations 31


@pytest.mark.usefixtures("vector_width")
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("excess", "fast"), [(0, True), (1, False), (10**6, False)])
def test_transformed_sums_at_the_bound(excess: int, fast: bool, sign: int) -> None:
    """Four times the sum of products reaches 2**31 - 64 with all activations 31; one more would wrap."""
    network = Network((layer(4, 1024, 16, (15,)),))
    filters = sign * one_sided(LARGEST_SUM + excess, 1024)
    weights = [ConvolutionWeights(filters, np.zeros(16, np.int32), 15)]
    assert Emulator(network, weights, engine="numba")._engine._layers[0].fast == fast
    assert_engines_equal(network, weights, saturated(network))
    interior = Emulator(network, weights, engine="numba").read_out(saturated(network)[0], "learn")[0][0, 1:3, 1:3]
    assert np.all(interior == (31 if sign > 0 else 0))  # a wrapped sum would have the other sign


def test_beyond_the_bound_32_bits_would_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is tight: forced onto the fast path, the first network beyond it gives wrong codes."""
    monkeypatch.setattr(engine_numba, "_fits", lambda layer, half: True)
    network = Network((layer(4, 1024, 16, (15,)),))
    weights = [ConvolutionWeights(one_sided(LARGEST_SUM + 1, 1024), np.zeros(16, np.int32), 15)]
    codes = Emulator(network, weights, engine="numba").read_out(saturated(network)[0], "learn")[0]
    assert np.all(codes[0, 1:3, 1:3] == 0)


@pytest.mark.usefixtures("vector_width")
@pytest.mark.parametrize(("excess", "fast"), [(0, True), (1, False)])
@pytest.mark.parametrize("shift", [0, 1, 15])
def test_accumulator_at_the_bound(excess: int, fast: bool, shift: int) -> None:
    """31 * sum + bias + half reaches 2**31 - 1; one more would wrap to a negative number, code 0."""
    network = Network((layer(4, 16, 16, (shift,)),))
    total = 9 * 16 * 2047
    half = 2 ** (shift - 1) if shift else 0
    biases = np.zeros(16, np.int32)
    biases[0] = INT32_MAX - 31 * total - half + excess
    weights = [ConvolutionWeights(one_sided(total, 16), biases, shift)]
    assert Emulator(network, weights, engine="numba")._engine._layers[0].fast == fast
    assert_engines_equal(network, weights, saturated(network))
    assert Emulator(network, weights, engine="numba").output(saturated(network))[0, 0, 1, 1] == 31


@pytest.mark.parametrize(("magnitude", "fast"), [(3640, True), (3641, False), (32767, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_transformed_filters_at_the_bound(magnitude: int, fast: bool, sign: int) -> None:
    """Nine equal weights add up in a transformed filter: 9 * 3640 = 32760 fits in 16 bits."""
    network = Network((layer(14, 2, 16, (12,)),))
    filters = np.full((16, 2, 3, 3), sign * magnitude, np.int16)
    filters[1::2, 1] *= -1
    weights = [ConvolutionWeights(filters, np.arange(-8, 8, dtype=np.int32) * 4096, 12)]
    assert Emulator(network, weights, engine="numba")._engine._layers[0].fast == fast
    assert_engines_equal(network, weights, images(network, 1, 1))


@pytest.mark.usefixtures("vector_width")
@pytest.mark.parametrize("inputs", [12, 64, 512])
def test_extreme_weights_and_activations(inputs: int) -> None:
    """Activations 0 and 31 only, weights -2047 and 2047 only: the largest intermediate values of every kind."""
    random = np.random.RandomState(inputs)
    network = Network((layer(14, inputs, 32, (15,), pooling=True),))
    filters = np.where(random.randint(0, 2, size=(32, inputs, 3, 3)), 2047, -2047).astype(np.int16)
    # A column of signs that follows the transform's own pattern, and one channel against all others.
    filters[0] = 2047 * np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
    filters[1, 1:] = -2047
    batch = np.where(random.randint(0, 2, size=(3, 14, 14, inputs)), 255, 0).astype(np.uint8)
    batch[1] = np.where((np.indices((14, 14)).sum(axis=0) % 2)[..., None], 255, 0)
    weights = [ConvolutionWeights(filters, random.randint(-2047, 2048, size=32).astype(np.int32), 15)]
    assert_engines_equal(network, weights, batch)


def test_the_largest_weights_of_the_chip_take_the_fast_path_up_to_940_channels() -> None:
    # 4 * 31 * 940 * 9 * 2047 = 2147369040 < 2**31, with 941 channels 2149653492
    for inputs, fast in ((940, True), (941, False)):
        weights = ConvolutionWeights(np.full((16, inputs, 3, 3), 2047, np.int16), np.zeros(16, np.int32), 12)
        assert engine_numba._fits(weights, 2048) == fast


@st.composite
def small_networks(draw: st.DrawFn) -> tuple[Network, int, int]:
    size, channels = 2 * draw(st.integers(1, 6)), draw(st.integers(1, 40))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        outputs = draw(st.sampled_from([1, 16, 17, 32, 48, 64, 80]))
        upsampled = draw(st.booleans()) and size <= 8
        working = 2 * size if upsampled else size
        layers.append(
            layer(
                size,
                channels,
                outputs,
                tuple(draw(st.lists(st.integers(0, 15), min_size=1, max_size=2))),
                coef_bits=draw(st.sampled_from([1, 3])),
                pooling=draw(st.booleans()) and working % 2 == 0,
                upsample_enable=upsampled,
                upsample_mode=draw(st.sampled_from(["repeat", "zero"])),
            )
        )
        size, channels = layers[-1].output_size, outputs
    network = Network(
        tuple(layers),
        sampling_method=draw(st.sampled_from([0, 1])),
        activation_bit_mode=draw(st.sampled_from([0, 1])),
    )
    return network, draw(st.integers(1, 4)), draw(st.integers(0, 2**31))


@settings(max_examples=150)
@given(small_networks())
def test_random_networks(case: tuple[Network, int, int]) -> None:
    network, count, seed = case
    assert_engines_equal(network, lively_weights(network, seed), images(network, count, seed % 1000), threads=1)


def test_transformed_filters_are_the_transform() -> None:
    """4 G g G' of F(2x2, 3x3) with G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1], in matrices."""
    filters = np.random.RandomState(1).randint(-2047, 2048, size=(32, 3, 3, 3)).astype(np.int16)
    result = np.zeros((2, 16, 2, 16, 2), np.int16)
    assert kernels_numba.transform_filters(filters, result, 0, 2)
    g = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
    expected = np.zeros((32, 4, 4, 4), np.int64)  # [out, in (one of padding), 4, 4]
    expected[:, :3] = g @ filters.astype(np.int64) @ g.T
    got = result.transpose(0, 3, 2, 4, 1).reshape(32, 4, 4, 4)
    np.testing.assert_array_equal(got, expected)


def test_reference_convolution_is_a_sum_of_shifted_images() -> None:
    random = np.random.RandomState(2)
    codes = random.randint(0, 32, size=(2, 5, 6, 3)).astype(np.uint8)
    filters = random.randint(-9, 10, size=(4, 3, 3, 3)).astype(np.int16)
    biases = random.randint(-9, 10, size=4).astype(np.int32)
    got = convolve(codes, filters, biases)
    for n, y, x, o in np.ndindex(2, 5, 6, 4):
        total = int(biases[o])
        for dy, dx in np.ndindex(3, 3):
            if 0 <= y + dy - 1 < 5 and 0 <= x + dx - 1 < 6:
                total += int(codes[n, y + dy - 1, x + dx - 1].astype(int) @ filters[o, :, dy, dx].astype(int))
        assert got[n, y, x, o] == total
