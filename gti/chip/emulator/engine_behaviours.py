"""The engine for a chip that behaves otherwise than assumed: NumPy, every step after the table of `behaviours.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from gti.chip import spec
from gti.chip.emulator import arithmetic
from gti.chip.emulator.behaviours import Behaviours
from gti.chip.emulator.engine_numpy import exact_type
from gti.chip.network.memory_plan import address_plan
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.errors import sentence

_CENTRE = 4  # of the nine taps


def as_read(network: Network, behaviours: Behaviours) -> Network:
    """Return the network that such a chip finds in the registers: image sizes before doubling."""
    if behaviours["upsample_size"] == "before":
        return network
    layers = (
        replace(layer, image_size=layer.image_size // 2) if layer.upsample_enable else layer for layer in network.layers
    )
    return replace(network, layers=tuple(layers))


def problems(network: Network, behaviours: Behaviours) -> list[str]:
    """Return a sentence for each kind of layer that such a chip does not compute."""
    found = []
    for number, layer in enumerate(network.layers, 1):
        path = f"major {number}"
        if layer.shortcuts and behaviours["shortcuts"] == "refused":
            found.append(
                sentence(
                    path,
                    "has shortcuts, whose arithmetic on the chip is unknown",
                    fix="remove resnet_shortcut_start_layers; such a network can be encoded, not emulated",
                )
            )
        elif 1 in layer.shortcuts and layer.input_channels != layer.output_channels:
            found.append(
                sentence(
                    path,
                    "has a shortcut from its input, which has another number of channels than its output",
                    expected=layer.output_channels,
                    received=layer.input_channels,
                )
            )
        if layer.extra.get("depth_enable") and behaviours["depthwise"] == "refused":
            found.append(
                sentence(path, "is depthwise, whose arithmetic on the chip is unknown", fix="leave out depth_enable")
            )
    return found


class BehaviourEngine:
    """Computes sublayer after sublayer, as `engine_numpy.NumpyEngine` does for today's assumptions."""

    def __init__(
        self, network: Network, weights: Sequence[ConvolutionWeights], fills: Sequence[str], behaviours: Behaviours
    ) -> None:
        self.description = f"NumPy, {behaviours.text}"
        self._network = network
        self._fills = [behaviours.value("upsample_fill") or fill if fill else "" for fill in fills]
        self._behaviours = behaviours
        self._lost = _lost_channels(network, behaviours.value("activation_memory"))
        self._weights = []
        for conv, layer in zip(network.convolutions, weights, strict=True):
            layer = replace(layer, filters=self._acting(conv, layer.filters))
            kind = exact_type(layer)
            taps = {
                (y, x): np.ascontiguousarray(layer.filters[:, :, y, x].T, kind)
                for y in range(3)
                for x in range(3)
                if layer.filters[:, :, y, x].any()
            }
            self._weights.append((taps, layer.biases.astype(np.int64), layer.shift))

    def _acting(self, conv: Convolution, filters: np.ndarray) -> np.ndarray:
        """Return the filters [out, in, 3, 3] with which the chip computes."""
        taps = filters.reshape(*filters.shape[:2], 9)
        if conv.coef_bits == 1:
            taps = taps * np.int16(self._behaviours.value("one_bit_sign"))
        chosen = self._behaviours.value("one_coef")
        if conv.one_coef and chosen is not None and len(chosen) == 1:
            single = np.zeros_like(taps)
            single[:, :, _CENTRE] = taps[:, :, chosen[0]]
            taps = single
        depthwise = self._network.layers[conv.major - 1].extra.get("depth_enable") and conv.index and not conv.one_coef
        if depthwise and self._behaviours["depthwise"] == "diagonal":
            taps = np.where(np.eye(*taps.shape[:2])[:, :, None] > 0, taps, 0).astype(np.int16)
        return taps.reshape(filters.shape)

    def sublayers(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the codes [N, H, W, out] of each sublayer before pooling, for input codes [N, H, W, in]."""
        behaviours = self._behaviours
        taken: dict[tuple[int, int], np.ndarray] = {}
        for conv, (taps, biases, shift), fill, lost in zip(
            self._network.convolutions, self._weights, self._fills, self._lost, strict=True
        ):
            if fill:
                codes = arithmetic.upsample(codes, fill)
            starts = self._network.layers[conv.major - 1].shortcuts
            branch = taken.get((conv.major, conv.sub - 1)) if conv.sub - 1 in starts else None
            taken = {(conv.major, conv.sub): codes}
            sums = _sums(codes, taps, len(biases), behaviours.value("borders"))
            how = behaviours["shortcuts"]
            if branch is not None and how == "before":
                sums += branch.astype(np.int64) << shift
            result = arithmetic.alternative_codes(sums, biases, shift, conv.ten_bit, behaviours)
            if branch is not None and how == "after":
                result = np.minimum(result.astype(np.int32) + branch, spec.MAX_CODE).astype(result.dtype)
            yield result
            codes = arithmetic.pool(result, self._network.sampling_method, behaviours) if conv.pooled else result
            if lost < codes.shape[3]:
                codes = codes.copy()
                codes[..., lost:] = 0

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes [N, H, W, out] after the last sublayer, pooling included."""
        *_, last = self.sublayers(codes)
        pooled = self._network.convolutions[-1].pooled
        return arithmetic.pool(last, self._network.sampling_method, self._behaviours) if pooled else last


def _sums(
    codes: np.ndarray, taps: Mapping[tuple[int, int], np.ndarray], outputs: int, border: Literal["constant", "edge"]
) -> np.ndarray:
    """Return the sums int64 [N, H, W, out] of a 3x3 convolution; `taps`: those that are not all zero, [in, out]."""
    count, height, width, _ = codes.shape
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)), border)
    kind = next(iter(taps.values())).dtype if taps else np.dtype(np.float32)
    sums = np.zeros((count, height, width, outputs), kind)
    for (y, x), weights in taps.items():
        sums += padded[:, y : y + height, x : x + width].astype(kind) @ weights
    return sums.astype(np.int64)


def _lost_channels(network: Network, units: int) -> list[int]:
    """Return for each sublayer how many channels fit below `units` of memory, in whole groups of 16."""
    plan = iter(address_plan(network))
    result = []
    for major, layer in enumerate(network.layers, 1):
        places = [next(plan) for _ in range(layer.chip_sublayers)]
        for conv, place in zip((c for c in network.convolutions if c.major == major), places, strict=False):
            group = place.size_out * spec.ENGINES // max(spec.ENGINES, conv.output_channels)
            room = units * spec.ADDRESS_UNIT - place.out_address * spec.ADDRESS_UNIT
            whole = room >= place.size_out
            result.append(conv.output_channels if whole else max(0, room // group) * spec.ENGINES)
    return result
