"""Ported networks against their sources: plain Keras models with random weights, saved in every format."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import small_nets
import tensorflow as tf
from converted_net import ROOT, run_script
from sweeps import first_quick

from gti import quiet
from gti.chip.emulator.arithmetic import five_bit
from gti.errors import CheckpointError, FormatError, UsageError
from gti.importing import porting, pretrained
from gti.model import base
from gti.stage import Stage
from gti.training import checkpoint

NETWORK = small_nets.small_network((28, 3, 16, 2, 3, True), (14, 16, 32, 1, 1, True))
CLASSES = 6
MEAN = np.float32([123.68, 116.779, 103.939])  # R, G, B: Simonyan and Zisserman's ImageNet mean
LAYERS = ("block1_conv1", "block1_conv2", "block2_conv1", "predictions")


def source_model(frame: bool = False, names=LAYERS) -> keras.Model:
    """Return a VGG-like Keras model that takes pixels minus the mean; `frame`: images that bring their own border."""
    layers = keras.layers
    size = 30 if frame else 28
    x = inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(16, 3, padding="valid" if frame else "same", activation="relu", name=names[0])(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name=names[1])(x)
    x = layers.MaxPooling2D(name="block1_pool")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name=names[2])(x)
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(name="block2_pool")(x))
    x = layers.Dropout(0.5)(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name=names[3])(x))


def random_values(seed: int) -> list[np.ndarray]:
    """Return weights at which every layer's activations stay of the size of the pixels."""
    random = np.random.default_rng(seed)
    shapes = [w.shape for w in source_model().get_weights()]
    return [
        (random.normal(size=s) * (np.sqrt(2 / np.prod(s[:-1])) if len(s) > 1 else 5)).astype(np.float32) for s in shapes
    ]


@pytest.fixture(scope="module")
def source():
    model = source_model()
    model.set_weights(random_values(1))
    return model


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    return small_nets.write_json(NETWORK, tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(2).integers(0, 256, (4, 28, 28, 3)).astype(np.uint8)  # B, G, R


def port(nets, path, *flags, order="rgb"):
    """Run the script; return the model of its checkpoint with the weights loaded."""
    folder = nets / f"ported_{len(list(nets.iterdir()))}"
    common = ("--net", "digits", "--chip", "2801", "--nets_dir", nets, "--checkpoint_dir", folder)
    run_script("scripts/port_weights.py", *common, "--weights", path, "--input", order, *flags)
    arrays, metadata = checkpoint.load(folder / "digits-2801-epoch-0")
    assert (metadata.stage, metadata.image_size) == (Stage.FLOAT, 28)
    model = base.build("digits", classes=metadata.classes, nets_dir=nets)
    small_nets.assign(model, arrays)
    return model


def logits_of_framed(source, codes, order):
    """Return the source's logits for what `codes` (BGR) stand for, framed in black instead of the mean."""
    framed = source_model(frame=True)
    framed.set_weights(source.get_weights())
    images = 8.0 * codes.astype(np.float32)  # a code stands for a multiple of 8
    images = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)]) - MEAN[::-1]
    return framed(images[..., ::-1] if order == "rgb" else images).numpy()


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def save_npz(source, path):
    w = [np.asarray(v) for v in source.weights]
    layers = ("conv1_1", "conv1_2", "conv2_1", "fc")
    arrays = {f"{n}_{kind}": w[2 * i + k] for i, n in enumerate(layers) for k, kind in enumerate("Wb")}
    np.savez(path, **arrays)


def save_tf1(source, path):
    w = [tf.constant(v.numpy()) for v in source.weights]
    layers = ("conv1_1", "conv1_2", "conv2_1", "fc")
    kinds = [("filters", "biases")] * 3 + [("weights", "biases")]
    arrays = {f"digits/{n}/{kind}": w[2 * i + k] for i, n in enumerate(layers) for k, kind in enumerate(kinds[i])}
    extras = {"global_step": tf.constant(7), "digits/conv1_1/filters/Momentum": w[0]}
    names = [*arrays, *extras]
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[*arrays.values(), *extras.values()],
    )


