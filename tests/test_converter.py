"""Conversion: the file holds what was trained, and what cannot be held is refused or warned of."""

from __future__ import annotations

import json
import logging
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from small_nets import NETWORKS, TWO_MAJORS, assign, build, images, randomise, small_network, some_caps
from sweeps import first_quick

from gti import converter, files, fusion, nets, packing
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat, model_file
from gti.chip.network.types import Network
from gti.errors import FormatError, GtiError, QuantizationError
from gti.model import exact
from gti.stage import Stage
from gti.training import checkpoint
from gti.training.metadata import Metadata

F = np.float32


def trained(network: Network, folder: Path, seed: int = 0, net: str = "digits") -> dict[str, np.ndarray]:
    model = build(network, folder, net, quant_w=True, quant_act=True, caps=some_caps(network, net))
    return randomise(model, seed)


@pytest.mark.parametrize("name", first_quick(3, NETWORKS))
def test_file_and_fused_model_give_the_same_codes(name: str, tmp_path: Path) -> None:
    # checkpoint -> .DAT -> decoded -> emulator on 8-bit images, against checkpoint -> fused Keras model on codes.
    network = NETWORKS[name]
    arrays = trained(network, tmp_path)
    data = converter.convert(network, arrays, net="digits").dat()
    model = build(network, tmp_path, quant_w=True, quant_act=True, fuse=True)
    assign(model, fusion.fuse(network, arrays, net="digits"))
    x = images(network, 2, seed=3)
    expected = exact.exact_codes(model, x)
    decoded = dat.decode(data, activation_bit_mode=network.activation_bit_mode)
    fill = next((layer.upsample_mode for layer in network.layers if layer.upsample_enable), None)
    emulator = Emulator(decoded.network, decoded.weights, engine="numpy", upsample_fill=fill)
    eight_bit = (x * 8).astype(np.uint8)  # the chip keeps the five high bits
    for (_, got), codes in zip(emulator.sublayers(eight_bit), expected, strict=True):
        np.testing.assert_array_equal(got.transpose(0, 2, 3, 1), codes)


@pytest.mark.parametrize("net", ["digits", "cifar"], ids=["plain", "batch norm"])
def test_fused_or_not_the_file_is_the_same(net: str, tmp_path: Path) -> None:
    network = NETWORKS["mixed bits"]
    arrays = trained(network, tmp_path, seed=5, net=net)
    before = converter.convert(network, arrays, net=net)
    after = converter.convert(network, fusion.fuse(network, arrays, net=net), net=net)
    assert before.dat() == after.dat()
    assert any(shift for layer in before.network.layers for shift in layer.scaling)


def one_layer(filters: float, biases: float, cap: float = 31.0, coef_bits: int = 1) -> tuple[Network, dict[str, Any]]:
    network = small_network((14, 3, 16, 2, coef_bits, False))
    arrays: dict[str, Any] = {}
    for name, inputs in (("conv1_1", 3), ("conv1_2", 16)):
        arrays[f"net/{name}/filters"] = np.full((3, 3, inputs, 16), filters, F)
        arrays[f"net/{name}/biases"] = np.full(16, biases, F)
        arrays[f"net/{name}/relu_cap"] = F(cap)
    return network, arrays


def test_integers_by_hand() -> None:
    # max|W| 1.5: 1.5 * 1024 = 1536 fits 2047, so shift 10; biases -0.75 * 1024 = -768.
    network, arrays = one_layer(1.5, -0.75)
    result = converter.convert(network, arrays, net="net")
    assert result.network.layers[0].scaling == (10, 10)
    first = result.weights[0]
    assert (first.filters.dtype, first.filters.shape, first.biases.dtype) == (np.int16, (16, 3, 3, 3), np.int32)
    assert (first.filters == 1536).all()
    assert (first.biases == -768).all()
    assert result.warnings == ()


def test_filters_are_out_in_height_width() -> None:
    network = small_network((14, 3, 16, 1, 1, False))
    filters = np.full((3, 3, 3, 16), 1.0, F)
    filters[2, 0, 1, 7] = -1.0
    arrays = {"net/conv1_1/filters": filters, "net/conv1_1/biases": np.zeros(16, F), "net/conv1_1/relu_cap": F(31)}
    weights = converter.convert(network, arrays, net="net").weights[0].filters
    assert np.argwhere(weights < 0).tolist() == [[7, 1, 2, 0]]


