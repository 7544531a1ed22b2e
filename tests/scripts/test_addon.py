"""Full models: packed by addon/convert_full.py, run by addon/infer_full.py without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from converted_net import CLASSES, ROOT, make, run_script
from PIL import Image
from small_nets import build, randomise, small_network, values

from addon.convert_full import host_entries
from gti.chip.driver import GtiModel
from gti.chip.formats import blobs, model_file
from gti.chip.host import preprocessing
from gti.chip.host.host_layers import HostLayers
from gti.errors import CheckpointError, ModelFileError, UsageError
from gti.layers import ChipFlatten, HostDense
from gti.model import base
from gti.stage import Stage
from gti.training import checkpoint

TOLERANCE = 1e-4  # relative, of logits


@pytest.fixture(scope="module", params=[Stage.FUSED, Stage.QUANT_ACT], ids=["fused", "quant_act"])
def converted(request, tmp_path_factory):
    made = make(tmp_path_factory.mktemp(request.param.label), request.param)
    fuse = ("--fuse",) if request.param is Stage.FUSED else ()
    labels = made.folder / "data" / "labels.txt"
    run_script("addon/convert_full.py", *made.flags, "--output_dir", made.folder, "--labels_file", labels, *fuse)
    return made


def full_model(made):
    return made.folder / "2801_digits_full.model"


def test_container(converted):
    model = model_file.load(full_model(converted))
    assert [layer.operation for layer in model.layers] == ["GTICNN", "FC", "SOFTMAX", "LABEL"]
    chip, fc, _, labels = model.layers
    assert bytes(chip.blob) == (converted.folder / "2801_digits.dat").read_bytes()
    assert bytes(fc.blob) == (converted.folder / "2801_digits_fc.bin").read_bytes()
    assert blobs.parse_labels(labels.blob) == ["background", "class 1", "class 2", "class 3", "class 4"]


def test_preparation_of_images_travels_in_every_file(converted, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pipeline.json").write_text('{"crop_fraction": 0.75}')
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    labels = converted.folder / "data" / "labels.txt"
    flags = (*converted.flags, "--output_dir", tmp_path, *fuse)
    run_script("addon/convert_full.py", *flags, "--data_dir", tmp_path / "data", "--labels_file", labels)
    run_script("convert_to_chip.py", *flags, "--data_dir", tmp_path / "data")
    for name in ("2801_digits_full.model", "2801_digits.model"):
        contract = preprocessing.from_header(model_file.load(tmp_path / name).header, name)
        assert contract == preprocessing.Preprocessing(28, 3, "BGR", 0.75)
    assert not caplog.messages
    # Without the data set it is the crop of the user guide, and the user is told.
    run_script("convert_to_chip.py", *flags, "--data_dir", tmp_path / "none")
    header = model_file.load(tmp_path / "2801_digits.model").header
    assert preprocessing.from_header(header, "x").crop_fraction == 0.875
    assert "no such data set" in caplog.text


def test_logits_are_those_of_the_keras_host_layers(converted):
    # Keras: [H,W,C] codes scaled to the cap and the checkpoint's own weights. The file: [C,H,W] codes 0..31, weights
    # reordered and scaled. Both from the same stick, whose codes have tests of their own.
    model = base.build("digits", classes=CLASSES, nets_dir=converted.folder)
    for name, variable in base.named_variables(model).items():
        if "/fc/" in name:
            variable.assign(converted.arrays[name])
    keras_host = base.host_model(model)
    cap = float(converted.arrays["digits/conv2_1/relu_cap"])
    with GtiModel(full_model(converted), device="virtual") as stick:
        layers = HostLayers(model_file.load(full_model(converted)).layers, "full.model")
        for image in converted.pixels[:5]:
            expected = keras_host(stick.evaluate(image, cap)).numpy()[0]
            outcome = layers.run(image, stick.raw_maps)
            np.testing.assert_allclose(
                outcome.tensors["fc"], expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max()
            )
            result = stick.full_inference(image)
            assert result == outcome.result
            assert [entry["index"] for entry in result["result"]] == list(np.argsort(-expected, kind="stable"))
            assert sum(entry["probability"] for entry in result["result"]) == pytest.approx(1)


def test_script_prints_the_json_result_without_tensorflow(converted, tmp_path):
    array, picture = tmp_path / "image.npy", tmp_path / "image.png"
    np.save(array, converted.pixels[0])
    Image.fromarray(converted.pixels[0][:, :, ::-1]).save(picture)
    code = (
        "import sys, runpy\n"
        "try: runpy.run_path('addon/infer_full.py', run_name='__main__')\n"
        "finally: print('tensorflow' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(full_model(converted)), str(array), str(picture), "--device=virtual"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, tensorflow = result.stdout.splitlines()
    assert tensorflow == "False"
    assert first == second  # a picture of the right size is the array in another order
    assert "virtual stick" in result.stderr
    entries = json.loads(first)["result"]
    assert list(entries[0]) == ["index", "label", "probability"]
    with GtiModel(full_model(converted), device="virtual") as stick:
        assert stick.full_inference(converted.pixels[0]) == json.loads(first)


def test_model_without_host_layers(converted):
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    run_script("convert_to_chip.py", *converted.flags, "--output_dir", converted.folder, *fuse)
    with (
        GtiModel(converted.model_file, device="virtual") as stick,
        pytest.raises(ModelFileError, match="layers"),
    ):
        stick.full_inference(converted.pixels[0])


def test_fewer_labels_in_a_result(converted, tmp_path):
    labels = converted.folder / "data" / "labels.txt"
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    flags = ("--output_dir", tmp_path, "--labels_file", labels, "--top", 2)
    run_script("addon/convert_full.py", *converted.flags, *flags, *fuse)
    with GtiModel(tmp_path / "2801_digits_full.model", device="virtual") as stick:
        assert len(stick.full_inference(converted.pixels[0])["result"]) == 2


def test_labels_that_do_not_fit(converted, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    flags = ("--output_dir", tmp_path, "--labels_file", tmp_path / "labels.txt", *fuse)
    with pytest.raises(UsageError, match="received 3"):
        run_script("addon/convert_full.py", *converted.flags, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]


def test_names_without_a_background_are_told_to_be_numbered(converted, tmp_path):
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in "abcde"))  # CLASSES of them
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    flags = ("--output_dir", tmp_path, "--labels_file", tmp_path / "labels.txt", *fuse)
    with pytest.raises(UsageError, match="0 NAME"):
        run_script("addon/convert_full.py", *converted.flags, *flags)


def test_labels_beside_the_net_are_taken(tmp_path):
    made = make(tmp_path, Stage.FUSED)
    (tmp_path / "digits_labels.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate("abcde")))
    flags = ("--data_dir", tmp_path / "nothing", "--output_dir", tmp_path, "--fuse")
    run_script("addon/convert_full.py", *made.flags, *flags)
    label = model_file.load(full_model(made)).layers[-1]
    assert (label.operation, bytes(label.blob).split()) == ("LABEL", [b"a", b"b", b"c", b"d", b"e"])


def test_json_of_several_chips_becomes_a_file_for_one(converted, tmp_path):
    made = make(tmp_path, Stage.FUSED)
    labels = made.folder / "data" / "labels.txt"
    full = (*made.flags, "--fuse", "--labels_file", labels)
    run_script("addon/convert_full.py", *full)  # into the folder of --nets_dir
    expected = full_model(made).read_bytes()
    run_script("convert_to_chip.py", *made.flags, "--fuse", "--num_chips", 2)
    run_script("addon/convert_full.py", *full)
    assert full_model(made).read_bytes() == expected
    with pytest.raises(UsageError, match="--num_chips"):  # a file of host layers drives one stick
        run_script("addon/convert_full.py", *full, "--num_chips", 2)


def test_report_of_a_whole_network(converted, tmp_path, capsys):
    labels = converted.folder / "data" / "labels.txt"
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    flags = ("--output_dir", tmp_path, "--labels_file", labels, "--report", tmp_path / "report")
    run_script("addon/convert_full.py", *converted.flags, *flags, *fuse)
    page = tmp_path / "report" / "index.html"
    assert "conv1_1" in page.read_text(encoding="utf-8")
    assert str(page) in capsys.readouterr().out


def test_result_that_the_chip_does_not_hand_over(converted, tmp_path):
    labels = converted.folder / "data" / "labels.txt"
    fuse = ("--fuse",) if "-fs-" in converted.checkpoint.name else ()
    flags = ("--output_dir", tmp_path, "--labels_file", labels, "--image_size", 56)
    with pytest.raises(UsageError, match="received 14x14"):
        run_script("addon/convert_full.py", *converted.flags, *flags, *fuse)
    assert not list(tmp_path.iterdir())


def test_float_checkpoint_is_refused(converted, tmp_path):
    arrays, metadata = checkpoint.load(converted.checkpoint)
    prefix = tmp_path / "digits-2801-epoch-1"
    checkpoint.save(prefix, arrays, type(metadata)(**{**metadata.__dict__, "stage": Stage.FLOAT}))
    with pytest.raises(CheckpointError, match="activations"):
        run_script("addon/convert_full.py", *converted.flags, "--checkpoint", prefix, "--output_dir", tmp_path)


def with_host(folder, layers):
    """Return a fused model whose host part is `layers`."""
    network = small_network((14, 3, 16, 1, 1, True))
    model = build(network, folder, classes=2, quant_w=True, quant_act=True, fuse=True)
    x = base.chip_output(model)
    for layer in layers:
        x = layer(x)
    whole = keras.Model(model.input, x, name="digits")
    whole.network, whole.net = network, "digits"
    randomise(whole, seed=1)
    return whole


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [ChipFlatten(), HostDense(6, "relu", name="a"), keras.layers.Dropout(0.5), HostDense(3, name="b")],
        lambda: [keras.layers.GlobalAveragePooling2D(), HostDense(3, name="a")],
        lambda: [keras.layers.GlobalMaxPooling2D(), HostDense(4, "relu", name="a"), HostDense(3, name="b")],
    ],
    ids=["two FC", "average", "max"],
)
def test_every_host_layer_that_a_model_file_knows(tmp_path, layers):
    model = with_host(tmp_path, layers())
    entries = [{"operation": "GTICNN", "name": "chip", "output scaledown": 3, "data file": "chip"}]
    data = {"chip": b"chip", "labels": b"a\nb\nc\n"}
    for entry, blob in host_entries(model, values(model)):
        if blob is not None:
            entry = entry | {"data file": entry["name"]}
            data[entry["name"]] = blob
        entries.append(entry)
    last = entries[-1]["name"]
    entries.append({"operation": "LABEL", "name": "label", "data file": "labels"})
    container = model_file.parse(model_file.compose(json.dumps({"layer": entries}).encode(), data))
    codes = np.random.RandomState(0).randint(0, 32, size=(16, 7, 7)).astype(np.uint8)
    got = HostLayers(container.layers, "x").run(np.zeros((14, 14, 3), np.uint8), lambda image: [codes << 3])
    expected = base.host_model(model)(codes.transpose(1, 2, 0)[None].astype(np.float32)).numpy()[0]
    np.testing.assert_allclose(got.tensors[last], expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())


def test_host_layers_that_no_model_file_knows(tmp_path):
    model = with_host(tmp_path, [ChipFlatten(), keras.layers.LayerNormalization(name="norm"), HostDense(3)])
    with pytest.raises(UsageError, match="host layer norm of digits"):
        host_entries(model, values(model))
