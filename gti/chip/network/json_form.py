"""dat.json <-> Network (docs/dat_format.md section 5); what it reads is examined by every rule of `rules`.

What the vendor's converter takes and cannot be misread (null where a key may be absent, 14.0 for 14) is taken with a
note.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from gti import files
from gti.chip.network.rules import (
    MAX_EXAMINED,
    Violation,
    major_path,
    violations,
    violations_of_file,
    violations_of_layers,
    violations_of_memory,
    violations_of_model,
    violations_of_ten_bit,
)
from gti.chip.network.types import MajorLayer, Network
from gti.errors import FormatError, NetworkError, listing, sentence

log = logging.getLogger(__name__)

T = TypeVar("T")


def check(network: Network, name: str = "network") -> None:
    """Raise NetworkError, naming `name` and every broken rule, unless `network` runs on the chip."""
    _raise_if(violations(network), name)


def load(path: str | os.PathLike[str]) -> Network:
    """Return the network of the dat.json `path`.

    Raises FormatError when the file cannot be read or is not JSON, NetworkError listing everything that is wrong.
    """
    return from_json(files.read_json(path), os.fspath(path))


def from_json(value: object, name: str, *, to_file: bool = False) -> Network:
    """Return the network of the JSON `value` of a dat.json; `name` is the file named in errors.

    Keys without effect on the file are kept in `extra`, notes are logged as warnings. `to_file`: what a .DAT can hold
    is enough, whatever the chip computes of it. Raises FormatError for JSON of another kind, NetworkError listing
    missing keys, wrong types and broken rules together.
    """
    refuse_other_files(value, name)
    network, found = examine(value)
    if to_file and all(violation.computed for violation in found):
        found = violations_of_file(network)
    _raise_if([violation for violation in found if not (to_file and violation.computed)], name)
    for note in network.notes:
        log.warning("%s: %s", name, note)
    return network


def refuse_other_files(value: object, name: str) -> None:
    """Raise FormatError where the JSON `value` of the file `name` is something else of this kit than a dat.json."""
    if not isinstance(value, dict):
        return
    layers = value.get("layer")
    kind = ""
    if isinstance(layers, list) and any(isinstance(layer, dict) and "operation" in layer for layer in layers):
        kind = "defines a .MODEL container"
    elif value.keys() & {"relu_caps", "relu_cap"}:
        kind = "holds calibrated caps"
    elif value and not value.keys() & {"layer", "model"}:
        kind = f"has the keys {', '.join(map(json.dumps, list(value)[:3]))}"
    if kind:
        other = re.sub(r"([._])model\.json$", r"\1dat.json", name)
        fix = f"take {other if other != name else 'nets/<chip>_<net>_dat.json'}"
        raise FormatError(name, f"{kind}, not a network of the chip", expected="a dat.json", fix=fix)


def examine(value: object) -> tuple[Network, list[Violation]]:
    """Return the network of the JSON `value` of a dat.json and all that is wrong with it, without raising.

    Where rules named `json-...` are broken, the network holds defaults for what could not be read.
    """
    found: list[Violation] = []
    notes: list[str] = []
    top = _Reader(value, "file", found, notes)
    entries = top.take("layer", list, [], required=True)
    models = top.take("model", list, [], required=True)
    if len(models) != 1 and "model" not in top.unread:
        found.append(Violation("model", "model-entries", '"model" must hold one object', 1, len(models), "keep one"))
    layers, unread = _layers(entries, found, notes)
    model = _Reader(models[0], "model", found, notes) if len(models) == 1 else _Reader({}, "model", [], [])
    network = Network(
        layers=layers,
        chip_type=model.take("ChipType", int, 2801, required=True),
        sampling_method=model.take("SamplingMethod", int, 0),
        activation_bit_mode=model.take("ActivationBitMode", int, 0),
        extra={"file": top.rest(), "model": model.rest("MajorLayerNumber")},
    )
    counted = model.take("MajorLayerNumber", int, len(entries), required=True)
    if counted != len(entries) and "layer" not in top.unread and "MajorLayerNumber" not in model.unread:
        found.append(
            Violation(
                "model",
                "major-layer-number",
                "MajorLayerNumber differs from the number of layers listed",
                len(entries),
                counted,
                f"set MajorLayerNumber to {len(entries)}",
            )
        )
    if "layer" not in top.unread:
        found.extend(violations_of_model(network))
    found.extend(violations_of_layers(layers, unread))
    if layers and not unread[-1]:
        found.extend(violations_of_ten_bit(network))
    if not found:
        found.extend(violations_of_memory(network))
    return replace(network, notes=tuple(notes)), found


def to_json(network: Network) -> dict[str, object]:
    """Return the dat.json value of `network`: `from_json` of it gives an equal network."""
    file_extra, model_extra = (network.extra.get(part, {}) for part in ("file", "model"))
    model: dict[str, object] = {
        "MajorLayerNumber": len(network.layers),
        "ChipType": network.chip_type,
        "SamplingMethod": network.sampling_method,
    }
    if network.activation_bit_mode:
        model["ActivationBitMode"] = network.activation_bit_mode
    if isinstance(model_extra, dict):
        model |= {key: value for key, value in model_extra.items() if key not in model}
    result: dict[str, object] = {
        "layer": [_layer_to_json(m, layer) for m, layer in enumerate(network.layers, 1)],
        "model": [model],
    }
    if isinstance(file_extra, dict):
        result |= {key: value for key, value in file_extra.items() if key not in result}
    return result


def _layer_to_json(major: int, layer: MajorLayer) -> dict[str, object]:
    result: dict[str, object] = {
        "major_layer": major,
        "image_size": layer.image_size,
        "input_channels": layer.input_channels,
        "output_channels": layer.output_channels,
        "sublayer_number": layer.sublayer_number,
        "scaling": list(layer.scaling),
    }
    if layer.one_coef:
        result["one_coef"] = list(layer.one_coef)
    if layer.shortcuts:
        result["resnet_shortcut_start_layers"] = list(layer.shortcuts)
    result |= {"learning": layer.learning, "last_layer_out": layer.last_layer_out, "pooling": layer.pooling}
    if layer.upsample_enable:
        result |= {"upsample_enable": True, "upsample_mode": layer.upsample_mode}
    result["coef_bits"] = layer.coef_bits
    if layer.in_address is not None:
        result["in_addr"] = layer.in_address
    if layer.out_address is not None:
        result["out_addr"] = layer.out_address
    return result | {key: value for key, value in layer.extra.items() if key not in result}


def _layers(
    entries: Sequence[object], found: list[Violation], notes: list[str]
) -> tuple[tuple[MajorLayer, ...], list[frozenset[str]]]:
    layers: list[MajorLayer] = []
    unread: list[frozenset[str]] = []
    for m, entry in enumerate(entries, 1):
        # Far beyond the limit only the count matters, which the rule "major-layers" judges.
        reader = _Reader(entry, major_path(m), *(([], []) if m > MAX_EXAMINED else (found, notes)))
        layers.append(_layer(reader, notes if m == 1 else []))
        unread.append(frozenset(reader.unread))
        if m > MAX_EXAMINED:
            layers.extend(layers[-1:] * (len(entries) - m))
            unread.extend(unread[-1:] * (len(entries) - m))
            break
    return tuple(layers), unread


def _layer(reader: _Reader, notes: list[str]) -> MajorLayer:
    number = reader.take("major_layer", int, 1, required=True)  # must exist; the order of the list is what counts
    if number != 1 and reader.given("input_channels").get("input_channels") in (1, 3):
        problem = "its major_layer is not 1, which crashes the vendor's converter with 1 or 3 planes"
        notes.append(sentence(major_path(1), problem, received=number, fix="write 1"))
    for flag in ("depth_enable", "ten_bits_enable"):
        reader.take(flag, bool, False)
    return MajorLayer(
        image_size=reader.take("image_size", int, 224, required=True),
        input_channels=reader.take("input_channels", int, 16, required=True),
        output_channels=reader.take("output_channels", int, 16, required=True),
        sublayer_number=reader.take("sublayer_number", int, 1, required=True),
        coef_bits=reader.take("coef_bits", int, 3, required=True),
        scaling=reader.take_integers("scaling", "scaling", required=True),
        pooling=reader.take("pooling", bool, False),
        learning=reader.take("learning", bool, False),
        last_layer_out=reader.take("last_layer_out", bool, False),
        upsample_enable=reader.take("upsample_enable", bool, False),
        upsample_mode=reader.take("upsample_mode", str, "repeat"),
        one_coef=reader.take_integers("one_coef", "one_coef"),
        shortcuts=reader.take_integers("resnet_shortcut_start_layers", "shortcuts"),
        in_address=reader.take("in_addr", int, None, field="in_address"),
        out_address=reader.take("out_addr", int, None, field="out_address"),
        extra=reader.rest("major_layer") | reader.given("depth_enable", "ten_bits_enable"),
    )


class _Reader:
    """Takes typed values out of one JSON object; what is missing or of a wrong type becomes a violation."""

    _NAMES = {int: "an integer", bool: "true or false", str: "a string", list: "a list", dict: "an object"}

    def __init__(self, value: object, layer: str, found: list[Violation], notes: list[str]) -> None:
        self._layer = layer
        self._found = found
        self._notes = notes
        self._values: dict[str, object] = {}
        self._taken: set[str] = set()
        self.unread: set[str] = set()  # fields without a usable value
        self._whole = isinstance(value, dict)
        if isinstance(value, dict):
            self._values = value
        else:
            self._wrong("is not a JSON object", "an object", value, "write { ... }")

    def take(self, key: str, kind: type[T], default: T, *, required: bool = False, field: str = "") -> T:
        """Return the value of `key`, or `default` where it is absent (with a violation if `required`) or unusable."""
        self._taken.add(key)
        if key not in self._values:
            if required:
                self.unread.add(field or key)
                if self._whole:
                    self._miss(key, kind)
            return default
        value = self._values[key]
        if value is None and not required:
            self._notes.append(f'{self._layer}: "{key}" is null, which is taken for leaving it out.')
            return default
        if kind is int:
            value = self._whole_number(key, value)
        if isinstance(value, kind) and (kind is not int or files.is_whole(value)):
            return value
        self.unread.add(field or key)
        self._wrong(f'"{key}" has the wrong type', self._NAMES[kind], value)
        return default

    def take_integers(self, key: str, field: str, *, required: bool = False) -> tuple[int, ...]:
        """Return the integers of the list `key`; absent and optional: no integers."""
        items = [self._whole_number(key, item) for item in self.take(key, list, [], required=required, field=field)]
        integers = [item for item in items if files.is_whole(item)]
        if len(integers) < len(items):
            item = next(item for item in items if not files.is_whole(item))
            self.unread.add(field)
            self._wrong(f'"{key}" has the wrong type', "a list of integers", item)
            return ()
        return tuple(integers)

    def _whole_number(self, key: str, value: object) -> object:
        """Return the integer that a number such as 14.0 means, with a note; any other value as it is."""
        if not isinstance(value, float) or not value.is_integer() or abs(value) > 2**53:
            return value
        self._notes.append(f'{self._layer}: "{key}" is {value!r}, which is taken for {int(value)}.')
        return int(value)

    def given(self, *keys: str) -> dict[str, object]:
        """Return those of `keys` that are present, with their values."""
        return {key: self._values[key] for key in keys if key in self._values}

    def rest(self, *but: str) -> dict[str, object]:
        """Return the entries that nobody took."""
        return {k: v for k, v in self._values.items() if k not in self._taken and k not in but}

    def _miss(self, key: str, kind: type) -> None:
        self._found.append(
            Violation(
                self._layer, "json-key", f'the key "{key}" is missing', self._NAMES[kind], "nothing", f'add "{key}"'
            )
        )

    def _wrong(self, problem: str, expected: str, value: object, fix: str = "") -> None:
        self._found.append(
            Violation(self._layer, "json-type", problem, expected, _kind(value), fix or f"write {expected}")
        )


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    shown = repr(value) if isinstance(value, str) else str(value).lower()
    return f"{shown[:60]} ({type(value).__name__})"


def _raise_if(found: Sequence[Violation], name: str) -> None:
    if found:
        raise NetworkError(listing(name, found), violations=found)
