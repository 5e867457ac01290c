"""The weights of one lightning indexer, under the reference operator's names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from ..base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
    check_array,
    check_choice,
    check_epsilon,
    check_int,
    check_k_int8,
    check_threads,
    check_vector,
    expect_array,
    expect_type,
)
from ..base.dims import MlaDims
from ..base.indexer_dims import MAX_HEAD_DIM, IndexerDims
from ..base.modes import ROPE_STYLES, RopeStyle
from ..base.short_repr import indexer_dims_text, short_repr, size_text
from ..kernels import max_threads
from .packed_gemm import operand_order, pack_gemm
from .packed_indexer import PackedIndexer
from .quantize import QuantizationReport, quantize_columns

__all__ = ["IndexerWeights", "check_power_of_two", "sylvester_hadamard"]


def sylvester_hadamard(n: int) -> Array:
    """The Hadamard matrix of Sylvester's construction times n^-0.5, rounded to bf16: how indexers rotate their heads.

    Element (i, j) is negative where i and j have an odd number of set bits in common. In exact arithmetic the matrix is
    its own inverse.

    Args:
        n: Rows and columns, a power of two.

    Returns:
        The matrix (n, n) bf16.

    Raises:
        TypeError: `n` is no int.
        ValueError: It is no power of two, or above 1024.

    Examples:
        >>> import mla_numba as mla
        >>> mla.sylvester_hadamard(4).tolist()
        [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5], [0.5, -0.5, -0.5, 0.5]]
        >>> float(mla.sylvester_hadamard(128)[0, 0])
        0.08837890625
    """
    check_power_of_two("n", check_int("n", n, 1))
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix * np.float32(n**-0.5)).astype(BF16)


def check_power_of_two(name: str, n: int) -> None:
    """Raises `ValueError` unless there is a Hadamard matrix of n rows by Sylvester's construction."""
    if n < 1 or n > MAX_HEAD_DIM or n & (n - 1):
        raise ValueError(f"{name}: expected a power of two, at most {MAX_HEAD_DIM}, got {n}")


