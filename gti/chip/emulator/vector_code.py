"""Vector instructions for the numba engine, written as generic LLVM code: one source for AVX-512, AVX2 and NEON.

Each function here is called from compiled code with plain memory addresses. `lanes`, `tiles` and `vectors` must be
literal integers at the call, because a register tile is laid out when the code is compiled. Nothing checks bounds.

The transforms are those of Winograd's F(2x2, 3x3) and F(4x4, 3x3) on integers (docs/emulator.md, fast engine). What
follows them is written by the functions of `arithmetic`, which act on vectors as they act on arrays.
"""

# Compiled code takes positional arguments only.
# ruff: noqa: PLR0917
# numba finds the types of what it compiles at the call.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config
from numba.core import types
from numba.extending import intrinsic

from gti.chip.emulator import arithmetic

LANES = 16  # int32 lanes of one vector of accumulators
# What is kept of a window of results: all of it, or one of each 2x2 pixels.
WHOLE_WINDOW, LARGEST, TOP_LEFT = 0, 1, 2
_NINTH = 0x38E38E39  # 9 * _NINTH = 1 modulo 2**32
# The transform of filters G by window, each row times what makes it integer; `_output_of_2` and `_output_of_4` know it.
FILTERS = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int32),
    4: np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 1]], np.int32),
}

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _literal_intrinsic(definition: Callable[..., Any]) -> Any:
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


class _Lanes:
    """A vector of integers in code that is being written: operators and NumPy's functions on it write instructions."""

    def __init__(self, builder: ir.IRBuilder, vector: ir.Value) -> None:
        self._builder, self.vector = builder, vector

    def __array_ufunc__(self, function: np.ufunc, method: str, first: _Lanes, second: _Lanes) -> _Lanes:
        return _Lanes(self._builder, _INSTRUCTIONS[function](self._builder, first.vector, second.vector))

    def __add__(self, other: _Lanes) -> _Lanes:
        return _Lanes(self._builder, self._builder.add(self.vector, other.vector))

    def __sub__(self, other: _Lanes) -> _Lanes:
        return _Lanes(self._builder, self._builder.sub(self.vector, other.vector))

    def __rshift__(self, other: _Lanes) -> _Lanes:
        return _Lanes(self._builder, self._builder.ashr(self.vector, other.vector))

    def times(self, factor: int) -> _Lanes:
        """Return the product with a constant, modulo 2**bits."""
        constant = ir.Constant(self.vector.type, [factor] * self.vector.type.count)
        return _Lanes(self._builder, self._builder.mul(self.vector, constant))


_INSTRUCTIONS: dict[np.ufunc, Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]] = {
    np.add: ir.IRBuilder.add,
    np.right_shift: ir.IRBuilder.ashr,
    np.left_shift: ir.IRBuilder.shl,
    np.minimum: lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b),
    np.maximum: lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b),
}


def _input_of_2(d: list[_Lanes]) -> list[_Lanes]:
    """B'd of F(2, 3), B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _input_of_4(d: list[_Lanes]) -> list[_Lanes]:
    """B'd of F(4, 3), B' = [4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1].

    Points 0, 1, -1, 2, -2 and infinity: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
    """
    even, odd = d[4] - d[2].times(4), d[3] - d[1].times(4)
    outer, inner = d[4] - d[2], (d[3] - d[1]).times(2)
    return [
        d[0].times(4) - d[2].times(5) + d[4],
        even + odd,
        even - odd,
        outer + inner,
        outer - inner,
        d[1].times(4) - d[3].times(5) + d[5],
    ]


def _output_of_2(m: list[_Lanes]) -> list[_Lanes]:
    """Twice both results: A'm, A' = [1 1 1 0; 0 1 -1 -1], of filters transformed by `FILTERS[2]`."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _output_of_4(m: list[_Lanes]) -> list[_Lanes]:
    """24, 12, 6 and 6 times the four results: A' = [6 -4 -4 1 1 0; 0 -2 2 1 -1 0; 0 -1 -1 1 1 0; 0 -1 1 2 -2 6]."""
    p, q, r, s = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [m[0].times(6) + r - p.times(4), s - q.times(2), r - p, m[5].times(6) + s.times(2) - q]


_INPUT, _OUTPUT = {2: _input_of_2, 4: _input_of_4}, {2: _output_of_2, 4: _output_of_4}


def _in_both_directions(transform: Callable[[list[_Lanes]], list[_Lanes]], d: list[list[_Lanes]]) -> list[list[_Lanes]]:
    rows = [transform(row) for row in d]
    columns = [transform([row[x] for row in rows]) for x in range(len(rows[0]))]
    return [[column[y] for column in columns] for y in range(len(columns[0]))]


@_literal_intrinsic
def transform_input(typing_context, window, lanes, source, row, pixel, target, position):
    """Transform a patch d of `window` + 2 pixels a side and `lanes` channels: B'dB, as int16.

    `source` uint8 codes with strides `row` and `pixel` in bytes; the results lie `position` bytes apart.
    Codes up to 31 give values within -62..124 (`window` 2) or -1550..2108 (4).
    """
    side, count = window.literal_value + 2, lanes.literal_value

    def generate(context, builder, signature, arguments):
        _, _, source, row, pixel, target, position = arguments

        def loaded(address):
            return _Lanes(builder, builder.zext(_load(builder, address, _vector(_I8, count), 1), _vector(_I16, count)))

        lines = [_offset(builder, source, row, y) for y in range(side)]
        patch = [[loaded(_offset(builder, line, pixel, x)) for x in range(side)] for line in lines]
        for y, values in enumerate(_in_both_directions(_INPUT[window.literal_value], patch)):
            for x, value in enumerate(values):
                _store(builder, value.vector, _offset(builder, target, position, side * y + x), 2)
        return context.get_dummy_value()

    return types.none(window, lanes, *[types.int64] * 5), generate


