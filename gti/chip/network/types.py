"""The types that describe a network for the chip; `gti.chip.network.json_form` reads, checks and writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class MajorLayer:
    """One entry of "layer" in a dat.json: sublayers of one image size, with pooling after the last.

    Keys and meanings: user guide, appendix A; docs/dat_format.md section 5.
    """

    image_size: int  # input height = width, before `upsample_enable` doubles it
    input_channels: int
    output_channels: int
    sublayer_number: int
    coef_bits: int
    scaling: tuple[int, ...]  # shift of each sublayer
    pooling: bool = False
    learning: bool = False
    last_layer_out: bool = False
    upsample_enable: bool = False
    upsample_mode: str = "repeat"  # "repeat" or "zero"; for training and emulation, no bit of the file holds it
    one_coef: tuple[int, ...] = ()
    shortcuts: tuple[int, ...] = ()  # "resnet_shortcut_start_layers"
    in_address: int | None = None  # overrides of the address plan, for files of older tools
    out_address: int | None = None
    extra: dict[str, object] = field(default_factory=dict, compare=False)  # keys without effect, kept for writing

    @property
    def extra_pass(self) -> bool:
        """Whether the chip runs one identity sublayer more, so that a shortcut reaches the pooling.

        docs/dat_format.md section 3.3.
        """
        return self.pooling and bool(self.shortcuts) and self.shortcuts[-1] == self.sublayer_number - 1

    @property
    def chip_sublayers(self) -> int:
        """Sublayers that the chip counts: those of the network and the extra pass."""
        return self.sublayer_number + self.extra_pass

    @property
    def working_size(self) -> int:
        """Height = width at which the sublayers compute."""
        return self.image_size * 2 if self.upsample_enable else self.image_size

    @property
    def output_size(self) -> int:
        """Height = width after the major layer, pooling included."""
        return self.working_size // 2 if self.pooling else self.working_size


@dataclass(frozen=True)
class Convolution:
    """One sublayer: a 3x3 convolution, stride 1, padding 1, then requantization to codes."""

    index: int  # 0-based over the whole network
    major: int  # 1-based
    sub: int  # 1-based
    size: int  # height = width of its output before pooling
    input_channels: int
    output_channels: int
    coef_bits: int
    shift: int
    pooled: bool  # 2x2 pooling follows
    upsampled: bool  # its input is doubled first
    one_coef: bool
    ten_bit: bool  # codes 0..1023 instead of 0..31

    @property
    def name(self) -> str:
        """Name of the layer in models and checkpoints, for example `conv3_2`."""
        return f"conv{self.major}_{self.sub}"

    @property
    def path(self) -> str:
        """Name in messages, for example `major 3 / sub 2 (conv3_2)`."""
        return f"major {self.major} / sub {self.sub} ({self.name})"


@dataclass(frozen=True)
class ConvolutionWeights:
    """Integer filters and biases of one sublayer; real value = integer * 2**-shift."""

    filters: np.ndarray  # int16 [out, in, 3, 3], mask * scale, -2047..2047 (docs/numerics.md section 3)
    biases: np.ndarray  # int32 [out]
    shift: int


@dataclass(frozen=True)
class Network:
    """A network for the chip, as a dat.json describes it."""

    layers: tuple[MajorLayer, ...]
    chip_type: int = 2801
    sampling_method: int = 0  # 0 = max pooling, 1 = take the top-left pixel
    activation_bit_mode: int = 0  # 1 = ten-bit codes out of the last sublayer
    extra: dict[str, object] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)  # on its dat.json: what was taken for what

    @cached_property
    def convolutions(self) -> tuple[Convolution, ...]:
        """All sublayers in network order."""
        result: list[Convolution] = []
        for m, layer in enumerate(self.layers, 1):
            for s in range(1, layer.sublayer_number + 1):
                last = s == layer.sublayer_number
                result.append(
                    Convolution(
                        index=len(result),
                        major=m,
                        sub=s,
                        size=layer.working_size,
                        input_channels=layer.input_channels if s == 1 else layer.output_channels,
                        output_channels=layer.output_channels,
                        coef_bits=layer.coef_bits,
                        shift=layer.scaling[s - 1] if s <= len(layer.scaling) else 0,
                        pooled=last and layer.pooling,
                        upsampled=s == 1 and layer.upsample_enable,
                        one_coef=s <= len(layer.one_coef) and layer.one_coef[s - 1] == 1,
                        ten_bit=last and m == len(self.layers) and self.activation_bit_mode == 1,
                    )
                )
        return tuple(result)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the image."""
        first = self.layers[0]
        return first.image_size, first.image_size, first.input_channels

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) after the last major layer, pooling included."""
        last = self.layers[-1]
        return last.output_channels, last.output_size, last.output_size
