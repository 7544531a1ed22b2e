"""Sentences of errors: their form, asserted once for all; every rule of the chip by its name and a key word."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gti.chip.network import json_form as network
from gti.chip.network import rules as network_rules
from gti.chip.network.rules import Violation, violations
from gti.chip.network.types import MajorLayer, Network
from gti.errors import NetworkError, UsageError, listing, printable, reason, sentence

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


# rule: (network, the layer named, a key word); docs/dat_format.md section 6 states the rules.
RULES: dict[str, tuple[Network, str, str]] = {
    "image-size": (net({"image_size": 30}), "major 1", "image_size"),
    "size-448-first": (net(second={"image_size": 448}), "major 2", "448"),
    "upsample-size": (net({"image_size": 448, "upsample_enable": True}), "major 1", "image_size"),
    "upsample-mode": (net({"upsample_enable": True, "upsample_mode": "bilinear"}), "major 1", "bilinear"),
    "size-chain": (net({"pooling": False}), "major 2", "28"),
    "first-input-channels": (net({"input_channels": 5}), "major 1", "input_channels"),
    "channel-chain": (net(second={"input_channels": 32}), "major 2", "16"),
    "output-channels": (net(second={"output_channels": 48}), "major 2", "output_channels"),
    "sublayer-number": (net({"sublayer_number": 13, "scaling": (4,) * 13}), "major 1", "sublayer_number"),
    "coef-bits": (net({"coef_bits": 2}), "major 1", "coef_bits"),
    "scaling-length": (net({"scaling": (4,)}), "major 1", "scaling"),
    "shift-range": (net({"scaling": (4, 16)}), "major 1 / sub 2 (conv1_2)", "16"),
    "one-coef-length": (net({"one_coef": (0, 1, 0)}), "major 1", "one_coef"),
    "one-coef-values": (net({"one_coef": (0, 2)}), "major 1 / sub 2 (conv1_2)", "one_coef"),
    "late-one-coef": (chain(*LATE[:3], replace(SECOND, one_coef=(1,))), "major 4", "one_coef"),
    "late-shortcuts": (
        chain(*LATE[:3], replace(SECOND, sublayer_number=3, scaling=(1, 1, 1), shortcuts=(1,))),
        "major 4",
        "resnet_shortcut_start_layers",
    ),
    "shortcut-range": (net({"shortcuts": (3,)}), "major 1", "1..1"),
    "shortcut-mixed": (net({"sublayer_number": 4, "scaling": (1,) * 4, "shortcuts": (1, 2)}), "major 1", "[2]"),
    "shortcut-even": (net({"sublayer_number": 4, "scaling": (1,) * 4, "shortcuts": (2,)}), "major 1", "[2]"),
    "shortcut-order": (net({"sublayer_number": 5, "scaling": (1,) * 5, "shortcuts": (3, 1)}), "major 1", "[1, 3]"),
    "shortcut-identity": (net({"coef_bits": 1, "shortcuts": (1,)}), "major 1", "coef_bits"),
    "depth-enable": (net({"extra": {"depth_enable": True}}), "major 1", "depth_enable"),
    "address-range": (net({"in_address": 1280}), "major 1", "in_addr"),
    "major-layers": (Network(()), "network", "1..6"),
    "chip-type": (net(chip_type=2803), "model", "2803"),
    "sampling-method": (net(sampling_method=2), "model", "SamplingMethod"),
    "activation-bit-mode": (net(activation_bit_mode=2), "model", "ActivationBitMode"),
    "mixed-outputs": (net({"learning": True}, {"last_layer_out": True}), "network", "last_layer_out"),
    "ten-bit-sublayers": (
        net(second={"sublayer_number": 2, "scaling": (6, 6)}, activation_bit_mode=1),
        "major 2",
        "received 2",
    ),
    "ten-bit-channels": (net(second={"output_channels": 1024}, activation_bit_mode=1), "major 2", "512"),
    "activation-memory": (Network((MajorLayer(224, 3, 64, 2, 3, (1, 1)),)), "major 1 / sub 2 (conv1_2)", "3211264"),
}


SENTENCE = re.compile(
    r"(?P<subject>[^:]+): (?P<problem>.+); expected (?P<expected>.+), received (?P<received>.+)\. Fix: .+\."
)


def fits_the_form(violation: Violation) -> None:
    """Subject, problem, expected, received and fix, in this order, on one line, with the full stops of `sentence`."""
    parts = SENTENCE.fullmatch(str(violation))
    assert parts, str(violation)
    assert re.fullmatch(r"file|model|network|major \d+( / sub \d+ \(conv\d+_\d+\))?", parts["subject"])
    for part in (violation.problem, violation.fix):
        assert part == part.strip().rstrip(".") != ""
    assert violation.expected is not None
    assert violation.received is not None


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_of_the_chip(rule: str) -> None:
    broken, layer, word = RULES[rule]
    (found,) = [violation for violation in violations(broken) if violation.rule == rule]
    assert found.layer == layer
    assert word in str(found)
    fits_the_form(found)


def rules_of(examined: Network) -> set[tuple[str, str]]:
    return {(violation.rule, violation.layer) for violation in violations(examined)}


@pytest.mark.parametrize("major", [4, 5, 6])
def test_late_layers_have_no_room_for_more(major: int) -> None:
    before = (*LATE, SECOND)[: major - 1]
    for change, rule in (
        ({"sublayer_number": 10, "scaling": (6,) * 10}, "sublayer-number"),
        ({"one_coef": (1,)}, "late-one-coef"),
        ({"sublayer_number": 3, "scaling": (6,) * 3, "shortcuts": (1,)}, "late-shortcuts"),
    ):
        found = rules_of(chain(*before, replace(SECOND, **change)))  # type: ignore[arg-type]
        assert (rule, f"major {major}") in found
    full = replace(SECOND, sublayer_number=9, scaling=(6,) * 9)
    assert not rules_of(chain(*before, full))


def test_every_rule_of_the_chip_is_here() -> None:
    source = Path(network_rules.__file__).read_text(encoding="utf-8")
    named = re.findall(r'(?:@_layer_rule\(|Violation\((?:"\w+"|\w+), )"([a-z0-9-]+)"', source)
    assert sorted(named) == sorted(RULES)  # sorted, not a set: a rule's name is written once


def json_of(**model: object) -> dict:
    return {"layer": [], "model": [{"MajorLayerNumber": 0, "ChipType": 2801} | model]}


@pytest.mark.parametrize(
    ("value", "rule", "layer", "word"),
    [
        ([], "json-type", "file", "list of 0"),
        ({"layer": []}, "json-key", "file", "model"),
        ({"layer": [], "model": []}, "model-entries", "model", "model"),
        (json_of(MajorLayerNumber=2), "major-layer-number", "model", "MajorLayerNumber"),
        (json_of(ChipType="2801"), "json-type", "model", "'2801' (str)"),
        (json_of(ChipType=True), "json-type", "model", "true (bool)"),
    ],
)
def test_every_rule_of_the_json(value: object, rule: str, layer: str, word: str) -> None:
    _, everything = network.examine(value)
    (found,) = [violation for violation in everything if violation.rule == rule]
    assert found.layer == layer
    assert word in str(found)
    fits_the_form(found)


def test_all_broken_rules_are_told_together() -> None:
    broken = net({"image_size": 30, "coef_bits": 2}, {"output_channels": 48})
    with pytest.raises(network.NetworkError) as caught:
        network.check(broken, "dat.json")
    found = violations(broken)
    assert sorted(violation.rule for violation in found) == [
        "coef-bits",
        "image-size",
        "output-channels",
        "size-chain",
    ]
    assert list(caught.value.violations) == found
    assert str(caught.value) == listing("dat.json", found)


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


def test_an_error_is_the_sentence_of_its_parts() -> None:
    parts = {"expected": 1, "received": 2, "fix": "count again"}
    assert str(UsageError("x\n", "is wrong", **parts)) == sentence("x\n", "is wrong", **parts)
    assert str(UsageError("a text: as it is\nwith lines")) == "a text: as it is\nwith lines"
    broken = NetworkError("x", "breaks rules", violations=[1, 2], **parts)
    assert (str(broken), broken.violations) == (sentence("x", "breaks rules", **parts), (1, 2))
    again = pickle.loads(pickle.dumps(UsageError("x", "is wrong", **parts)))  # from the process of a stick
    assert str(again) == sentence("x", "is wrong", **parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{{function_node __wrapped__SaveV2_dtypes_3_device_/job:localhost/replica:0/task:0/device:CPU:0}} "
            "/x/a.data; No space left on device [Op:SaveV2]",
            "/x/a.data; No space left on device",
        ),
        (
            "{{function_node __wrapped__DecodeImage_device_/job:localhost/replica:0/task:0/device:CPU:0}} Unknown image"
            " file format. One of JPEG, PNG, GIF, BMP required. [Op:DecodeImage] name: \n and more",
            "Unknown image file format. One of JPEG, PNG, GIF, BMP required.",
        ),
        ("{{node DecodeJpeg}} Corrupt data", "Corrupt data"),
        ("plain {braces} stay", "plain {braces} stay"),
    ],
)
def test_foreign_texts_lose_their_prefix_and_keep_their_reason(text, expected):
    class OpError(Exception):
        message = text

    assert reason(OpError()) == expected
    assert reason(ValueError(text)) == expected


def test_an_error_without_a_text_has_its_kind():
    assert reason(ValueError()) == "ValueError"
