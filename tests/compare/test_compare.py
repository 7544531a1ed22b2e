"""compare.py: an unharmed model is equal throughout, and every planted fault is found and named."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import converted_net
import numpy as np
import pytest
from converted_net import CLASSES, NETWORK, Converted
from small_nets import build, some_caps, values

from gti import converter, data_utils
from gti.chip.driver import GtiModel
from gti.chip.emulator.arithmetic import five_bit
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat, model_file
from gti.chip.network.types import ConvolutionWeights
from gti.chip.wire import protocol
from gti.compare import diagnosis, inference, sublayer_maps
from gti.compare import stages as compare
from gti.compare.stages import Limits
from gti.compare.sublayer_maps import Maps, Source
from gti.errors import CheckpointError, DataError, UsageError
from gti.stage import Stage
from gti.training import checkpoint
from gti.training.metadata import Metadata
from scripts import compare as script

pytestmark = pytest.mark.slow  # all of them together: each prepares a fault and finds it again
CONVOLUTIONS = NETWORK.convolutions


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    result = converted_net.make(tmp_path_factory.mktemp("net"), Stage.FUSED)
    converted_net.run_script("convert_to_chip.py", *result.flags, "--fuse", "--output_dir", result.folder)
    return result


def flags(net: Converted) -> list[str]:
    data = net.folder / "data" / "val"
    where = ["--nets_dir", net.folder, "--checkpoint_dir", net.folder / "checkpoints", "--val_data_dir", data]
    return [*map(str, [*converted_net.COMMON, *where, "--settings_file", net.folder / "none.json"])]


def run(net: Converted, *more: object, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, Any]]:
    """Return exit status and JSON of the script."""
    out = net.folder / "compare.json"
    monkeypatch.setattr(sys, "argv", ["compare.py", *flags(net), *map(str, more), "--json", str(out)])
    return script.main(), json.loads(out.read_text())


def pair_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(pair for pair in report["pairs"] if f"{pair['expected']} -> {pair['received']}" == name)


def with_dat(net: Converted, data: bytes, path: Path) -> Path:
    """Write a .model with the .DAT `data` in place of the converted one."""
    header = json.dumps({"layer": [{"operation": "GTICNN", "data file": "x"}]})
    path.write_bytes(model_file.compose(header.encode(), {"x": data}))
    return path


def converted_dat(net: Converted) -> bytes:
    return (net.folder / "2801_digits.dat").read_bytes()


def reencoded(net: Converted, index: int, change: Any) -> bytes:
    """The .DAT with the integers of sublayer `index` changed."""
    decoded = dat.decode(converted_dat(net))
    weights = list(decoded.weights)
    weights[index] = change(weights[index])
    shifts = [layer.shift for layer in weights]
    return dat.encode(converter.with_shifts(decoded.network, shifts), weights)


def test_unharmed_model_is_equal(
    converted: Converted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run(converted, "--num_batches", 3, monkeypatch=monkeypatch)
    assert status == 0
    # 11 images; 28*28*16 twice and 14*14*16 codes each, in two pairs: fused -> emulator and emulator -> stick.
    count = 11 * (2 * 28 * 28 * 16 + 14 * 14 * 16) * 2
    assert (report["images"], report["codes_compared"], report["codes_equal"]) == (11, count, count)
    assert [stage["name"] for stage in report["stages"]] == ["fused", "emulator", "stick"]
    assert report["findings"] == []
    assert report["notes"] == [
        f"{stage} is left out: no checkpoint (--{stage}_checkpoint)" for stage in ("float", "quant_w", "quant_act")
    ]
    out = capsys.readouterr().out
    assert out.endswith(f"all codes equal: fused, emulator, stick, {count:,} codes, 11 images\n")
    assert "stick: virtual stick (emulator, " in out


def flip_one_weight(net: Converted) -> tuple[bytes, tuple[int, ...], int, int]:
    """Flip the bit of a .DAT that changes one weight of conv1_2; return the file, its place, old and new value."""
    data = converted_dat(net)
    before = dat.decode(data).weights[1].filters
    start = 92 + 192 * 8  # rows of conv1_1: 16 inputs (3, rounded up), 2 kernels a line
    for bit in range(8 * 192):
        broken = bytearray(data)
        broken[start + bit // 8] ^= 1 << bit % 8
        after = dat.decode(bytes(broken)).weights[1].filters
        places = np.argwhere(before != after)
        if len(places) == 1 and abs(int(before[tuple(places[0])]) - int(after[tuple(places[0])])) > 50:
            place = tuple(int(n) for n in places[0])
            return bytes(broken), place, int(before[place]), int(after[place])
    raise AssertionError("no bit of the first row changes a single weight")


def test_fault_one_weight_bit(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, (output, channel, row, column), before, after = flip_one_weight(converted)
    path = with_dat(converted, data, tmp_path / "x.model")
    status, report = run(converted, "--model_file", path, monkeypatch=monkeypatch)
    assert status == 1
    pair = pair_of(report, "fused -> emulator")
    assert pair["first_diverging"] == "conv1_2"
    assert pair["layers"][1]["place"]["channel"] == output
    assert report["findings"][0].startswith(
        "fused -> emulator: major 1 / sub 2 (conv1_2) is the first sublayer that differs; image "
    )
    assert report["findings"][1:] == [
        f"emulator: in its file, major 1 / sub 2 (conv1_2): the kernel of output {output}, input {channel} differs: "
        f"row {row}, column {column} is {after} instead of {before}."
    ]
    # The stick has the same wrong file: it agrees with the emulator.
    assert pair_of(report, "emulator -> stick")["first_diverging"] is None


def test_fault_shift_plus_one(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = dat.decode(converted_dat(converted)).weights[2].shift
    data = reencoded(converted, 2, lambda layer: replace(layer, shift=layer.shift + 1))
    path = with_dat(converted, data, tmp_path / "x.model")
    status, report = run(converted, "--model_file", path, monkeypatch=monkeypatch)
    assert status == 1
    assert pair_of(report, "fused -> emulator")["first_diverging"] == "conv2_1"
    assert report["findings"][1:] == [
        f"emulator: in its file, major 2 / sub 1 (conv2_1): the shift is {shift + 1} instead of {shift}."
    ]


def test_fault_two_channels_swapped(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.arange(16)
    order[[3, 7]] = [7, 3]
    data = reencoded(
        converted, 1, lambda layer: replace(layer, filters=layer.filters[order], biases=layer.biases[order])
    )
    path = with_dat(converted, data, tmp_path / "x.model")
    status, report = run(converted, "--model_file", path, monkeypatch=monkeypatch)
    assert status == 1
    pair = pair_of(report, "fused -> emulator")
    assert pair["first_diverging"] == "conv1_2"
    assert pair["layers"][1]["place"]["channel"] == 3
    assert report["findings"][1:] == [
        "emulator: in its file, major 1 / sub 2 (conv1_2): output channels 3 and 7 are swapped.",
        "emulator: in its maps of major 1 / sub 2 (conv1_2), channels 3 and 7 are swapped.",
    ]


def record(net: Converted, folder: Path, prepare: Any) -> Path:
    """Save the maps of a program that feeds the stick with images prepared in its own way."""
    with GtiModel(net.model_file, "virtual") as stick:
        for number, image in enumerate(net.pixels[:5]):
            maps = stick.layer_outputs(np.ascontiguousarray(prepare(image)), "learn")
            target = folder / f"image_{number:05d}"
            inference.save_layer_outputs(target, NETWORK, int(protocol.Mode.LEARN), maps)
    return folder


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (five_bit, "after the five-bit transform, which was then done twice (send 8-bit pixels)"),
        (lambda image: image[:, :, ::-1], "with red and blue swapped (RGB for BGR)"),
    ],
    ids=["double normalisation", "RGB for BGR"],
)
def test_fault_images_prepared_in_another_way(
    prepare: Any, words: str, converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record(converted, tmp_path / "maps", prepare)
    status, report = run(converted, "--recorded", folder, "--num_batches", 3, monkeypatch=monkeypatch)
    assert status == 1
    assert report["images"] == 5  # as many as were recorded
    assert pair_of(report, "fused -> emulator")["first_diverging"] is None
    assert pair_of(report, "stick -> recorded")["first_diverging"] == "conv1_1"
    assert report["findings"][0].startswith("stick -> recorded: major 1 / sub 1 (conv1_1) is the first sublayer")
    assert report["findings"][1:] == [f"recorded: it saw the images {words}."]


def test_maps_recorded_rightly_are_equal(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record(converted, tmp_path / "maps", lambda image: image)
    status, report = run(converted, "--recorded", folder, "--device", "none", monkeypatch=monkeypatch)
    assert status == 0
    assert [stage["name"] for stage in report["stages"]] == ["fused", "emulator", "recorded"]
    assert report["codes_equal"] == report["codes_compared"] > 0


def test_fault_in_the_data_pipeline(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    # Here the Keras side is wrong: its pipeline transforms twice, while the stick gets proper pixels.
    once = data_utils.to_codes
    monkeypatch.setattr(data_utils, "to_codes", lambda pixels: once(five_bit(np.asarray(pixels))))
    status, report = run(converted, monkeypatch=monkeypatch)
    assert status == 1
    assert report["findings"][1:] == [
        "fused: it saw the images after the five-bit transform, which was then done twice (send 8-bit pixels)."
    ]


def test_integers_without_effect_are_told(
    converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One more in a bias seldom moves a code of a single small image: some channel stays as it is.
    decoded = dat.decode(converted_dat(converted))
    right = Emulator(decoded.network, decoded.weights, engine="numpy").read_out(converted.pixels[0], "learn")
    for output in range(16):
        biases = decoded.weights[2].biases + (np.arange(16) == output).astype(np.int32)
        weights = [*decoded.weights[:2], replace(decoded.weights[2], biases=biases)]
        codes = Emulator(decoded.network, weights, engine="numpy").read_out(converted.pixels[0], "learn")
        if np.array_equal(codes[2], right[2]):
            break
    else:
        raise AssertionError("every bias moves a code")
    path = with_dat(converted, dat.encode(decoded.network, weights), tmp_path / "x.model")
    one_image = ("--val_batch_size", 1, "--num_batches", 1, "--device", "none")
    status, report = run(converted, "--model_file", path, *one_image, monkeypatch=monkeypatch)
    assert status == 0
    assert report["findings"] == [
        f"{path}: major 2 / sub 1 (conv2_1): the bias of output {output} is {biases[output]} instead of "
        f"{biases[output] - 1}, which changes no code of these images."
    ]


def test_bits_without_meaning_are_told(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_dat(converted, converted_dat(converted)[:-1] + b"\1", tmp_path / "x.model")
    few = ("--val_batch_size", 1, "--num_batches", 1, "--device", "none")
    status, report = run(converted, "--model_file", path, *few, monkeypatch=monkeypatch)
    assert status == 0
    assert f"{path}: padding after the rows: " in report["notes"][-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Checkpoints of all four stages, the same weights in each, and what was converted."""
    net = converted_net.make(tmp_path_factory.mktemp("stages"), Stage.QUANT_ACT)
    folder = net.folder / "checkpoints"
    for stage in (Stage.FLOAT, Stage.QUANT_W):
        for epoch, accuracy in ((1, 0.5), (2, 0.25)):
            arrays = {name: array for name, array in net.arrays.items() if not name.endswith("relu_cap")}
            if epoch == 2:
                arrays = {name: array * np.float32(2) for name, array in arrays.items()}
            metadata = Metadata("digits", "2801", stage, epoch, epoch, CLASSES, 28, accuracy=accuracy)
            checkpoint.save(folder / checkpoint.file_name("digits", stage, epoch), arrays, metadata)
    converted_net.run_script("convert_to_chip.py", *net.flags, "--output_dir", net.folder)
    return net


