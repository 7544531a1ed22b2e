"""A net's files are looked at together at the first step: its module before it runs, and what only running it tells."""

from __future__ import annotations

import json
import re
import sys

import pytest
from small_nets import TWO_MAJORS, small_network, write_json

from gti import host_module, looks, nets
from gti.errors import FormatError, UsageError
from gti.model import base

NETWORK = small_network(*TWO_MAJORS)
GOOD = """
import keras

from gti.layers import ChipFlatten, HostDense

BATCH_NORM = False


def host_layers(x, *, classes):
    return HostDense(classes, name="fc")(ChipFlatten(name="flatten")(x))
"""
SEEN_IN_SOURCE = {
    "Dense": (GOOD.replace("HostDense(classes", "keras.layers.Dense(classes"), "HostDense"),
    "softmax layer": (GOOD.replace("return ", "return keras.layers.Softmax()(") + ")", "softmax"),
    "softmax activation": (GOOD.replace('name="fc"', '"softmax"'), "softmax"),
    "import": ("import no_such_package\n" + GOOD, "no_such_package"),
    "old function": ("from gti.layers import conv2d\n" + GOOD, r"conv2d.*ChipConv2D"),
    "syntax": (GOOD + "\ndef (", "line 1[0-9]"),
    "no BATCH_NORM": (GOOD.replace("BATCH_NORM", "OTHER"), "BATCH_NORM"),
    "no host_layers": (GOOD.replace("host_layers", "layers"), "host_layers"),
}
SEEN_WHEN_BUILT = {
    "rank": (GOOD.replace('ChipFlatten(name="flatten")(x)', "x"), "logits"),
    "number of logits": (GOOD.replace("HostDense(classes", "HostDense(classes + 1"), r"received \[None, 6\]"),
    "name that is not there": (
        GOOD.replace("import ChipFlatten", "import ChipFlat"),
        "line 4: cannot be run.*ImportError",
    ),
    "mistake in the function": (GOOD.replace("return ", "return x.nothing or "), "line 10: cannot be run"),
    "end of the program": (GOOD + "\nraise SystemExit(3)\n", "line 12: cannot be run.*SystemExit"),
    "name of a chip layer": (GOOD.replace('name="fc"', 'name="conv1_1"'), "conv1_1"),
    "activation that no host has": (GOOD.replace('name="fc"', '"gelu"'), "line 10: .*gelu"),
    "attribute of the old kit": (
        GOOD.replace("return ", "from gti import layers; layers.conv2d(") + ")",
        "conv2d.*ChipConv2D",
    ),
    "hidden softmax": (GOOD.replace("return ", 'return getattr(keras.layers, "Soft" + "max")()(') + ")", "softmax"),
    "hidden Dense": (GOOD.replace("HostDense(classes", 'getattr(keras.layers, "Den" + "se")(classes'), "HostDense"),
}


def net(folder, module=GOOD):
    write_json(NETWORK, folder, "mine")
    (folder / "mine.py").write_text(module)
    return folder


def test_a_good_module_and_those_of_the_kit(tmp_path):
    looks.chain("mine", NETWORK, net(tmp_path))
    for name in nets.own_nets():
        looks.chain(name, nets.load(name), None)


@pytest.mark.parametrize("case", SEEN_IN_SOURCE)
def test_what_the_source_tells(tmp_path, case):
    module, word = SEEN_IN_SOURCE[case]
    with pytest.raises(UsageError, match=rf"mine\.py.*{word}"):
        looks.chain("mine", NETWORK, net(tmp_path, module))


def test_all_of_it_is_told_together(tmp_path):
    both = SEEN_IN_SOURCE["Dense"][0].replace("import keras\n", "import keras\nimport nowhere_1\n")
    with pytest.raises(UsageError, match=r"(?s)2 things.*nowhere_1.*HostDense"):
        host_module.check("mine", net(tmp_path, both))


