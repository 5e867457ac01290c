"""The tensors of one layer of a checkpoint, read where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..base.checks import BF16, Array
from ..base.head_shard import HeadShard
from .attention import Int8Linear
from .checkpoint_formats import VECTORS, StoredWeight
from .safetensors_file import Shard
from .tensor_names import AttentionNames

__all__ = ["CheckpointSource"]

_BY_HEAD = ("q_b_proj", "kv_b_proj")


class CheckpointSource:
    """Reads tensors of one layer; a shard is opened, and its header checked, once.

    `int8` are the modules whose int8 codes stay as they are. Of the weights that have heads, only the rows of
    `head_shard` are read.
    """

    def __init__(
        self,
        shards: dict[str, Path],
        block: tuple[int, int],
        names: AttentionNames,
        int8: set[str],
        head_shard: HeadShard | None,
        finished: Callable[[str], None],
    ) -> None:
        self._shards = shards
        self._block = block
        self._names = names
        self._int8 = int8
        self._head_shard = head_shard
        self._finished = finished
        self._open: dict[Path, Shard] = {}

    def vector(self, module: str, n: int, kind: str = "weight") -> Array:
        """A norm's weight, or another vector of it, as bf16 (n,)."""
        name = self._names.modules[module][kind]
        shard = self._shard(name)
        with np.errstate(all="ignore"):
            values = shard.tensor(name, VECTORS, (n,)).astype(BF16)
        shard.check_finite(name, values, 0)
        self._finished(name)
        return values

    def weight(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight as bf16 (n_out, n_in)."""
        stored = self._stored(module, n_out, n_in)
        out = np.empty((n_out, n_in), BF16)
        stored.read_bf16(out)
        self._finished(stored.name)
        return out

    def transposed(self, module: str, n_out: int, n_in: int) -> Array | Int8Linear:
        """A Linear's weight as (n_in, n_out): bf16, or int8 codes with their scales."""
        stored = self._stored(module, n_out, n_in)
        int8 = stored.int8() if module in self._int8 else None
        linear: Array | Int8Linear
        if int8 is not None:
            linear = Int8Linear(np.ascontiguousarray(int8[0].T), int8[1])
        else:
            linear = np.empty((n_in, n_out), BF16)
            stored.read_bf16(linear.T)
        self._finished(stored.name)
        return linear

    def _stored(self, module: str, n_out: int, n_in: int) -> StoredWeight:
        kinds, shard = self._names.modules[module], self._head_shard
        if shard is None or module not in _BY_HEAD:
            return StoredWeight.open(self._shard, kinds, (n_out, n_in), self._block)
        rows = n_out // len(shard.heads)
        whole = StoredWeight.open(self._shard, kinds, (rows * shard.num_attention_heads, n_in), self._block)
        return whole.rows(shard.heads.start * rows, n_out)

    def _shard(self, tensor: str) -> Shard:
        path = self._shards[tensor]
        if path not in self._open:
            shard = Shard.open(path, tensor)
            for name in shard.rows:
                if name.startswith(self._names.prefix) and self._shards.get(name) != path:
                    raise ValueError(f"{path}: {name}: expected the index to place it here, got another place or none")
            self._open[path] = shard
        return self._open[path]
