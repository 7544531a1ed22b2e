"""A bare .DAT -> a .MODEL of the chip's layers alone, which says how pictures are prepared and what answer is right."""

from __future__ import annotations

import json
import os
from typing import Any

from gti.chip.formats import dat
from gti.chip.formats.model_file import compose
from gti.chip.formats.model_folder import is_container
from gti.chip.host import host_layers, preprocessing
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.runtime import known_answer
from gti.chip.spec import FC_SHIFT
from gti.chip.wire.protocol import Mode, parse_mode
from gti.errors import UsageError


def layer_entry(name: str, operation: str, size: int, channels: int) -> dict[str, Any]:
    """Return the part of a layer's header entry that all layers share: names and the shape of its result."""
    shape = {"output width": size, "output height": size, "output channels": channels}
    return {"name": name, "operation": operation, "data file": None, "data offset": None, **shape}


def reader_entry(size: int, planes: int) -> dict[str, Any]:
    """Return the entry of an image reader that passes planes on as they are, B, G, R."""
    formats = {"input format": host_layers.PLANES_BGR, "output format": host_layers.PLANES_BGR}
    return layer_entry("reader", "IMAGEREADER", size, planes) | formats


def wrap(
    data: bytes,
    name: str,
    source: str | os.PathLike[str],
    *,
    crop: float | None = None,
    mode: str | int = "fc",
) -> bytes:
    """Return the .MODEL `name` around the .DAT `data` of the file `source`.

    `crop`: share of the shorter side that is the side of the square cut out of the middle, None for the whole picture;
    `mode`: read-out mode. The planes are B, G, R, as the chip's always are here. Raises FormatError for the data,
    UsageError for a .MODEL.
    """
    where = os.fspath(source)
    if is_container(data, where):
        raise UsageError(where, "is a .MODEL already", expected="a bare .DAT")
    found = dat.decode(data, name=where)
    network = found.network
    size, _, planes = network.input_shape
    contract = Preprocessing(size, planes, "BGR", crop)
    last, chosen = network.layers[-1], parse_mode(mode)
    result = last.working_size // 2 if last.pooling else last.working_size
    chip = layer_entry("chip", "GTICNN", result, last.output_channels) | {
        "data file": "chip.dat",
        "data offset": 0,
        "mode": int(chosen),
        "output scaledown": FC_SHIFT if chosen == Mode.FC else 0,
        "output type": "float",
        "device": {"chip": "2801", "name": None, "type": 0, "emmc delay": 12000},
        known_answer.KEY: known_answer.make(network, found.weights, data).to_entry(),
    }
    layers = [reader_entry(size, planes), chip]
    header = {"name": name, "layer": layers, preprocessing.KEY: contract.entry()}
    return compose(json.dumps(header, ensure_ascii=False).encode(), {"chip.dat": data})
