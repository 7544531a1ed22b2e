"""Layers -> sublayers of the chip, with everything that the chip cannot do and what to write instead.

Where a layer does not fit, the sublayers are what the advice amounts to (two 3x3 for a 5x5, a pooling for a stride of
2), so that the nearest network and its costs are those of the repaired model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gti.chip import spec
from gti.chip.network.rules import Violation, padded_up
from gti.chip.network.types import MajorLayer, Network
from gti.errors import UsageError
from gti.importing.graph import Layer, name_of, pair, real, whole

CHIP_CONVOLUTION, CHIP_POOLING = "ChipConv2D", "ChipPooling"
CONVOLUTIONS = frozenset({CHIP_CONVOLUTION, "Conv2D", "DepthwiseConv2D", "SeparableConv2D"})
MAX_POOLINGS = frozenset({CHIP_POOLING, "MaxPooling2D"})
POOLINGS = MAX_POOLINGS | {"AveragePooling2D"}
# Nothing happens in these at inference.
INERT = frozenset(
    {"Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "ActivityRegularization"}
    | {"Identity", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomCrop"}
    | {"RandomBrightness"}
)
SCALES = frozenset({"Rescaling", "Normalization", "Scale"})
ACTIVATIONS = frozenset({"ReLU", "Activation", "LeakyReLU", "ELU", "PReLU", "Softmax"})


@dataclass
class Sublayer:
    """One convolution of the chip and what the source does between it and its ReLU."""

    layer: Layer  # the convolution, with its arrays
    output_channels: int
    coef_bits: int = 3
    upsample: str | None = None
    max_code: int = spec.MAX_CODE
    activated: bool = False
    pooled: bool = False
    rounds_up: bool = False  # an odd size, when pooled
    strided: bool = False  # a stride of 2, in whose place a pooling is advised
    after: list[Layer] = field(default_factory=list)  # BatchNormalization, Scale
    limit: float | None = None  # of a ReLU6


@dataclass
class ChipReader:
    """Walks the chip part layer by layer; holds the sublayers and problems found so far."""

    image_size: int
    sublayers: list[Sublayer] = field(default_factory=list)
    problems: list[Violation] = field(default_factory=list)
    input_scales: list[Layer] = field(default_factory=list)  # in front of the first convolution
    sampling: set[int] = field(default_factory=set)
    upsample: str | None = None
    padded: str = ""  # name of a ZeroPadding2D(1) that waits for its convolution

    def unfit(self, layer: str, problem: str, expected: object, received: object, fix: str) -> None:
        self.problems.append(Violation(f"layer {layer}", "keras-layer", problem, expected, received, fix))

    def read(self, layer: Layer) -> None:
        layout = layer.config.get("data_format") or "channels_last"
        if layout != "channels_last":
            self.unfit(layer.name, "the layout is not the kit's", "channels_last", layout,
                       "build the model channels_last; conversion reorders for the chip")  # fmt: skip
        if layer.kind not in CONVOLUTIONS and layer.kind not in INERT:
            self._padding_used(layer)
        if layer.kind == CHIP_CONVOLUTION:
            self._chip_convolution(layer)
        elif layer.kind in CONVOLUTIONS:
            self._convolution(layer)
        elif layer.kind in POOLINGS:
            self._pooling(layer)
        elif layer.kind == "UpSampling2D":
            self._upsampling(layer)
        elif layer.kind == "ZeroPadding2D":
            self._zero_padding(layer)
        elif layer.kind == "BatchNormalization" or layer.kind in SCALES:
            self._scaling(layer)
        elif layer.kind in ACTIVATIONS:
            self._activation(layer)
        elif layer.kind not in INERT:
            self.unfit(
                layer.name,
                "the chip has no layer of this kind",
                "3x3 convolutions with ReLU, 2x2 pooling and upsampling in front of the host's layers",
                layer.kind,
                "leave it out, or move it behind the last chip layer, where the host computes it",
            )

    def _add(self, sublayer: Sublayer) -> None:
        self.sublayers.append(replace(sublayer, upsample=sublayer.upsample or self.upsample))
        self.upsample = None

    def _chip_convolution(self, layer: Layer) -> None:
        self._complete()
        config = layer.config
        if config.get("upsample"):
            self._upsampled_already(layer, "upsampling")
        self._add(
            Sublayer(
                layer,
                whole(config.get("output_channels"), 0),
                whole(config.get("coef_bits"), 0),
                config.get("upsample"),
                whole(config.get("max_code"), spec.MAX_CODE),
                activated=True,
                after=[replace(layer, kind="BatchNormalization")] if config.get("batch_norm") else [],
            )
        )

    def _convolution(self, layer: Layer) -> None:
        self._complete()
        config = layer.config
        kernel, strides = pair(config.get("kernel_size", 3)), pair(config.get("strides", 1))
        if kernel not in ((3, 3), (1, 1)):  # the centre of a 3x3 holds a 1x1
            remedy = {(5, 5): "use two 3x3 layers in a row", (7, 7): "use three 3x3 layers in a row"}
            self.unfit(layer.name, "the kernel is not 3x3", "3x3", "x".join(map(str, kernel)),
                       remedy.get(kernel, "use one or several 3x3 layers in a row"))  # fmt: skip
        if strides != (1, 1):
            self.unfit(layer.name, "the stride is not 1", 1, strides, "use stride 1 and a 2x2 max pooling behind it")
        padding = config.get("padding", "valid")
        frame = self.padded and padding == "valid" and kernel == (3, 3)
        if self.padded and not frame:
            self._padding_used(layer)
        self.padded = ""
        if not (padding == "same" or frame or (kernel == (1, 1) and padding == "valid")):
            self.unfit(layer.name, "the padding is not one pixel of zeros", "same", padding, 'set padding="same"')
        if pair(config.get("dilation_rate", 1)) != (1, 1):
            self.unfit(layer.name, "the filter is dilated", 1, config.get("dilation_rate"), "use dilation_rate=1")
        groups = config.get("groups", 1)
        if layer.kind != "Conv2D" or config.get("depthwise"):
            self.unfit(layer.name, "the convolution is depthwise", "filters over all channels", layer.kind,
                       "use Conv2D over all channels")  # fmt: skip
        elif groups != 1:
            self.unfit(layer.name, "the convolution is grouped", 1, groups, "use groups=1")
        activation = name_of(config.get("activation"))
        if activation not in ("relu", "linear"):
            self.unfit(layer.name, "the activation is not a ReLU", "relu", activation, 'use activation="relu"')
        count = whole(config.get("filters"), 0)
        if layer.kind == "DepthwiseConv2D":
            count = self.sublayers[-1].output_channels if self.sublayers else 16
        repeats = {5: 2, 7: 3}.get(max(kernel), 1)
        for number in range(repeats):
            last = number == repeats - 1
            self._add(Sublayer(layer, count, activated=not last or activation != "linear"))
        self.sublayers[-1].strided = strides == (2, 2)

    def _zero_padding(self, layer: Layer) -> None:
        if _frame(layer.config.get("padding", 1)) != (1, 1, 1, 1):
            self.unfit(layer.name, "the padding is not one pixel of zeros", "1 on all sides",
                       layer.config.get("padding"), 'set padding="same" in the convolution instead')  # fmt: skip
        else:
            self.padded = layer.name

    def _padding_used(self, layer: Layer) -> None:
        if self.padded:
            self.unfit(self.padded, "this padding is not that of a convolution", "padding, then a 3x3 convolution",
                       f"padding, then {layer.kind}", "leave it out")  # fmt: skip
            self.padded = ""

    def _pooling(self, layer: Layer) -> None:
        self._complete()
        self._upsampled_already(layer, "pooling")
        if layer.kind == CHIP_POOLING:
            self.sampling.add(whole(layer.config.get("sampling_method"), 0))
        else:
            self.sampling.add(0)
            window = pair(layer.config.get("pool_size", 2))
            strides = pair(layer.config.get("strides") or window)
            padding = layer.config.get("padding", "valid")
            if (window, strides) != ((2, 2), (2, 2)) or padding not in ("valid", "same"):
                self.unfit(layer.name, "the pooling is not 2x2 with stride 2", "2x2, stride 2",
                           f"{window[0]}x{window[1]}, stride {strides[0]}", "use MaxPooling2D(2)")  # fmt: skip
            if layer.kind not in MAX_POOLINGS:
                self.unfit(layer.name, "the chip does not average", "max pooling", layer.kind, "use MaxPooling2D(2)")
        if not self.sublayers or self.sublayers[-1].pooled:
            self.unfit(layer.name, "no convolution stands before this pooling", "convolution, then pooling", "pooling",
                       "put a convolution in front of it")  # fmt: skip
        else:
            self.sublayers[-1].pooled = True
            self.sublayers[-1].rounds_up = layer.config.get("padding") == "same"

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
                       f"upsampling, then {step}", "put a convolution between them, or leave both out"
                       if step == "pooling" else "put a convolution between them")  # fmt: skip

    def _scaling(self, layer: Layer) -> None:
        axis = layer.config.get("axis", -1)
        if layer.kind != "Scale" and axis not in (-1, 3, [-1], [3]):
            self.unfit(layer.name, "the batch norm does not normalise channels", "axis -1", f"axis {axis}",
                       "set axis=-1")  # fmt: skip
        last = self.sublayers[-1] if self.sublayers and not self.sublayers[-1].pooled else None
        if not self.sublayers:
            self.input_scales.append(layer)
        elif last is None or last.activated:
            name = "batch norm" if layer.kind == "BatchNormalization" else "scaling"
            self.unfit(layer.name, f"this {name} cannot be folded into a convolution",
                       f"convolution -> {name} -> ReLU", "another order",
                       "put it between a convolution and its ReLU")  # fmt: skip
        else:
            last.after.append(layer)

    def _activation(self, layer: Layer) -> None:
        last = self.sublayers[-1] if self.sublayers and not self.sublayers[-1].pooled else None
        activation = activation_of(layer)
        if activation != "relu":
            self.unfit(layer.name, "the activation is not a ReLU", "relu", activation, "use a ReLU")
        for option in ("negative_slope", "threshold"):
            if layer.config.get(option):
                self.unfit(layer.name, "the ReLU does not begin at 0 with slope 0 below", f"{option} 0",
                           f"{option} {layer.config[option]}", f"set {option}=0")  # fmt: skip
        if last is None:
            if not self.sublayers:  # behind a pooling, values are not negative any more
                self.unfit(layer.name, "no convolution stands before this activation", "convolution, then ReLU",
                           layer.kind, "remove it: every convolution of the chip ends with its ReLU")  # fmt: skip
        else:
            last.activated = True
            # No obstacle: every ReLU of the chip has a cap, and calibration sets it.
            last.limit = real(layer.config.get("max_value"), 0.0) or None

    def _complete(self) -> None:
        """Say what the last convolution lacks before something else begins."""
        last = self.sublayers[-1] if self.sublayers else None
        if last is not None and last.strided:
            last.pooled, last.strided = True, False
        if last is not None and not last.activated:
            last.activated = True
            self.unfit(last.layer.name, "the convolution has no ReLU", "relu", "linear", 'use activation="relu"')

    def finish(self, channels: int, coef_bits: Sequence[int]) -> Network:
        """Return the network of all that was read; `coef_bits` one number a block, see `with_coef_bits`."""
        self._complete()
        if self.upsample:
            self.unfit("upsampling", "no convolution stands behind it", "upsampling, then convolution", "nothing",
                       "leave it out")  # fmt: skip
        if len(self.sampling) > 1:
            self.unfit("pooling", "the chip pools in one way for the whole network", "one sampling_method",
                       sorted(self.sampling), "use the same sampling_method in every ChipPooling")  # fmt: skip
        for sublayer in self.sublayers[:-1]:
            if sublayer.max_code != spec.MAX_CODE:
                self.unfit(sublayer.layer.name, "only the last sublayer can have ten-bit codes", spec.MAX_CODE,
                           sublayer.max_code, "leave max_code at 31 here")  # fmt: skip
        with_coef_bits(self.sublayers, coef_bits)
        ten_bit = bool(self.sublayers) and self.sublayers[-1].max_code == spec.MAX_CODE_TEN_BIT
        return Network(
            layers=_major_layers(self.sublayers, self.image_size, channels, split_last=ten_bit),
            chip_type=spec.CHIP_TYPE,
            sampling_method=min(self.sampling, default=0),
            activation_bit_mode=int(ten_bit),
        )


def activation_of(layer: Layer) -> str:
    """Return the name of an activation layer's function."""
    named = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "PReLU": "prelu", "Softmax": "softmax"}
    return named.get(layer.kind) or name_of(layer.config.get("activation"))


