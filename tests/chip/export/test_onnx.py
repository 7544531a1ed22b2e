"""ONNX Runtime on exported networks: every code of the emulator, and the answers of the host layers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulated
import full_models
import numpy as np
import pytest
from places import ROOT

from gti.__main__ import main
from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat, model_file
from gti.chip.formats.blobs import encode_fc
from gti.chip.host.host_layers import HostLayers
from gti.chip.network import json_form
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.chip.runtime import known_answer
from gti.errors import GtiError, NetworkError

onnx = pytest.importorskip("onnx", reason="ONNX is exported with onnx")
onnx_file = pytest.importorskip("gti.chip.export.onnx_file")
onnx_graph = pytest.importorskip("gti.chip.export.onnx_graph")
onnxruntime = pytest.importorskip("onnxruntime", reason="the codes are those of ONNX Runtime")


def of_net(name: str, shift: int = 9) -> Network:
    network = json_form.load(ROOT / "nets" / f"2801_{name}_dat.json")
    layers = tuple(replace(layer, scaling=(shift,) * layer.sublayer_number) for layer in network.layers)
    return replace(network, layers=layers)


def narrow(network: Network, channels: int = 16) -> Network:
    """The same layers with at most `channels` channels."""
    layers = []
    for layer in network.layers:
        inputs = min(layer.input_channels, channels)
        layers.append(replace(layer, input_channels=inputs, output_channels=channels))
    return replace(network, layers=tuple(layers))


def edges(channels: tuple[int, ...]) -> Network:
    """HED's shape (docs/edges.md): blocks of two and three sublayers, read out before every pooling."""
    layers, size, inputs = [], 56, 3
    for outputs, count in zip(channels, (2, 2, 3), strict=True):
        layers.append(MajorLayer(size, inputs, outputs, count, 3, (8,) * count, pooling=True))
        size, inputs = size // 2, outputs
    return Network(tuple(layers))


def doubled(fill: str) -> Network:
    second = emulated.layer(14, 16, 16, (5, 6), coef_bits=1, upsample_enable=True, upsample_mode=fill, pooling=True)
    return Network((emulated.layer(14, 3, 16, (7,)), second))


def ten_bit(shift: int, **options: Any) -> Network:
    return Network((emulated.layer(14, 3, 16, (8,)), emulated.layer(14, 16, 16, (shift,), **options)), 2801, 0, 1)


NETWORKS = {
    "digits": of_net("digits"),
    "cifar": of_net("cifar"),
    "VGG16, narrow": narrow(of_net("vgg16")),
    "edges": edges((16, 32, 64)),
    "one bit": Network((emulated.layer(14, 3, 64, (4, 5), coef_bits=1, pooling=True),)),
    "ten bits": ten_bit(8),
    "ten bits, pooled": ten_bit(12, pooling=True),
    "ten bits, small shift": ten_bit(3),
    "ten bits, top left": replace(ten_bit(8, pooling=True), sampling_method=1),
    "top left": replace(edges((16, 16, 16)), sampling_method=1),
    "repeat": doubled("repeat"),
    "zero": doubled("zero"),
    "shifts": Network((emulated.layer(14, 3, 16, tuple(range(12))),)),
}


def container(network: Network, weights: list[ConvolutionWeights], mode: int = 0) -> bytes:
    data = dat.encode(network, weights)
    chip: dict[str, Any] = {"operation": "GTICNN", "name": "chip", "data file": "x.dat", "mode": mode}
    # Of the answer the export reads what the .DAT leaves open; images that cover the kernels take long to find.
    fills = tuple(layer.upsample_mode for layer in network.layers)
    answer = known_answer.KnownAnswer(
        "", hashlib.sha256(data).hexdigest(), (), "", network.activation_bit_mode, fills, "", "", ""
    )
    chip[known_answer.KEY] = answer.to_entry()
    return model_file.compose(json.dumps({"name": "net", "layer": [chip]}).encode(), {"x.dat": data})