def test_all_stages(trained: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    status, report = run(trained, monkeypatch=monkeypatch)
    assert status == 0
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["float", "quant_w", "quant_act", "fused", "emulator", "stick"]
    # The better of two epochs, and the quant_act checkpoint folded as the converter did.
    assert report["stages"][0]["origin"].endswith("digits-2801-epoch-1")
    assert report["stages"][3]["origin"] == report["stages"][2]["origin"]
    rounded = pair_of(report, "quant_w -> quant_act")["layers"][0]
    # Rounding the same sums to codes: half a code at most, and the same share at the cap.
    assert rounded["max"] <= 0.5 + 1e-4
    assert rounded["cosine"] > 0.99
    # Random filters lose much in three bits; another channel order or layout would leave next to nothing.
    assert pair_of(report, "float -> quant_w")["layers"][0]["cosine"] > 0.8


def test_limit_exceeded(trained: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--num_batches", 1, "--val_batch_size", 1, "--device", "none")
    status, report = run(trained, "--min_cosine", 0.99999, *few, monkeypatch=monkeypatch)
    assert status == 1
    assert report["findings"][0].startswith(
        "float -> quant_w: major 1 / sub 1 (conv1_1) is the first sublayer beyond the limits (cosine 0."
    )
    assert report["codes_equal"] == report["codes_compared"]


def test_checkpoint_of_another_stage(trained: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = trained.folder / "checkpoints" / "digits-2801-qw-epoch-1"
    with pytest.raises(CheckpointError, match="expected float"):
        run(trained, "--float_checkpoint", prefix, monkeypatch=monkeypatch)


def test_a_folder_that_is_not_there(trained: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="nope: "):
        run(trained, "--checkpoint_dir", "nope", monkeypatch=monkeypatch)


def test_checkpoint_that_was_not_converted(
    converted: Converted, trained: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = checkpoint.digest(trained.checkpoint)
    path = trained.folder / "2801_digits.model"
    _, report = run(converted, "--model_file", path, monkeypatch=monkeypatch)
    assert f"the .MODEL was made of another checkpoint ({other}) than {converted.checkpoint}" in report["notes"]


def test_file_of_another_network(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = dat.decode(converted_dat(converted))
    path = with_dat(converted, dat.encode(replace(decoded.network, sampling_method=1), decoded.weights), tmp_path / "x")
    with pytest.raises(UsageError, match=r"dat\.json"):
        run(converted, "--model_file", path, monkeypatch=monkeypatch)


def test_recorded_maps_of_another_form(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="recorded"):
        run(converted, "--recorded", tmp_path, monkeypatch=monkeypatch)
    folder = record(converted, tmp_path / "maps", lambda image: image)
    np.savez(folder / "image_00001" / "maps.npz", conv1_1=np.zeros((16, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"does not hold the maps of major 1 / sub 2 \(conv1_2\)"):
        run(converted, "--recorded", folder, monkeypatch=monkeypatch)


# The library: figures by hand


def source(name: str, values: list[np.ndarray], layout: str = "NCHW", exact: bool = True) -> Source:
    return Source(name, "by hand", exact, lambda pixels, first: [Maps(v, layout) for v in values])


def one_pixel(*codes: float) -> np.ndarray:
    return np.array(codes, np.float64).reshape(1, -1, 1, 1)


def test_figures_by_hand() -> None:
    pixels = np.zeros((1, 1, 1, 1), np.uint8)
    ours, theirs = one_pixel(3, 4, 31, 0), one_pixel(4, 2, 31, 0)
    result = compare.compare([source("a", [ours]), source("b", [theirs])], CONVOLUTIONS[:1], [pixels])
    layer = result.pairs[0].layers[0]
    assert (layer.values, layer.different, layer.largest, layer.mean) == (4, 2, 2, 0.75)
    # (3*4 + 4*2 + 31*31) / sqrt((9 + 16 + 961) * (16 + 4 + 961))
    assert layer.cosine == pytest.approx(981 / np.sqrt(986 * 981))
    assert (layer.saturated, layer.zeros) == (0.25, 0.25)
    assert str(layer.place) == "image 0, channel 0, row 0, column 0: expected 3, received 4"
    assert result.exact_codes == (4, 2)
    assert not result.passed


def test_worst_place_of_stages_that_are_not_exact() -> None:
    pixels = np.zeros((1, 1, 1, 1), np.uint8)
    sources = [source("a", [one_pixel(3, 4, 31, 0)], exact=False), source("b", [one_pixel(4, 2, 31, 0)])]
    result = compare.compare(sources, CONVOLUTIONS[:1], [pixels, pixels])
    layer = result.pairs[0].layers[0]
    assert layer.place is not None
    assert (layer.place.image, layer.place.channel, layer.values) == (0, 1, 8)
    assert result.passed
    assert result.exact_codes == (0, 0)
    assert compare.compare(sources, CONVOLUTIONS[:1], [pixels], limits=Limits(mean=0.74)).passed is False
    assert compare.compare(sources, CONVOLUTIONS[:1], [pixels], limits=Limits(mean=0.75)).passed is True


def test_limits_in_words() -> None:
    layer = compare.LayerDifference(CONVOLUTIONS[0], False)
    layer.add(one_pixel(3, 4, 31, 0)[0], one_pixel(4, 2, 31, 0)[0], 0)
    assert Limits().exceeded(layer) == []
    assert Limits(largest=2, mean=0.75, cosine=0.99).exceeded(layer) == []
    assert Limits(largest=1.5, mean=0.5, cosine=0.999).exceeded(layer) == [
        "max 2 above 1.5",
        "mean 0.75 above 0.5",
        "cosine 0.9975 below 0.999",
    ]


def test_layouts_are_respected() -> None:
    random = np.random.default_rng(0)
    channels_first = random.integers(0, 32, (2, 16, 4, 4)).astype(np.uint8)
    channels_last = np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1))
    pixels = np.zeros((2, 1, 1, 1), np.uint8)
    pair = [source("a", [channels_last], "NHWC"), source("b", [channels_first])]
    assert compare.compare(pair, CONVOLUTIONS[:1], [pixels]).passed
    wrong = [source("a", [channels_last], "NCHW"), source("b", [channels_first])]
    with pytest.raises(DataError, match="different"):
        compare.compare(wrong, CONVOLUTIONS[:1], [pixels])


@pytest.mark.parametrize(
    ("ours", "theirs", "cosine"), [((0, 0), (0, 0), 1.0), ((0, 0), (1, 0), 0.0), ((2, 2), (4, 4), 1.0)]
)
def test_cosine_of_dead_maps(ours: tuple[int, ...], theirs: tuple[int, ...], cosine: float) -> None:
    layer = compare.LayerDifference(CONVOLUTIONS[0], True)
    layer.add(one_pixel(*ours)[0], one_pixel(*theirs)[0], 0)
    assert layer.cosine == pytest.approx(cosine)


def maps(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 32, (2, 6, 5, 5)).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x, ""),
        (lambda x: x.transpose(0, 1, 3, 2), "rows and columns are swapped"),
        (lambda x: x[:, [0, 4, 2, 3, 1, 5]], "channels 1 and 4 are swapped"),
        (lambda x: x[:, [1, 2, 0, 3, 4, 5]], "3 channels are in another order, the first is number 0"),
        (lambda x: x ^ 1, ""),
    ],
)
def test_rearrangements(change: Any, words: str) -> None:
    assert diagnosis.rearrangement(maps(), change(maps())) == words


def integers(seed: int = 0) -> ConvolutionWeights:
    random = np.random.default_rng(seed)
    filters = random.integers(-100, 100, (16, 16, 3, 3)).astype(np.int16)
    return ConvolutionWeights(filters, random.integers(-9, 9, 16).astype(np.int32), 5)


def with_tap(value: int) -> np.ndarray:
    filters = integers().filters.copy()
    filters[2, 3, 1, 0] = value
    return filters


INPUTS_SWAPPED = np.array([1, 0, *range(2, 16)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"shift": 6}, "the shift is 6 instead of 5"),
        (
            {"filters": with_tap(101)},
            "the kernel of output 2, input 3 differs: row 1, column 0 is 101 instead of "
            f"{integers().filters[2, 3, 1, 0]}",
        ),
        ({"filters": integers().filters[:, INPUTS_SWAPPED]}, "input channels 0 and 1 are swapped"),
        (
            {"biases": integers().biases + 1},
            f"16 biases differ, the first: the bias of output 0 is {integers().biases[0] + 1} instead of "
            f"{integers().biases[0]}",
        ),
    ],
)
def test_integer_differences(change: dict[str, Any], words: str | None) -> None:
    found = diagnosis.integer_differences(CONVOLUTIONS[1:2], [integers()], [replace(integers(), **change)])
    assert found == ([] if words is None else [f"major 1 / sub 2 (conv1_2): {words}"])