FORMATS = {
    "weights.h5": lambda source, path: source.save_weights(path),
    "h5": lambda source, path: source.save(path),
    "keras": lambda source, path: source.save(path),
    "npz": save_npz,
    "ckpt": save_tf1,
}


@pytest.mark.parametrize("suffix", first_quick(2, FORMATS))
def test_ported_network_gives_the_sources_logits(nets, tmp_path, source, pixels, suffix):
    path = tmp_path / f"source.{suffix}"
    FORMATS[suffix](source, path)
    codes = five_bit(pixels)
    logits = port(nets, path)(codes.astype(np.float32)).numpy()
    close(logits, logits_of_framed(source, codes, "rgb"))


def test_source_in_bgr(nets, tmp_path, source, pixels):
    source.save_weights(tmp_path / "s.weights.h5")
    codes = five_bit(pixels)
    logits = port(nets, tmp_path / "s.weights.h5", order="bgr")(codes.astype(np.float32)).numpy()
    close(logits, logits_of_framed(source, codes, "bgr"))
    assert np.abs(logits - logits_of_framed(source, codes, "rgb")).max() > 1  # the order matters


def test_source_in_codes_is_taken_as_it_is(nets, tmp_path, source):
    save_tf1(source, tmp_path / "old.ckpt")
    ported = small_nets.values(port(nets, tmp_path / "old.ckpt", order="codes"))
    for ours, theirs in zip(ported.values(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_first_map_differs_from_the_sources_by_the_quantization_of_pixels_and_in_the_frame_alone(
    nets, tmp_path, source, pixels
):
    source.save_weights(tmp_path / "s.weights.h5")
    model = port(nets, tmp_path / "s.weights.h5")
    filters, biases = (np.asarray(v, np.float64) for v in source.weights[:2])

    def convolved(images, weights):
        return tf.nn.conv2d(images, weights, 1, "SAME").numpy()

    ours = convolved(five_bit(pixels).astype(np.float64), model.get_layer("conv1_1").filters.numpy().astype(np.float64))
    ours += model.get_layer("conv1_1").biases.numpy()
    theirs = convolved(pixels[..., ::-1].astype(np.float64) - MEAN.astype(np.float64), filters) + biases
    # Inside: no more than |pixel - 8 * code| through |W|; that is 4 at most, 7 where the codes end at 31.
    error = np.abs(pixels[..., ::-1].astype(np.float64) - 8.0 * five_bit(pixels[..., ::-1]))
    assert error.max() == 7
    assert error[pixels[..., ::-1] < 252].max() == 4
    bound = convolved(error, np.abs(filters))
    difference = ours - theirs
    inside = np.s_[:, 1:-1, 1:-1]
    assert np.all(np.abs(difference[inside]) <= bound[inside] + 1e-3)
    # In the frame: the mean colour through the taps that lie outside, besides.
    missing = convolved(np.ones((1, 28, 28, 3)) * MEAN.astype(np.float64), filters)
    missing = missing[:, 1:2, 1:2] - missing
    assert np.all(np.abs(difference + missing) <= bound + 1e-3)
    assert np.abs(missing[:, 0]).max() > 10


def test_keras_files_without_layer_names(nets, tmp_path, pixels):
    model = source_model(names=("a", "b", "c", "d"))
    model.set_weights(random_values(4))
    path = tmp_path / "nameless.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda name, item: item.attrs.pop("name", None) and None)
    codes = five_bit(pixels)
    close(port(nets, path)(codes.astype(np.float32)).numpy(), logits_of_framed(model, codes, "rgb"))


def test_old_keras_names(tmp_path):
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file["block1_conv1/block1_conv1_W_1:0"] = np.zeros((3, 3, 3, 16), np.float32)
        file["block1_conv1/block1_conv1_b_1:0"] = np.zeros(16, np.float32)
        file["fc1/fc1/kernel:0"] = np.zeros((49, 5), np.float32)
    found = pretrained.read(path, "vgg16")
    assert {n: w.shape for n, w in found.items()} == {
        "conv1_1/filters": (3, 3, 3, 16),
        "conv1_1/biases": (16,),
        "fc1/filters": (49, 5),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg16/conv5_3/filters", "conv5_3/filters"),
        ("vgg_16/conv1/conv1_1/weights", "conv1_1/filters"),
        ("conv1_1/bias", "conv1_1/biases"),
        ("conv1_1_b", "conv1_1/biases"),
        ("fc6_W", "fc6/filters"),
        ("vgg_16/fc6/weights", "fc6/filters"),
        ("vgg16/conv1_1/batch_normalization/gamma", "conv1_1/batch_normalization/gamma"),
        ("vgg16/conv1_1/filters/Momentum", "conv1_1/Momentum"),
        ("global_step", "global_step"),
    ],
)
def test_names(name, expected):
    assert pretrained.canonical_name(name, "vgg16") == expected


@pytest.mark.slow
def test_vgg16_names_and_slims_convolutional_fc_layers(tmp_path):
    network = small_nets.small_network((14, 3, 16, 1, 3, True))
    small_nets.write_json(network, tmp_path, "vgg16")
    model = base.build("vgg16", classes=5, nets_dir=tmp_path)
    random = np.random.default_rng(0)
    wanted = {n: random.normal(size=v.shape).astype(np.float32) for n, v in base.named_variables(model).items()}
    keras_names = {"conv1_1": "block1_conv1", "fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    for layer in ("keras", "slim"):
        found = {}
        for name, array in wanted.items():
            scope, kind = name.split("/")[1:]
            if layer == "slim" and array.ndim == 2:
                array = array.reshape((7, 7, 16, 4096) if scope == "fc6" else (1, 1, *array.shape))
            theirs = keras_names[scope] if layer == "keras" else f"vgg_16/{scope}"
            found[pretrained.canonical_name(f"{theirs}/{kind}", "vgg16")] = pretrained.Weight(
                array.shape, lambda a=array: a
            )
        ported = porting.port(found, model, source=porting.InputOf("codes"), name="file")
        for name, array in wanted.items():
            np.testing.assert_array_equal(ported[name], array)


def test_background_is_never_the_most_probable_class(nets, tmp_path, source, pixels):
    source.save_weights(tmp_path / "s.weights.h5")
    codes = five_bit(pixels)
    logits = port(nets, tmp_path / "s.weights.h5", "--background")(codes.astype(np.float32)).numpy()
    theirs = logits_of_framed(source, codes, "rgb")
    close(logits[:, 1:], theirs)
    close(logits[:, 0], theirs.mean(axis=1))


def test_new_head_of_another_size(nets, tmp_path, source):
    source.save_weights(tmp_path / "s.weights.h5")
    flags = ("--new_layers", "fc", "--classes", "9", "--seed", "3")
    first, second = (small_nets.values(port(nets, tmp_path / "s.weights.h5", *flags)) for _ in range(2))
    assert first["digits/fc/weights"].shape == (7 * 7 * 32, 9)
    assert first["digits/fc/weights"].std() > 0
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


# What is refused


def test_every_mismatching_layer_is_named(nets, tmp_path, source):
    path = tmp_path / "other.npz"
    save_npz(source, path)
    arrays = dict(np.load(path))
    arrays["conv1_2_W"] = np.zeros((3, 3, 16, 8), np.float32)
    arrays["conv2_1_b"] = np.zeros(31, np.float32)
    arrays["conv3_1_W"] = np.zeros((3, 3, 8, 8), np.float32)
    del arrays["conv1_1_b"]
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError) as caught:
        port(nets, path, "--classes", "7")
    message = str(caught.value)
    for part in (
        "6 variables differ",
        "digits/conv1_1/biases is missing",
        "digits/conv1_2/filters has the shape [3, 3, 16, 8], the net's is [3, 3, 16, 16]",
        "digits/conv2_1/biases has the shape [31]",
        "digits/fc/weights has the shape [1568, 6], the net's is [1568, 7]",
        "digits/fc/biases has the shape [6]",
        "digits/conv3_1/filters is no variable of the net",
    ):
        assert part in message


def test_pickled_dictionary_is_not_opened(nets, tmp_path, source):
    marker = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    np.save(tmp_path / "old.npy", {"conv1_1": Trap()}, allow_pickle=True)
    with pytest.raises(FormatError, match=r"pickled dictionary, which is not opened.*docs/import\.md"):
        port(nets, tmp_path / "old.npy")
    assert not marker.exists()


def zipped(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5" if content is not None else "config.json", content or "{}")


def linked(path, link):
    with h5py.File(path, "w") as file:
        file["conv1_1"] = link


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.h5", lambda p: None, "file"),
        ("gone.npz", lambda p: None, "file"),
        ("nothing", lambda p: None, "weights"),
        ("text.h5", lambda p: p.write_text("weights"), "HDF5"),
        ("text.keras", lambda p: p.write_text("weights"), "archive"),
        ("text.npz", lambda p: p.write_text("weights"), "file"),
        ("plain.npy", lambda p: np.save(p, np.zeros(3)), "without"),
        ("pickled.npz", lambda p: np.savez(p, a=np.array([{}], object)), "objects"),
        ("empty.keras", lambda p: zipped(p, None), r"model\.weights\.h5"),
        ("bad.keras", lambda p: zipped(p, "weights"), "HDF5"),
        ("out.h5", lambda p: linked(p, h5py.ExternalLink("/etc/hostname", "/")), "link"),
        ("loop.h5", lambda p: linked(p, h5py.SoftLink("/")), "link"),
    ],
)
def test_damaged_files(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises((FormatError, CheckpointError), match=message) as caught:
        pretrained.read(tmp_path / name, "vgg16")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--new_layers", "fc9", "--classes", "5"), "names"),
        (("--new_layers", "fc"), "number"),
        (("--new_layers", "fc", "--classes", "5", "--background"), "classes"),
        (("--mean", "1", "2", "300"), "expected"),
    ],
)
def test_flags_that_do_not_fit(nets, tmp_path, source, flags, message):
    save_npz(source, tmp_path / "s.npz")
    with pytest.raises(UsageError, match=message):
        port(nets, tmp_path / "s.npz", *flags)


