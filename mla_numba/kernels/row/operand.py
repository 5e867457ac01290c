"""Activations as the microkernels take them: a row of a matrix after the other, each in the type that A has.

| weight | a row of A is                                                                     | by                 |
|--------|-----------------------------------------------------------------------------------|--------------------|
| bf16   | the bf16 bits, in pairs odd k first; float32 where there are no products of pairs | `bf16_operand_row` |
| int8   | code + A_OFFSET, or what `isa.MicroKernel.shifts` says                            | `int8_operand_row` |

Each part of k is padded to KR, by zeros or the code 0.
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import by_dtype, callee
from ..kinds import F32, Bits, Codes, Index, Values
from ..micro.ukernel import A_BEGIN, A_INT8_DTYPE, A_OFFSET, KR_BF16
from ..scalars import NONE_NONZERO, min_magnitude, pair_window, widen, window
from .rmsnorm_quant import quant_code, quant_scales


@callee
def bf16_operand_row(bits: Bits, n_parts: Index, out: Values) -> None:
    """bf16 bits (n,) uint16 to out (n_parts * part_kp,)."""
    n = len(bits) // n_parts
    kp = len(out) // n_parts
    for part in range(n_parts):
        _operand_part(window(bits, part * n, n), window(out, part * kp, kp))


@callee
def _paired_part(bits: Bits, out: Bits) -> None:
    n_pairs = len(bits) // KR_BF16
    pairs, swapped = pair_window(bits, 0, n_pairs), pair_window(out, 0, len(out) // KR_BF16)
    for i in range(n_pairs):
        swapped[i] = np.uint32(np.uint32(pairs[i] << np.uint32(16)) | np.uint32(pairs[i] >> np.uint32(16)))
    if n_pairs < len(swapped):
        swapped[n_pairs] = np.uint32(np.uint32(bits[len(bits) - 1]) << np.uint32(16))


@callee
def _widened_part(bits: Bits, out: F32) -> None:
    for j in range(len(bits)):
        out[j] = widen(bits[j])
    for j in range(len(bits), len(out)):
        out[j] = np.float32(0)


@by_dtype("out", {np.uint16: _paired_part}, otherwise=_widened_part)
def _operand_part(bits: Bits, out: Values) -> None:
    """A part of k: in pairs where the microkernel takes pairs, else as float32."""


@callee
def _padded(row: Values, n: Index, kp: Index) -> None:
    """The row's n codes are there already."""
    for j in range(n, kp):
        row[j] = A_OFFSET


@callee
def _in_pairs(row: Values, n: Index, kp: Index) -> None:
    """As `MicroKernel.shifts` says, of KR 4."""
    _padded(row, n, kp)
    total = np.int64(0)
    for step in range(0, kp, 4):
        a0, a1, a2, a3 = (
            np.int64(row[step]), np.int64(row[step + 1]), np.int64(row[step + 2]), np.int64(row[step + 3])
        )  # fmt: skip
        row[step], row[step + 1] = a0, a2
        row[step + 2], row[step + 3] = a1 - 256 * a0 - 128, a3 - 256 * a2 - 128
        total += a0 + a2
    pair_window(row, len(row) - A_BEGIN, 1)[0] = np.int64(-128) * total


_complete = _in_pairs if A_BEGIN else _padded


@callee
def int8_operand_row(codes: Codes, row: Values, kp: Index) -> None:
    """Codes (n,) int8 to row (lda >= kp + A_BEGIN,)."""
    for j in range(len(codes)):
        row[j] = np.int32(codes[j]) + A_OFFSET
    _complete(row, len(codes), kp)


@callee
def _bf16_row(bits: Bits, n_parts: Index, cann: bool, y: F32, row: Values, kp: Index, scale: F32, at: Index) -> Index:
    bf16_operand_row(bits, n_parts, window(row, 0, kp))
    return min_magnitude(bits)


@callee
def _quantised_row(
    bits: Bits, n_parts: Index, cann: bool, y: F32, row: Values, kp: Index, scale: F32, at: Index
) -> Index:
    n = len(bits)
    values = window(y, 0, n)
    for j in range(n):
        values[j] = widen(bits[j])
    s, scale[at] = quant_scales(values, cann)
    for j in range(n):
        row[j] = np.int32(quant_code(values[j], s)) + A_OFFSET
    _complete(row, n, kp)
    return NONE_NONZERO


@by_dtype("row", {A_INT8_DTYPE: _quantised_row}, otherwise=_bf16_row)
def operand_row(bits: Bits, n_parts: Index, cann: bool, y: F32, row: Values, kp: Index, scale: F32, at: Index) -> Index:
    """A row of x, bf16 bits (n,), to row (lda,), whose type says what it is to be; returns its `min_magnitude`.

    For an int8 weight that is Quant_x, in the numerics of CANN if `cann`, whose dequantisation scale goes to scale[at];
    y (n,) float32 is scratch.
    """
