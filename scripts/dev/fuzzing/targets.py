"""What is fuzzed: every function of the kit that takes bytes from outside, with its seeds and its kind of damage."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from gti.chip.formats import dat, model_file, model_folder, npy
from gti.chip.formats.blobs import decode_fc, parse_labels
from gti.chip.network import json_form as network
from gti.chip.network.types import MajorLayer, Network
from gti.errors import GtiError
from gti.files import parse_json
from scripts.dev.fuzzing import damage, seeds


@dataclass(frozen=True)
class Target:
    """One parser. `run` raises GtiError for input that it refuses; any other exception is a defect."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    damage: damage.Damage = damage.of_bytes
    heavy: bool = False  # needs TensorFlow: left out unless named

    def damaged(self) -> SearchStrategy[bytes]:
        """Return the strategy of damaged good files."""
        return st.one_of(*map(self.damage, self.seeds()))


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    # Memory where there is some: a file is written for every input of a parser that opens its file itself.
    return tempfile.TemporaryDirectory(prefix="gti-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def _file(data: bytes, name: str) -> Path:
    path = Path(_scratch().name) / name
    path.write_bytes(data)
    return path


def _dat(data: bytes) -> None:
    from gti.chip.formats.describe import describe_dat

    describe_dat(data, "x.dat")
    decoded = dat.decode(data, name="x.dat")
    assert len(decoded.weights) == len(decoded.network.convolutions)


def _apart_and_built(data: bytes, kind: str) -> None:
    """Take apart and put together: the same bytes, whatever the header says."""
    name = f"x.{kind}"
    parts = model_folder.dat_parts(data, name) if kind == "dat" else model_folder.container_parts(data, name)[0]
    assert model_folder.build(_fresh(kind, parts), name) == data, "build(extract(x)) differs from x"


def _fresh(name: str, content: Mapping[str, bytes]) -> Path:
    folder = Path(_scratch().name) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part, data in content.items():
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).write_bytes(data)
    return folder


@contextlib.contextmanager
def _replaced(path: Path, content: bytes) -> Iterator[None]:
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(good)


def _model(data: bytes) -> None:
    """Parse, describe, and run the host layers on a chip that answers zeros."""
    from gti.chip.formats.describe import describe_model
    from gti.chip.host import preprocessing
    from gti.chip.host.host_layers import HostLayers
    from gti.chip.runtime import known_answer

    parsed = model_file.parse(data, "x.model")
    model_file.decompose(parsed, "x.model")
    describe_model(data, "x.model")
    for check in (
        lambda: known_answer.read(parsed, "x.model"),
        lambda: preprocessing.from_header(parsed.header, "x.model"),
        lambda: HostLayers(parsed.layers, "x.model").run(np.zeros((28, 28, 3), np.uint8), _zeros),
    ):
        with contextlib.suppress(GtiError):
            check()


def _header(data: bytes) -> None:
    """What a header says of host layers that the vendor's runtime does not know; each key on its own."""
    from gti.chip.host import edge_head, unknown

    header = parse_json(data, "x.model")
    header = header if isinstance(header, dict) else {}
    with contextlib.suppress(GtiError):
        head = edge_head.from_header(header, [2, 3], "x.model")
        maps = [np.full((2, 4, 4), 31, np.uint8), np.full((3, 2, 2), 31, np.uint8)]
        assert np.isfinite(edge_head.probabilities(head.logits(maps), (3, 5))).all()
    rule = unknown.from_header(header, "x.model")
    if rule is not None:
        rule.says(np.ones(rule.centres.shape[1]))


def _features(data: bytes) -> None:
    """Features that are kept beside a model which was taught."""
    from gti.chip.runtime import features

    backbone = features.load_backbone(_backbone())
    known = features.read_cache(_file(data, "x.npz"), backbone)
    assert all(values.shape == (backbone.channels,) for values in known.values())


@functools.cache
def _backbone() -> Path:
    layer = MajorLayer(14, 3, 16, 1, 3, (4,), pooling=True)  # ends in 7x7
    return _file(seeds.dat_file(Network((layer,))), "backbone.dat")


def _features_seeds() -> list[bytes]:
    from gti.chip.runtime import features

    backbone, path = features.load_backbone(_backbone()), Path(_scratch().name) / "good.npz"
    features.write_cache(path, backbone, {bytes([i]) * 32: np.ones(backbone.channels, np.float32) for i in range(2)})
    return [path.read_bytes()]


def _hed(data: bytes) -> None:
    from gti.importing import hed

    found = hed.read(_file(data, "x.h5"))
    assert len(found.filters) == len(found.network.convolutions)


def _zeros(image: np.ndarray) -> list[np.ndarray]:
    return [np.zeros((32, 14, 14), np.uint8)]


