"""Sentences of errors: their form, the exact words of every rule of the chip."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gti.chip.network import json_form as network
from gti.chip.network import rules as network_rules
from gti.chip.network.types import MajorLayer, Network
from gti.errors import listing, printable, sentence

FIRST = MajorLayer(28, 3, 16, 2, 3, (4, 5), pooling=True)
SECOND = MajorLayer(14, 16, 32, 1, 1, (6,))
LATE = (FIRST, SECOND, SECOND, SECOND)


def net(first: dict | None = None, second: dict | None = None, **changes: object) -> Network:
    layers = (replace(FIRST, **(first or {})), replace(SECOND, **(second or {})))
    return replace(Network(layers), **changes)  # type: ignore[arg-type]


def chain(*layers: MajorLayer) -> Network:
    """Return a network whose input channels follow from the outputs before."""
    joined: list[MajorLayer] = []
    for layer in layers:
        joined.append(replace(layer, input_channels=joined[-1].output_channels) if joined else layer)
    return Network(tuple(joined))


SIZES = "448, 224, 112, 56, 28, 14"
OUTPUTS = "16, 32, 64, 128, 256, 512, 1024"
INPUTS = "1, 2, 3, 4, 8, 12, 16, 32, 64, 128, 256, 512, 1024"

# rule: (network, the sentence of the violation with that name); docs/dat_format.md section 6 states the rules.
RULES: dict[str, tuple[Network, str]] = {
    "image-size": (
        net({"image_size": 30}),
        f"major 1: image_size is not a size of the chip; expected one of {SIZES}, received 30. "
        "Fix: the nearest legal value is 28.",
    ),
    "size-448-first": (
        net(second={"image_size": 448}),
        "major 2: image_size 448 is possible in the first major layer only; expected at most 224, received 448. "
        "Fix: pool or leave out the upsampling before this layer.",
    ),
    "upsample-size": (
        net({"image_size": 448, "upsample_enable": True}),
        "major 1: upsampling would go beyond the chip's largest size; expected image_size at most 224 (before "
        "doubling), received 448. Fix: leave out upsample_enable.",
    ),
    "upsample-mode": (
        net({"upsample_enable": True, "upsample_mode": "bilinear"}),
        "major 1: upsample_mode is unknown; expected one of repeat, zero, received bilinear. Fix: use repeat.",
    ),
    "size-chain": (
        net({"pooling": False}),
        "major 2: image_size is not what the major layer before delivers; expected 28, received 14. "
        "Fix: set image_size to 28, or change pooling or upsample_enable of major 1.",
    ),
    "first-input-channels": (
        net({"input_channels": 5}),
        f"major 1: input_channels of the first layer is not a count that the chip's input takes; expected one of "
        f"{INPUTS}, received 5. Fix: the nearest legal value is 4.",
    ),
    "channel-chain": (
        net(second={"input_channels": 32}),
        "major 2: input_channels differs from output_channels of the major layer before; expected 16, received 32. "
        "Fix: set input_channels to 16.",
    ),
    "output-channels": (
        net(second={"output_channels": 48}),
        f"major 2: output_channels is not a count of the chip; expected one of {OUTPUTS}, received 48. "
        "Fix: the nearest legal value is 32; pad missing channels with zero filters.",
    ),
    "sublayer-number": (
        net({"sublayer_number": 13, "scaling": (4,) * 13}),
        "major 1: sublayer_number is out of range; expected 1..12, received 13. "
        "Fix: split the major layer, or use fewer sublayers.",
    ),
    "coef-bits": (
        net({"coef_bits": 2}),
        "major 1: coef_bits is not a width of this chip; expected 1 or 3, received 2. "
        "Fix: use 3 for the first layers and 1 for wide ones.",
    ),
    "scaling-length": (
        net({"scaling": (4,)}),
        "major 1: scaling does not hold one shift for each sublayer; expected 2 values, received 1 values. "
        "Fix: list one shift for each sublayer (zeros in a template).",
    ),
    "shift-range": (
        net({"scaling": (4, 16)}),
        "major 1 / sub 2 (conv1_2): the shift in scaling is out of range; expected 0..15, received 16. "
        "Fix: convert the layer again; training uses 0..12.",
    ),
    "one-coef-length": (
        net({"one_coef": (0, 1, 0)}),
        "major 1: one_coef does not hold one flag for each sublayer; expected 2 values, received 3 values. "
        "Fix: list 0 (3x3) or 1 (1x1) for each sublayer, or leave one_coef out.",
    ),
    "one-coef-values": (
        net({"one_coef": (0, 2)}),
        "major 1 / sub 2 (conv1_2): one_coef holds an unknown flag; expected 0 (3x3) or 1 (1x1), received 2. "
        "Fix: use 0 for a 3x3 convolution.",
    ),
    "late-one-coef": (
        chain(*LATE[:3], replace(SECOND, one_coef=(1,))),
        "major 4: one_coef is lost from major layer 4 on, as the file has no place for it; expected no one_coef, or "
        "zeros, received [1]. Fix: use a 3x3 convolution with a filled centre, or move the layer to major 1..3.",
    ),
    "late-shortcuts": (
        chain(*LATE[:3], replace(SECOND, sublayer_number=3, scaling=(1, 1, 1), shortcuts=(1,))),
        "major 4: resnet_shortcut_start_layers is lost from major layer 4 on, as the file has no place for it; "
        "expected no shortcuts, received [1]. Fix: use shortcuts in major 1..3 only.",
    ),
    "shortcut-range": (
        net({"shortcuts": (3,)}),
        "major 1: a shortcut starts outside the major layer; expected 1..1, received 3. "
        "Fix: start it at a sublayer before the last.",
    ),
    "shortcut-mixed": (
        net({"sublayer_number": 4, "scaling": (1,) * 4, "shortcuts": (1, 2)}),
        "major 1: odd and even shortcut starts are mixed; expected odd starts (1, 3, 5, ...), received [2]. "
        "Fix: start shortcuts at odd sublayers.",
    ),
    "shortcut-even": (
        net({"sublayer_number": 4, "scaling": (1,) * 4, "shortcuts": (2,)}),
        "major 1: even shortcut starts are stored like odd ones; expected odd starts (1, 3, 5, ...), received [2]. "
        "Fix: start shortcuts at odd sublayers.",
    ),
    "shortcut-order": (
        net({"sublayer_number": 5, "scaling": (1,) * 5, "shortcuts": (3, 1)}),
        "major 1: resnet_shortcut_start_layers is unsorted or repeats a start; expected rising starts, each once, "
        "received [3, 1]. Fix: write [1, 3].",
    ),
    "shortcut-identity": (
        net({"coef_bits": 1, "shortcuts": (1,)}),
        "major 1: a shortcut into the pooling needs an identity pass, which 1-bit coefficients cannot hold; expected "
        "coef_bits 3, received 1. Fix: use coef_bits 3, or end the last shortcut one sublayer earlier.",
    ),
    "depth-enable": (
        net({"extra": {"depth_enable": True}}),
        "major 1: depthwise convolutions have no usable form in the file; expected depth_enable false, received true. "
        "Fix: use full 3x3 convolutions.",
    ),
    "address-range": (
        net({"in_address": 1280}),
        "major 1: in_addr lies outside the activation memory; expected 0..1279, received 1280. "
        "Fix: leave in_addr out: the plan chooses it.",
    ),
    "major-layers": (
        Network(()),
        "network: the number of major layers is out of range; expected 1..6, received 0. "
        "Fix: join layers of one size into one major layer.",
    ),
    "chip-type": (
        net(chip_type=2803),
        "model: ChipType is another chip; expected 2801, received 2803. Fix: this kit writes files for the 2801.",
    ),
    "sampling-method": (
        net(sampling_method=2),
        "model: SamplingMethod is unknown; expected 0 (max pooling) or 1 (top-left pixel), received 2. Fix: use 0.",
    ),
    "activation-bit-mode": (
        net(activation_bit_mode=2),
        "model: ActivationBitMode is not supported; expected 0 (5 bit) or 1 (ten-bit output), received 2. Fix: use 0.",
    ),
    "mixed-outputs": (
        net({"learning": True}, {"last_layer_out": True}),
        "network: learning and last_layer_out are both used; expected one kind of intermediate output, received both. "
        "Fix: set one of them to false in all layers.",
    ),
    "ten-bit-sublayers": (
        net(second={"sublayer_number": 2, "scaling": (6, 6)}, activation_bit_mode=1),
        "major 2: a ten-bit output needs a last major layer of one sublayer; expected 1, received 2. "
        "Fix: put the last sublayer into a major layer of its own.",
    ),
    "ten-bit-channels": (
        net(second={"output_channels": 1024}, activation_bit_mode=1),
        "major 2: a ten-bit output counts its channels twice, beyond what the register holds; expected at most 512 "
        "output_channels, received 1024. Fix: use 512 output channels.",
    ),
    "activation-memory": (
        Network((MajorLayer(224, 3, 64, 2, 3, (1, 1)),)),
        "major 1 / sub 2 (conv1_2): the activations do not fit in the chip's memory; expected at most 4014080 bytes, "
        "in blocks of 224 x 224 x 16, received 3211264 bytes in (address 256) and 3211264 bytes out (address 0). "
        "Fix: use fewer than 64 output channels, a smaller image, or pool earlier.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_sentence_of_every_rule(rule: str) -> None:
    broken, expected = RULES[rule]
    found = {violation.rule: str(violation) for violation in network.violations(broken)}
    assert found.get(rule) == expected


def test_every_rule_of_the_chip_has_its_sentence_here() -> None:
    source = Path(network_rules.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)+)"', source))
    assert named - {"shortcut-parity"} == set(RULES)  # this one gives shortcut-mixed or shortcut-even


def json_of(**model: object) -> dict:
    return {"layer": [], "model": [{"MajorLayerNumber": 0, "ChipType": 2801} | model]}


@pytest.mark.parametrize(
    ("value", "rule", "expected"),
    [
        ([], "json-type", "file: is not a JSON object; expected an object, received a list of 0. Fix: write { ... }."),
        ({"layer": []}, "json-key",
         'file: the key "model" is missing; expected a list, received nothing. Fix: add "model".'),
        ({"layer": [], "model": []}, "model-entries",
         'model: "model" must hold one object; expected 1, received 0. Fix: keep one.'),
        (json_of(MajorLayerNumber=2), "major-layer-number",
         "model: MajorLayerNumber differs from the number of layers listed; expected 0, received 2. "
         "Fix: set MajorLayerNumber to 0."),
        (json_of(ChipType="2801"), "json-type",
         "model: \"ChipType\" has the wrong type; expected an integer, received '2801' (str). Fix: write an integer."),
        (json_of(ChipType=True), "json-type",
         'model: "ChipType" has the wrong type; expected an integer, received true (bool). Fix: write an integer.'),
    ],
)  # fmt: skip
def test_sentence_of_every_rule_of_the_json(value: object, rule: str, expected: str) -> None:
    _, found = network.examine(value)
    assert expected in [str(violation) for violation in found if violation.rule == rule]


def test_all_broken_rules_are_told_together() -> None:
    broken = net({"image_size": 30, "coef_bits": 2}, {"output_channels": 48})
    with pytest.raises(network.NetworkError) as caught:
        network.check(broken, "dat.json")
    first, *rest = str(caught.value).split("\n")
    assert first == "dat.json: 4 things to correct:"
    assert [line.strip() for line in rest] == [str(violation) for violation in network.violations(broken)]


# Form


def test_form_of_a_sentence() -> None:
    assert sentence("x.dat", "is short") == "x.dat: is short."
    assert sentence("x.dat", "is short", expected=92, received=3) == "x.dat: is short; expected 92, received 3."
    assert sentence("x.dat", "is short", expected=0) == "x.dat: is short; expected 0."
    assert sentence("x", "is short", fix="copy it.") == "x: is short. Fix: copy it."
    assert sentence("x", "has gaps", fix="number 1, 2, ...") == "x: has gaps. Fix: number 1, 2, ..."


def test_form_of_a_listing() -> None:
    assert listing("x", ["a."]) == "x: a."
    assert listing("x", ["a.", "b."]) == "x: 2 things to correct:\n  a.\n  b."
    assert listing("x", ["a."] * 50).split("\n")[-2:] == ["  a.", "  and 10 more"]


@given(st.text(), st.integers(1, 50))
def test_printable_text(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    if text.isprintable() and len(text) <= limit:
        assert shown == text
    assert len(shown) <= 8 * limit + 3


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_sentences_are_printable(subject: str, problem: str, expected: str, received: str, fix: str) -> None:
    text = sentence(subject, problem, expected=expected, received=received, fix=fix)
    assert text.isprintable()
    assert len(text) < 25_000
