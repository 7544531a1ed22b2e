"""dat.json <-> Network, and every rule of the chip with its sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import places
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from gti.chip.network import json_form as network
from gti.chip.network import rules as network_rules
from gti.chip.network.json_form import NetworkError
from gti.chip.network.memory_plan import Placement, address_plan
from gti.chip.network.rules import uncomputable, violations, violations_of_file
from gti.chip.network.types import Convolution

GOLDEN = places.GOLDEN
CONFIGS = [case["config"] for case in json.loads((GOLDEN / "dat_headers.json").read_text())]
DIGESTS = [case["config"] for case in json.loads((GOLDEN / "dat_digests.json").read_text())]
CONFIGS += DIGESTS[:-6]  # the sizes of the last six do not chain


def legal() -> dict[str, Any]:
    """Return a network of four major layers that runs on the chip."""
    keys = ("image_size", "input_channels", "output_channels", "sublayer_number", "coef_bits", "pooling")
    rows = [(112, 3, 16, 1, 3, True), (56, 16, 32, 3, 3, True), (28, 32, 64, 2, 1, True), (14, 64, 128, 1, 1, True)]
    layers = [{"major_layer": m, **dict(zip(keys, row, strict=True))} for m, row in enumerate(rows, 1)]
    for layer in layers:
        layer["scaling"] = [8] * layer["sublayer_number"]
    return {"layer": layers, "model": [{"MajorLayerNumber": 4, "ChipType": 2801}]}


def put(layer: int, **values: object) -> Callable[[dict[str, Any]], None]:
    """Return a change of keys of major layer `layer` (1-based)."""
    return lambda config: config["layer"][layer - 1].update(values)


def model(**values: object) -> Callable[[dict[str, Any]], None]:
    """Return a change of keys of "model"."""
    return lambda config: config["model"][0].update(values)


def drop(layer: int, key: str) -> Callable[[dict[str, Any]], None]:
    """Return the removal of a key of a major layer (1-based)."""
    return lambda config: config["layer"][layer - 1].pop(key)


def both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return several changes as one."""

    def change(config: dict[str, Any]) -> None:
        for part in changes:
            part(config)

    return change


def more_layers(config: dict[str, Any]) -> None:
    config["layer"] += [
        {
            "major_layer": 5,
            "image_size": 14,
            "input_channels": 128,
            "output_channels": 128,
            "sublayer_number": 1,
            "coef_bits": 1,
            "scaling": [8],
        }
    ] * 3
    config["layer"][3]["pooling"] = False
    config["model"][0]["MajorLayerNumber"] = 7


# Broken rules with which the vendor's converter writes a file all the same, and those that a file holds without loss.
TOLERATED = {
    "first-input-channels", "channel-chain", "output-channels", "shift-range", "one-coef-length", "one-coef-values",
    "late-one-coef", "late-shortcuts", "shortcut-even", "shortcut-identity", "chip-type", "sampling-method",
    "ten-bit-channels",
}  # fmt: skip
COMPUTED = {"size-448-first", "upsample-size", "size-chain"}

