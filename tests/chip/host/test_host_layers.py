"""Host layers of a full .MODEL, against plain statements of the same formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gti.chip.formats import blobs, model_file
from gti.chip.host.host_layers import HostLayers
from gti.errors import ImageError, ModelFileError

SIZE, CHANNELS = 7, 4
CLASSES = 3
LABELS = b"background\ncat\ndog\n"


def random_maps(seed: int = 0) -> np.ndarray:
    """What the stick delivers in FC mode: 8-bit values whose low 3 bits are zero."""
    return (np.random.RandomState(seed).randint(0, 32, size=(CHANNELS, SIZE, SIZE)) << 3).astype(np.uint8)


def random_fc(inputs: int, outputs: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.RandomState(seed)
    return r.randn(outputs, inputs).astype(np.float32), r.randn(outputs).astype(np.float32)


def reader(**more) -> dict:
    entry = {
        "operation": "IMAGEREADER",
        "name": "reader",
        "output width": 28,
        "output height": 28,
        "output channels": 3,
    }
    return entry | {"input format": "CS_BGR24_PLANAR", "output format": "CS_BGR24_PLANAR"} | more


def chip(**more) -> dict:
    return {"operation": "GTICNN", "name": "chip", "output scaledown": 3, "data file": "net.dat"} | more


def fc(name: str = "fc", **more) -> dict:
    return {"operation": "FC", "name": name, "data file": f"{name}.bin"} | more


SOFTMAX = {"operation": "SOFTMAX", "name": "softmax"}


def label(**more) -> dict:
    return {"operation": "LABEL", "name": "label", "data file": "labels.txt"} | more


def host(layers: list[dict], **data: bytes) -> HostLayers:
    files = {"net.dat": b"chip", "labels.txt": LABELS} | {name.replace("_", "."): blob for name, blob in data.items()}
    container = model_file.parse(model_file.compose(json.dumps({"layer": layers}).encode(), files), "a.model")
    return HostLayers(container.layers, "a.model")


def run(layers: list[dict], maps: np.ndarray, **data: bytes):
    return host(layers, **data).run(np.zeros((28, 28, 3), np.uint8), lambda image: [maps])


IDENTITY = blobs.encode_fc(np.eye(CHANNELS, dtype=np.float32)[:CLASSES], np.zeros(CLASSES, np.float32))


def test_fc_flattens_channels_first_and_softmax_follows():
    maps = random_maps()
    weights, biases = random_fc(CHANNELS * SIZE * SIZE, CLASSES)
    got = run([reader(), chip(), fc(), SOFTMAX, label()], maps, fc_bin=blobs.encode_fc(weights, biases))
    codes = [int(maps[c, y, x]) >> 3 for c in range(CHANNELS) for y in range(SIZE) for x in range(SIZE)]
    logits = [
        sum(float(w) * a for w, a in zip(row, codes, strict=True)) + float(b)
        for row, b in zip(weights, biases, strict=True)
    ]
    np.testing.assert_allclose(got.tensors["fc"], logits, rtol=1e-4)
    powers = [math.exp(y - max(logits)) for y in logits]
    expected = sorted(((p / sum(powers), i) for i, p in enumerate(powers)), reverse=True)
    result = got.result["result"]
    assert [entry["index"] for entry in result] == [i for _, i in expected]
    assert [entry["label"] for entry in result] == [("background", "cat", "dog")[i] for _, i in expected]
    np.testing.assert_allclose(
        [entry["probability"] for entry in result], [p for p, _ in expected], rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("activation", ["relu", None])
def test_activation(activation):
    weights, biases = -np.ones((CLASSES, CHANNELS), np.float32), np.zeros(CLASSES, np.float32)
    layer = fc() if activation is None else fc(activation=activation)
    layers = [chip(), {"operation": "POOLING", "name": "pool", "mode": "max"}, layer, label()]
    got = run(layers, np.full((CHANNELS, SIZE, SIZE), 8, np.uint8), fc_bin=blobs.encode_fc(weights, biases))
    np.testing.assert_array_equal(got.tensors["fc"], [0.0 if activation else -CHANNELS] * CLASSES)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("max", lambda m: m.max(axis=(1, 2))),
        ("average", lambda m: m.reshape(CHANNELS, -1).astype(float).mean(axis=1)),
        ("sample", lambda m: m[:, 0, 0]),
        ("center", lambda m: m[:, 3, 3]),  # of 7x7 (docs/model_format.md, POOLING)
        (None, lambda m: m[:, 3, 3]),
        ("top_left", lambda m: m[:, 1, 1]),
    ],
)
def test_pooling(mode, expected):
    pooling = {"operation": "POOLING", "name": "pool", "output width": 1, "output height": 1}
    if mode:
        pooling["mode"] = mode
    got = run([chip(), pooling, fc(), label()], random_maps(), fc_bin=IDENTITY)
    np.testing.assert_allclose(got.tensors["pool"].ravel(), expected(random_maps() >> 3), rtol=1e-6)
    np.testing.assert_allclose(got.tensors["fc"], got.tensors["pool"].ravel()[:CLASSES])


@pytest.mark.parametrize(
    ("scaledown", "expected"),
    # value >> s, or (value << -s) & 255 (docs/usb_protocol.md, section 7)
    [(3, 25), (0, 200), (None, 200), (8, 0), (-1, 144)],
)
def test_output_scaledown(scaledown, expected):
    layer = chip()
    if scaledown is None:
        del layer["output scaledown"]
    else:
        layer["output scaledown"] = scaledown
    got = run(
        [layer, {"operation": "POOLING", "name": "pool"}, fc(), label()],
        np.full((CHANNELS, SIZE, SIZE), 200, np.uint8),
        fc_bin=IDENTITY,
    )
    assert np.all(got.tensors["chip"] == expected)
    assert got.tensors["chip"].dtype == np.float32


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("mode", [None, "max", "average", "sample", "center", "top_left"])
def test_images_computed_together_have_the_bits_of_each_alone(mode, count):
    """The expected bits are those of the formulas for one image: a vector times the matrix, one sum of powers."""
    pooling = [{"operation": "POOLING", "name": "pool", "mode": mode}] if mode else []
    weights, biases = random_fc(CHANNELS if mode else CHANNELS * SIZE * SIZE, CLASSES)
    layers = host([chip(), *pooling, fc(), SOFTMAX, label()], fc_bin=blobs.encode_fc(weights * 0.1, biases))
    batch = [[random_maps(seed)] for seed in range(count)]
    for maps, labels in zip(batch, layers.labels_of(batch), strict=True):
        alone = layers.outcome(maps)
        vector = alone.tensors["pool" if mode else "chip"].reshape(-1)
        logits = (weights * 0.1).astype(np.float32) @ vector + biases
        powers = np.exp(logits - logits.max())
        shares = (powers / powers.sum()).tolist()
        ranking = sorted(enumerate(shares), key=lambda one: -one[1])
        assert [(label.index, label.probability) for label in labels] == ranking
        assert [(entry["index"], entry["probability"]) for entry in alone.result["result"]] == ranking


def test_result_text_is_the_compact_json_of_the_format():
    weights = np.zeros((CLASSES, CHANNELS * SIZE * SIZE), np.float32)
    biases = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    got = run(
        [chip(), fc(), SOFTMAX, label(**{"output channels": 2})],
        random_maps(),
        fc_bin=blobs.encode_fc(weights, biases),
    )
    # Equal probabilities stand in the order of their numbers.
    assert got.text() == (
        '{"result":[{"index":1,"label":"cat","probability":0.5},{"index":0,"label":"background","probability":0.25}]}'
    )


@pytest.mark.parametrize("top", [None, 1, 100])
def test_number_of_labels_returned(top):
    layer = label() if top is None else label(**{"output channels": top})
    got = run([chip(), {"operation": "POOLING", "name": "p"}, fc(), layer], random_maps(), fc_bin=IDENTITY)
    assert len(got.result["result"]) == {None: CLASSES, 1: 1, 100: CLASSES}[top]


def test_softmax_of_large_numbers():
    weights = np.full((CLASSES, CHANNELS), 1000, np.float32)
    layers = [chip(), {"operation": "POOLING", "name": "p", "mode": "max"}, fc(), SOFTMAX, label()]
    got = run(
        layers,
        np.full((CHANNELS, SIZE, SIZE), 248, np.uint8),
        fc_bin=blobs.encode_fc(weights, np.zeros(CLASSES, np.float32)),
    )
    np.testing.assert_allclose(got.tensors["softmax"], [1 / 3] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("formats", "swapped"),
    [
        (("CS_BGR24_PLANAR", "CS_BGR24_PLANAR"), False),
        (("CS_RGB24_PLANAR", "CS_BGR24_PLANAR"), True),
        (("CS_BGR24_PLANAR", "CS_RGB24_PLANAR"), True),
        (("CS_RGB_PLANAR", "CS_BGR_PLANAR"), False),  # the short names are ignored (docs/model_format.md)
    ],
)
def test_reader_turns_the_planes_round(formats, swapped):
    layers = [
        reader(**{"input format": formats[0], "output format": formats[1]}),
        chip(),
        {"operation": "POOLING", "name": "p"},
        fc(),
        label(),
    ]
    model = host(layers, fc_bin=IDENTITY)
    assert model.input_order == ("RGB" if swapped else "BGR")
    image = np.random.RandomState(0).randint(0, 256, size=(28, 28, 3)).astype(np.uint8)
    seen = []

    def stick(pixels):
        seen.append(pixels)
        return [random_maps()]

    model.run(image, stick)
    np.testing.assert_array_equal(seen[0], image[:, :, ::-1] if swapped else image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((14, 28, 3), np.uint8), np.zeros((3, 28, 28), np.uint8), np.zeros((28, 28, 3), np.float32), [1, 2]],
    ids=["height", "planes first", "float", "list"],
)
def test_reader_does_not_resize(image):
    model = host([reader(), chip(), {"operation": "POOLING", "name": "p"}, fc(), label()], fc_bin=IDENTITY)
    with pytest.raises(ImageError):
        model.run(image, lambda pixels: [random_maps()])


@pytest.mark.parametrize(
    ("layers", "part"),
    [
        ([fc(), label()], "expected one GTICNN layer, received 0"),
        ([chip(), chip(), fc(), label()], "expected one GTICNN layer, received 2"),
        ([reader(), chip()], "labels"),
        ([chip(), fc(), SOFTMAX], "labels"),
        ([chip(), label(), fc()], "behind"),
        ([fc(), chip(), label()], "layer 1 (FC fc): is a layer that cannot be run at this place"),
        ([chip(), {"operation": "ELTWISE", "name": "add"}, label()], "layer 2 (ELTWISE add): is a layer that cannot"),
        ([chip(), {"name": "nameless"}, label()], "received no operation"),
        ([chip(**{"output type": "byte"}), fc(), label()], "delivers bytes"),
        ([chip(**{"output scaledown": "3"}), fc(), label()], '"output scaledown" has the wrong type'),
        ([chip(), fc(activation="tanh"), label()], '"activation" is unknown; expected relu, received tanh'),
        ([chip(), {"operation": "FC", "name": "fc"}, label()], "layer 2 (FC fc)"),
        ([chip(), {"operation": "POOLING", "mode": "min"}, label()], '"mode" is unknown'),
        ([chip(), {"operation": "POOLING", "output width": 3}, label()], "channel"),
        ([chip(), fc(), {"operation": "LABEL"}], "layer 3 (LABEL)"),
        ([chip(), fc(), label(**{"output channels": 0})], "labels"),
    ],
)
def test_models_that_cannot_be_run(layers, part):
    with pytest.raises(ModelFileError) as caught:
        host(layers, fc_bin=IDENTITY)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "part"),
    [
        ([chip(), fc(), label()], "received 196"),
        ([chip(), {"operation": "POOLING", "name": "p"}, label()], "names too few classes; expected 4 lines"),
        (
            [
                chip(),
                {"operation": "POOLING", "name": "p"},
                {"operation": "POOLING", "name": "q", "mode": "top_left"},
                label(),
            ],
            "mode top_left has nothing to pool",
        ),
    ],
)
def test_sizes_that_do_not_fit_together(layers, part):
    with pytest.raises(ModelFileError) as caught:
        run(layers, random_maps(), fc_bin=IDENTITY)
    assert part in str(caught.value)