def test_values_that_are_no_numbers(nets, tmp_path, source):
    save_npz(source, tmp_path / "s.npz")
    arrays = dict(np.load(tmp_path / "s.npz"))
    arrays["conv1_2_W"][0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(CheckpointError, match="digits/conv1_2/filters"):
        port(nets, tmp_path / "s.npz")


def test_help_is_quick_and_needs_no_tensorflow():
    code = (
        "import runpy, sys; sys.argv = ['port_weights.py', '--help']\n"
        "try: runpy.run_path('scripts/port_weights.py', run_name='__main__')\n"
        "except SystemExit: print('tensorflow' in sys.modules, 'h5py' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_one_variable_differs(nets, tmp_path, source):
    path = tmp_path / "other.npz"
    save_npz(source, path)
    arrays = dict(np.load(path))
    del arrays["conv1_1_b"]
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match="1 variable differs: digits/conv1_1/biases is missing"):
        port(nets, path)


def test_tensorflow_is_imported_without_its_lines_to_read_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "a.index").write_bytes(b"short")
    seen = []
    monkeypatch.setattr(quiet, "import_tensorflow", lambda: seen.append("quietly"))
    with pytest.raises(CheckpointError):
        pretrained.read(tmp_path / "a", "digits")
    assert seen == ["quietly"]
