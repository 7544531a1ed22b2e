"""What post-training quantization did to every sublayer: as text, as JSON, and as a part of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gti.ptq.post_training import STEPS, Quantized


def as_json(result: Quantized) -> dict[str, Any]:
    """Return the figures; agreements are {"cosine", "decibels"} with the float network, on images held back."""
    return {
        "layers": [
            {
                "name": layer.convolution.name,
                "path": layer.convolution.path,
                "coef_bits": layer.convolution.coef_bits,
                "shift": layer.weights.shift,
                "damping": layer.damping,
                "caps": [float(layer.caps.min()), float(layer.caps.max())],
                "steps": {name: _agreement(layer.agreements[name]) for name in STEPS if name in layer.agreements},
                "maps": _agreement(layer.maps),
            }
            for layer in result.layers
        ],
        "images": list(result.images),
        "cosine": sum(result.images) / len(result.images),
    }


def _agreement(found: Any) -> dict[str, float]:
    return {"cosine": float(found.cosine), "decibels": float(found.decibels)}


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as lines for people: signal to noise after each step, and the maps that leave the layer."""
    rows = [("layer", "bits", *STEPS, "damping", "maps", "cosine")]
    for layer in figures["layers"]:
        steps = layer["steps"]
        rows.append(
            (
                layer["path"],
                str(layer["coef_bits"]),
                *(f"{steps[name]['decibels']:.1f}" if name in steps else "-" for name in STEPS),
                f"{layer['damping']:g}",
                f"{layer['maps']['decibels']:.1f}",
                f"{layer['maps']['cosine']:.4f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(["signal to noise with the float network, in dB, on pictures held back", *lines])