def vectors_of_64_bytes() -> bool:
    """Return whether the processor that numba compiles for has AVX-512 with 16-bit integers."""
    # numba compiles for the features of the host unless its own setting names others.
    chosen = getattr(config, "CPU_FEATURES", None)
    if chosen is not None:
        return "+avx512bw" in chosen
    return bool(binding.get_host_cpu_features().get("avx512bw"))


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
        write = partial(_write_panel, rows, columns)
        if vectors_of_64_bytes():
            write(builder, *arguments[2:])
        else:
            _called(builder, f"multiply_panel_{rows}_{columns}", write, arguments[2:])
        return context.get_dummy_value()

    return types.none(tiles, vectors, *[types.int64] * 5), generate


def _called(builder: ir.IRBuilder, name: str, write: Callable[..., None], arguments: Sequence[ir.Value]) -> None:
    """Call the function `name`, which `write` writes at its first call in a module.

    Where registers are few, a loop inside a large function loses some of them to what is around it: without this, AVX2
    code takes 1.6 times as long. Where there are enough, a call costs more than it gains.
    """
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block("start"))
        write(inside, *function.args)
        inside.ret_void()
    builder.call(function, arguments)


def _write_panel(
    rows: int,
    columns: int,
    builder: ir.IRBuilder,
    values: ir.Value,
    stride: ir.Value,
    filters: ir.Value,
    pairs: ir.Value,
    sums: ir.Value,
) -> None:
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


def _divided(sums: list[list[_Lanes]], all_lanes: Callable[[ir.Value], _Lanes]) -> list[list[_Lanes]]:
    """Return the window of results of the transformed sums: an exact division by powers of two, and by 9 of F(4, 3).

    A product with the inverse of 9 divides modulo 2**32, so only the power of two must leave room in 32 bits.
    """
    if len(sums) == 2:
        return [[value >> all_lanes(_I32(2)) for value in row] for row in sums]
    places = [3, 2, 1, 1]  # 24, 12, 6, 6 without their factor 3
    return [
        [value.times(_NINTH) >> all_lanes(_I32(down + along)) for value, along in zip(row, places, strict=True)]
        for row, down in zip(sums, places, strict=True)
    ]


def _pooled(window: list[list[_Lanes]], take_top_left: bool) -> list[list[Any]]:
    """Return what pooling keeps of a window: one of each 2x2 results."""
    return [
        [
            arithmetic.pool_window(above[x], above[x + 1], below[x], below[x + 1], take_top_left)
            for x in range(0, len(above), 2)
        ]
        for above, below in zip(window[0::2], window[1::2], strict=True)
    ]


@_literal_intrinsic
def store_window(typing_context, window, kept, codes, sums, position, biases, numbers, target, row, pixel):
    """Transform the sums m of 16 output channels to a window of results, add biases, requantize and store.

    `window`: 2 or 4 pixels a side. `kept`: WHOLE_WINDOW stores all pixels, `row` and `pixel` bytes apart, LARGEST and
    TOP_LEFT one of each 2x2. `codes`: the array that the address `target` lies in, for its type. The (window + 2)**2
    sums lie `position` bytes apart. `biases`: address of int32 [16]; `numbers`: a Requantization, five int32.
    """
    side, stored = window.literal_value + 2, kept.literal_value

    def generate(context, builder, signature, arguments):
        _, _, _, sums, position, biases, numbers, target, row, pixel = arguments
        lane = _vector(_I32, LANES)

        def loaded(address):
            return _Lanes(builder, _load(builder, address, lane, 4))

        def all_lanes(scalar):
            one = builder.insert_element(ir.Constant(lane, ir.Undefined), scalar, _I32(0))
            return _Lanes(builder, _shuffle(builder, one, [0] * LANES))

        products = [[loaded(_offset(builder, sums, position, side * y + x)) for x in range(side)] for y in range(side)]
        results = _divided(_in_both_directions(_OUTPUT[side - 2], products), all_lanes)
        if stored != WHOLE_WINDOW:
            results = _pooled(results, stored == TOP_LEFT)
        bias = loaded(biases)
        vectors = [all_lanes(builder.extract_value(numbers, index)) for index in range(5)]
        code_type = _vector(ir.IntType(signature.args[2].dtype.bitwidth), LANES)
        for y, line in enumerate(results):
            for x, value in enumerate(line):
                result = arithmetic.requantize(value + bias, *vectors)
                address = _offset(builder, _offset(builder, target, row, y), pixel, x)
                _store(builder, builder.trunc(result.vector, code_type), address, 1)
        return context.get_dummy_value()

    three = [types.int64] * 3
    return types.none(window, kept, codes, *three, types.UniTuple(types.int32, 5), *three), generate
