"""Short vectors inside compiled loops: loads, arithmetic and table look-ups as LLVM vector instructions.

numba knows no vector types, and whether LLVM turns a scalar loop into the vector code one has in mind is luck. Here a
vector is a type of its own, held in registers, and each function becomes one or a few LLVM instructions. All but the
look-ups are generic: LLVM splits them to what the processor has. Look-ups are AVX-512
permutations where the processor has them, and one load per lane elsewhere.

Offsets count elements from the first of a contiguous array. Nothing is checked: the callers own the bounds. Where an
array is meant, its bare address (`raw`) does as well.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.types.misc import CPointer
from numba.extending import models, register_model

from hw.sparse.jit import has_avx512, intrinsic

#: lanes of a vector that fills an AVX-512 register with float32
LANES = 16
#: floats that a look-up can reach from its base
WINDOW = 32
_CACHE_LINE = 64  # bytes
_CACHE_LEVELS_KEPT = 3

#: what `raw` yields
Address = Any


class VectorType(types.Type):
    """So many elements of one type, side by side in registers."""

    def __init__(self, element: Any, width: int) -> None:
        self.element, self.width = element, width
        super().__init__(name=f"vector<{width} x {element}>")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: VectorType) -> None:
        element = manager.lookup(vector.element).get_data_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.width))


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    bare = isinstance(array_type, CPointer)
    return array if bare else context.make_array(array_type)(context, builder, array).data


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    return builder.gep(_data(context, builder, array_type, array), [offset])


def _vector_pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, width: int) -> Any:
    element = context.get_data_type(array_type.dtype)
    pointer = _pointer(context, builder, array_type, array, offset)
    return builder.bitcast(pointer, ir.VectorType(element, width).as_pointer())


def _splat(builder: Any, scalar: Any, width: int) -> Any:
    vector = ir.VectorType(scalar.type, width)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), width), None))


@intrinsic
def raw(typing: Any, array: Any) -> Any:
    """The address of an array's first element.

    A function that takes arrays counts their references, with instructions that cost 20 cycles each, and gets seven
    numbers for each. Addresses are free, but keep nothing alive: take them only of what the caller holds.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _data(context, builder, array, arguments[0])

    return CPointer(array.dtype)(array), write


@intrinsic
def raw_aligned(typing: Any, array: Any) -> Any:
    """The address of an array's first element that begins a cache line."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _data(context, builder, array, arguments[0])
        index = context.get_value_type(types.intp)
        up = builder.add(builder.ptrtoint(data, index), index(_CACHE_LINE - 1))
        return builder.inttoptr(builder.and_(up, index(-_CACHE_LINE)), data.type)

    return CPointer(array.dtype)(array), write


@intrinsic
def load(typing: Any, width: Any, array: Any, offset: Any) -> Any:
    """`width` elements of an array from an offset, at any alignment."""
    vector, size = VectorType(array.dtype, width.literal_value), array.dtype.bitwidth // 8

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _vector_pointer(context, builder, array, arguments[1], arguments[2], vector.width)
        return builder.load(pointer, align=size)

    return vector(width, array, types.intp), write


@intrinsic
def store(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Write a vector into an array from an offset, at any alignment."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _vector_pointer(context, builder, array, arguments[0], arguments[1], vector.width)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), write


@intrinsic
def at(typing: Any, array: Any, offset: Any) -> Any:
    """One element of an array; without the test for negative indices that an index would cost."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, array, *arguments))

    return array.dtype(array, types.intp), write


@intrinsic
def splat(typing: Any, width: Any, scalar: Any) -> Any:
    """A float32 in all of `width` lanes."""
    vector = VectorType(types.float32, width.literal_value)

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[1], vector.width)

    return vector(width, types.float32), write


@intrinsic
def load_like(typing: Any, example: Any, array: Any, offset: Any) -> Any:
    """As many elements of an array as the example has lanes, from an offset, at any alignment.

    The address is worked out once: LLVM would give each register's load its own base and index, with which a load and
    an addition in one instruction count as two. An empty piece of assembly keeps it from that.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _vector_pointer(context, builder, array, arguments[1], arguments[2], example.width)
        hidden = ir.InlineAsm(ir.FunctionType(pointer.type, [pointer.type]), "", "=r,0")
        return builder.load(builder.call(hidden, [pointer]), align=array.dtype.bitwidth // 8)

    return example(example, array, types.intp), write


@intrinsic
def load_between(typing: Any, array: Any, offset: Any, first: Any, last: Any) -> Any:
    """16 float32 from an offset, zero but for lanes `first` to `last` - 1; memory is read for these only."""
    vector = VectorType(types.float32, LANES)

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        lanes = ir.Constant(ir.VectorType(number, LANES), list(range(LANES)))
        low, high = (_splat(builder, builder.trunc(bound, number), LANES) for bound in arguments[2:])
        inside = builder.and_(builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high))
        pointer = _vector_pointer(context, builder, array, arguments[0], arguments[1], LANES)
        zeros = ir.Constant(pointer.type.pointee, [0.0] * LANES)
        return _call(builder, "llvm.masked.load.v16f32.p0", zeros.type, [pointer, number(4), inside, zeros])

    return vector(array, types.intp, types.intp, types.intp), write


@intrinsic
def splat_like(typing: Any, example: Any, scalar: Any) -> Any:
    """A float32 in as many lanes as the example has."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[1], example.width)

    return example(example, types.float32), write


