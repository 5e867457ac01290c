"""The command `mla-numba check`: a folder of dumped arguments against the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...base.modes import CACHE_MODES, NUMERICS
from ..dump_options import neighbour_options, operator_option
from ..model_option import DIMS_HELP, dims_option
from ..options import block_size_type, epsilon_type, json_option

__all__ = ["check"]


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@operator_option("  [default: dims.json's, or whose inputs are in DIR]", None)
@dims_option(f"{DIMS_HELP}  [default: DIR's dims.json or config.json, what .npy files show, or DeepSeek-V3.2's]")
@click.option("--cache-mode", type=click.Choice(CACHE_MODES), help="Order of the caches.  [default: PA_BSND]")
@click.option("--block-size", type=block_size_type, help="Slots of a cache block in .bin files.  [default: 128]")
@click.option(
    "--nz/--nd",
    default=None,
    help="Whether weights in .bin files are FRACTAL_NZ, as dump --nz writes them, or plain (ND).  [default: --nd]",
)
@click.option("--numerics", type=click.Choice(NUMERICS), help="How the operator quantises rows.  [default: pypto]")
@click.option("--epsilon-cq", type=epsilon_type, help="Epsilon of the query's norm.  [default: 1e-5]")
@click.option("--epsilon-ckv", type=epsilon_type, help="Epsilon of the key's norm.  [default: 1e-5]")
@neighbour_options(is_dump=False)
@click.option("--exact", is_flag=True, help="Require equal bits instead of tolerances.")
@click.option("--golden", "goldens", is_flag=True, help="Check the golden outputs instead of the operator's.")
@json_option
@click.pass_context
def check(ctx: click.Context, /, **given: Any) -> None:
    """Check the outputs of an operator, dumped into DIR beside its inputs, against the oracle.

    Files are .npy, raw .bin, or .pt of torch.save, named or numbered like the arguments of the reference operator.
    Defaults come from DIR's dims.json, if mla-numba dump wrote one. Exit status: 0 if all outputs in DIR pass; 1 if one
    fails, if no operator wrote any, or if a file cannot be read; 2 for a wrong option.
    """
    from ..check import check as work

    work(ctx, **given)