def session(model: Any, optimized: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def planar(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def run(model: Any, images: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session(model, **options).run(None, {"image": planar(images)}), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_code_is_the_emulators(name: str, tmp_path: Path) -> None:
    """Two random images; weights that keep activations alive (generator B); all sublayers and the output."""
    network = NETWORKS[name]
    weights = emulated.lively_weights(network, 3)
    (tmp_path / "x.model").write_bytes(container(network, weights))
    model, remarks = onnx_file.export(tmp_path / "x.model", all_outputs=True)
    onnx.checker.check_model(model, full_check=True)
    images = emulated.images(network, 2, 5)
    found = run(model, images)
    emulator = Emulator(network, weights, engine="numpy")
    seen = set()
    for conv, codes in emulator.sublayers(images):
        assert found[conv.name].dtype == codes.dtype
        assert np.array_equal(found[conv.name], codes), conv.path
        seen.add(conv.name)
    last = network.convolutions[-1]
    output = f"pool{last.major}" if last.pooled else last.name
    assert np.array_equal(found[output], emulator.output(images))
    assert {*found} == seen | {output}
    assert remarks == []


def test_full_range_weights_and_every_pixel(tmp_path: Path) -> None:
    # Weights to +-2047 and all 256 pixel values; without the optimizer's rewriting too.
    network = Network((emulated.layer(28, 3, 16, (12,), coef_bits=1), emulated.layer(28, 16, 16, (12, 3))))
    random = np.random.default_rng(1)
    weights = []
    for conv in network.convolutions:
        shape = (conv.output_channels, conv.input_channels, 3, 3)
        alphas = random.integers(2000, 2048, shape[:2])[..., None, None]
        levels = np.array([-1, 1] if conv.coef_bits == 1 else [-4, 4, 2, 1, 0])
        steps = alphas if conv.coef_bits == 1 else alphas // 4
        filters = (random.choice(levels, shape) * steps).astype(np.int16)
        biases = random.integers(-2047, 2048, conv.output_channels).astype(np.int32)
        weights.append(ConvolutionWeights(filters, biases, conv.shift))
    assert max(np.abs(layer.filters).max() for layer in weights) == 2047
    (tmp_path / "x.dat").write_bytes(dat.encode(network, weights))
    model = onnx_file.export(tmp_path / "x.dat", all_outputs=True).model
    images = (np.arange(28 * 28 * 3) % 256).astype(np.uint8).reshape(1, 28, 28, 3)
    expected, _ = emulated.reference(network, weights, images)
    for optimized in (True, False):
        found = run(model, images, optimized=optimized)
        for conv, codes in zip(network.convolutions, expected, strict=True):
            assert np.array_equal(found[conv.name], codes), conv.path


def test_only_exact_operators_are_used(tmp_path: Path) -> None:
    for number, network in enumerate(NETWORKS.values()):
        path = tmp_path / f"{number}.model"
        path.write_bytes(container(network, emulated.lively_weights(network, 3)))
        kinds = {node.op_type for node in onnx_file.export(path).model.graph.node}
        allowed = "Cast Add Div Min ConvInteger Mul Floor Clip MaxPool Slice Resize Where"
        assert kinds <= set(allowed.split())


@pytest.mark.parametrize(("mode", "outputs"), [
    (0, "pool3"), (1, "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3"), (2, "conv3_3"),
    (3, "conv1_2 conv2_2 conv3_3"), (4, "conv3_1 conv3_2 conv3_3"),
])  # fmt: skip
def test_outputs_are_those_of_the_read_out_mode(mode: int, outputs: str, tmp_path: Path) -> None:
    # docs/emulator.md section 2.
    network = NETWORKS["edges"]
    (tmp_path / "x.model").write_bytes(container(network, emulated.lively_weights(network, 3), mode))
    model = onnx_file.export(tmp_path / "x.model").model
    assert " ".join(value.name for value in model.graph.output) == outputs


def test_names_and_origin(tmp_path: Path) -> None:
    network = NETWORKS["repeat"]
    weights = emulated.lively_weights(network, 3)
    (tmp_path / "x.model").write_bytes(container(network, weights))
    model = onnx_file.export(tmp_path / "x.model").model
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["SHA-256 of the .DAT"] == hashlib.sha256(dat.encode(network, weights)).hexdigest()
    assert (about["kit version"], about["read-out mode"]) == (model.producer_version, "fc")
    nodes = {node.name: node for node in model.graph.node}
    assert {"conv1_1", "upsample2", "conv2_2", "pool2", "conv2_2/accumulator"} <= {*nodes}
    assert "1-bit filters, shift 6" in nodes["conv2_2"].doc_string
    assert {value.name for value in model.graph.value_info} == {"conv1_1", "conv2_1", "conv2_2"}


def test_chips_in_a_row(tmp_path: Path) -> None:
    networks = [
        Network((emulated.layer(28, 3, 16, (7,), pooling=True),)),
        Network((emulated.layer(14, 16, 16, (7, 8)),)),
    ]
    layers, files = [], {}
    every = [emulated.lively_weights(network, seed) for seed, network in enumerate(networks)]
    for number, (network, weights) in enumerate(zip(networks, every, strict=True)):
        files[f"{number}.dat"] = dat.encode(network, weights)
        layers.append({"operation": "GTICNN", "name": f"chip{number}", "data file": f"{number}.dat", "mode": 2})
    path = tmp_path / "x.model"
    path.write_bytes(model_file.compose(json.dumps({"layer": layers}).encode(), files))
    images = emulated.images(networks[0], 1, 2)
    [found] = run(onnx_file.export(path).model, images).values()
    codes = Emulator(networks[0], every[0], engine="numpy").output(images)
    expected = Emulator(networks[1], every[1], engine="numpy").output(codes.transpose(0, 2, 3, 1) << 3)
    assert np.array_equal(found, expected)


READER = {"output width": 14, "output height": 14, "output channels": 3}
SWAPPING = READER | {"input format": "CS_RGB24_PLANAR", "output format": "CS_BGR24_PLANAR"}


@pytest.mark.parametrize("reader", [None, SWAPPING])
def test_host_layers(reader: dict[str, Any] | None, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(full_models.full_model(reader=reader))
    model, _ = onnx_file.export(tmp_path / "x.model")
    onnx.checker.check_model(model, full_check=True)
    images = emulated.images(full_models.NETWORK, 2, 5)
    found = run(model, images)
    for pixels, shares, order, labels in zip(
        images, found["probabilities"], found["order"], found["labels"], strict=True
    ):
        decoded = dat.decode(bytes(model_file.load(tmp_path / "x.model").first("GTICNN").blob))  # type: ignore[union-attr, arg-type]
        turned = pixels[None, :, :, ::-1] if reader else pixels[None]
        expected = full_models.probabilities(Emulator(decoded.network, decoded.weights).output(turned)[0])
        np.testing.assert_allclose(shares, expected, atol=1e-5)
        assert list(order) == list(np.argsort(-expected, kind="stable"))
        assert list(labels) == [full_models.NAMES[i] for i in order]


@pytest.mark.parametrize("pooling", ["max", "average", "sample", "center", "top_left"])
def test_poolings_of_the_host(pooling: str, tmp_path: Path) -> None:
    """Every mode, a layer with ReLU, another scaledown and a limit of labels, against the kit's host layers."""
    network, random = full_models.NETWORK, np.random.default_rng(1)
    layers: list[dict[str, Any]] = [
        {"operation": "GTICNN", "name": "chip", "data file": "chip", "mode": 0, "output scaledown": 1},
        {"operation": "POOLING", "name": "pool", "mode": pooling},
        {"operation": "FC", "name": "fc", "data file": "fc", "activation": "relu"},
        {"operation": "SOFTMAX", "name": "softmax"},
        {"operation": "LABEL", "name": "label", "data file": "labels", "output channels": 2},
    ]
    weights = emulated.lively_weights(network, 1)
    blobs = {"chip": dat.encode(network, weights), "labels": b"a\nb\nc\nd\n"}
    blobs["fc"] = encode_fc(random.normal(size=(4, 16)).astype(np.float32) * 0.05, np.zeros(4, np.float32))
    (tmp_path / "x.model").write_bytes(model_file.compose(json.dumps({"layer": layers}).encode(), blobs))
    images = emulated.images(network, 2, 5)
    found = run(onnx_file.export(tmp_path / "x.model").model, images)
    host = HostLayers(model_file.load(tmp_path / "x.model").layers, "x")
    for number, codes in enumerate(Emulator(network, weights, engine="numpy").output(images)):
        expected = host.outcome([codes << 3]).result["result"]
        assert list(found["labels"][number]) == [entry["label"] for entry in expected]
        shares = found["probabilities"][number][found["order"][number]]
        np.testing.assert_allclose(shares, [entry["probability"] for entry in expected], rtol=1e-5)


def test_what_cannot_be_exact_is_refused() -> None:
    network = Network((emulated.layer(4, 1, 1, (0,)),))
    conv = network.convolutions[0]
    good = ConvolutionWeights(np.zeros((1, 1, 3, 3), np.int16), np.zeros(1, np.int32), 0)
    for changed, word in (
        (replace(good, filters=good.filters + np.int16(9000)), "filters"),
        (replace(good, biases=good.biases + np.int32(2**31 - 1)), "sums"),
    ):
        with pytest.raises(NetworkError, match=word):
            onnx_graph.add_network(onnx_graph.Graph(), "x", network, [changed])
    assert conv.name == "conv1_1"


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shortcut = Network((MajorLayer(14, 3, 16, 3, 3, (6, 6, 6), pooling=True, shortcuts=(1,)),))
    (tmp_path / "bad.dat").write_bytes(dat.encode(shortcut, emulated.lively_weights(shortcut, 1)))
    (tmp_path / "x.model").write_bytes(full_models.full_model())
    assert main(["export", str(tmp_path / "x.model"), str(tmp_path / "x.onnx")]) == 0
    assert "probabilities, order, labels" in capsys.readouterr().out
    onnx.checker.check_model(str(tmp_path / "x.onnx"))
    with pytest.raises(GtiError, match="shortcuts"):
        main(["export", str(tmp_path / "bad.dat"), str(tmp_path / "bad.onnx")])
    assert not (tmp_path / "bad.onnx").exists()


def test_five_bit_transform() -> None:
    # gti/chip/emulator/arithmetic.py: ((x >> 2) + 1) >> 1, at most 31; the export computes (x + 4) / 8.
    pixels = np.arange(256)
    assert np.array_equal(np.minimum((pixels + 4) // 8, 31), arithmetic.five_bit(pixels.astype(np.uint8)))
