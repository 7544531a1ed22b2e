"""A float network and some images -> the integers of every sublayer, one after the other, and how well they agree.

The codes that a sublayer is fitted to are the emulator's, with the integers found before: what is measured here is what
the chip will do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from gti import names
from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.emulator.emulator import Emulator, usable_cores
from gti.chip.network.types import Convolution, ConvolutionWeights, MajorLayer, Network
from gti.errors import QuantizationError
from gti.fusion import first_host_weights, fold_batch_norm, fuse_chip
from gti.progress import progress_bar
from gti.ptq import float_maps
from gti.ptq.layer import Agreement, Fitted, Moments, Samples, fit, plain
from gti.ptq.rounding import TAPS

# What is measured of a layer's outputs, in this order.
STEPS = ("float filters", "plain", "matched", "compensated", "refined", "corrected")
DAMPINGS = (0.02, 0.2)
# Positions that a layer is fitted to, and that it is judged by.
POSITIONS = 24_000
HELD_POSITIONS = 4_000
IMAGES_TOGETHER = 8
# Bytes for the maps of all images at once.
MEMORY = 4 << 30


@dataclass(frozen=True)
class Layer:
    """What was found for one sublayer."""

    convolution: Convolution
    weights: ConvolutionWeights
    caps: np.ndarray  # float64 [out]: the float value that the largest code stands for
    damping: float
    agreements: Mapping[str, Agreement]  # of its outputs on held-back images, by `STEPS`
    maps: Agreement  # its maps as the next sublayer gets them, held-back images


@dataclass(frozen=True)
class Quantized:
    """The result: integers of all sublayers, and the agreement of the last map on each held-back image."""

    layers: tuple[Layer, ...]
    images: tuple[float, ...]  # cosine of the last map (pooled) of each held-back image

    @property
    def weights(self) -> tuple[ConvolutionWeights, ...]:
        """Integer weights in network order."""
        return tuple(layer.weights for layer in self.layers)

    def arrays(self, network: Network, arrays: Mapping[str, np.ndarray], *, net: str) -> dict[str, np.ndarray]:
        """Return the variables of a fused checkpoint: real filters and biases that convert to these integers.

        `arrays`: of the float checkpoint, whose host variables are taken over; its first host layer gets chip units.
        """
        result: dict[str, np.ndarray] = {}
        for layer in self.layers:
            scope, unit = f"{net}/{layer.convolution.name}", 2.0**-layer.weights.shift
            result[f"{scope}/filters"] = (layer.weights.filters.transpose(2, 3, 1, 0) * unit).astype(np.float32)
            result[f"{scope}/biases"] = (layer.weights.biases * unit).astype(np.float32)
            result[f"{scope}/relu_cap"] = np.asarray(spec.FUSED_CAP[layer.convolution.ten_bit], np.float32)
        last = self.layers[-1]
        first = first_host_weights(network, arrays, net)
        for name, array in arrays.items():
            if name.startswith(f"{net}/") and not names.is_chip_variable(name, net):
                gain = last.caps[0] / spec.FUSED_CAP[last.convolution.ten_bit] if name == first else 1.0
                result[name] = np.asarray(array * np.float32(gain), np.float32)
        return result


def quantize(
    network: Network,
    floats: Sequence[tuple[np.ndarray, np.ndarray]],
    images: np.ndarray,
    held_back: Collection[int],
    *,
    read: Collection[str] = (),
    dampings: Sequence[float] = DAMPINGS,
    compensate: bool = True,
    seed: int = 0,
    progress: str = "",
) -> Quantized:
    """Return the integers of `network` for the float filters [3,3,in,out] and biases [out] of its sublayers.

    `images`: uint8 [N,H,W,C], pixels 0..255 in the chip's channel order; those whose numbers are in `held_back` are not
    fitted to, choose the damping, and give every figure. The outputs of the sublayers named in `read` (conv3_3, ...)
    and of the last one have one scale for all channels, because something beside the next sublayer takes them. Without
    `compensate` filters are rounded as they are, and every layer has one scale: plain quantization, to compare with.
    Raises QuantizationError for maps that are not finite.
    """
    random = np.random.default_rng(seed)
    held = np.isin(np.arange(len(images)), list(held_back))
    codes = arithmetic.five_bit(images)
    maps = codes.astype(np.float32)
    scale_in = np.ones(network.input_shape[2])
    layers: list[Layer] = []
    with ThreadPoolExecutor(usable_cores()) as pool, progress_bar(len(floats), progress, "layer") as bar:
        for convolution, (filters, biases) in zip(network.convolutions, floats, strict=True):
            bar.set_postfix_str(convolution.name)
            last = convolution.index == len(floats) - 1
            picks = _picks(held, convolution.size, random)
            sums, maps = float_maps.forward(
                maps, filters, biases, convolution=convolution, network=network, picks=picks
            )
            if not np.isfinite(sums).all():
                raise QuantizationError(
                    convolution.path, "its outputs are not finite", fix="pass weights that training left sound"
                )
            top = spec.FUSED_CAP[convolution.ten_bit]
            one = last or convolution.name in read or not compensate
            caps = float_maps.best_caps(maps[~held], spec.TOP_CODE[convolution.ten_bit], one=one)
            scale = top / caps
            prior = (_rows(filters) * scale[:, None] / np.repeat(scale_in, TAPS), biases * scale)
            samples, judged = _samples(
                codes, sums * scale.astype(np.float32), picks, held=held, convolution=convolution, network=network
            )
            fitted = _best(
                samples,
                judged,
                prior,
                convolution=convolution,
                scale=scale,
                dampings=dampings if compensate else (),
                pool=pool,
            )
            on_chip = fitted.on_chip(convolution.coef_bits)
            codes = _next_codes(codes, on_chip, convolution, network)
            scale_in = scale
            found = Agreement.of(codes[held] * _code(convolution) / scale, maps[held])
            layers.append(Layer(convolution, on_chip, caps, fitted.damping, fitted.agreements, found))
            bar.update()
    cosines = [Agreement.of(codes[i] * _code(convolution) / scale_in, maps[i]).cosine for i in np.flatnonzero(held)]
    return Quantized(tuple(layers), tuple(cosines))


def _best(
    samples: Samples,
    judged: Samples,
    prior: tuple[np.ndarray, np.ndarray],
    *,
    convolution: Convolution,
    scale: np.ndarray,
    dampings: Sequence[float],
    pool: ThreadPoolExecutor,
) -> Fitted:
    expected = np.maximum(judged.targets, 0) / scale

    def agree(some: Samples, weights: np.ndarray, biases: np.ndarray) -> Agreement:
        return Agreement.of(some.codes(some.sums(weights, biases)) / scale, expected)

    rounded = plain(prior, convolution)
    best = rounded
    if dampings:
        moments = Moments(samples.patches)
        tried = [
            fit(
                samples,
                judged,
                moments,
                prior=prior,
                convolution=convolution,
                damping=damping,
                agree=agree,
                pool=pool,
            )
            for damping in dampings
        ]
        best = max(tried, key=lambda one: one.agreements["corrected"].decibels)
    before = {
        "float filters": agree(judged, *prior),
        "plain": agree(judged, rounded.weights, rounded.real_biases),
    }
    best.agreements = before | best.agreements
    return best


def float_filters(
    network: Network, arrays: Mapping[str, np.ndarray], *, net: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what `quantize` takes from the variables of a float checkpoint: batch norm folded in.

    Raises QuantizationError that lists every variable which is missing, of another shape, or not usable.
    """
    caps = {names.cap(net, convolution.name): np.ones((), np.float32) for convolution in network.convolutions}
    fuse_chip(network, {**arrays, **caps}, net=net)  # names what is wrong
    pairs = (fold_batch_norm(arrays, f"{net}/{convolution.name}") for convolution in network.convolutions)
    return [(np.asarray(filters, np.float32), np.asarray(biases, np.float32)) for filters, biases in pairs]


