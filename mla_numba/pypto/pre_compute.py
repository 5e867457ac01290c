"""The reference operator's `pre_compute_2d`: the projections without heads, on NumPy arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tiling import MlaTileConfig, plan_prolog

from ..base import checks as check
from ..base.checks import BF16, FP32, INT8, Array
from ..base.dims import MlaDims
from ..base.modes import NUMERICS, Numerics, QuantMode, quant_mode
from ..call.planning import MICRO_TILES, this_machine
from ..kernels import max_threads
from ..weights.packed import PackedWeights
from ..weights.packed_gemm import PackedGemm, pack_gemm
from .fractals import as_nd, columns, is_fractal
from .operations import MlaQuantInputs
from .projections import run_projections

__all__ = ["pre_compute_2d"]


def pre_compute_2d(
    token_x: Array,
    w_dq: Array,
    w_uq_qr: Array,
    w_dkv_kr: Array,
    gamma_cq: Array,
    epsilon_cq: float,
    quant_inputs: MlaQuantInputs,
    tile_config: MlaTileConfig | None = None,
    *,
    numerics: Numerics = "pypto",
) -> list[Array]:
    """The projections without heads: sweeps 1 and 2 for the query, and the up-projection as one matrix.

    Weights may be in FRACTAL_NZ (4-D, see `layouts.to_fractal_nz`). How many columns w_uq_qr or w_dkv_kr then has, only
    its scale tells: without one its padding counts, as columns of zeros.

    Args:
        token_x: Hidden states (T, H) bf16.
        w_dq: Weight (H, Rq) bf16, int8 in quant_a.
        w_uq_qr: Weight (Rq, M) bf16, int8 in quant_b.
        w_dkv_kr: Weight (H, C+R) bf16, int8 in quant_a.
        gamma_cq: Factors of the norm (Rq,) bf16.
        epsilon_cq: Of the norm.
        quant_inputs: Scales. Which are given decides the mode, see `MlaQuantInputs`; one lone scale of the two down
            projections switches nothing, as in the reference operator.
        tile_config: As for `MlaProlog`; no "auto" and no `CpuTiling`.
        numerics: "pypto" or "cann", see `MlaProlog`.

    Returns:
        q_b_proj (T, M) bf16, compressed_kv (T, C+R) bf16, q_norm (T, Rq), and in quant_b also q_norm_scale (T, 1)
        float32.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype.
        ValueError: It has another shape, layout or value.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> w = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), quant="b")
        >>> x = random_inputs(w.dims, t=3, seed=0, capacity=3).x
        >>> scales = mla.MlaQuantInputs(dequant_scale_w_uq_qr=w.dequant_scale_w_uq_qr)
        >>> found = mla.pre_compute_2d(x, w.w_dq, w.w_uq_qr, w.w_dkv_kr, w.gamma_cq, w.epsilon_cq, scales)
        >>> [array.shape for array in found]
        [(3, 256), (3, 96), (3, 96), (3, 1)]
    """
    if not isinstance(quant_inputs, MlaQuantInputs):
        raise TypeError(f"quant_inputs: expected MlaQuantInputs, got {type(quant_inputs).__name__}")
    quant_inputs.reject_unread()
    epsilon = check.check_epsilon("epsilon_cq", epsilon_cq)
    if tile_config is not None and not isinstance(tile_config, MlaTileConfig):
        raise TypeError(f"tile_config: expected MlaTileConfig or None, got {type(tile_config).__name__}")
    check.check_choice("numerics", numerics, NUMERICS)
    given = _Matrices.of(w_dq, w_uq_qr, w_dkv_kr, quant_inputs).in_nd(token_x, gamma_cq)
    given.check_shapes(token_x, gamma_cq)
    given, smooth = given.with_checked_scales(quant_inputs)
    given.check_sizes()
    n_threads = check.check_threads("n_threads", None, max_threads())
    weights = given.packed(gamma_cq, epsilon, smooth, n_threads)
    plan = plan_prolog(
        weights.dims, token_x.shape[0], tile_config, this_machine(), micro=MICRO_TILES, quant=weights.quant,
        n_threads=n_threads,
    )  # fmt: skip
    return run_projections(weights, plan, token_x, numerics)


class _Matrices(NamedTuple):
    """The three weights, and the scales of those that are int8."""

    w_dq: Array
    w_uq_qr: Array
    w_dkv_kr: Array
    scale_dq: Array | None
    scale_uq_qr: Array | None
    scale_dkv_kr: Array | None

    @classmethod
    def of(cls, w_dq: Array, w_uq_qr: Array, w_dkv_kr: Array, quant_inputs: MlaQuantInputs) -> _Matrices:
        """From the arguments: the scales of the down-projections count only if both are given."""
        scale_dq, scale_dkv_kr = quant_inputs.dequant_scale_w_dq, quant_inputs.dequant_scale_w_dkv_kr
        if scale_dq is None or scale_dkv_kr is None:
            scale_dq = scale_dkv_kr = None
        return cls(w_dq, w_uq_qr, w_dkv_kr, scale_dq, quant_inputs.dequant_scale_w_uq_qr, scale_dkv_kr)

    @property
    def quant(self) -> QuantMode:
        """The quant mode."""
        return quant_mode(self.scale_dq is not None, self.scale_uq_qr is not None)

    def in_nd(self, token_x: Array, gamma_cq: Array) -> _Matrices:
        """The same in ND; the other arguments tell the shapes that FRACTAL_NZ pads."""
        if not any(map(is_fractal, (self.w_dq, self.w_uq_qr, self.w_dkv_kr))):
            return self
        hidden = check.check_array("token_x", token_x, (BF16,), (None, None)).shape[1]
        q_rank = len(check.check_array("gamma_cq", gamma_cq, (BF16,), (None,)))
        return self._replace(
            w_dq=as_nd("w_dq", self.w_dq, hidden, q_rank),
            w_uq_qr=as_nd("w_uq_qr", self.w_uq_qr, q_rank, columns(self.w_uq_qr, self.scale_uq_qr)),
            w_dkv_kr=as_nd("w_dkv_kr", self.w_dkv_kr, hidden, columns(self.w_dkv_kr, self.scale_dkv_kr)),
        )

    def check_shapes(self, token_x: Array, gamma_cq: Array) -> None:
        """Refuses an array whose type or shape does not fit the others."""
        check.check_array("w_uq_qr", self.w_uq_qr, (BF16 if self.scale_uq_qr is None else INT8,), (None, None))
        q_rank = self.w_uq_qr.shape[0]
        check.check_array("w_dq", self.w_dq, (BF16 if self.scale_dq is None else INT8,), (None, q_rank))
        hidden = self.w_dq.shape[0]
        check.check_array("w_dkv_kr", self.w_dkv_kr, (self.w_dq.dtype,), (hidden, None))
        check.check_array("gamma_cq", gamma_cq, (BF16,), (q_rank,))
        check.check_array("token_x", token_x, (BF16,), (None, hidden))

    def with_checked_scales(self, quant_inputs: MlaQuantInputs) -> tuple[_Matrices, Array | None]:
        """The scales as vectors, and those of SmoothQuant where they count."""
        q_rank, n_up = self.w_uq_qr.shape
        checked = self._replace(
            scale_dq=_vector("dequant_scale_w_dq", self.scale_dq, q_rank),
            scale_dkv_kr=_vector("dequant_scale_w_dkv_kr", self.scale_dkv_kr, self.w_dkv_kr.shape[1]),
            scale_uq_qr=_vector("dequant_scale_w_uq_qr", self.scale_uq_qr, n_up),
        )
        smooth = None if self.scale_uq_qr is None else quant_inputs.smooth_scales_cq
        return checked, _vector("smooth_scales_cq", smooth, q_rank)

    def check_sizes(self) -> None:
        """Refuses sizes that the planner or the int32 sums of the kernels do not take."""
        (hidden, q_rank), n_kv, n_up = self.w_dq.shape, self.w_dkv_kr.shape[1], self.w_uq_qr.shape[1]
        if n_kv < 3 or n_up < 3:
            raise ValueError(f"w_dkv_kr, w_uq_qr: expected at least 3 columns, got {n_kv} and {n_up}")
        if self.scale_dq is None and hidden % 2:
            raise ValueError(f"w_dq: expected an even hidden_size (its two halves are summed apart), got {hidden}")
        for name, k, scale in (("w_dq", hidden, self.scale_dq), ("w_uq_qr", q_rank, self.scale_uq_qr)):
            if scale is not None:
                check.check_k_int8(name, k)

    def packed(self, gamma_cq: Array, epsilon: np.float32, smooth: Array | None, n_threads: int) -> PackedWeights:
        """The packed weights, with empty arrays in place of a layer's others."""
        (hidden, q_rank), n_kv, n_up = self.w_dq.shape, self.w_dkv_kr.shape[1], self.w_uq_qr.shape[1]
        down = [self.w_dq, self.w_dkv_kr], [self.scale_dq, self.scale_dkv_kr]
        return PackedWeights(
            # The planner knows a prolog, not a lone projection: one head as wide as the matrix stands for it.
            dims=MlaDims(hidden, 1, q_rank, n_kv - 2, n_up - 2, 2),
            quant=self.quant,
            down=pack_gemm(*down, n_threads, n_parts=2 if self.scale_dq is None else 1),
            up=pack_gemm([self.w_uq_qr], [self.scale_uq_qr], n_threads),
            uk=PackedGemm.nothing(),
            gamma_cq=gamma_cq.astype(np.float32),
            gamma_ckv=np.zeros(0, np.float32),
            smooth_scales_cq=np.zeros(0, np.float32) if smooth is None else smooth,
            epsilon_cq=epsilon,
            epsilon_ckv=np.float32(0),
        )


def _vector(name: str, value: Array | None, n: int) -> Array | None:
    return None if value is None else check.check_vector(f"quant_inputs.{name}", value, FP32, n)
