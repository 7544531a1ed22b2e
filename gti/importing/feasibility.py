"""Does a network fit the chip, what would have to change, and what does it cost? The study behind scripts/check.py."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gti import files
from gti.chip import spec
from gti.chip.network import budget, nearest
from gti.chip.network import json_form as networks
from gti.chip.network.budget import Budget, HostLayer
from gti.chip.network.nearest import Change
from gti.chip.network.rules import Violation
from gti.chip.network.types import Network
from gti.errors import NetworkError, printable
from gti.importing import advice, architecture, templates
from gti.importing.architecture import Architecture

log = logging.getLogger(__name__)

WORD_BYTES = {"FT601": 4, "FT600": 2}
IMAGENET_CLASSES = 1001  # with background
# Keys of a study as JSON.
_OF_CONVOLUTION = ("name", "size", "input_channels", "output_channels", "coef_bits", "pooled")
_OF_SUBLAYER = ("macs", "rows", "in_address", "out_address", "in_units", "out_units")
_OF_HOST_LAYER = ("name", "inputs", "outputs", "macs", "file_bytes")


@dataclass(frozen=True)
class Study:
    """What is known of a network before training; `budget` is of the nearest legal network where it does not fit."""

    name: str
    violations: tuple[Violation, ...]
    changes: tuple[Change, ...]  # that lead to the nearest legal network
    budget: Budget
    host: tuple[HostLayer, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the network runs on the chip as it is."""
        return not self.violations


def of_json(path: str | os.PathLike[str], *, units: Sequence[int] | None = None) -> Study:
    """Return the study of a dat.json; `units` are the outputs of the host's fully connected layers.

    Raises FormatError for a file that is not JSON, NetworkError for one that does not hold a network.
    """
    name = os.fspath(path)
    value = files.read_json(path)
    networks.refuse_other_files(value, name)
    network, violations = networks.examine(value)
    if not network.layers or any(violation.rule.startswith(("json-", "model-entries")) for violation in violations):
        networks.from_json(value, name)
        raise NetworkError(f"{printable(name)}: holds no layers.")
    for note in network.notes:
        log.warning("%s: %s", name, note)
    return study(network, name, violations=violations, units=units)


def of_model_file(
    path: str | os.PathLike[str],
    *,
    coef_bits: Sequence[int] = (3,),
    units: Sequence[int] | None = None,
    image_size: int | None = None,
) -> Study:
    """Return the study of a model file, as import_model.py reads it; no arrays are read. Raises FormatError."""
    model = architecture.load(path, coef_bits=coef_bits, image_size=image_size, arrays=False)
    result = study(model.network, os.fspath(path), violations=templates.problems(model), units=units)
    notes = [f"{note}." for note in model.notes]
    if model.uncounted:
        names = ", ".join(printable(name) for name in model.uncounted)
        notes.append(
            f"Behind the last chip layer, the host computes {names}: not on the chip, and in none of the figures."
        )
    notes += [f"import_model.py cannot write the host's part: {reason}" for reason in advice.lines(model.host_problems)]
    result = replace(result, notes=(*result.notes, *notes))
    return replace(result, host=_host_of(model, result.budget.network)) if units is None else result


