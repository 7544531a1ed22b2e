"""Both engines against the formulas in 64-bit integers: every class of shapes, and the bounds of their integers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from emulated import images, layer, lively_weights, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from sweeps import first_quick

from gti.chip.emulator import engine_numba, engine_numpy, layers_numba
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import ConvolutionWeights, Network

INT32_MAX = 2**31 - 1
ENGINES = ["numba", "numpy"]
# Largest sums of one-sided weights for which F(4x4) and F(2x2) are taken: 64 * 31 * sum and 4 * 31 * sum < 2**31.
LARGEST_SUMS = {4: INT32_MAX // (64 * 31), 2: INT32_MAX // (4 * 31)}


def assert_engines_equal(network: Network, weights: list[ConvolutionWeights], batch: np.ndarray, **options) -> None:
    sublayers, output = reference(network, weights, batch, options.get("upsample_fill"))
    for engine in ENGINES:
        emulator = Emulator(network, weights, engine=engine, **options)
        for (conv, got), expected in zip(emulator.sublayers(batch), sublayers, strict=True):
            assert got.dtype == (np.uint16 if conv.ten_bit else np.uint8)
            np.testing.assert_array_equal(got, expected, err_msg=f"{engine}, {conv.path}")
        got = emulator.output(batch)
        np.testing.assert_array_equal(got, output, err_msg=engine)
        assert got.dtype == (np.uint16 if network.activation_bit_mode else np.uint8)


def paths(network: Network, weights: list[ConvolutionWeights]) -> list[int]:
    """Return the window of each sublayer: 4, 2, or 0 for the direct sum in 64 bits."""
    return [prepared.window for prepared in Emulator(network, weights, engine="numba")._engine._layers]


@pytest.fixture(params=[True, False], ids=["64-byte vectors", "smaller vectors"])
def vector_width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the register tiles of AVX-512 processors and with those of all others."""
    monkeypatch.setattr(layers_numba, "vectors_of_64_bytes", lambda: request.param)
    if not request.param:
        monkeypatch.setitem(globals(), "ENGINES", ["numba"])  # the other knows no vectors: once is enough


