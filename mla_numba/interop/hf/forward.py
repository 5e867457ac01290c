"""What an attention of a patched model does instead of its own `forward`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache

from ...base.dims import MlaDims
from ...call.bind import IndexedOutput
from ...call.indexer import IndexerOutput
from ...prolog import MlaProlog
from ..torch.prolog import TorchCache, TorchOutput, TorchProlog, to_numpy, to_torch
from .cache import (
    CacheSettings,
    LatentLayer,
    latent_layer,
    restored_on_failure,
)
from .calls import WRITTEN
from .families import HfFamily
from .fresh import PackedFrom
from .index import choose
from .latent_attention import latent_attention, product_dtype, read_rows, values_of
from .masks import check_mask, hide_others, listed, seen_keys, sees_later
from .paged_attention import paged_attention

__all__ = ["AttentionForward"]

_TILE_BYTES = 128 << 20  # of queries and sums at once
_SCORE_BYTES = 128 << 20  # likewise of scores of an indexer's heads


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


class _Tile(NamedTuple):
    """A part of a call's queries. `past`: tokens before the call; `causal`: whether no query sees a later key."""

    part: slice
    past: int
    causal: bool

    @property
    def n(self) -> int:
        """Queries a sequence."""
        return self.part.stop - self.part.start

    @property
    def length(self) -> int:
        """Keys a sequence, up to that of the last query."""
        return self.past + self.part.stop


