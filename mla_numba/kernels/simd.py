"""The microkernels: vector code emitted as LLVM IR, beside a Python function that says what it computes.

    C[mr, NR] = (carry ? C : 0) + A[mr, k] @ B[k, NR]

| array | shape, as packed  | dtype                   | notes                                                     |
|-------|-------------------|-------------------------|-----------------------------------------------------------|
| a     | [k][mr]           | float32 (values of bf16) | for bf16 weights                                         |
| a     | [k/2][mr][2]      | uint16 (bf16 bits)      | for bf16 weights, where bf16 pairs have an instruction    |
| a     | [k/KR][mr][KR]    | uint8 (code+128) or int16 | for int8 weights; the type is the instruction set's     |
| b     | [k/KR][NR][KR]    | uint16 (bf16 bits) or int8 |                                                        |
| c     | [mr][NR]          | float32 or int32        | may be uninitialised where carry is false                 |

Every element of C is one accumulator that takes its products in ascending k, so tile, thread and instruction set never
change a bit; int32 wraps, hence exact. In a pair of bf16 the even k is the second of the two, since vdpbf16ps takes
that one first: it is two multiply-adds, each rounded (Intel SDM), save that it takes subnormal numbers for 0. `normal`
says that there can be none (`scalars.sums_stay_normal`); where there can be, plain multiply-adds do the work.

`ukernel` takes flat arrays and an offset into each. Called from Python it runs its own body, which is the oracle of the
compiled ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from .isa import ISA
from .portable import ukernel_bf16_portable, ukernel_int8_portable

MR, NR, LANES = ISA.mr, ISA.nr, ISA.lanes
KR_BF16, KR_INT8 = ISA.kr_bf16, ISA.kr_int8
A_OFFSET = np.int32(ISA.a_offset)
A_INT8_DTYPE = np.uint8 if ISA.a_int8_bytes == 1 else np.int16
A_BF16_DTYPE = np.uint16 if ISA.bf16_dot else np.float32
PREFETCH_BYTES = 8192  # how far ahead of the loads a panel is prefetched; see docs/performance.md

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_F32 = ir.FloatType()
_NV = NR // LANES


def ukernel(
    mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any, normal: Any
) -> None:
    """One register tile; `b`'s dtype chooses between bf16 and int8. `k` is a multiple of KR, 1 <= mr <= MR."""
    is_int8 = b.dtype == np.int8
    kr = KR_INT8 if is_int8 else KR_BF16
    tile = c[c_off : c_off + mr * NR].reshape(mr, NR)
    if not carry:
        tile[...] = 0
    for p in range(k):
        r = p % kr if is_int8 else kr - 1 - p % kr
        start = b_off + p // kr * NR * kr + r
        column = b[start : start + NR * kr : kr]
        if is_int8:
            values = a[a_off + p // kr * mr * kr + r :][: mr * kr : kr].astype(np.int32)
            tile += values[:, None] * column.astype(np.int32)
        else:
            if a.dtype == np.uint16:
                values = _widened(a[a_off + p // 2 * mr * 2 + 1 - p % 2 :][: mr * 2 : 2])
            else:
                values = a[a_off + p * mr :][:mr]
            tile += values[:, None] * _widened(column)


def _widened(bits: Any) -> Any:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@overload(ukernel)
def _ukernel(
    mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any, normal: Any
) -> Any:
    is_int8 = b.dtype == types.int8
    if ISA.name == "portable":
        loops = ukernel_int8_portable if is_int8 else ukernel_bf16_portable

        def portable(
            mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any, normal: Any
        ) -> None:
            loops(mr, k, a, a_off, b, b_off, c, c_off, carry)

        return portable
    emitted = _ukernel_int8_simd if is_int8 else _ukernel_bf16_simd

    def simd(
        mr: Any, k: Any, a: Any, a_off: Any, b: Any, b_off: Any, c: Any, c_off: Any, carry: Any, normal: Any
    ) -> None:
        emitted(np.int64(mr), np.int64(k), a, np.int64(a_off), b, np.int64(b_off), c, np.int64(c_off), carry, normal)

    return simd


def _define_ukernel(
    emit_step: Callable[..., Any], kr: int, name: str, emit_subnormal: Callable[..., Any] | None
) -> Any:
    """An intrinsic that calls a function with one loop nest for each row count 1..MR.

    `emit_subnormal` is the step to take where sums may be subnormal, None where `emit_step` is right for them too.
    """

    @intrinsic
    def call(
        _typingctx: Any,
        mr: Any,
        k: Any,
        a: Any,
        a_off: Any,
        b: Any,
        b_off: Any,
        c: Any,
        c_off: Any,
        carry: Any,
        normal: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def pointer(position: int) -> Any:
                array = context.make_array(sig.args[position])(context, builder, args[position])
                return builder.gep(array.data, [args[position + 1]])

            steps = builder.udiv(args[1], ir.Constant(_I64, kr))
            operands = [args[0], steps, *(builder.bitcast(pointer(p), _I8.as_pointer()) for p in (2, 4, 6)), args[8]]
            is_int8 = name.endswith("int8")
            function = _tile_function(builder.module, emit_step, kr, name, is_int8)
            if emit_subnormal is None:
                builder.call(function, operands)
            else:
                other = _row_by_row_function(builder.module, emit_subnormal, kr, f"{name}_subnormal", is_int8)
                builder.call(builder.select(args[9], function, other), operands)
            return context.get_dummy_value()

        return types.void(mr, k, a, a_off, b, b_off, c, c_off, carry, normal), codegen

    return call


def _tile_function(module: ir.Module, emit_step: Callable[..., Any], kr: int, name: str, is_int8: bool) -> ir.Function:
    """The switch over row counts, defined once in a module."""
    function = _declare_tile_function(module, name)
    if function.blocks:
        return function
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    out = function.append_basic_block("out")
    switch = builder.switch(function.args[0], out)
    for mr in range(1, MR + 1):
        block = function.append_basic_block(f"rows{mr}")
        switch.add_case(ir.Constant(_I64, mr), block)
        body = _rows_function(module, f"{function.name}_{mr}x{NR}", mr, emit_step, kr, is_int8)
        builder.position_at_end(block)
        _, steps, a, b, c, carry = function.args
        builder.call(body, [steps, a, b, c, carry, ir.Constant(_I64, mr * _a_row_bytes(kr, is_int8))])
        builder.branch(out)
    builder.position_at_end(out)
    builder.ret_void()
    return function


def _row_by_row_function(
    module: ir.Module, emit_step: Callable[..., Any], kr: int, name: str, is_int8: bool
) -> ir.Function:
    """The same for what is rare: each row by itself, so that there is one loop over k to compile, not MR."""
    function = _declare_tile_function(module, name)
    if function.blocks:
        return function
    body = _rows_function(module, f"{function.name}_1x{NR}", 1, emit_step, kr, is_int8)
    entry, loop, done = (function.append_basic_block(s) for s in ("entry", "loop", "done"))
    builder = ir.IRBuilder(entry)
    mr, steps, a, b, c, carry = function.args
    a_row, c_row = ir.Constant(_I64, _a_row_bytes(kr, is_int8)), ir.Constant(_I64, NR * 4)
    a_step = builder.mul(mr, a_row)
    builder.branch(loop)
    builder.position_at_end(loop)
    row = builder.phi(_I64)
    row.add_incoming(ir.Constant(_I64, 0), entry)
    a_here, c_here = (builder.gep(p, [builder.mul(row, size)]) for p, size in ((a, a_row), (c, c_row)))
    builder.call(body, [steps, a_here, b, c_here, carry, a_step])
    following = builder.add(row, ir.Constant(_I64, 1))
    row.add_incoming(following, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, mr), loop, done)
    builder.position_at_end(done)
    builder.ret_void()
    return function


def _declare_tile_function(module: ir.Module, name: str) -> ir.Function:
    """`f(mr, steps, a, b, c, carry)`, still without a body where the module sees it for the first time."""
    name = f"mla_numba_{name}_{ISA.name}"
    pointer = _I8.as_pointer()
    fnty = ir.FunctionType(ir.VoidType(), [_I64, _I64, pointer, pointer, pointer, _I1])
    return module.globals.get(name) or _internal_function(module, fnty, name)


def _a_row_bytes(kr: int, is_int8: bool) -> int:
    """Bytes of one row of A for one step of kr."""
    return kr * (ISA.a_int8_bytes if is_int8 else ISA.a_bf16_bytes)


def _internal_function(module: ir.Module, fnty: ir.FunctionType, name: str) -> ir.Function:
    function = ir.Function(module, fnty, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    return function


def _rows_function(
    module: ir.Module, name: str, mr: int, emit_step: Callable[..., Any], kr: int, is_int8: bool
) -> ir.Function:
    """The loop over k for exactly `mr` rows: MR x NR/LANES accumulators in registers from first to last step.

    `f(steps, a, b, c, carry, a_step)`: a_step is the distance in bytes between two steps of A.
    """
    element = _I32 if is_int8 else _F32
    vector = ir.VectorType(element, LANES)
    b_bytes = NR * kr * (1 if is_int8 else 2)
    pointer = _I8.as_pointer()
    fnty = ir.FunctionType(ir.VoidType(), [_I64, pointer, pointer, pointer, _I1, _I64])
    function = _internal_function(module, fnty, name)
    steps, a, b, c, carry, a_step = function.args
    entry, load, loop, done = (function.append_basic_block(s) for s in ("entry", "load", "loop", "done"))
    builder = ir.IRBuilder(entry)
    c_vectors = builder.bitcast(c, vector.as_pointer())
    c_at = [builder.gep(c_vectors, [ir.Constant(_I64, i)]) for i in range(mr * _NV)]
    zero = ir.Constant(vector, None)
    builder.cbranch(carry, load, loop)
    builder.position_at_end(load)
    held = [builder.load(p, align=4) for p in c_at]
    builder.branch(loop)

    builder.position_at_end(loop)
    step = builder.phi(_I64)
    step.add_incoming(ir.Constant(_I64, 0), entry)
    step.add_incoming(ir.Constant(_I64, 0), load)
    acc = []
    for value in held:
        phi = builder.phi(vector)
        phi.add_incoming(zero, entry)
        phi.add_incoming(value, load)
        acc.append(phi)
    a_here = builder.gep(a, [builder.mul(step, a_step)])
    b_here = builder.gep(b, [builder.mul(step, ir.Constant(_I64, b_bytes))])
    for line in range(0, b_bytes, 64):
        _prefetch(builder, builder.gep(b_here, [ir.Constant(_I64, PREFETCH_BYTES + line)]))
    new = emit_step(builder, mr, a_here, b_here, list(acc))
    following = builder.add(step, ir.Constant(_I64, 1))
    step.add_incoming(following, loop)
    for phi, value in zip(acc, new, strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, steps), loop, done)

    builder.position_at_end(done)
    for value, p in zip(new, c_at, strict=True):
        builder.store(value, p, align=4)
    builder.ret_void()
    return function


def _declare(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    existing = builder.module.globals.get(name)
    return existing or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _prefetch(builder: ir.IRBuilder, address: Any) -> None:
    fn = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    builder.call(fn, [address, *(ir.Constant(_I32, n) for n in (0, 3, 1))])  # a read, into every level, of data


def _load(builder: ir.IRBuilder, base: Any, offset_bytes: int, kind: ir.Type, align: int) -> Any:
    address = builder.gep(base, [ir.Constant(_I64, offset_bytes)])
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)


def _splat(builder: ir.IRBuilder, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), None))


def _step_bf16(builder: ir.IRBuilder, mr: int, a: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Two k by multiply-adds: of the pair in each 32-bit lane a mask gives the even k and a shift the odd one."""
    words = ir.VectorType(_I32, LANES)
    floats = ir.VectorType(_F32, LANES)
    fma = _declare(builder, f"llvm.fma.v{LANES}f32", floats, [floats] * 3)
    shift, mask = ir.Constant(words, [16] * LANES), ir.Constant(words, [0xFFFF0000] * LANES)

    def half(pairs: Any, k: int) -> Any:
        return builder.bitcast(builder.shl(pairs, shift) if k else builder.and_(pairs, mask), floats)

    loaded = [_load(builder, b, v * LANES * 4, words, 4) for v in range(_NV)]
    for k in range(2):
        columns = [half(pairs, k) for pairs in loaded]
        for i in range(mr):
            if ISA.bf16_dot:
                value = half(_splat(builder, _load(builder, a, i * 4, _I32, 4)), k)
            else:
                value = _splat(builder, _load(builder, a, (k * mr + i) * 4, _F32, 4))
            for v in range(_NV):
                acc[i * _NV + v] = builder.call(fma, [value, columns[v], acc[i * _NV + v]])
    return acc


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite.ir lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _step_bf16_dot(builder: ir.IRBuilder, mr: int, a: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Two k: vdpbf16ps adds the second pair's product to each float32 lane, rounds, then the first's, and rounds."""
    floats = ir.VectorType(_F32, LANES)
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    dot = _declare(builder, "llvm.x86.avx512bf16.dpbf16ps.512", floats, [floats, pairs, pairs])
    columns = [_load(builder, b, v * LANES * 4, pairs, 4) for v in range(_NV)]
    for i in range(mr):
        value = builder.bitcast(_splat(builder, _load(builder, a, i * 4, _I32, 4)), pairs)
        for v in range(_NV):
            acc[i * _NV + v] = builder.call(dot, [acc[i * _NV + v], value, columns[v]])
    return acc


def _step_int8_avx512(builder: ir.IRBuilder, mr: int, a: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Four k: vpdpbusd adds four u8 x s8 products to each int32 lane, without saturation."""
    sums = ir.VectorType(_I32, LANES)
    operand = _dot_operand_type()
    dot = _declare(builder, "llvm.x86.avx512.vpdpbusd.512", sums, [sums, operand, operand])
    columns = [_load(builder, b, v * LANES * 4, operand, 1) for v in range(_NV)]
    for i in range(mr):
        value = builder.bitcast(_splat(builder, _load(builder, a, i * 4, _I32, 1)), operand)
        for v in range(_NV):
            acc[i * _NV + v] = builder.call(dot, [acc[i * _NV + v], value, columns[v]])
    return acc


def _step_int8_avx2(builder: ir.IRBuilder, mr: int, a: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Two k: vpmaddwd adds two int16 products in each int32 lane; vpmaddubsw would saturate."""
    sums = ir.VectorType(_I32, LANES)
    halves = ir.VectorType(_I16, 2 * LANES)
    madd = _declare(builder, "llvm.x86.avx2.pmadd.wd", sums, [halves, halves])
    codes = ir.VectorType(_I8, 2 * LANES)
    columns = [builder.sext(_load(builder, b, v * LANES * 2, codes, 1), halves) for v in range(_NV)]
    for i in range(mr):
        value = builder.bitcast(_splat(builder, _load(builder, a, i * 4, _I32, 2)), halves)
        for v in range(_NV):
            acc[i * _NV + v] = builder.add(acc[i * _NV + v], builder.call(madd, [value, columns[v]]))
    return acc


def _dot_operand_type() -> ir.VectorType:
    """The operand type of vpdpbusd in this LLVM: bytes since LLVM 22, words before; LLVM itself is asked."""
    for text, kind in (("<64 x i8>", ir.VectorType(_I8, 64)), ("<16 x i32>", ir.VectorType(_I32, 16))):
        declaration = f"declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, {text}, {text})"
        try:
            llvm.parse_assembly(declaration).verify()
        except RuntimeError:
            continue
        return kind
    version = ".".join(map(str, llvm.llvm_version_info))
    raise RuntimeError(f"LLVM {version}: expected llvm.x86.avx512.vpdpbusd.512 on vectors of i8 or i32, got neither")


if ISA.bf16_dot:
    _ukernel_bf16_simd = _define_ukernel(_step_bf16_dot, KR_BF16, "ukernel_bf16", _step_bf16)
else:
    _ukernel_bf16_simd = _define_ukernel(_step_bf16, KR_BF16, "ukernel_bf16", None)
_ukernel_int8_simd = _define_ukernel(
    _step_int8_avx2 if ISA.name == "avx2" else _step_int8_avx512, KR_INT8, "ukernel_int8", None
)
