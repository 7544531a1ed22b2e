"""The .DAT codec: golden bytes, an independent statement of the row layout, every refusal, hostile headers."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import places
import pytest
from golden import generators
from hypothesis import given, settings
from hypothesis import strategies as st

from gti.chip.formats import dat, dat_rows, describe
from gti.chip.network import file_size
from gti.chip.network.json_form import from_json
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.errors import DatError, FormatError

GOLDEN = places.GOLDEN
# The vendor's converter made these from the weights of generator A: sha256 of header and rows, file length.
DIGESTS = json.loads((GOLDEN / "dat_digests.json").read_text())
# The 23 words and the length that the vendor's converter writes for these networks, whatever their weights are.
HEADERS = json.loads((GOLDEN / "dat_headers.json").read_text())


def weights_of(network: Network, seed: int = 0, config: dict | None = None) -> list[ConvolutionWeights]:
    """Return weights of generator A."""
    value = config or {
        "layer": [
            {
                "coef_bits": layer.coef_bits,
                "output_channels": layer.output_channels,
                "input_channels": layer.input_channels,
                "scaling": layer.scaling,
            }
            for layer in network.layers
        ]
    }
    return [ConvolutionWeights(*values) for values in generators.full_range_weights(value, seed)]


def tiny(bits: int = 3, outputs: int = 16, inputs: int = 16, **more: object) -> Network:
    """Return a network of one convolution."""
    return Network((MajorLayer(14, inputs, outputs, 1, bits, (4,), **more),))  # type: ignore[arg-type]


def same(a: object, b: list[ConvolutionWeights]) -> bool:
    return all(
        np.array_equal(x.filters, y.filters) and np.array_equal(x.biases, y.biases) and x.shift == y.shift
        for x, y in zip(a, b, strict=True)  # type: ignore[call-overload]
    )


def meaningful(network: Network) -> int:
    return 92 + 192 * file_size.row_count(network)


@pytest.mark.parametrize("case", DIGESTS, ids=[str(case["seed"]) for case in DIGESTS])
def test_golden_files(case: dict) -> None:
    network = from_json(case["config"], "golden", to_file=True)
    weights = weights_of(network, case["seed"], case["config"])
    data = dat.encode(network, weights)
    assert len(data) == case["length"]
    assert meaningful(network) == case["meaningful"]
    assert hashlib.sha256(data[: case["meaningful"]]).hexdigest() == case["sha256"]
    decoded = dat.decode(data)
    assert same(decoded.weights, weights)
    # one_coef of zeros and no one_coef are the same file
    bare = [layer if any(layer.one_coef) else replace(layer, one_coef=()) for layer in network.layers]
    assert decoded.network == replace(network, layers=tuple(bare))
    assert (decoded.length, decoded.tail) == (len(data), b"")


@pytest.mark.parametrize("case", HEADERS, ids=[case["name"] for case in HEADERS])
def test_golden_headers(case: dict) -> None:
    network = from_json(case["config"], "golden")
    weights = weights_of(network, 7, case["config"])
    data = dat.encode(network, weights)
    assert [f"{word:08x}" for word in dat.read_header(data)] == case["header"]
    assert len(data) == case["length"]
    decoded = dat.decode(data)
    assert decoded.network == network
    assert dat.read_network(data) == network
    assert same(decoded.weights, weights)


def reference_rows(values: ConvolutionWeights, bits: int) -> bytes:
    """Rows of one convolution, kernel by kernel in Python integers, from docs/dat_format.md section 3."""
    outputs, inputs = values.filters.shape[:2]
    q = 2 if bits == 3 else 4
    per_engine: list[list[int]] = []
    for e in range(16):
        kernels = []
        for go in range((outputs + 15) // 16):
            for gi in range(max(1, (inputs + 15) // 16)):
                for k in range(16):
                    kernels.append(
                        (16 * go + e, 16 * gi + (e - k) % 16, gi == max(1, (inputs + 15) // 16) - 1 and k == 15)
                    )
        lines = []
        for start in range(0, len(kernels), q):
            line = 0
            for h, (o, i, last) in enumerate(kernels[start : start + q]):
                taps = values.filters[o, i].ravel().tolist() if o < outputs and i < inputs else [0] * 9
                step = min((abs(v) for v in taps if v), default=0) if bits == 3 else abs(taps[0])
                for j, v in enumerate(taps):
                    if bits == 3:
                        code = {0: 0, 1: 1, 2: 2, 4: 3}[abs(v) // step if step else 0]
                        line |= (
                            (code & 1) << (9 * h + j) | (code >> 1) << (18 + 9 * h + j) | (v < 0) << (36 + 9 * h + j)
                        )
                    else:
                        line |= (v < 0) << (9 * h + j)
                line |= step << ((54 if bits == 3 else 36) + 12 * h)
                bias = int(values.biases[o]) if last and o < outputs else 0
                line |= (bias & 0xFFF) << 84
                if bits == 3:
                    line |= (bias >> 12 & 0x3F) << 78
            lines.append(line)
        per_engine.append(lines)
    return b"".join(per_engine[e][r].to_bytes(12, "little") for r in range(len(per_engine[0])) for e in range(16))


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 1), (16, 3), (16, 16), (32, 12), (16, 48), (64, 32)])
def test_rows_against_a_plain_statement(bits: int, outputs: int, inputs: int) -> None:
    values = weights_of(tiny(bits, outputs, inputs), seed=outputs + inputs)[0]
    rows = np.zeros((file_size.rows_of(outputs, inputs, bits), 16, 3), np.uint32)
    assert dat_rows.pack(values.filters, values.biases, bits, rows)
    assert rows.tobytes() == reference_rows(values, bits)
    filters, biases = dat_rows.unpack(rows, outputs, inputs, bits)
    assert np.array_equal(filters, values.filters)
    assert np.array_equal(biases, values.biases)


def test_large_convolutions_go_through_blocks() -> None:
    # More kernels than one block of dat_rows, in both directions of the channel counts.
    for outputs, inputs in ((1024, 16), (16, 1024), (256, 256)):
        values = weights_of(tiny(3, outputs, inputs), seed=3)[0]
        rows = np.zeros((file_size.rows_of(outputs, inputs, 3), 16, 3), np.uint32)
        assert dat_rows.pack(values.filters, values.biases, 3, rows)
        filters, biases = dat_rows.unpack(rows, outputs, inputs, 3)
        assert np.array_equal(filters, values.filters)
        assert np.array_equal(biases, values.biases)
        # The last output group, packed alone, is the last part of the whole.
        last = np.zeros((file_size.rows_of(16, inputs, 3), 16, 3), np.uint32)
        dat_rows.pack(values.filters[-16:], values.biases[-16:], 3, last)
        assert np.array_equal(rows[-len(last) :], last)


def test_identity_pass() -> None:
    case = next(c for c in HEADERS if c["name"] == "11_shortcut_pooled_pass")
    network = from_json(case["config"], "golden")
    data = dat.encode(network, weights_of(network, 1, case["config"]))
    # 4 sublayers 16 -> 32 -> 32 at 3 bits, then the pass: 2 rows of the line 0x000000040040000000002010.
    start = 92 + 192 * (2 * 8 + 3 * 4 * 8)
    assert data[start : start + 384] == (0x000000040040000000002010).to_bytes(12, "little") * 32
    assert dat.decode(data).extra_passes == (True, False)


def test_identity_pass_of_the_last_layer() -> None:
    network = Network((MajorLayer(28, 16, 32, 2, 3, (4, 4), pooling=True, shortcuts=(1,)),))
    weights = weights_of(network, 1)
    decoded = dat.decode(dat.encode(network, weights))
    assert decoded.network == network
    assert decoded.extra_passes == (True,)
    assert same(decoded.weights, weights)


def test_a_shortcut_into_the_pooling_without_its_pass() -> None:
    network = Network((MajorLayer(28, 16, 16, 2, 3, (4, 4), pooling=True),))
    data = bytearray(dat.encode(network, weights_of(network, 1)))
    struct.pack_into("<I", data, 4 * 20, 1 << 12)  # it starts at sublayer 1, and no third one follows
    with pytest.raises(DatError, match="identity pass"):
        dat.decode(bytes(data))


def test_five_real_sublayers_are_no_identity_pass() -> None:
    # The header is the same; only the rows tell (section 3.3).
    layer = MajorLayer(28, 16, 16, 5, 3, (4, 4, 4, 4, 0), pooling=True, shortcuts=(1, 3))
    network = Network((layer,))
    data = dat.encode(network, weights_of(network, 5))
    assert dat.decode(data).network == network
    shorter = Network((replace(layer, sublayer_number=4, scaling=(4,) * 4),))
    words = dat.read_header(dat.encode(shorter, weights_of(shorter, 5)))
    assert words == dat.read_header(data)


def test_ten_bit_is_recognised() -> None:
    for size, outputs, pooling in ((14, 64, False), (14, 512, True), (28, 16, True)):
        layer = MajorLayer(size, 16, outputs, 1, 3, (4,), pooling=pooling)
        for mode in (0, 1):
            network = Network((layer,), activation_bit_mode=mode)
            weights = weights_of(network, 9)
            data = dat.encode(network, weights)
            assert dat.decode(data).network.activation_bit_mode == mode
            assert same(dat.decode(data, activation_bit_mode=mode).weights, weights)


def test_the_last_places_of_the_header_are_read_again() -> None:
    # The sixth flag of a shortcut, start 11, and the largest counts of channels [docs/dat_format.md section 2].
    deep = MajorLayer(28, 3, 16, 12, 3, (4,) * 12, shortcuts=(1, 11))
    wide = MajorLayer(14, 1024, 1024, 1, 1, (4,), pooling=True)
    first = replace(wide, input_channels=3, pooling=False)
    begins_wide = MajorLayer(14, 1024, 16, 2, 1, (4, 4), pooling=True)
    ten_bit = replace(wide, output_channels=512)
    for layers, mode in (((deep,), 0), ((begins_wide,), 0), ((first, wide), 0), ((first, ten_bit), 1)):
        network = Network(layers, activation_bit_mode=mode)
        shapes = [((c.output_channels, c.input_channels, 3, 3), c.output_channels) for c in network.convolutions]
        zeros = [ConvolutionWeights(np.zeros(f, np.int16), np.zeros(b, np.int32), 4) for f, b in shapes]
        assert dat.decode(dat.encode(network, zeros, strict=False)).network == network


def test_padding_may_be_sixteen_mebibytes() -> None:
    assert dat.max_length(1) - file_size.file_length(1) == 16 * 2**20


def test_shift_of_every_sublayer_is_stored() -> None:
    shifts = tuple(range(12))
    network = Network((MajorLayer(28, 16, 16, 12, 1, shifts),))
    words = dat.read_header(dat.encode(network, weights_of(network)))
    assert words[3] & 15 == 0
    assert words[4] == 0x87654321
    assert words[20] & 0xFFF == 0xBA9


def older_file() -> tuple[bytes, Network]:
    """Return a file such as an older tool wrote: other G, addresses, w[22] and length."""
    network = Network(
        (
            MajorLayer(28, 3, 16, 2, 3, (13, 14), pooling=True, learning=True),
            MajorLayer(14, 16, 32, 1, 1, (12,), learning=True, out_address=512),
        )
    )
    words = list(dat.read_header(dat.encode(network, weights_of(network, 2))))
    words[1] = words[1] & ~(3 << 10) | 1 << 10
    words[22] = 0xAAAA
    data = dat.encode(network, weights_of(network, 2), header=words, length=meaningful(network) + 30000)
    return data, network


def test_older_files() -> None:
    data, network = older_file()
    decoded = dat.decode(data)
    assert decoded.network == network
    assert decoded.network.layers[1].out_address == 512
    assert dat.encode(network, decoded.weights, header=decoded.header, length=decoded.length) == data


def test_tail_survives() -> None:
    network = tiny()
    data = bytearray(dat.encode(network, weights_of(network)))
    data[meaningful(network) + 40] = 7
    decoded = dat.decode(bytes(data))
    assert decoded.tail == bytes(40) + b"\7"
    assert dat.encode(decoded.network, decoded.weights, tail=decoded.tail) == data


def changed(network: Network, change: Callable[[np.ndarray, np.ndarray], None]) -> list[ConvolutionWeights]:
    """Return weights of which `change` has edited the first convolution (int32 copies)."""
    first, *others = weights_of(network)
    filters, biases = first.filters.astype(np.int32), first.biases.astype(np.int32)
    change(filters, biases)
    return [ConvolutionWeights(filters, biases, first.shift), *others]


def edit_kernel(*taps: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a change of the kernel of output 2, input 5."""

    def change(filters: np.ndarray, _: np.ndarray) -> None:
        filters[2, 5] = np.array(taps).reshape(3, 3)

    return change


