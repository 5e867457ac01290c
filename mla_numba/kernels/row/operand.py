"""Activations as the microkernels take them: a row of a matrix after the other, each in the type that A has.

| weight | a row of A is                                                                  | by                    |
|--------|--------------------------------------------------------------------------------|-----------------------|
| bf16   | the bf16 bits, in pairs odd k first; float32 where there are no products of pairs | `bf16_operand_row` |
| int8   | code + A_OFFSET                                                                | `int8_operand_row`    |

Each part of k is padded to KR, by zeros or the code 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from ..isa import ISA
from ..jit.callee import callee, overload_callee
from ..micro.ukernel import A_OFFSET, KR_BF16
from ..scalars import NONE_NONZERO, least_magnitude, pair_window, widen, window
from .rmsnorm_quant import quant_code, quant_scales

BF16_PAIRS = ISA.bf16_dot


@callee
def bf16_operand_row(bits: Any, n_parts: Any, out: Any) -> None:
    """bf16 bits (n,) uint16 to out (n_parts * part_kp,)."""
    n = len(bits) // n_parts
    kp = len(out) // n_parts
    for part in range(n_parts):
        _operand_part(window(bits, part * n, n), window(out, part * kp, kp))


if BF16_PAIRS:

    @callee
    def _operand_part(bits: Any, out: Any) -> None:
        n_pairs = len(bits) // KR_BF16
        pairs, swapped = pair_window(bits, 0, n_pairs), pair_window(out, 0, len(out) // KR_BF16)
        for i in range(n_pairs):
            swapped[i] = np.uint32(np.uint32(pairs[i] << np.uint32(16)) | np.uint32(pairs[i] >> np.uint32(16)))
        if n_pairs < len(swapped):
            swapped[n_pairs] = np.uint32(np.uint32(bits[len(bits) - 1]) << np.uint32(16))

else:

    @callee
    def _operand_part(bits: Any, out: Any) -> None:
        for j in range(len(bits)):
            out[j] = widen(bits[j])
        for j in range(len(bits), len(out)):
            out[j] = np.float32(0)


@callee
def int8_operand_row(codes: Any, out: Any) -> None:
    """Codes (n,) int8 to out (kp,)."""
    for j in range(len(codes)):
        out[j] = np.int32(codes[j]) + A_OFFSET
    for j in range(len(codes), len(out)):
        out[j] = A_OFFSET


def operand_row(bits: Any, weight: Any, n_parts: Any, cann: Any, y: Any, out: Any, scale: Any, at: Any) -> Any:
    """A row of x, bf16 bits (n,), to out (kp,) as a packed weight takes it; returns its `least_magnitude`.

    For an int8 weight that is Quant_x, in the numerics of CANN if `cann`, whose dequantisation scale goes to scale[at];
    y (n,) float32 is scratch.
    """
    take = _quantised_row if weight.dtype == np.int8 else _bf16_row
    return take(bits, n_parts, cann, y, out, scale, at)


@overload_callee(operand_row)
def _operand_row(bits: Any, weight: Any, n_parts: Any, cann: Any, y: Any, out: Any, scale: Any, at: Any) -> Any:
    take = _quantised_row if weight.dtype == types.int8 else _bf16_row

    def row(bits: Any, weight: Any, n_parts: Any, cann: Any, y: Any, out: Any, scale: Any, at: Any) -> Any:
        return take(bits, n_parts, cann, y, out, scale, at)

    return row


@callee
def _bf16_row(bits: Any, n_parts: Any, cann: Any, y: Any, out: Any, scale: Any, at: Any) -> Any:
    bf16_operand_row(bits, n_parts, out)
    return least_magnitude(bits)


@callee
def _quantised_row(bits: Any, n_parts: Any, cann: Any, y: Any, out: Any, scale: Any, at: Any) -> Any:
    n = len(bits)
    values = window(y, 0, n)
    for j in range(n):
        values[j] = widen(bits[j])
    s, scale[at] = quant_scales(values, cann)
    for j in range(n):
        out[j] = np.int32(quant_code(values[j], s)) + A_OFFSET
    for j in range(n, len(out)):
        out[j] = A_OFFSET
    return NONE_NONZERO