def _host_of(model: Architecture, legal: Network) -> tuple[HostLayer, ...]:
    """Return the host's layers of a model behind the nearest legal network, whose result may be of another size."""
    first, *others = model.host or (None,)
    if first is None or not first.inputs:
        return model.host
    axes = 3 if any(step.kind == "ChipFlatten" for step in model.steps) else 1  # a global pooling leaves the channels
    before, after = (math.prod(network.output_shape[:axes]) for network in (model.network, legal))
    return (replace(first, inputs=first.inputs * after // before), *others)


def study(network: Network, name: str, *, violations: Sequence[Violation], units: Sequence[int] | None = None) -> Study:
    """Return the study of `network`, whose `violations` are known."""
    legal, changes = nearest.nearest(network)
    return Study(
        name=name,
        violations=tuple(violations),
        changes=changes,
        budget=budget.budget(legal),
        host=budget.host_layers(legal, units or ()),
        notes=tuple(_notes(legal)),
    )


def with_host_of_net(result: Study, net: str, classes: int | None = None, nets_dir: str | Path | None = None) -> Study:
    """Return the study with the host layers of a net of the kit; without them where TensorFlow is not installed.

    `classes` None: as many as train.py would take from the label file of `data/<net>`, else 1001 and a note that says
    so. Raises DataError for a damaged label file, UsageError for a net that is not there.
    """
    from gti.quiet import import_tensorflow

    try:
        import_tensorflow()
    except ImportError:
        return replace(result, notes=(*result.notes, "TensorFlow is not installed: the host layers are left out."))
    import keras

    from gti.data.labels import labels_of
    from gti.layers import HostDense
    from gti.model import base

    if classes is None:
        labels = labels_of(Path("data") / net / "train")
        classes = len(labels) if labels else IMAGENET_CLASSES
        if not labels:
            note = f"No label file of data/{net} tells the number of classes: {classes} are assumed, --classes sets it."
            result = replace(result, notes=(*result.notes, note))
    channels, height, width = result.budget.network.output_shape
    # Shapes alone: the weights of VGG16's first such layer would take 400 MB.
    with keras.StatelessScope(initialize_variables=False):
        image = keras.Input((height, width, channels))
        model = keras.Model(image, base.net_module(net, nets_dir).host_layers(image, classes=classes))
    host = [
        HostLayer(layer.name, *(int(n) for n in layer.kernel.shape))
        for layer in model.layers
        if isinstance(layer, HostDense)
    ]
    return replace(result, host=tuple(host))


def _notes(network: Network) -> list[str]:
    size = network.output_shape[1]
    notes = []
    if size != spec.FC_READOUT_SIZE:
        notes.append(
            f"The result is {size}x{size}: FC read-out (mode 0), which chip_infer.py classifies with, needs 7x7. "
            "Pool down to 7x7, or read the maps before the last pooling with gti run --mode single. "
            "The figures are those of such a read-out."
        )
    if any(layer.upsample_enable for layer in network.layers):
        notes.append("How the chip fills pixels when it doubles an image is not confirmed on silicon.")
    if network.activation_bit_mode == 1:
        notes.append("No layout of ten-bit results on the wire is known: a real stick refuses them.")
    if any(layer.shortcuts for layer in network.layers):
        notes.append("What the chip computes for shortcuts is not known: the emulator refuses them.")
    if any(any(layer.one_coef) for layer in network.layers):
        notes.append(
            "What the chip computes for one_coef is not known: training refuses it, the emulator takes weights in the "
            "centre alone. A 3x3 filter with nothing but its centre does the same."
        )
    return notes


def to_json(result: Study) -> dict[str, Any]:
    """Return the study as a JSON value."""
    cost = result.budget
    return {
        "name": result.name,
        "fits": result.fits,
        "violations": [
            {"layer": v.layer, "rule": v.rule, "sentence": str(v), "alternative": v.fix} for v in result.violations
        ],
        "changes": [{"major": c.major, "key": c.key, "received": c.received, "legal": c.legal} for c in result.changes],
        "network": networks.to_json(cost.network),
        "sublayers": [_values(s.convolution, _OF_CONVOLUTION) | _values(s, _OF_SUBLAYER) for s in cost.sublayers],
        "macs": cost.macs,
        "rows": cost.rows,
        "file_bytes": cost.file_bytes,
        "memory_units": cost.peak_units,
        "memory_units_available": spec.MEMORY_UNITS,
        "words": {"load": cost.load_words, "frame": cost.frame_words, "result": cost.result_words},
        "frame_rate_ceilings": {f"chip at {key}": cost.compute_rate(tops) for key, tops in spec.ADVERTISED_TOPS.items()}
        | {bus: 1 / cost.usb_seconds(rate, _word_bytes(bus)) for bus, rate in spec.BUS_BYTES_PER_SECOND.items()},
        "usb_seconds": {
            bus: cost.usb_seconds(rate, _word_bytes(bus)) for bus, rate in spec.BUS_BYTES_PER_SECOND.items()
        },
        "host": [_values(layer, _OF_HOST_LAYER) for layer in result.host],
        "notes": list(result.notes),
    }


def _values(item: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names}


def text(result: Study) -> str:
    """Return the study as lines for people."""
    cost = result.budget
    name = printable(result.name)
    if result.fits:
        lines = [f"{name}: fits the GTI {spec.CHIP}."]
    else:
        number = len(result.violations)
        lines = [f"{name}: does not fit the GTI {spec.CHIP}, for {number} reason{'s' if number > 1 else ''}:"]
        lines += [f"  {reason}" for reason in advice.lines(result.violations)]
        if result.changes:
            lines += ["", "The nearest network that fits:"]
            lines += [f"  {printable(str(change))}" for change in result.changes]
        lines += ["", "What that one costs:"]
    lines += ["", *_sublayer_table(cost), ""]
    lines += [
        f"activation memory  {cost.peak_units:g} of {spec.MEMORY_UNITS} units in use at most (3136 bytes each, "
        f"{spec.MEMORY_UNITS // spec.BLOCK_UNITS} blocks of {spec.BLOCK_UNITS})",
        f"filter rows        {cost.rows:,} of {spec.ROW_BYTES} bytes; .DAT of {cost.file_bytes:,} bytes (the chip's "
        "limit is not known; VGG16 has 28,576 rows)",
        f"arithmetic         {cost.macs / 1e6:,.1f} million multiply-accumulates for one image",
        "",
        "At most, frames per second:",
    ]
    for condition, tops in spec.ADVERTISED_TOPS.items():
        lines.append(
            f"  {_rate(cost.compute_rate(tops))}  chip at {condition}: {tops} TOPS as advertised, not measured"
        )
    for bus, rate in spec.BUS_BYTES_PER_SECOND.items():
        seconds = cost.usb_seconds(rate, _word_bytes(bus))
        lines.append(f"  {_rate(1 / seconds)}  {bus}: {seconds * 1e3:.2f} ms for image and result, bus at its limit")
    if result.host:
        lines += ["", "On the host, for one image:"]
        for layer in result.host:
            lines.append(
                f"  {printable(layer.name)}: {layer.inputs} -> {layer.outputs}, {layer.macs / 1e6:,.2f} million "
                f"multiply-accumulates, {layer.file_bytes / 1e6:,.1f} MB read"
            )
    lines += [f"\nnote: {note}" for note in result.notes]
    return "\n".join(lines)


def _rate(frames_per_second: float) -> str:
    return f"{frames_per_second:10,.1f}"


def _word_bytes(bus: str) -> int:
    return WORD_BYTES[bus.split(",", maxsplit=1)[0]]


def _sublayer_table(cost: Budget) -> list[str]:
    rows = [("sublayer", "size", "channels", "bits", "million MACs", "rows", "reads at", "writes at")]
    for sublayer in cost.sublayers:
        c = sublayer.convolution
        rows.append(
            (
                c.name,
                f"{c.size}" + (" pooled" if c.pooled else ""),
                f"{c.input_channels} -> {c.output_channels}",
                f"{c.coef_bits}",
                f"{sublayer.macs / 1e6:,.1f}",
                f"{sublayer.rows:,}",
                f"{sublayer.in_address} + {sublayer.in_units:g}",
                f"{sublayer.out_address} + {sublayer.out_units:g}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
