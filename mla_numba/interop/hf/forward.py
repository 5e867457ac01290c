"""What an attention of a patched model does instead of its own `forward`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache

from ..torch.prolog import TorchCache, TorchOutput, TorchProlog
from .cache import (
    CacheSettings,
    LatentLayer,
    latent_layer,
    restored_on_failure,
)
from .calls import WRITTEN
from .families import HfFamily
from .fresh import PackedFrom
from .latent_attention import latent_attention, product_dtype, read_rows

__all__ = ["AttentionForward"]


class _Call(NamedTuple):
    """The arguments of one call, as `AttentionForward` takes them."""

    hidden_states: torch.Tensor
    position_embeddings: tuple[torch.Tensor, torch.Tensor]
    mask: Any
    cache: Cache | None
    position_ids: torch.Tensor | None
    written: torch.Tensor | None
    last_selected: torch.Tensor | None
    keep_weights: bool


class AttentionForward:
    """The `forward` of an attention of a family, on a prolog and a cache of latents.

    `w_uv` (N, C, V) bf16: what the sums over latents are multiplied by, head by head. `packed_from`: the weights of
    the model that both were made from.
    """

    def __init__(self, attention: nn.Module, family: HfFamily, settings: CacheSettings) -> None:
        self.attention: Any = attention
        self.family = family
        self.settings = settings

    def take(self, prolog: TorchProlog, w_uv: torch.Tensor, packed_from: PackedFrom) -> None:
        """Computes with these weights from now on."""
        self.prolog = prolog
        self.w_uv = w_uv.to(product_dtype())
        self.packed_from = packed_from

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
    ) -> tuple[torch.Tensor | None, ...]:
        """Hidden states (B, S, H) in bf16, the attention's weights (B, N, S, L) where they are asked for, and the
        keys (B, S, K) that an indexer selected where the family's own `forward` gives them.

        hidden_states (B, S, H) bf16, under autocast any float type; position_embeddings: cos and sin (B or 1, S, R)
        bf16; attention_mask as `latent_attention` takes it. Raises `TypeError` or `ValueError` naming what does not
        fit. After any failure the cache holds the tokens that it held before.
        """
        self._check(hidden_states)
        self.packed_from.check()
        call = _Call(
            hidden_states, position_embeddings, attention_mask, cache, position_ids, kwargs.get(WRITTEN),
            kwargs.get("prev_topk_indices"), bool(kwargs.get("output_attentions", self._config_wants_weights())),
        )  # fmt: skip
        with restored_on_failure(cache, self.attention.layer_idx):
            with torch.no_grad():
                values, weights, selected = self._attend(call)
            if torch.is_grad_enabled() and hidden_states.requires_grad:
                values = _NoBackward.apply(values, hidden_states)
            projected = self.attention.o_proj(values)
        return (projected, weights, selected) if self.family.selection_returned else (projected, weights)

    def _config_wants_weights(self) -> bool:
        return bool(self.attention.config.output_attentions)

    def _check(self, hidden_states: torch.Tensor) -> None:
        attention = self.attention
        if attention.training and (torch.is_grad_enabled() or attention.attention_dropout):
            raise ValueError("model: expected eval mode (there are no gradients and no dropout), got training mode")
        if hidden_states.dtype != torch.bfloat16 and not _is_cast(hidden_states):
            raise TypeError(f"hidden_states: expected dtype torch.bfloat16, got {hidden_states.dtype}")
        if hidden_states.device.type != "cpu":
            raise ValueError(f"hidden_states: expected a tensor on the CPU, got one on {hidden_states.device}")

    def _attend(self, call: _Call) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Values (B, S, N * V), weights and selected keys; the cache's layer then holds the new tokens."""
        batch, n = call.hidden_states.shape[:2]
        heads = self.settings.dims.num_attention_heads
        layer = latent_layer(call.cache, self.settings, self.attention.layer_idx)
        length = layer.length + n
        _check_mask(call.mask, batch, heads, n, length, self.settings.indexed)
        out = self._write(call, layer)
        mask, selected = call.mask, None
        if self.settings.indexed:
            selected = self._selected(call, _dequantised(out).view(batch, n, -1))
            mask = _only(mask, selected)
        query_nope, query_rope = (query.view(batch, n, heads, -1) for query in (out.query_nope, out.query_rope))
        latents, k_rope = read_rows(layer.pool, layer.index, length)
        values, weights = latent_attention(
            query_nope, query_rope, latents, k_rope, self.w_uv, self.attention.scaling, mask, call.keep_weights
        )
        layer.length = length
        return values, weights, selected

    def _write(self, call: _Call, layer: LatentLayer) -> TorchOutput:
        """The prolog of the new tokens: their rows are then in the cache, zeros where a token is padding."""
        batch, n = call.hidden_states.shape[:2]
        pool = layer.pool
        pool.reserve(batch, layer.length, n)
        slots = torch.from_numpy(pool.slots(layer.length, n))
        if call.written is not None:
            pool.clear(layer.index, slots[~call.written].numpy())
            slots = slots.where(call.written, -1)
        x = call.hidden_states.reshape(batch * n, -1)
        cos, sin = (table.expand(batch, n, -1).reshape(batch * n, -1) for table in call.position_embeddings)
        x, cos, sin = (t.to(torch.bfloat16).contiguous() if _is_cast(t) else t.contiguous() for t in (x, cos, sin))
        return self.prolog(x, cos, sin, slots.reshape(-1), TorchCache.from_numpy(pool.cache(layer.index)))

    def _selected(self, call: _Call, q_norm: torch.Tensor) -> torch.Tensor:
        """The keys (B, S, K) that the model's own indexer selects, or, in a layer without one, the last ones."""
        if self.attention.indexer is None:
            if call.last_selected is None:
                raise ValueError("prev_topk_indices: expected those of a layer with an indexer, got None")
            return call.last_selected
        found: torch.Tensor = self.attention.indexer(
            call.hidden_states, q_norm, call.position_embeddings, call.mask[:, 0], call.position_ids, cache=call.cache
        )
        return found


class _NoBackward(torch.autograd.Function):
    """Values that belong to the graph, so that a backward through them is refused and not silently zero."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("backward: expected none through a patched model (the prolog has no gradients), got one")


def _is_cast(tensor: torch.Tensor) -> bool:
    """Whether autocast is on, under which a float tensor is rounded to what an operation takes."""
    return torch.is_autocast_enabled("cpu") and tensor.dtype.is_floating_point


def _only(mask: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """The mask (B or 1, 1, S, L) with all keys hidden that are not selected."""
    shape = (*selected.shape[:2], mask.shape[-1])
    seen = torch.zeros(shape, dtype=torch.bool).scatter_(-1, selected.long(), True)[:, None]
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


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
