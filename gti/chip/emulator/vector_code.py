"""Vector instructions for the numba engine, written as generic LLVM code: one source for AVX-512, AVX2 and NEON.

Each function here is called from compiled code with plain memory addresses. `lanes`, `tiles` and `vectors` must be
literal integers at the call, because a register tile is laid out when the code is compiled. Nothing checks bounds.

The transforms are those of Winograd's F(2x2, 3x3) on integers (docs/emulator.md, fast engine). What follows them is
written by the functions of `arithmetic`, which act on vectors as they act on arrays.
"""

# Compiled code takes positional arguments only.
# ruff: noqa: PLR0917

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gti.chip.emulator import arithmetic

LANES = 16  # int32 lanes of one vector of accumulators
POSITIONS = 16  # a transformed 4x4 tile
# What is kept of a 2x2 window of results.
WHOLE_WINDOW, LARGEST, TOP_LEFT = 0, 1, 2

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _literal_intrinsic(definition: Callable) -> Any:
    return intrinsic(prefer_literal=True)(definition)


def _vector(element: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(element, lanes)


def _pointer(builder: ir.IRBuilder, address: ir.Value, vector: ir.Type) -> ir.Value:
    return builder.inttoptr(address, vector.as_pointer())


def _load(builder: ir.IRBuilder, address: ir.Value, vector: ir.Type, align: int) -> ir.Value:
    return builder.load(_pointer(builder, address, vector), align=align)


def _store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=align)


def _offset(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value, times: int) -> ir.Value:
    return builder.add(address, builder.mul(stride, _I64(times))) if times else address


@_literal_intrinsic
def transform_input(typing_context, lanes, source, row, pixel, target, position):
    """Transform a 4x4 patch d of `lanes` channels: B'dB, as int16.

    `source` uint8 codes with strides `row` and `pixel` in bytes; the 16 results lie `position` bytes apart.
    B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]. Codes up to 31 give values within -62..124.
    """
    count = lanes.literal_value

    def generate(context, builder, signature, arguments):
        _, source, row, pixel, target, position = arguments

        def transformed(d):
            return (
                builder.sub(d[0], d[2]),
                builder.add(d[1], d[2]),
                builder.sub(d[2], d[1]),
                builder.sub(d[1], d[3]),
            )

        rows = []
        for y in range(4):
            line = _offset(builder, source, row, y)
            patch = [
                builder.zext(
                    _load(builder, _offset(builder, line, pixel, x), _vector(_I8, count), 1), _vector(_I16, count)
                )
                for x in range(4)
            ]
            rows.append(transformed(patch))
        columns = [transformed([rows[y][x] for y in range(4)]) for x in range(4)]
        for y in range(4):
            for x in range(4):
                _store(builder, columns[x][y], _offset(builder, target, position, 4 * y + x), 2)
        return context.get_dummy_value()

    return types.none(lanes, *[types.int64] * 5), generate


def adds_pairs(triple: str) -> bool:
    """Return whether processors of the LLVM target `triple` multiply and add 16-bit pairs in one instruction."""
    return triple.startswith(("x86_64", "i386", "i686"))


