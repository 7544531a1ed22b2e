"""Conversion of VGG16 and what looks into its files, against NumPy writing and reading the same weights."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks import networks
from scripts.benchmarks.figures import Figure, Scale, compare, compared
from scripts.benchmarks.measure import Actions, Round, Worker, repeated, start_tensorflow

PART = "conversion"
ROOT = Path(__file__).resolve().parents[2]
GOAL_CONVERSION = 1.0
GOAL_INFO = 0.3
GOAL_ENCODE = 0.15
GOAL_DECODE = 0.1
GOAL_EXPORT = 3.0
CHECKPOINT = "checkpoint"


def write_checkpoint(folder: str, net: str) -> Actions:
    """Return the action that writes a quant_act checkpoint of a net's chip part and one host layer."""
    start_tensorflow()
    from gti.stage import Stage
    from gti.training import checkpoint
    from gti.training.metadata import Metadata

    network = networks.of_net(net)

    def write() -> None:
        random = np.random.RandomState(5)
        arrays = {}
        for conv in network.convolutions:
            scope = f"{net}/{conv.name}"
            shape = (3, 3, conv.input_channels, conv.output_channels)
            deviation = np.sqrt(2 / (9 * conv.input_channels))
            arrays[f"{scope}/filters"] = (random.standard_normal(shape) * deviation).astype(np.float32)
            arrays[f"{scope}/biases"] = (random.standard_normal(conv.output_channels) * 0.01).astype(np.float32)
            arrays[f"{scope}/relu_cap"] = np.float32(8)
        channels, height, width = network.output_shape
        arrays[f"{net}/fc8/weights"] = np.zeros((channels * height * width, 8), np.float32)
        metadata = Metadata(net, "2801", Stage.QUANT_ACT, epoch=1, step=1, classes=8, image_size=network.input_shape[0])
        checkpoint.save(Path(folder) / CHECKPOINT, arrays, metadata)

    return {"write": write}


def script_side(folder: str, net: str) -> Actions:
    """Return convert_to_chip.py's work after its imports, and np.savez of the weights that it reads."""
    start_tensorflow()
    # What the script imports on its way.
    import numba  # noqa: F401

    from gti import converter, quantize  # noqa: F401
    from gti.chip.emulator import emulator, engine_numba  # noqa: F401
    from gti.model import base  # noqa: F401
    from gti.training import checkpoint, restore  # noqa: F401

    network = networks.of_net(net)
    words = (
        f"--net {net} --nets_dir {networks.NETS} --chip 2801 --checkpoint {folder}/{CHECKPOINT} --output_dir {folder}"
    )
    random = np.random.RandomState(6)
    weights = [
        random.standard_normal((3, 3, conv.input_channels, conv.output_channels)).astype(np.float32)
        for conv in network.convolutions
    ]

    def convert() -> None:
        sys.argv = ["convert_to_chip.py", *words.split()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(ROOT / "convert_to_chip.py"))["main"]()

    return {"convert": convert, "save": lambda: np.savez(Path(folder) / "weights.npz", *weights)}


def codec_side(folder: str, net: str) -> Actions:
    """Return encoding and decoding of the .DAT, and np.save and np.load of the same integers."""
    from gti.chip.formats import dat

    network = networks.of_net(net)
    weights = networks.random_weights(network)
    flat = np.concatenate([layer.filters.ravel() for layer in weights])
    path = Path(folder) / "weights.npy"
    np.save(path, flat)
    data = dat.encode(network, weights)

    def command(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    return {
        "encode": partial(dat.encode, network, weights),
        "decode": partial(dat.decode, data),
        "save": partial(np.save, path, flat),
        "load": partial(np.load, path),
        "info": partial(command, str(ROOT / "scripts/model_tool.py"), "info", f"{folder}/2801_{net}.model"),
        "import": partial(command, "-c", "import numpy"),
        "export": partial(
            command, str(ROOT / "scripts/model_tool.py"), "export", f"{folder}/2801_{net}.model", f"{folder}/net.onnx"
        ),
        "import onnx": partial(command, "-c", "import onnx"),
    }


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figures of conversion."""
    title = networks.title(scale.net)
    savez = "np.savez of the float weights"
    with tempfile.TemporaryDirectory() as folder:
        with Worker(write_checkpoint, folder, scale.net) as worker:
            worker.value("write")

        def first(turn: int) -> Round:
            # In a process that has just started: what a user waits for.
            with Worker(script_side, folder, scale.net) as worker:
                return worker.run("convert"), worker.run("save")

        name = f"{title}: checkpoint to .model, first call"
        found = repeated(first, scale.rounds, name)
        yield compared(PART, name, "seconds", found, savez, goal=GOAL_CONVERSION)
        with Worker(script_side, folder, scale.net) as worker:
            name = f"{title}: checkpoint to .model, repeated"
            sides = (worker, "convert"), (worker, "save")
            yield compare(PART, name, "seconds", sides, savez, rounds=scale.rounds)
        with Worker(codec_side, folder, scale.net) as worker:
            for name, action, yardstick, words, goal in (
                ("model_tool.py info, whole process", "info", "import", "python -c 'import numpy'", GOAL_INFO),
                (
                    "model_tool.py export, whole process",
                    "export",
                    "import onnx",
                    "python -c 'import onnx'",
                    GOAL_EXPORT,
                ),
                (".DAT encode", "encode", "save", "np.save of the integers", GOAL_ENCODE),
                (".DAT decode", "decode", "load", "np.load of the integers", GOAL_DECODE),
            ):
                yield compare(
                    PART, f"{title}: {name}", "seconds", ((worker, action), (worker, yardstick)), words,
                    rounds=scale.rounds, min_seconds=scale.min_seconds, goal=goal,
                )  # fmt: skip