def edit_bias(value: int) -> Callable[[np.ndarray, np.ndarray], None]:
    def change(_: np.ndarray, biases: np.ndarray) -> None:
        biases[3] = value

    return change


# Section 6, rows about weights: width, change, what the sentence says (after the layer's name).
REFUSED_WEIGHTS = [
    (3, edit_kernel(*[2048] * 9), "too large for the file; expected -2047..2047, received magnitude 2048"),
    (1, edit_kernel(*[-2048] * 9), "too large for the file; expected -2047..2047, received magnitude 2048"),
    (1, edit_kernel(5, 5, 5, 5, 4, 5, 5, 5, 5), "output 2, input 5; expected one magnitude with signs, received [5,"),
    (1, edit_kernel(5, 5, 5, 5, 0, 5, 5, 5, 5), "1-bit"),
    (3, edit_kernel(3, 9, 0, 0, 0, 0, 0, 0, 0), "output 2, input 5; expected {0, 1, 2, 4} times one step"),
    (3, edit_kernel(2, 3, 0, 0, 0, 0, 0, 0, 0), "3-bit"),
    (3, edit_kernel(2047, 0, 0, 0, 0, 0, 0, 0, 0), "step other than 2047"),
    (3, edit_bias(2**17), "bias of output 3 does not fit into 18 bits; expected -131072..131071, received 131072"),
    (1, edit_bias(-2049), "bias of output 3 does not fit into 12 bits; expected -2048..2047, received -2049"),
]


