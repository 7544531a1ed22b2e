"""A .MODEL or .DAT as one ONNX file: input, chips in a row, host layers, outputs and where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from gti import __version__
from gti.chip.emulator.emulator import problems
from gti.chip.export import onnx_graph, onnx_host
from gti.chip.export.onnx_graph import Graph
from gti.chip.host import unknown
from gti.chip.loaded_model import LoadedModel, load_chips
from gti.chip.network.delivered import delivered
from gti.chip.runtime.engine_model import decoded_chips
from gti.chip.wire.registers import OF_EVERY_CHIP, Mode, parse_mode
from gti.errors import NetworkError, UsageError

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12: ConvInteger, MaxPool of uint8, Clip of doubles
MAX_BYTES = 2**31 - 1  # of a protocol buffer
IMAGE = "image"


class Exported(NamedTuple):
    """What an export made."""

    model: ModelProto
    remarks: list[str]  # for the user: what the file says and ONNX does not


def export(path: str | Path, *, all_outputs: bool = False) -> Exported:
    """Return the ONNX model of a .MODEL or .DAT; `all_outputs`: the map of every sublayer is an output.

    Otherwise its outputs are the maps that the file's read-out mode delivers; with host layers, also the probabilities,
    the order of classes and the labels. Raises FormatError for the file, NetworkError where the chip's arithmetic is
    unknown.
    """
    parts = load_chips(Path(path))
    mode = parse_mode(parts[0].mode)
    graph = Graph()
    remarks: list[str] = []
    size, planes = parts[0].size, parts[0].planes
    full, order = _host(parts, remarks)
    image = onnx_host.add_reversal(graph, IMAGE, planes) if order == "RGB" else IMAGE
    outputs: list[ValueInfoProto] = []
    codes = onnx_graph.five_bit(graph, image, "codes")
    found = decoded_chips(parts, str(path))
    for number, one in enumerate(found, 1):
        violations = problems(one.network, one.weights)
        if violations:
            raise NetworkError("\n".join(violations), violations=violations)
        prefix = f"chip{number}/" if len(found) > 1 else ""
        # The next chip takes codes << 3 as pixels, and its five-bit transform gives the codes back.
        maps, codes = onnx_graph.add_network(graph, codes, one.network, one.weights, prefix)
        if mode == Mode.FC:
            chosen = [codes]
        else:
            chosen = [maps[conv] for conv in delivered(one.network, mode)]
        names = list(dict.fromkeys([*(maps.values() if all_outputs else []), *chosen]))
        if number == len(found) or all_outputs or mode in OF_EVERY_CHIP:
            outputs += [graph.shapes[name] for name in names]
    if full is not None:
        ten_bit = found[0].network.activation_bit_mode == 1
        if ten_bit:
            remarks.append("host layers behind a ten-bit output are left out")
        else:
            outputs += onnx_host.add_host(graph, chosen, full, mode)
    pixels = helper.make_tensor_value_info(
        IMAGE, TensorProto.UINT8, [onnx_graph.BATCH, planes, size, size], f"8-bit pixels, planes {order}"
    )
    return Exported(_model(graph, pixels, outputs, parts=parts, path=str(path), mode=mode), remarks)


def _host(parts: Sequence[LoadedModel], remarks: list[str]) -> tuple[Any, str]:
    """Return (layers from the chip's on, or None without host layers; channel order of the image)."""
    container = parts[0].container
    if container is None or container.first("LABEL") is None:
        return None, "BGR"
    host = parts[0].host_layers()  # checks them all
    if unknown.KEY in container.header:
        remarks.append(f'its rule for "{unknown.KEY}" images is left out: the outputs are the most probable classes')
    kinds = [layer.operation for layer in container.layers]
    return container.layers[kinds.index("GTICNN") :], host.input_order


def _model(
    graph: Graph,
    pixels: ValueInfoProto,
    outputs: Sequence[ValueInfoProto],
    *,
    parts: Sequence[LoadedModel],
    path: str,
    mode: Mode,
) -> ModelProto:
    header = parts[0].container.header if parts[0].container is not None else {}
    name = header.get("name") if isinstance(header.get("name"), str) else ""
    listed = {value.name for value in outputs}
    inner = [value for key, value in graph.shapes.items() if key not in listed]
    result = helper.make_model(
        helper.make_graph(
            graph.nodes, name or Path(path).stem, [pixels], list(outputs), list(graph.constants.values()),
            doc_string="Network of the GTI 2801 in exact integers (docs/export.md of gti-mdk)", value_info=inner,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gti-mdk",
        producer_version=__version__,
    )  # fmt: skip
    about = {"kit version": __version__, "read-out mode": mode.name.lower()}
    for number, part in enumerate(parts, 1):
        about["SHA-256 of the .DAT" + (f" of chip {number}" if len(parts) > 1 else "")] = hashlib.sha256(
            part.dat
        ).hexdigest()
    helper.set_model_props(result, about)
    if result.ByteSize() > MAX_BYTES:
        raise UsageError(
            path, "is too large for one ONNX file", expected="2 GiB", received=f"{result.ByteSize()} bytes"
        )
    return result
