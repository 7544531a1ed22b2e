"""The table of behaviours: every alternative against a statement of its own in plain Python integers."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
from emulated import lively_weights
from places import ROOT
from sweeps import first_quick

from gti.chip.emulator import arithmetic, engine_behaviours
from gti.chip.emulator.behaviours import ASSUMED, QUESTIONS, TABLE, Behaviours, combinations, parse
from gti.chip.emulator.emulator import Emulator
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.errors import NetworkError, UsageError

SUMS = [*range(-70, 140), *(2**k + d for k in (15, 16, 19, 20, 23, 24) for d in (-1, 0, 1)), -(2**15) - 1, -(2**23) - 5]


def test_the_table_is_sound():
    for question in QUESTIONS:
        assert len(set(question.names)) == len(question.names) >= 2
        assert all(one.means for one in question.alternatives)
        assert (ROOT / question.obeyed).is_file()


def test_texts_go_there_and_back():
    chosen = ASSUMED.changed(learn_maps="after", rounding="floor", pooling="maximum")
    assert chosen.text == "rounding=floor,learn_maps=after"
    assert parse(chosen.text) == chosen
    assert parse("") == ASSUMED
    assert chosen.of(["rounding"]).text == "rounding=floor"
    assert ASSUMED.changed(gpio="high", bias="as_code").of_the_chip.text == "bias=as_code"
    assert len(set(combinations(["rounding", "bias"]))) == 15


@pytest.mark.parametrize("text", ["rounding", "rounding=up", "sorcery=floor"])
def test_what_is_not_in_the_table_is_refused(text: str):
    with pytest.raises(UsageError):
        parse(text)


@functools.cache
def rounded(value: int, places: int, how: str) -> int:
    exact = Fraction(value) / Fraction(2) ** places
    match how:
        case "half_up":
            return math.floor(exact + Fraction(1, 2))
        case "floor":
            return math.floor(exact)
        case "half_away":
            return int(math.copysign(math.floor(abs(exact) + Fraction(1, 2)), exact))
        case "half_even":
            return round(exact)
        case "truncate":
            return math.trunc(exact)
    raise AssertionError(how)


def held(value: int, how: str) -> int:
    if how == "wide":
        return value
    bits = int(how[-2:])
    if how.startswith("wrap"):
        raw = value % 2**bits
        return raw - 2**bits if raw >= 2 ** (bits - 1) else raw
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, value))


def cut(value: int, top: int, how: str) -> int:
    match how:
        case "clip":
            return max(0, min(top, value))
        case "wrap":
            return value % (top + 1) if value > 0 else 0
        case "wrap_signed":
            return value % (top + 1)
        case "below_top":
            return max(0, min(top - 1, value))
    raise AssertionError(how)


def code(total: int, bias: int, shift: int, ten_bit: bool, chosen: Behaviours) -> int:
    places, top = (shift - 5, 1023) if ten_bit else (shift, 31)
    rounding, accumulator = chosen["rounding"], chosen["accumulator"]
    if chosen["bias"] == "full":
        value = rounded(held(total + bias, accumulator), places, rounding)
    else:
        value = rounded(held(total, accumulator), places, rounding)
        value += bias if chosen["bias"] == "as_code" else rounded(bias, places, rounding)
    return cut(value, top, chosen["saturation"])


@pytest.mark.parametrize("ten_bit", [False, True])
@pytest.mark.parametrize("shift", first_quick(2, [4, 15, 0, 1, 12]))
def test_codes_of_every_combination(shift: int, ten_bit: bool):
    sums, biases = np.array(SUMS)[:, None], np.array([0, 3, -3, 8, -100])
    some = list(combinations(["rounding", "saturation", "accumulator", "bias"]))
    assert len(some) == 420
    for chosen in some[:: 7 if shift else 3]:
        found = arithmetic.alternative_codes(sums, biases, shift, ten_bit, chosen)
        expected = [[code(int(s), int(b), shift, ten_bit, chosen) for b in biases] for s in SUMS]
        assert np.array_equal(found, expected), chosen.text


def test_assumed_codes_are_those_of_requantize():
    sums = np.array(SUMS)
    for shift in range(16):
        for ten_bit in (False, True):
            rule = arithmetic.requantization(shift, ten_bit)
            found = arithmetic.alternative_codes(sums, np.int64(0), shift, ten_bit, ASSUMED)
            assert np.array_equal(found, arithmetic.requantize(sums, *rule))


WINDOWS = np.array([[[1, 5], [9, 4]], [[31, 31], [31, 30]], [[0, 1], [0, 0]]], np.uint8)[..., None]
POOLED = [
    # (question, alternative, pooled codes of the windows: by hand)
    ("pooling", "maximum", (9, 31, 1)),
    ("pooling", "average", (5, 31, 0)),  # 19 / 4 = 4.75, 123 / 4 = 30.75, 1 / 4
    ("pooling", "average_down", (4, 30, 0)),
    ("sampling", "top_left", (1, 31, 0)),
    ("sampling", "top_right", (5, 31, 1)),
    ("sampling", "bottom_left", (9, 31, 0)),
    ("sampling", "bottom_right", (4, 30, 0)),
    ("sampling", "average", (5, 31, 0)),
]


@pytest.mark.parametrize(("question", "name", "expected"), POOLED)
def test_pooling(question: str, name: str, expected: tuple[int, ...]):
    method = int(question == "sampling")
    found = arithmetic.pool(WINDOWS, method, ASSUMED.changed(**{question: name}))
    assert found.dtype == np.uint8
    assert tuple(found.ravel()) == expected


def test_every_alternative_of_pooling_is_tried():
    assert {(q, n) for q, n, _ in POOLED} == {(q, n) for q in ("pooling", "sampling") for n in TABLE[q].names}


def one_layer(**changes: object) -> Network:
    values: dict[str, object] = {"pooling": False, "coef_bits": 3, "sublayer_number": 1, "scaling": (0,)}
    return Network((MajorLayer(14, 16, 16, **(values | changes)),))  # type: ignore[arg-type]


def taps(values: list[int]) -> np.ndarray:
    """Filters of output 0 on input 1: nine taps."""
    filters = np.zeros((16, 16, 3, 3), np.int16)
    filters[0, 1] = np.reshape(values, (3, 3))
    return filters


def outputs(network: Network, filters: list[np.ndarray], image: np.ndarray, chosen: Behaviours) -> np.ndarray:
    weights = [ConvolutionWeights(one, np.zeros(16, np.int32), 0) for one in filters]
    return Emulator(network, weights, behaviours=chosen).output((image * 8).astype(np.uint8)[None])[0]


def impulse(row: int, column: int, channel: int = 1, code: int = 1) -> np.ndarray:
    image = np.zeros((14, 14, 16), np.uint8)
    image[row, column, channel] = code
    return image


NINE = [1, 2, 4, 2, 1, 4, 4, 1, 2]


def test_borders():
    # A code of 3 in the corner and a filter that looks up and left: replicated pixels are seen, zeros are not.
    image = impulse(0, 0, code=3)
    assert outputs(one_layer(), [taps([1] + [0] * 8)], image, ASSUMED)[0, 0, 0] == 0
    replicated = outputs(one_layer(), [taps([1] + [0] * 8)], image, ASSUMED.changed(borders="replicated"))
    assert replicated[0, 0, 0] == 3
    assert replicated.sum() == 12  # at (1, 1), whose upper left it is, and at (0, 1) and (1, 0) once more


def test_one_bit_sign():
    network, filters = one_layer(coef_bits=1), [taps([1, -1, 1, -1, 1, -1, 1, -1, 1])]
    plain = outputs(network, filters, impulse(5, 5), ASSUMED)[0, 4:7, 4:7]
    negated = outputs(network, filters, impulse(5, 5), ASSUMED.changed(one_bit_sign="minus"))[0, 4:7, 4:7]
    assert plain.ravel().tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert negated.ravel().tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_one_coef():
    network = one_layer(one_coef=(1,))
    with pytest.raises(NetworkError, match="one_coef"):
        outputs(network, [taps(NINE)], impulse(5, 5), ASSUMED)
    found = {
        name: outputs(network, [taps(NINE)], impulse(5, 5), ASSUMED.changed(one_coef=name))[0, 4:7, 4:7].ravel()
        for name in TABLE["one_coef"].names[1:]
    }
    # An impulse shows a filter turned by 180 degrees.
    assert found["all"].tolist() == NINE[::-1]
    assert found["centre"].tolist() == [0, 0, 0, 0, NINE[4], 0, 0, 0, 0]
    assert found["first"].tolist() == [0, 0, 0, 0, NINE[0], 0, 0, 0, 0]


def test_depthwise():
    network = one_layer(sublayer_number=2, scaling=(0, 0), extra={"depth_enable": True})
    mixing = np.zeros((16, 16, 3, 3), np.int16)
    mixing[:, :, 1, 1] = 1
    with pytest.raises(NetworkError, match="depthwise"):
        outputs(network, [mixing, mixing], impulse(5, 5), ASSUMED)
    every = outputs(network, [mixing, mixing], impulse(5, 5), ASSUMED.changed(depthwise="all"))
    diagonal = outputs(network, [mixing, mixing], impulse(5, 5), ASSUMED.changed(depthwise="diagonal"))
    assert every[:, 5, 5].tolist() == [16] * 16  # the first sublayer spreads 1, the second adds sixteen of them
    assert diagonal[:, 5, 5].tolist() == [1] * 16


def test_shortcuts():
    network = one_layer(sublayer_number=2, scaling=(0, 0), shortcuts=(1,))
    keep, less = np.zeros((2, 16, 16, 3, 3), np.int16)
    keep[range(16), range(16), 1, 1] = 1
    less[range(16), range(16), 1, 1] = -1
    image = impulse(5, 5, code=9)
    with pytest.raises(NetworkError, match="shortcuts"):
        outputs(network, [keep, less], image, ASSUMED)
    found = {
        name: int(outputs(network, [keep, less], image, ASSUMED.changed(shortcuts=name))[1, 5, 5])
        for name in TABLE["shortcuts"].names[1:]
    }
    # The second sublayer makes -9 of 9; its code is 0.
    assert found == {"before": 0, "after": 9, "ignored": 0}
    doubled = outputs(network, [keep, keep], image, ASSUMED.changed(shortcuts="before"))
    assert doubled[1, 5, 5] == 18
    high = outputs(network, [keep, keep], impulse(5, 5, code=20), ASSUMED.changed(shortcuts="after"))
    assert high[1, 5, 5] == 31


def test_upsampling():
    layers = (MajorLayer(14, 16, 16, 1, 3, (0,)), MajorLayer(28, 16, 16, 1, 3, (0,), upsample_enable=True))
    keep = np.zeros((16, 16, 3, 3), np.int16)
    keep[range(16), range(16), 1, 1] = 1
    zero = ASSUMED.changed(upsample_size="after", upsample_fill="zero")
    found = outputs(Network(layers), [keep, keep], impulse(5, 5, code=7), zero)
    assert found.shape == (16, 28, 28)
    assert found[1, 10:12, 10:12].tolist() == [[7, 0], [0, 0]]
    with pytest.raises(NetworkError):
        outputs(Network(layers), [keep, keep], impulse(5, 5), ASSUMED)


def test_activation_memory():
    # 224 x 224 x 64 codes are 1024 units from unit 256 on: 512 units hold the first 16 channels alone.
    layers = (MajorLayer(224, 3, 64, 1, 3, (0,)), MajorLayer(224, 64, 16, 1, 3, (0,), pooling=True))
    for units, channels in ((1280, 64), (1024, 48), (768, 32), (512, 16)):
        assert engine_behaviours._lost_channels(Network(layers), units)[0] == channels


def test_maps_of_pooled_layers():
    network = one_layer(pooling=True)
    filters = np.zeros((16, 16, 3, 3), np.int16)
    filters[range(16), range(16), 1, 1] = 1
    weights = [ConvolutionWeights(filters, np.zeros(16, np.int32), 0)]
    image = (impulse(5, 3, code=9) * 8).astype(np.uint8)
    for mode, question in (("learn", "learn_maps"), ("lastmajor", "learn_maps"), ("sublast", "sublast_maps")):
        found = {
            name: np.argwhere(
                Emulator(network, weights, behaviours=ASSUMED.changed(**{question: name})).read_out(image, mode)[0][1]
            ).tolist()
            for name in TABLE[question].names
        }
        # (5, 3) is pooled to (2, 1), the fifteenth of 49 values: in rows of 14, place 1 of row 1.
        assert found == {"before": [[5, 3]], "after": [[2, 1]], "after_packed": [[1, 1]]}


def test_the_default_is_computed_as_ever():
    network = one_layer()
    emulator = Emulator(network, lively_weights(network, 1), engine="numpy")
    assert emulator.engine == "NumPy"
    other = Emulator(network, lively_weights(network, 1), behaviours=ASSUMED.changed(rounding="floor"))
    assert "rounding=floor" in other.engine
    # Drivers are not the emulator's matter.
    assert (
        Emulator(network, lively_weights(network, 1), engine="numpy", behaviours=parse("gpio=high")).engine == "NumPy"
    )
