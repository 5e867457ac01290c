"""The sequences of a call that looks keys up by position: how long they are, and where their blocks lie."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from tiling import ceil_div

from ..base.checks import Array, check_int, renamed
from ..oracle.pages import keys_seen
from .call import Choices
from .kinds import lists, rows
from .reader import INT32, INT64, InputReader
from .settings import DumpSettings

__all__ = ["Sequences"]

_USUAL_CONTEXT = 4096


class Sequences(NamedTuple):
    """B sequences whose T newest tokens are asked for.

    | field           | shape       | int32 or int64                                        |
    |-----------------|-------------|-------------------------------------------------------|
    | block_table     | (B, blocks) | blocks of the cache; -1 for none                      |
    | act_seq         | (B,)        | keys, those of this call's tokens included            |
    | query_start_loc | (B + 1,)    | the first token of each, and T; None: T / B for each  |
    """

    block_table: Array
    act_seq: Array
    query_start_loc: Array | None

    @classmethod
    def read(cls, reader: InputReader, t: int) -> Self:
        """Those of a folder with t tokens. Raises `ValueError` unless each token has its sequence."""
        if not t:
            raise ValueError(f"{reader.files.folder}: expected at least one token, got none")
        act_seq = reader.read("act_seq", *(rows(None, dtype=dtype) for dtype in (INT32, INT64)))
        if not len(act_seq):
            raise ValueError(f"{reader.label('act_seq')}: expected at least one sequence, got none")
        table = reader.read("block_table", *(lists(len(act_seq), None, dtype) for dtype in (INT32, INT64)))
        starts = None
        if reader.has("query_start_loc"):
            starts = reader.read("query_start_loc", *(rows(len(act_seq) + 1, dtype=dtype) for dtype in (INT32, INT64)))
        if int(act_seq.min()) < 0:
            raise ValueError(f"{reader.label('act_seq')}: expected lengths of at least 0, got {act_seq.min()}")
        with renamed({"act_seq": reader.label("act_seq")}):
            keys_seen(t, act_seq, starts)
        return cls(table, act_seq, starts)

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> tuple[Self, int]:
        """Sequences of a seed, and how many blocks their cache has. Their blocks lie anywhere in it.

        The first has all keys of the context, the others less. Tokens are shared as evenly as can be.
        """
        b, t, size = choices.sequences, choices.t, settings.block_size
        counts = np.array([len(part) for part in np.array_split(np.arange(t), b)])
        usual = max(_USUAL_CONTEXT, int(counts.max()))
        context = check_int("context", usual if choices.context is None else choices.context, int(counts.max()))
        rng = np.random.default_rng((choices.seed, 5))
        act_seq = rng.integers(counts, context + 1).astype(np.int32)
        act_seq[0] = context
        n_blocks = [ceil_div(int(n_keys), size) for n_keys in act_seq]
        least = sum(n_blocks)
        n_all = least + 1 if choices.n_blocks is None else check_int("n_blocks", choices.n_blocks, least)
        blocks = rng.permutation(n_all)
        table = np.full((b, max(n_blocks)), -1, np.int32)
        for row, n in zip(table, n_blocks, strict=True):
            row[:n], blocks = blocks[:n], blocks[n:]
        starts = None if t % b == 0 else np.append(0, np.cumsum(counts)).astype(np.int32)
        return cls(table, act_seq, starts), n_all

    def limits(self, t: int) -> list[int]:
        """How many keys each of t tokens sees."""
        return [max(seen.limit, 0) for seen in keys_seen(t, self.act_seq, self.query_start_loc)]

    def check_mapped(self, reader: InputReader, block_size: int, n_blocks: int) -> None:
        """Raises `ValueError` unless all keys of all sequences lie in blocks of the cache."""
        room = self.block_table.shape[1] * block_size
        for b, (row, n_keys) in enumerate(zip(self.block_table, self.act_seq.tolist(), strict=True)):
            if n_keys > room:
                label = reader.label("act_seq")
                raise ValueError(f"{label}: expected at most the {room} keys of a row of block_table, got {n_keys}")
            used = row[: ceil_div(n_keys, block_size)]
            wrong = np.flatnonzero((used < 0) | (used >= n_blocks))
            if len(wrong):
                raise ValueError(
                    f"{reader.label('block_table')}: expected a block from 0 to below {n_blocks} at [{b}, {wrong[0]}], "
                    f"since the sequence has {n_keys} keys, got {used[wrong[0]]}"
                )

    def inputs(self) -> dict[str, Array | None]:
        """The arrays by key."""
        return {"act_seq": self.act_seq, "block_table": self.block_table, "query_start_loc": self.query_start_loc}

    @property
    def text(self) -> str:
        """How many, and how long they are."""
        n = len(self.act_seq)
        least, most = int(self.act_seq.min()), int(self.act_seq.max())
        lengths = f"{most}" if least == most else f"{least} to {most}"
        return f"{n} sequence{'s' * (n != 1)} of {lengths} keys"
