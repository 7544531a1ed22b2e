"""scripts/import_model.py: imported networks give the logits of ONNX Runtime, Keras and NumPy on the same pictures."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import small_nets
from converted_net import run_script
from sweeps import first_quick

from gti.chip.emulator.arithmetic import five_bit
from gti.data.labels import read_labels
from gti.model import base
from gti.training import checkpoint
from scripts.dev import sample_models as model_files
from scripts.dev.sample_models import Vgg

PLAIN = ("--std", "40", "50", "60")  # no mean: exact at the border too
STD = np.float32([40, 50, 60])  # R, G, B


def imported(folder, model, *flags, order="rgb", net="mine"):
    """Import a model file; return the float model of the new net with its weights."""
    run_script("scripts/import_model.py", model, "--net", net, "--chip", "2801", "--nets_dir", folder,
               "--checkpoint_dir", folder / "checkpoints", "--input", order, *flags)  # fmt: skip
    arrays, metadata = checkpoint.load(folder / "checkpoints" / f"{net}-2801-epoch-0")
    built = base.build(net, classes=metadata.classes, nets_dir=folder, image_size=metadata.image_size)
    small_nets.assign(built, arrays)
    return built


def codes(size=28, channels=3) -> np.ndarray:
    """Return float codes [N, H, W, C] in B, G, R, also between whole numbers."""
    return np.random.default_rng(5).uniform(0, 31, (4, size, size, channels)).astype(np.float32)


def pictures(found, order="rgb") -> np.ndarray:
    """Return what the source takes for codes: pixels 8 * code in its order, divided by the deviation, [N,H,W,C]."""
    bgr = 8 * found
    return bgr[..., ::-1] / STD if order == "rgb" else bgr / STD[::-1]


def run_onnx(model, images) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": np.ascontiguousarray(images)})[0]


def softmax(logits) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


CASES = {
    "plain": Vgg(),
    "batch norm": Vgg(batch_norm=True),
    "padded channels": Vgg(blocks=((12, 20), (48,)), batch_norm=True),
    "global average": Vgg(flat=False),
    "one layer behind it": Vgg(flat=False, hidden=0, blocks=((16,), (24,))),
}


@pytest.mark.parametrize("opset", first_quick(1, [11, 17]))
@pytest.mark.parametrize("case", CASES)
def test_graphs_of_pytorch(tmp_path, case, opset):
    model = model_files.torch_style(CASES[case], opset=opset)
    found = codes()
    ours = imported(tmp_path, model_files.write(model, tmp_path), *PLAIN)(found).numpy()
    close(ours, run_onnx(model, pictures(found).transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("case", first_quick(3, CASES))
def test_graphs_of_keras_with_transpositions(tmp_path, case):
    model = model_files.keras_style(CASES[case])
    found = codes()
    ours = imported(tmp_path, model_files.write(model, tmp_path), *PLAIN, order="bgr")(found).numpy()
    close(softmax(ours), run_onnx(model, pictures(found, "bgr")))


def test_batch_norm_is_kept_for_training_where_every_convolution_has_one(tmp_path):
    folders = [tmp_path / "kept", tmp_path / "folded"]
    for folder in folders:
        folder.mkdir()
    kept = imported(folders[0], model_files.write(model_files.torch_style(Vgg(batch_norm=True)), folders[0]))
    # Keras' export has multiplied the batch norm out.
    folded = imported(folders[1], model_files.write(model_files.keras_style(Vgg(batch_norm=True)), folders[1]))
    assert ["batch_normalization" in str(sorted(small_nets.values(m))) for m in (kept, folded)] == [True, False]


def test_scalings_in_the_file_go_into_the_first_convolution(tmp_path):
    vgg = Vgg()
    scaled = model_files.keras_style(vgg, rescaling=(0.02, [0.0, 0.0, 0.0]))
    found = codes()
    ours = imported(tmp_path, model_files.write(scaled, tmp_path), *PLAIN)(found).numpy()
    close(softmax(ours), run_onnx(scaled, pictures(found)))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_mean_is_exact_where_no_border_is_near(tmp_path, order):
    # Of the middle pixel of the first map the window lies inside: 1 convolution, no pooling in front of the average.
    vgg = Vgg(blocks=((16,), (16,)), flat=False)
    model = model_files.torch_style(vgg)
    mean = np.float32([10, 100, 200])
    found = codes()
    flags = (*PLAIN, "--mean", *map(str, mean))
    built = imported(tmp_path, model_files.write(model, tmp_path), *flags, order=order)
    first = keras.Model(built.input, built.get_layer("conv1_1").output)(found).numpy()
    images = pictures(found, order) - (mean / STD if order == "rgb" else (mean / STD)[::-1])
    w, bias = vgg.convolutions[0]
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))  # [N, H-2, W-2, C, 3, 3]
    inside = np.maximum(np.einsum("nhwcyx,ocyx->nhwo", windows, w) + bias, 0)
    close(first[:, 1:-1, 1:-1], inside)


def test_pictures_give_the_sources_logits_up_to_the_five_bits_of_the_input(tmp_path):
    vgg = Vgg(batch_norm=True)
    model = model_files.torch_style(vgg)
    waves = np.sin(np.arange(28) / 4)[:, None, None] * np.cos(np.arange(28) / 5)[:, None] * [1, 0.5, -0.8]
    noise = np.random.default_rng(3).uniform(-20, 20, (4, 28, 28, 3))
    pixels = np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)  # B, G, R
    ours = imported(tmp_path, model_files.write(model, tmp_path), *PLAIN)(five_bit(pixels).astype(np.float32)).numpy()
    theirs = run_onnx(model, (pixels[..., ::-1] / STD).astype(np.float32).transpose(0, 3, 1, 2))
    # A pixel of 128 on average differs from its code's by 2 (docs/numerics.md section 1); the logits by twice as much.
    assert 0 < np.abs(ours - theirs).mean() < 2 * (2 / 128) * np.abs(theirs).mean()


def as_nodes(model) -> onnx.ModelProto:
    """Return a graph with its arrays as Constant nodes, behind an Identity each, and other words for the same."""
    nodes = []
    for tensor in model.graph.initializer:
        nodes.append(
            onnx.helper.make_node("Constant", [], [f"{tensor.name}_made"], f"make_{tensor.name}", value=tensor)
        )
        nodes.append(onnx.helper.make_node("Identity", [f"{tensor.name}_made"], [tensor.name], f"name_{tensor.name}"))
    nodes += model.graph.node
    model.graph.ClearField("initializer")
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def squeezed(vgg: Vgg) -> onnx.ModelProto:
    """Return a graph of opset 18: the axes of a mean as an input, a Pad in front of the convolution, a Squeeze."""
    b = model_files.Builder()
    w, bias = vgg.convolutions[0]
    x = b.node("Pad", "image", b.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = b.node("Relu", b.node("Conv", x, b.array(w), b.array(bias), kernel_shape=[3, 3]))
    x = b.node("ReduceMean", x, b.array([-2, -1], np.int64), keepdims=1)
    x = b.node("Squeeze", x, b.array([2, 3], np.int64))
    w, bias = vgg.dense[0]
    x = b.node("Gemm", x, b.array(w.T / 2), b.array(bias[None] / 3), alpha=2.0, beta=3.0)
    return b.model(x, ["N", 3, 28, 28], opset=18)


@pytest.mark.parametrize(
    "model",
    [
        as_nodes(model_files.torch_style(Vgg())),
        as_nodes(model_files.keras_style(Vgg(), softmax=False)),
        squeezed(Vgg(blocks=((16,),), flat=False, hidden=0)),
    ],
    ids=["constants", "constants of Keras", "opset 18"],
)
def test_other_words_for_the_same(tmp_path, model):
    found = codes()
    images = pictures(found)
    images = (
        images if model.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3 else images.transpose(0, 3, 1, 2)
    )
    close(imported(tmp_path, model_files.write(model, tmp_path), *PLAIN)(found).numpy(), run_onnx(model, images))


def keras_vgg(*, batch_norm, gap=False, nested=False, softmax=True, channels=(12, 32)):
    layers = keras.layers
    body = [keras.Input((28, 28, 3)), layers.RandomFlip(), layers.Rescaling(1 / 127.5)]
    for number, outputs in enumerate(channels):
        body.append(layers.Conv2D(outputs, 3, padding="same", activation=None if batch_norm else "relu"))
        if batch_norm:
            body += [layers.BatchNormalization(scale=number == 0), layers.ReLU()]
        body.append(layers.MaxPooling2D())
    head = [
        layers.GlobalAveragePooling2D() if gap else layers.Flatten(),
        layers.Dense(9, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.3),
        layers.Dense(5, activation="softmax" if softmax else None),
    ]
    return keras.Sequential([keras.Sequential(body, name="backbone"), *head] if nested else [*body, *head])


def randomised(model, seed=0):
    random = np.random.default_rng(seed)
    for variable in model.weights:
        values = (
            random.uniform(0.5, 1.5, variable.shape)
            if "variance" in variable.path
            else random.normal(size=variable.shape)
        )
        if "seed" not in variable.path:
            variable.assign(values * (np.sqrt(2 / np.prod(variable.shape[:-1])) if len(variable.shape) > 1 else 0.3))
    return model


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize(
    "options",
    first_quick(1, [{"batch_norm": True, "gap": True}, {"batch_norm": True, "nested": True}, {"batch_norm": False}]),
)
def test_keras_files(tmp_path, suffix, options):
    model = randomised(keras_vgg(**options))
    model.save(tmp_path / f"model.{suffix}")
    found = codes()
    built = imported(tmp_path, tmp_path / f"model.{suffix}", *PLAIN)
    close(softmax(built(found).numpy()), model(pictures(found), training=False).numpy())


def test_normalization_layers_hold_their_own_mean(tmp_path):
    layers = keras.layers
    model = randomised(
        keras.Sequential(
            [
                keras.Input((14, 14, 3)),
                layers.Normalization(mean=[0.0, 0.0, 0.0], variance=[4.0, 9.0, 16.0]),
                layers.Conv2D(16, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
    )
    model.save(tmp_path / "model.keras")
    found = codes(14)
    close(imported(tmp_path, tmp_path / "model.keras", order="codes")(found).numpy(), model(found).numpy())


def test_a_linear_1x1_convolution_in_front_of_the_average_is_the_head(tmp_path):
    layers = keras.layers
    body = [layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    head = [layers.Dropout(0.5), layers.Conv2D(7, 1), layers.GlobalAveragePooling2D(), layers.Softmax()]
    model = randomised(keras.Sequential([keras.Input((14, 14, 3)), *body, *head]))
    model.save(tmp_path / "model.keras")
    found = codes(14)
    close(softmax(imported(tmp_path, tmp_path / "model.keras", order="codes")(found).numpy()), model(found).numpy())


def test_a_1x1_convolution_stands_in_the_centre_of_a_3x3(tmp_path):
    layers = keras.layers
    body = [layers.Conv2D(16, 3, padding="same", activation="relu"), layers.Conv2D(16, 1, activation="relu")]
    head = [layers.MaxPooling2D(), layers.Flatten(), layers.Dense(4)]
    model = randomised(keras.Sequential([keras.Input((14, 14, 3)), *body, *head]))
    model.save(tmp_path / "model.keras")
    found = codes(14)
    close(imported(tmp_path, tmp_path / "model.keras", order="codes")(found).numpy(), model(found).numpy())


def test_one_sigmoid_becomes_two_classes(tmp_path):
    layers = keras.layers
    body = [layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    model = randomised(keras.Sequential([keras.Input((14, 14, 3)), *body, layers.Dense(1, activation="sigmoid")]))
    model.save(tmp_path / "model.keras")
    found = codes(14)
    ours = softmax(imported(tmp_path, tmp_path / "model.keras", order="codes")(found).numpy())
    close(ours[:, 1:], model(found).numpy())


# PyTorch's state dictionaries


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("case", first_quick(1, ["padded channels", "plain", "batch norm"]))
def test_state_dictionaries_in_torchvisions_naming(tmp_path, case, suffix):
    vgg = CASES[case]
    arrays = model_files.state_dict(vgg)
    path = tmp_path / f"vgg.{suffix}"
    path.write_bytes(model_files.torch_zip(arrays) if suffix == "pth" else safetensors.numpy.save(arrays))
    found = codes()
    model = model_files.torch_style(vgg)
    close(imported(tmp_path, path, *PLAIN)(found).numpy(), run_onnx(model, pictures(found).transpose(0, 3, 1, 2)))


def test_a_training_checkpoint_wraps_the_dictionary(tmp_path):
    vgg = Vgg()
    data = model_files.torch_zip(model_files.state_dict(vgg), wrap=lambda state: {"epoch": 3, "state_dict": state})
    (tmp_path / "vgg.pth").write_bytes(data)
    assert imported(tmp_path, tmp_path / "vgg.pth").output.shape[1] == model_files.CLASSES


def test_state_dictionary_into_a_net_that_is_there(tmp_path):
    vgg = Vgg()
    (tmp_path / "vgg.pth").write_bytes(model_files.torch_zip(model_files.state_dict(vgg)))
    imported(tmp_path, tmp_path / "vgg.pth", *PLAIN)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*mine*")}
    other = Vgg(seed=9)
    model = model_files.torch_style(other)
    found = codes()
    flags = (*PLAIN, "--checkpoint_dir", tmp_path / "second")
    path = model_files.write(model, tmp_path)
    flags = ("--net", "mine", "--chip", "2801", "--nets_dir", tmp_path, "--input", "rgb", *flags)
    run_script("scripts/import_model.py", path, *flags)
    arrays, _ = checkpoint.load(tmp_path / "second" / "mine-2801-epoch-0")
    built = base.build("mine", classes=model_files.CLASSES, nets_dir=tmp_path)
    small_nets.assign(built, arrays)
    close(built(found).numpy(), run_onnx(model, pictures(found).transpose(0, 3, 1, 2)))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


# Sizes, bits, labels


def test_an_image_size_that_the_chip_lacks_is_taken_with_another(tmp_path):
    layers = keras.layers
    body = [layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    model = randomised(keras.Sequential([keras.Input((15, 15, 3)), *body, layers.Flatten(), layers.Dense(4)]))
    model.save(tmp_path / "model.keras")
    built = imported(tmp_path, tmp_path / "model.keras", "--image_size", "14", order="codes")
    assert built.input_shape[1:] == (14, 14, 3)
    found = np.pad(codes(14), [(0, 0), (0, 1), (0, 1), (0, 0)])
    theirs = model(found).numpy()  # the last row and column, which pooling leaves out, touch the pixels beside them
    assert np.abs(built(found[:, :14, :14]).numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(("flag", "bits"), [("1", [1, 1]), ("3,1", [3, 1])])
def test_coefficient_bits_for_each_block(tmp_path, flag, bits):
    built = imported(tmp_path, model_files.write(model_files.torch_style(Vgg()), tmp_path), "--coef_bits", flag)
    assert [layer.coef_bits for layer in built.network.layers] == bits


@pytest.mark.parametrize(
    "text", ['["a","b","c","d","e","f"]', "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e', 5: 'f'}", "a,b,c,d,e,f"]
)
def test_labels_of_the_file(tmp_path, text):
    model = model_files.torch_style(Vgg(), metadata={"names": text})
    imported(tmp_path, model_files.write(model, tmp_path), "--background")
    assert read_labels(tmp_path / "mine_labels.txt") == ["background", "a", "b", "c", "d", "e", "f"]


def test_a_file_without_names_of_classes_says_where_they_go(tmp_path, capsys):
    imported(tmp_path, model_files.write(model_files.torch_style(Vgg()), tmp_path))
    assert str(tmp_path / "mine_labels.txt") in capsys.readouterr().out
    assert not (tmp_path / "mine_labels.txt").exists()
