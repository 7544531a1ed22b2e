"""Which layer's quantization costs accuracy: the network is evaluated with one layer at a time left unquantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def measure(model: keras.Model, dataset: tf.data.Dataset, *, progress: bool = False) -> dict[str, Any]:
    """Return the part "sensitivity" of a report for a model whose weights and activations are quantized, not fused.

    `dataset` of (images, labels) is evaluated once as it is, and once for each sublayer without its quantizers and cap.
    The model is left as it was.
    """
    from gti.model import base
    from gti.progress import progress_bar
    from gti.training.evaluation import evaluate

    layers = base.chip_layers(model)
    with progress_bar(len(layers) + 1, "sensitivity" if progress else "", "layer") as bar:
        baseline = evaluate(model, dataset)
        bar.update()
        rows = []
        for convolution, layer in zip(model.network.convolutions, layers, strict=True):
            switches = layer.quantize_w, layer.quantize_act
            layer.quantize_w = layer.quantize_act = False
            try:
                accuracy = evaluate(model, dataset).accuracy
            finally:
                layer.quantize_w, layer.quantize_act = switches
            rows.append({"name": convolution.name, "path": convolution.path, "accuracy": accuracy})
            bar.update()
    return {"accuracy": baseline.accuracy, "images": baseline.count, "layers": rows}
