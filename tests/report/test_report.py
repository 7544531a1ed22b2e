"""The report: numbers against independent statements of them, advice, and the page in a real browser."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small_nets
from PIL import Image

from gti import names
from gti.chip.emulator.emulator import Emulator
from gti.chip.network import json_form as networks
from gti.chip.network.types import ConvolutionWeights, MajorLayer, Network
from gti.errors import FormatError, UsageError
from gti.report import advice, steps, store, weights
from gti.report.activations import BINS, Histogram

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- numbers


def test_histogram_equals_numpy_whatever_the_order():
    random = np.random.default_rng(3)
    batches = [random.exponential(scale, 500) for scale in (0.1, 3.0, 0.5)]
    found = Histogram(0.25)
    for batch in batches:
        found.add(batch)
    values = np.concatenate(batches)
    assert found.top >= values.max() > found.top / 2
    # Edges at multiples of top / 64 survive every doubling.
    assert found.counts.tolist() == np.histogram(values, BINS, (0, found.top))[0].tolist()


def test_levels_as_the_file_stores_them():
    kernels = np.zeros((2, 2, 3, 3), np.int16)
    kernels[0, 0] = [[5, -5, 10], [20, -20, 0], [0, 0, 0]]  # step 5: 1, -1, 2, 4, -4
    kernels[0, 1] = [[6, 0, 0], [0, 12, 0], [0, 0, 0]]
    kernels[1, 0, 0, 0] = -7  # alone: one step
    found = weights.levels(kernels, 3)
    assert found == {"-4": 1, "-2": 0, "-1": 2, "0": 36 - 8, "1": 2, "2": 2, "4": 1}
    assert weights.levels(np.full((1, 1, 3, 3), -9, np.int16), 1)["-1"] == 9


def test_dead_channels_are_those_that_the_emulator_never_lights():
    network = Network((MajorLayer(14, 3, 16, 1, 3, (4,)),))
    random = np.random.default_rng(5)
    filters = (random.integers(-1, 2, (16, 3, 3, 3)) * 2).astype(np.int16)
    # Positive weights of 1 on one tap reach 31; the biases decide how much is left: half a code at shift 4 is 8.
    filters[:4] = 0
    filters[:4, 0, 1, 1] = 1
    biases = random.integers(0, 50, 16).astype(np.int32)
    biases[:4] = [-31 + 7, -31 + 8, 0, -200]
    layer = ConvolutionWeights(filters, biases, 4)
    dead = weights.dead_channels(network.convolutions[0], layer)
    assert dead.tolist() == [0, 3]
    # The brightest input of each channel: white under positive weights, black under the others.
    emulator = Emulator(network, [layer], engine="numpy")
    for channel in range(16):
        image = np.zeros((1, 14, 14, 3), np.uint8)
        image[0, 6:9, 6:9] = np.where(filters[channel].transpose(1, 2, 0) > 0, 255, 0)
        assert (emulator.output(image)[0, channel].max() > 0) == (channel not in dead)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """All parts of a report, of a small net with random weights; the folder that holds them."""
    import tensorflow as tf

    from gti import converter
    from gti.model import base
    from gti.report import steps

    folder = tmp_path_factory.mktemp("report")
    network = small_nets.NETWORKS["mixed bits"]
    caps = small_nets.some_caps(network)
    options = {"quant_w": True, "quant_act": True, "caps": caps}
    model = small_nets.build(network, folder, **options)
    arrays = small_nets.randomise(model, 1, scale=0.5)
    arrays |= {name: np.float32(cap) for name, cap in caps.items()}
    images = small_nets.images(network, 40, 2)
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(40) % 5)).batch(16)
    float_model = small_nets.build(network, folder)
    small_nets.assign(float_model, arrays)
    report = folder / "page"
    about = {"net": "digits <b>&", "checkpoint": "a/b"}
    steps.add_calibration(report, float_model, dataset, caps, about)
    steps.add_conversion(report, converter.convert(network, arrays, net="digits"), arrays, net="digits", about=about)
    switches = [(layer.quantize_w, layer.quantize_act) for layer in base.chip_layers(model)]
    steps.add_sensitivity(report, model, dataset)
    assert [(layer.quantize_w, layer.quantize_act) for layer in base.chip_layers(model)] == switches
    layers = [
        {"layer": c.path, "differing": 0.5, "max": 3, "mean": 0.1, "cosine": 0.99, "saturated": 0.1, "zeros": 0.6}
        for c in network.convolutions
    ]
    first = "conv1_1, channel 3, row 4, column 5: expected 7, received 8."
    steps.add_comparison(report, [{"reference": "fused", "tested": "emulator", "first": first, "layers": layers}])
    stages = {"float": 0.95, "quant_w": 0.94, "quant_act": 0.90, "fused": 0.90, "chip": 0.90}
    steps.add_stages(report, stages, {"stick": "virtual"})
    return report, float_model, images, caps


@pytest.mark.slow
def test_activations_are_those_of_the_model(parts):
    import keras

    report, model, images, caps = parts
    found = store.load(report)["activations"]
    assert found["images"] == 40
    assert [layer["name"] for layer in found["layers"]] == ["input", *(c.name for c in model.network.convolutions)]
    assert found["layers"][0]["codes"] == np.bincount(images.astype(int).ravel(), minlength=32).tolist()
    for convolution, layer in zip(model.network.convolutions, found["layers"][1:], strict=True):
        cap = caps[names.cap("digits", convolution.name)]
        values = keras.Model(model.input, model.get_layer(convolution.name).output).predict(images, verbose=0)
        assert layer["clipped"] == pytest.approx(np.mean(values > cap), abs=1e-6)
        assert sum(layer["histogram"]["counts"]) == sum(layer["codes"]) == values.size
        assert layer["dead_channels"] == np.flatnonzero((values < cap / 62).all(axis=(0, 1, 2))).tolist()


@pytest.mark.slow
def test_sensitivity_names_every_layer(parts):
    found = store.load(parts[0])["sensitivity"]
    assert found["images"] == 40
    assert [layer["name"] for layer in found["layers"]] == ["conv1_1", "conv2_1", "conv2_2"]
    assert all(0 <= layer["accuracy"] <= 1 for layer in found["layers"])


# --- advice

LAYER = {"path": "major 1 / sub 1 (conv1_1)", "name": "conv1_1", "channels": 16, "dead_channels": []}
ACTIVATIONS = LAYER | {"cap": 5.0, "clipped": 0.0, "codes": [1] * 32}
WEIGHTS = LAYER | {
    **{"shift": 8, "shift_of_weights": 8, "max_weight": 1.0, "max_bias": 1.0, "bias_headroom": 2.0},
    "levels": {"-1": 3, "0": 0, "1": 3},
}


@pytest.mark.parametrize(
    ("part", "value", "text", "remedy"),
    [
        ("activations", ACTIVATIONS | {"cap": 2e3}, "range of 2e+03 is extreme", "batch norm"),
        ("activations", ACTIVATIONS | {"cap": 1e-7}, "range of 1e-07 is extreme", "batch norm"),
        ("activations", ACTIVATIONS | {"clipped": 0.2}, "20.0% of the activations are above", "higher --percentile"),
        ("activations", ACTIVATIONS | {"codes": [1] * 3 + [0] * 29}, "Only 3 of 32", "lower --percentile"),
        ("activations", ACTIVATIONS | {"dead_channels": [1, 2]}, "2 of 16 channels", "fewer output channels"),
        ("activations", ACTIVATIONS | {"dead_channels": [*range(16)]}, "the layer is dead", "--learning_rate"),
        ("activations", ACTIVATIONS | {"name": "input", "codes": [9, 9] + [0] * 30}, "use 2 of 32", "scaled to 0..1"),
        ("weights", WEIGHTS | {"shift": 3, "max_bias": 90.0}, "the filters lose 5 bits", "--clip_bias"),
        ("weights", WEIGHTS | {"levels": {"-1": 0, "0": 9, "1": 0}}, "Every filter is 0", "--clip_bias"),
        ("weights", WEIGHTS | {"bias_headroom": None}, "Every bias becomes 0", "Fuse and fine-tune"),
        ("weights", WEIGHTS | {"dead_channels": [1]}, "1 of 16 channels are 0 for every", "fewer output channels"),
    ],
)
def test_each_warning_has_its_remedy(part, value, text, remedy):
    (found,) = advice.warnings({part: {"layers": [value]}})
    assert text in found.text
    assert remedy in found.advice
    # One sentence of advice.
    assert re.fullmatch(r"[^.]*(\.\.[^.]*)?\.", found.advice)


def test_a_sound_network_has_no_warnings():
    sound = {"activations": {"layers": [ACTIVATIONS]}, "weights": {"layers": [WEIGHTS]}}
    sound["stages"] = {"accuracies": [{"stage": "float", "accuracy": 0.9}, {"stage": "chip", "accuracy": 0.895}]}
    sound["sensitivity"] = {"accuracy": 0.9, "layers": [LAYER | {"accuracy": 0.905}]}
    sound["compare"] = {"pairs": [{"reference": "fused", "tested": "stick", "first": ""}]}
    assert advice.warnings(sound) == []


def test_lost_accuracy_names_the_stage_and_the_layer():
    parts = {
        "stages": {"accuracies": [{"stage": "quant_w", "accuracy": 0.9}, {"stage": "quant_act", "accuracy": 0.85}]},
        "sensitivity": {"accuracy": 0.85, "layers": [LAYER | {"accuracy": 0.89}]},
    }
    stage, layer = advice.warnings(parts)
    assert (stage.place, stage.text) == ("quant_act", "5.00% of accuracy lost since quant_w.")
    assert "--train_caps" in stage.advice
    assert (layer.place, layer.text) == (LAYER["path"], "Its quantization costs 4.00% of accuracy.")


# --- the page


class _Links(html.parser.HTMLParser):
    """Collects what would be fetched, and checks that tags are balanced."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_complete_and_fetches_nothing(parts):
    page = (parts[0] / store.PAGE).read_text()
    sections = ("warnings", "stages", "activations", "weights", "sensitivity", "compare", "memory")
    assert [s for s in re.findall(r'<section id="(\w+)"', page)] == list(sections)  # noqa: C416
    links = _Links()
    links.feed(page)
    assert links.found == [] == links.open
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    for name in ("input image", "major 1 / sub 1 (conv1_1)", "major 2 / sub 1 (conv2_1)", "major 2 / sub 2 (conv2_2)"):
        assert f"<h3>{name}</h3>" in page
    assert "digits &lt;b&gt;&amp; on the GTI 2801" in page  # text of files is never markup
    assert "conv1_1, channel 3, row 4, column 5: expected 7, received 8." in page


