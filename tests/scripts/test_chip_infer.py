"""chip_infer.py: what the virtual stick and the host layers make of a data set, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from converted_net import CLASSES, IMAGES, NETWORK, ROOT, make, run_script
from PIL import Image
from small_nets import small_network

from gti import data_utils
from gti.chip.driver import GtiModel
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.loaded_model import load_model
from gti.chip.network.delivered import delivered
from gti.chip.wire.protocol import Mode
from gti.compare import inference
from gti.errors import CheckpointError, DataError, FormatError, UsageError
from gti.model import base
from gti.stage import Stage
from gti.training import checkpoint


@pytest.fixture(scope="module", params=[Stage.FUSED, Stage.QUANT_ACT], ids=["fused", "quant_act"])
def converted(request, tmp_path_factory):
    made = make(tmp_path_factory.mktemp(request.param.label), request.param)
    fuse = ("--fuse",) if request.param is Stage.FUSED else ()
    data = ("--data_dir", made.folder / "data")
    run_script("convert_to_chip.py", *made.flags, *data, "--output_dir", made.folder, *fuse)
    return made


def infer(made, *flags) -> dict:
    report = made.folder / "report.json"
    data = ("--data_dir", made.folder / "data", "--device", "virtual", "--json", report)
    run_script("chip_infer.py", *made.flags, *data, *flags)
    return json.loads(report.read_text())


def expected_logits(made) -> np.ndarray:
    # Emulator and a plain matrix product: codes of the last layer, scaled to its cap, flattened H, W, C.
    decoded = dat.decode(load_model(made.model_file).dat)
    codes = Emulator(decoded.network, decoded.weights, engine="numpy").output(made.pixels)
    cap = float(made.arrays["digits/conv2_1/relu_cap"])
    features = (codes.transpose(0, 2, 3, 1).astype(np.float64) * cap / 31).reshape(len(codes), -1)
    return features @ made.arrays["digits/fc/weights"].astype(np.float64) + made.arrays["digits/fc/biases"]


def test_accuracy_is_that_of_emulator_and_host_layers(converted):
    report = infer(converted)
    logits = expected_logits(converted)
    assert report["count"] == IMAGES
    assert report["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == converted.labels))
    assert report["top5"] == 1.0  # five classes
    assert report["device"].startswith("virtual stick")


def test_cap_by_name_and_fewer_images(converted):
    report = infer(converted, "--last_relu_cap", "digits/conv2_1/relu_cap", "--num_examples", 4, "--val_batch_size", 3)
    hits = expected_logits(converted).argmax(axis=1) == converted.labels
    assert report["count"] == 4
    assert report["accuracy"] == pytest.approx(hits[:4].mean())


def test_engine_only_gives_the_same_figures_and_says_that_usb_is_left_out(converted, capsys):
    stick = infer(converted)
    report, maps = converted.folder / "engine.json", converted.folder / "engine_maps"
    flags = ("--engine_only", "--json", report, "--layer_outputs", maps, "--num_examples", IMAGES)
    run_script("chip_infer.py", *converted.flags, *flags)
    output = capsys.readouterr().out
    assert f"{converted.model_file} on emulator in batches of" in output
    assert "no USB framing" in output
    engine = json.loads(report.read_text())
    assert {**engine, "device": ""} == {**stick, "device": ""}
    with GtiModel(converted.model_file, device="virtual") as model, np.load(maps / "image_00010" / "maps.npz") as found:
        for one, other in zip(found.values(), model.layer_outputs(converted.pixels[10]), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("flags", [("--device", "virtual"), ("--record", "session.gz")])
def test_engine_only_has_no_stick(converted, flags):
    with pytest.raises(UsageError, match="--engine_only"):
        run_script("chip_infer.py", *converted.flags, "--engine_only", *flags)


def test_logits_image_by_image(converted):
    # The quant_act network hands its host layers 0..cap, the fused one 0..31: the caps tell.
    model = base.build("digits", classes=CLASSES, nets_dir=converted.folder)
    for name, variable in base.named_variables(model).items():
        if "/fc/" in name:
            variable.assign(converted.arrays[name])
    dataset = data_utils.load(
        converted.folder / "data" / "val", image_size=28, batch_size=4, classes=CLASSES, as_codes=False
    )
    cap = float(converted.arrays["digits/conv2_1/relu_cap"])
    host = base.host_model(model)
    with GtiModel(converted.model_file, device="virtual") as stick:
        figures = inference.classify(
            stick, dataset.as_numpy_iterator(), lambda x: host(x).numpy(), last_relu_cap=cap, keep_logits=True
        )
    assert [len(part) for part in figures.logits] == [4, 4, 3]
    np.testing.assert_allclose(np.concatenate(figures.logits), expected_logits(converted), rtol=1e-4, atol=1e-3)


def test_layer_outputs_are_the_emulators(converted):
    folder = converted.folder / "maps"
    infer(converted, "--layer_outputs", folder, "--num_examples", 2)
    decoded = dat.decode(load_model(converted.model_file).dat)
    emulator = Emulator(decoded.network, decoded.weights, engine="numpy")
    assert sorted(path.name for path in folder.iterdir()) == ["image_00000", "image_00001"]
    for index in range(2):
        part = folder / f"image_{index:05d}"
        names = [convolution.name for convolution in NETWORK.convolutions]
        assert {path.name for path in part.iterdir()} == {"maps.npz", *(f"{name}.png" for name in names)}
        with np.load(part / "maps.npz") as maps:
            assert maps.files == names
            for name, codes in zip(names, emulator.read_out(converted.pixels[index], "learn"), strict=True):
                np.testing.assert_array_equal(maps[name], codes)


def test_mode_of_the_model_json_chooses_the_maps(converted):
    # User guide, section 6.7: mode 4 is every sublayer of the last major layer.
    path = converted.folder / "2801_digits_model.json"
    before = path.read_text()
    description = json.loads(before)
    description["layer"][0]["mode"] = 4
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    try:
        path.write_text(json.dumps(description))
        run_script("convert_to_chip.py", *converted.flags, "--output_dir", converted.folder, *fuse)
        report = infer(converted, "--layer_outputs", converted.folder / "mode4", "--num_examples", 1)
    finally:
        path.write_text(before)
        run_script("convert_to_chip.py", *converted.flags, "--output_dir", converted.folder, *fuse)
    assert report["count"] == 1  # classification needs the FC read-out, whatever the file's mode is
    names = {path.name for path in (converted.folder / "mode4" / "image_00000").iterdir()}
    assert names == {"maps.npz", "conv2_1.png"}


@pytest.mark.parametrize(
    ("flags", "error", "part"),
    [
        (("--last_relu_cap", "digits/conv9_9/relu_cap"), UsageError, "name"),
        (("--last_relu_cap", "digits/conv2_1/filters"), UsageError, "name"),
        (("--model_file", "absent.model"), FormatError, "file"),
        (("--val_data_dir", "absent"), DataError, "folder"),
        (("--classes", 7), CheckpointError, "classes"),
    ],
)
def test_refused(converted, flags, error, part):
    with pytest.raises(error, match=part):
        infer(converted, *flags)


def test_checkpoint_that_was_not_quantized(converted, tmp_path):
    arrays, metadata = checkpoint.load(converted.checkpoint)
    prefix = tmp_path / "digits-2801-epoch-1"
    checkpoint.save(prefix, arrays, type(metadata)(**{**metadata.__dict__, "stage": Stage.FLOAT}))
    with pytest.raises(CheckpointError, match="converted"):
        infer(converted, "--checkpoint", prefix)


def test_model_of_another_checkpoint_is_noted(converted, tmp_path, capsys):
    infer(converted)
    assert "was not converted from" not in capsys.readouterr().err
    arrays, metadata = checkpoint.load(converted.checkpoint)
    arrays["digits/conv1_1/filters"] = -arrays["digits/conv1_1/filters"]
    checkpoint.save(tmp_path / converted.checkpoint.name, arrays, metadata)
    infer(converted, "--checkpoint", tmp_path / converted.checkpoint.name)
    assert "was not converted from" in capsys.readouterr().err


def test_a_recorded_session_gives_the_same_figures(converted, tmp_path):
    session = tmp_path / "session.gz"
    recorded = infer(converted, "--num_examples", 3, "--record", session)
    replayed = infer(converted, "--num_examples", 3, "--device", f"replay:{session}")
    assert replayed["device"].startswith("replay of FT601")
    assert {**replayed, "device": ""} == {**recorded, "device": ""}


def test_another_crop_than_in_training_is_noted(converted, tmp_path, capsys):
    infer(converted, "--num_examples", 1)
    assert "cropped" not in capsys.readouterr().err
    shutil.copytree(converted.folder / "data", tmp_path / "data")
    (tmp_path / "data" / "pipeline.json").write_text('{"crop_fraction": 0.5}')
    infer(converted, "--num_examples", 1, "--data_dir", tmp_path / "data")
    assert "was made for images cropped to 1.0" in capsys.readouterr().err


def test_maps_of_every_mode():
    def names(mode):
        return [convolution.name for convolution in delivered(NETWORK, mode)]

    assert names(Mode.LEARN) == ["conv1_1", "conv1_2", "conv2_1"]
    assert names(Mode.SUBLAST) == ["conv1_2", "conv2_1"]
    assert names(Mode.LASTMAJOR) == names(Mode.SINGLE) == names(Mode.FC) == ["conv2_1"]
    two = small_network((28, 3, 16, 1, 3, True), (14, 16, 16, 2, 3, True))
    found = {mode: [c.name for c in delivered(two, mode)] for mode in (Mode.LASTMAJOR, Mode.SINGLE, Mode.FC)}
    assert found == {Mode.LASTMAJOR: ["conv2_1", "conv2_2"], Mode.SINGLE: ["conv2_2"], Mode.FC: ["conv2_2"]}
    with pytest.raises(UsageError, match="mode 6"):
        names(6)


def test_contact_sheet():
    codes = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28) % 32
    sheet = inference.contact_sheet(codes)
    assert sheet.shape == (2 * 29 + 1, 2 * 29 + 1)  # two rows of two tiles, a line around each
    np.testing.assert_array_equal(sheet[1:29, 30:58], codes[1].astype(int) * 255 // 31)
    np.testing.assert_array_equal(sheet[30:58, 1:29], codes[2].astype(int) * 255 // 31)
    assert set(np.unique(sheet[30:, 30:])) == {96}  # no fourth channel


@pytest.mark.parametrize(("size", "tile"), [(7, 28), (14, 28), (112, 112), (224, 112), (448, 112)])
def test_contact_sheet_tiles_have_sizes_for_eyes(size, tile):
    sheet = inference.contact_sheet(np.full((1, size, size), 31, np.uint8))
    assert sheet.shape == (tile + 2, tile + 2)
    assert np.all(sheet[1:-1, 1:-1] == 255)


def test_contact_sheet_of_ten_bit_codes():
    assert inference.contact_sheet(np.full((1, 7, 7), 1023, np.uint16), 1023)[1, 1] == 255


def test_sheets_are_readable_pictures(tmp_path):
    maps = [np.full((c.output_channels, c.size, c.size), 15, np.uint8) for c in NETWORK.convolutions]
    paths = inference.save_layer_outputs(tmp_path / "new" / "folder", NETWORK, Mode.LEARN, maps)
    with Image.open(paths[1]) as image:
        assert image.mode == "L"
        assert image.size == (4 * 29 + 1, 4 * 29 + 1)  # 16 channels of 28x28


def test_layer_outputs_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        inference.save_layer_outputs(tmp_path / "file" / "maps", NETWORK, Mode.SINGLE, [])


def test_help_is_light():
    code = (
        "import sys, runpy; sys.argv = ['chip_infer.py', '--help']\n"
        "try: runpy.run_path('chip_infer.py', run_name='__main__')\n"
        "except SystemExit: print('tensorflow' in sys.modules or 'numba' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--last_relu_cap" in result.stdout
    assert result.stdout.endswith("False\n")
