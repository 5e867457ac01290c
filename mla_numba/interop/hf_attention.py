"""What an attention of a patched model does instead of its own `forward`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache

from .hf_cache import CacheSettings, latent_layer
from .latent_attention import latent_attention, read_rows
from .torch import TorchCache, TorchOutput, TorchProlog

__all__ = ["WRITTEN", "AttentionForward"]

WRITTEN = "mla_written"  # the keyword in which attentions hear which of the new tokens (B, S) are no padding


class AttentionForward:
    """`DeepseekV3Attention.forward`, or that of `DeepseekV32Attention`, on a prolog and a cache of latents.

    `w_uv` (N, C, V) bf16: what the sums over latents are multiplied by, head by head.
    """

    def __init__(self, attention: nn.Module, prolog: TorchProlog, w_uv: torch.Tensor, settings: CacheSettings) -> None:
        self.attention: Any = attention
        self.prolog = prolog
        self.w_uv = w_uv
        self.settings = settings

    # Blocks are bookkeeping in NumPy, so a compiled model is cut here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        cache: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states (B, S, H) in bf16, and the attention's weights (B, N, S, L) where they are asked for.

        hidden_states (B, S, H) bf16; position_embeddings: cos and sin (B or 1, S, R) bf16; attention_mask as
        `latent_attention` takes it. Raises `TypeError` or `ValueError` naming what does not fit; the cache then holds
        the tokens that it held before.
        """
        self._check(hidden_states)
        keep_weights = bool(kwargs.get("output_attentions", self.attention.config.output_attentions))
        written = kwargs.get(WRITTEN)
        with torch.no_grad():
            values, weights = self._attend(
                hidden_states, position_embeddings, attention_mask, cache, position_ids, written, keep_weights
            )
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            values = _NoBackward.apply(values, hidden_states)
        return self.attention.o_proj(values), weights

    def _check(self, hidden_states: torch.Tensor) -> None:
        attention = self.attention
        if attention.training and (torch.is_grad_enabled() or attention.attention_dropout):
            raise ValueError("model: expected eval mode (there are no gradients and no dropout), got training mode")
        if hidden_states.dtype != torch.bfloat16:
            raise TypeError(f"hidden_states: expected dtype torch.bfloat16, got {hidden_states.dtype}")
        if hidden_states.device.type != "cpu":
            raise ValueError(f"hidden_states: expected a tensor on the CPU, got one on {hidden_states.device}")

    def _attend(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Cache | None,
        position_ids: torch.Tensor | None,
        written: torch.Tensor | None,
        keep_weights: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, n = hidden_states.shape[:2]
        heads = self.settings.dims.num_attention_heads
        layer = latent_layer(cache, self.settings, self.attention.layer_idx)
        length = layer.length + n
        _check_mask(mask, batch, heads, n, length, self.settings.indexed)
        layer.pool.reserve(batch, layer.length, n)
        slots = torch.from_numpy(layer.pool.slots(layer.length, n))
        if written is not None:
            slots = slots.where(written, -1)
        x = hidden_states.reshape(batch * n, -1).contiguous()
        cos, sin = (table.expand(batch, n, -1).reshape(batch * n, -1).contiguous() for table in position_embeddings)
        cache_tensors = TorchCache.from_numpy(layer.pool.cache(layer.index))
        out = self.prolog(x, cos, sin, slots.reshape(-1), cache_tensors)
        if self.settings.indexed:
            q_norm = _dequantised(out).view(batch, n, -1)
            mask = self._selected(hidden_states, q_norm, position_embeddings, mask, position_ids, cache)
        query_nope, query_rope = (query.view(batch, n, heads, -1) for query in (out.query_nope, out.query_rope))
        latents, k_rope = read_rows(layer.pool, layer.index, length)
        attended = latent_attention(
            query_nope, query_rope, latents, k_rope, self.w_uv, self.attention.scaling, mask, keep_weights
        )
        layer.length = length
        return attended

    def _selected(
        self,
        hidden_states: torch.Tensor,
        q_norm: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        mask: Any,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """The mask with all keys hidden that the model's own indexer does not select."""
        found = self.attention.indexer(
            hidden_states, q_norm, position_embeddings, mask[:, 0], position_ids, cache=cache
        )
        shape = (*hidden_states.shape[:2], mask.shape[-1])
        selected = torch.zeros(shape, dtype=torch.bool).scatter_(-1, found.long(), True)[:, None]
        if mask.dtype == torch.bool:
            both: torch.Tensor = mask & selected
            return both
        hidden: torch.Tensor = mask.masked_fill(~selected, torch.finfo(mask.dtype).min)
        return hidden


class _NoBackward(torch.autograd.Function):
    """Values that belong to the graph, so that a backward through them is refused and not silently zero."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("backward: expected none through a patched model (the prolog has no gradients), got one")


def _check_mask(mask: Any, batch: int, heads: int, n: int, length: int, needed: bool) -> None:
    """Raises for a mask that is neither None nor (B or 1, N or 1, S, L), bool or floats to add."""
    if mask is None and not needed:
        return
    wanted = f"a mask of shape ({batch} or 1, {heads} or 1, {n}, {length})" + ("" if needed else " or None")
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"attention_mask: expected {wanted}, got {type(mask).__name__}")
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(f"attention_mask: expected dtype torch.bool or floats, got {mask.dtype}")
    shape = tuple(mask.shape)
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2:] != (n, length):
        raise ValueError(f"attention_mask: expected {wanted}, got shape {shape}")


def _dequantised(out: TorchOutput) -> torch.Tensor:
    """q_norm (T, Rq) in bf16."""
    return out.q_norm if out.q_norm_scale is None else (out.q_norm.float() * out.q_norm_scale).to(torch.bfloat16)
