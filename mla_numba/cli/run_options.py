"""The options of `mla-numba run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base.modes import DownWay, Numerics, PagedMode
from .indexer_options import IndexerOptions
from .options import WhatToPlan

__all__ = ["RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions(WhatToPlan, IndexerOptions):
    """The command's options."""

    tokens: int
    smooth: bool
    threads: int
    seed: int
    repeats: int
    cache_mode: PagedMode
    block_size: int
    numerics: Numerics
    with_indexer: bool
    no_check: bool
    trace_file: Path | None
    mpi: bool
    down: DownWay
    as_json: bool