def _loaded(data: bytes) -> None:
    """What the driver looks at before it opens a stick."""
    from gti.chip.loaded_model import load_model
    from gti.chip.usb import eusb_sticks, ft60x
    from gti.chip.usb.transport import Settings

    model = load_model(_file(data, "x.bin"))
    assert model.size >= 0
    assert model.planes >= 0
    assert len(model.upsampled) <= len(model.header.layers)
    assert isinstance(ft60x.asked_key(model.device), str)
    eusb_sticks.asked_settings(model.device, Settings())
    assert isinstance(model.ten_bit, bool)


def _dat_json(data: bytes) -> None:
    net = network.from_json(parse_json(data, "dat.json"), "dat.json")
    assert network.from_json(network.to_json(net), "again") == net


def _compose(data: bytes) -> None:
    model_file.parse(model_file.compose(data, _data_folder()))


@functools.cache
def _data_folder() -> Path:
    folder = _fresh("data", _full_model()[1])
    (folder / "link.bin").symlink_to("/etc/hostname")
    return folder


@functools.cache
def _full_model() -> tuple[bytes, dict[str, bytes]]:
    return seeds.full_model(_net())


@functools.cache
def _net() -> Network:
    return seeds.networks()["rgb"]


def _labels(data: bytes) -> None:
    from gti.data.labels import read_labels

    assert all(isinstance(name, str) for name in read_labels(_file(data, "labels.txt")))


def _folder(data: bytes) -> None:
    """Build a .DAT or .MODEL from a folder in which one file is damaged."""
    name, _, content = data.partition(b"\0")
    kind = "model" if name in (b"network.json", b"header.bin") else "dat"
    folder = folders()[kind]
    with _replaced(folder / name.decode(), content):
        model_folder.build(folder, f"x.{kind}")


@functools.cache
def folders() -> dict[str, Path]:
    """Return folders in which every optional file stands: header.bin, exact.json, rows.npz, tail.bin."""
    changed = bytearray(seeds.dat_file(seeds.networks()["rgb"]))
    changed[5] |= 0x10  # a header bit that no converter sets
    changed[92:104] = b"\xff" * 12  # a row that no weights give
    parts = model_folder.dat_parts(bytes(changed) + b"tail", "x.dat")
    model = bytearray(seeds.model(_net()))
    end = model.index(b"\0")
    model[end:end] = b" "  # blanks that composing does not write
    del model[end + 1]
    container, _ = model_folder.container_parts(bytes(model), "x.model")
    return {"dat": _fresh("of-dat", parts), "model": _fresh("of-model", container)}


def _folder_seeds() -> list[bytes]:
    names = ("dat/dat.json", "dat/weights.npz", "dat/rows.npz", "dat/exact.json", "dat/tail.bin",
             "model/network.json", "model/header.bin")  # fmt: skip
    pairs = [name.split("/") for name in names]
    return [name.encode() + b"\0" + (folders()[kind] / name).read_bytes() for kind, name in pairs]


def _recording(data: bytes) -> None:
    """Read all lines, then replay the calls as they were made."""
    import array
    import base64

    import usb.core

    from gti.chip.usb import trace

    path = _file(data, "session.gz")
    lines = list(trace.read(path))
    replay = trace.ReplayBackend(path)
    for entry in lines[1:]:
        args, name = list(entry["args"]), entry["call"]
        if name in ("bulk_write", "bulk_read", "ctrl_transfer") and args:
            last = args.pop()
            size = last if isinstance(last, int) and not isinstance(last, bool) else 64
            try:
                buffer = array.array(
                    "B", base64.b64decode(last) if isinstance(last, str) else bytes(min(abs(size), 4096))
                )
            except ValueError:
                return
            args += [buffer, 1000]
        if name == "ctrl_transfer" and (len(args) < 4 or not isinstance(args[1], int)):
            return
        try:
            getattr(replay, name)(*args)
        except (usb.core.USBError, IndexError, NotImplementedError):
            continue  # as recorded


def _image(data: bytes) -> None:
    from gti.chip.host.image import load_image

    name, _, content = data.partition(b"\0")
    size = seeds.SIZE
    assert load_image(_file(content, f"x.{name.decode()}"), size).shape == (size, size, 3)


def _metadata(data: bytes) -> None:
    from gti.training.metadata import Metadata

    Metadata.from_json(data, "x")


def _keras(data: bytes) -> None:
    from gti.importing import architecture

    architecture.load(_file(data, "x.keras"), arrays=False)


