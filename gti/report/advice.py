"""Warnings of a report, each a finding with one sentence of advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gti import caps

# What is worth a warning. Shares and accuracies are 0..1.
LARGEST_LOSS = 0.01  # between two stages, or won back by leaving a layer unquantized
MOST_CLIPPED = 0.01
FEWEST_CODES = 8
MOST_DEAD = 0.05

_AFTER_STAGE = {
    "quant_w": "Train the quantized weights for more epochs, with a smaller --learning_rate.",
    "quant_act": "Calibrate with a higher --percentile, or train on with --train_caps.",
    "fused": "Fine-tune after fusion with a smaller --learning_rate.",
    "chip": "Run scripts/compare.py, which names the first layer that differs.",
}


@dataclass(frozen=True)
class Finding:
    """Something about a place in the network, and what to do about it in one sentence."""

    place: str
    text: str
    advice: str


def warnings(parts: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return everything in the parts of a report that a user should act on, in the order of the page."""
    found: list[Finding] = []
    for part, rules in (
        ("stages", _stages),
        ("activations", _activations),
        ("weights", _weights),
        ("sensitivity", _sensitivity),
        ("compare", _compare),
    ):
        if part in parts:
            found.extend(rules(parts[part]))
    return found


def _stages(part: Mapping[str, Any]) -> Iterator[Finding]:
    rows = part["accuracies"]
    for before, after in pairwise(rows):
        loss = before["accuracy"] - after["accuracy"]
        if loss > LARGEST_LOSS:
            advice = _AFTER_STAGE.get(after["stage"], "Train this stage longer.")
            yield Finding(after["stage"], f"{loss:.2%} of accuracy lost since {before['stage']}.", advice)


def _activations(part: Mapping[str, Any]) -> Iterator[Finding]:
    for layer in part["layers"]:
        place, is_input = layer["path"], layer["name"] == "input"
        dead, channels = len(layer["dead_channels"]), layer["channels"]
        used = sum(count > 0 for count in layer["codes"])
        if is_input:
            if used < FEWEST_CODES:
                yield Finding(
                    place,
                    f"The images use {used} of 32 codes.",
                    "Check that 8-bit pixels are fed: images scaled to 0..1 turn black.",
                )
            continue
        if dead == channels:
            yield Finding(
                place,
                "Every output is 0 on all images: the layer is dead.",
                "Train it again with a lower --learning_rate, or with batch norm.",
            )
            continue
        if dead > MOST_DEAD * channels:
            yield Finding(
                place,
                f"{dead} of {channels} channels are 0 on all images.",
                "Train with a lower --learning_rate, or give the layer fewer output channels.",
            )
        if caps.is_extreme(layer["cap"]):
            yield Finding(
                place,
                f"The activation range of {layer['cap']:.3g} is extreme.",
                "Train with batch norm, then fuse and fine-tune.",
            )
        if layer["clipped"] > MOST_CLIPPED:
            yield Finding(
                place,
                f"{layer['clipped']:.1%} of the activations are above the cap.",
                "Calibrate with a higher --percentile.",
            )
        if used < FEWEST_CODES:
            yield Finding(
                place,
                f"Only {used} of 32 codes are in use.",
                "Calibrate with a lower --percentile: few outliers take the range.",
            )


def _weights(part: Mapping[str, Any]) -> Iterator[Finding]:
    from gti.converter import IMBALANCE_BITS

    for layer in part["layers"]:
        place = layer["path"]
        lost = layer["shift_of_weights"] - layer["shift"]
        levels = layer["levels"]
        if lost >= IMBALANCE_BITS:
            yield Finding(
                place,
                f"max|B| {layer['max_bias']:.3g} is much larger than max|W| {layer['max_weight']:.3g}: the filters "
                f"lose {lost} bits.",
                "Train with --clip_bias, or fuse and fine-tune.",
            )
        if not any(count for level, count in levels.items() if level != "0"):
            yield Finding(
                place,
                "Every filter is 0 on the chip.",
                "Train with --clip_bias or batch norm, or fuse and fine-tune.",
            )
            continue
        if layer["bias_headroom"] is None and layer["max_bias"] > 0:
            yield Finding(
                place,
                f"Every bias becomes 0 on the chip (max|B| {layer['max_bias']:.3g} at shift {layer['shift']}).",
                "Fuse and fine-tune, so that training sees it.",
            )
        if len(layer["dead_channels"]) > MOST_DEAD * layer["channels"]:
            yield Finding(
                place,
                f"{len(layer['dead_channels'])} of {layer['channels']} channels are 0 for every possible image.",
                "Fine-tune after fusion, or give the layer fewer output channels.",
            )


def _sensitivity(part: Mapping[str, Any]) -> Iterator[Finding]:
    for layer in part["layers"]:
        won = layer["accuracy"] - part["accuracy"]
        if won > LARGEST_LOSS:
            yield Finding(
                layer["path"],
                f"Its quantization costs {won:.2%} of accuracy.",
                "Use coef_bits 3 for this layer, give it more channels, or fine-tune longer.",
            )


def _compare(part: Mapping[str, Any]) -> Iterator[Finding]:
    for pair in part["pairs"]:
        if pair.get("first"):
            yield Finding(
                f"{pair['reference']} against {pair['tested']}",
                str(pair["first"]),
                str(pair.get("advice") or "See docs/compare.md for the causes."),
            )
