"""What `repr` says of objects that hold arrays: one line with shapes, dtypes and memory, no elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiling import PlanDims

from .indexer_dims import IndexerDims

__all__ = ["array_text", "arrays_text", "dims_text", "fields_text", "indexer_dims_text", "short_repr", "size_text"]

_MOST_TEXT = 60  # characters of a value that is neither array nor number


def short_repr(value: object, *parts: str) -> str:
    """`<Name: part, part, ...>` of an object; empty parts are left out."""
    return f"<{type(value).__name__}: {', '.join(filter(None, parts))}>"


def array_text(array: Any) -> str:
    """Shape and dtype of an array or a tensor: `(8, 64) bf16`."""
    dtype = str(array.dtype).removeprefix("torch.")
    return f"{tuple(array.shape)} {'bf16' if dtype == 'bfloat16' else dtype}"


def arrays_text(values: Mapping[str, Any]) -> str:
    """Arrays or tensors by name, with their memory; None is left out, other values are shown, cut where they are long.

    An array is `name (8, 64) int8`, another value `name=value`.
    """
    parts, n_bytes, n_arrays = [], 0, 0
    for name, value in values.items():
        if hasattr(value, "shape") and hasattr(value, "nbytes"):
            parts.append(f"{name} {array_text(value)}")
            n_bytes, n_arrays = n_bytes + int(value.nbytes), n_arrays + 1
        elif value is not None:
            parts.append(fields_text({name: value}))
    return ", ".join([*parts, *[size_text(n_bytes)] * bool(n_arrays)])


def fields_text(values: Mapping[str, Any]) -> str:
    """Values by name: `name=value, ...`, each cut where it is long."""
    texts = {name: repr(value) for name, value in values.items()}
    return ", ".join(
        f"{name}={text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 3] + '...'}" for name, text in texts.items()
    )


def dims_text(dims: PlanDims) -> str:
    """Dimensions by the letters of the docs: `H=7168 N=128 Rq=1536 C=512 D=128 R=64`."""
    letters = {
        "H": dims.hidden_size,
        "N": dims.num_attention_heads,
        "Rq": dims.q_lora_rank,
        "C": dims.kv_lora_rank,
        "D": dims.qk_nope_head_dim,
        "R": dims.qk_rope_head_dim,
    }
    return " ".join(f"{letter}={n}" for letter, n in letters.items())


def indexer_dims_text(dims: IndexerDims) -> str:
    """Dimensions by the letters of the docs: `H=7168 Rq=1536 Ni=64 Di=128 R=64`."""
    letters = {
        "H": dims.hidden_size,
        "Rq": dims.q_lora_rank,
        "Ni": dims.n_heads,
        "Di": dims.head_dim,
        "R": dims.qk_rope_head_dim,
    }
    return " ".join(f"{letter}={n}" for letter, n in letters.items())


def size_text(n_bytes: int) -> str:
    """Bytes in the unit that suits them: `213.2 MB`, `4.1 kB` or `96 bytes`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"