def test_parts_arrive_in_any_order(tmp_path):
    network = networks.to_json(small_nets.NETWORKS["mixed bits"])
    store.add(tmp_path / "new" / "folder", "stages", {"accuracies": [{"stage": "float", "accuracy": 0.5}]})
    page = store.add(
        tmp_path / "new" / "folder", "sensitivity", {"accuracy": 0.5, "images": 1, "layers": [], "network": network}
    )
    text = page.read_text()
    assert 'id="stages"' in text
    assert 'id="memory"' in text
    assert 'id="weights"' not in text


@pytest.mark.parametrize("content", ["[]", '{"accuracies": 3}', '{"accuracies": [{}]}', "{", '{"network": {}}'])
def test_damaged_parts_are_named(tmp_path, content):
    (tmp_path / "stages.json").write_text(content)
    with pytest.raises((FormatError, networks.NetworkError)) as raised:
        store.add(tmp_path, "compare", {"pairs": []})
    assert str(tmp_path) in str(raised.value) or "report" in str(raised.value)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        store.add(tmp_path / "file", "compare", {"pairs": []})


# --- a real browser


def screenshot(page: Path, folder: Path, width: int, *, dark: bool) -> np.ndarray:
    """Return the page at `width` CSS pixels, uint8 [H, W, 3]: inside a frame, as windows have a least width."""
    frame = folder / f"frame{width}.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.as_uri()}" style="border:0;width:{width}px;height:3000px"></iframe>'
    )
    target = folder / f"shot{width}{dark}.png"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --hide-scrollbars"
    command = [
        *(BROWSER, *flags.split(), f"--user-data-dir={folder / f'profile{width}{dark}'}"),
        *(f"--window-size={max(width, 600)},3000", f"--screenshot={target}"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        frame.as_uri(),
    ]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return np.asarray(Image.open(target).convert("RGB"))[:, :width]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_light_and_dark_wide_and_narrow(parts, tmp_path):
    page = parts[0] / store.PAGE
    shots = {
        (width, dark): screenshot(page, tmp_path, width, dark=dark) for width in (1280, 400) for dark in (False, True)
    }
    for (width, dark), shot in shots.items():
        assert shot.shape[1] == width
        background = shot[5, 5].mean()
        assert (background < 60) if dark else (background > 200)
        # Ink on the page, and none cut off: the margin on the right is empty.
        assert (np.abs(shot.astype(int) - shot[5, 5]).max(axis=2) > 60).mean() > 0.01
        margin = shot[:, width - 6 :]
        assert (np.abs(margin.astype(int) - shot[5, 5]).max(axis=2) < 12).all()


def test_accuracies_of_single_steps_come_together_in_the_order_of_the_workflow(tmp_path):
    from gti.report import steps

    for stage, accuracy in (("chip", 0.5), ("float", 0.75), ("quant_w", 0.25), ("quant_w", 0.625)):
        page = steps.add_accuracy(tmp_path, stage, accuracy)
    rows = [(row["stage"], row["accuracy"]) for row in store.load(tmp_path)["stages"]["accuracies"]]
    assert rows == [("float", 0.75), ("quant_w", 0.625), ("chip", 0.5)]
    assert "62.50 %" in page.read_text(encoding="utf-8")


# --- training


def epoch(stage: str, number: int, **more: float) -> dict:
    return {"stage": stage, "epoch": number, "loss": 1.0 / (number + 1), "accuracy": 0.5 + number / 100, **more}


def test_epochs_of_another_run_give_way(tmp_path):
    for stage, number in [("float", 1), ("float", 2), ("quant_w", 0), ("quant_w", 1), ("float", 2), ("quant_act", 0)]:
        page = steps.add_epoch(tmp_path, epoch(stage, number, train_loss=0.7, train_accuracy=0.4))
    rows = store.load(tmp_path)["curves"]["epochs"]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("float", 1), ("float", 2), ("quant_act", 0)]
    text = page.read_text()
    assert text.count("validation, float 2: ") == 2  # loss and accuracy
    assert "training, quant_act 0: 0.7" in text
    assert ">quant_act</text>" in text