@pytest.mark.parametrize("case", SEEN_WHEN_BUILT)
def test_what_building_it_tells(tmp_path, case):
    module, word = SEEN_WHEN_BUILT[case]
    with pytest.raises(UsageError, match=rf"mine\.py.*{word}"):
        base.build("mine", network=NETWORK, classes=5, nets_dir=net(tmp_path, module))


def test_a_module_beside_a_net_can_be_imported(tmp_path):
    folder = net(tmp_path, GOOD.replace("import keras", "import beside_mine\nimport json"))
    (folder / "beside_mine.py").write_text("UNITS = 5\n")
    (folder / "json.py").write_text("raise AssertionError\n")  # hides nothing
    looks.chain("mine", NETWORK, folder)
    assert base.net_module("mine", folder).beside_mine.UNITS == 5
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("layer", "key", "value"),
    [(0, "output width", 28), (0, "output channels", 1), (1, "output channels", 99), (1, "output height", 3)],
)
def test_a_model_json_that_contradicts_the_network(tmp_path, layer, key, value):
    path = net(tmp_path) / "2801_mine_model.json"
    good = {"layer": [{"operation": "IMAGEREADER", "name": "reader"}, {"operation": "GTICNN", "name": "chip"}]}
    path.write_text(json.dumps(good))
    looks.chain("mine", NETWORK, tmp_path)
    good["layer"][layer][key] = value
    path.write_text(json.dumps(good))
    with pytest.raises(FormatError, match=re.escape(f'"{key}" contradicts') + f".*received {value}"):
        looks.chain("mine", NETWORK, tmp_path)


READER, CHIP = {"operation": "IMAGEREADER", "name": "reader"}, {"operation": "GTICNN", "name": "chip"}


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ([5, CHIP], "layer 1: is none"),
        ([{"operation": ["GTICNN"]}, CHIP], "layer 1: is none"),
        ([READER, CHIP, {"operation": "FC", "name": "fc6", "data file": "fc6.bin"}], "fc6: has data.*convert_full"),
        ([READER | {"data file": "x"}, CHIP], "reader: has data"),
        ([READER, CHIP | {"device": {"chip": "5801"}}], "another chip.*received 5801"),
    ],
)
def test_a_model_json_that_would_end_a_later_step(tmp_path, layers, word):
    net(tmp_path)
    (tmp_path / "2801_mine_model.json").write_text(json.dumps({"layer": layers}))
    with pytest.raises(FormatError, match=word):
        looks.chain("mine", NETWORK, tmp_path)


@pytest.mark.parametrize("number", [9, 0, "two"])
def test_a_number_of_chips_that_cannot_share_the_network(tmp_path, number):
    path = net(tmp_path) / "2801_mine_dat.json"
    value = json.loads(path.read_text())
    value["model"][0]["ChipNumber"] = number
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match="chips"):
        looks.chain("mine", nets.load("mine", nets_dir=tmp_path), tmp_path)


def test_a_model_json_that_is_missing_is_told(tmp_path, caplog):
    (net(tmp_path) / "2801_mine_model.json").unlink()
    looks.chain("mine", NETWORK, tmp_path)
    assert "2801_mine_model.json: no such file, and conversion needs it" in caplog.text


def test_what_a_model_json_leaves_out_is_filled_in(tmp_path):
    from gti import packing

    path = net(tmp_path) / "2801_mine_model.json"
    path.write_text(json.dumps({"layer": [{"operation": "IMAGEREADER"}, {"operation": "GTICNN"}]}))
    model_json, on_chip = packing.read_templates(NETWORK, net="mine", nets_dir=tmp_path)
    reader = model_json["layer"][0]
    assert [reader[f"output {key}"] for key in ("width", "height", "channels")] == [14, 14, 3]
    assert reader["input format"] == "CS_BGR24_PLANAR"
    assert [on_chip[f"output {key}"] for key in ("channels", "height", "width")] == list(NETWORK.output_shape)