@pytest.mark.parametrize(
    ("filters", "biases", "coef_bits", "words"),
    [
        (
            2048.0,
            0.0,
            1,
            ["major 1 / sub 1 (conv1_1): weights do not fit", "sub 2 (conv1_2)", "2047", "fine-tune"],
        ),
        (2047.5, 0.0, 3, ["max|W|", "received 2047.5"]),
        (1.0, 2100.0, 1, ["biases do not fit the chip", "max|B| of 2047", "2100"]),
        (1.0, 131072.0, 3, ["biases do not fit the chip", "131071"]),
    ],
)
def test_values_beyond_the_chip(filters: float, biases: float, coef_bits: int, words: list[str]) -> None:
    network, arrays = one_layer(filters, biases, coef_bits=coef_bits)
    with pytest.raises(QuantizationError) as caught:
        converter.convert(network, arrays, net="net")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("filters", "biases", "coef_bits"), [(2047.0, 0.0, 1), (2047.0, 0.0, 3), (1.0, 131071.0, 3)])
def test_values_at_the_limit_fit(filters: float, biases: float, coef_bits: int) -> None:
    network, arrays = one_layer(filters, biases, coef_bits=coef_bits)
    assert dat.decode(converter.convert(network, arrays, net="net").dat()).weights[0].shift == 0


@pytest.mark.parametrize(
    ("filters", "biases", "cap", "words"),
    [
        (1.0, 100.0, 31.0, "biases are much larger than weights .max.B. 100, max.W. 1., so the filters lose 6 bits"),
        (1e-5, 0.0, 31.0, "every filter becomes 0 on the chip"),
        (1000.0, 0.1, 31.0, "every bias becomes 0 on the chip"),
        (1.0, 0.0, 5e3, "its activation range of 5000 is extreme"),
        (1.0, 0.0, 1e-7, "extreme"),
    ],
)
def test_warnings_name_the_layer_and_the_remedy(filters: float, biases: float, cap: float, words: str) -> None:
    network, arrays = one_layer(filters, biases)
    arrays["net/conv1_2/relu_cap"] = F(cap)
    if cap != 31:
        # Keep what follows from such a cap representable: this test is about the warning.
        arrays["net/conv1_2/filters"] *= F(cap / 31)
        arrays["net/conv1_2/biases"] *= F(cap / 31)
    warnings = converter.convert(network, arrays, net="net").warnings
    assert warnings
    assert all(w.startswith("major 1 / sub ") for w in warnings)
    assert all("fine-tune" in w for w in warnings)
    assert re.search(words, "\n".join(warnings))


def test_debug_log_names_every_figure(caplog: pytest.LogCaptureFixture) -> None:
    network, arrays = one_layer(1.5, -0.75)
    with caplog.at_level(logging.DEBUG, logger="gti.converter"):
        converter.convert(network, arrays, net="net")
    assert [record.getMessage() for record in caplog.records] == [
        f"major 1 / sub {sub} (conv1_{sub}): max|W| 1.5, max|B| 0.75, gain of W 1024, gain of B 2048, shift 10"
        for sub in (1, 2)
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [("True", True), ("1", True), ("yes", True), ("", False), ("False", False), ("0", False)]
)
def test_debug_variable(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTI_DEBUG_CONVERSION", value)
    assert converter.debug_conversion() is expected


def test_written_files(tmp_path: Path) -> None:
    network = small_network(*TWO_MAJORS)
    arrays = trained(network, tmp_path)
    path = tmp_path / "2801_digits_dat.json"
    template = files.read_json(path)
    template["layer"][0]["comment"] = "kept"
    files.write_json(path, template)
    conversion = converter.convert(network, arrays, net="digits")
    output = tmp_path / "out"
    output.mkdir()
    dat_path, model_path = packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=output)
    assert sorted(p.name for p in output.iterdir()) == [
        "2801_digits.dat",
        "2801_digits.dat.json",
        "2801_digits.model",
        "2801_digits.model.json",
    ]
    assert files.read_json(path) == template  # the templates of another folder stay as they are
    written = files.read_json(output / "2801_digits.dat.json")
    assert [layer["scaling"] for layer in written["layer"]] == [list(v.scaling) for v in conversion.network.layers]
    assert written["layer"][0]["comment"] == "kept"
    assert files.read_json(output / "2801_digits.model.json")["layer"][0]["data file"] == "2801_digits.dat"
    assert dat_path.read_bytes() == conversion.dat()
    blobs = [layer.blob for layer in model_file.load(model_path).layers if layer.blob is not None]
    assert [bytes(blob) for blob in blobs] == [conversion.dat()]


