"""Vector instructions for the numba engine, written as generic LLVM code: one source for AVX-512, AVX2 and NEON.

Each function here is called from compiled code with plain memory addresses. `lanes`, `tiles` and `vectors` must be
literal integers at the call, because a register tile is laid out when the code is compiled. Nothing checks bounds.

The transforms are those of Winograd's F(2x2, 3x3) on integers (docs/emulator.md, fast engine).
"""

# Compiled code takes positional arguments only.
# ruff: noqa: PLR0917

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 16  # int32 lanes of one vector of accumulators
POSITIONS = 16  # a transformed 4x4 tile

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


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


@intrinsic(prefer_literal=True)
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


@intrinsic(prefer_literal=True)
def multiply_panel(typing_context, tiles, vectors, values, stride, filters, pairs, sums):
    """Multiply `tiles` rows of int16 channel pairs with `vectors` * 16 output channels into int32 sums.

    `values`: `tiles` rows, `stride` bytes apart, of `pairs` channel pairs; `filters`: [pairs, vectors * 16, 2];
    `sums`: [tiles, vectors * 16], overwritten. All sums stay in registers; products of a pair are added as the
    multiply-add instructions of the processor do it (vpdpwssd, vpmaddwd), wrapping modulo 2**32.
    """
    rows, columns = tiles.literal_value, vectors.literal_value

    def generate(context, builder, signature, arguments):
        _, _, values, stride, filters, pairs, sums = arguments
        lane, pair = _vector(_I32, LANES), _vector(_I16, 2 * LANES)
        wide = _vector(_I32, 2 * LANES)
        even, odd, first = (
            ir.Constant(lane, list(range(0, 2 * LANES, 2))),
            ir.Constant(lane, list(range(1, 2 * LANES, 2))),
            ir.Constant(lane, [0] * LANES),
        )
        undefined_lane, undefined_wide = ir.Constant(lane, ir.Undefined), ir.Constant(wide, ir.Undefined)
        starts = [_offset(builder, values, stride, r) for r in range(rows)]
        before = builder.block
        loop = builder.append_basic_block("pairs")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(_I64)
        index.add_incoming(_I64(0), before)
        accumulators = [[builder.phi(lane) for _ in range(columns)] for _ in range(rows)]
        zero = ir.Constant(lane, [0] * LANES)
        filter_address = builder.add(filters, builder.mul(index, _I64(columns * LANES * 4)))
        value_offset = builder.mul(index, _I64(4))
        weights = [
            builder.sext(
                _load(builder, builder.add(filter_address, _I64(c * LANES * 4)), pair, 2),
                wide,
            )
            for c in range(columns)
        ]
        following = builder.add(index, _I64(1))
        for r in range(rows):
            both = builder.load(_pointer(builder, builder.add(starts[r], value_offset), _I32), align=2)
            splat = builder.shuffle_vector(builder.insert_element(undefined_lane, both, _I32(0)), undefined_lane, first)
            broadcast = builder.sext(builder.bitcast(splat, pair), wide)
            for c in range(columns):
                product = builder.mul(weights[c], broadcast)
                total = builder.add(
                    builder.shuffle_vector(product, undefined_wide, even),
                    builder.shuffle_vector(product, undefined_wide, odd),
                )
                phi = accumulators[r][c]
                phi.add_incoming(zero, before)
                phi.add_incoming(builder.add(phi, total), builder.block)
        index.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)
        builder.position_at_end(after)
        for r in range(rows):
            for c in range(columns):
                value = accumulators[r][c].incomings[1][0]
                _store(builder, value, builder.add(sums, _I64((r * columns + c) * LANES * 4)), 4)
        return context.get_dummy_value()

    return types.none(tiles, vectors, *[types.int64] * 5), generate


@intrinsic
def transform_sums(typing_context, sums, position, target, corner):
    """Transform 4x4 sums m of 16 output channels to the 2x2 window A'mA / 4, int32.

    The 16 sums lie `position` bytes apart, the four results `corner` bytes: top-left, top-right, bottom-left,
    bottom-right. A' = [1 1 1 0; 0 1 -1 -1]. The filters hold four times their value, so the division is exact.
    """

    def generate(context, builder, signature, arguments):
        sums, position, target, corner = arguments
        lane = _vector(_I32, LANES)

        def transformed(m):
            return (
                builder.add(builder.add(m[0], m[1]), m[2]),
                builder.sub(builder.sub(m[1], m[2]), m[3]),
            )

        rows = [
            transformed([_load(builder, _offset(builder, sums, position, 4 * y + x), lane, 4) for x in range(4)])
            for y in range(4)
        ]
        two = ir.Constant(lane, [2] * LANES)
        for x in range(2):
            for y, value in enumerate(transformed([rows[i][x] for i in range(4)])):
                _store(builder, builder.ashr(value, two), _offset(builder, target, corner, 2 * y + x), 4)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4), generate
