"""Vectors of float32 numbers as bf16, in the vector code of attention."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..micro.table import ISA

__all__ = ["pairs_of_words", "rounded_words"]

_VECTORS = ISA.vectors


def rounded_words(builder: ir.IRBuilder, value: Any) -> Any:
    """Words whose upper halves are the bf16 of float32 numbers, ties to even; of a NaN they may be anything."""
    bits = builder.bitcast(value, _VECTORS.words)
    odd = builder.and_(builder.lshr(bits, _VECTORS.filled(16)), _VECTORS.filled(1))
    return builder.add(bits, builder.add(odd, _VECTORS.filled(0x7FFF)))


def pairs_of_words(builder: ir.IRBuilder, upper: Any, lower: Any) -> Any:
    """The upper halves of words, those of the first ones above those of the others."""
    return builder.or_(builder.and_(upper, _VECTORS.filled(0xFFFF0000)), builder.lshr(lower, _VECTORS.filled(16)))
