"""Attention over latents in plain PyTorch: no head's keys or values are ever made."""

from __future__ import annotations

import torch

from tiling import ceil_div

from ...cache import PagedCache
from ..torch.tensors import to_torch
from .blocks import BlockPool

__all__ = ["latent_attention", "product_dtype", "read_rows", "values_of"]

_SCORE_BYTES = 64 << 20  # of scores at once; rows of queries are taken in parts


def read_rows(pool: BlockPool, layer: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `length` rows of every sequence: latents (B, length, C) and rotated keys (B, length, R), float32.

    Codes are multiplied by their group's scale, one rounding, as `PagedCache.gather` does. Blocks that lie one behind
    the other are read in place, others through one `index_select` an array.
    """
    cache: PagedCache = pool.cache(layer)
    assert pool.tables is not None
    tables = torch.from_numpy(pool.tables[:, : ceil_div(length, pool.block_size)])
    batch, n = tables.shape
    blocks = tables.reshape(-1)
    first = int(blocks[0])
    in_order = torch.equal(blocks, torch.arange(first, first + len(blocks)))

    def rows(array: torch.Tensor) -> torch.Tensor:
        taken = array[first : first + len(blocks)] if in_order else array.index_select(0, blocks)
        return taken.reshape(batch, n * pool.block_size, -1)[:, :length]

    latents = rows(to_torch(cache.kv)).float()
    if cache.k_scale is not None:
        scale = rows(to_torch(cache.k_scale))
        groups = latents.view(*scale.shape, -1)
        latents = (groups * scale[..., None]).flatten(-2)
    return latents, rows(to_torch(cache.kr)).float()


def product_dtype() -> torch.dtype:
    """In which type w_uv is kept and multiplied: bf16 where oneDNN has products of it, else float32.

    Where oneDNN has none, as on AVX2, torch multiplies bf16 in plain loops, which takes several times as long as to
    widen the sums and multiply float32. Its answer counts `ONEDNN_MAX_CPU_ISA` in.
    """
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def latent_attention(
    query_nope: torch.Tensor,
    query_rope: torch.Tensor,
    latents: torch.Tensor,
    k_rope: torch.Tensor,
    w_uv: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    keep_weights: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values of S queries a sequence, of which the last sees all L keys.

    | argument   | shape                              | dtype                                                    |
    |------------|------------------------------------|----------------------------------------------------------|
    | query_nope | (B, S, N, C)                       | bf16                                                     |
    | query_rope | (B, S, N, R)                       | bf16                                                     |
    | latents    | (B, L, C)                          | float32                                                  |
    | k_rope     | (B, L, R)                          | float32                                                  |
    | w_uv       | (N, C, V)                          | bf16, or the same values in float32                      |
    | mask       | (B or 1, N or 1, S, L), or None    | bool, True where seen; floats are added; None is causal  |

    Scores `(query_nope . latent + query_rope . k_rope) * scale`, their softmax and the sums over latents are float32.
    The sums are rounded to bf16 before w_uv, where the unabsorbed attention rounds its values, and multiplied in the
    type of w_uv. Autocast changes none of this. Returns (B, S, N * V) bf16 and, if `keep_weights`, the weights
    (B, N, S, L) in bf16.
    """
    batch, n_queries, heads, _ = query_nope.shape
    length = latents.shape[1]
    past = length - n_queries
    step = max(_SCORE_BYTES // (4 * batch * heads * length), 1)
    sums, kept = [], []
    for start in range(0, n_queries, step):
        part = slice(start, min(start + step, n_queries))
        seen = length if mask is not None or keep_weights else past + part.stop  # no later key matters
        keys, rope_keys = latents[:, :seen], k_rope[:, :seen]
        scores = torch.bmm(query_rope[:, part].flatten(1, 2).float(), rope_keys.transpose(1, 2))
        scores.baddbmm_(query_nope[:, part].flatten(1, 2).float(), keys.transpose(1, 2)).mul_(scale)
        by_head = scores.view(batch, -1, heads, seen)
        if mask is None and by_head.shape[1] == 1 and seen == past + part.stop:
            pass  # one query, which sees all of them
        elif mask is None:
            ends = torch.arange(past + part.start, past + part.stop)
            _hide(by_head, (torch.arange(seen) <= ends[:, None])[None, None])
        elif mask.dtype == torch.bool:
            _hide(by_head, mask[:, :, part])
        else:
            by_head.add_(mask[:, :, part].transpose(1, 2))
        weights = torch.softmax(scores, dim=-1)
        sums.append(torch.bmm(weights, keys).view(batch, -1, heads, keys.shape[-1]).to(query_nope.dtype))
        if keep_weights:
            kept.append(weights.view(batch, -1, heads, seen).transpose(1, 2).to(query_nope.dtype))
    values = values_of(torch.cat(sums, dim=1).flatten(0, 1), w_uv).view(batch, n_queries, -1)
    return values, torch.cat(kept, dim=2) if keep_weights else None


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def values_of(sums: torch.Tensor, w_uv: torch.Tensor) -> torch.Tensor:
    """Values (T, N * V) bf16 of sums over latents (T, N, C) bf16, multiplied by w_uv (N, C, V) in its type."""
    by_head = torch.bmm(sums.transpose(0, 1).to(w_uv.dtype), w_uv)
    return by_head.to(sums.dtype).transpose(0, 1).reshape(len(sums), -1)


def _hide(scores: torch.Tensor, seen: torch.Tensor) -> None:
    """Hidden scores (B, S, N, L) become the least finite number, so that a row without visible keys is not NaN."""
    scores.masked_fill_(~seen.transpose(1, 2), torch.finfo(scores.dtype).min)
