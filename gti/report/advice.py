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
        said = _of_input if layer["name"] == "input" else _of_activations
        yield from (Finding(layer["path"], *words) for words in said(layer))


def _of_input(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    used = sum(count > 0 for count in layer["codes"])
    if used < FEWEST_CODES:
        advice = "Check that 8-bit pixels are fed: images scaled to 0..1 turn black."
        yield f"The images use {used} of 32 codes.", advice


def _of_activations(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dead, channels = len(layer["dead_channels"]), layer["channels"]
    if dead == channels:
        advice = "Train it again with a lower --learning_rate, or with batch norm."
        yield "Every output is 0 on all images: the layer is dead.", advice
        return
    if dead > MOST_DEAD * channels:
        advice = "Train with a lower --learning_rate, or give the layer fewer output channels."
        yield f"{dead} of {channels} channels are 0 on all images.", advice
    if caps.is_extreme(layer["cap"]):
        yield (
            f"The activation range of {layer['cap']:.3g} is extreme.",
            "Train with batch norm, then fuse and fine-tune.",
        )
    if layer["clipped"] > MOST_CLIPPED:
        yield f"{layer['clipped']:.1%} of the activations are above the cap.", "Calibrate with a higher --percentile."
    used = sum(count > 0 for count in layer["codes"])
    if used < FEWEST_CODES:
        yield (
            f"Only {used} of 32 codes are in use.",
            "Calibrate with a lower --percentile: few outliers take the range.",
        )


def _weights(part: Mapping[str, Any]) -> Iterator[Finding]:
    for layer in part["layers"]:
        yield from (Finding(layer["path"], *words) for words in _of_weights(layer))


def _of_weights(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from gti.converter import IMBALANCE_BITS

    weight, bias = f"max|W| {layer['max_weight']:.3g}", f"max|B| {layer['max_bias']:.3g}"
    lost = layer["shift_of_weights"] - layer["shift"]
    if lost >= IMBALANCE_BITS:
        advice = "Train with --clip_bias, or fuse and fine-tune."
        yield f"{bias} is much larger than {weight}: the filters lose {lost} bits.", advice
    if not any(count for level, count in layer["levels"].items() if level != "0"):
        yield "Every filter is 0 on the chip.", "Train with --clip_bias or batch norm, or fuse and fine-tune."
        return
    if layer["bias_headroom"] is None and layer["max_bias"] > 0:
        advice = "Fuse and fine-tune, so that training sees it."
        yield f"Every bias becomes 0 on the chip ({bias} at shift {layer['shift']}).", advice
    dead, channels = len(layer["dead_channels"]), layer["channels"]
    if dead > MOST_DEAD * channels:
        advice = "Fine-tune after fusion, or give the layer fewer output channels."
        yield f"{dead} of {channels} channels are 0 for every possible image.", advice


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