# Every row of docs/dat_format.md section 6 that concerns the network, and the shape facts of the chip:
# change of the legal network -> rule, layer, what the sentence says.
REJECTED = [
    (put(2, coef_bits=0), "coef-bits", "major 2", "expected 1 or 3, received 0"),
    (put(2, coef_bits=8), "coef-bits", "major 2", "expected 1 or 3, received 8"),
    (put(1, input_channels=5), "first-input-channels", "major 1", "nearest legal value is 8"),
    (put(1, input_channels=17), "first-input-channels", "major 1", "nearest legal value is 32"),
    (put(1, input_channels=24), "first-input-channels", "major 1", "received 24"),
    (put(1, input_channels=48), "first-input-channels", "major 1", "received 48"),
    (put(1, input_channels=1025), "first-input-channels", "major 1", "nearest legal value is 1024"),
    (put(4, output_channels=2048), "output-channels", "major 4", "nearest legal value is 1024"),
    (put(4, output_channels=20), "output-channels", "major 4", "channels"),
    (put(4, output_channels=48), "output-channels", "major 4", "received 48"),
    (put(3, input_channels=16), "channel-chain", "major 3", "expected 32"),
    (put(4, image_size=7), "image-size", "major 4", "nearest legal value is 14"),
    (put(1, image_size=256), "image-size", "major 1", "nearest legal value is 224"),
    (put(4, image_size=28), "size-chain", "major 4", "expected 14, received 28"),
    (put(3, pooling=False), "size-chain", "major 4", "upsample_enable"),
    (
        both(put(1, image_size=224, pooling=False, upsample_enable=True), put(2, image_size=448)),
        "size-448-first",
        "major 2",
        "first",
    ),
    (put(1, image_size=448, upsample_enable=True), "upsample-size", "major 1", "received 448"),
    (put(2, upsample_mode="bilinear"), "upsample-mode", "major 2", "expected one of repeat, zero, received bilinear"),
    (more_layers, "major-layers", "network", "expected 1..6, received 7"),
    (lambda c: c["layer"].clear(), "major-layers", "network", "expected 1..6, received 0"),
    (put(4, sublayer_number=10, scaling=[8] * 10), "sublayer-number", "major 4", "1..9 from major layer 4 on"),
    (put(2, sublayer_number=13, scaling=[8] * 13), "sublayer-number", "major 2", "expected 1..12, received 13"),
    (put(2, sublayer_number=0, scaling=[]), "sublayer-number", "major 2", "received 0"),
    (
        put(2, sublayer_number=12, scaling=[8] * 12, resnet_shortcut_start_layers=[11]),
        "sublayer-number",
        "major 2",
        "received 12 and the extra shortcut pass",
    ),
    (put(2, scaling=[8, 8]), "scaling-length", "major 2", "expected 3 values, received 2 values"),
    (put(2, scaling=[8, -1, 8]), "shift-range", "major 2 / sub 2 (conv2_2)", "expected 0..15, received -1"),
    (put(2, scaling=[16, 8, 8]), "shift-range", "major 2 / sub 1 (conv2_1)", "received 16"),
    (put(4, one_coef=[1]), "late-one-coef", "major 4", "one_coef"),
    (put(2, one_coef=[1]), "one-coef-length", "major 2", "expected 3 values, received 1 values"),
    (put(2, one_coef=[0, 2, 1]), "one-coef-values", "major 2 / sub 2 (conv2_2)", "received 2"),
    (
        put(4, sublayer_number=2, scaling=[8, 8], resnet_shortcut_start_layers=[1]),
        "late-shortcuts",
        "major 4",
        "place",
    ),
    (put(2, resnet_shortcut_start_layers=[3]), "shortcut-range", "major 2", "expected 1..2, received 3"),
    (put(1, resnet_shortcut_start_layers=[1]), "shortcut-range", "major 1", "expected at least 2 sublayers"),
    (put(2, resnet_shortcut_start_layers=[-1]), "shortcut-range", "major 2", "received -1"),
    (put(2, resnet_shortcut_start_layers=[1, 2]), "shortcut-mixed", "major 2", "received [2]"),
    (put(2, resnet_shortcut_start_layers=[2]), "shortcut-even", "major 2", "stored"),
    (
        put(2, sublayer_number=5, scaling=[8] * 5, resnet_shortcut_start_layers=[3, 1]),
        "shortcut-order",
        "major 2",
        "[1, 3]",
    ),
    (put(2, resnet_shortcut_start_layers=[1, 1]), "shortcut-order", "major 2", "received [1, 1]"),
    (put(3, resnet_shortcut_start_layers=[1]), "shortcut-identity", "major 3", "coef_bits 3"),
    (put(2, depth_enable=True), "depth-enable", "major 2", "usable"),
    (put(2, in_addr=1280), "address-range", "major 2", "in_addr"),
    (put(2, out_addr=-1), "address-range", "major 2", "out_addr"),
    (model(ChipType=5801), "chip-type", "model", "expected 2801, received 5801"),
    (model(SamplingMethod=2), "sampling-method", "model", "received 2"),
    (model(ActivationBitMode=2), "activation-bit-mode", "model", "received 2"),
    (model(MajorLayerNumber=5), "major-layer-number", "model", "expected 4, received 5"),
    (model(MajorLayerNumber=0), "major-layer-number", "model", "MajorLayerNumber"),
    (both(put(1, learning=True), put(2, last_layer_out=True)), "mixed-outputs", "network", "both"),
    (
        both(model(ActivationBitMode=1), put(4, sublayer_number=2, scaling=[8, 8])),
        "ten-bit-sublayers",
        "major 4",
        "expected 1, received 2",
    ),
    (both(model(ActivationBitMode=1), put(4, output_channels=1024)), "ten-bit-channels", "major 4", "at most 512"),
    # 112 * 112 * 512 bytes out of 1280 * 3136 do not fit beside the input
    (
        both(put(1, output_channels=512, sublayer_number=2, scaling=[8, 8]), put(2, input_channels=512)),
        "activation-memory",
        "major 1 / sub 1 (conv1_1)",
        "at most 4014080 bytes",
    ),
    # JSON: missing keys and wrong types
    (drop(2, "scaling"), "json-key", "major 2", '"scaling"'),
    (drop(1, "major_layer"), "json-key", "major 1", '"major_layer"'),
    (lambda c: c.pop("model"), "json-key", "file", '"model"'),
    (lambda c: c["model"].append({}), "model-entries", "model", "expected 1, received 2"),
    (lambda c: c["model"][0].pop("ChipType"), "json-key", "model", '"ChipType"'),
    (put(2, image_size="56"), "json-type", "major 2", "expected an integer, received '56' (str)"),
    (put(2, image_size=56.5), "json-type", "major 2", "received 56.5 (float)"),
    (put(2, image_size=None), "json-type", "major 2", "received null"),
    (put(2, image_size=True), "json-type", "major 2", "received true (bool)"),
    (put(2, pooling=1), "json-type", "major 2", "expected true or false, received 1 (int)"),
    (put(2, scaling=[8, 8, "8"]), "json-type", "major 2", "expected a list of integers"),
    (put(2, scaling=8), "json-type", "major 2", "expected a list, received 8 (int)"),
    (put(2, depth_enable=[0, 1]), "json-type", "major 2", "received a list of 2"),
    (lambda c: c["layer"].__setitem__(1, 7), "json-type", "major 2", "JSON"),
]


