"""Keras models read from their configuration alone: networks, host layers, and every reason why one does not fit."""

from __future__ import annotations

import json
import zipfile

import keras
import pytest

from gti.chip.network import json_form as networks
from gti.errors import FormatError
from gti.importing import architecture
from gti.layers import ChipConv2D, ChipFlatten, ChipPooling, HostDense
from gti.model import base


@pytest.mark.parametrize("net", ["digits", "cifar", "vgg_bn", "tenbit"])
def test_the_nets_of_the_kit_read_back_as_their_json(net):
    with keras.StatelessScope(initialize_variables=False):
        model = base.build(net, classes=11)
    found = architecture.of_model(model)
    assert found.problems == ()
    assert found.network == model.network
    assert [layer.name for layer in found.host] == [
        layer.name for layer in model.layers if isinstance(layer, HostDense)
    ]
    assert found.host[-1].outputs == 11


def plain(*layers, shape=(28, 28, 3)):
    return architecture.of_model(keras.Sequential([keras.Input(shape), *layers]))


def conv(filters=16, size=3, **options):
    return keras.layers.Conv2D(filters, size, **({"padding": "same", "activation": "relu"} | options))


def test_a_plain_keras_model_is_read_as_its_chip_layers():
    found = plain(
        conv(16, activation=None),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.1),
        conv(16),
        keras.layers.MaxPooling2D(),
        keras.layers.UpSampling2D(),
        conv(32),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    )
    assert found.problems == ()
    first, second = found.network.layers
    assert (first.sublayer_number, first.pooling, first.output_channels) == (2, True, 16)
    assert (second.upsample_enable, second.image_size, second.working_size) == (True, 14, 28)
    assert [(layer.inputs, layer.outputs) for layer in found.host] == [(28 * 28 * 32, 10)]
    networks.check(found.network)


@pytest.mark.parametrize(
    ("layers", "problem", "fix"),
    [
        ([conv(size=5)], "3x3", "two"),
        ([conv(size=7)], "3x3", "three"),
        ([conv(strides=2)], "stride", "2x2"),
        ([conv(padding="valid")], "padding", 'padding="same"'),
        ([conv(dilation_rate=2)], "dilated", "dilation_rate=1"),
        ([conv(16), conv(16, groups=2)], "grouped", "groups=1"),
        ([conv(activation="tanh")], "activation", 'activation="relu"'),
        ([conv(activation=None), conv()], "ReLU", 'activation="relu"'),
        ([conv(), keras.layers.MaxPooling2D(3, 2)], "2x2", "MaxPooling2D(2)"),
        ([conv(), keras.layers.AveragePooling2D(2), conv()], "average", "MaxPooling2D(2)"),
        ([conv(), keras.layers.LayerNormalization(), conv()], "kind", "host"),
        ([conv(), keras.layers.BatchNormalization(), conv()], "batch norm", "between"),
        ([conv(), keras.layers.UpSampling2D(3), conv()], "doubles", 'interpolation="nearest"'),
        ([conv(), keras.layers.UpSampling2D(), keras.layers.UpSampling2D(), conv()], "upsamples", "between"),
        ([keras.layers.UpSampling2D(), ChipConv2D(16, 3, upsample="repeat")], "upsamples", "between"),
        ([conv(), keras.layers.UpSampling2D(), keras.layers.MaxPooling2D(), conv()], "upsamples", "both"),
        ([conv(activation=None), keras.layers.ReLU(negative_slope=0.1)], "slope", "negative_slope=0"),
        ([conv(activation=None), keras.layers.ReLU(threshold=1)], "slope", "threshold=0"),
        ([conv(activation=keras.layers.LeakyReLU(name="relu"))], "activation", 'activation="relu"'),
        (
            [conv(activation=None), keras.layers.BatchNormalization(axis=1), keras.layers.ReLU()],
            "normalise",
            "axis=-1",
        ),
        ([conv(), keras.layers.MaxPooling2D(data_format="channels_first")], "layout", "channels_last"),
    ],
)
def test_what_the_chip_cannot_do_comes_with_the_nearest_alternative(layers, problem, fix):
    (violation,) = plain(*layers).problems
    assert problem in violation.problem
    assert fix in violation.fix


def test_all_reasons_come_together():
    found = plain(conv(size=5, strides=2), conv(activation="tanh"), shape=(28, 56, 3))
    words = ("square", "3x3", "stride", "activation")
    assert all(word in violation.problem for word, violation in zip(words, found.problems, strict=True))