@pytest.mark.parametrize(("bits", "change", "words"), REFUSED_WEIGHTS)
def test_refused_weights(bits: int, change: Callable[[np.ndarray, np.ndarray], None], words: str) -> None:
    network = tiny(bits)
    with pytest.raises(DatError) as caught:
        dat.encode(network, changed(network, change))
    assert "major 1 / sub 1 (conv1_1)" in str(caught.value)
    assert words in str(caught.value)


def test_every_refused_layer_is_named() -> None:
    network = Network((MajorLayer(28, 3, 16, 3, 1, (1, 2, 3)),))
    weights = weights_of(network)
    for index in (0, 2):
        weights[index].biases[0] = 4096
    with pytest.raises(DatError) as caught:
        dat.encode(network, weights)
    assert "conv1_1" in str(caught.value)
    assert "conv1_3" in str(caught.value)
    assert "conv1_2" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(), "expected 2, received 1"),
        (lambda w: w.append(w[0]), "expected 2, received 3"),
        (lambda w: w.__setitem__(1, replace(w[1], filters=w[1].filters[:, :8])), "expected integers [16, 16, 3, 3]"),
        (lambda w: w.__setitem__(1, replace(w[1], biases=w[1].biases[:8])), "biases have the wrong shape or type"),
        (lambda w: w.__setitem__(1, replace(w[1], filters=w[1].filters / 2)), "received float64 [16, 16, 3, 3]"),
        (
            lambda w: w.__setitem__(1, replace(w[1], shift=9)),
            "differs from scaling in the network; expected 4, received 9",
        ),
    ],
)
def test_weights_that_do_not_belong(change: Callable[[list], None], words: str) -> None:
    network = Network((MajorLayer(28, 3, 16, 2, 1, (3, 4)),))
    weights = weights_of(network)
    change(weights)
    with pytest.raises(DatError) as caught:
        dat.encode(network, weights)
    assert words in str(caught.value)