def _frame(padding: object) -> tuple[int, ...]:
    values = padding if isinstance(padding, (list, tuple)) else (padding, padding)
    sides = [side for value in values for side in (value if isinstance(value, (list, tuple)) else (value, value))]
    return tuple(whole(side, -1) for side in sides)


def legal_channels(channels: int) -> int:
    """Return `channels` padded up where that is possible; else as they are, for the chip's rules to say it."""
    return padded_up(channels) if 0 < channels <= max(spec.OUTPUT_CHANNELS) else channels


def with_coef_bits(sublayers: Sequence[Sublayer], coef_bits: Sequence[int]) -> None:
    """Set the width of the filters: one number for all, or one for each major layer or each block up to a pooling.

    Layers of the kit bring their own. Raises UsageError for another number of numbers.
    """
    own = [s for s in sublayers if s.layer.kind != CHIP_CONVOLUTION]
    for sublayer in own:
        sublayer.coef_bits = coef_bits[0]
    if len(coef_bits) == 1 or not own:
        return
    blocks, majors = _numbered(sublayers, pooling_only=True), _numbered(sublayers, pooling_only=False)
    numbers = next((n for n in (majors, blocks) if n[-1] + 1 == len(coef_bits)), None)
    if numbers is None:
        counts = " or ".join(str(n) for n in sorted({1, blocks[-1] + 1, majors[-1] + 1}))
        raise UsageError(
            "--coef_bits",
            "does not fit the network",
            expected=f"{counts} numbers: one for all, one for each block up to a pooling, or one for each major layer",
            received=f"{len(coef_bits)} numbers",
        )
    for sublayer, number in zip(sublayers, numbers, strict=True):
        if sublayer in own:
            sublayer.coef_bits = coef_bits[number]


