"""What is fuzzed: every function of the kit that takes bytes from outside, with its seeds and its kind of damage."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gti.chip.formats import dat, model_file, model_folder, npy
from gti.chip.formats.blobs import decode_fc, parse_labels
from gti.chip.network import json_form as network
from gti.errors import GtiError
from gti.files import parse_json
from scripts.dev.fuzzing import mutations, seeds
from scripts.dev.fuzzing.mutations import Mutate


@dataclass(frozen=True)
class Target:
    """One parser. `run` raises GtiError for input that it refuses; any other exception is a defect."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate = mutations.of_bytes
    share: float = 1.0  # of the inputs of a run, relative to the others
    heavy: bool = False  # needs TensorFlow: left out unless named


@functools.lru_cache(maxsize=1)
def _scratch() -> Path:
    # Memory where there is some: a file is written for every input of a parser that opens its file itself.
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="gti-fuzz-", dir=base))


def clean_up() -> None:
    """Remove the scratch folder."""
    if _scratch.cache_info().currsize:
        shutil.rmtree(_scratch(), ignore_errors=True)
        _scratch.cache_clear()


def neutral(text: str) -> str:
    """Return a message without the scratch folder's name, which differs from run to run."""
    return text.replace(f"{_scratch()}/", "").replace(str(_scratch()), "FOLDER")


def _file(data: bytes, name: str) -> Path:
    path = _scratch() / name
    path.write_bytes(data)
    return path


def _dat(data: bytes) -> None:
    from gti.chip.formats.describe import describe_dat

    describe_dat(data, "x.dat")
    decoded = dat.decode(data, name="x.dat")
    assert len(decoded.weights) == len(decoded.network.convolutions)


def _dat_folder(data: bytes) -> None:
    """Take apart and put together: the same bytes, whatever the header says."""
    parts = model_folder.dat_parts(data, "x.dat")
    folder = _fresh("dat")
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    assert model_folder.build(folder, "x.dat") == data, "build(extract(x)) differs from x"


def _model_folder(data: bytes) -> None:
    parts, _ = model_folder.container_parts(data, "x.model")
    folder = _fresh("model")
    for name, content in parts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert model_folder.build(folder, "x.model") == data, "build(extract(x)) differs from x"


def _fresh(name: str) -> Path:
    folder = _scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


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


@functools.lru_cache(maxsize=1)
def _data_folder() -> Path:
    folder = _fresh("data")
    for name, content in _full_model()[1].items():
        (folder / name).write_bytes(content)
    (folder / "link.bin").symlink_to("/etc/hostname")
    return folder


@functools.lru_cache(maxsize=1)
def _full_model() -> tuple[bytes, dict[str, bytes]]:
    return seeds.full_model(_net())


@functools.lru_cache(maxsize=1)
def _net() -> network.Network:
    return seeds.networks()["rgb"]


def _labels(data: bytes) -> None:
    from gti.data.labels import read_labels

    assert all(isinstance(name, str) for name in read_labels(_file(data, "labels.txt")))


def _folder(data: bytes) -> None:
    """Build a .DAT or .MODEL from a folder in which one file is damaged."""
    name, _, content = data.partition(b"\0")
    kind = "model" if name in (b"network.json", b"header.bin") else "dat"
    folder = _folders()[kind]
    path = folder / name.decode()
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        model_folder.build(folder, f"x.{kind}")
    finally:
        path.write_bytes(good)


@functools.lru_cache(maxsize=1)
def _folders() -> dict[str, Path]:
    result = {}
    for kind, files in _folder_files().items():
        result[kind] = _fresh(f"of-{kind}")
        for name, content in files.items():
            (result[kind] / name).write_bytes(content)
    return result


@functools.lru_cache(maxsize=1)
def _folder_files() -> dict[str, dict[str, bytes]]:
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
    return {"dat": parts, "model": container}


def _folder_seeds() -> list[bytes]:
    chosen = {
        "dat": ("dat.json", "weights.npz", "rows.npz", "exact.json", "tail.bin"),
        "model": ("network.json", "header.bin"),
    }
    return [
        name.encode() + b"\0" + _folder_files()[kind][name]
        for kind, names in chosen.items()
        for name in names
        if name in _folder_files()[kind]
    ]


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
    from gti.training.checkpoint import Metadata

    Metadata.from_json(data, "x")