def test_network_rules_are_enforced_together() -> None:
    network = Network((MajorLayer(30, 5, 16, 1, 3, (4,)),))
    with pytest.raises(DatError) as caught:
        dat.encode(network, weights_of(network))
    assert "image_size" in str(caught.value)
    assert "input_channels" in str(caught.value)


def test_length_must_hold_the_rows() -> None:
    network = tiny()
    with pytest.raises(DatError, match="header"):
        dat.encode(network, weights_of(network), length=meaningful(network) - 1)
    with pytest.raises(DatError, match="words"):
        dat.encode(network, weights_of(network), header=(1, 2))


# What the vendor's converter writes where our strict encoder refuses (sections 3.4 and 6).
LENIENT = [
    (3, edit_kernel(3, 9, -6, 15, 12, 18, 0, -3, -9), [3, 0, -6, 0, 12, 0, 0, -3, 0]),
    (1, edit_kernel(5, -7, 0, -1, 5, 5, 5, 5, 5), [5, -5, 5, -5, 5, 5, 5, 5, 5]),
    (3, edit_kernel(2047, 0, -2047, 0, 0, 0, 0, 0, 0), [0] * 9),
]


@pytest.mark.parametrize(("bits", "change", "stored"), LENIENT)
def test_lenient_kernels(bits: int, change: Callable[[np.ndarray, np.ndarray], None], stored: list[int]) -> None:
    network = tiny(bits)
    decoded = dat.decode(dat.encode(network, changed(network, change), strict=False))
    assert decoded.weights[0].filters[2, 5].ravel().tolist() == stored


