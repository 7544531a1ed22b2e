"""The files of a conversion: .DAT, .MODEL and the net's JSON pair, for the scripts that convert.

A .MODEL holds the chip's part alone (convert_to_chip.py), or with a `Host` the layers behind it and the labels too
(addon/convert_full.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gti import files, names, nets
from gti.chip import spec
from gti.chip.formats import model_file, splitting, upsampling
from gti.chip.formats.blobs import encode_labels
from gti.chip.host import preprocessing
from gti.chip.host.preprocessing import Preprocessing
from gti.chip.network.types import Network
from gti.chip.runtime import known_answer
from gti.chip.wire import registers
from gti.converter import Conversion
from gti.errors import FormatError, sentence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Host:
    """What a full .MODEL computes behind the chip."""

    layers: Sequence[tuple[dict[str, Any], bytes | None]]  # entries of the .MODEL, in order, with their data
    labels: Sequence[str]  # names of all classes, background first
    top: int  # labels in a result


def write_files(
    conversion: Conversion,
    *,
    net: str,
    nets_dir: str | Path,
    output_dir: str | Path,
    stage: str = "",
    parent: str = "",
    num_chips: int | None = None,
    preparation: Preprocessing | None = None,
    host: Host | None = None,
    update_templates: bool = False,
) -> tuple[Path, ...]:
    """Write `<chip>_<net>.dat` and `.model`, and what they hold as `.dat.json` and `.model.json`, to `output_dir`.

    Returns the paths of the first two. For several chips in a row (`num_chips`; None: "ChipNumber" of the JSON) there
    is a `<chip>_<net>_chip<n>.dat` of each in place of the first, and all are in the .model, whose path is the last
    that is returned. With a `host` there is one chip, the .model is called `<chip>_<net>_full.model` and comes with a
    `<chip>_<net>_<layer>.bin` of each fully connected layer instead of the JSON pair.

    The JSON templates come from `nets_dir` and stay as they are, unless `update_templates` writes the pair over them
    too. In the pair "scaling" and the image sizes of the first, "data file" of the chip's layer and the sizes in the
    second are set, everything else is kept. The .MODEL carries a known answer, which names
    the `stage` and the digest `parent` of the checkpoint, and the `preparation` of images. Each file is replaced as a
    whole, after all of them could be made. Raises FormatError for templates that cannot serve, UsageError where the
    folder cannot be written or so many chips cannot share the network, and NetworkError when a part of it breaks a rule
    of the chip.
    """
    stem = names.file_stem(net)
    model_json, on_chip = read_templates(conversion.network, net=net, nets_dir=nets_dir)
    chips = 1 if host else num_chips or splitting.chip_number(conversion.network)
    parts = splitting.split(conversion.network, conversion.weights, chips)
    dat_names = [f"{stem}.dat"] if chips == 1 else [f"{stem}_chip{number}.dat" for number in range(1, chips + 1)]
    data = dict(zip(dat_names, (part.dat() for part in parts), strict=True))
    on_chip["data file"] = dat_names[-1]
    on_chip.pop("data size", None)
    if on_chip.get("data offset"):
        on_chip["data offset"] = 0  # the whole file
    entries = [*splitting.insert_inner_layers(model_json, on_chip, parts, dat_names), on_chip]
    pair = {}
    if not host:
        pair[nets.dat_json(net, nets_dir)] = _dat_json(conversion.network, net, nets_dir, num_chips)
    for entry, part, name in zip(entries, parts, dat_names, strict=True):
        answer = known_answer.make(part.network, part.weights, data[name], stage=stage, parent=parent)
        entry[known_answer.KEY] = answer.to_entry()
        upsampling.put(part.network, entry)
    if upsampling.lost(conversion.network):
        log.warning("%s: %s", ", ".join(dat_names), upsampling.lost(conversion.network))
    if preparation is not None:
        model_json[preprocessing.KEY] = preparation.entry()
    written = dict(data)
    if host:
        # Host layers take codes 0..31 of the FC read-out, whatever the template says about other uses.
        on_chip |= {"mode": int(registers.Mode.FC), "output scaledown": spec.FC_SHIFT, "output type": "float"}
        blobs, labels = _append_host(model_json, host, stem)
        data |= blobs | labels
        written |= blobs
    model_name = f"{stem}_full.model" if host else f"{stem}.model"
    if not host:
        pair[nets.model_json(net, nets_dir)] = files.json_bytes(model_json)
    written |= {model_name: model_file.compose(files.json_bytes(model_json), data)}
    for name, content in written.items():
        files.write_atomic(Path(output_dir) / name, content)
    for path, content in pair.items():
        files.write_atomic(filled_copy(path, output_dir), content)
        if update_templates:
            files.write_atomic(path, content)
    return tuple(Path(output_dir) / name for name in written)


def filled_copy(template: Path, output_dir: str | Path) -> Path:
    """Return where conversion writes a template with what it found: `2801_digits.dat.json` of `2801_digits_dat.json`.

    The name is that of the file that it describes, so that no template is overwritten, wherever the files go.
    """
    stem, _, kind = template.stem.rpartition("_")
    return Path(output_dir) / f"{stem}.{kind}.json"


def _dat_json(network: Network, net: str, nets_dir: str | Path, num_chips: int | None) -> bytes:
    # The dat.json with what conversion knows.
    value = files.read_json(nets.dat_json(net, nets_dir))
    for entry, layer in zip(value["layer"], network.layers, strict=True):
        entry["scaling"], entry["image_size"] = list(layer.scaling), layer.image_size
    if num_chips:
        value["model"][0]["ChipNumber"] = num_chips
    return files.json_bytes(value)


def _append_host(model_json: dict[str, Any], host: Host, stem: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    # Appends the host's layers to the JSON; returns the data of the layers and the label file, by name.
    blobs = {}
    for entry, blob in host.layers:
        if blob is not None:
            entry["data file"], entry["data offset"] = f"{stem}_{entry['name']}.bin", 0
            blobs[entry["data file"]] = blob
        model_json["layer"].append(entry)
    labels = f"{stem}_labels.txt"
    count = len(host.labels)
    model_json["layer"].append(host_entry("softmax", "SOFTMAX", count))
    last = host_entry("label", "LABEL", min(host.top, count)) | {"data file": labels, "data offset": 0}
    model_json["layer"].append(last)
    # The line number is the label: the numbers of the label file's own form are left out.
    return blobs, {labels: encode_labels(host.labels)}


def host_entry(name: str, operation: str, channels: int) -> dict[str, Any]:
    """Return the entry of a host layer in a .MODEL, whose result is `channels` values."""
    shape = {"output width": 1, "output height": 1, "output channels": channels}
    return {"name": name, "operation": operation, "data file": None, "data offset": None, **shape}


def preparation(network: Network, data_dir: str | os.PathLike[str], trained: float | None = None) -> Preprocessing:
    """Return how images become the input of `network`: cropped as it was `trained`, else as `data_dir` says.

    Raises DataError for a `pipeline.json` that is none.
    """
    from gti.data_utils import read_pipeline

    first = network.layers[0]
    if trained is not None:
        return Preprocessing(first.image_size, first.input_channels, "BGR", trained)
    fraction = read_pipeline(Path(data_dir) / "val").crop_fraction
    if not Path(data_dir).is_dir():
        log.warning(
            "%s: no such data set, so images are taken to be cropped to %g (see --data_dir)", data_dir, fraction
        )
    return Preprocessing(first.image_size, first.input_channels, "BGR", fraction)


def read_templates(network: Network, *, net: str, nets_dir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model JSON of a net for one chip, its chip layer), with the sizes that they have for `network`.

    What the network tells and the JSON leaves out is filled in. Raises FormatError where there is not one GTICNN layer,
    its mode or device is none of the chip's, sizes in it contradict the network, or another layer has data.
    """
    path = nets.model_json(net, nets_dir)
    model_json = files.read_json(path)
    splitting.remove_inner_layers(model_json)
    on_chip = chip_layer(model_json, str(path))
    for entry in model_json["layer"]:
        if entry is not on_chip and entry.get("data file") is not None:
            raise FormatError(
                f"{path}, layer {entry.get('name')}",
                "has data, which conversion writes for the chip alone",
                expected='"data file": null',
                received=entry["data file"],
                fix="leave the layer out: addon/convert_full.py adds the host's layers with their data",
            )
    # Another image size scales every map by the same factor.
    made_for = files.read_json(nets.dat_json(net, nets_dir))["layer"][0]["image_size"]
    for entry in model_json["layer"]:
        for key in ("output width", "output height"):
            if entry.get("operation") in {"IMAGEREADER", "GTICNN"} and isinstance(entry.get(key), int):
                entry[key] = entry[key] * network.layers[0].image_size // int(made_for)
    for entry in model_json["layer"]:
        if entry.get("operation") == "IMAGEREADER":
            _fit(entry, network.input_shape[:2], network.input_shape[2], (), str(path))
            if network.input_shape[2] == 3:
                entry.setdefault("input format", "CS_BGR24_PLANAR")
                entry.setdefault("output format", "CS_BGR24_PLANAR")
    channels, *size = network.output_shape
    # The read-outs of maps deliver the last layer before its pooling.
    _fit(on_chip, tuple(size), channels, (network.layers[-1].working_size,), str(path))
    return model_json, on_chip


