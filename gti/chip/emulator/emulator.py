"""The chip in software: exact integer codes of every sublayer, and what each read-out mode delivers.

Two engines compute the same codes: `engine_numba`, the fast one, and `engine_numpy`. docs/emulator.md. A chip that
behaves otherwise than assumed is computed by `engine_behaviours`.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from gti.chip import spec
from gti.chip.emulator import arithmetic, engine_behaviours
from gti.chip.emulator.behaviours import ASSUMED, Behaviours
from gti.chip.network.delivered import delivered
from gti.chip.network.types import Convolution, ConvolutionWeights, Network
from gti.chip.wire.image_arrays import check_image_array
from gti.chip.wire.registers import Mode, parse_mode
from gti.errors import GtiError, ImageError, NetworkError, UsageError, sentence

log = logging.getLogger(__name__)

ENGINES = ("auto", "numpy", "numba")

_QUESTIONS = {Mode.LEARN: "learn_maps", Mode.LASTMAJOR: "learn_maps", Mode.SUBLAST: "sublast_maps"}
# Images computed together are limited so that memory stays bounded, whatever the size of the data set: this many
# bytes for the largest activation map of a group.
_GROUP_BYTES = 32 << 20


class Engine(Protocol):
    """What computes sublayers; codes are [N, H, W, C]."""

    description: str

    def sublayers(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the codes of each sublayer before pooling; each array stays valid."""

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes after the last sublayer, pooling included; the array stays valid."""


class Emulator:
    """A network with its integer weights, ready to run on 8-bit images.

    `engine`: "numba", "numpy" or "auto" (numba where it is installed). `threads`: of the numba engine, default one per
    core that this process may use. `upsample_fill`: "repeat" or "zero" in place of the network's own `upsample_mode`.
    `behaviours`: of the chip; any but today's assumptions are computed by NumPy, whatever `engine` says. Raises
    NetworkError where weights and network do not belong together or the chip's arithmetic is unknown.
    """

    def __init__(
        self,
        network: Network,
        weights: Sequence[ConvolutionWeights],
        engine: str = "auto",
        threads: int | None = None,
        upsample_fill: str | None = None,
        *,
        behaviours: Behaviours = ASSUMED,
    ) -> None:
        behaviours = behaviours.of_the_chip
        network = engine_behaviours.as_read(network, behaviours)
        violations = problems(network, weights, behaviours)
        if violations:
            raise NetworkError("\n".join(violations), violations=violations)
        if upsample_fill not in (None, *spec.UPSAMPLE_MODES):
            raise UsageError(
                "upsample_fill", "is unknown", expected=" or ".join(spec.UPSAMPLE_MODES), received=upsample_fill
            )
        if threads is not None and threads < 1:
            raise UsageError("threads", "must be positive", expected="1 or more", received=threads)
        self.network = network  # as the chip reads it
        fills = [
            (upsample_fill or network.layers[conv.major - 1].upsample_mode) if conv.upsampled else ""
            for conv in network.convolutions
        ]
        self._behaviours = behaviours
        self._engine = _engine(engine, network, weights, fills, threads, behaviours)
        largest = max(conv.size**2 * max(conv.output_channels, conv.input_channels) for conv in network.convolutions)
        self.images_together = max(1, _GROUP_BYTES // largest)  # of a larger batch, so that memory stays bounded

    @property
    def engine(self) -> str:
        """Name of the engine at work, for example `numba, 2 threads`."""
        return self._engine.description

    def sublayers(self, images: np.ndarray) -> Iterator[tuple[Convolution, np.ndarray]]:
        """Yield (sublayer, codes [N, C, H, W] before pooling) of every sublayer in network order.

        `images`: uint8 [N, H, W, C], 8-bit pixels in the chip's channel order. Codes are uint8 0..31, or uint16
        0..1023 of a ten-bit last layer. Raises ImageError for other images.
        """
        codes = self._codes(images)
        for conv, result in zip(self.network.convolutions, self._engine.sublayers(codes), strict=True):
            yield conv, result.transpose(0, 3, 1, 2)

    def output(self, images: np.ndarray) -> np.ndarray:
        """Return the codes [N, C, H, W] after the last sublayer, pooling included; see `sublayers`."""
        codes = self._codes(images)
        step = self.images_together
        groups = [self._engine.forward(codes[i : i + step]) for i in range(0, len(codes), step)]
        result = groups[0] if len(groups) == 1 else np.concatenate(groups)
        return np.ascontiguousarray(result.transpose(0, 3, 1, 2))

    def read_out(self, image: np.ndarray, mode: str | int) -> list[np.ndarray]:
        """Return the maps [C, H, W] of one image, uint8 [H, W, C], in the order in which `mode` delivers them.

        fc: the last layer after pooling, 7x7; learn: every sublayer; single: the last sublayer of the last layer;
        sublast: the last sublayer of every major layer; lastmajor: every sublayer of the last layer; all but fc
        before pooling (docs/usb_protocol.md, result). Raises GtiError where fc meets a result that is not 7x7.
        """
        question = _QUESTIONS.get(parse_mode(mode))
        chosen = delivered(self.network, parse_mode(mode))
        image = np.asarray(image)
        if image.ndim != 3:
            raise ImageError("image", "has the wrong number of axes", expected="[H, W, C]", received=list(image.shape))
        if parse_mode(mode) == Mode.FC:
            _, height, width = self.network.output_shape
            if (height, width) != (spec.FC_READOUT_SIZE, spec.FC_READOUT_SIZE):
                raise GtiError(
                    "read-out mode fc",
                    "reads a 7x7 result only",
                    expected="7x7 after the last layer",
                    received=f"{height}x{width}",
                    fix="choose the mode single, or pool the last layer down to 7x7",
                )
            return [self.output(image[None])[0]]
        return [
            self.as_delivered(conv, codes[0], question) for conv, codes in self.sublayers(image[None]) if conv in chosen
        ]

    def as_delivered(self, conv: Convolution, codes: np.ndarray, question: str | None) -> np.ndarray:
        """Return the map that a read-out delivers of the codes [C, H, W] of a sublayer before pooling.

        `question`: of the behaviours, about the maps of pooled layers in this read-out; None: there is none.
        """
        place = self._behaviours.value(question) if question and conv.pooled else None
        if place is None:
            return codes
        pooled = arithmetic.pool(codes.transpose(1, 2, 0)[None], self.network.sampling_method, self._behaviours)
        delivered_map: np.ndarray = place(pooled[0].transpose(2, 0, 1), codes.shape)
        return delivered_map

    def _codes(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        height, width, channels = self.network.input_shape
        if images.ndim != 4 or not len(images):
            raise ImageError(
                "images",
                "have the wrong shape",
                expected=f"[N, {height}, {width}, {channels}]",
                received=list(images.shape),
                fix="put the number of images first",
            )
        check_image_array(images[0], channels, height)
        return arithmetic.five_bit(images)


def _engine(  # noqa: PLR0917  (each once, from one place)
    name: str,
    network: Network,
    weights: Sequence[ConvolutionWeights],
    fills: Sequence[str],
    threads: int | None,
    behaviours: Behaviours,
) -> Engine:
    if name not in ENGINES:
        raise UsageError("engine", "is unknown", expected=", ".join(ENGINES), received=name)
    if behaviours != ASSUMED:
        return engine_behaviours.BehaviourEngine(network, weights, fills, behaviours)
    if name != "numpy":
        problem = numba_problem()
        if not problem:
            from gti.chip.emulator.engine_numba import NumbaEngine

            return NumbaEngine(network, weights, fills, threads or usable_cores())
        if name == "numba":
            fix = "correct that, or choose the engine numpy"
            raise UsageError("engine numba", f"cannot be used ({problem})", fix=fix)
        _tell_once(f"numba cannot be used ({problem}): the emulator computes the same codes with NumPy, slower")
    from gti.chip.emulator.engine_numpy import NumpyEngine

    return NumpyEngine(network, weights, fills)


def numba_problem() -> str:
    """Return why numba cannot compile here, or ""."""
    try:
        from numba import config, njit  # noqa: F401
    except Exception as problem:  # settings in the environment that it refuses end in several kinds
        return f"it cannot be imported: {problem}"
    return "NUMBA_DISABLE_JIT is set" if getattr(config, "DISABLE_JIT", 0) else ""


@functools.cache
def _tell_once(text: str) -> None:
    log.warning(text)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def problems(network: Network, weights: Sequence[ConvolutionWeights], behaviours: Behaviours = ASSUMED) -> list[str]:
    """Return a sentence for each reason why these weights cannot be emulated on this network."""
    convolutions = network.convolutions
    if len(weights) != len(convolutions) or not convolutions:
        return [
            sentence(
                "weights",
                "do not belong to this network",
                expected=f"{len(convolutions)} sublayers (at least one)",
                received=f"{len(weights)}",
            )
        ]
    found = []
    _, size, channels = network.input_shape
    for number, layer in enumerate(network.layers, 1):
        if layer.image_size != size or layer.input_channels != channels:
            found.append(
                sentence(
                    f"major {number}",
                    "does not take what the layer before it gives",
                    expected=f"image_size {size}, input_channels {channels}",
                    received=f"{layer.image_size}, {layer.input_channels}",
                )
            )
        if layer.pooling and layer.working_size % 2:
            found.append(
                sentence(f"major {number}", "pools an odd size", expected="an even size", received=layer.working_size)
            )
        if layer.upsample_enable and layer.upsample_mode not in spec.UPSAMPLE_MODES:
            found.append(
                sentence(
                    f"major {number}",
                    "has an unknown upsample_mode",
                    expected=" or ".join(spec.UPSAMPLE_MODES),
                    received=layer.upsample_mode,
                )
            )
        size, channels = layer.output_size, layer.output_channels
    found += engine_behaviours.problems(network, behaviours)
    for conv, layer_weights in zip(convolutions, weights, strict=True):
        found += _weight_problems(conv, layer_weights, behaviours)
    return found


def _weight_problems(conv: Convolution, layer: ConvolutionWeights, behaviours: Behaviours) -> list[str]:
    shape = (conv.output_channels, conv.input_channels, 3, 3)
    if layer.filters.shape != shape or layer.filters.dtype != np.int16:
        return [
            sentence(
                conv.path,
                "has filters of the wrong shape or type",
                expected=f"int16 {list(shape)}",
                received=f"{layer.filters.dtype} {list(layer.filters.shape)}",
            )
        ]
    if layer.biases.shape != shape[:1] or layer.biases.dtype != np.int32:
        return [
            sentence(
                conv.path,
                "has biases of the wrong shape or type",
                expected=f"int32 [{shape[0]}]",
                received=f"{layer.biases.dtype} {list(layer.biases.shape)}",
            )
        ]
    problems = []
    if layer.shift != conv.shift or not 0 <= layer.shift <= spec.MAX_SHIFT_STORED:
        problems.append(
            sentence(
                conv.path,
                "has weights of another shift than the network's scaling says",
                expected=f"{conv.shift} (0..{spec.MAX_SHIFT_STORED})",
                received=layer.shift,
                fix="take network and weights from the same file",
            )
        )
    beside = np.any(layer.filters.reshape(*shape[:2], 9)[:, :, [0, 1, 2, 3, 5, 6, 7, 8]])
    if conv.one_coef and beside and behaviours["one_coef"] == "refused":
        problems.append(
            sentence(
                conv.path,
                "is one_coef and has weights beside the centre, whose effect on the chip is unknown",
                fix="set all weights but the centre of each 3x3 kernel to zero, or remove one_coef",
            )
        )
    return problems