def _model_file(suffix: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """Read a model and all its arrays, and fold them where the chip can run it."""
        from gti.importing import architecture, folding, model_files, templates

        path = _file(data, f"x{suffix}")
        for layer in model_files.load(path).layers:
            for weight in layer.weights.values():
                assert weight.read().shape == weight.shape
        model = architecture.load(path)
        if not templates.problems(model):
            batch_norm = folding.can_train_batch_norm(model.sublayers)
            for weight in folding.chip_weights(model.sublayers, model.network, batch_norm=batch_norm).values():
                assert weight.read().shape == weight.shape

    return run


def _caps(data: bytes) -> None:
    from gti.model.base import load_caps

    assert all(np.isfinite(np.float32(cap)) for cap in load_caps(_file(data, "settings.json")).values())


def _checkpoint(data: bytes) -> None:
    """Load a checkpoint of which one file is damaged."""
    from gti.training import checkpoint

    name, _, content = data.partition(b"\0")
    prefix = _checkpoint_prefix()
    with _replaced(Path(f"{prefix}.{name.decode()}"), content):
        checkpoint.load(prefix)


@functools.cache
def _checkpoint_prefix() -> Path:
    from gti.training import checkpoint, metadata

    prefix = _fresh("checkpoint", {}) / "x-epoch-1"
    arrays = {f"x/conv1_{i}/filters": np.full((3, 3, i, 4), i, np.float32) for i in (1, 2)}
    checkpoint.save(prefix, arrays, metadata.Metadata.from_json(seeds.metadata(), "x"))
    return prefix


def _checkpoint_seeds() -> list[bytes]:
    prefix = _checkpoint_prefix()
    names = ("index", "data-00000-of-00001")
    return [name.encode() + b"\0" + Path(f"{prefix}.{name}").read_bytes() for name in names]


def _json(data: bytes) -> None:
    from gti.chip.formats.canonical_json import canonical

    canonical(parse_json(data, "x.json"))


def _of_networks(make: Callable[[Network], bytes]) -> Callable[[], list[bytes]]:
    return lambda: [make(net) for net in seeds.networks().values()]


def _models() -> list[bytes]:
    return [seeds.model(_net())]


def _labels_seeds() -> list[bytes]:
    texts = ("0 background\n1 cat\n2 dog\n", "cat\r\ndog\r\nbird\r\n", "\ufeffd\u00f6g\ncat\n", "background\ncat\n")
    return [text.encode() for text in texts]


TARGETS = {
    target.name: target
    for target in (
        Target("dat", _dat, _of_networks(seeds.dat_file)),
        Target("dat-folder", lambda data: _apart_and_built(data, "dat"), _of_networks(seeds.dat_file)),
        Target("model", _model, _models, damage.of_model),
        Target("model-folder", lambda data: _apart_and_built(data, "model"), _models, damage.of_model),
        Target("header", _header, lambda: [seeds.header()], damage.of_json),
        Target("features", _features, _features_seeds, damage.of_zip),
        Target("hed", _hed, lambda: [seeds.hed_weights()]),
        Target("driver", _loaded, lambda: _models() + _of_networks(seeds.dat_file)()),
        Target("dat.json", _dat_json, _of_networks(seeds.dat_json), damage.of_json),
        Target("network.json", _compose, lambda: [_full_model()[0]], damage.of_json),
        Target("folder", _folder, _folder_seeds, damage.named(damage.by_content)),
        Target("json", _json, lambda: [seeds.dat_json(_net()), seeds.metadata(), seeds.caps()]),
        Target("fc", decode_fc, lambda: [seeds.full_model(seeds.networks()["tiny"])[1]["fc.bin"]]),
        Target("label-data", parse_labels, _labels_seeds),
        Target("labels", _labels, _labels_seeds),
        Target("recording", _recording, lambda: [seeds.recording()], damage.of_recording),
        Target("npy", lambda data: npy.parse_npy(data, "x.npy"), lambda: [seeds.pictures()["npy"]]),
        Target("npz", lambda data: npy.parse_npz(data, "x.npz"), lambda: list(seeds.archives().values()),
               damage.of_zip),
        Target("image", _image, lambda: [name.encode() + b"\0" + data for name, data in seeds.pictures().items()],
               damage.named(damage.of_bytes)),
        Target("metadata", _metadata, lambda: [seeds.metadata()], damage.of_json),
        Target("keras", _keras, lambda: [seeds.keras_archive()], damage.of_zip),
        Target("h5", _model_file(".h5"), lambda: [seeds.keras_hdf5()]),
        Target("onnx", _model_file(".onnx"), seeds.onnx_models),
        Target("pth", _model_file(".pth"), seeds.torch_models, damage.of_zip),
        Target("safetensors", _model_file(".safetensors"), seeds.safetensors_models),
        Target("caps", _caps, lambda: [seeds.caps()], damage.of_json, heavy=True),
        Target("checkpoint", _checkpoint, _checkpoint_seeds, damage.named(damage.of_bytes), heavy=True),
    )
}  # fmt: skip
