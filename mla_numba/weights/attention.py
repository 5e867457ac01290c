"""The Linear and norm weights of a DeepSeek attention as those of a prolog."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ..base.checks import Array
from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.short_repr import array_text, short_repr
from .plain import MlaWeights
from .quantize import QuantizationReport, WeightError, quantize_columns

__all__ = ["AttentionSource", "CheckpointLayer", "Int8Linear", "read_attention"]


class CheckpointLayer(NamedTuple):
    """What `Checkpoint.load_layer` gives: `weights` and `w_uv`. `Checkpoint` has an example.

    `w_uv` (N, C, V) bf16 is the value half of `kv_b_proj`: attention multiplies its sums over the latents (T, N, C) by
    it, head by head, and has its values (T, N, V).
    """

    weights: MlaWeights
    w_uv: Array

    def __repr__(self) -> str:
        return short_repr(self, repr(self.weights), f"w_uv {array_text(self.w_uv)}")


class Int8Linear(NamedTuple):
    """A Linear's weight as int8 codes (in, out) and a float32 scale for each column (out,)."""

    codes: Array
    scale: Array


class AttentionSource(Protocol):
    """Where the weights of one attention are: tensors of a file, or parameters of a model. `module` is a name such as
    "q_a_proj", whose weight is meant; all come in C order, as bf16 but for codes that are to stay as they are.
    """

    def vector(self, module: str, n: int) -> Array:
        """A norm's weight (n,)."""

    def weight(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight (n_out, n_in)."""

    def transposed(self, module: str, n_out: int, n_in: int) -> Array | Int8Linear:
        """A Linear's weight as (n_in, n_out)."""


def read_attention(
    source: AttentionSource,
    dims: MlaDims,
    v_head_dim: int,
    epsilon: float,
    rope_interleave: bool,
    head_shard: HeadShard | None = None,
) -> CheckpointLayer:
    """The weights of `source`; `Checkpoint.load_layer` says which becomes which.

    The mode is "none" unless the source gives int8 codes. w_dq and w_dkv_kr are int8 together: where it gives codes of
    one of them, the other is quantised by columns. Without `rope_interleave` the rope columns are two halves, and are
    brought into pairs. `dims` and the source are of the heads of `head_shard`.
    """
    d = dims
    kv_b = source.weight("kv_b_proj", d.num_attention_heads * (d.qk_nope_head_dim + v_head_dim), d.kv_lora_rank)
    by_head = kv_b.reshape(d.num_attention_heads, -1, d.kv_lora_rank)
    w_uk, values = by_head[:, : d.qk_nope_head_dim].copy(), by_head[:, d.qk_nope_head_dim :]
    w_uv = np.ascontiguousarray(values.transpose(0, 2, 1))
    linears = {
        "w_uq_qr": source.transposed("q_b_proj", d.num_attention_heads * d.q_head_dim, d.q_lora_rank),
        "w_dkv_kr": source.transposed("kv_a_proj_with_mqa", d.kv_a_dim, d.hidden_size),
        "w_dq": source.transposed("q_a_proj", d.q_lora_rank, d.hidden_size),
    }
    if not rope_interleave:
        for name, width in (("w_uq_qr", d.q_head_dim), ("w_dkv_kr", d.kv_a_dim)):
            linears[name] = _with_pairs(linears[name], width, d.qk_rope_head_dim)
    errors = _quantize_partner(linears)
    fields: dict[str, Array] = {}
    for name, linear in linears.items():
        if isinstance(linear, Int8Linear):
            fields |= {name: linear.codes, f"dequant_scale_{name}": linear.scale}
        else:
            fields[name] = linear
    weights = MlaWeights(
        **fields,
        w_uk=w_uk,
        gamma_cq=source.vector("q_a_layernorm", d.q_lora_rank),
        gamma_ckv=source.vector("kv_a_layernorm", d.kv_lora_rank),
        epsilon_cq=epsilon,
        epsilon_ckv=epsilon,
        head_shard=head_shard,
    )
    if errors:
        object.__setattr__(weights, "quantization", QuantizationReport(errors))  # which no constructor takes
    return CheckpointLayer(weights, w_uv)


def _quantize_partner(linears: dict[str, Array | Int8Linear]) -> dict[str, WeightError]:
    """Where one of w_dq and w_dkv_kr is int8, makes the other one so, and gives the error that this brings."""
    pair = ("w_dq", "w_dkv_kr")
    errors = {}
    if any(isinstance(linears[name], Int8Linear) for name in pair):
        for name in pair:
            linear = linears[name]
            if not isinstance(linear, Int8Linear):
                codes, scale, errors[name] = quantize_columns(name, linear)
                linears[name] = Int8Linear(codes, scale)
    return errors


def _with_pairs(linear: Array | Int8Linear, width: int, rope_dim: int) -> Array | Int8Linear:
    """The last `rope_dim` of each `width` columns, two halves, as interleaved pairs."""
    columns = np.arange(width)
    columns[-rope_dim:] = columns[-rope_dim:].reshape(2, -1).T.reshape(-1)
    weight = linear.codes if isinstance(linear, Int8Linear) else linear
    order = (np.arange(0, weight.shape[1], width)[:, None] + columns).reshape(-1)
    if isinstance(linear, Int8Linear):
        return Int8Linear(linear.codes.take(order, axis=1), linear.scale[order])
    return linear.take(order, axis=1)