class _Keys:
    """The keys of a layer's indexer as a cache, which that of a call need not be."""

    def __init__(self, layer: LatentLayer) -> None:
        self.layer = layer

    def update_indexer(self, keys: torch.Tensor, index: int) -> torch.Tensor:
        """Adds keys (B, S, index_head_dim) and gives all of them."""
        return self.layer.update_indexer(keys)


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
        if not len(hidden_states):
            raise ValueError("hidden_states: expected at least 1 sequence, got 0")

    def _attend(self, call: _Call) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Values (B, S, N * V), weights and selected keys; the cache's layer then holds the new tokens.

        A tile of queries at a time: those of a long prompt take more memory than its latents.
        """
        batch, n = call.hidden_states.shape[:2]
        layer = latent_layer(call.cache, self.settings, self.attention.layer_idx)
        dims, past = self.settings.dims, layer.length
        check_mask(call.mask, batch, dims.num_attention_heads, n, past + n, self.settings.indexed)
        layer.pool.reserve(batch, past, n)
        step = max(_TILE_BYTES // (max(batch, 1) * _query_bytes(dims)), 1)
        causal = not sees_later(call.mask, step)
        if call.keep_weights or not causal:
            step = max(n, 1)  # queries need the rows of all tokens
        width = dims.num_attention_heads * self.w_uv.shape[-1]
        values = call.hidden_states.new_empty((batch, n, width), dtype=torch.bfloat16)
        weights, selections = None, []
        for start in range(0, n, step):
            tile = _Tile(slice(start, min(start + step, n)), past, causal)
            values[:, tile.part], weights, selected = self._attend_tile(call, layer, tile)
            selections.append(selected)
        layer.length = past + n
        return values, weights, _joined(selections)

    def _attend_tile(
        self, call: _Call, layer: LatentLayer, tile: _Tile
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The same of a tile of queries, whose rows are then in the cache."""
        batch, n = call.hidden_states.shape[0], tile.n
        out, indexer = self._write(call, layer, tile)
        mask = None if call.mask is None else call.mask[:, :, tile.part, : tile.length]
        selected = None
        if self.settings.indexed:
            if indexer is not None:
                selected = self._chosen(call, layer, tile, indexer)
            else:
                selected = self._selected(call, layer, tile, _dequantised(out).view(batch, n, -1))
            mask = hide_others(mask, selected)
        seen = None if mask is None else seen_keys(mask)
        if call.keep_weights or not tile.causal or (seen is None and mask is not None):
            queries = (query.view(batch, n, -1, query.shape[-1]) for query in (out.query_nope, out.query_rope))
            rows = read_rows(layer.pool, layer.index, tile.length)
            values, weights = latent_attention(
                *queries, *rows, self.w_uv, self.attention.scaling, mask, call.keep_weights
            )
            return values, weights, selected
        index = None if seen is None else listed(seen, batch)
        latent = paged_attention(
            out, layer.pool, layer.index, tile.length, index, softmax_scale=self.attention.scaling,
            n_threads=self.prolog.prolog.n_threads,
        )  # fmt: skip
        return values_of(latent, self.w_uv).view(batch, n, -1), None, selected

    def _write(self, call: _Call, layer: LatentLayer, tile: _Tile) -> tuple[TorchOutput, IndexerOutput | None]:
        """The prologs of a tile: its rows are then in the caches, zeros where a token is padding."""
        pool, part = layer.pool, tile.part
        x = call.hidden_states[:, part]
        batch, n = x.shape[:2]
        slots = torch.from_numpy(pool.slots(tile.length - n, n))
        if call.written is not None:
            written = call.written[:, part]
            pool.clear(layer.index, slots[~written].numpy())
            slots = slots.where(written, -1)
        x = x.reshape(batch * n, -1)
        cos, sin = (table[:, part].expand(batch, n, -1).reshape(batch * n, -1) for table in call.position_embeddings)
        x, cos, sin = (t.to(torch.bfloat16).contiguous() if _is_cast(t) else t.contiguous() for t in (x, cos, sin))
        slots, cache, prolog = slots.reshape(-1), pool.cache(layer.index), self.prolog.prolog
        if not isinstance(prolog, MlaProlog) or prolog.indexer is None:
            return self.prolog(x, cos, sin, slots, TorchCache.from_numpy(cache)), None
        bound = prolog.bind(
            to_numpy(x), to_numpy(cos), to_numpy(sin), to_numpy(slots), cache,
            indexer_cache=pool.index_cache(layer.index),
        )  # fmt: skip
        out = prolog.run(bound, most_threads=torch.get_num_threads())
        assert isinstance(out, IndexedOutput)
        return TorchOutput(*(None if array is None else to_torch(array) for array in out)), out.indexer

    def _chosen(self, call: _Call, layer: LatentLayer, tile: _Tile, output: IndexerOutput) -> torch.Tensor:
        """The keys (B, S, K) that the lightning index chooses of those that the mask's first head shows."""
        seen = seen_keys(call.mask[:, :1, tile.part, : tile.length])
        if seen is None:
            raise ValueError(
                "attention_mask: expected bool, or 0 and the least number of its type (the int8 index takes no other), "
                "got other floats"
            )
        index = listed(seen, layer.pool.batch, tile.causal)
        topk, n_threads = self.attention.indexer.index_topk, self.prolog.prolog.n_threads
        return choose(output, layer.pool, layer.index, tile.length, index, topk, n_threads)

    def _selected(self, call: _Call, layer: LatentLayer, tile: _Tile, q_norm: torch.Tensor) -> torch.Tensor:
        """The keys (B, S, K) that the model's own indexer selects, or, in a layer without one, the last ones."""
        if self.attention.indexer is None:
            if call.last_selected is None:
                raise ValueError("prev_topk_indices: expected those of a layer with an indexer, got None")
            return call.last_selected[:, tile.part]
        indexer, n = self.attention.indexer, tile.n
        # The module makes scores (B, S, heads, L) in float32, of which there are three at a time.
        step = max(_SCORE_BYTES // (12 * len(q_norm) * indexer.n_heads * tile.length), 1) if tile.causal else n
        keys, found = _Keys(layer), []
        for start in range(0, n, step):
            part = slice(tile.part.start + start, tile.part.start + min(start + step, n))
            found.append(
                indexer(
                    call.hidden_states[:, part], q_norm[:, start : start + step],
                    tuple(table[:, part] for table in call.position_embeddings),
                    call.mask[:, 0, part, : tile.past + part.stop],
                    None if call.position_ids is None else call.position_ids[..., part], cache=keys,
                )
            )  # fmt: skip
        joined = _joined(found)
        assert joined is not None
        return joined


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


def _query_bytes(dims: MlaDims) -> int:
    """Of a token: its heads' queries, in two parts, and their sums over latents."""
    return 2 * dims.num_attention_heads * (2 * dims.kv_lora_rank + dims.qk_rope_head_dim)


def _joined(selections: list[torch.Tensor | None]) -> torch.Tensor | None:
    """The selections (B, s, K) of parts of the queries, one behind the other: -1 fills the shorter ones up."""
    found = [selected for selected in selections if selected is not None]
    if len(found) < 2:
        return found[0] if found else None
    most = max(selected.shape[-1] for selected in found)
    return torch.cat([nn.functional.pad(s, (0, most - s.shape[-1]), value=-1) for s in found], dim=1)


def _dequantised(out: TorchOutput) -> torch.Tensor:
    """q_norm (T, Rq) in bf16."""
    return out.q_norm if out.q_norm_scale is None else (out.q_norm.float() * out.q_norm_scale).to(torch.bfloat16)
