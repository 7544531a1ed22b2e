"""The codes of every sublayer, from each stage of a network: Keras models, emulator, stick, maps on disk.

Axes differ: TensorFlow computes [image, row, column, channel], the chip delivers [channel, row, column]. Every array
therefore travels with its layout. Values are in codes everywhere (0..31, ten-bit: 0..1023); those of stages without
quantized activations are real numbers, scaled and capped as the chip would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gti import files, names
from gti.chip import spec
from gti.chip.emulator.emulator import Emulator
from gti.chip.formats import npy
from gti.chip.formats.dat import Dat
from gti.chip.network.types import Convolution, Network
from gti.errors import DataError, FormatError

if TYPE_CHECKING:
    import keras

    from gti.chip.runtime.contract import LayeredModel

LAYOUTS = ("NHWC", "NCHW")  # images, rows, columns, channels; images, channels, rows, columns
MAX_MAPS_BYTES = 1 << 30


class Maps(NamedTuple):
    """Codes of one sublayer for some images, before pooling, with the meaning of their axes."""

    values: npt.NDArray[Any]
    layout: str  # one of LAYOUTS

    def nchw(self) -> npt.NDArray[Any]:
        """Return the values as [image, channel, row, column]."""
        return self.values.transpose(0, 3, 1, 2) if self.layout == "NHWC" else self.values


@dataclass(frozen=True)
class Source:
    """One stage of a network.

    `maps(pixels, first)` returns the Maps of every sublayer in network order; `pixels` uint8 [N,H,W,C] in the chip's
    channel order, `first` the number of the first image in the data set.
    """

    name: str  # float, quant_w, quant_act, fused, emulator, stick, recorded
    origin: str  # checkpoint, file or device
    exact: bool  # whether it computes in the chip's integers
    maps: Callable[[npt.NDArray[np.uint8], int], list[Maps]]


def of_keras(name: str, origin: str, model: keras.Model, caps: Mapping[str, float]) -> Source:
    """Return the stage of a Keras model that is not fused; `caps`: variable name -> cap of its sublayer.

    Outputs y of a sublayer become min(y, cap) * 31 / cap, rounded where the model quantizes its activations.
    """
    import keras
    import tensorflow as tf

    from gti import data_utils
    from gti.model import base
    from gti.training.evaluation import float32_convolutions

    layers = base.chip_layers(model)
    every_layer = keras.Model(model.input, [layer.output for layer in layers])
    forward = tf.function(lambda images: tf.nest.flatten(every_layer(images, training=False)), reduce_retracing=True)
    tops = [spec.TOP_CODE[convolution.ten_bit] for convolution in model.network.convolutions]
    scales = [
        top / caps[names.cap(model.net, convolution.name)]
        for top, convolution in zip(tops, model.network.convolutions, strict=True)
    ]

    def maps(pixels: npt.NDArray[np.uint8], first: int) -> list[Maps]:
        with float32_convolutions():
            outputs = forward(data_utils.to_codes(pixels))
        result = []
        for output, layer, top, scale in zip(outputs, layers, tops, scales, strict=True):
            codes = np.minimum(output.numpy() * np.float32(scale), np.float32(top))
            result.append(Maps(np.rint(codes) if layer.quantize_act else codes, "NHWC"))
        return result

    return Source(name, origin, False, maps)


def of_fused(origin: str, model: keras.Model) -> Source:
    """Return the exact integers of a fused Keras model."""
    from gti import data_utils
    from gti.model.exact import ExactModel

    exact = ExactModel(model)

    def maps(pixels: npt.NDArray[np.uint8], first: int) -> list[Maps]:
        return [Maps(codes, "NHWC") for codes in exact.codes(data_utils.to_codes(pixels))]

    return Source("fused", origin, True, maps)


def emulator_of(dat: Dat, network: Network, engine: str = "auto") -> Emulator:
    """Return the emulator of a decoded .DAT; how layers double their input, which no .DAT tells, is of `network`."""
    layers = tuple(
        replace(layer, upsample_mode=ours.upsample_mode)
        for layer, ours in zip(dat.network.layers, network.layers, strict=True)
    )
    return Emulator(replace(dat.network, layers=layers), dat.weights, engine=engine)


def of_emulator(origin: str, emulator: Emulator) -> Source:
    """Return what the emulator computes."""

    def maps(pixels: npt.NDArray[np.uint8], first: int) -> list[Maps]:
        return [Maps(codes, "NCHW") for _, codes in emulator.sublayers(pixels)]

    return Source("emulator", f"{origin} ({emulator.engine})", True, maps)


def of_stick(stick: LayeredModel) -> Source:
    """Return what a stick delivers in the read-out LEARN, image by image."""

    def maps(pixels: npt.NDArray[np.uint8], first: int) -> list[Maps]:
        images = [stick.layer_outputs(image, "learn") for image in pixels]
        return [Maps(np.stack(of_layer), "NCHW") for of_layer in zip(*images, strict=True)]

    return Source("stick", stick.device_description, True, maps)


def of_recording(folder: str | os.PathLike[str], convolutions: Sequence[Convolution]) -> Source:
    """Return the maps that `chip_infer.py --layer_outputs` has written to `folder`, or another program in its form.

    `image_<number>/maps.npz` holds conv1_1, conv1_2, ...: uint8 [C,H,W] for each sublayer. Raises DataError for what
    is missing or of another shape.
    """

    def of_image(number: int) -> list[npt.NDArray[Any]]:
        path = Path(folder) / f"image_{number:05d}" / "maps.npz"
        try:
            arrays = npy.parse_npz(files.read_bytes(path, limit=MAX_MAPS_BYTES), str(path))
        except FormatError as problem:
            raise DataError(str(problem)) from None
        result = []
        for conv in convolutions:
            array = arrays.get(conv.name)
            shape = (conv.output_channels, conv.size, conv.size)
            if array is None or array.shape != shape or array.dtype.kind != "u":
                raise DataError(
                    str(path),
                    f"does not hold the maps of {conv.path}",
                    expected=f"{conv.name}: uint8 {list(shape)}",
                    received="nothing" if array is None else f"{array.dtype} {list(array.shape)}",
                    fix="write it with chip_infer.py --layer_outputs, of a .model with mode 1 (LEARN)",
                )
            result.append(array)
        return result

    def maps(pixels: npt.NDArray[np.uint8], first: int) -> list[Maps]:
        images = [of_image(first + index) for index in range(len(pixels))]
        return [Maps(np.stack(of_layer), "NCHW") for of_layer in zip(*images, strict=True)]

    return Source("recorded", str(folder), True, maps)


def recorded_images(folder: str | os.PathLike[str]) -> int:
    """Return how many images of `of_recording` there are from number 0 on. Raises DataError where there is none."""
    count = 0
    while (Path(folder) / f"image_{count:05d}" / "maps.npz").is_file():
        count += 1
    if not count:
        raise DataError(
            str(folder),
            "holds no recorded maps",
            expected="image_00000/maps.npz and so on",
            fix="write them with chip_infer.py --layer_outputs",
        )
    return count
