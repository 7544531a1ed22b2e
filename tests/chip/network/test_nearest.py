"""The nearest legal network: known repairs, and legality for anything that can be written down."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gti.chip.network.nearest import closest, nearest
from gti.chip.network.rules import violations
from gti.chip.network.types import MajorLayer, Network
from gti.chip.spec import IMAGE_SIZES, OUTPUT_CHANNELS

LEGAL = MajorLayer(28, 3, 32, 2, 3, (0, 0), pooling=True)


def with_first(**values) -> Network:
    fields = {name: getattr(LEGAL, name) for name in LEGAL.__dataclass_fields__} | values
    return Network((MajorLayer(**fields),))


def test_a_legal_network_is_left_alone():
    network = Network((LEGAL,))
    assert nearest(network) == (network, ())


@pytest.mark.parametrize(
    ("value", "legal", "expected"),
    [(200, IMAGE_SIZES, 224), (1, IMAGE_SIZES, 14), (48, OUTPUT_CHANNELS, 32), (49, OUTPUT_CHANNELS, 64)],
)
def test_closest(value, legal, expected):
    assert closest(value, legal) == expected


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        (with_first(image_size=30), ["major 1: image_size 30 -> 28"]),
        (with_first(input_channels=5), ["major 1: input_channels 5 -> 8"]),
        (with_first(output_channels=48), ["major 1: output_channels 48 -> 64"]),
        (with_first(coef_bits=8), ["major 1: coef_bits 8 -> 3"]),
        (with_first(sublayer_number=3), ["major 1: scaling [0, 0] -> [0, 0, 0]"]),
        (with_first(scaling=(-1, 16)), ["major 1: scaling [-1, 16] -> [0, 15]"]),
        # The start at 1 reaches the pooling behind the last sublayer, which 3-bit coefficients can hold.
        (with_first(shortcuts=(1, 2)), ["major 1: resnet_shortcut_start_layers [1, 2] -> [1]"]),
        (with_first(extra={"depth_enable": True}), ["major 1: depth_enable true -> false"]),
        (with_first(in_address=5000), ["major 1: in_addr 5000 -> None"]),
        (Network((LEGAL,), chip_type=5801), ["network: ChipType 5801 -> 2801"]),
        # 448 x 448 leaves room for 16 pooled channels (docs/dat_format.md section 6).
        (
            with_first(image_size=448, pooling=False, sublayer_number=1, scaling=(0,)),
            ["major 1: output_channels 32 -> 16", "major 1: pooling false -> true"],
        ),
        # Seven layers of one shape are one layer with more sublayers.
        (
            Network((MajorLayer(28, 3, 16, 1, 3, (0,)), *[MajorLayer(28, 16, 16, 1, 3, (0,))] * 6)),
            ["network: MajorLayerNumber 7 -> 6", "major 1: sublayer_number 1 -> 2", "major 1: scaling [0] -> [0, 0]"],
        ),
    ],
)
def test_repairs(network, changes):
    repaired, found = nearest(network)
    assert [str(change) for change in found] == changes
    assert violations(repaired) == []


def test_memory_overflow_narrows_the_layer_that_overflows():
    # 64 channels at 224 fill the memory; 128 do not fit.
    network = Network((MajorLayer(224, 3, 128, 2, 3, (0, 0), pooling=True), MajorLayer(112, 128, 128, 1, 3, (0,))))
    repaired, changes = nearest(network)
    assert [str(change) for change in changes] == [
        "major 1: output_channels 128 -> 64",
        "major 2: input_channels 128 -> 64",
    ]
    assert violations(repaired) == []


NUMBERS = st.integers(-3, 2100)
LAYERS = st.builds(
    MajorLayer,
    image_size=NUMBERS,
    input_channels=NUMBERS,
    output_channels=NUMBERS,
    sublayer_number=st.integers(-1, 20),
    coef_bits=st.integers(-1, 9),
    scaling=st.lists(st.integers(-3, 20), max_size=14).map(tuple),
    pooling=st.booleans(),
    learning=st.booleans(),
    last_layer_out=st.booleans(),
    upsample_enable=st.booleans(),
    upsample_mode=st.sampled_from(["repeat", "zero", "other"]),
    one_coef=st.lists(st.integers(-1, 2), max_size=14).map(tuple),
    shortcuts=st.lists(st.integers(-1, 14), max_size=5).map(tuple),
    in_address=st.none() | NUMBERS,
    out_address=st.none() | NUMBERS,
    extra=st.sampled_from([{}, {"depth_enable": True}]),
)
NETWORKS = st.builds(
    Network,
    st.lists(LAYERS, min_size=1, max_size=9).map(tuple),
    chip_type=st.sampled_from([2801, 5801]),
    sampling_method=st.integers(-1, 2),
    activation_bit_mode=st.integers(-1, 2),
)


@pytest.mark.slow
@settings(max_examples=400)
@given(NETWORKS)
def test_the_nearest_network_is_legal_and_changes_explain_it(network):
    repaired, changes = nearest(network)
    assert violations(repaired) == []
    assert bool(changes) == bool(violations(network))