def _shuffle(builder: ir.IRBuilder, vector: ir.Value, lanes: range | list[int]) -> ir.Value:
    mask = ir.Constant(_vector(_I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


_EVEN, _ODD = range(0, 2 * LANES, 2), range(1, 2 * LANES, 2)


class _PairProducts:
    """Products of channel pairs in the form that becomes vpmaddwd and vpdpwssd: multiply all, add neighbours."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._builder, self._wide = builder, _vector(_I32, 2 * LANES)

    def filters(self, address: ir.Value) -> ir.Value:
        return self._builder.sext(_load(self._builder, address, _vector(_I16, 2 * LANES), 2), self._wide)

    def value(self, address: ir.Value) -> ir.Value:
        pair = _load(self._builder, address, _vector(_I32, 1), 2)
        pairs = self._builder.bitcast(_shuffle(self._builder, pair, [0] * LANES), _vector(_I16, 2 * LANES))
        return self._builder.sext(pairs, self._wide)

    def sum(self, filters: ir.Value, value: ir.Value) -> ir.Value:
        product = self._builder.mul(filters, value)
        return self._builder.add(_shuffle(self._builder, product, _EVEN), _shuffle(self._builder, product, _ODD))


class _HalfProducts:
    """The same products in the form that becomes smlal of NEON: even channels and odd channels apart."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._builder, self._lanes = builder, _vector(_I32, LANES)

    def filters(self, address: ir.Value) -> tuple[ir.Value, ir.Value]:
        pairs = _load(self._builder, address, _vector(_I16, 2 * LANES), 2)
        even, odd = (self._builder.sext(_shuffle(self._builder, pairs, half), self._lanes) for half in (_EVEN, _ODD))
        return even, odd

    def value(self, address: ir.Value) -> tuple[ir.Value, ir.Value]:
        pair = _load(self._builder, address, _vector(_I16, 2), 2)
        even, odd = (self._builder.sext(_shuffle(self._builder, pair, [half] * LANES), self._lanes) for half in (0, 1))
        return even, odd

    def sum(self, filters: tuple[ir.Value, ir.Value], value: tuple[ir.Value, ir.Value]) -> ir.Value:
        even, odd = (self._builder.mul(f, v) for f, v in zip(filters, value, strict=True))
        return self._builder.add(even, odd)


@_literal_intrinsic
def multiply_panel(typing_context, tiles, vectors, values, stride, filters, pairs, sums):
    """Multiply `tiles` rows of int16 channel pairs with `vectors` * 16 output channels into int32 sums.

    `values`: `tiles` rows, `stride` bytes apart, of `pairs` channel pairs; `filters`: [pairs, vectors * 16, 2];
    `sums`: [tiles, vectors * 16], overwritten. All sums stay in registers and wrap modulo 2**32.
    """
    rows, columns = tiles.literal_value, vectors.literal_value

    def generate(context, builder, signature, arguments):
        _, _, values, stride, filters, pairs, sums = arguments
        products = (_PairProducts if adds_pairs(builder.module.triple) else _HalfProducts)(builder)
        lanes, vector_bytes = _vector(_I32, LANES), 4 * LANES
        starts = [_offset(builder, values, stride, r) for r in range(rows)]
        before = builder.block
        loop = builder.append_basic_block("pairs")
        after = builder.append_basic_block("sums")
        builder.branch(loop)

        builder.position_at_end(loop)
        index = builder.phi(_I64)
        accumulators = [[builder.phi(lanes) for _ in range(columns)] for _ in range(rows)]
        filter_address = builder.add(filters, builder.mul(index, _I64(columns * vector_bytes)))
        value_offset = builder.mul(index, _I64(4))
        taps = [products.filters(builder.add(filter_address, _I64(c * vector_bytes))) for c in range(columns)]
        totals = []
        for r in range(rows):
            value = products.value(builder.add(starts[r], value_offset))
            totals.append([builder.add(accumulators[r][c], products.sum(taps[c], value)) for c in range(columns)])
        following = builder.add(index, _I64(1))
        index.add_incoming(_I64(0), before)
        index.add_incoming(following, loop)
        for r in range(rows):
            for c in range(columns):
                accumulators[r][c].add_incoming(ir.Constant(lanes, [0] * LANES), before)
                accumulators[r][c].add_incoming(totals[r][c], loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)

        builder.position_at_end(after)
        for r in range(rows):
            for c in range(columns):
                _store(builder, totals[r][c], builder.add(sums, _I64((r * columns + c) * vector_bytes)), 4)
        return context.get_dummy_value()

    return types.none(tiles, vectors, *[types.int64] * 5), generate


_INSTRUCTIONS: dict[np.ufunc, Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]] = {
    np.add: ir.IRBuilder.add,
    np.subtract: ir.IRBuilder.sub,
    np.right_shift: ir.IRBuilder.ashr,
    np.left_shift: ir.IRBuilder.shl,
    np.minimum: lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b),
    np.maximum: lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b),
}


class _Lanes:
    """A vector of int32 in code that is being written: NumPy's functions on it write instructions."""

    def __init__(self, builder: ir.IRBuilder, vector: ir.Value) -> None:
        self._builder, self.vector = builder, vector

    def __array_ufunc__(self, function: np.ufunc, method: str, first: _Lanes, second: _Lanes) -> _Lanes:
        return _Lanes(self._builder, _INSTRUCTIONS[function](self._builder, first.vector, second.vector))


@_literal_intrinsic
def store_window(typing_context, kept, codes, sums, position, biases, numbers, target, row, pixel):
    """Transform 4x4 sums m of 16 output channels to the 2x2 window A'mA / 4, add biases, requantize and store.

    `kept`: WHOLE_WINDOW stores four pixels, `row` and `pixel` bytes apart, LARGEST and TOP_LEFT store one.
    `codes`: the array that the address `target` lies in, for its type. The 16 sums lie `position` bytes apart.
    `biases`: address of int32 [16]; `numbers`: a Requantization, five int32.
    A' = [1 1 1 0; 0 1 -1 -1]. The filters hold four times their value, so the division is exact.
    """
    stored = kept.literal_value

    def generate(context, builder, signature, arguments):
        _, _, sums, position, biases, numbers, target, row, pixel = arguments
        lane = _vector(_I32, LANES)

        def loaded(address):
            return _Lanes(builder, _load(builder, address, lane, 4))

        def all_lanes(scalar):
            one = builder.insert_element(ir.Constant(lane, ir.Undefined), scalar, _I32(0))
            return _Lanes(builder, _shuffle(builder, one, [0] * LANES))

        def transformed(m):
            return np.add(np.add(m[0], m[1]), m[2]), np.subtract(np.subtract(m[1], m[2]), m[3])

        rows = [transformed([loaded(_offset(builder, sums, position, 4 * y + x)) for x in range(4)]) for y in range(4)]
        columns = [transformed([rows[y][x] for y in range(4)]) for x in range(2)]
        (top_left, bottom_left), (top_right, bottom_right) = columns
        window = [top_left, top_right, bottom_left, bottom_right]
        if stored != WHOLE_WINDOW:
            window = [arithmetic.pool_window(top_left, top_right, bottom_left, bottom_right, stored == TOP_LEFT)]
        two, bias = all_lanes(_I32(2)), loaded(biases)
        vectors = [all_lanes(builder.extract_value(numbers, index)) for index in range(5)]
        code_type = _vector(ir.IntType(signature.args[1].dtype.bitwidth), LANES)
        for corner, value in enumerate(window):
            result = arithmetic.requantize(np.add(np.right_shift(value, two), bias), *vectors)
            address = _offset(builder, _offset(builder, target, row, corner // 2), pixel, corner % 2)
            _store(builder, builder.trunc(result.vector, code_type), address, 1)
        return context.get_dummy_value()

    three = [types.int64] * 3
    return types.none(kept, codes, *three, types.UniTuple(types.int32, 5), *three), generate