def test_lenient_bias_wraps_and_channels_are_padded() -> None:
    network = Network((MajorLayer(14, 16, 20, 1, 1, (4,)),))
    weights = changed(network, edit_bias(2050))
    data = dat.encode(network, weights, strict=False)
    decoded = dat.decode(dat.encode(tiny(1, 32), _padded(weights, 32), strict=False))
    assert decoded.weights[0].biases[3] == 2050 - 4096
    assert data[92 : 92 + 192 * 8] == dat.encode(tiny(1, 32), _padded(weights, 32), strict=False)[92 : 92 + 192 * 8]
    assert dat.read_header(data)[2] >> 19 & 0x7FF == 32


def _padded(weights: list[ConvolutionWeights], outputs: int) -> list[ConvolutionWeights]:
    first = weights[0]
    more = outputs - len(first.biases)
    return [
        ConvolutionWeights(
            np.concatenate([first.filters, np.zeros((more, *first.filters.shape[1:]), np.int32)]),
            np.concatenate([first.biases, np.zeros(more, np.int32)]),
            first.shift,
        )
    ]


def test_lenient_still_refuses_what_has_no_defined_file() -> None:
    for network in (
        tiny(8),
        Network((MajorLayer(14, 17, 16, 1, 3, (4,)),)),
        Network((MajorLayer(7, 16, 16, 1, 3, (4,)),)),
    ):
        with pytest.raises(DatError):
            dat.encode(
                network, weights_of(replace(network, layers=(replace(network.layers[0], coef_bits=3),))), strict=False
            )


@pytest.mark.parametrize("length", [0, 1, 4, 91, 92, 93, 92 + 192, 92 + 192 * 8 - 1])
def test_truncated(length: int) -> None:
    network = tiny()
    data = dat.encode(network, weights_of(network))
    with pytest.raises(DatError):
        dat.decode(data[:length], name="short.dat")
    assert same(dat.decode(data[: meaningful(network)]).weights, weights_of(network))


@pytest.mark.parametrize(
    ("word", "value", "words"),
    [
        (0, 2, ".DAT"),
        (1, 0, ".DAT"),
        (1, 7 << 5, ".DAT"),
        (2, 13 | 16 << 8 | 16 << 19, "image_size is not a size of the chip; expected one of 448, 224"),
        (2, 14 | 16 << 8 | 48 << 19, "output_channels"),
        (2, 14 | 32 << 8 | 16 << 19, "differs from the input code; expected 16, received 32"),
        (2, 14 | 16 << 8, "major 1 has no sublayers or no output channels"),
        (3, 0, "major 1 has no sublayers or no output channels"),
        (3, 1 << 4 | 2000 << 8, "in_addr lies outside the activation memory"),
        (3, 14 << 4 | 256 << 19 | 1 << 30, "sublayer_number"),
        (20, 1 << 30, "depthwise convolutions"),
    ],
)
def test_headers_that_describe_no_network(word: int, value: int, words: str) -> None:
    network = tiny()
    data = bytearray(dat.encode(network, weights_of(network)))
    struct.pack_into("<I", data, 4 * word, value)
    with pytest.raises(DatError) as caught:
        dat.decode(bytes(data), name="odd.dat")
    assert words in str(caught.value)
    assert str(caught.value).startswith("odd.dat")