@pytest.fixture(params=[4, 2], ids=["F(4x4)", "F(2x2)"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let all sublayers take one path, whatever would suit their size."""
    monkeypatch.setattr(layers_numba, "_windows", lambda size: [request.param])
    if request.param != 4:
        monkeypatch.setitem(globals(), "ENGINES", ["numba"])  # the other knows no windows
    return request.param


@pytest.mark.slow
@pytest.mark.usefixtures("vector_width", "window")
@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 8, 12, 16, 32, 64])
@pytest.mark.parametrize("outputs", [16, 32, 64, 128])
def test_channels(inputs: int, outputs: int) -> None:
    network = Network((layer(14, inputs, outputs, (8, 9), coef_bits=1 if inputs % 3 else 3, pooling=True),))
    assert_engines_equal(network, lively_weights(network, inputs), images(network, 2, outputs))


@pytest.mark.usefixtures("vector_width", "window")
@pytest.mark.parametrize(
    ("size", "count"), [(2, 7), (4, 1), (6, 3), (8, 2), (10, 1), (14, 1), (14, 11), (28, 3), (30, 1), (56, 1), (112, 1)]
)
@pytest.mark.parametrize("sampling_method", [0, 1])
def test_sizes(size: int, count: int, sampling_method: int) -> None:
    """Tiles fill register tiles and steps completely, in part, and over the border of images."""
    network = Network((layer(size, 3, 16, (8, 9), pooling=True),), sampling_method=sampling_method)
    assert_engines_equal(network, lively_weights(network, size), images(network, count, size))


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    ("size", "inputs", "outputs"),
    first_quick(2, [(14, 1024, 64), (112, 16, 48), (448, 1, 16), (224, 3, 16), (28, 1024, 16), (14, 512, 128)]),
)
def test_largest_sizes_and_channels(size: int, inputs: int, outputs: int) -> None:
    network = Network((layer(size, inputs, outputs, (12,), pooling=True),))
    assert_engines_equal(network, lively_weights(network, 1), images(network, 1, 1))


@pytest.mark.parametrize(
    ("size", "expected"),
    # products of all tiles: 16 per 2x2 window, 36 per 4x4 window; where both need the same, F(2x2)
    [(2, 2), (4, 4), (6, 2), (7, 4), (10, 4), (14, 4), (18, 4), (28, 4), (448, 4)],
)
def test_choice_by_size(size: int, expected: int) -> None:
    network = Network((layer(size, 3, 16, (9,)),))
    assert paths(network, lively_weights(network, 1)) == [expected]


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("shift", range(16))
@pytest.mark.parametrize("ten_bit", [0, 1])
def test_shifts(shift: int, ten_bit: int) -> None:
    network = Network((layer(14, 16, 16, (shift,), pooling=bool(shift % 2)),), activation_bit_mode=ten_bit)
    assert_engines_equal(network, lively_weights(network, shift), images(network, 2, shift))


@pytest.mark.usefixtures("window")
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


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
def test_odd_sizes(size: int) -> None:
    network = Network((layer(size, 3, 16, (8, 8)),))
    assert_engines_equal(network, lively_weights(network, 1), images(network, 2, 1))


@pytest.fixture
def always_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads share even the small sublayers of these tests."""
    monkeypatch.setattr(engine_numba, "_WORTH_SHARING", 0)


@pytest.mark.usefixtures("always_share", "window")
@pytest.mark.parametrize("threads", first_quick(2, [1, 3, 2, 8]))
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


@pytest.mark.usefixtures("vector_width", "window")
@pytest.mark.parametrize("outputs", first_quick(2, [17, 1, 4, 64]))
@pytest.mark.parametrize("size", first_quick(2, [7, 30, 2, 14]))
def test_kernels_stay_within_their_memory(size: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written behind the memory of a thread, also where a layer has more stored channels than it needs."""
    made = []

    def guarded(array: np.ndarray, needed: int) -> np.ndarray:
        if array.size >= needed:
            return array
        whole = np.full(needed + 4096, 77, array.dtype)
        made.append(whole[needed:])
        return whole[:needed]

    monkeypatch.setattr(engine_numba, "_grown", guarded)
    network = Network((layer(size, 2, outputs, (9, 9)), layer(size, outputs, 40, (9,))))
    weights = lively_weights(network, 5)
    weights[1].filters[0] = 2047  # further channels
    assert_engines_equal(network, weights, images(network, 3, 1))
    assert len(made) >= 3
    assert all(np.all(behind == 77) for behind in made)


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
@pytest.mark.parametrize(
    ("of", "excess", "path"), [(4, 0, 4), (4, 1, 2), (4, 10**6, 2), (2, 0, 2), (2, 1, 0), (2, 10**6, 0)]
)
def test_transformed_sums_at_the_bound(of: int, excess: int, path: int, sign: int) -> None:
    """4 or 64 times the sum of products reaches 2**31 - 64 or so with all activations 31; one more would wrap."""
    network = Network((layer(8, 1024, 16, (15,)),))
    filters = sign * one_sided(LARGEST_SUMS[of] + excess, 1024)
    weights = [ConvolutionWeights(filters, np.zeros(16, np.int32), 15)]
    assert paths(network, weights) == [path]
    assert_engines_equal(network, weights, saturated(network))
    interior = Emulator(network, weights, engine="numba").read_out(saturated(network)[0], "learn")[0][0, 1:7, 1:7]
    assert np.all(interior == (31 if sign > 0 else 0))  # a wrapped sum would have the other sign


def test_beyond_the_bound_32_bits_would_wrap(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is tight: forced onto the fast path, the first network beyond it gives wrong codes."""
    monkeypatch.setattr(layers_numba, "fits", lambda layer, half, window: True)
    network = Network((layer(8, 1024, 16, (15,)),))
    weights = [ConvolutionWeights(one_sided(LARGEST_SUMS[window] + 1, 1024), np.zeros(16, np.int32), 15)]
    codes = Emulator(network, weights, engine="numba").read_out(saturated(network)[0], "learn")[0]
    # Of F(4x4) the top-left result of a window is multiplied by 64, others by less.
    assert np.all(codes[0, 4, 4] == 0)
    assert np.all(codes[0, 5, 5] == (31 if window == 4 else 0))


@pytest.mark.usefixtures("vector_width", "window")
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
    assert (paths(network, weights) != [0]) == fast
    assert_engines_equal(network, weights, saturated(network))
    assert Emulator(network, weights, engine="numba").output(saturated(network))[0, 0, 1, 1] == 31


@pytest.mark.parametrize(
    ("magnitude", "path", "parts"),
    [  # nine equal weights count 49 times in a filter of F(4x4), 9 times in one of F(2x2); parts of 32767 = 2**15 - 1
        (668, 4, 1),  # 49 * 668 = 32732
        (669, 4, 2),  # 49 * 669 = 32781
        (1337, 4, 2),  # 49 * 1337 = 65513 <= 2 * 32767
        (1338, 4, 3),
        (2047, 4, 4),  # 49 * 2047 = 100303 > 3 * 32767
        (2674, 4, 4),  # 49 * 2674 = 131026 <= 4 * 32767
        (2675, 2, 1),  # 49 * 2675 = 131075
        (3640, 2, 1),  # 9 * 3640 = 32760
        (3641, 2, 2),
        (14563, 2, 4),  # 9 * 14563 = 131067
        (14564, 0, 1),
        (32767, 0, 1),
    ],
)
@pytest.mark.parametrize("signs", [[1, 1, 1], [-1, -1, -1], [1, -1, 1]])
def test_transformed_filters_at_the_bound(magnitude: int, path: int, parts: int, signs: list[int]) -> None:
    network = Network((layer(16, 2, 16, (12,)),))
    filters = np.full((16, 2, 3, 3), magnitude, np.int16) * np.array(signs, np.int16)
    filters[1::2, 1] *= -1
    weights = [ConvolutionWeights(filters, np.arange(-8, 8, dtype=np.int32) * 4096, 12)]
    (prepared,) = Emulator(network, weights, engine="numba")._engine._layers
    assert prepared.window == path
    if path:
        assert prepared.most_further == parts - 1  # both channels, as one pair a part
    assert_engines_equal(network, weights, images(network, 2, 1))


@pytest.mark.usefixtures("vector_width", "window")
@pytest.mark.parametrize("outputs", first_quick(2, [17, 64, 16, 192]))
def test_further_channels_stand_where_they_belong(outputs: int) -> None:
    """Kernels beyond 16 bits among small ones, also in padding of blocks and pairs, at any activations."""
    network = Network((layer(14, 5, outputs, (9, 12)),))
    weights = lively_weights(network, 5)
    weights[1].filters[outputs - 1, 3] = 2047
    weights[1].filters[0, outputs - 1] = -2047 * np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
    assert_engines_equal(network, weights, images(network, 3, 1))


def test_further_channels_of_one_kernel() -> None:
    network = Network((layer(14, 5, 128, (12,)),))
    filters = np.full((128, 5, 3, 3), 7, np.int16)
    filters[70, 3] = 2047
    (prepared,) = Emulator(network, [ConvolutionWeights(filters, np.zeros(128, np.int32), 12)])._engine._layers
    width = prepared.filters.shape[3]
    block, lane = divmod(70, width)
    sums = np.array([1, 3, 1, 7, 3, 1])  # of the rows of G, for nine equal weights
    values = np.outer(sums, sums).ravel() * 2047
    starts = prepared.starts
    for place in range(len(starts) - 1):
        beyond = values[place % 36] if place // 36 == block else 0
        parts = -(-beyond // 32767)  # the first stands among the filters themselves
        owners = prepared.owners[starts[place] : starts[place + 1]].ravel()
        further = prepared.further[starts[place] : starts[place + 1]].transpose(0, 2, 1).reshape(-1, width)
        assert owners.tolist() == ([3] * (parts - 1) + [0] * ((parts - 1) % 2) if parts > 1 else [])
        if parts > 1:
            held = prepared.filters[block, place % 36].transpose(0, 2, 1).reshape(-1, width)[3, lane]
            assert int(held) + further[:, lane].sum(dtype=np.int64) == beyond
            assert not np.any(np.delete(further, lane, axis=1))


@pytest.mark.usefixtures("vector_width", "window")
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


@pytest.mark.parametrize(
    ("window", "inputs", "fast"),
    [
        (2, 940, True),  # 4 * 31 * 940 * 9 * 2047 = 2147369040 < 2**31
        (2, 941, False),  # 2149653492
        (4, 58, True),  # 64 * 31 * 58 * 9 * 2047 = 2119971456
        (4, 59, False),  # 2156522688
    ],
)
def test_the_largest_weights_of_the_chip_of_one_sign(window: int, inputs: int, fast: bool) -> None:
    weights = ConvolutionWeights(np.full((16, inputs, 3, 3), 2047, np.int16), np.zeros(16, np.int32), 12)
    assert layers_numba.fits(weights, 2048, window) == fast


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


@pytest.mark.slow
@settings(max_examples=50)
@given(small_networks())
def test_random_networks(case: tuple[Network, int, int]) -> None:
    network, count, seed = case
    assert_engines_equal(network, lively_weights(network, seed), images(network, count, seed % 1000), threads=1)


def test_transformed_filters_are_the_transform(window: int) -> None:
    """G g G' with G of F(2, 3) and F(4, 3) as published (Lavin and Gray 2016), times what makes its rows integer."""
    g, factors = {
        2: ([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], [2, 2, 2, 2]),
        4: (
            [
                [1 / 4, 0, 0],
                [-1 / 6, -1 / 6, -1 / 6],
                [-1 / 6, 1 / 6, -1 / 6],
                [1 / 24, 1 / 12, 1 / 6],
                [1 / 24, -1 / 12, 1 / 6],
                [0, 0, 1],
            ],
            [4, -6, -6, 24, 24, 1],
        ),
    }[window]
    matrix = np.array(g) * np.array(factors)[:, None]
    network = Network((layer(14, 3, 32, (12,)),))
    weights = np.random.RandomState(1).randint(-2047, 2048, size=(32, 3, 3, 3)).astype(np.int16)
    (prepared,) = Emulator(network, [ConvolutionWeights(weights, np.zeros(32, np.int32), 12)])._engine._layers
    expected = np.zeros((32, 4, window + 2, window + 2))  # [out, in (one of padding), side, side]
    expected[:, :3] = np.rint(np.einsum("yi,ocij,xj->ocyx", matrix, weights, matrix))
    blocks, positions, pairs, width, _ = prepared.filters.shape
    values = prepared.filters.astype(np.int64).transpose(0, 1, 2, 4, 3).reshape(blocks * positions, 2 * pairs, width)
    for place in range(blocks * positions):
        for pair in range(prepared.starts[place], prepared.starts[place + 1]):
            for half, channel in enumerate(prepared.owners[pair]):
                values[place, channel] += prepared.further[pair, :, half]
    values = values.reshape(blocks, positions, 2 * pairs, width).transpose(0, 3, 2, 1)
    got = values.reshape(32, 4, window + 2, window + 2)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("total", "bias", "kind"),
    [
        (2**24 // 31, 0, np.float32),  # 31 * 541200 = 16777200
        (2**24 // 31, 16, np.float32),
        (2**24 // 31, 17, np.float64),
        (2**24 // 31, -17, np.float64),
        (2**24 // 31 + 1, 0, np.float64),
    ],
)
def test_float_types_at_the_bound(total: int, bias: int, kind: type, sign: int) -> None:
    biases = np.zeros(16, np.int32)
    biases[0] = bias
    for shift in (0, 12, 15):
        network = Network((layer(4, 64, 16, (shift,)),))
        weights = [ConvolutionWeights(sign * one_sided(total, 64), biases, shift)]
        assert engine_numpy.exact_type(weights[0]) == kind
        assert_engines_equal(network, weights, saturated(network))


def test_beyond_the_bound_float32_rounds() -> None:
    """The bound is tight: with a bias of one more, the accumulator 2**24 + 1 is lost in float32."""
    codes = np.full((1, 3, 3, 64), 31, np.uint8)
    matrix = one_sided(2**24 // 31, 64).transpose(2, 3, 1, 0).reshape(-1, 16)
    centre = {}
    for kind in (np.float32, np.float64):
        ((_, sums),) = engine_numpy._accumulators(codes, matrix.astype(kind), np.full(16, 17).astype(kind))
        centre[kind] = int(sums[1, 1, 0])
    assert centre == {np.float32: 2**24, np.float64: 2**24 + 1}


def test_rows_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network((layer(14, 16, 16, (8, 9), pooling=True),))
    for block in (1, 9 * 16 * 14 * 4 * 5):  # a row at a time; five rows, the last four
        monkeypatch.setattr(engine_numpy, "_BLOCK_BYTES", block)
        assert_engines_equal(network, lively_weights(network, 3), images(network, 2, 3))


def test_accumulators_are_sums_of_shifted_images() -> None:
    random = np.random.RandomState(2)
    codes = random.randint(0, 32, size=(2, 5, 6, 3)).astype(np.uint8)
    filters = random.randint(-9, 10, size=(4, 3, 3, 3))
    biases = random.randint(-9, 10, size=4)
    matrix = filters.transpose(2, 3, 1, 0).reshape(-1, 4).astype(np.float32)
    got = np.zeros((2, 5, 6, 4), np.int64)
    for where, sums in engine_numpy._accumulators(codes, matrix, biases.astype(np.float32)):
        got[where] = sums
    for n, y, x, o in np.ndindex(2, 5, 6, 4):
        total = int(biases[o])
        for dy, dx in np.ndindex(3, 3):
            if 0 <= y + dy - 1 < 5 and 0 <= x + dx - 1 < 6:
                total += int(codes[n, y + dy - 1, x + dx - 1].astype(int) @ filters[o, :, dy, dx])
        assert got[n, y, x, o] == total


@pytest.mark.parametrize("environment", first_quick(1, [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_NUM_THREADS": "0"}]))
def test_where_numba_cannot_compile_numpy_does_it_and_that_is_said(environment):
    code = """
import numpy as np
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.errors import UsageError
network = Network((MajorLayer(14, 1, 16, 1, 3, (0,)),))
weights = [ConvolutionWeights(np.ones((16, 1, 3, 3), np.int16), np.zeros(16, np.int32), 0)]
print(Emulator(network, weights).engine, Emulator(network, weights).output(np.zeros((1, 14, 14, 1), np.uint8)).sum())
try:
    Emulator(network, weights, "numba")
except UsageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("NumPy")
    assert second.startswith("engine numba: cannot be used")
    assert len(done.stderr.splitlines()) == 1
    assert "numba cannot be used" in done.stderr
