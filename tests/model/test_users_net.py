"""A user's own net: one JSON and one short Python file in a folder of nets, through every stage of the scripts."""

from __future__ import annotations

import numpy as np
import pytest
import small_nets
from converted_net import run_script
from PIL import Image

from gti.chip.emulator.arithmetic import five_bit
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import dat
from gti.chip.loaded_model import load_model
from gti.chip.runtime.engine_model import EngineModel
from gti.errors import DataError, UsageError
from gti.model import base
from gti.model.exact import ExactModel
from gti.nets import load
from gti.stage import Stage
from gti.training import restore

MODULE = """
import keras

from gti.layers import HostDense

BATCH_NORM = True


def host_layers(x, *, classes):
    return HostDense(classes, name="fc")(keras.layers.GlobalAveragePooling2D(name="mean")(x))
"""
NETWORKS = {
    "repeat": small_nets.NETWORKS["repeat"],
    "zero fill, top-left pooling": small_nets.small_network(
        (14, 3, 16, 1, 3, False), (14, 16, 16, 2, 1, True), upsample={2: "zero"}, sampling_method=1
    ),
}
COMMON = ("--net", "mine", "--chip", "2801")


def make_data(folder):
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for number, name in enumerate(("dark", "light")):
            home = folder / part / name
            home.mkdir(parents=True)
            for index in range(3):
                pixels = random.integers(0, 100, (40, 32, 3)) + 120 * number
                Image.fromarray(pixels.astype(np.uint8)).save(home / f"{index}.png")
    return folder


def make_net(folder, network, module=MODULE):
    folder.mkdir(exist_ok=True)
    small_nets.write_json(network, folder, "mine")
    (folder / "mine.py").write_text(module)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_stage_and_equal_codes(kind, tmp_path):
    nets = make_net(tmp_path / "nets", NETWORKS[kind])
    data = make_data(tmp_path / "data")
    checkpoints = tmp_path / "checkpoints"
    best = checkpoints / "best"
    common = (*COMMON, "--nets_dir", nets)
    caps = ("--settings_file", tmp_path / "caps.json")
    on_data = (*common, "--data_dir", data, "--train_batch_size", 3)
    train = (*on_data, "--checkpoint_dir", checkpoints, "--num_epochs", 1, "--classes", 3)
    run_script("train.py", *train, "--learning_rate", 1e-3)
    run_script("train.py", *train, "--resume_from", best, "--quant_w", "--clip_bias")
    run_script("set_relu_caps.py", *on_data, *caps, "--checkpoint", best, "--quant_w")
    run_script("train.py", *train, *caps, "--resume_from", best, "--quant_w", "--quant_act", "--train_caps")
    run_script("train.py", *train, "--resume_from", best, "--quant_w", "--quant_act", "--fuse")
    run_script("convert_to_chip.py", *common, "--checkpoint", best, "--fuse", "--output_dir", nets)

    source = restore.open_checkpoint(best, net="mine", stages=(Stage.FUSED,))
    network = load("mine", nets_dir=nets)
    assert source.metadata.network == restore.traits(network)
    model = restore.build_model("mine", network, Stage.FUSED, source, 3, nets_dir=nets)
    assert not [name for name in base.named_variables(model) if "batch_normalization" in name]
    size, _, channels = model.network.input_shape
    pixels = np.random.default_rng(1).integers(0, 256, (2, size, size, channels)).astype(np.uint8)
    decoded = dat.decode(load_model(nets / "2801_mine.model").dat)
    assert decoded.network.sampling_method == NETWORKS[kind].sampling_method
    emulator = Emulator(decoded.network, decoded.weights, upsample_fill=_fill(NETWORKS[kind]))
    expected = ExactModel(model).codes(five_bit(pixels).astype(np.float32))
    found = [codes.transpose(0, 2, 3, 1) for _, codes in emulator.sublayers(pixels)]
    # The fill of upsampling is in no bit of the .DAT: the engine has it from the file's known answer.
    engine = EngineModel(nets / "2801_mine.model").layer_outputs(pixels[0])
    for of_model, of_chip, of_file in zip(expected, found, engine, strict=True):
        np.testing.assert_array_equal(of_model, of_chip)
        np.testing.assert_array_equal(of_model[0], of_file.transpose(1, 2, 0))


def _fill(network):
    return next((layer.upsample_mode for layer in network.layers if layer.upsample_enable), None)


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("BATCH_NORM = True\n", "module"),
        ("def host_layers(x, *, classes):\n    return x\n", "module"),
        ("\n\nBATCH_NORM = (\n", r"mine\.py, line 3: cannot be run \(SyntaxError"),
        ("import gti\nimport no_such_package\n", r"mine\.py, line 2: cannot be run \(ModuleNotFoundError"),
    ],
)
def test_modules_that_are_refused(module, part, tmp_path):
    with pytest.raises(UsageError, match=part):
        base.net_module("mine", make_net(tmp_path, small_nets.NETWORKS["mixed bits"], module))


def test_unknown_net_comes_before_everything_else(tmp_path):
    with pytest.raises(UsageError, match="nope"):
        run_script("train.py", "--net", "nope", "--chip", "2801", "--data_dir", tmp_path / "absent")


def test_missing_data_comes_before_the_number_of_classes(tmp_path):
    with pytest.raises(DataError, match="folder"):
        run_script("train.py", "--net", "digits", "--chip", "2801", "--data_dir", tmp_path / "absent")