def test_branches_are_refused():
    image = keras.Input((28, 28, 3))
    a = ChipConv2D(16, 3, name="a")(image)
    b = ChipConv2D(16, 3, name="b")(a)
    added = keras.layers.Add(name="sum")([a, b])
    model = keras.Model(image, ChipConv2D(16, 3, name="c")(added))
    branch = architecture.of_model(model).problems[0]
    assert (branch.layer, branch.received) == ("layer sum", "2 inputs")
    assert "single chain" in branch.problem


def later(x):
    first = ChipConv2D(16, 3, name="first")(x)
    return first, ChipConv2D(16, 3, name="last")(first)


def joined(kind, *maps):
    return keras.layers.Flatten()(getattr(keras.layers, kind)(name="join")(list(maps)))


@pytest.mark.parametrize(
    ("outputs", "layer", "received"),
    [
        (lambda x: joined("Add", *later(x)), "layer join", "input from first"),
        (lambda x: joined("Concatenate", *later(x)), "layer join", "input from first"),
        (lambda x: joined("Concatenate", later(x)[1], x), "layer join", "input from image"),
        (lambda x: list(later(x)), "layer first", "an output of first"),
    ],
)
def test_maps_that_never_leave_the_chip_are_no_input_of_the_host(outputs, layer, received):
    image = keras.Input((28, 28, 3), name="image")
    (problem,) = architecture.of_model(keras.Model(image, outputs(image))).problems
    assert (problem.layer, problem.received) == (layer, received)
    assert "last map" in problem.problem


def test_the_host_may_branch_and_have_several_outputs():
    image = keras.Input((28, 28, 3))
    x = keras.layers.Flatten()(later(image)[1])
    y = keras.layers.Concatenate()([x, keras.layers.Dense(3)(x)])
    found = architecture.of_model(keras.Model(image, [keras.layers.Dense(4)(y), keras.layers.Dense(5)(y)]))
    assert found.problems == ()
    assert [layer.outputs for layer in found.host] == [3, 4, 5]


def test_a_second_input_is_refused():
    image, extra = keras.Input((28, 28, 3)), keras.Input((5,), name="extra")
    y = keras.layers.Concatenate()([keras.layers.Flatten()(later(image)[1]), extra])
    problems = [problem.problem for problem in architecture.of_model(keras.Model([image, extra], y)).problems]
    assert "input" in problems[0]


def test_options_that_change_nothing_on_the_chip_are_accepted():
    found = plain(
        conv(use_bias=False, activation=None),
        keras.layers.BatchNormalization(center=False, scale=False),
        keras.layers.ReLU(max_value=6),
        keras.layers.MaxPooling2D(padding="same"),
    )
    assert found.problems == ()


def test_convolutions_of_the_host_are_named():
    found = plain(ChipConv2D(16, 3), conv(8, 5, name="behind"), ChipFlatten(), HostDense(4))
    assert (found.problems, found.uncounted) == ((), ("behind",))


def test_mixed_pooling_and_early_ten_bits_are_refused():
    found = plain(
        ChipConv2D(16, 3, max_code=1023, name="first"),
        ChipPooling(0),
        ChipConv2D(16, 3),
        ChipPooling(1),
        ChipFlatten(),
    )
    words = ("pools", "ten-bit")
    assert all(word in violation.problem for word, violation in zip(words, found.problems, strict=True))


@pytest.fixture
def saved(tmp_path):
    model = keras.Sequential([keras.Input((14, 14, 3)), ChipConv2D(16, 3), ChipPooling(), ChipFlatten(), HostDense(4)])
    path = tmp_path / "small.keras"
    model.save(path)
    return path


def test_a_file_gives_the_same_as_the_model(saved):
    found = architecture.load(saved)
    assert found.network.output_shape == (16, 7, 7)
    assert [(layer.inputs, layer.outputs) for layer in found.host] == [(784, 4)]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "file"),
        (b"not a zip", "keras"),
        ({"other.json": b"{}"}, "Keras"),
        ({"config.json": b"{"}, "JSON"),
        ({"config.json": b"[1, 2]"}, "Keras 3"),
        ({"config.json": json.dumps({"class_name": "Sequential", "config": {"layers": [3]}}).encode()}, "Keras 3"),
        (
            {
                "config.json": json.dumps(
                    {"class_name": "Sequential", "config": {"layers": [{"class_name": "Conv2D", "config": 3}]}}
                ).encode()
            },
            "Keras 3",
        ),
        (
            {"config.json": json.dumps({"class_name": "Sequential", "config": {"layers": []}}).encode()},
            "convolution",
        ),
    ],
)
def test_files_that_hold_no_model(tmp_path, content, part):
    path = tmp_path / "model.keras"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    with pytest.raises(FormatError, match=part):
        architecture.load(path)
