"""The fast engine: Winograd convolutions in compiled integers, equal to the reference code for code.

Why it is exact: docs/emulator.md. In short, every step is integer arithmetic modulo 2**32, so only the final values
must fit; `_fits` proves that for each sublayer from its weights, and a sublayer that fails takes 64-bit integers.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from llvmlite import binding
from numba import config

from gti.chip import spec
from gti.chip.emulator import arithmetic, kernels_numba
from gti.chip.emulator.vector_code import LANES, POSITIONS
from gti.chip.network.types import Convolution, ConvolutionWeights, Network

_INT32_MAX = 2**31 - 1
# Tiles computed together: enough to reuse the filters, few enough for the sums to stay in the second-level cache.
_TILES = 112
# Parts of a sublayer per thread: threads that are held up leave their share to the others.
_PARTS = 4
# Multiply-adds below which waking other threads takes longer than the work.
_WORTH_SHARING = 16_000_000


@dataclass(frozen=True)
class _Layer:
    conv: Convolution
    fill: str  # how the input is doubled, "" where it is not
    fast: bool
    filters: np.ndarray  # fast: [blocks, 16, pairs, width, 2], else [out, 3, 3, stored in]; int16
    biases: np.ndarray  # fast: int32 [stored out], else int64 [out]
    numbers: np.ndarray  # Requantization; fast: int32, else int64

    @property
    def stored_inputs(self) -> int:
        return stored_channels(self.conv.input_channels)

    @property
    def stored_outputs(self) -> int:
        return _stored_outputs(self.conv.output_channels)

    @property
    def code_type(self) -> type:
        return np.uint16 if self.conv.ten_bit else np.uint8


def stored_channels(channels: int) -> int:
    """Return the channels of an activation buffer: whole vectors, the additional ones are zero."""
    unit = 4 if channels < LANES else LANES
    return -(-channels // unit) * unit


def _stored_outputs(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _block_width(outputs: int) -> int:
    """Return how many of a layer's stored output channels one register tile computes.

    The sums, the filters and one value then fill 32 registers of 64 bytes, or 16 registers of 32 bytes.
    """
    if not _vectors_of_64_bytes():
        return LANES
    return next(width for width in kernels_numba.REGISTER_TILES if outputs % width == 0)


def _vectors_of_64_bytes() -> bool:
    # numba compiles for the features of the host unless its own setting names others.
    chosen = getattr(config, "CPU_FEATURES", None)
    if chosen is not None:
        return "+avx512bw" in chosen
    return bool(binding.get_host_cpu_features().get("avx512bw"))


def _fits(layer: ConvolutionWeights, half: int) -> bool:
    """Return whether int32 holds what the fast path needs, whatever the activations are.

    With P and N the sums of positive and of |negative| weights of an output channel, its products sum up to
    -31 N .. 31 P; the transformed sum is four times that, the accumulator adds bias and half.
    """
    weights = layer.filters.reshape(len(layer.filters), -1)
    positive = np.maximum(weights, 0).sum(axis=1, dtype=np.int64)
    negative = positive - weights.sum(axis=1, dtype=np.int64)
    products = spec.MAX_CODE * np.maximum(positive, negative)
    accumulators = products + np.abs(layer.biases.astype(np.int64)) + half
    return bool(np.all(4 * products <= _INT32_MAX) and np.all(accumulators <= _INT32_MAX))


class NumbaEngine:
    """Holds transformed filters, threads and reused buffers; may be called from several threads at once."""

    def __init__(
        self, network: Network, weights: Sequence[ConvolutionWeights], fills: Sequence[str], threads: int
    ) -> None:
        """`fills` holds for each sublayer how its input is doubled, "" where it is not."""
        self._network = network
        self._threads = threads
        self.description = f"numba, {threads} thread{'s' if threads > 1 else ''}"
        self._pool: ThreadPoolExecutor | None = None
        self._pool_owner = 0
        self._lock = threading.Lock()
        self._scratch = threading.local()
        self._buffers: list[list[np.ndarray]] = []
        self._layers = [
            self._prepare(conv, layer, fill)
            for conv, layer, fill in zip(network.convolutions, weights, fills, strict=True)
        ]

    def sublayers(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the codes [N, H, W, out] of each sublayer before pooling, for input codes [N, H, W, in].

        The arrays are read-only: the next sublayer reads the same memory.
        """
        buffer = _framed(codes, self._layers[0].stored_inputs)
        for layer in self._layers:
            if layer.fill:
                buffer = _framed(arithmetic.upsample(_inner(buffer), layer.fill), buffer.shape[3])
            size = layer.conv.size
            result = _frame(np.empty((len(codes), size + 2, size + 2, layer.stored_outputs), layer.code_type))
            self._convolve(layer, buffer, result, pooled=False)
            visible = _inner(result)[..., : layer.conv.output_channels]
            visible.flags.writeable = False
            yield visible
            buffer = result
            if layer.conv.pooled:
                buffer = _framed(arithmetic.pool(_inner(result), self._network.sampling_method), layer.stored_outputs)

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes [N, H, W, out] after the last sublayer, pooling included."""
        try:
            buffers = self._buffers.pop()
        except IndexError:  # all of them are at work in other threads
            buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        try:
            return self._forward(codes, buffers)
        finally:
            self._buffers.append(buffers)

    def _forward(self, codes: np.ndarray, buffers: list[np.ndarray]) -> np.ndarray:
        count = len(codes)
        source = _framed(codes, self._layers[0].stored_inputs)
        for layer in self._layers:
            if layer.fill:
                source = _framed(arithmetic.upsample(_inner(source), layer.fill), source.shape[3])
            size = layer.conv.size // 2 if layer.conv.pooled else layer.conv.size
            shape = (count, size + 2, size + 2, layer.stored_outputs)
            target = _frame(_reuse(buffers, layer.conv.index % 2, shape, layer.code_type))
            self._convolve(layer, source, target, pooled=layer.conv.pooled)
            source = target
        return _inner(source)[..., : self._layers[-1].conv.output_channels].copy()

    def _prepare(self, conv: Convolution, weights: ConvolutionWeights, fill: str) -> _Layer:
        numbers = arithmetic.requantization(weights.shift, conv.ten_bit)
        inputs, outputs = stored_channels(conv.input_channels), _stored_outputs(conv.output_channels)
        if conv.size % 2 == 0 and _fits(weights, numbers.half):
            width = _block_width(outputs)
            filters = np.zeros((outputs // width, POSITIONS, inputs // 2, width, 2), np.int16)
            source = np.ascontiguousarray(weights.filters)
            blocks = range(len(filters))
            fit = self._share([lambda b=b: kernels_numba.transform_filters(source, filters, b, b + 1) for b in blocks])
            if all(fit):
                biases = np.zeros(outputs, np.int32)
                biases[: conv.output_channels] = weights.biases
                return _Layer(conv, fill, True, filters, biases, np.array(numbers, np.int32))
        wide = np.zeros((conv.output_channels, 3, 3, inputs), np.int16)
        wide[..., : conv.input_channels] = weights.filters.transpose(0, 2, 3, 1)
        return _Layer(conv, fill, False, wide, weights.biases.astype(np.int64), np.array(numbers, np.int64))

    def _convolve(self, layer: _Layer, source: np.ndarray, target: np.ndarray, *, pooled: bool) -> None:
        if not layer.fast:
            self._convolve_wide(layer, source, target, pooled)
            return
        blocks, _, _, width, _ = layer.filters.shape
        tiles = kernels_numba.REGISTER_TILES[width]
        columns = layer.conv.size // 2
        rows = len(source) * columns
        step = max(1, min(_TILES // columns, rows))
        pooling = (pooled, self._network.sampling_method == arithmetic.TOP_LEFT)

        def part(first_row: int, last_row: int, first_block: int, last_block: int) -> None:
            scratch = self._thread_scratch(step * columns + tiles, source.shape[3], width)
            kernels_numba.convolve_tiles(
                source,
                layer.filters,
                layer.biases,
                target,
                layer.numbers,
                pooling,
                tiles,
                (first_row, last_row),
                (first_block, last_block),
                step,
                scratch,
            )

        work = 9 * len(source) * layer.conv.size**2 * layer.conv.input_channels * layer.conv.output_channels
        wanted = self._threads * _PARTS if self._threads > 1 and work >= _WORTH_SHARING else 1
        steps = -(-rows // step)
        row_parts = min(steps, wanted)
        block_parts = min(blocks, -(-wanted // row_parts))
        row_edges = [step * (steps * i // row_parts) for i in range(row_parts)] + [rows]
        block_edges = [blocks * i // block_parts for i in range(block_parts + 1)]
        self._share(
            [
                lambda r=r, b=b: part(row_edges[r], row_edges[r + 1], block_edges[b], block_edges[b + 1])
                for r in range(row_parts)
                for b in range(block_parts)
            ]
        )

    def _convolve_wide(self, layer: _Layer, source: np.ndarray, target: np.ndarray, pooled: bool) -> None:
        size = layer.conv.size
        whole = _frame(np.zeros((len(source), size + 2, size + 2, layer.stored_outputs), layer.code_type))
        rows = len(source) * size
        parts = min(rows, self._threads * _PARTS)
        edges = [rows * i // parts for i in range(parts + 1)]
        self._share(
            [
                lambda a=a, b=b: kernels_numba.convolve_wide(
                    source, layer.filters, layer.biases, whole, layer.numbers, (a, b)
                )
                for a, b in itertools.pairwise(edges)
            ]
        )
        codes = _inner(whole)
        _inner(target)[:] = arithmetic.pool(codes, self._network.sampling_method) if pooled else codes

    def _share(self, parts: list[Callable]) -> list:
        """Return the results of the parts; the calling thread and the helpers take them as they are free."""
        waiting = deque(enumerate(parts))
        results: list = [None] * len(parts)

        def work() -> None:
            while waiting:
                try:
                    index, part = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                results[index] = part()

        helpers = [self._helpers().submit(work) for _ in range(min(self._threads, len(parts)) - 1)]
        try:
            work()
        finally:
            waiting.clear()
            wait(helpers)
        for helper in helpers:
            helper.result()
        return results

    def _helpers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool_owner != os.getpid():  # a forked process inherits no threads
                self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="emulator")
                self._pool_owner = os.getpid()
            return self._pool

    def _thread_scratch(self, tiles: int, channels: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        values = _grown(getattr(self._scratch, "values", None), POSITIONS * tiles * channels, np.int16)
        sums = _grown(getattr(self._scratch, "sums", None), POSITIONS * tiles * width, np.int32)
        self._scratch.values, self._scratch.sums = values, sums
        return values, sums


def _grown(array: np.ndarray | None, size: int, kind: type) -> np.ndarray:
    return array if array is not None and array.size >= size else np.empty(size, kind)


def _reuse(buffers: list[np.ndarray], index: int, shape: tuple[int, ...], kind: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    buffers[index] = _grown(buffers[index], size, np.uint8)
    return buffers[index][:size].view(kind).reshape(shape)


def _frame(buffer: np.ndarray) -> np.ndarray:
    """Zero the border of [N, H + 2, W + 2, C] and return it: the padding of the convolution that reads it."""
    buffer[:, 0] = buffer[:, -1] = 0
    buffer[:, :, 0] = buffer[:, :, -1] = 0
    return buffer


def _inner(buffer: np.ndarray) -> np.ndarray:
    return buffer[:, 1:-1, 1:-1]


def _framed(codes: np.ndarray, channels: int) -> np.ndarray:
    """Return codes [N, H, W, C] as [N, H + 2, W + 2, channels], zeros around and in the channels beyond C."""
    count, height, width, visible = codes.shape
    result = np.zeros((count, height + 2, width + 2, channels), codes.dtype)
    result[:, 1:-1, 1:-1, :visible] = codes
    return result