@settings(max_examples=2 * settings.default.max_examples)
@given(st.lists(st.tuples(st.integers(0, 22), st.integers(0, 31)), min_size=1, max_size=6))
def test_flipped_header_bits_give_a_network_or_a_sentence(flips: list[tuple[int, int]]) -> None:
    network = Network((MajorLayer(28, 3, 16, 2, 3, (1, 2), pooling=True), MajorLayer(14, 16, 16, 1, 1, (3,))))
    data = bytearray(dat.encode(network, weights_of(network), length=meaningful(network) + 64))
    for word, bit in flips:
        data[4 * word + bit // 8] ^= 1 << bit % 8
    try:
        decoded = dat.decode(bytes(data))
    except DatError:
        return
    if decoded.network.layers[0].input_channels < 3:
        return  # the filters of the third channel belong to nothing now
    again = dat.encode(decoded.network, decoded.weights, header=decoded.header, length=decoded.length, strict=False)
    assert again[: 92 + 192 * decoded.rows] == data[: 92 + 192 * decoded.rows]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draw a small network that runs on the chip."""
    size = draw(st.sampled_from((14, 28, 56)))
    channels = draw(st.sampled_from((1, 2, 3, 4, 8, 12, 16, 32)))
    learning = draw(st.booleans())
    layers = []
    for m in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 3))
        bits = draw(st.sampled_from((1, 3)))
        pooling = size > 14 and draw(st.booleans())
        late = m >= 3
        shortcuts = (1,) if count == 3 and not late and draw(st.booleans()) else ()
        one_coef = tuple(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))) if not late else ()
        outputs = draw(st.sampled_from((16, 32, 64)))
        flag = draw(st.booleans())
        layers.append(
            MajorLayer(
                size,
                channels,
                outputs,
                count,
                bits,
                tuple(draw(st.lists(st.integers(0, 15), min_size=count, max_size=count))),
                pooling=pooling,
                learning=learning and flag,
                last_layer_out=not learning and flag,
                one_coef=one_coef if any(one_coef) else (),
                shortcuts=shortcuts,
            )
        )
        size, channels = (size // 2 if pooling else size), outputs
    return Network(tuple(layers), sampling_method=draw(st.integers(0, 1)))


@settings(max_examples=40)
@given(networks(), st.integers(0, 2**31 - 1))
def test_decode_inverts_encode(network: Network, seed: int) -> None:
    weights = weights_of(network, seed)
    data = dat.encode(network, weights, length=meaningful(network))
    decoded = dat.decode(data)
    assert decoded.network == network
    assert same(decoded.weights, weights)


def test_load_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(DatError, match="file"):
        dat.load(tmp_path / "none.dat")
    with pytest.raises(DatError, match="regular"):
        dat.load(tmp_path)
    (tmp_path / "x.dat").write_bytes(b"PK\3\4" + bytes(200))
    with pytest.raises(FormatError, match=r"begin with 50 4b 03 04"):
        dat.load(tmp_path / "x.dat")


@pytest.mark.parametrize("bits", [1, 3])
def test_scale_range(bits: int) -> None:
    values = weights_of(tiny(bits), seed=4)[0]
    rows = np.zeros((file_size.rows_of(16, 16, bits), 16, 3), np.uint32)
    assert dat_rows.scale_range(rows, bits) == (0, 0)
    dat_rows.pack(values.filters, values.biases, bits, rows)
    magnitude = np.abs(values.filters.astype(int)).reshape(256, 9)
    smallest = [row[row > 0].min() for row in magnitude if row.any()]
    assert dat_rows.scale_range(rows, bits) == (min(smallest), max(smallest))


@pytest.mark.parametrize(
    ("mode", "dead", "word"),
    [
        (0, 0, "guessed to give 5-bit"),
        (0, 16, "guessed to give ten-bit"),  # half of the channels are empty, and the file lies
        (1, 0, "guessed to give ten-bit"),
    ],
)
def test_what_is_concluded_is_said(mode: int, dead: int, word: str) -> None:
    # 56x56 with 32 channels in the register has the output code 1 as a 5-bit layer and, with 16, as a ten-bit one.
    network = Network((MajorLayer(56, 16, 32 >> mode, 1, 3, (4,)),), activation_bit_mode=mode)
    weights = weights_of(network)
    if dead:
        weights[0].filters[dead:], weights[0].biases[dead:] = 0, 0
    data = dat.encode(network, weights)
    found = dat.guesses(data)
    assert word in found[0]
    assert "--ten_bit" in found[0]
    assert not dat.guesses(data, activation_bit_mode=mode)
    assert same(dat.decode(data, activation_bit_mode=mode).weights, weights)


def test_planes_of_code_0_are_a_guess() -> None:
    network = tiny(inputs=3)
    data = dat.encode(network, weights_of(network))
    assert not dat.guesses(data)  # the usual case, in which nothing speaks against it
    assert "planes guessed" in "".join(describe.describe_dat(data, "a.dat"))
    five = tiny(inputs=5)  # has no code of its own
    data = dat.encode(five, weights_of(five), strict=False)
    assert "plane 5 are not empty" in "".join(dat.guesses(data))
