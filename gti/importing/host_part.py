"""Layers behind the chip -> the host's part of a net: steps with their arrays, and the module that holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gti.chip.network.budget import HostLayer
from gti.chip.network.rules import Violation
from gti.importing import folding
from gti.importing.chip_part import ACTIVATIONS, INERT, SCALES, activation_of
from gti.importing.graph import Layer, Weight, name_of, pair, real, whole

DENSE = frozenset({"HostDense", "Dense"})
FLATTEN = frozenset({"ChipFlatten", "Flatten"})
GLOBAL = {"GlobalAveragePooling2D": "GlobalAveragePooling2D", "GlobalMaxPooling2D": "GlobalMaxPooling2D"}
WINDOWS = frozenset({"AveragePooling2D", "MaxPooling2D"})
# Activations that Keras knows by name; the loss of training holds the softmax.
_KNOWN = frozenset(
    {"elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "mish", "relu6", "selu", "sigmoid"}
    | {"silu", "softmax", "softplus", "softsign", "swish", "tanh"}
)
_LAST = frozenset({"softmax", "log_softmax"})
_RESERVED = re.compile(r"(conv\d+_\d+|pool\d+|image)")


@dataclass(frozen=True)
class Step:
    """One layer of the host as its module writes it; only `HostDense` has arrays."""

    kind: str  # class in Keras or gti.layers
    name: str
    value: object = None  # units, rate, window, or the name of a function
    relu: bool = False
    inputs: int = 0
    kernel: Weight | None = None  # [inputs, units], inputs in the kit's order, for the padded channels
    bias: Weight | None = None


@dataclass
class HostReader:
    """Walks the host's layers from the chip's result [size, size, channels], of which the chip delivers `padded`."""

    size: int
    channels: int
    padded: int
    steps: list[Step] = field(default_factory=list)
    problems: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: list[Layer] = field(default_factory=list)  # scales that go into the next fully connected layer
    features: int = 0  # 0 while the value is a map
    rows: Callable[[np.ndarray], np.ndarray] | None = None  # brings the next kernel to the kit's order of inputs

    def __post_init__(self) -> None:
        # A damaged file may have none, which the chip's rules say.
        self.size, self.channels = max(self.size, 1), max(self.channels, 1)
        self.padded = max(self.padded, self.channels)

    def unfit(self, layer: str, problem: str, expected: object, received: object, fix: str) -> None:
        self.problems.append(Violation(f"host layer {layer}", "host-layer", problem, expected, received, fix))

    def read(self, layers: Sequence[Layer]) -> None:
        while layers and (layers[-1].kind in INERT or layers[-1].kind == "ArgMax"):
            layers = layers[:-1]
        if layers and layers[-1].kind in ACTIVATIONS and activation_of(layers[-1]) in _LAST:
            self._softmax_left_out(layers[-1].name)
            layers = layers[:-1]
        for layer in layers:
            self._read(layer, last=layer is layers[-1])
        dense = [step for step in self.steps if step.kind == "HostDense"]
        if self.waiting:
            self.unfit(self.waiting[0].name, "this scaling stands behind the last fully connected layer's activation",
                       "a fully connected layer behind it", "nothing", "put it in front of the activation")  # fmt: skip
        if dense and self.steps[-1].kind == "Activation" and self.steps[-1].value == "sigmoid" and dense[-1].value == 1:
            self._two_classes(dense[-1])

    def _softmax_left_out(self, name: str) -> None:
        self.notes.append(f"{name}: the softmax is left out, because the loss of training has it")

    def _two_classes(self, head: Step) -> None:
        # softmax((0, z)) = (1 - sigmoid(z), sigmoid(z))
        kernel, bias = head.kernel, head.bias
        assert kernel is not None
        wide = Weight((kernel.shape[0], 2), lambda: np.pad(kernel.read(), [(0, 0), (1, 0)]))
        both = Weight((2,), lambda: np.pad(bias.read() if bias else np.zeros(1, np.float32), (1, 0)))
        self.steps[-2:] = [replace(head, value=2, kernel=wide, bias=both)]
        self.notes.append(f"{head.name}: one output with a sigmoid became two classes, 0 (no) and 1 (yes)")

    def _read(self, layer: Layer, *, last: bool) -> None:
        kind = layer.kind
        if kind in GLOBAL:
            self._reduce(layer, GLOBAL[kind])
        elif kind in WINDOWS and not self.features:
            self._window(layer)
        elif kind in FLATTEN:
            self._flatten(layer)
        elif kind in DENSE or (kind == "Conv2D" and self._is_dense(layer)):
            self._dense(layer, last)
        elif kind == "BatchNormalization" or kind in SCALES:
            self._scale(layer)
        elif kind in ACTIVATIONS:
            self._activation(layer, activation_of(layer))
        elif kind == "Dropout":
            rate = real(layer.config.get("rate"), 0.5)
            self.steps.append(Step("Dropout", self._name(layer), rate if 0 <= rate < 1 else 0.5))
        elif kind not in INERT:
            self.unfit(layer.name, "this layer is not written by the import",
                       "Flatten, global or average pooling, Dense, ReLU, Dropout", kind,
                       "leave it out, or write the host's part by hand (docs/import.md)")  # fmt: skip

    def _name(self, layer: Layer) -> str:
        name = re.sub(r"[^A-Za-z0-9_]+", "_", layer.name).strip("_")[:48]
        if not name or not name[0].isalpha() or _RESERVED.fullmatch(name):
            name = f"host_{name}"
        taken = {step.name for step in self.steps}
        return next(n for i in range(len(taken) + 1) if (n := f"{name}_{i}" if i else name) not in taken)

    def _reduce(self, layer: Layer, kind: str) -> None:
        if self.features:
            return
        if kind == "GlobalMaxPooling2D" and self.waiting:
            self.unfit(layer.name, "a scaling stands in front of this pooling", "pooling, then scaling",
                       "scaling, then pooling", "swap the two")  # fmt: skip
        self.steps.append(Step(kind, self._name(layer)))
        self.features, self.rows = self.channels, self._order(1, "hwc")

    def _window(self, layer: Layer) -> None:
        window = pair(layer.config.get("pool_size", 2))
        strides = pair(layer.config.get("strides") or window)
        if window == strides == (1, 1):
            return
        if window == (self.size, self.size):
            name = "Average" if layer.kind == "AveragePooling2D" else "Max"
            self._reduce(layer, f"Global{name}Pooling2D")
        elif window != strides or window[0] != window[1] or self.size % max(window[0], 1) or self.waiting:
            self.unfit(layer.name, "the windows do not divide the map", f"a divisor of {self.size}",
                       f"windows of {window}, strides of {strides}, map of {self.size}",
                       "use global pooling or no pooling")  # fmt: skip
        else:
            self.steps.append(Step(layer.kind, self._name(layer), window[0]))
            self.size //= window[0]

    def _flatten(self, layer: Layer) -> None:
        if self.features:
            return
        self.steps.append(Step("ChipFlatten", self._name(layer)))
        self.features = self.size * self.size * self.channels
        self.rows = self._order(self.size, str(layer.config.get("order", "hwc")))

    def _order(self, size: int, order: str) -> Callable[[np.ndarray], np.ndarray]:
        channels, padded = self.channels, self.padded

        def reorder(kernel: np.ndarray) -> np.ndarray:
            units = kernel.shape[1]
            if order == "chw":
                kernel = kernel.reshape(channels, size, size, units).transpose(1, 2, 0, 3)
            kernel = kernel.reshape(size * size, channels, units)
            return np.pad(kernel, [(0, 0), (0, padded - channels), (0, 0)]).reshape(-1, units)

        return reorder

    def _is_dense(self, layer: Layer) -> bool:
        return bool(self.features) and pair(layer.config.get("kernel_size", 0)) == (1, 1)

    def _dense(self, layer: Layer, last: bool) -> None:
        if not self.features:
            self.unfit(layer.name, "a fully connected layer takes no map", "Flatten or a global pooling in front of it",
                       f"a map of {self.size}x{self.size}", "put Flatten in front of it")  # fmt: skip
            self.features = self.channels
        units = whole(layer.config.get("units", layer.config.get("filters")), 0)
        kernel, bias = layer.weights.get("kernel"), layer.weights.get("bias")
        rows, inputs, waiting, features = self.rows, self.features, tuple(self.waiting), self.features
        if rows is not None:
            inputs = inputs // self.channels * self.padded
        if kernel is not None:
            given, constant = kernel, bias
            shape = given.shape[-2:] if len(given.shape) == 4 and given.shape[:2] == (1, 1) else given.shape
            if shape != (features, units) or (bias is not None and bias.shape != (units,)):
                self.unfit(layer.name, "its weights have another shape", [features, units], list(shape),
                           "pass weights of this network")  # fmt: skip

            def read() -> np.ndarray:
                array = given.read().reshape(features, units)
                if waiting:
                    array = folding.scales(waiting, features)[0][:, None] * array
                return rows(array) if rows else array

            def read_bias() -> np.ndarray:
                array = constant.read() if constant is not None else np.zeros(units, np.float32)
                if waiting:
                    array = array + folding.scales(waiting, features)[1] @ given.read().reshape(features, units)
                return array

            kernel, bias = Weight((inputs, units), read), Weight((units,), read_bias)
        self.steps.append(Step("HostDense", self._name(layer), units, False, inputs, kernel, bias))
        self.waiting, self.features, self.rows = [], units, None
        activation = name_of(layer.config.get("activation"))
        if activation in _LAST and last:
            self._softmax_left_out(layer.name)
        elif activation != "linear":
            self._activation(Layer("Activation", f"{layer.name}_{activation}", {"activation": activation}), activation)

    def _scale(self, layer: Layer) -> None:
        before = self.steps[-1] if self.steps else None
        if before is None or before.kind != "HostDense" or before.relu or self.waiting:
            self.waiting.append(layer)
            return
        kernel, bias, units = before.kernel, before.bias, self.features
        if kernel is None or bias is None:
            return
        self.steps[-1] = replace(
            before,
            kernel=Weight(kernel.shape, lambda: kernel.read() * folding.scales([layer], units)[0]),
            bias=Weight(bias.shape, lambda: folding.scaled(bias.read(), [layer], units)),
        )

    def _activation(self, layer: Layer, name: str) -> None:
        before = self.steps[-1] if self.steps else None
        limit = real(layer.config.get("max_value"), 0.0)
        if name == "relu" and not (limit or layer.config.get("negative_slope") or layer.config.get("threshold")):
            if self.waiting:
                self._function(layer, name)
            elif before is not None and before.kind == "HostDense":
                self.steps[-1] = replace(before, relu=True)
            return  # what comes from the chip is not negative
        self._function(layer, "relu6" if name == "relu" and limit == 6 else name)

    def _function(self, layer: Layer, name: str) -> None:
        if name not in _KNOWN or self.waiting:
            self.unfit(layer.name, "this activation is not written by the import",
                       "an activation of Keras behind a fully connected layer", name, "use ReLU")  # fmt: skip
        else:
            self.steps.append(Step("Activation", self._name(layer), name))

    def layers(self) -> tuple[HostLayer, ...]:
        """Return what the host's fully connected layers cost."""
        return tuple(
            HostLayer(step.name, step.inputs, int(str(step.value))) for step in self.steps if step.kind == "HostDense"
        )