def most_images(network: Network) -> int:
    """Return how many images `quantize` can take within `MEMORY` bytes of maps."""
    largest = 0
    for convolution in network.convolutions:
        before = (convolution.size // (1 + convolution.upsampled)) ** 2 * convolution.input_channels
        after = (convolution.size // (1 + convolution.pooled)) ** 2 * convolution.output_channels
        largest = max(largest, 5 * (before + after))  # codes and float32 maps
    return max(1, MEMORY // largest)


def _code(convolution: Convolution) -> float:
    return 1 / spec.TEN_BIT_FACTOR if convolution.ten_bit else 1.0


def _rows(filters: np.ndarray) -> np.ndarray:
    # [3,3,in,out] -> [out, columns]: by channel, then tap.
    inputs, outputs = filters.shape[2:]
    return filters.reshape(TAPS, inputs, outputs).transpose(2, 1, 0).reshape(outputs, -1).astype(np.float64)


def _picks(held: np.ndarray, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, places = [], []
    for image, is_held in enumerate(held):
        wanted = HELD_POSITIONS / held.sum() if is_held else POSITIONS / (~held).sum()
        some = random.choice(size * size, min(size * size, max(1, round(wanted))), replace=False)
        images.append(np.full(len(some), image))
        places.append(some)
    place = np.concatenate(places)
    return np.concatenate(images), place // size, place % size


def _samples(
    codes: np.ndarray,
    targets: np.ndarray,
    picks: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    held: np.ndarray,
    convolution: Convolution,
    network: Network,
) -> tuple[Samples, Samples]:
    images, rows, columns = picks
    patches = np.empty((len(images), codes.shape[3], TAPS), np.uint8)
    for image in np.unique(images):
        here = images == image
        one = codes[image : image + 1]
        if convolution.upsampled:
            one = arithmetic.upsample(one, network.layers[convolution.major - 1].upsample_mode)
        framed = np.pad(one[0], ((1, 1), (1, 1), (0, 0)))
        for tap in range(TAPS):
            patches[here, :, tap] = framed[rows[here] + tap // 3, columns[here] + tap % 3]
    flat = patches.reshape(len(images), -1)
    top, code = spec.FUSED_CAP[convolution.ten_bit], _code(convolution)
    judged = held[images]
    return Samples(flat[~judged], targets[~judged], top, code), Samples(flat[judged], targets[judged], top, code)


def _next_codes(
    codes: np.ndarray, weights: ConvolutionWeights, convolution: Convolution, network: Network
) -> np.ndarray:
    # What the emulator makes of codes [N,H,W,in], pooling included: a network of this sublayer alone.
    layer = network.layers[convolution.major - 1]
    one = MajorLayer(
        image_size=codes.shape[1],
        input_channels=convolution.input_channels,
        output_channels=convolution.output_channels,
        sublayer_number=1,
        coef_bits=convolution.coef_bits,
        scaling=(weights.shift,),
        pooling=convolution.pooled,
        upsample_enable=convolution.upsampled,
        upsample_mode=layer.upsample_mode,
    )
    alone = replace(network, layers=(one,), activation_bit_mode=int(convolution.ten_bit))
    emulator = Emulator(alone, [weights])
    # Pixels whose 5-bit codes are these codes.
    parts = [
        emulator.output(codes[i : i + IMAGES_TOGETHER] << 3).transpose(0, 2, 3, 1)
        for i in range(0, len(codes), IMAGES_TOGETHER)
    ]
    return np.ascontiguousarray(np.concatenate(parts))