def test_the_chip_has_its_whole_file_whatever_part_a_template_selects(tmp_path: Path) -> None:
    conversion = converter.convert(
        small_network(*TWO_MAJORS), trained(small_network(*TWO_MAJORS), tmp_path), net="digits"
    )
    path = tmp_path / "2801_digits_model.json"
    template = files.read_json(path)
    template["layer"][-1] |= {"data offset": 92, "data size": 10}
    files.write_json(path, template)
    _, model_path = packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=tmp_path)
    assert bytes(model_file.load(model_path).first("GTICNN").blob) == conversion.dat()


@pytest.mark.parametrize("layer", [[], [{"operation": "GTICNN"}] * 2, "none", None])
def test_templates_without_one_chip_layer(layer: object, tmp_path: Path) -> None:
    network = small_network(*TWO_MAJORS)
    conversion = converter.convert(network, trained(network, tmp_path), net="digits")
    files.write_json(tmp_path / "2801_digits_model.json", {"name": "digits", "layer": layer})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FormatError, match="GTICNN"):
        packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_another_image_size_is_written_everywhere(tmp_path: Path) -> None:
    network = small_network(*TWO_MAJORS)
    arrays = trained(network, tmp_path)
    small = network.layers[0].image_size
    path = tmp_path / "2801_digits_model.json"
    reader = {"name": "reader", "operation": "IMAGEREADER", "output width": small, "output height": small}
    chip = {"name": "chip", "operation": "GTICNN", "output width": 7, "output height": 7, "output channels": 32}
    files.write_json(path, {"name": "digits", "layer": [reader, chip]})
    doubled = replace(network, layers=tuple(replace(v, image_size=2 * v.image_size) for v in network.layers))
    conversion = converter.convert(doubled, arrays, net="digits")
    template = path.read_bytes()
    _, model_path = packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=tmp_path)
    assert path.read_bytes() == template
    copy = tmp_path / "2801_digits.model.json"
    sizes = [(entry["output width"], entry["output height"]) for entry in files.read_json(copy)["layer"]]
    assert sizes == [(2 * small, 2 * small), (14, 14)]
    in_file = model_file.load(model_path)
    assert [(v.entry["output width"], v.entry["output height"]) for v in in_file.layers] == sizes
    written = files.read_json(tmp_path / "2801_digits.dat.json")
    assert [layer["image_size"] for layer in written["layer"]] == [layer.image_size for layer in doubled.layers]
    # What was written serves as the template of the next conversion.
    before = model_path.read_bytes()
    packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=tmp_path, update_templates=True)
    assert path.read_bytes() == copy.read_bytes() != template
    packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=tmp_path)
    assert model_path.read_bytes() == before


@pytest.mark.parametrize("mode", ["x", True, None, 7, -1, 0.0])
def test_templates_with_an_unknown_mode(mode: object, tmp_path: Path) -> None:
    network = small_network(*TWO_MAJORS)
    conversion = converter.convert(network, trained(network, tmp_path), net="digits")
    layer = {"name": "chip", "operation": "GTICNN", "mode": mode}
    files.write_json(tmp_path / "2801_digits_model.json", {"name": "digits", "layer": [layer]})
    with pytest.raises(FormatError, match=r"2801_digits_model\.json"):
        packing.write_files(conversion, net="digits", nets_dir=tmp_path, output_dir=tmp_path)
    assert not (tmp_path / "2801_digits.model").exists()