def test_an_epoch_0_has_no_training_loss(tmp_path):
    page = steps.add_epoch(tmp_path, epoch("quant_w", 0)).read_text()
    assert "validation, quant_w 0: 1" in page
    assert "training, quant_w 0" not in page


def test_classes_are_listed_from_the_worst_with_what_they_are_taken_for(tmp_path):
    answers = [[0, 0, 0, 0], [0, 6, 2, 0], [0, 0, 10, 0], [0, 1, 0, 3]]
    page = steps.add_classes(tmp_path, "fused", answers, ["unseen", "c<at", "dog", "emu"]).read_text()
    rows = re.findall(r"<span>([^<]*)</span>.*?<b>([0-9.]+ %)</b>", page)
    assert rows == [("c&lt;at", "75.0 %"), ("emu", "75.0 %"), ("dog", "100.0 %")]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(\d+)</td>", page) == [
        ("c&lt;at", "dog", "2"),
        ("emu", "c&lt;at", "1"),
    ]
    assert "c&lt;at answered as dog: 2 of 8" in page
    assert "unseen" not in page  # neither a label nor an answer
    assert "22 images" in page


def test_of_many_classes_the_worst_are_shown(tmp_path):
    count = 60
    answers = np.diag(np.full(count, 100)) + np.roll(np.diag(np.arange(count)), 1, axis=1)
    names = [f"class {number}" for number in range(count)]
    page = steps.add_classes(tmp_path, "float", answers.tolist(), names).read_text()
    assert "36 better classes are left out" in page
    assert "answers across</p>" not in page.replace("in the same order.", "")
    assert page.count('title="1') >= 24