@intrinsic
def multiply_add(typing: Any, first: Any, second: Any, third: Any) -> Any:
    """Product of the first two plus the third, rounded once."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, f"llvm.fma.v{first.width}f32", arguments[0].type, list(arguments))

    return first(first, first, first), write


@intrinsic
def add(typing: Any, first: Any, second: Any) -> Any:
    """Sum of two vectors of float32."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return first(first, first), write


@intrinsic
def multiply(typing: Any, first: Any, second: Any) -> Any:
    """Product of two vectors of float32."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments)

    return first(first, first), write


@intrinsic
def shift_right(typing: Any, vector: Any, bits: Any) -> Any:
    """Each element of a vector of unsigned integers shifted right by a constant."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_data_type(vector.element)
        return builder.lshr(arguments[0], _splat(builder, element(bits.literal_value), vector.width))

    return vector(vector, bits), write


@intrinsic
def widen(typing: Any, vector: Any) -> Any:
    """Unsigned integers as uint32."""
    wide = VectorType(types.uint32, vector.width)

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(arguments[0], ir.VectorType(ir.IntType(32), vector.width))

    return wide(vector), write


@intrinsic
def scatter_add(typing: Any, target: Any, places: Any, offset: Any, vector: Any) -> Any:
    """Add lane i to target[places[offset + i]], one after the other."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index = context.get_value_type(types.intp)
        start = _pointer(context, builder, places, arguments[1], arguments[2])
        for lane in range(vector.width):
            place = builder.zext(builder.load(builder.gep(start, [index(lane)])), index)
            pointer = _pointer(context, builder, target, arguments[0], place)
            part = builder.extract_element(arguments[3], ir.IntType(32)(lane))
            builder.store(builder.fadd(builder.load(pointer), part), pointer)
        return context.get_dummy_value()

    return types.void(target, places, types.intp, vector), write


@intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line of an element; any offset is allowed."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        byte_pointer = ir.IntType(8).as_pointer()
        shape = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
        pointer = builder.bitcast(_pointer(context, builder, array, *arguments), byte_pointer)
        builder.call(function, [pointer, number(0), number(_CACHE_LEVELS_KEPT), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), write


@intrinsic
def transpose(
    typing: Any, source: Any, start: Any, pitch: Any, target: Any, target_start: Any, target_pitch: Any
) -> Any:
    """Write 16 rows of 16 float32, `pitch` apart, as 16 columns, `target_pitch` apart."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, first, step, goal, goal_first, goal_step = arguments
        index = context.get_value_type(types.intp)

        def pointer(kind: Any, value: Any, origin: Any, row: int, distance: Any) -> Any:
            place = builder.add(origin, builder.mul(index(row), distance))
            return _vector_pointer(context, builder, kind, value, place, LANES)

        rows = [builder.load(pointer(source, array, first, row, step), align=4) for row in range(LANES)]
        for row, vector in enumerate(_transposed(builder, rows)):
            builder.store(vector, pointer(target, goal, goal_first, row, goal_step), align=4)
        return context.get_dummy_value()

    where = (types.intp, types.intp)
    return types.void(source, *where, target, *where), write


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Vectors whose lane i is the former vector i's, by log2(lanes) exchanges of blocks between pairs of vectors."""
    half = LANES // 2
    while half:
        low = [lane if not lane & half else lane - half + LANES for lane in range(LANES)]
        high = [lane + half if not lane & half else lane + LANES for lane in range(LANES)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes) for lanes in (low, high)]
        exchanged = list(rows)
        for row in range(LANES):
            if not row & half:
                for mask, place in zip(masks, (row, row + half), strict=True):
                    exchanged[place] = builder.shuffle_vector(rows[row], rows[row + half], mask)
        rows, half = exchanged, half // 2
    return rows


@intrinsic
def window(typing: Any, array: Any, base: Any, words: Any) -> Any:
    """array[base + (word & 31)] of float32 for each of 16 words."""
    vector = VectorType(array.dtype, LANES)

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, first, places = arguments
        if not has_avx512(context):
            return _one_by_one(context, builder, array, data, first, places, WINDOW - 1)
        second = builder.add(first, first.type(LANES))
        low, high = (
            builder.load(_vector_pointer(context, builder, array, data, start, LANES), align=4)
            for start in (first, second)
        )
        return _call(builder, "llvm.x86.avx512.vpermi2var.ps.512", low.type, [low, places, high])

    return vector(array, types.intp, words), write


@intrinsic
def decode(typing: Any, table: Any, words: Any) -> Any:
    """table[word & 15] of float32 for each of 16 words."""
    vector = VectorType(table.dtype, LANES)

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = context.get_constant(types.intp, 0)
        if not has_avx512(context):
            return _one_by_one(context, builder, table, arguments[0], zero, arguments[1], LANES - 1)
        entries = builder.load(_vector_pointer(context, builder, table, arguments[0], zero, LANES), align=4)
        return _call(builder, "llvm.x86.avx512.permvar.sf.512", entries.type, [entries, arguments[1]])

    return vector(table, words), write


def _one_by_one(context: Any, builder: Any, array_type: Any, array: Any, base: Any, words: Any, mask: int) -> Any:
    index, number = context.get_value_type(types.intp), ir.IntType(32)
    places = builder.and_(words, _splat(builder, number(mask), LANES))
    result = ir.Constant(ir.VectorType(context.get_data_type(array_type.dtype), LANES), ir.Undefined)
    for lane in range(LANES):
        place = builder.zext(builder.extract_element(places, number(lane)), index)
        value = builder.load(_pointer(context, builder, array_type, array, builder.add(base, place)))
        result = builder.insert_element(result, value, number(lane))
    return result


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    shape = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), arguments)
