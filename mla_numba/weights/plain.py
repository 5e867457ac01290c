"""The weights of one prolog, under the reference operator's names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from ..base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
    check_array,
    check_choice,
    check_epsilon,
    check_flag,
    check_int,
    check_k_int8,
    check_threads,
    check_vector,
    expect_array,
    expect_type,
)
from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.modes import QUANT_MODES, QuantMode, quant_mode
from ..base.short_repr import dims_text, short_repr, size_text
from ..kernels import max_threads
from .packed import PackedWeights
from .packed_gemm import pack_gemm
from .quantize import QuantizationReport, WeightError, quantize_columns

__all__ = ["MlaWeights"]


@dataclass(frozen=True, slots=True, eq=False)
class MlaWeights:
    """Weights in ND layout, C order.

    Dimension letters: H hidden_size, Rq q_lora_rank, N heads, D qk_nope_head_dim, R qk_rope_head_dim, C kv_lora_rank.

    | field                   | shape            | dtype                                        |
    |-------------------------|------------------|----------------------------------------------|
    | w_dq                    | (H, Rq)          | bf16, int8 with its scale                    |
    | w_uq_qr                 | (Rq, N * (D+R))  | bf16, int8 with its scale; a head is nope, rope |
    | w_uk                    | (N, D, C)        | bf16                                         |
    | w_dkv_kr                | (H, C+R)         | bf16, int8 with its scale; latent, rope      |
    | gamma_cq, gamma_ckv     | (Rq,), (C,)      | bf16                                         |
    | dequant_scale_w_uq_qr   | (N * (D+R),)     | float32, or None                             |
    | dequant_scale_w_dq      | (Rq,)            | float32, or None                             |
    | dequant_scale_w_dkv_kr  | (C+R,)           | float32, or None                             |
    | smooth_scales_cq        | (1, Rq)          | float32, or None                             |

    Scales may also be (n, 1) or (1, n). bf16 is `ml_dtypes.bfloat16`. FRACTAL_NZ weights: `layouts.from_fractal_nz`.
    `epsilon_cq` and `epsilon_ckv` belong to the two norms. `head_shard` says which heads of a layer these are, None for
    all. `quantization` is the error report of weights that `quantize` made, None for others; a shard has that of the
    whole. Fields cannot be assigned; `dataclasses.replace` makes weights with other fields.

    Raises:
        TypeError: A field, named in the message, is of another type or dtype.
        ValueError: It has a shape or layout that does not fit the other fields, or a scale is missing.

    Examples:
        >>> import mla_numba as mla
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> weights = mla.MlaWeights.random(dims, quant="none")  # or MlaWeights(w_dq=..., w_uq_qr=..., ...)
        >>> weights.w_dq.shape, weights.w_uq_qr.shape, weights.w_uk.shape
        ((256, 96), (96, 256), (4, 32, 64))
        >>> int8 = weights.quantize("b")
        >>> int8.w_uq_qr.dtype, int8.dequant_scale_w_uq_qr.shape
        (dtype('int8'), (256,))
        >>> round(int8.quantization.errors["w_uq_qr"].relative_rms, 4)
        0.0063
    """

    w_dq: Array
    w_uq_qr: Array
    w_uk: Array
    w_dkv_kr: Array
    gamma_cq: Array
    gamma_ckv: Array
    dequant_scale_w_uq_qr: Array | None = None
    dequant_scale_w_dq: Array | None = None
    dequant_scale_w_dkv_kr: Array | None = None
    smooth_scales_cq: Array | None = None
    epsilon_cq: float = 1e-5
    epsilon_ckv: float = 1e-5
    head_shard: HeadShard | None = None
    quantization: QuantizationReport | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        check_epsilon("epsilon_cq", self.epsilon_cq)
        check_epsilon("epsilon_ckv", self.epsilon_ckv)
        for name in ("dequant_scale_w_uq_qr", "dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "smooth_scales_cq"):
            if getattr(self, name) is not None:
                expect_array(name, getattr(self, name), (FP32,))
        a, b = self.dequant_scale_w_dq, self.dequant_scale_w_uq_qr
        if (a is None) != (self.dequant_scale_w_dkv_kr is None):
            raise ValueError(
                "dequant_scale_w_dq, dequant_scale_w_dkv_kr: expected both or neither, got "
                + ("only the second" if a is None else "only the first")
            )
        down = (BF16,) if a is None else (INT8,)
        w_dq = check_array("w_dq", self.w_dq, down, (None, None))
        hidden, q_rank = w_dq.shape
        w_uk = check_array("w_uk", self.w_uk, (BF16,), (None, None, None))
        heads, nope, latent = w_uk.shape
        w_dkv_kr = check_array("w_dkv_kr", self.w_dkv_kr, down, (hidden, None))
        rope = w_dkv_kr.shape[1] - latent
        if rope < 2 or rope % 2:
            raise ValueError(
                f"w_dkv_kr: expected kv_lora_rank {latent} plus an even rope dim columns, got {latent + rope}"
            )
        up_columns = heads * (nope + rope)
        check_array("w_uq_qr", self.w_uq_qr, (BF16,) if b is None else (INT8,), (q_rank, up_columns))
        check_array("gamma_cq", self.gamma_cq, (BF16,), (q_rank,))
        check_array("gamma_ckv", self.gamma_ckv, (BF16,), (latent,))
        for name, n in (("w_uq_qr", up_columns), ("w_dq", q_rank), ("w_dkv_kr", latent + rope)):
            self._take_vector(f"dequant_scale_{name}", n)
        self._take_vector("smooth_scales_cq", q_rank)
        for name, k, is_int8 in (("w_dq", hidden, a is not None), ("w_uq_qr", q_rank, b is not None)):
            if is_int8:
                check_k_int8(name, k)
        if a is None and hidden % 2:
            raise ValueError(f"w_dq: expected an even hidden_size (its two halves are summed apart), got {hidden}")
        if b is not None and latent % 4:
            raise ValueError(f"w_uk: expected a kv_lora_rank of 4 quantisation groups, got {latent}")
        if self.smooth_scales_cq is not None and b is None:
            raise ValueError("smooth_scales_cq: expected None where w_uq_qr is not quantised, got an array")
        if self.head_shard is not None:
            expect_type("head_shard", self.head_shard, HeadShard)
            if len(self.head_shard.heads) != heads:
                raise ValueError(f"head_shard: expected {heads} heads, as w_uk has, got {self.head_shard}")

    def __repr__(self) -> str:
        smooth = "smooth" if self.smooth_scales_cq is not None else ""
        return short_repr(self, dims_text(self.dims), f"quant={self.quant!r}", smooth, size_text(self.nbytes))

    def _take_vector(self, name: str, n: int) -> None:
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, check_vector(name, value, FP32, n))

    @property
    def quant(self) -> QuantMode:
        """ "none", "a" (int8 w_dq and w_dkv_kr), "b" (int8 w_uq_qr and cache) or "ab"."""
        return quant_mode(self.dequant_scale_w_dq is not None, self.dequant_scale_w_uq_qr is not None)

    @property
    def dims(self) -> MlaDims:
        """The dimensions that the shapes imply."""
        heads, nope, latent = self.w_uk.shape
        hidden, q_rank = self.w_dq.shape
        return MlaDims(hidden, heads, q_rank, latent, nope, self.w_dkv_kr.shape[1] - latent)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(v.nbytes for v in (getattr(self, name) for name in self.__slots__) if isinstance(v, np.ndarray))

    @classmethod
    def random(cls, dims: MlaDims, seed: int = 0, quant: QuantMode = "b", smooth: bool = False) -> Self:
        """Weights of the size a trained layer has: each product keeps its input's variance.

        The bf16 weights depend on `dims` and `seed` alone; `quant` and `smooth` quantise the same ones.

        Args:
            dims: Dimensions of the layer.
            seed: Of the random numbers, from 0 on.
            quant: "none", "a", "b" or "ab", see `quant`.
            smooth: With random `smooth_scales_cq` from 0.5 to 2; only with "b" and "ab".

        Returns:
            Weights of that mode.

        Raises:
            TypeError: An argument is of another type.
            ValueError: The seed is negative, the mode none of the four, or the dimensions do not fit the mode.

        Examples:
            >>> import mla_numba as mla
            >>> mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), seed=1, quant="ab")
            <MlaWeights: H=256 N=4 Rq=96 C=64 D=32 R=32, quant='ab', 92.2 kB>
        """
        expect_type("dims", dims, MlaDims)
        check_choice("quant", quant, QUANT_MODES)
        check_flag("smooth", smooth)
        rng = np.random.default_rng(check_int("seed", seed, 0))

        def normal(*shape: int) -> Array:
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(shape[-2] ** -0.5)
            return values.astype(BF16)

        def gamma(n: int) -> Array:
            return (1 + 0.1 * rng.standard_normal(n, dtype=np.float32)).astype(BF16)

        d = dims
        weights = cls(
            w_dq=normal(d.hidden_size, d.q_lora_rank),
            w_uq_qr=normal(d.q_lora_rank, d.num_attention_heads * d.q_head_dim),
            w_uk=normal(d.num_attention_heads, d.qk_nope_head_dim, d.kv_lora_rank),
            w_dkv_kr=normal(d.hidden_size, d.kv_a_dim),
            gamma_cq=gamma(d.q_lora_rank),
            gamma_ckv=gamma(d.kv_lora_rank),
        )
        scales = rng.uniform(0.5, 2, (1, d.q_lora_rank)).astype(np.float32) if smooth else None
        return weights.quantize(quant, smooth_scales_cq=scales)

    def quantize(self, quant: QuantMode, smooth_scales_cq: Array | None = None) -> Self:
        """The same weights in another mode: int8 by columns, `scale = max|column| / 127`, `code = rint(w / scale)`.

        `self` holds bf16 weights, or weights of mode "a" or "b" if `quant` is "ab"; weights that are int8 already stay
        unchanged.

        Args:
            quant: The mode that is wanted.
            smooth_scales_cq: Factors (Rq,), (1, Rq) or (Rq, 1) float32 that multiply the activations before they are
                quantised, so the rows of w_uq_qr are divided by them first.

        Returns:
            New weights, whose `quantization` is a `QuantizationReport` with the error of each weight that became int8.

        Raises:
            TypeError: An argument is of another type or dtype.
            ValueError: `self` holds other int8 weights, a weight is not finite, or the smooth scales are 0, not finite,
                or given for a w_uq_qr that is int8 already.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), quant="none")
            >>> report = weights.quantize("ab").quantization  # print(report) shows a table
            >>> {name: error.relative_rms < 0.01 for name, error in report.errors.items()}
            {'w_dq': True, 'w_dkv_kr': True, 'w_uq_qr': True}
        """
        check_choice("quant", quant, QUANT_MODES)
        if self.quant != "none" and not (self.quant in ("a", "b") and quant == "ab"):
            raise ValueError(f"quantize: expected bf16 weights, got mode {self.quant!r}")
        if "b" in self.quant and smooth_scales_cq is not None:
            raise ValueError("smooth_scales_cq: expected None where w_uq_qr is int8 already, got an array")
        smooth = None
        if "b" in quant and smooth_scales_cq is not None:
            smooth = check_vector("smooth_scales_cq", smooth_scales_cq, FP32, self.w_dq.shape[1])
            if not (np.isfinite(smooth).all() and smooth.all()):
                raise ValueError("smooth_scales_cq: expected finite values other than 0, got one that is not")
        names = (("w_dq", "w_dkv_kr") if "a" in quant else ()) + (("w_uq_qr",) if "b" in quant else ())
        changes: dict[str, Array | None] = {} if "b" in self.quant else {"smooth_scales_cq": smooth_scales_cq}
        errors: dict[str, WeightError] = dict(self.quantization.errors) if self.quantization else {}
        for name in names:
            if getattr(self, f"dequant_scale_{name}") is None:
                codes, scale, errors[name] = quantize_columns(
                    name, getattr(self, name), smooth if name == "w_uq_qr" else None
                )
                changes |= {name: codes, f"dequant_scale_{name}": scale}
        result = replace(self, **changes)  # type: ignore[arg-type]
        object.__setattr__(result, "quantization", QuantizationReport(errors))
        return result

    def shard(self, rank: int, size: int) -> Self:
        """The weights of one of `size` ranks that share the layer by heads: see `HeadShard`.

        Of w_uq_qr, its scales and w_uk those of the rank's heads, copied; the others are the same arrays.

        Args:
            rank: The rank, from 0.
            size: The number of ranks, up to the number of heads, which it need not divide.

        Returns:
            The rank's weights, whose `head_shard` says which heads they are.

        Raises:
            TypeError: `rank` or `size` is no int.
            ValueError: There is no such rank, there are more ranks than heads, or the weights are a shard already.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32))
            >>> weights.shard(1, 3).w_uk.shape, str(weights.shard(1, 3).head_shard)
            ((1, 32, 64), 'heads 2 to 2 of 4, rank 1 of 3')
        """
        if self.head_shard is not None:
            raise ValueError(f"shard: expected the weights of all heads, got {self.head_shard}")
        dims = self.dims
        shard = HeadShard(rank, size, dims.num_attention_heads)
        heads = slice(shard.heads.start, shard.heads.stop)
        columns = slice(heads.start * dims.q_head_dim, heads.stop * dims.q_head_dim)
        scale = self.dequant_scale_w_uq_qr
        result = replace(
            self,
            w_uq_qr=np.ascontiguousarray(self.w_uq_qr[:, columns]),
            w_uk=self.w_uk[heads].copy(),
            dequant_scale_w_uq_qr=None if scale is None else scale[columns].copy(),
            head_shard=shard,
        )
        object.__setattr__(result, "quantization", self.quantization)
        return result

    def pack(self, n_threads: int | None = None) -> PackedWeights:
        """The weights in the order of the kernels; see `PackedWeights`. They take about as many bytes as before.

        Args:
            n_threads: As of `MlaProlog`.

        Returns:
            Packed weights, which share no memory with these.

        Raises:
            TypeError: An array was given another dtype in place meanwhile.
            ValueError: It was given another shape, or there are fewer threads.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32))
            >>> mla.MlaProlog(weights.pack()).dims == weights.dims
            True
        """
        n_threads = check_threads("n_threads", n_threads, max_threads())
        w, dims = replace(self), self.dims  # checked once more

        def widened(vector: Array | None) -> Array:
            return np.zeros(0, np.float32) if vector is None else vector.astype(np.float32)

        return PackedWeights(
            dims=dims,
            quant=w.quant,
            down=pack_gemm(
                [w.w_dq, w.w_dkv_kr],
                [w.dequant_scale_w_dq, w.dequant_scale_w_dkv_kr],
                n_threads,
                # bf16 w_dq is summed over two halves of k. int8 sums are exact, so one part is enough.
                n_parts=2 if w.dequant_scale_w_dq is None else 1,
                rope_dims=(0, dims.qk_rope_head_dim),
            ),
            up=pack_gemm(
                [w.w_uq_qr],
                [w.dequant_scale_w_uq_qr],
                n_threads,
                head_dim=dims.q_head_dim,
                rope_dims=(dims.qk_rope_head_dim,),
                rope_first=True,
            ),
            uk=pack_gemm([w.w_uk], [None], n_threads),
            gamma_cq=widened(w.gamma_cq),
            gamma_ckv=widened(w.gamma_ckv),
            smooth_scales_cq=widened(w.smooth_scales_cq),
            epsilon_cq=np.float32(w.epsilon_cq),
            epsilon_ckv=np.float32(w.epsilon_ckv),
            head_shard=w.head_shard,
        )
