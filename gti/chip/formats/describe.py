"""What is in a .DAT or .MODEL file, as lines of text; filter rows are looked at, not decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from gti.chip import spec
from gti.chip.formats import blobs, dat, dat_header, dat_rows, model_file
from gti.chip.network import file_size
from gti.chip.network.memory_plan import layer_addresses
from gti.chip.network.rules import uncomputable
from gti.chip.network.types import Network
from gti.errors import DatError, ModelFileError, printable

_COLUMNS = ("sublayer", "size", "in", "out", "bits", "shift", "gains", "rows", "addr in", "addr out", "then")


def describe_dat(data: bytes | memoryview, name: str, ten_bit: int | None = None) -> list[str]:
    """Return a summary and a table with a line for each sublayer of the .DAT file `data`. Raises DatError.

    `ten_bit`: `activation_bit_mode` of `dat.decode`. What is a guess is said, and what no emulator can compute.
    """
    network = dat.read_network(data, activation_bit_mode=ten_bit, name=name)
    rows = file_size.row_count(network)
    end = spec.HEADER_BYTES + spec.ROW_BYTES * rows
    padding = np.frombuffer(data, np.uint8, offset=end)
    words = dat.read_header(data, name)
    size, _, channels = network.input_shape
    out_channels, out_size, _ = network.output_shape
    tool = "current converter" if words[1] >> 10 & 3 == 3 else "older tool"
    return [
        f"{printable(name)}: .DAT of the 2801, {len(data)} bytes, format of the {tool}",
        f"input {size} x {size} x {channels}, output {out_size} x {out_size} x {out_channels}"
        + (", ten-bit codes" if network.activation_bit_mode == 1 else ", codes 0..31"),
        f"{len(network.layers)} major layers, {len(network.convolutions)} convolutions, {rows} filter rows; "
        f"{'top-left' if network.sampling_method == 1 else 'max'} pooling",
        f"padding {padding.size} bytes" + (", not all zeros" if padding.any() else ""),
        f"header words {' '.join(f'{word:08x}' for word in words)}",
        *([] if dat_header.parse(words).input_code else [f"{channels} planes guessed: input code 0 tells no count"]),
        *(f"guess: {guess}" for guess in dat.guesses(data, activation_bit_mode=ten_bit, name=name)),
        *(f"what the chip computes of it is unknown: {problem}" for problem in uncomputable(network)),
        "",
        *_table(_COLUMNS, _sublayers(network, data)),
    ]


def _sublayers(network: Network, data: bytes | memoryview) -> list[tuple[str, ...]]:
    addresses = layer_addresses(network)
    count = file_size.row_count(network)
    rows = np.frombuffer(data, "<u4", count * spec.ROW_BYTES // 4, spec.HEADER_BYTES)
    rows = rows.reshape(count, spec.ENGINES, dat_rows.LINE_WORDS)
    lines: list[tuple[str, ...]] = []
    first = 0
    for conv in network.convolutions:
        layer = network.layers[conv.major - 1]
        own = file_size.rows_of(conv.output_channels, conv.input_channels, conv.coef_bits)
        low, high = dat_rows.scale_range(rows[first : first + own], conv.coef_bits)
        then = ["upsampled input"] if conv.upsampled else []
        then += ["pooling"] if conv.pooled else []
        then += ["1x1"] if conv.one_coef else []
        then += ["learning"] if layer.learning else []
        then += ["last_layer_out"] if layer.last_layer_out and conv.sub == layer.sublayer_number else []
        then += [f"shortcut from {conv.sub}"] if conv.sub in layer.shortcuts else []
        first += own
        if layer.extra_pass and conv.sub == layer.sublayer_number:
            first += file_size.groups(layer.output_channels)
            then += ["identity pass"]
        at = tuple(str(value) for value in addresses[conv.major - 1]) if conv.sub == 1 else ("", "")
        numbers = (conv.size, conv.input_channels, conv.output_channels, conv.coef_bits, conv.shift)
        gains = f"{low}..{high}" if high else "all zero"
        lines.append(
            (f"{conv.major}.{conv.sub} {conv.name}", *map(str, numbers), gains, str(own), *at, ", ".join(then))
        )
    return lines


def describe_model(data: bytes, name: str, ten_bit: int | None = None) -> list[str]:
    """Return a summary of the container `data` and of the networks inside it. Raises ModelFileError.

    `ten_bit`: as `describe_dat`, of the last network.
    """
    model = model_file.parse(data, name)
    text, base = len(model.header_text), model.base
    lines = [f"{printable(name)}: .MODEL, {model.length} bytes, header {text} bytes, data from {base} on"]
    for key, value in model.header.items():
        if key != "layer":
            lines.append(f"{printable(key)}: {printable(json.dumps(value, ensure_ascii=False))}")
    table = []
    for i, (entry, blob) in enumerate(model.layers, 1):
        place = (str(entry["data offset"]), str(len(blob))) if blob is not None else ("", "")
        shape = " x ".join(str(entry.get(f"output {key}", "?")) for key in ("width", "height", "channels"))
        words = (str(entry.get("operation", "?")), str(entry.get("name", "")), shape)
        table.append((str(i), *map(printable, words), *place, _content(model.layers[i - 1])))
    lines += ["", *_table(("layer", "operation", "name", "output", "offset", "bytes", "content"), table)]
    chips = [i for i, layer in enumerate(model.layers) if layer.operation == "GTICNN" and layer.blob is not None]
    for i in chips:
        layer = model.layers[i]
        if layer.blob is not None:
            path = f"{name}, {model_file.layer_path(i, layer.entry)}"
            try:
                lines += ["", *describe_dat(layer.blob, path, ten_bit if i == chips[-1] else None)]
            except DatError as problem:
                lines += ["", str(problem)]
    return lines


def _content(layer: model_file.ModelLayer) -> str:
    """Return a few words on a layer: its settings and what its data are."""
    words = [
        f"{key} {printable(str(layer.entry[key]))}"
        for key in ("mode", "activation", "output scaledown", "input format", "output format")
        if key in layer.entry
    ]
    try:
        if layer.operation == "FC" and layer.blob is not None:
            inputs, outputs = blobs.fc_sizes(layer.blob)
            words.insert(0, f"{inputs} -> {outputs}")
        elif layer.operation == "LABEL" and layer.blob is not None:
            words.insert(0, f"{len(blobs.parse_labels(layer.blob))} labels")
    except ModelFileError as problem:
        words.insert(0, f"damaged ({problem})")
    return ", ".join(words)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: numbers to the right, words to the left."""
    columns = list(zip(head, *body, strict=True))
    lines = []
    for row in [head, *body]:
        cells = []
        for cell, column in zip(row, columns, strict=True):
            width = max(map(len, column))
            numeric = all(value.isdigit() or not value for value in column[1:])
            cells.append(cell.rjust(width) if numeric else cell.ljust(width))
        lines.append("  ".join(cells).rstrip())
    return lines