@pytest.mark.parametrize(
    ("change", "rule", "layer", "words"), REJECTED, ids=[f"{c[1]}-{i}" for i, c in enumerate(REJECTED)]
)
def test_rejected(change: Callable[[dict[str, Any]], None], rule: str, layer: str, words: str) -> None:
    config = legal()
    network.from_json(config, "legal.json")
    change(config)
    with pytest.raises(NetworkError) as caught:
        network.from_json(config, "bad.json")
    found = [v for v in caught.value.violations if v.rule == rule]
    assert [v.layer for v in found] == [layer], str(caught.value)
    assert words in str(found[0])
    assert (found[0].tolerated, found[0].computed) == (rule in TOLERATED, rule in COMPUTED)
    assert str(found[0]) in str(caught.value)
    assert str(caught.value).startswith("bad.json: ")


def test_every_rule_has_a_case() -> None:
    names = {rule.name for rule in network_rules.LAYER_RULES} - {"shortcut-parity"} | {
        "shortcut-mixed",
        "shortcut-even",
    }
    assert names <= {case[1] for case in REJECTED}


def test_all_violations_together() -> None:
    config = legal()
    for change in (put(1, coef_bits=2), put(2, image_size="56", scaling=[99] * 3), put(4, output_channels=20)):
        change(config)
    config["model"][0]["ChipType"] = 5801
    with pytest.raises(NetworkError) as caught:
        network.from_json(config, "bad.json")
    rules = [v.rule for v in caught.value.violations]
    assert rules == [
        "json-type",
        "chip-type",
        "coef-bits",
        "shift-range",
        "shift-range",
        "shift-range",
        "output-channels",
    ]
    lines = str(caught.value).split("\n")
    assert lines[0] == "bad.json: 7 things to correct:"
    assert len(lines) == 8