def test_only_the_first_sublayers_of_another_file_are_listed() -> None:
    convolutions = [CONVOLUTIONS[1]] * 5
    found = diagnosis.integer_differences(convolutions, [integers(0)] * 5, [integers(1)] * 5)
    assert len(found) == 4
    assert found[0].startswith("major 1 / sub 2 (conv1_2): 256 of 256 kernels differ, the first is output 0, input 0")
    assert found[3] == "the integers of 2 more sublayers differ"


def test_every_preparation_is_told_from_the_others(converted: Converted) -> None:
    decoded = dat.decode(converted_dat(converted))
    emulator = sublayer_maps.emulator_of(decoded, NETWORK)
    image = converted.pixels[:1]
    for words, prepare in diagnosis.PREPARATIONS:
        seen = np.ascontiguousarray(prepare(image))
        maps_of = [Maps(codes, "NCHW") for _, codes in emulator.sublayers(seen)]
        assert diagnosis.preparation_of(emulator, image, maps_of) == words
    noise = [Maps(codes ^ 1, "NCHW") for _, codes in emulator.sublayers(image)]
    assert diagnosis.preparation_of(emulator, image, noise) is None


def test_keras_stage_counts_in_codes(tmp_path: Path) -> None:
    # A float sublayer's output y is min(y, cap) * 31 / cap.
    model = build(NETWORK, tmp_path, classes=CLASSES)
    caps = dict.fromkeys(some_caps(NETWORK), 0.25)
    stage = sublayer_maps.of_keras("float", "by hand", model, caps)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3)).astype(np.uint8)
    first = stage.maps(pixels, 0)[0]
    arrays = values(model)
    x = np.pad(five_bit(pixels).astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patch = x[1, 4:7, 9:12]  # around row 4, column 9 of image 1
    y = np.einsum("hwi,hwio->o", patch, arrays["digits/conv1_1/filters"]) + arrays["digits/conv1_1/biases"]
    expected = np.clip(y, 0, 0.25) * 31 / 0.25
    assert first.layout == "NHWC"
    np.testing.assert_allclose(first.values[1, 4, 9], expected, atol=1e-3)
