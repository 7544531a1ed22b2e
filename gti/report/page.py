"""The page of a report: figures of its parts, arranged for the template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

import gti
from gti.chip import spec
from gti.chip.network import budget
from gti.chip.network import json_form as networks
from gti.report import charts
from gti.report.advice import warnings
from gti.report.charts import Row
from gti.report.weights import LEVELS

TEMPLATE = Path(__file__).parent / "template.html.j2"
# Of more classes, the worst are listed, and the matrix would be too small to read.
MOST_CLASSES = 24
MOST_CONFUSED = 12
STAGES = {
    "float": "trained in floating point",
    "quant_w": "filters and biases quantized",
    "quant_act": "activations quantized too",
    "fused": "batch norm and caps folded in",
    "chip": "on the stick",
}


def render(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page, one HTML document without references to anything outside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = _share
    environment.filters["figure"] = lambda value: f"{value:.4g}"
    return environment.get_template(TEMPLATE.name).render(
        version=gti.__version__,
        about=_about(parts),
        warnings=warnings(parts),
        stages=_stages(parts.get("stages")),
        curves=_curves(parts.get("curves")),
        classes=_classes(parts.get("classes")),
        quantization=parts.get("quantization"),
        activations=_activations(parts.get("activations")),
        weights=_weights(parts.get("weights")),
        sensitivity=_sensitivity(parts.get("sensitivity")),
        compare=parts.get("compare"),
        memory=_memory(parts),
    )


def _share(value: float) -> str:
    """Return a share for people: percent with the digits that matter."""
    percent = value * 100
    if percent == 0 or percent >= 0.1:
        return f"{percent:.1f} %"
    return f"{percent:.2g} %" if percent >= 1e-4 else "< 0.0001 %"


def _about(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    about: dict[str, str] = {}
    for part in parts.values():
        about |= {str(key): str(value) for key, value in part.get("about", {}).items()}
    return about


def _stages(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not part:
        return None
    rows = [dict(row) | {"meaning": STAGES.get(row["stage"], "")} for row in part["accuracies"]]
    return {"rows": rows, "facts": part.get("facts", {})}


def _curves(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not part or not part["epochs"]:
        return None
    epochs = part["epochs"]
    marks = [f"{row['stage']} {row['epoch']}" for row in epochs]
    begins = [i for i, row in enumerate(epochs) if not i or row["stage"] != epochs[i - 1]["stage"]]
    stages = [(i, epochs[i]["stage"]) for i in begins]
    drawings = {}
    for kind in ("loss", "accuracy"):
        lines = {
            "training": [row.get(f"train_{kind}") for row in epochs],
            "validation": [row[kind] for row in epochs],
        }
        drawings[kind] = charts.curves(lines, marks, stages, label=f"{kind} by epoch")
    return {"drawings": drawings, "epochs": len(epochs)}


def _classes(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not part:
        return None
    answers, names = part["answers"], part["names"]
    rows = [
        {"name": names[i], "count": sum(row), "share": row[i] / sum(row)} for i, row in enumerate(answers) if sum(row)
    ]
    wrong = [
        {"label": names[i], "answer": names[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(answers)
        for j, count in enumerate(row)
        if count and i != j
    ]
    seen = [i for i, row in enumerate(answers) if sum(row) or any(other[i] for other in answers)]
    drawing = None
    if len(seen) <= MOST_CLASSES:
        shown = [Row(names[i], tuple(answers[i][j] for j in seen)) for i in seen]
        drawing = charts.confusion(shown)
    return {
        "stage": part["stage"],
        "images": sum(map(sum, answers)),
        "rows": sorted(rows, key=lambda row: row["share"])[:MOST_CLASSES],
        "left_out": max(len(rows) - MOST_CLASSES, 0),
        "wrong": sorted(wrong, key=lambda row: -row["count"])[:MOST_CONFUSED],
        "drawing": drawing,
    }


def _activations(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not part:
        return None
    cards = []
    for layer in part["layers"]:
        is_input = layer["name"] == "input"
        counts, top = layer["histogram"]["counts"], layer["histogram"]["top"]
        if is_input:
            counts, top = layer["codes"], 32
        cards.append(
            dict(layer)
            | {
                "drawing": charts.histogram(
                    counts,
                    top,
                    None if is_input else layer["cap"],
                    label=f"activations of {layer['path']}",
                    end="31" if is_input else "",
                ),
                "used": sum(count > 0 for count in layer["codes"]),
            }
        )
    rows = [Row(layer["name"], tuple(layer["codes"])) for layer in part["layers"]]
    return {"images": part["images"], "layers": cards, "codes": charts.code_usage(rows)}


def _weights(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not part:
        return None
    layers = []
    for layer in part["layers"]:
        total = sum(layer["levels"].values()) or 1
        shares = [(level, layer["levels"][str(level)] / total) for level in LEVELS]
        layers.append(dict(layer) | {"shares": shares, "lost": layer["shift_of_weights"] - layer["shift"]})
    rows = [Row(layer["name"], (layer["max_weight"], layer["max_bias"])) for layer in part["layers"]]
    return {"layers": layers, "balance": charts.weights_and_biases(rows)}


def _sensitivity(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not part:
        return None
    rows = [Row(layer["name"], (layer["accuracy"],)) for layer in part["layers"]]
    return {
        "images": part["images"],
        "drawing": charts.dots(rows, part["accuracy"], label="accuracy when one layer is left unquantized"),
    }


def _memory(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    value = next((part["network"] for part in parts.values() if "network" in part), None)
    if value is None:
        return None
    cost = budget.budget(networks.from_json(value, "report"))
    rows = [Row(s.convolution.name, (s.in_address, s.in_units, s.out_address, s.out_units)) for s in cost.sublayers]
    return {
        "drawing": charts.memory_plan(rows, spec.MEMORY_UNITS, spec.BLOCK_UNITS),
        "peak": cost.peak_units,
        "units": spec.MEMORY_UNITS,
        "unit_bytes": spec.ADDRESS_UNIT,
        "rows": cost.rows,
        "file_bytes": cost.file_bytes,
        "macs": cost.macs,
    }