def module_text(steps: Sequence[Step], *, net: str, source: str, shape: tuple[int, int, int], batch_norm: bool) -> str:
    """Return the module of a net; `shape` is the chip's result (height, width, channels). The last HostDense: logits.

    Without a HostDense a new one stands at the end, behind a global average.
    """
    steps = list(steps)
    head = max((i for i, step in enumerate(steps) if step.kind == "HostDense"), default=None)
    if head is None:
        if not any(step.kind in (*GLOBAL, "ChipFlatten") for step in steps):
            steps.append(Step("GlobalAveragePooling2D", "average"))
        steps.append(Step("HostDense", "fc"))
        head = len(steps) - 1
    lines = []
    for i, step in enumerate(steps):
        own = step.kind in ("HostDense", "ChipFlatten")
        value = f'"{step.value}"' if step.kind == "Activation" else "classes" if i == head else step.value
        arguments = [] if value is None else [str(value)]
        arguments += ['"relu"'] if step.relu else []
        arguments += [f'name="{step.name}"']
        lines.append(f"    x = {'' if own else 'keras.layers.'}{step.kind}({', '.join(arguments)})(x)\n")
    needs_keras = any("keras.layers" in line for line in lines)
    names = sorted({step.kind for step in steps} & {"HostDense", "ChipFlatten"})
    text = re.sub(r"[^ -~]|[\"\\]", "?", source)[-80:]
    return (
        f'"""Host part of `{net}`, imported from {text}."""\n\n'
        "from __future__ import annotations\n\nfrom typing import Any\n\n"
        + ("import keras\n\n" if needs_keras else "")
        + f"from gti.layers import {', '.join(names)}\n\n"
        + f"BATCH_NORM = {batch_norm}\n\n\n"
        + "def host_layers(x: Any, *, classes: int) -> Any:\n"
        + f'    """Return logits [batch, classes] from the chip\'s result [batch, {", ".join(map(str, shape))}]."""\n'
        + "".join(lines)
        + "    return x\n"
    )
