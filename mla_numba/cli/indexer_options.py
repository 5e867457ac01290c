"""The sizes of a lightning indexer as options of commands that make one at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from ..base.indexer_dims import MAX_HEAD_DIM, IndexerDims
from .model_option import IndexerShape, Model

__all__ = ["IndexerOptions", "check_quant_of_indexer", "indexer_options"]

_USUAL = IndexerDims.deepseek_v32()


def indexer_options(command: Any) -> Any:
    """`--indexer-heads` and `--indexer-head-dim`; their help says DeepSeek-V3.2's sizes."""
    heads = click.option(
        "--indexer-heads", type=click.IntRange(1, 2**16),
        help=f"Heads of the indexer.  [default: those of --dims PATH, else {_USUAL.n_heads}]",
    )  # fmt: skip
    width = click.option(
        "--indexer-head-dim", type=click.IntRange(2, MAX_HEAD_DIM),
        help=f"Width of its heads, a power of two.  [default: as --dims PATH says, else {_USUAL.head_dim}]",
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

    def indexer_shape(
        self, model: Model | None, n_heads: int = _USUAL.n_heads, head_dim: int = _USUAL.head_dim
    ) -> IndexerShape:
        """The indexer of the model's configuration, or else of this size; the options change its size.

        Ends the command where the configuration has no indexer and the options do not say its whole size.
        """
        found = IndexerShape(n_heads, head_dim)
        if model is not None and len(self.indexer_given) < 2:
            try:
                found = model.indexer() or found
            except (TypeError, ValueError) as error:
                raise click.BadParameter(
                    f"{error}; --indexer-heads and --indexer-head-dim make one of any size", param_hint="'--dims'"
                ) from None
        return found._replace(
            n_heads=self.indexer_heads or found.n_heads, head_dim=self.indexer_head_dim or found.head_dim
        )


def check_quant_of_indexer(option: str, quant: str) -> None:
    """Refuses a mode whose normalised query is not quantised: the indexer reads its codes."""
    if "b" not in quant:
        raise click.UsageError(f"{option}: expected with --quant b or ab, got --quant {quant}")
