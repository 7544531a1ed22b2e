"""A net's files are looked at together at the first step: its module before it runs, and what only running it tells."""

from __future__ import annotations

import json
import re

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


def test_what_a_model_json_leaves_out_is_filled_in(tmp_path):
    from gti import packing

    path = net(tmp_path) / "2801_mine_model.json"
    path.write_text(json.dumps({"layer": [{"operation": "IMAGEREADER"}, {"operation": "GTICNN"}]}))
    model_json, on_chip = packing.read_templates(NETWORK, net="mine", nets_dir=tmp_path)
    reader = model_json["layer"][0]
    assert [reader[f"output {key}"] for key in ("width", "height", "channels")] == [14, 14, 3]
    assert reader["input format"] == "CS_BGR24_PLANAR"
    assert [on_chip[f"output {key}"] for key in ("channels", "height", "width")] == list(NETWORK.output_shape)
