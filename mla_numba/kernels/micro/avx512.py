"""AVX-512 without VNNI: int8 products two k at once by vpmaddwd, bf16 ones by multiply-adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import Vectors
from .avx2 import AVX2, INT8_BY_SHIFT, Step, halves_column, halves_load, of_step
from .multiply_adds import bf16_multiply_adds

__all__ = ["AVX512"]


def _column(builder: ir.IRBuilder, vectors: Vectors, step: Step, odd: int) -> Any:
    """Loaded for even k and again for odd k: 8 rows from memory take longer if a step begins with both loads."""
    return halves_column(builder, vectors, halves_load(builder, vectors, step.b, step.v), odd)


# 24 accumulators, 4 halves of bf16 B, a mask and a broadcast fill 30 of 32 registers. To widen B by vpunpck, as AVX2
# does, takes as many instructions here, since the mask has a register to stay in.
AVX512 = Isa(
    "avx512",
    lanes=16,
    mr=12,
    nr=32,
    kr_bf16=2,
    kr_int8=AVX2.kr_int8,
    a_offset=0,
    a_int8_bytes=2,
    features=AVX2.features | {"avx512f", "avx512bw", "avx512vl"},
    tune="skylake-avx512",
    int8_order=AVX2.int8_order,
    keys_order=AVX2.keys_order,
    int8=replace(INT8_BY_SHIFT, load=of_step, column=_column, round_two=None),
    int8_keys=AVX2.int8_keys,
    bf16=bf16_multiply_adds(a_in_pairs=False),
)