def _fit(entry: dict[str, Any], size: tuple[int, ...], channels: int, or_size: tuple[int, ...], name: str) -> None:
    # Fills in the sizes that a layer of a model JSON leaves out; those that it has must be the network's.
    for key, value in (("output height", size[0]), ("output width", size[1]), ("output channels", channels)):
        given = entry.get(key)
        if given is None:
            entry[key] = value
        elif given != value and not (key != "output channels" and given in or_size):
            raise FormatError(
                f"{name}, layer {entry.get('name')}",
                f'its "{key}" contradicts the network of the dat.json',
                expected=value,
                received=given,
                fix=f"write {value}, or leave the key out: conversion fills it in",
            )


def fc_readout_problem(network: Network, net: str) -> str:
    """Return the sentence that says why host layers cannot follow `network` on a stick, or ""."""
    _, height, width = network.output_shape
    if height == width == spec.FC_READOUT_SIZE:
        return ""
    return sentence(
        f"net {net}",
        "has a result that the chip does not hand to host layers",
        expected=f"{spec.FC_READOUT_SIZE}x{spec.FC_READOUT_SIZE} after the last layer",
        received=f"{height}x{width}",
        fix="choose another --image_size or pooling; gti run --mode reads the maps of such a network",
    )


def chip_layer(model_json: Any, name: str) -> dict[str, Any]:
    """Return the one GTICNN layer of a model JSON; `name` is its file.

    Raises FormatError where there is not one, or where its mode is none of the chip's.
    """
    entries = model_json.get("layer") if isinstance(model_json, dict) else None
    layers = entries if isinstance(entries, list) else []
    for number, layer in enumerate(layers, 1):
        if not isinstance(layer, dict) or not isinstance(layer.get("operation"), str | None):
            raise FormatError(
                f"{name}, layer {number}", "is none", expected='an object with its "operation"', received=layer
            )
    found = [layer for layer in layers if layer.get("operation") == "GTICNN"]
    if len(found) != 1:
        raise FormatError(
            name,
            "does not name the chip's part",
            expected="one GTICNN layer",
            received=len(found),
            fix="leave one layer with that operation in the file",
        )
    device = found[0].get("device")
    chip = device.get("chip") if isinstance(device, dict) else None
    if chip is not None and str(chip) != spec.CHIP:
        raise FormatError(
            f"{name}, layer {found[0].get('name')}",
            'its "device" is another chip',
            expected=spec.CHIP,
            received=chip,
            fix="write that, or leave the key out",
        )
    mode = found[0].get("mode", 0)
    if not files.is_whole(mode) or not 0 <= mode <= registers.LARGEST_MODE:
        raise FormatError(
            f"{name}, layer {found[0].get('name')}",
            "has an unknown mode",
            expected=f"a number 0..{registers.LARGEST_MODE}",
            received=mode,
            fix="write 0, which reads the result of the last layer",
        )
    return found[0]
