"""The command `mla-numba dump`: golden data for an operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...base.modes import CACHE_MODES, DUMP_FORMATS, DUMP_STYLES
from ..dump_options import neighbour_options, operator_option
from ..model_option import DIMS_HELP, dims_option
from ..options import (
    block_size_type,
    epsilon_type,
    folder_to_write,
    numerics_option,
    quant_as_in_run_option,
    smooth_option,
    tokens_type,
)

__all__ = ["dump"]


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), callback=folder_to_write)
@operator_option("", "mla_prolog_quant")
@click.option("--tokens", type=tokens_type, default=8, show_default=True, help="Tokens of the call.")
@quant_as_in_run_option
@smooth_option
@dims_option(f"{DIMS_HELP}  [default: DeepSeek-V3.2's]")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(DUMP_FORMATS),
    default="npy",
    show_default=True,
    help="Form of the files.",
)
@click.option(
    "--names", "style", type=click.Choice(DUMP_STYLES), default="reference", show_default=True,
    help="token_x and q_norm_golden; pypto's x and rms_norm_golden; or input_0 and golden_0.",
)  # fmt: skip
@click.option("--nz", is_flag=True, help="Write weights in FRACTAL_NZ: w_dq, w_uq_qr, w_dkv_kr; w_qb, wk, w_proj.")
@click.option(
    "--cache-mode", type=click.Choice(CACHE_MODES), default="PA_BSND", show_default=True, help="Order of the caches."
)
@click.option("--block-size", type=block_size_type, default=128, show_default=True, help="Slots of a cache block.")
@click.option(
    "--blocks", "n_blocks", type=click.IntRange(1), help="Cache blocks.  [default: one more than the tokens need]"
)
@click.option(
    "--scales", "scale_dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
    help="Elements of k_scale_cache.",
)  # fmt: skip
@numerics_option
@click.option("--epsilon-cq", type=epsilon_type, default=1e-5, show_default=True, help="Epsilon of the query's norm.")
@click.option("--epsilon-ckv", type=epsilon_type, default=1e-5, show_default=True, help="Epsilon of the key's norm.")
@neighbour_options(is_dump=True)
@click.option(
    "--sequences",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Sequences whose newest tokens these are, for lists and attention.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Keys of the first sequence; others have as many or less.  [default: 4096]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, inputs and caches."
)
@click.pass_context
def dump(ctx: click.Context, /, **given: Any) -> None:
    """Write the inputs of a call and the oracle's outputs into DIR, as golden data for an operator.

    Existing files are never overwritten. Once DIR has the operator's outputs (q_norm_out, ...), mla-numba check
    compares those.
    """
    from ..dump import dump as work

    work(ctx, **given)
