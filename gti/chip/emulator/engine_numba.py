"""The fast engine: Winograd convolutions in compiled integers, equal to the reference code for code.

`layers_numba` says which sublayers may take which path, and holds their filters; this module runs them in threads.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from gti.chip.emulator import arithmetic, kernels_numba, layers_numba
from gti.chip.emulator.layers_numba import Layer
from gti.chip.network.types import Convolution, ConvolutionWeights, Network

_LARGEST_WINDOW = max(kernels_numba.WINDOWS)
# Tiles computed together, by window: few enough for their sums to stay in the second-level cache, but where the filters
# of a position leave the first-level cache, enough to be worth the way to the third.
_TILES = {2: 112, 4: 24}
_TILES_OF_MANY_CHANNELS = 98
_MANY_CHANNELS = 256
_LARGEST_WINDOW = max(kernels_numba.WINDOWS)
# Parts of a sublayer per thread: threads that are held up leave their share to the others.
_PARTS = 4
# Multiply-adds below which waking other threads takes longer than the work.
_WORTH_SHARING = 16_000_000


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
        self._scratch = _Scratch()
        self._buffers: list[list[np.ndarray]] = []
        self._layers = [
            layers_numba.prepare(conv, layer, fill, self._share)
            for conv, layer, fill in zip(network.convolutions, weights, fills, strict=True)
        ]

    def sublayers(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the codes [N, H, W, out] of each sublayer before pooling, for input codes [N, H, W, in].

        The arrays are read-only: the next sublayer reads the same memory.
        """
        buffer = _framed(codes, self._layers[0].stored_inputs)
        for layer in self._layers:
            size = layer.conv.size
            if layer.fill:
                buffer = _framed(arithmetic.upsample(_inner(buffer, size // 2), layer.fill), buffer.shape[3])
            result: np.ndarray = np.empty((len(codes), *_room(size), layer.stored_outputs), layer.code_type)
            self._convolve(layer, buffer, result, pooled=False)
            inner = _inner(result, size)
            visible = inner[..., : layer.conv.output_channels]
            visible.flags.writeable = False
            yield visible
            buffer = result
            if layer.conv.pooled:
                buffer = _framed(arithmetic.pool(inner, self._network.sampling_method), layer.stored_outputs)

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes [N, H, W, out] after the last sublayer, pooling included."""
        try:
            buffers = self._buffers.pop()
        except IndexError:  # all of them are at work in other threads
            buffers = []
        if not buffers or len(buffers[0]) < len(codes):
            buffers = self._targets(len(codes))
        try:
            return self._forward(codes, [buffer[: len(codes)] for buffer in buffers])
        finally:
            self._buffers.append(buffers)

    def _forward(self, codes: np.ndarray, targets: list[np.ndarray]) -> np.ndarray:
        source = _framed(codes, self._layers[0].stored_inputs)
        for layer, target in zip(self._layers, targets, strict=True):
            if layer.fill:
                source = _framed(arithmetic.upsample(_inner(source, layer.conv.size // 2), layer.fill), source.shape[3])
            self._convolve(layer, source, target, pooled=layer.conv.pooled)
            source = target
        last = self._layers[-1].conv
        return _inner(source, _output_size(last))[..., : last.output_channels].copy()

    def _targets(self, count: int) -> list[np.ndarray]:
        """Return an array for the results of each sublayer, in two buffers that all of them share in turn."""
        shapes = [(count, *_room(_output_size(layer.conv)), layer.stored_outputs) for layer in self._layers]
        types = [np.dtype(layer.code_type) for layer in self._layers]
        sizes = [math.prod(shape) * kind.itemsize for shape, kind in zip(shapes, types, strict=True)]
        buffers = [np.empty(max(sizes[first::2], default=0), np.uint8) for first in (0, 1)]
        return [
            buffers[index % 2][:size].view(kind).reshape(shape)
            for index, (shape, kind, size) in enumerate(zip(shapes, types, sizes, strict=True))
        ]

    def _convolve(self, layer: Layer, source: np.ndarray, target: np.ndarray, *, pooled: bool) -> None:
        size = layer.conv.size
        if layer.window:
            self._convolve_tiles(layer, source, target, pooled)
        else:
            self._convolve_wide(layer, source, target, pooled)
        _frame(target, size // 2 if pooled else size)

    def _convolve_tiles(self, layer: Layer, source: np.ndarray, target: np.ndarray, pooled: bool) -> None:
        blocks, _, _, width, _ = layer.filters.shape
        register_tiles = kernels_numba.REGISTER_TILES[width]
        total = len(source) * (-(-layer.conv.size // layer.window)) ** 2
        many = layer.window > 2 and layer.stored_inputs > _MANY_CHANNELS
        step = _TILES_OF_MANY_CHANNELS if many else _TILES[layer.window]
        step = -(-total // -(-total // step))
        call = object()
        pooling = (pooled, self._network.sampling_method == arithmetic.TOP_LEFT)

        def part(tiles: tuple[int, int], blocks: tuple[int, int]) -> None:
            scratch = self._scratch.memory(layer, source.shape[3], step + register_tiles)
            known = self._scratch.holds == (call, tiles)
            self._scratch.holds = (call, tiles) if tiles[1] - tiles[0] <= step else None
            kernels_numba.convolve_tiles[layer.window](
                source,
                layer.filters,
                layer.further,
                layer.owners,
                layer.starts,
                layer.biases,
                target,
                layer.numbers,
                pooling,
                register_tiles,
                layer.conv.size,
                tiles,
                blocks,
                step,
                scratch,
                known,
            )

        work = 9 * len(source) * layer.conv.size**2 * layer.conv.input_channels * layer.conv.output_channels
        wanted = self._threads * _PARTS if self._threads > 1 and work >= _WORTH_SHARING else 1
        steps = -(-total // step)
        tile_parts = min(steps, wanted)
        block_parts = min(blocks, -(-wanted // tile_parts))
        tile_edges = [step * (steps * i // tile_parts) for i in range(tile_parts)] + [total]
        block_edges = [blocks * i // block_parts for i in range(block_parts + 1)]
        self._share(
            [
                lambda t=t, b=b: part(t, b)
                for t in itertools.pairwise(tile_edges)
                for b in itertools.pairwise(block_edges)
            ]
        )

    def _convolve_wide(self, layer: Layer, source: np.ndarray, target: np.ndarray, pooled: bool) -> None:
        size = layer.conv.size
        whole: np.ndarray = np.zeros((len(source), size + 2, size + 2, layer.stored_outputs), layer.code_type)
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
        codes = _inner(whole, size)
        if pooled:
            codes = arithmetic.pool(codes, self._network.sampling_method)
        _inner(target, codes.shape[1])[:] = codes

    def _share(self, parts: list[Callable[..., Any]]) -> list[Any]:
        """Return the results of the parts; the calling thread and the helpers take them as they are free."""
        if len(parts) == 1:
            return [parts[0]()]
        waiting = deque(enumerate(parts))
        results: list[Any] = [None] * len(parts)

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


class _Scratch(threading.local):
    """What a thread keeps: memory for the values and sums of a step, and which tiles the values belong to."""

    values = np.empty(0, np.int16)
    further = np.empty(0, np.int16)  # values of the further channel pairs of one block and position
    sums = np.empty(0, np.int32)
    holds: tuple[object, tuple[int, int]] | None = None

    def memory(self, layer: Layer, channels: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the arrays that `convolve_tiles` takes for this layer and so many tiles.

        `channels` are those of its source, which are more than its own after a layer of few outputs.
        """
        _, positions, _, width, _ = layer.filters.shape
        apart = kernels_numba.APART_BYTES
        self.values = _grown(self.values, positions * (tiles * channels + apart // 2))
        self.further = _grown(self.further, tiles * 2 * layer.most_further)
        self.sums = _grown(self.sums, (positions + 1) * (tiles * width + apart // 4))
        return self.values, self.further, self.sums


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    return array if array.size >= size else np.empty(size, array.dtype)


def _output_size(conv: Convolution) -> int:
    return conv.size // 2 if conv.pooled else conv.size


def _room(size: int) -> tuple[int, int]:
    """Return the height and width of a buffer for maps of `size`: a frame of one pixel, and whole tiles."""
    whole = -(-size // _LARGEST_WINDOW) * _LARGEST_WINDOW + 2
    return whole, whole


def _frame(buffer: np.ndarray, size: int) -> None:
    """Zero [N, room, room, C] but for the map of `size`: it is the padding of the convolution that reads it."""
    buffer[:, 0] = buffer[:, size + 1 :] = 0
    buffer[:, :, 0] = buffer[:, :, size + 1 :] = 0


def _inner(buffer: np.ndarray, size: int) -> np.ndarray:
    return buffer[:, 1 : size + 1, 1 : size + 1]


def _framed(codes: np.ndarray, channels: int) -> np.ndarray:
    """Return codes [N, H, H, C] as [N, room, room, channels], zeros around and in the channels beyond C."""
    count, size, _, visible = codes.shape
    result = np.zeros((count, *_room(size), channels), codes.dtype)
    inner = _inner(result, size)
    if visible % 4:  # NumPy copies short runs one by one; this is the image of three channels
        for channel in range(visible):
            inner[..., channel] = codes[..., channel]
    else:
        inner[..., :visible] = codes
    return result