@dataclass(frozen=True, slots=True, eq=False)
class IndexerWeights:
    """Weights of a lightning indexer in ND layout, C order.

    Dimension letters: H hidden_size, Rq q_lora_rank, Ni heads, Di head_dim, R qk_rope_head_dim.

    | field                  | shape         | dtype                                              |
    |------------------------|---------------|----------------------------------------------------|
    | w_qb                   | (Rq, Ni * Di) | int8                                               |
    | w_qb_scale             | (Ni * Di,)    | float32, one a column; also (n, 1) or (1, n)       |
    | wk                     | (H, Di)       | bf16                                               |
    | w_proj                 | (H, Ni)       | bf16                                               |
    | ln_gamma_k, ln_beta_k  | (Di,)         | bf16, of the keys' LayerNorm                       |
    | hadamard_q, hadamard_k | (Di, Di)      | bf16, any matrix; heads are multiplied by it from the right |

    `epsilon` belongs to the LayerNorm. The first `qk_rope_head_dim` columns of each head are rotated: `rope` says that
    they come as two halves, "half", as in DeepSeek-V3.2, or as pairs side by side, "interleaved", as in GLM-5; either
    way they leave as two halves. FRACTAL_NZ weights: `layouts.from_fractal_nz`.

    Where the prolog's weights have `smooth_scales_cq`, the codes of q_norm are multiplied by them, so the rows of w_qb
    have to be divided by them before it is quantised: `from_bf16` does so. Codes do not show whether that was done.

    `quantization` is the error report of a `w_qb` that `from_bf16` quantised, None for others. Fields cannot be
    assigned; `dataclasses.replace` makes weights with other fields.

    Raises:
        TypeError: A field, named in the message, is of another type or dtype.
        ValueError: It has a shape or layout that does not fit the other fields, or Rq is too long for int32 sums.

    Examples:
        >>> import mla_numba as mla
        >>> weights = mla.IndexerWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), n_heads=8, head_dim=64)
        >>> weights.w_qb.shape, weights.wk.shape, weights.w_proj.shape
        ((96, 512), (256, 64), (256, 8))
        >>> weights.dims
        IndexerDims(hidden_size=256, q_lora_rank=96, n_heads=8, head_dim=64, qk_rope_head_dim=32)
    """

    w_qb: Array
    w_qb_scale: Array
    wk: Array
    w_proj: Array
    ln_gamma_k: Array
    ln_beta_k: Array
    hadamard_q: Array
    hadamard_k: Array
    epsilon: float = 1e-6
    rope: RopeStyle = "half"
    qk_rope_head_dim: int = 64
    quantization: QuantizationReport | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        check_epsilon("epsilon", self.epsilon)
        check_choice("rope", self.rope, ROPE_STYLES)
        expect_array("w_qb_scale", self.w_qb_scale, (FP32,))
        n_heads, head_dim = _check_sizes(self.w_qb, INT8, self.wk, self.w_proj)
        object.__setattr__(self, "w_qb_scale", check_vector("w_qb_scale", self.w_qb_scale, FP32, n_heads * head_dim))
        for name in ("ln_gamma_k", "ln_beta_k"):
            check_array(name, getattr(self, name), (BF16,), (head_dim,))
        for name in ("hadamard_q", "hadamard_k"):
            check_array(name, getattr(self, name), (BF16,), (head_dim, head_dim))
        check_k_int8("w_qb", self.w_qb.shape[0])
        check_int("qk_rope_head_dim", self.qk_rope_head_dim, 2)
        _ = self.dims  # which checks that the rope columns are an even part of a head

    def __repr__(self) -> str:
        rope = f"rope={self.rope!r}" if self.rope != "half" else ""
        return short_repr(self, indexer_dims_text(self.dims), rope, size_text(self.nbytes))

    @property
    def dims(self) -> IndexerDims:
        """The dimensions that the shapes and `qk_rope_head_dim` say."""
        hidden, head_dim = self.wk.shape
        return IndexerDims(hidden, self.w_qb.shape[0], self.w_proj.shape[1], head_dim, int(self.qk_rope_head_dim))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(v.nbytes for v in (getattr(self, name) for name in self.__slots__) if isinstance(v, np.ndarray))

    @classmethod
    def from_bf16(
        cls,
        w_qb: Array,
        wk: Array,
        w_proj: Array,
        ln_gamma_k: Array,
        ln_beta_k: Array,
        *,
        smooth_scales_cq: Array | None = None,
        rope: RopeStyle = "half",
        qk_rope_head_dim: int = 64,
    ) -> Self:
        """Weights whose `w_qb` is quantised: int8 by columns, `scale = max|column| / 127`, `code = rint(w / scale)`.

        Both Hadamard matrices are `sylvester_hadamard(Di)`, and epsilon is 1e-6, as in DeepSeek-V3.2;
        `dataclasses.replace` changes them.

        Args:
            w_qb: The weight (Rq, Ni * Di) bf16.
            wk: As the field.
            w_proj: As the field.
            ln_gamma_k: As the field.
            ln_beta_k: As the field.
            smooth_scales_cq: Those of the prolog whose q_norm the indexer reads, (Rq,), (1, Rq) or (Rq, 1) float32:
                the rows of w_qb are divided by them before it is quantised.
            rope: As the field.
            qk_rope_head_dim: As the field.

        Returns:
            Weights, whose `quantization` is a `QuantizationReport` with the error of w_qb.

        Raises:
            TypeError: An argument is of another type or dtype.
            ValueError: It has another shape, Di is no power of two, w_qb is not finite, or a smooth scale is 0 or not
                finite.

        Examples:
            >>> import ml_dtypes, numpy as np
            >>> import mla_numba as mla
            >>> w_qb, wk, w_proj, gamma, beta = (
            ...     np.ones(shape, ml_dtypes.bfloat16) for shape in ((96, 128), (256, 32), (256, 4), (32,), (32,))
            ... )
            >>> weights = mla.IndexerWeights.from_bf16(w_qb, wk, w_proj, gamma, beta, qk_rope_head_dim=16)
            >>> weights.w_qb[0, 0], weights.quantization.errors["w_qb"].max_abs < 1e-6
            (np.int8(127), True)
        """
        _, head_dim = _check_sizes(w_qb, BF16, wk, w_proj)
        check_power_of_two("wk.shape[1]", head_dim)
        smooth = None
        if smooth_scales_cq is not None:
            smooth = check_vector("smooth_scales_cq", smooth_scales_cq, FP32, w_qb.shape[0])
            if not (np.isfinite(smooth).all() and smooth.all()):
                raise ValueError("smooth_scales_cq: expected finite values other than 0, got one that is not")
        hadamard = sylvester_hadamard(head_dim)
        codes, scale, error = quantize_columns("w_qb", w_qb, smooth)
        result = cls(
            w_qb=codes,
            w_qb_scale=scale,
            wk=wk,
            w_proj=w_proj,
            ln_gamma_k=ln_gamma_k,
            ln_beta_k=ln_beta_k,
            hadamard_q=hadamard,
            hadamard_k=hadamard,
            rope=rope,
            qk_rope_head_dim=qk_rope_head_dim,
        )
        object.__setattr__(result, "quantization", QuantizationReport({"w_qb": error}))  # which no constructor takes
        return result

    @classmethod
    def random(
        cls, dims: MlaDims, seed: int = 0, n_heads: int = 64, head_dim: int = 128, rope: RopeStyle = "half"
    ) -> Self:
        """Weights of the size a trained indexer has: each product keeps its input's variance.

        Args:
            dims: Dimensions of the layer whose hidden states and q_norm the indexer reads.
            seed: Of the random numbers, from 0 on.
            n_heads: Ni.
            head_dim: Di, a power of two of at least `dims.qk_rope_head_dim`.
            rope: "half" or "interleaved".

        Returns:
            Weights with Sylvester's Hadamard matrix for queries and keys.

        Raises:
            TypeError: An argument is of another type.
            ValueError: The seed is negative, a count below 1, the style neither of the two, or the dimensions do not
                fit each other.

        Examples:
            >>> import mla_numba as mla
            >>> mla.IndexerWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), seed=1, n_heads=8, head_dim=64)
            <IndexerWeights: H=256 Rq=96 Ni=8 Di=64 R=32, 104.7 kB>
        """
        expect_type("dims", dims, MlaDims)
        d = IndexerDims(
            dims.hidden_size,
            dims.q_lora_rank,
            check_int("n_heads", n_heads, 1),
            check_int("head_dim", head_dim, 1),
            dims.qk_rope_head_dim,
        )
        check_power_of_two("head_dim", d.head_dim)
        rng = np.random.default_rng((check_int("seed", seed, 0), 2))  # not the streams of the prolog's weights, inputs

        def normal(*shape: int) -> Array:
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(shape[0] ** -0.5)
            return values.astype(BF16)

        return cls.from_bf16(
            normal(d.q_lora_rank, d.query_dim),
            normal(d.hidden_size, d.head_dim),
            normal(d.hidden_size, d.n_heads),
            (1 + 0.1 * rng.standard_normal(d.head_dim, dtype=np.float32)).astype(BF16),
            (0.1 * rng.standard_normal(d.head_dim, dtype=np.float32)).astype(BF16),
            rope=rope,
            qk_rope_head_dim=d.qk_rope_head_dim,
        )

    def pack(self, n_threads: int | None = None) -> PackedIndexer:
        """The weights in the order of the kernels; see `PackedIndexer`. They take about as many bytes as before.

        Args:
            n_threads: At most Numba's thread count; the default is that of `MlaProlog`.

        Returns:
            Packed weights, which share no memory with these.

        Raises:
            TypeError: An array was given another dtype in place meanwhile.
            ValueError: It was given another shape, or there are fewer threads.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.IndexerWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), n_heads=8, head_dim=64)
            >>> weights.pack().dims == weights.dims
            True
        """
        n_threads = check_threads("n_threads", n_threads, max_threads())
        w, dims = replace(self), self.dims  # checked once more
        return PackedIndexer(
            dims=dims,
            rope=w.rope,
            down=pack_gemm([w.wk, w.w_proj], [None, None], n_threads),
            up=pack_gemm(
                [w.w_qb], [w.w_qb_scale], n_threads, head_dim=dims.head_dim, columns_of_head=_head_order(dims, w.rope)
            ),
            hadamard_q=pack_gemm([w.hadamard_q], [None], n_threads),
            hadamard_k=pack_gemm([w.hadamard_k], [None], n_threads),
            ln_gamma_k=w.ln_gamma_k.astype(np.float32),
            ln_beta_k=w.ln_beta_k.astype(np.float32),
            epsilon=np.float32(w.epsilon),
        )


