"""The command `mla-numba sweep`: time many plans, check each, draw what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tiling import PRESETS
from tiling.pypto.presets import NPU_ARCHS

from ...tuning.fields import CPU_FIELDS, CUBE_ENTRIES, CUBES, PLAIN_CONFIG_FIELDS
from ..options import folder_to_write, layer_options, seed_option, token_list, weight_sets_option
from ..study.options import parse_axes

__all__ = ["sweep"]

MAX_PAIRS = 1000


_FIELDS = f"""Fields of CpuTiling: {", ".join(CPU_FIELDS)}.

Fields of MlaTileConfig: {", ".join(PLAIN_CONFIG_FIELDS)}. Entries of {", ".join(CUBES)}: {", ".join(CUBE_ENTRIES)}."""


@click.command(epilog=_FIELDS)
@click.option("--tokens", type=token_list, default="8,32,128", show_default=True, help="Tokens of a call, with commas.")
@click.option(
    "--set",
    "axes",
    multiple=True,
    callback=parse_axes,
    metavar="FIELD=VALUES",
    help="Vary a field of CpuTiling or of MlaTileConfig (named below; cube tiles by entry: cube_qb_tile.k_l1): "
    "integers, ranges FIRST:LAST:STEP or FIRST:LAST:*FACTOR, lists, with commas. Repeat it for more fields: all "
    "combinations are tried.  [default: down_kc with down_walk, then unroll_list]",
)
@click.option(
    "--where",
    multiple=True,
    metavar="EXPRESSION",
    help="Try only candidates for which this holds, such as 'down_mc % 12 == 0'; it may also name t, mr and nr.",
)
@click.option("--base", type=click.Choice(PRESETS), help="Preset that gives the other fields.")
@click.option("--presets", is_flag=True, help="Sweep the reference operator's six presets instead.")
@click.option(
    "--npuarch",
    type=click.Choice(NPU_ARCHS),
    default=NPU_ARCHS[0],
    show_default=True,
    help="NPU generation of presets.",
)
@click.option(
    "--phase",
    type=click.Choice(["decode", "prefill"]),
    default="decode",
    show_default=True,
    help="Phase: with fields of MlaTileConfig it decides the scheduling settings.",
)
@layer_options
@click.option(
    "--pairs",
    type=click.IntRange(3, MAX_PAIRS),
    default=7,
    show_default=True,
    help="Fewest pairs of calls for a candidate.",
)
@weight_sets_option
@seed_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="sweep",
    show_default=True,
    callback=folder_to_write,
    help="Folder for journal, CSV, JSON and pictures.",
)
@click.option("--restart", is_flag=True, help="Start again if the folder holds a sweep.")
@click.option("--no-plot", is_flag=True, help="Draw no pictures.")
@click.pass_context
def sweep(ctx: click.Context, /, **given: Any) -> None:
    """Time many plans against the planner's own, check every bit of each, and draw the results.

    Candidates come in random order and are timed in pairs with the planner's own plan; clearly slower ones are
    dropped early. The best of each T meet it in longer contests, and the last lines say whether one is faster by more
    than noise. After Ctrl-C the same command continues. It also times again what it timed while others took too much
    of the machine. Exit status: 0, or 1 if a bit of any candidate is wrong or every candidate is refused, 130 after
    Ctrl-C.
    """
    from ..study.command import sweep as work

    work(ctx, **given)
