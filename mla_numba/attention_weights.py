"""The Linear and norm weights of a DeepSeek attention as those of a prolog."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ._checks import Array
from .dims import MlaDims
from .weights import MlaWeights

__all__ = ["AttentionSource", "CheckpointLayer", "read_attention"]


class CheckpointLayer(NamedTuple):
    """What `Checkpoint.load_layer` gives.

    `w_uv` (N, C, V) bf16 is the value half of `kv_b_proj`: attention multiplies its sums over the latents (T, N, C) by
    it, head by head, and has its values (T, N, V).
    """

    weights: MlaWeights
    w_uv: Array


class AttentionSource(Protocol):
    """Where the weights of one attention are: tensors of a file, or parameters of a model. `module` is a name such as
    "q_a_proj", whose weight is meant; all come as bf16 in C order.
    """

    def vector(self, module: str, n: int) -> Array:
        """A norm's weight (n,)."""

    def weight(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight (n_out, n_in)."""

    def transposed(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight as (n_in, n_out)."""


def read_attention(
    source: AttentionSource, dims: MlaDims, v_head_dim: int, epsilon: float, rope_interleave: bool
) -> CheckpointLayer:
    """The weights of `source`, not quantised; `Checkpoint.load_layer` says which becomes which.

    Without `rope_interleave` the rope columns are two halves, and are brought into pairs.
    """
    d = dims
    kv_b = source.weight("kv_b_proj", d.num_attention_heads * (d.qk_nope_head_dim + v_head_dim), d.kv_lora_rank)
    by_head = kv_b.reshape(d.num_attention_heads, -1, d.kv_lora_rank)
    w_uk, values = by_head[:, : d.qk_nope_head_dim].copy(), by_head[:, d.qk_nope_head_dim :]
    w_uv = np.ascontiguousarray(values.transpose(0, 2, 1))
    w_uq_qr = source.transposed("q_b_proj", d.num_attention_heads * d.q_head_dim, d.q_lora_rank)
    w_dkv_kr = source.transposed("kv_a_proj_with_mqa", d.kv_a_dim, d.hidden_size)
    if not rope_interleave:
        w_uq_qr = _with_pairs(w_uq_qr, d.q_head_dim, d.qk_rope_head_dim)
        w_dkv_kr = _with_pairs(w_dkv_kr, d.kv_a_dim, d.qk_rope_head_dim)
    weights = MlaWeights(
        w_dq=source.transposed("q_a_proj", d.q_lora_rank, d.hidden_size),
        w_uq_qr=w_uq_qr,
        w_uk=w_uk,
        w_dkv_kr=w_dkv_kr,
        gamma_cq=source.vector("q_a_layernorm", d.q_lora_rank),
        gamma_ckv=source.vector("kv_a_layernorm", d.kv_lora_rank),
        epsilon_cq=epsilon,
        epsilon_ckv=epsilon,
    )
    return CheckpointLayer(weights, w_uv)


def _with_pairs(weight: Array, width: int, rope_dim: int) -> Array:
    """The last `rope_dim` of each `width` columns, two halves, as interleaved pairs."""
    columns = np.arange(width)
    columns[-rope_dim:] = columns[-rope_dim:].reshape(2, -1).T.reshape(-1)
    starts = np.arange(0, weight.shape[1], width)
    return weight.take((starts[:, None] + columns).reshape(-1), axis=1)
