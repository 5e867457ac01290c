"""What a mask of transformers says of each query: which keys it sees, and at which positions they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...base.checks import Array

__all__ = ["check_mask", "hide_others", "listed", "seen_keys", "sees_later"]


def check_mask(mask: Any, batch: int, heads: int, n: int, length: int, needed: bool) -> None:
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


def sees_later(mask: torch.Tensor | None, step: int) -> bool:
    """Whether a query of a mask (.., S, L) sees a key behind its own, the last of which is that of the last query.

    Looks at `step` queries at a time.
    """
    if mask is None:
        return False
    n, length = mask.shape[-2:]
    past = length - n
    for start in range(0, n, step):
        rows = mask[..., start : start + step, past + start + 1 :]
        seen = rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min
        if seen.triu().any():
            return True
    return False


def seen_keys(mask: torch.Tensor) -> torch.Tensor | None:
    """Where a mask (B or 1, N or 1, S, L) shows a key: (B or 1, S, L) bool; None where it says more than that.

    Floats do if they are 0, or the least number of their type, or -Inf. Others are biases, and heads may differ.
    """
    if mask.shape[1] != 1:
        return None
    if mask.dtype == torch.bool:
        return mask[:, 0]
    hidden = mask <= torch.finfo(mask.dtype).min
    return ~hidden[:, 0] if bool((hidden | (mask == 0)).all()) else None


def hide_others(mask: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """The mask (B or 1, N or 1, S, L) with all keys hidden but the selected ones (B, S, K); -1 selects none."""
    length = mask.shape[-1]
    places = selected.long().where(selected >= 0, length)
    chosen = torch.zeros((*selected.shape[:2], length + 1), dtype=torch.bool).scatter_(-1, places, True)
    seen = chosen[:, None, :, :length]
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def listed(seen: torch.Tensor, batch: int, causal: bool = True) -> Array | None:
    """The positions (B * S, K) int32 that each query sees, ascending and then -1; None for all up to its own.

    `seen` (B or 1, S, L); where it is `causal`, no query sees a key behind its own, and else there always is a list.
    """
    n, length = seen.shape[1:]
    counts = seen.sum(-1).numpy()
    if causal and (counts == np.arange(length - n + 1, length + 1)).all():
        return None
    rows = seen.expand(batch, n, length).reshape(batch * n, length).numpy()
    counts = np.broadcast_to(counts, (batch, n)).reshape(-1, 1)
    index = np.full((batch * n, int(counts.max())), -1, np.int32)
    index[np.arange(index.shape[1]) < counts] = np.nonzero(rows)[1]
    return index
