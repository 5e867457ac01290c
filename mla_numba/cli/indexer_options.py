"""The sizes of a lightning indexer as options of commands that make one at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from ..base.indexer_dims import MAX_HEAD_DIM, IndexerDims

__all__ = ["IndexerOptions", "check_quant_of_indexer", "indexer_options"]

_USUAL = IndexerDims.deepseek_v32()


def indexer_options(command: Any) -> Any:
    """`--indexer-heads` and `--indexer-head-dim`; their help says DeepSeek-V3.2's sizes."""
    heads = click.option(
        "--indexer-heads", type=click.IntRange(1, 2**16), help=f"Heads of the indexer.  [default: {_USUAL.n_heads}]"
    )
    width = click.option(
        "--indexer-head-dim", type=click.IntRange(2, MAX_HEAD_DIM),
        help=f"Width of its heads, a power of two.  [default: {_USUAL.head_dim}]",
    )  # fmt: skip
    return heads(width(command))


@dataclass(frozen=True, kw_only=True)
class IndexerOptions:
    """The values of `indexer_options`; None where they are not given."""

    indexer_heads: int | None
    indexer_head_dim: int | None

    @property
    def indexer_given(self) -> dict[str, int]:
        """The options that are given, by their names."""
        named = {"--indexer-heads": self.indexer_heads, "--indexer-head-dim": self.indexer_head_dim}
        return {name: value for name, value in named.items() if value is not None}

    def indexer_sizes(self, n_heads: int = _USUAL.n_heads, head_dim: int = _USUAL.head_dim) -> tuple[int, int]:
        """Heads and their width: as given, or else these."""
        return self.indexer_heads or n_heads, self.indexer_head_dim or head_dim


def check_quant_of_indexer(option: str, quant: str) -> None:
    """Refuses a mode whose normalised query is not quantised: the indexer reads its codes."""
    if "b" not in quant:
        raise click.UsageError(f"{option}: expected with --quant b or ab, got --quant {quant}")