def _numbered(sublayers: Sequence[Sublayer], *, pooling_only: bool) -> list[int]:
    numbers = [0]
    for before, sublayer in itertools.pairwise(sublayers):
        new = before.pooled or (not pooling_only and _begins(before, sublayer))
        numbers.append(numbers[-1] + new)
    return numbers


def _begins(before: Sublayer | None, sublayer: Sublayer) -> bool:
    # A new major layer begins where the chip's registers can only say so: after pooling, at an upsampling, with
    # other channels or another width of coefficients.
    if before is None or before.pooled or sublayer.upsample:
        return True
    return (legal_channels(before.output_channels), before.coef_bits) != (
        legal_channels(sublayer.output_channels),
        sublayer.coef_bits,
    )


def _major_layers(
    sublayers: Sequence[Sublayer], image_size: int, channels: int, *, split_last: bool
) -> tuple[MajorLayer, ...]:
    layers: list[MajorLayer] = []
    before: Sublayer | None = None
    for i, sublayer in enumerate(sublayers):
        alone = split_last and i == len(sublayers) - 1  # a ten-bit last layer stands alone
        if alone or _begins(before, sublayer):
            previous = layers[-1] if layers else None
            layers.append(
                MajorLayer(
                    image_size=previous.output_size if previous else image_size,
                    input_channels=previous.output_channels if previous else channels,
                    output_channels=legal_channels(sublayer.output_channels),
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