def _check_sizes(w_qb: object, w_qb_dtype: np.dtype[Any], wk: object, w_proj: object) -> tuple[int, int]:
    """Ni and Di. Raises unless the three weights fit each other, and none is empty."""
    arrays = {"wk": check_array("wk", wk, (BF16,), (None, None))}
    hidden, head_dim = arrays["wk"].shape
    arrays["w_proj"] = check_array("w_proj", w_proj, (BF16,), (hidden, None))
    n_heads = arrays["w_proj"].shape[1]
    arrays["w_qb"] = check_array("w_qb", w_qb, (w_qb_dtype,), (None, n_heads * head_dim))
    for name, array in arrays.items():
        if not array.size:
            raise ValueError(f"{name}: expected at least one row and one column, got shape {array.shape}")
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"wk: expected at most {MAX_HEAD_DIM} columns, the width of a head, got {head_dim}")
    return n_heads, head_dim


def _head_order(dims: IndexerDims, rope: RopeStyle) -> Array:
    """The order of the columns of a head of w_qb: those that are rotated as halves, the others as an operand."""
    rotated = np.arange(dims.qk_rope_head_dim)
    if rope == "interleaved":
        rotated = np.concatenate([rotated[0::2], rotated[1::2]])
    others = operand_order(dims.head_dim - dims.qk_rope_head_dim)
    return np.concatenate([rotated, np.where(others < 0, others, others + dims.qk_rope_head_dim)])