def test_results_that_host_layers_cannot_take() -> None:
    network = small_network(*TWO_MAJORS)
    assert network.output_shape[1:] == (7, 7)
    assert not packing.fc_readout_problem(network, "digits")
    doubled = replace(network, layers=tuple(replace(v, image_size=2 * v.image_size) for v in network.layers))
    problem = packing.fc_readout_problem(doubled, "digits")
    assert problem.startswith("net digits: ")
    assert "7x7" in problem


def convert_to_chip(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["convert_to_chip.py", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "convert_to_chip.py"), run_name="__main__")
    return int(left.value.code or 0)


@pytest.mark.parametrize("stage", [Stage.QUANT_ACT, Stage.FUSED])
def test_script(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = small_network(*TWO_MAJORS)
    arrays = trained(network, tmp_path)
    if stage is Stage.FUSED:
        arrays = fusion.fuse(network, arrays, net="digits")
    metadata = Metadata("digits", "2801", stage, epoch=1, step=1, classes=5, image_size=14)
    prefix = str(tmp_path / checkpoint.file_name("digits", stage, 1))
    checkpoint.save(prefix, arrays, metadata)
    common = ["--net", "digits", "--chip", "2801", "--checkpoint", prefix]
    common += ["--nets_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    wrong = common if stage is Stage.FUSED else [*common, "--fuse"]
    assert convert_to_chip(*wrong, monkeypatch=monkeypatch) == 2
    assert "--fuse" in capsys.readouterr().err
    assert not (tmp_path / "2801_digits.model").exists()
    right = [*common, "--fuse"] if stage is Stage.FUSED else common
    assert convert_to_chip(*right, "--ten_bit_act", monkeypatch=monkeypatch) == 2
    assert "--ten_bit_act" in capsys.readouterr().err
    assert not (tmp_path / "2801_digits.model").exists()
    assert convert_to_chip(*right, monkeypatch=monkeypatch) == 0
    assert "2801_digits.model: " in capsys.readouterr().out
    expected = converter.convert(network, arrays, net="digits")
    assert (tmp_path / "2801_digits.dat").read_bytes() == expected.dat()
    # A second conversion, from the templates that the first one updated, gives the same files.
    model = (tmp_path / "2801_digits.model").read_bytes()
    assert convert_to_chip(*right, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "2801_digits.model").read_bytes() == model


def test_templates_of_the_nets_name_their_shapes() -> None:
    for net in nets.own_nets():
        path = nets.NETS_DIR / f"2801_{net}_model.json"
        layer = packing.chip_layer(json.loads(path.read_text()), path.name)
        channels, height, width = nets.load(net).output_shape
        assert [layer[f"output {key}"] for key in ("channels", "height", "width")] == [channels, height, width], net
        assert (layer["data file"], layer["mode"], layer["output scaledown"]) == (f"2801_{net}.dat", 0, 3)


def test_missing_variables_are_a_sentence(tmp_path: Path) -> None:
    network, arrays = one_layer(1, 0)
    del arrays["net/conv1_2/filters"]
    with pytest.raises(GtiError, match="net/conv1_2/filters is missing"):
        converter.convert(network, arrays, net="net")


@pytest.mark.parametrize(("coef_bits", "gain"), [(1, 1e5), (3, 1e5), (1, 1.0), (3, 1.0)])
def test_kernels_that_vanish_are_counted(coef_bits: int, gain: float) -> None:
    # One kernel of 3 x 16 is so large that the shift leaves nothing of the others; a padded channel does not count.
    network = small_network((14, 3, 16, 1, coef_bits, False))
    filters = np.random.default_rng(1).uniform(0.5, 1.0, (3, 3, 3, 16)).astype(F) * F(1 / 64)
    filters[:, :, :, 15] = 0
    filters[:, :, 0, 0] *= F(gain)
    arrays = {"net/conv1_1/filters": filters, "net/conv1_1/biases": np.zeros(16, F), "net/conv1_1/relu_cap": F(31)}
    result = converter.convert(network, arrays, net="net")
    alive = (result.weights[0].filters != 0).any(axis=(2, 3)).sum()
    if gain == 1.0:
        assert (result.vanished, result.warnings) == ((0.0,), ())
        return
    assert alive == 1
    assert result.vanished == (44 / 45,)
    assert any("98% of its kernels become 0" in warning for warning in result.warnings)
