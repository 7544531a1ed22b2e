"""Features of photographs: what the last layer of a network on the chip answers, averaged over its 7x7 positions.

They are computed once for each photograph and kept in a small file, so that another class takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gti import files
from gti.chip.formats import npy
from gti.chip.host import host_layers, preprocessing
from gti.chip.host.image import MAX_FILE_BYTES
from gti.chip.loaded_model import LoadedModel, load_model
from gti.chip.runtime.opening import open_stick_or_emulator
from gti.chip.spec import FC_READOUT_SIZE
from gti.chip.usb.transport import Settings
from gti.errors import FormatError, GtiError, ImageError, ModelFileError

_MAX_CACHE_BYTES = 1024 * 1024 * 1024
_KEYS = {"backbone", "photos", "features"}
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Backbone:
    """A network for the chip whose result becomes features, and how pictures are prepared for it."""

    path: Path
    loaded: LoadedModel
    preprocessing: preprocessing.Preprocessing
    reader: dict[str, Any] | None  # entry of the IMAGEREADER layer, where the file has one
    chip: dict[str, Any]  # entry of the GTICNN layer

    @property
    def channels(self) -> int:
        """Features of a photograph."""
        return self.loaded.header.layers[-1].output_channels

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that decides about a feature but the photograph."""
        contract = json.dumps(self.preprocessing.entry(), sort_keys=True)
        return hashlib.sha256(self.loaded.dat + contract.encode()).digest()


def load_backbone(path: str | os.PathLike[str]) -> Backbone:
    """Return the network of a .MODEL, with or without host layers, or of a .dat.

    Raises FormatError for the file, and where its result is not one that host layers can take.
    """
    loaded = load_model(Path(path))
    last = loaded.header.layers[-1]
    size = last.image_size * (2 if len(loaded.header.layers) - 1 in loaded.upsampled else 1)
    size = size // 2 if last.pooling else size
    name = os.fspath(path)
    if loaded.ten_bit:
        raise ModelFileError(name, "has a ten-bit result, which no host layers take", expected="five bits", fix=_OTHER)
    if size != FC_READOUT_SIZE:
        raise ModelFileError(
            name,
            "has a result that the chip does not hand to host layers",
            expected=f"{FC_READOUT_SIZE}x{FC_READOUT_SIZE} after the last layer",
            received=f"{size}x{size}",
            fix=_OTHER,
        )
    header = loaded.container.header if loaded.container else {}
    entries = [layer.entry for layer in loaded.container.layers] if loaded.container else []
    reader = next((entry for entry in entries if entry.get("operation") == "IMAGEREADER"), None)
    chip = next((entry for entry in entries if entry.get("operation") == "GTICNN"), {})
    order = host_layers.reader_order(reader)
    contract = preprocessing.contract(header, name, loaded.size, loaded.planes, order)
    return Backbone(Path(path), loaded, contract, reader, chip)


_OTHER = "take a network that ends in 7x7, for example 14x14 pooled (gti info tells)"


class Computed(NamedTuple):
    """Features of those photographs that could be used."""

    paths: list[Path]
    values: npt.NDArray[np.float32]  # [photographs, channels], codes 0..31 averaged
    refused: list[GtiError]  # why others were left out
    new: int  # how many were not in the cache
    description: str  # what computed them, "" where nothing was to be done


def compute(
    backbone: Backbone,
    paths: Sequence[Path],
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
    *,
    settings: Settings | None = None,
    record: str | os.PathLike[str] | None = None,
) -> Computed:
    """Return the features of the image files `paths`; those of the file `cache` are taken from there and kept there.

    `progress`: wraps the iterable of new photographs; `settings`, `record`: as `GtiModel`. Raises
    FormatError for a `cache` that is another kind of file, DeviceError when no stick can be had.
    """
    known = {} if cache is None else read_cache(cache, backbone)
    refused: list[GtiError] = []
    digests: dict[Path, bytes] = {}
    for path in paths:
        try:
            digests[path] = hashlib.sha256(files.read_bytes(path, limit=MAX_FILE_BYTES)).digest()
        except FormatError as problem:
            refused.append(problem)
    missing = {digest for digest in digests.values() if digest not in known}
    description = ""
    if missing:
        read: list[bytes] = []

        def images() -> Iterator[npt.NDArray[np.uint8]]:
            for path, digest in digests.items():
                if digest not in missing or digest in read:  # a copy of another photograph is computed once
                    continue
                try:
                    image = backbone.preprocessing.load(path)
                except (ImageError, FormatError) as problem:
                    refused.append(problem)
                    continue
                read.append(digest)
                yield turned(image, backbone.reader)

        with open_stick_or_emulator(backbone.path, device, settings=settings, record=record) as model:
            description = model.device_description
            for number, codes in enumerate(progress(model.evaluate_many(images()), len(missing))):
                known[read[number]] = codes.mean(axis=(0, 1, 2), dtype=np.float32)
        if cache is not None and read:
            write_cache(cache, backbone, known)
        missing = set(read)
    used = [path for path, digest in digests.items() if digest in known]
    values = np.stack([known[digests[path]] for path in used]) if used else np.zeros((0, backbone.channels), np.float32)
    return Computed(used, values, refused, len(missing), description)


def turned(image: npt.NDArray[np.uint8], reader: Mapping[str, Any] | None) -> npt.NDArray[np.uint8]:
    """Return what the image reader of the file makes of an image in the order of its contract."""
    swaps = host_layers.reader_order(reader) == "RGB" and image.shape[2] == 3
    return np.ascontiguousarray(image[:, :, ::-1]) if swaps else image


def read_cache(path: str | os.PathLike[str], backbone: Backbone) -> dict[bytes, npt.NDArray[np.float32]]:
    """Return features by the SHA-256 of the photograph's file; none where the file is missing or of another backbone.

    Raises FormatError for a file that `write_cache` has not written.
    """
    name = os.fspath(path)
    if not Path(path).exists():
        return {}
    arrays = npy.parse_npz(files.read_bytes(path, limit=_MAX_CACHE_BYTES), name)
    photos, values = (arrays.get(key, np.zeros(0)) for key in ("photos", "features"))
    if (
        set(arrays) != _KEYS
        or arrays["backbone"].dtype != np.uint8
        or photos.dtype != np.uint8
        or values.dtype != np.float32
        or photos.shape != (len(photos), _DIGEST_BYTES)
        or values.ndim != 2
        or len(values) != len(photos)
        or not np.isfinite(values).all()
    ):
        raise FormatError(
            name, "holds no features", expected="a file that gti teach wrote", fix="name another --features"
        )
    if arrays["backbone"].tobytes() != backbone.digest or values.shape[1] != backbone.channels:
        return {}
    return {digest.tobytes(): value for digest, value in zip(photos, values, strict=True)}


def write_cache(
    path: str | os.PathLike[str], backbone: Backbone, features: Mapping[bytes, npt.NDArray[np.float32]]
) -> None:
    """Write features by the SHA-256 of the photograph's file. Raises UsageError where that is impossible."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "backbone": np.frombuffer(backbone.digest, np.uint8),
        "photos": np.stack([np.frombuffer(digest, np.uint8) for digest in features]),
        "features": np.stack(list(features.values())),
    }
    files.write_atomic(path, npy.npz_bytes(arrays))
