"""Keras model configuration -> Network of the chip and host layers, with everything that the chip cannot do.

Only the configuration is read, never weights or code: a .keras file is a zip whose `config.json` names the layers, so a
file from anywhere can be looked at without running it, and without TensorFlow.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gti.chip import spec
from gti.chip.network.budget import HostLayer
from gti.chip.network.rules import Violation
from gti.chip.network.types import MajorLayer, Network
from gti.errors import FormatError, sentence
from gti.files import MAX_JSON_BYTES, parse_json
from gti.importing.keras_config import Graph, Layer, graph, name_of, pair, whole

CONFIG_NAME = "config.json"
CHIP_CONVOLUTION, CHIP_POOLING = "ChipConv2D", "ChipPooling"
CONVOLUTIONS = frozenset({CHIP_CONVOLUTION, "Conv2D"})
POOLINGS = frozenset({CHIP_POOLING, "MaxPooling2D"})
# Nothing happens in these at inference.
INERT = frozenset({"Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout"})
DENSE = frozenset({"HostDense", "Dense"})


@dataclass(frozen=True)
class Architecture:
    """A Keras model as the kit sees it: chip part, fully connected host layers, and what does not fit.

    Where `problems` is not empty, `network` is the closest reading of the model.
    """

    name: str
    network: Network
    host: tuple[HostLayer, ...]
    problems: tuple[Violation, ...]
    uncounted: tuple[str, ...] = ()  # convolutions that the host computes: no part of `host`


@dataclass
class _Sublayer:
    name: str
    output_channels: int
    coef_bits: int
    upsample: str | None
    max_code: int
    activated: bool
    pooled: bool = False


@dataclass
class _Reader:
    """Walks the chip part layer by layer; holds the sublayers and problems found so far."""

    coef_bits: int
    sublayers: list[_Sublayer] = field(default_factory=list)
    problems: list[Violation] = field(default_factory=list)
    sampling: set[int] = field(default_factory=set)
    upsample: str | None = None

    def unfit(self, layer: str, problem: str, expected: object, received: object, fix: str) -> None:
        self.problems.append(Violation(f"layer {layer}", "keras-layer", problem, expected, received, fix))

    def read(self, layer: Layer) -> None:
        layout = layer.config.get("data_format") or "channels_last"
        if layout != "channels_last":
            self.unfit(layer.name, "the layout is not the kit's", "channels_last", layout,
                       "build the model channels_last; conversion reorders for the chip")  # fmt: skip
        if layer.kind == CHIP_CONVOLUTION:
            self._chip_convolution(layer)
        elif layer.kind == "Conv2D":
            self._convolution(layer)
        elif layer.kind in POOLINGS:
            self._pooling(layer)
        elif layer.kind == "UpSampling2D":
            self._upsampling(layer)
        elif layer.kind in ("BatchNormalization", "ReLU", "Activation"):
            self._after_convolution(layer)
        elif layer.kind not in INERT:
            self.unfit(
                layer.name,
                "the chip has no layer of this kind",
                "3x3 convolutions with ReLU, 2x2 pooling and upsampling in front of the host's layers",
                layer.kind,
                "leave it out, or move it behind the last chip layer, where the host computes it",
            )

    def _chip_convolution(self, layer: Layer) -> None:
        self._activation_missing()
        config = layer.config
        if config.get("upsample"):
            self._upsampled_already(layer, "upsampling")
        self.sublayers.append(
            _Sublayer(
                name=layer.name,
                output_channels=whole(config.get("output_channels"), 0),
                coef_bits=whole(config.get("coef_bits"), 0),
                upsample=config.get("upsample") or self.upsample,
                max_code=whole(config.get("max_code"), spec.MAX_CODE),
                activated=True,
            )
        )
        self.upsample = None

    def _convolution(self, layer: Layer) -> None:
        self._activation_missing()
        config = layer.config
        kernel, strides = pair(config.get("kernel_size", 3)), pair(config.get("strides", 1))
        if kernel != (3, 3):
            remedy = {(1, 1): "use 3x3 (its centre can hold the 1x1 filter)", (5, 5): "use two 3x3 layers in a row"}
            self.unfit(layer.name, "the kernel is not 3x3", "3x3", "x".join(map(str, kernel)),
                       remedy.get(kernel, "use one or several 3x3 layers in a row"))  # fmt: skip
        if strides != (1, 1):
            self.unfit(layer.name, "the stride is not 1", 1, strides, "use stride 1 and a 2x2 max pooling behind it")
        if config.get("padding") != "same":
            self.unfit(layer.name, "the padding is not one pixel of zeros", "same", config.get("padding"),
                       'set padding="same"')  # fmt: skip
        if pair(config.get("dilation_rate", 1)) != (1, 1):
            self.unfit(layer.name, "the filter is dilated", 1, config.get("dilation_rate"), "use dilation_rate=1")
        if config.get("groups", 1) != 1:
            self.unfit(layer.name, "the convolution is grouped", 1, config.get("groups"), "use groups=1")
        activation = name_of(config.get("activation"))
        if activation not in ("relu", "linear"):
            self.unfit(layer.name, "the activation is not a ReLU", "relu", activation, 'use activation="relu"')
        self.sublayers.append(
            _Sublayer(
                name=layer.name,
                output_channels=whole(config.get("filters"), 0),
                coef_bits=self.coef_bits,
                upsample=self.upsample,
                max_code=spec.MAX_CODE,
                activated=activation != "linear",
            )
        )
        self.upsample = None

    def _pooling(self, layer: Layer) -> None:
        self._activation_missing()
        self._upsampled_already(layer, "pooling")
        if layer.kind == CHIP_POOLING:
            self.sampling.add(whole(layer.config.get("sampling_method"), 0))
        else:
            self.sampling.add(0)
            window = pair(layer.config.get("pool_size", 2))
            strides = pair(layer.config.get("strides") or window)
            if (window, strides) != ((2, 2), (2, 2)):
                self.unfit(layer.name, "the pooling is not 2x2 with stride 2", "2x2, stride 2",
                           f"{window[0]}x{window[1]}, stride {strides[0]}", "use MaxPooling2D(2)")  # fmt: skip
        if not self.sublayers or self.sublayers[-1].pooled:
            self.unfit(layer.name, "no convolution stands before this pooling", "convolution, then pooling", "pooling",
                       "put a ChipConv2D in front of it")  # fmt: skip
        else:
            self.sublayers[-1].pooled = True

    def _upsampling(self, layer: Layer) -> None:
        size, mode = pair(layer.config.get("size", 2)), layer.config.get("interpolation", "nearest")
        if size != (2, 2) or mode != "nearest":
            self.unfit(layer.name, "the chip doubles images by repeating pixels", "size 2, nearest",
                       f"size {size[0]}, {mode}", 'use UpSampling2D(2, interpolation="nearest")')  # fmt: skip
        self._upsampled_already(layer, "upsampling")
        self.upsample = "repeat"

    def _upsampled_already(self, layer: Layer, step: str) -> None:
        if self.upsample:
            self.unfit(layer.name, "the chip upsamples in front of a convolution only", "upsampling, then convolution",
                       f"upsampling, then {step}", "put a ChipConv2D between them, or leave both out"
                       if step == "pooling" else "put a ChipConv2D between them")  # fmt: skip

    def _after_convolution(self, layer: Layer) -> None:
        last = self.sublayers[-1] if self.sublayers and not self.sublayers[-1].pooled else None
        if layer.kind == "BatchNormalization":
            if last is None or last.activated:
                self.unfit(layer.name, "this batch norm cannot be folded into a convolution",
                           "convolution -> batch norm -> ReLU", "another order",
                           "put it between a convolution and its ReLU (batch_norm=True of ChipConv2D)")  # fmt: skip
            axis = layer.config.get("axis", -1)
            if axis not in (-1, 3, [-1], [3]):
                self.unfit(layer.name, "the batch norm does not normalise channels", "axis -1", f"axis {axis}",
                           "set axis=-1")  # fmt: skip
            return
        activation = "relu" if layer.kind == "ReLU" else name_of(layer.config.get("activation"))
        if activation != "relu":
            self.unfit(layer.name, "the activation is not a ReLU", "relu", activation, "use a ReLU")
        # A max_value is no obstacle: every ReLU of the chip has a cap, and calibration sets it.
        for option in ("negative_slope", "threshold"):
            if layer.config.get(option):
                self.unfit(layer.name, "the ReLU does not begin at 0 with slope 0 below", f"{option} 0",
                           f"{option} {layer.config[option]}", f"set {option}=0")  # fmt: skip
        if last is None:
            self.unfit(layer.name, "no convolution stands before this activation", "convolution, then ReLU",
                       layer.kind, "remove it: every ChipConv2D ends with its ReLU")  # fmt: skip
        else:
            last.activated = True

    def _activation_missing(self) -> None:
        if self.sublayers and not self.sublayers[-1].activated:
            last = self.sublayers[-1]
            last.activated = True
            self.unfit(last.name, "the convolution has no ReLU", "relu", "linear", 'use activation="relu"')

    def finish(self, image_size: int, channels: int) -> Network:
        self._activation_missing()
        if len(self.sampling) > 1:
            self.unfit("pooling", "the chip pools in one way for the whole network", "one sampling_method",
                       sorted(self.sampling), "use the same sampling_method in every ChipPooling")  # fmt: skip
        for sublayer in self.sublayers[:-1]:
            if sublayer.max_code != spec.MAX_CODE:
                self.unfit(sublayer.name, "only the last sublayer can have ten-bit codes", spec.MAX_CODE,
                           sublayer.max_code, "leave max_code at 31 here")  # fmt: skip
        ten_bit = bool(self.sublayers) and self.sublayers[-1].max_code == spec.MAX_CODE_TEN_BIT
        return Network(
            layers=_major_layers(self.sublayers, image_size, channels, split_last=ten_bit),
            chip_type=spec.CHIP_TYPE,
            sampling_method=min(self.sampling, default=0),
            activation_bit_mode=int(ten_bit),
        )


def load(path: str | os.PathLike[str], *, coef_bits: int = 3) -> Architecture:
    """Return the architecture of a .keras file; plain Conv2D layers count as `coef_bits` wide.

    Raises FormatError when the file is no .keras archive, or holds no model of a single chain of named layers.
    """
    name = os.fspath(path)
    try:
        if not os.path.isfile(name):
            raise FormatError(sentence(name, "no such file", fix="check the path"))
        with zipfile.ZipFile(name) as archive:
            if archive.getinfo(CONFIG_NAME).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("packed in an unusual way")  # the other methods unpack without a bound
            with archive.open(CONFIG_NAME) as file:
                data = file.read(MAX_JSON_BYTES + 1)
    except KeyError:
        raise FormatError(sentence(name, "is no Keras model", expected=f"a zip with {CONFIG_NAME} inside")) from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as problem:
        fix = 'save the model with model.save("NAME.keras")'
        raise FormatError(sentence(name, f"is no .keras file ({problem})", expected="a zip archive", fix=fix)) from None
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(sentence(name, "its configuration is too large", expected=f"at most {MAX_JSON_BYTES} bytes"))
    return from_config(parse_json(data, f"{name}/{CONFIG_NAME}"), name, coef_bits=coef_bits)


def of_model(model: Any, *, coef_bits: int = 3) -> Architecture:
    """Return the architecture of a Keras model in memory; see `load`."""
    kind = type(model).__name__
    config = {"class_name": "Sequential" if kind == "Sequential" else "Functional", "config": model.get_config()}
    return from_config(config, f"model {model.name}", coef_bits=coef_bits)


def from_config(config: Any, source: str, *, coef_bits: int = 3) -> Architecture:
    """Return the architecture of a Keras configuration (a Functional or Sequential model); see `load`."""
    model = graph(config, source)
    layers = model.layers
    end = _chip_end(layers)
    reader = _Reader(coef_bits)
    _check_chain(layers[:end], reader)
    _check_host(model, end, reader)
    size, channels = _image(model.input_shape, reader)
    for layer in layers[:end]:
        reader.read(layer)
    if not reader.sublayers:
        raise FormatError(
            sentence(
                source,
                "holds no convolution for the chip",
                expected="ChipConv2D layers",
                fix="build it from gti.layers, without a model inside the model",
            )
        )
    network = reader.finish(size, channels)
    uncounted = tuple(layer.name for layer in layers[end:] if "Conv" in layer.kind)
    return Architecture(model.name, network, _host(layers[end:]), tuple(reader.problems), uncounted)


def _chip_end(layers: Sequence[Layer]) -> int:
    """Return where the host's part begins: behind the last chip layer, the kit's own kinds first."""
    own = any(layer.kind == CHIP_CONVOLUTION for layer in layers)
    kinds = {CHIP_CONVOLUTION, CHIP_POOLING} if own else CONVOLUTIONS | POOLINGS
    end = max((i + 1 for i, layer in enumerate(layers) if layer.kind in kinds), default=0)
    # What belongs to the last convolution of a plain model stands behind it.
    while not own and end < len(layers) and layers[end].kind in ("BatchNormalization", "ReLU", "Activation"):
        end += 1
    return end


def _check_chain(layers: Sequence[Layer], reader: _Reader) -> None:
    for i, layer in enumerate(layers):
        if layer.sources is None:
            continue
        if len(layer.sources) != 1:
            reader.unfit(layer.name, "the chip runs a single chain of layers", "one input",
                         f"{len(layer.sources)} inputs", "use each layer once, without branches")  # fmt: skip
        elif i and layer.sources[0] != layers[i - 1].name:
            reader.unfit(layer.name, "the chip runs a single chain of layers", f"input from {layers[i - 1].name}",
                         f"input from {layer.sources[0]}", "use each layer once, without branches")  # fmt: skip


def _check_host(model: Graph, end: int, reader: _Reader) -> None:
    for layer in model.layers:
        if layer.is_model:
            reader.unfit(layer.name, "a model inside the model is not read", "layers", layer.kind,
                         "put its layers into the model itself")  # fmt: skip
    for name in model.inputs[1:]:
        reader.unfit(name, "the network has another input", "one image", f"{len(model.inputs)} inputs",
                     "leave every input but the image out")  # fmt: skip
    last = model.layers[end - 1].name if end else ""
    # What the host cannot see: the image, and every map that the chip keeps for its next layer.
    hidden = {*model.inputs, *(layer.name for layer in model.layers[:end])} - {last}
    for layer in model.layers[end:]:
        for name in dict.fromkeys(layer.sources or ()):
            if name in hidden:
                reader.unfit(layer.name, "the host receives the last map of the chip only", f"input from {last}",
                             f"input from {name}", f"feed the host's layers from {last} alone")  # fmt: skip
    for name in dict.fromkeys(model.outputs):
        if name in hidden:
            reader.unfit(name, "the host receives the last map of the chip only", f"an output of {last} or behind it",
                         f"an output of {name}", "leave this output out")  # fmt: skip


def _image(shape: object, reader: _Reader) -> tuple[int, int]:
    if not isinstance(shape, (list, tuple)):
        shape = []
    if len(shape) != 4 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in shape[1:]):
        reader.unfit("input", "the image size is open", "[batch, size, size, channels]", list(shape),
                     "give keras.Input a fixed shape, for example (224, 224, 3)")  # fmt: skip
        return 224, 3
    _, height, width, channels = shape
    if height != width:
        reader.unfit("input", "images of the chip are square", f"{width}x{width}", f"{height}x{width}",
                     f"use ({max(height, width)}, {max(height, width)}, {channels})")  # fmt: skip
    return max(height, width), channels


def _major_layers(
    sublayers: Sequence[_Sublayer], image_size: int, channels: int, *, split_last: bool
) -> tuple[MajorLayer, ...]:
    # A new major layer begins where the chip's registers can only say so: after pooling, at an upsampling, with
    # other channels or another width of coefficients, and for a ten-bit last layer, which stands alone.
    layers: list[MajorLayer] = []
    before: _Sublayer | None = None
    for i, sublayer in enumerate(sublayers):
        alone = split_last and i == len(sublayers) - 1
        if (
            before is None
            or before.pooled
            or sublayer.upsample
            or alone
            or (before.output_channels, before.coef_bits) != (sublayer.output_channels, sublayer.coef_bits)
        ):
            previous = layers[-1] if layers else None
            layers.append(
                MajorLayer(
                    image_size=previous.output_size if previous else image_size,
                    input_channels=previous.output_channels if previous else channels,
                    output_channels=sublayer.output_channels,
                    sublayer_number=0,
                    coef_bits=sublayer.coef_bits,
                    scaling=(),
                    upsample_enable=sublayer.upsample is not None,
                    upsample_mode=sublayer.upsample or "repeat",
                )
            )
        last = layers[-1]
        count = last.sublayer_number + 1
        layers[-1] = replace(last, sublayer_number=count, scaling=(0,) * count, pooling=sublayer.pooled)
        before = sublayer
    return tuple(layers)


def _host(layers: Sequence[Layer]) -> tuple[HostLayer, ...]:
    result = []
    for layer in layers:
        if layer.kind in DENSE:
            inputs = whole(layer.input_shape[-1] if layer.input_shape else None, 0)
            result.append(HostLayer(layer.name, inputs, whole(layer.config.get("units"), 0)))
    return tuple(result)