def test_a_million_layers_are_one_sentence() -> None:
    config = legal()
    config["layer"] = config["layer"][:1] + [3] * 1_000_000
    config["model"][0]["MajorLayerNumber"] = 1_000_001
    with pytest.raises(NetworkError) as caught:
        network.from_json(config, "huge.json")
    assert "received 1000001" in str(caught.value)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("value", [None, 3, [], "x", {}, {"layer": {}, "model": []}])
def test_other_json(value: object) -> None:
    with pytest.raises(NetworkError):
        network.from_json(value, "x.json")


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_golden_configs_are_legal_and_survive_json(config: dict[str, Any]) -> None:
    first = network.from_json(config, "golden")
    assert violations(first) == []
    again = network.from_json(json.loads(json.dumps(network.to_json(first))), "again")
    assert again == first
    assert [layer.extra for layer in again.layers] == [layer.extra for layer in first.layers]


def test_keys_without_effect_are_kept() -> None:
    config = legal()
    config["comment"] = "x"
    config["model"][0]["ChipNumber"] = 1
    config["layer"][0] |= {"name": "conv1", "ten_bits_enable": True, "depth_enable": False}
    value = network.to_json(network.from_json(copy.deepcopy(config), "x"))
    assert value["comment"] == "x"
    assert value["model"][0]["ChipNumber"] == 1  # type: ignore[index]
    assert {"name": "conv1", "ten_bits_enable": True, "depth_enable": False}.items() <= value["layer"][0].items()  # type: ignore[index]


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dat.json"
    path.write_text(json.dumps(legal() | {"model": [{"MajorLayerNumber": 4, "ChipType": 2803}]}))
    with pytest.raises(NetworkError, match=r"dat\.json: model: .*ChipType"):
        network.load(path)


def test_convolutions() -> None:
    config = legal()
    put(2, one_coef=[0, 1, 0])(config)
    convolutions = network.from_json(config, "x").convolutions
    assert [c.name for c in convolutions] == [
        "conv1_1",
        "conv2_1",
        "conv2_2",
        "conv2_3",
        "conv3_1",
        "conv3_2",
        "conv4_1",
    ]
    assert convolutions[2] == Convolution(2, 2, 2, 56, 32, 32, 3, 8, False, False, True, False)
    assert convolutions[3].pooled
    assert network_rules.sub_path(2, 3) == convolutions[3].path


def test_upsampling_doubles_after_image_size() -> None:
    config = legal()
    put(2, upsample_enable=True)(config)  # 56 -> 112, pooled to 56
    put(3, image_size=56)(config)
    put(4, image_size=28)(config)
    found = network.from_json(config, "x")
    assert [c.size for c in found.convolutions] == [112, 112, 112, 112, 56, 56, 28]
    assert found.output_shape == (128, 14, 14)


