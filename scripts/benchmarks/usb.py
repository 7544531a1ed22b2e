"""The USB path without silicon: what a frame costs the host, and frames per second of one to four sticks.

The sticks are in software and answer a pattern after `CHIP_MS`, so that nothing but the USB path is measured.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gti.chip import spec
from gti.chip.driver import GtiModel
from gti.chip.formats import dat
from gti.chip.host.preprocessing import Preprocessing, center_square
from gti.chip.network.types import Network
from gti.chip.runtime.classifier import Classifier
from gti.chip.runtime.contract import ChipModel
from gti.chip.runtime.engine_model import EngineModel
from gti.chip.runtime.pool import GtiPool
from gti.chip.wire import protocol
from scripts.benchmarks import networks
from scripts.benchmarks.figures import Figure, Scale, compare, compared
from scripts.benchmarks.measure import Actions, Round, Sample, Worker, repeated

PART = "usb"
ROOT = Path(__file__).resolve().parents[2]
PICTURES = {"640x480": (480, 640), "1920x1080": (1080, 1920)}
GOAL_RESIZE = 1 / 1.2  # of Pillow's speed
GOAL_LABELS = 1 / 1.2  # of the speed of EngineModel
SIZES = (14, 28, 56, 112, 224)
STICKS = (2, 3, 4)
CHIP_MS = 20.0
OUTPUTS = 512
GOAL_FRAME = 1e-3
GOAL_BESIDE = 0.25e-3
# Of the time that one stick takes for the same frames.
GOAL_STICKS = {4: 3.0}
GOAL_IMPORT = 0.3
FRAMES_HELD = 8


def synthetic_dat(size: int, outputs: int = OUTPUTS) -> bytes:
    """Return a .DAT whose header leads from an image of `size` to outputs x 7 x 7; the coefficients are zeros."""
    layers = []
    inputs = 16
    while size >= 14:
        channels = outputs if size == 14 else 16
        layers.append([size | inputs << 8 | channels << 19 | 1 << 30, 1 << 4 | 1 << 30, 0])
        size, inputs = size // 2, channels
    words = [1, len(layers) << 5 | 0x0C01, *(word for layer in layers for word in layer)]
    words += [0] * (spec.HEADER_BYTES // 4 - len(words))
    return np.array(words, "<u4").tobytes() + bytes(spec.ROW_BYTES * 64)


def frame_side(sizes: tuple[int, ...]) -> Actions:
    """Return encoding and decoding of a frame of every size, and a copy of the same image and result."""
    actions: dict[str, Callable[[], object]] = {}
    for size in sizes:
        header = protocol.Header.parse(synthetic_dat(size))
        encoder = protocol.FrameEncoder(header, protocol.Mode.FC, 3)
        read_out = protocol.read_out(header, protocol.Mode.FC)
        image = _images(size)[0]
        raw = bytes(read_out.length * 4)

        def host(
            encoder: protocol.FrameEncoder = encoder,
            read_out: protocol.ReadOut = read_out,
            image: np.ndarray = image,
            raw: bytes = raw,
        ) -> None:
            encoder.encode(image.transpose(2, 0, 1))
            (codes,) = read_out.unpack(protocol.strip_words(raw, 4))
            (codes >> 3).transpose(1, 2, 0)[None].astype(np.float32)

        def copies(image: np.ndarray = image, raw: bytes = raw) -> None:
            np.ascontiguousarray(image.transpose(2, 0, 1))
            np.frombuffer(raw, np.uint8).astype(np.float32)

        actions[f"frame {size}"] = host
        actions[f"copies {size}"] = copies
    return actions


def resize_side() -> Actions:
    """Return a camera's picture cut and resized for a network, and Pillow's resize of the same square."""
    from PIL import Image

    actions: dict[str, Callable[[], object]] = {}
    for name, (height, width) in PICTURES.items():
        pixels = np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)
        square = Image.fromarray(np.ascontiguousarray(center_square(pixels, 0.875)))
        actions[name] = partial(Preprocessing(224, 3, "BGR", 0.875).apply, pixels, "BGR")
        actions[f"Pillow {name}"] = partial(square.resize, (224, 224), Image.Resampling.BILINEAR)
        for _ in range(40):  # numba is there from the 33rd on
            actions[name]()
    return actions


def pool_side(path: str, sticks: int, size: int, frames: int) -> Actions:
    """Return a pass of `frames` frames through an open pool."""
    images = _images(size)
    pool = GtiPool(path, ["virtual"] * sticks, chip_time_ms=CHIP_MS)

    def run() -> None:
        count = sum(1 for _ in pool.evaluate_many(images[k % FRAMES_HELD] for k in range(frames)))
        assert count == frames

    return {"frames": run, "release": pool.release}


def accuracy_side(path: str, network: Network, images: int) -> Actions:
    """Return `images` images through the emulator alone, in batches, and through the stick in software."""
    network_images = networks.random_images(network, images)
    stick, engine = GtiModel(path, "virtual"), EngineModel(path)

    def run(model: ChipModel) -> None:
        for _ in model.evaluate_many(network_images):
            pass

    def one_by_one(model: ChipModel) -> None:
        for image in network_images:
            model.evaluate(image)

    return {
        "engine": partial(run, engine), "stick": partial(run, stick), "release": stick.release,
        "engine, one by one": partial(one_by_one, engine), "stick, one by one": partial(one_by_one, stick),
    }  # fmt: skip


def beside_the_emulator(worker: Worker, frames: int, repeat: int, turn: int) -> Round:
    """Return what a frame on the stick takes longer than the same image on the emulator, and that."""
    names = ["stick, one by one", "engine, one by one"]
    found = {name: worker.run(name, repeat) for name in (names[::-1] if turn % 2 else names)}
    stick, engine = found[names[0]], found[names[1]]
    foreign = max(stick.foreign, engine.foreign)
    return (
        Sample((stick.wall - engine.wall) / frames, (stick.cpu - engine.cpu) / frames, foreign),
        Sample(engine.wall / frames, engine.cpu / frames, foreign),
    )


def labels_side(path: str, network: Network, images: int) -> Actions:
    """Return arrays to labels by a Classifier on the emulator, and to codes by the emulator alone."""
    pictures = networks.random_images(network, images)
    classifier, engine = Classifier(path, "emulator"), EngineModel(path)

    def labels() -> None:
        assert sum(1 for _ in classifier.classify_many(enumerate(pictures), "BGR")) == images

    def codes() -> None:
        assert sum(1 for _ in engine.evaluate_many(pictures)) == images

    return {"labels": labels, "codes": codes, "release": classifier.release}


def start_side() -> Actions:
    """Return the start of a program that imports the driver, and of one that imports nothing."""

    def command(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

    return {"driver": partial(command, "import gti.chip.driver"), "numpy": partial(command, "import numpy")}


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figures of the USB path."""
    size = networks.of_net(scale.net).input_shape[0]
    often: dict[str, Any] = {"rounds": scale.rounds, "min_seconds": scale.min_seconds}
    with Worker(frame_side, SIZES) as worker:
        for one in SIZES if scale.growth else (size,):
            name = f"encode {one}x{one}x3 + decode {OUTPUTS}x7x7"
            yield compare(
                PART, name, "seconds", ((worker, f"frame {one}"), (worker, f"copies {one}")), "copies in NumPy",
                **often, goal=GOAL_FRAME if one == 224 else None,
            )  # fmt: skip
    if importlib.util.find_spec("PIL") is not None:
        with Worker(resize_side) as worker:
            for name in PICTURES:
                yield compare(
                    PART, f"crop and resize {name} to 224", "speed", ((worker, name), (worker, f"Pillow {name}")),
                    "Pillow's resize of the same square", **often, goal=GOAL_RESIZE,
                )  # fmt: skip
    # The time of one stick over that of several for the same frames.
    frames = max(FRAMES_HELD, round(scale.stick_seconds * 1000 / CHIP_MS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.dat"
        path.write_bytes(synthetic_dat(size))
        with Worker(pool_side, str(path), 1, size, frames) as single:
            for sticks in STICKS if scale.growth else STICKS[-1:]:
                name = f"{sticks} sticks, {frames} frames of {CHIP_MS:g} ms on the chip"
                with Worker(pool_side, str(path), sticks, size, frames) as several:
                    yield compare(
                        PART, name, "speed", ((several, "frames"), (single, "frames")), "1 stick",
                        rounds=scale.rounds, goal=GOAL_STICKS.get(sticks), clock=True,
                    )  # fmt: skip
                    several.value("release")
            single.value("release")
        small = networks.six_convolutions()
        path.write_bytes(dat.encode(small, networks.random_weights(small)))
        with Worker(accuracy_side, str(path), small, scale.small_batch) as worker:
            name = f"six convolutions 56, {scale.small_batch} images: chip_infer.py --engine_only"
            sides = (worker, "engine"), (worker, "stick")
            yield compare(PART, name, "speed", sides, "virtual stick, frame by frame", **often)
            worker.value("release")
        digits = networks.of_net("digits")
        path.write_bytes(dat.encode(digits, networks.random_weights(digits)))
        with Worker(accuracy_side, str(path), digits, scale.small_batch) as worker:
            name = "digits 28: a frame on the virtual stick, beside the emulator's time"
            worker.run("stick, one by one")
            repeat = max(1, round(scale.min_seconds / 3e-4 / scale.small_batch))
            found = repeated(partial(beside_the_emulator, worker, scale.small_batch, repeat), scale.rounds, name)
            yield compared(PART, name, "seconds", found, "emulator, one by one", goal=GOAL_BESIDE)
            worker.value("release")
        full = Path(folder) / "bench.model"
        full.write_bytes(networks.full_model(digits))
        with Worker(labels_side, str(full), digits, scale.arrays) as worker:
            name = f"digits 28, {scale.arrays} arrays to labels: Classifier.classify_many, no stick"
            sides = (worker, "labels"), (worker, "codes")
            yield compare(PART, name, "speed", sides, "the emulator's codes", **often, goal=GOAL_LABELS)
            worker.value("release")
    with Worker(start_side) as worker:
        name = "start Python and import gti.chip.driver"
        sides = (worker, "driver"), (worker, "numpy")
        yield compare(PART, name, "seconds", sides, "import numpy", **often, goal=GOAL_IMPORT)


def _images(size: int) -> np.ndarray:
    return np.random.RandomState(2).randint(0, 256, (FRAMES_HELD, size, size, 3)).astype(np.uint8)
