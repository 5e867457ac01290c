"""Weights as the kernels read them: packed once, in their own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._checks import Array
from .dims import MlaDims
from .kernels import packing, simd
from .memory import aligned_empty

if TYPE_CHECKING:
    from .weights import MlaWeights

__all__ = ["PackedGemm", "PackedWeights"]


@dataclass(frozen=True, slots=True, eq=False)
class PackedGemm:
    """One weight, or several side by side, as [batch][panel][part][part_kp / KR][NR][KR].

    `panels` is flat, uint16 (bf16 bits) or int8; `offset` (int32 or float32) and `col_scale` (float32) have an element a
    packed column; `kp` is the packed length of k and `n_parts` its number of parts.
    """

    panels: Array
    offset: Array
    col_scale: Array
    kp: int
    n_parts: int

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        return self.panels.nbytes + self.offset.nbytes + self.col_scale.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeights:
    """`MlaWeights` in kernel order: `down` is [w_dq | w_dkv_kr], `up` w_uq_qr by heads, `uk` w_uk."""

    dims: MlaDims
    quant: str
    down: PackedGemm
    up: PackedGemm
    uk: PackedGemm
    gamma_cq: Array
    gamma_ckv: Array
    smooth_scales_cq: Array
    epsilon_cq: np.float32
    epsilon_ckv: np.float32

    @property
    def nbytes(self) -> int:
        """Bytes of the three packed products."""
        return self.down.nbytes + self.up.nbytes + self.uk.nbytes


def pack_gemm(
    weights: list[Array], scales: list[Array] | None, n_parts: int, n_threads: int, head_dim: int | None = None
) -> PackedGemm:
    """Packs weights of one k side by side. Each is (k, n), or (batch, k, n) and then alone.

    int8 weights come with `scales`, float32 (n,) each. With `head_dim`, the columns of the one (k, n) weight are cut in
    heads, and each head's are padded to whole panels.
    """
    quantised = weights[0].dtype == np.int8
    kr = simd.KR_INT8 if quantised else simd.KR_BF16
    k = weights[0].shape[-2]
    kp = n_parts * -(-(k // n_parts) // kr) * kr
    cuts = [_Cut.of(w, head_dim) for w in weights]
    n_panels = [c.batch * -(-c.n // simd.NR) for c in cuts]
    dtype = np.int8 if quantised else np.uint16
    panels = aligned_empty(sum(n_panels) * kp * simd.NR, dtype)
    col_scale = np.ones(sum(n_panels) * simd.NR, np.float32)
    at = 0
    for i, (weight, cut, count) in enumerate(zip(weights, cuts, n_panels, strict=True)):
        flat = weight.view(dtype).reshape(-1)
        here = panels[at * kp * simd.NR : (at + count) * kp * simd.NR]
        packing.pack_panels(n_threads, flat, cut.batch, k, cut.n, cut.batch_stride, cut.row_stride, kr, n_parts, here)
        if scales is not None:
            by_panel = col_scale[at * simd.NR : (at + count) * simd.NR].reshape(cut.batch, -1)
            by_panel[:, : cut.n] = scales[i].reshape(cut.batch, cut.n)
        at += count
    offset = np.zeros(at * simd.NR, np.int32 if quantised else np.float32)
    if quantised and simd.A_OFFSET:
        packing.column_offsets(n_threads, panels, at, kp, offset)
    return PackedGemm(panels, offset, col_scale, kp, n_parts)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a weight falls into `batch` matrices of n columns."""

    batch: int
    n: int
    batch_stride: int
    row_stride: int

    @classmethod
    def of(cls, weight: Array, head_dim: int | None) -> _Cut:
        if weight.ndim == 3:
            return cls(weight.shape[0], weight.shape[2], weight.shape[1] * weight.shape[2], weight.shape[2])
        if head_dim is None:
            return cls(1, weight.shape[1], 0, weight.shape[1])
        return cls(weight.shape[1] // head_dim, head_dim, head_dim, weight.shape[1])


def pack_weights(weights: MlaWeights, n_threads: int) -> PackedWeights:
    """Packs all weights of a prolog on `n_threads` threads."""
    dims = weights.dims

    def widened(vector: Array | None) -> Array:
        return np.zeros(0, np.float32) if vector is None else vector.astype(np.float32)

    def scales(*names: str) -> list[Array] | None:
        found: list[Any] = [getattr(weights, f"dequant_scale_{name}") for name in names]
        return None if found[0] is None else found

    down_scales = scales("w_dq", "w_dkv_kr")
    return PackedWeights(
        dims=dims,
        quant=weights.quant,
        # The reference sums w_dq over the two halves of k; int8 sums are exact, so there one part does.
        down=pack_gemm(
            [weights.w_dq, weights.w_dkv_kr], down_scales, 2 if down_scales is None else 1, n_threads
        ),
        up=pack_gemm([weights.w_uq_qr], scales("w_uq_qr"), 1, n_threads, head_dim=dims.q_head_dim),
        uk=pack_gemm([weights.w_uk], None, 1, n_threads),
        gamma_cq=widened(weights.gamma_cq),
        gamma_ckv=widened(weights.gamma_ckv),
        smooth_scales_cq=widened(weights.smooth_scales_cq),
        epsilon_cq=np.float32(weights.epsilon_cq),
        epsilon_ckv=np.float32(weights.epsilon_ckv),
    )
