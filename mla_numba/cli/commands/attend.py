"""The command `mla-numba attend`: a step of sparse attention over a long context."""

from __future__ import annotations

from typing import Any

import click

from ...base.modes import PAGED_MODES
from ..indexer_options import indexer_options
from ..options import block_size_type, finite_float32, json_option, layer_options, tokens_type

__all__ = ["attend"]

_MOST_KEYS = 2**24
_MOST_SELECTED = 4096


@click.command()
@click.option(
    "--context", type=click.IntRange(1, _MOST_KEYS),
    help="Keys of each sequence, with those of this step.  [default: 65536; with --small 512]",
)  # fmt: skip
@click.option("--sequences", type=click.IntRange(1, 4096), default=1, show_default=True, help="Sequences of the step.")
@click.option("--tokens", type=tokens_type, default=1, show_default=True, help="New tokens of each sequence.")
@click.option(
    "--k", type=click.IntRange(1, _MOST_SELECTED),
    help="Keys that a token attends to.  [default: index_topk of --dims PATH, else 2048; with --small 64]",
)  # fmt: skip
@click.option(
    "--softmax-scale", type=float, callback=finite_float32,
    help="Factor of the scores.  [default: the model's of --dims PATH, (D + R)^-1/2 of other dimensions, else "
    "DeepSeek-V3.2's 0.135234]",
)  # fmt: skip
@layer_options
@indexer_options
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, caches and inputs."
)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Steps that are timed.")
@click.option(
    "--cache-mode", type=click.Choice(PAGED_MODES), default="PA_BSND", show_default=True, help="Order of the caches."
)
@click.option("--block-size", type=block_size_type, default=128, show_default=True, help="Keys of a cache block.")
@click.option(
    "--check", type=click.Choice(["some", "all", "none"]), default="some", show_default=True,
    help="Compare two tokens with the reference, the first and the last, or all of them, or none.",
)  # fmt: skip
@json_option
@click.pass_context
def attend(ctx: click.Context, /, **given: Any) -> None:
    """Run steps of sparse attention over a long context on random weights and caches, time and check each stage.

    Its stages are the prolog with the lightning indexer's prolog in one call, the lightning index, and sparse attention
    over the keys that it chose. Exit status: 0 if every bit that is compared is the reference's or --check none is
    given, 1 if one is not, 2 for a wrong option.
    """
    from ..attend import attend as work

    work(ctx, **given)
