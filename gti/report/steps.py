"""Parts of the report as the scripts add them: from what a script holds at its end to one part of the page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gti.chip.network import json_form as networks
from gti.report import activations, sensitivity, store, weights
from gti.stage import Stage

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from gti.chip.network.types import Network
    from gti.converter import Conversion

Folder = str | os.PathLike[str]
STAGES = (*(stage.label for stage in Stage), "chip")  # in the order of the workflow


def add_calibration(
    folder: Folder, model: keras.Model, dataset: tf.data.Dataset, caps: Mapping[str, float], about: Mapping[str, str]
) -> Path:
    """Add the activations of `model` on the images of `dataset`, against the calibrated `caps`; return the page."""
    part = activations.measure(model, dataset, caps)
    return store.add(folder, "activations", part | {"network": networks.to_json(model.network), "about": dict(about)})


def add_quantization(folder: Folder, network: Network, figures: Mapping[str, Any], about: Mapping[str, str]) -> Path:
    """Add what post-training quantization measured (`gti.ptq.figures.as_json`); return the page."""
    return store.add(folder, "quantization", {**figures, "network": networks.to_json(network), "about": dict(about)})


def add_conversion(
    folder: Folder,
    conversion: Conversion,
    arrays: Mapping[str, np.ndarray],
    *,
    net: str,
    about: Mapping[str, str],
) -> Path:
    """Add the integers of a conversion and the values they were made of (`arrays` of the checkpoint).

    Returns the page.
    """
    from gti import fusion

    fused = fusion.fuse_chip(conversion.network, arrays, net=net)
    floats = [
        (fused[f"{net}/{convolution.name}/filters"], fused[f"{net}/{convolution.name}/biases"])
        for convolution in conversion.network.convolutions
    ]
    part = weights.measure(conversion.network, conversion.weights, floats)
    return store.add(folder, "weights", part | {"network": networks.to_json(conversion.network), "about": dict(about)})


def add_stages(folder: Folder, accuracies: Mapping[str, float], facts: Mapping[str, str]) -> Path:
    """Add the accuracy of each stage, in the order of the workflow, and `facts` by label; return the page."""
    rows = [{"stage": stage, "accuracy": accuracy} for stage, accuracy in accuracies.items()]
    return store.add(folder, "stages", {"accuracies": rows, "facts": dict(facts)})


def add_accuracy(folder: Folder, stage: str, accuracy: float) -> Path:
    """Add the accuracy of one of `STAGES` to those that are there; return the page."""
    part = store.load(folder).get("stages", {"accuracies": [], "facts": {}})
    accuracies = {row["stage"]: row["accuracy"] for row in part["accuracies"]} | {stage: accuracy}
    in_order = {name: accuracies.pop(name) for name in STAGES if name in accuracies}
    return add_stages(folder, in_order | accuracies, part["facts"])


def add_classes(folder: Folder, stage: str, answers: Sequence[Sequence[int]], names: Sequence[str]) -> Path:
    """Add how many images of each class (rows) were answered as which class (columns), in one of `STAGES`."""
    return store.add(
        folder, "classes", {"stage": stage, "answers": [list(row) for row in answers], "names": list(names)}
    )


def add_epoch(folder: Folder, figures: Mapping[str, Any], about: Mapping[str, str] | None = None) -> Path:
    """Add the figures of an epoch, as `gti.training.loop.fit` records them; return the page.

    They replace those of the same stage and epoch, and all of later epochs and stages, which are another run's.
    """
    part = store.load(folder).get("curves", {"epochs": []})

    def place(row: Mapping[str, Any]) -> tuple[int, int]:
        return STAGES.index(row["stage"]), row["epoch"]

    kept = [row for row in part["epochs"] if place(row) < place(figures)]
    return store.add(folder, "curves", {"epochs": [*kept, dict(figures)], "about": dict(about or {})})


def add_sensitivity(folder: Folder, model: keras.Model, dataset: tf.data.Dataset, *, progress: bool = False) -> Path:
    """Add the accuracy of a quantized, unfused `model` with one layer at a time left unquantized; return the page."""
    return store.add(folder, "sensitivity", sensitivity.measure(model, dataset, progress=progress))


def add_comparison(folder: Folder, pairs: Sequence[Mapping[str, Any]]) -> Path:
    """Add the pairs of a comparison; return the page.

    Each has "reference", "tested", "first" (a sentence about the first code that differs, or ""), and "layers" with
    "layer", "differing" (share of codes), "max", "mean", "cosine", "saturated" and "zeros" (shares).
    """
    return store.add(folder, "compare", {"pairs": [dict(pair) for pair in pairs]})