def _keras(data: bytes) -> None:
    from gti.importing import architecture

    architecture.load(_file(data, "x.keras"))


def _caps(data: bytes) -> None:
    from gti.model.base import load_caps

    assert all(np.isfinite(np.float32(cap)) for cap in load_caps(_file(data, "settings.json")).values())


def _checkpoint(data: bytes) -> None:
    """Load a checkpoint of which one file is damaged."""
    from gti.training import checkpoint

    name, _, content = data.partition(b"\0")
    prefix = _checkpoint_prefix()
    path = Path(f"{prefix}.{name.decode()}")
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        checkpoint.load(prefix)
    finally:
        path.write_bytes(good)


@functools.lru_cache(maxsize=1)
def _checkpoint_prefix() -> Path:
    from gti.training import checkpoint

    prefix = _fresh("checkpoint") / "x-epoch-1"
    arrays = {f"x/conv1_{i}/filters": np.full((3, 3, i, 4), i, np.float32) for i in (1, 2)}
    checkpoint.save(prefix, arrays, checkpoint.Metadata.from_json(seeds.metadata(), "x"))
    return prefix


def _checkpoint_seeds() -> list[bytes]:
    prefix = _checkpoint_prefix()
    names = ("index", "data-00000-of-00001")
    return [name.encode() + b"\0" + Path(f"{prefix}.{name}").read_bytes() for name in names]


def _json(data: bytes) -> None:
    from gti.chip.formats.canonical_json import canonical

    canonical(parse_json(data, "x.json"))


def _of_networks(make: Callable[[network.Network], bytes]) -> Callable[[], list[bytes]]:
    return lambda: [make(net) for net in seeds.networks().values()]


def _models() -> list[bytes]:
    return [seeds.model(_net())]


def _labels_seeds() -> list[bytes]:
    return [
        b"0 background\n1 cat\n2 dog\n",
        b"cat\r\ndog\r\nbird\r\n",
        "\ufeffd\u00f6g\ncat\n".encode(),
        b"background\ncat\n",
    ]


TARGETS = {
    target.name: target
    for target in (
        Target("dat", _dat, _of_networks(seeds.dat_file), share=3),
        Target("dat-folder", _dat_folder, _of_networks(seeds.dat_file), share=0.2),
        Target("model", _model, _models, mutations.of_model, share=2),
        Target("model-folder", _model_folder, _models, mutations.of_model, share=0.2),
        Target("driver", _loaded, lambda: _models() + _of_networks(seeds.dat_file)()),
        Target("dat.json", _dat_json, _of_networks(seeds.dat_json), mutations.of_json, share=3),
        Target("network.json", _compose, lambda: [_full_model()[0]], mutations.of_json),
        Target("folder", _folder, _folder_seeds, mutations.by_content, share=0.2),
        Target("json", _json, lambda: [seeds.dat_json(_net()), seeds.metadata(), seeds.caps()], share=2),
        Target("fc", decode_fc, lambda: [seeds.full_model(seeds.networks()["tiny"])[1]["fc.bin"]], share=2),
        Target("label-data", parse_labels, _labels_seeds, share=2),
        Target("labels", _labels, _labels_seeds),
        Target("recording", _recording, lambda: [seeds.recording()], mutations.of_recording),
        Target("npy", lambda data: npy.parse_npy(data, "x.npy"), lambda: [seeds.pictures()["npy"]], share=2),
        Target("npz", lambda data: npy.parse_npz(data, "x.npz"), lambda: list(seeds.archives().values()),
               mutations.of_zip, share=0.5),
        Target("image", _image, lambda: [name.encode() + b"\0" + data for name, data in seeds.pictures().items()],
               mutations.named(mutations.of_bytes)),
        Target("metadata", _metadata, lambda: [seeds.metadata()], mutations.of_json, share=2),
        Target("keras", _keras, lambda: [seeds.keras_archive()], mutations.of_zip, share=0.5),
        Target("caps", _caps, lambda: [seeds.caps()], mutations.of_json, heavy=True),
        Target("checkpoint", _checkpoint, _checkpoint_seeds, mutations.named(mutations.of_bytes), heavy=True),
    )
}  # fmt: skip