def test_address_plan() -> None:
    # By hand from docs/dat_format.md section 4: VGG-like first layers at 224; a block holds 224 * 224 * 16 bytes.
    config = legal()
    put(1, image_size=224, output_channels=32, sublayer_number=2, scaling=[1, 1])(config)
    put(2, image_size=112, input_channels=32, output_channels=64, sublayer_number=4, scaling=[1] * 4)(config)
    put(3, image_size=56, input_channels=64)(config)
    put(4, image_size=28)(config)
    block = 224 * 224 * 16
    assert address_plan(network.from_json(config, "x")) == [
        (0, 256, block, 2 * block),  # 224: 16 channels in by definition, 32 out
        (256, 0, 2 * block, block // 2),  # pooled
        (0, 256, block // 2, block),
        (256, 0, block, block),
        (0, 512, block, block),  # a later sublayer of major layer 2 starts at 512
        (512, 0, block, block // 4),
        (0, 256, block // 4, block // 4),
        (256, 0, block // 4, block // 16),
        (0, 256, block // 16, block // 32),
    ]


def test_an_input_that_would_lie_over_its_output() -> None:
    # docs/dat_format.md section 4: sublayer 3 of 224 x 224 x 32 reads two blocks from 0 on and writes from block 1 on.
    # Both ends lie inside the five blocks, so only the overlap forbids it.
    config = legal()
    put(1, image_size=224, output_channels=32, sublayer_number=3, scaling=[1, 1, 1], pooling=True)(config)
    put(2, image_size=112, input_channels=32)(config)
    put(3, image_size=56)(config)
    put(4, image_size=28)(config)
    with pytest.raises(NetworkError) as caught:
        network.from_json(config, "x")
    (found,) = caught.value.violations
    assert (found.rule, found.layer) == ("activation-memory", "major 1 / sub 3 (conv1_3)")
    block = 224 * 224 * 16
    for place, fits in (
        ((0, 256, block, block), True),
        ((0, 256, block + 1, block), False),  # one byte over the output
        ((0, 256, block, 4 * block), True),
        ((0, 256, block, 4 * block + 1), False),  # one byte beyond the memory
        ((256, 0, 2 * block, 3 * block), True),
        ((256, 0, 2 * block, 3 * block + 1), False),
    ):
        assert Placement(*place).fits is fits


def test_448_needs_sixteen_pooled_outputs() -> None:
    # 448 x 448 x 16 fills four of five blocks: the plan leaves room for one pooled output of 16 channels.
    config = legal()
    put(1, image_size=448)(config)
    for major, size in ((2, 224), (3, 112), (4, 56)):
        put(major, image_size=size)(config)
    network.from_json(config, "x")
    both(put(1, output_channels=32), put(2, input_channels=32))(config)
    with pytest.raises(NetworkError, match="activations"):
        network.from_json(config, "x")


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_any_value_of_any_key_gives_a_network_or_a_sentence(data: st.DataObject) -> None:
    config = legal()
    value = data.draw(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=20))
    )
    layer = data.draw(st.integers(0, 3))
    keys = [
        *config["layer"][layer],
        "one_coef",
        "resnet_shortcut_start_layers",
        "in_addr",
        "learning",
        "upsample_enable",
    ]
    config["layer"][layer][data.draw(st.sampled_from(keys))] = value
    sentences = ""
    try:
        found = network.from_json(config, "x")
        again = network.from_json(network.to_json(found), "y")
    except NetworkError as problem:
        sentences = str(problem)
        found = again = None
    assert again == found
    assert bool(sentences) == (found is None)
    assert all(c.isprintable() or c == "\n" for c in sentences)


def test_every_rule_is_documented() -> None:
    text = (ROOT / "docs" / "dat_format.md").read_text()
    rules = text.split("## 6. Rules")[1].split("## 7.")[0]
    named = {name for row in rules.split("\n| ")[1:] for name in row.split(" |")[0].split(", ")}
    assert {case[1] for case in REJECTED} <= named


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (put(2, image_size=56.0), "56.0"),
        (put(2, scaling=[9.0] * 2), "9.0"),
        (put(2, pooling=None), "null"),
        (put(2, one_coef=None), "null"),
        (model(SamplingMethod=0.0), "0.0"),
    ],
)
def test_json_that_cannot_be_misread_is_taken_with_a_note(
    change: Callable[[dict[str, Any]], None], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = legal()
    change(config)
    taken, found = network.examine(config)
    assert not [violation for violation in found if violation.rule == "json-type"]
    assert word in "".join(taken.notes)
    assert all(isinstance(layer.image_size, int) for layer in taken.layers)
    if not found:
        network.from_json(config, "a.json")
        assert word in caplog.text


@pytest.mark.parametrize(("number", "planes", "warned"), [(2, 3, True), (0, 1, True), (1, 3, False), (2, 16, False)])
def test_a_first_major_layer_other_than_1_is_warned_of(number: int, planes: int, warned: bool) -> None:
    config = legal()
    config["layer"][0] |= {"major_layer": number, "input_channels": planes}
    assert ("crashes" in "".join(network.examine(config)[0].notes)) == warned


@pytest.mark.parametrize("config", DIGESTS[-6:], ids=range(6))
def test_a_network_whose_sizes_do_not_chain_is_a_matter_of_what_is_computed(config: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match="delivers"):
        network.from_json(config, "a.json")
    taken = network.from_json(config, "a.json", to_file=True)
    assert not violations_of_file(taken)
    assert [violation.rule for violation in uncomputable(taken)][:1] == ["size-chain"]
