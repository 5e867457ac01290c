"""The commands `mla-numba check` and `mla-numba dump`: folders of dumped arguments against the oracle, and new ones."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .._version import __version__
from ..base.dims import MlaDims
from ..base.modes import NUMERICS, QUANT_MODES
from ..cache import CACHE_MODES
from ..dumps import (
    FORMATS,
    Dump,
    DumpSettings,
    check_dump,
    dump_settings,
    read_dump,
    write_dump,
)
from ..dumps.names import (
    INPUTS,
    OUTPUTS,
    SCALES,
    STYLES,
)
from ..oracle.tolerance import Agreement
from .options import (
    DIMS_FORM,
    folder_to_write,
    json_option,
    parse_dims,
    tokens_type,
)
from .report import Steps

__all__ = ["check", "dump"]

_TABLE_WIDTH = 130

_NOBODYS = (
    "no operator's outputs are here: what follows are the goldens that mla-numba dump wrote itself "
    "(--golden if they are what you want to check)"
)

_folder = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_dims_help = f"{DIMS_FORM}; or the path of a model's config.json."
_cache_modes = click.Choice(CACHE_MODES)
_block_sizes = click.IntRange(1, 2**16)
_epsilons = click.FloatRange(0)


@click.command()
@_folder
@click.option(
    "--dims", type=parse_dims, metavar="H,N,Rq,C,D,R|PATH",
    help=f"{_dims_help}  [default: DIR's dims.json or config.json, what .npy files show, or DeepSeek-V3.2's]",
)  # fmt: skip
@click.option("--cache-mode", type=_cache_modes, help="Order of the caches.  [default: PA_BSND]")
@click.option("--block-size", type=_block_sizes, help="Slots of a cache block in .bin files.  [default: 128]")
@click.option(
    "--nz/--nd",
    default=None,
    help="Layout of w_dq, w_uq_qr and w_dkv_kr in .bin files: FRACTAL_NZ or ND.  [default: --nd]",
)
@click.option("--numerics", type=click.Choice(NUMERICS), help="Quantiser that the operator uses.  [default: pypto]")
@click.option("--epsilon-cq", type=_epsilons, help="Epsilon of the query's norm.  [default: 1e-5]")
@click.option("--epsilon-ckv", type=_epsilons, help="Epsilon of the key's norm.  [default: 1e-5]")
@click.option("--exact", is_flag=True, help="Require equal bits instead of tolerances.")
@click.option("--golden", "goldens", is_flag=True, help="Check the golden outputs instead of the operator's.")
@json_option
@click.pass_context
def check(ctx: click.Context, /, folder: Path, exact: bool, goldens: bool, as_json: bool, **settings: Any) -> None:
    """Check the outputs of an operator, dumped into DIR beside its inputs, against the oracle.

    Files are .npy, raw .bin, or .pt of torch.save, named or numbered like the arguments of the reference operator.
    Defaults come from DIR's dims.json, if mla-numba dump wrote one. Exit status: 0 if all outputs in DIR pass; 1 if one
    fails, if no operator wrote any, or if a file cannot be read; 2 for a wrong option.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        with Steps() as steps:
            with steps.step("reading files"):
                found = read_dump(folder, dump_settings(folder, **given), goldens=goldens)
            if not found.outputs:
                raise ValueError(f"{folder}: expected at least one of {', '.join(OUTPUTS)}, got inputs only")
            with steps.step("computing the reference"):
                report = check_dump(found, exact)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    nobodys = found.only_goldens and not goldens
    passed = not nobodys and all(output.passed for output in report)
    if as_json:
        click.echo(json.dumps(_as_dict(folder, found, report, exact) | {"passed": passed}, indent=1))
    else:
        if nobodys:
            click.echo(_NOBODYS)
        click.echo(_what_was_checked(found))
        console = Console()
        console = Console(width=max(console.width, _TABLE_WIDTH))  # a file has no width, and names take room
        console.print(_table(report))
        for line in _remarks(found, report):
            click.echo(line)
        click.echo(_verdict(report, exact))
    if not passed:
        ctx.exit(1)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), callback=folder_to_write)
@click.option("--tokens", type=tokens_type, default=8, show_default=True, help="Tokens of the call.")
@click.option(
    "--quant", type=click.Choice(QUANT_MODES), default="b", show_default=True, help="int8 parts, as in mla-numba run."
)
@click.option("--smooth", is_flag=True, help="SmoothQuant scales on the normalised query; with --quant b or ab.")
@click.option("--dims", type=parse_dims, metavar="H,N,Rq,C,D,R|PATH", help=f"{_dims_help}  [default: DeepSeek-V3.2's]")
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default="npy", show_default=True, help="Form of the files."
)
@click.option(
    "--names", type=click.Choice(STYLES), default="reference", show_default=True,
    help="token_x and q_norm_golden; pypto's x and rms_norm_golden; or input_0 and golden_0.",
)  # fmt: skip
@click.option("--nz", is_flag=True, help="Write w_dq, w_uq_qr and w_dkv_kr in FRACTAL_NZ.")
@click.option("--cache-mode", type=_cache_modes, default="PA_BSND", show_default=True, help="Order of the caches.")
@click.option("--block-size", type=_block_sizes, default=128, show_default=True, help="Slots of a cache block.")
@click.option("--blocks", type=click.IntRange(1), help="Cache blocks.  [default: one more than the tokens need]")
@click.option(
    "--scales", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
    help="Elements of k_scale_cache.",
)  # fmt: skip
@click.option(
    "--numerics", type=click.Choice(NUMERICS), default="pypto", show_default=True, help="Quantiser of this system."
)
@click.option("--epsilon-cq", type=_epsilons, default=1e-5, show_default=True, help="Epsilon of the query's norm.")
@click.option("--epsilon-ckv", type=_epsilons, default=1e-5, show_default=True, help="Epsilon of the key's norm.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, inputs and caches."
)
def dump(
    folder: Path,
    tokens: int,
    quant: str,
    smooth: bool,
    dims: MlaDims | None,
    file_format: str,
    names: str,
    blocks: int | None,
    scales: str,
    seed: int,
    **settings: Any,
) -> None:
    """Write the inputs of a call and the oracle's outputs into DIR, as golden data for an operator.

    Existing files are never overwritten. Once DIR has the operator's outputs (q_norm_out, ...), mla-numba check
    compares those.
    """
    if smooth and "b" not in quant:
        raise click.UsageError(f"--smooth: expected with --quant b or ab, got --quant {quant}")
    n_files = len(INPUTS) + len(SCALES) + len(OUTPUTS)
    try:
        with Steps() as steps, steps.step("computing the reference and writing", n_files) as advance:
            paths = write_dump(
                folder,
                tokens,
                quant,
                settings=DumpSettings(dims=dims, **settings),
                smooth=smooth,
                seed=seed,
                n_blocks=blocks,
                scale_dtype=scales,
                file_format=file_format,
                style=names,
                finished=lambda name: advance(),
            )
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    n_bytes = sum(path.stat().st_size for path in paths)
    click.echo(f"{folder}: {len(paths)} files, {n_bytes / 1e6:.2f} MB; mla-numba check {folder}")


def _table(report: list[Agreement]) -> Table:
    numbers = ("elements", "bits differ", "max abs", "max rel", "beyond", "allowed", "NaN, Inf")
    table = Table(
        Column("output", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        *(Column(name, no_wrap=True) for name in ("verdict", "file")),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for found in report:
        table.add_row(
            found.name,
            str(found.n_elements),
            str(found.mismatch.n_differ) if found.mismatch else "none",
            f"{found.max_abs:.3g}" if found.mismatch else "",
            f"{found.max_rel:.3g}" if found.mismatch else "",
            f"{found.share_beyond:.4%}" if found.n_beyond else "none",
            f"{found.tolerance.share:.1%}" if found.tolerance.share else "none",
            f"{found.n_nan}, {found.n_inf}" if found.n_nan or found.n_inf else "none",
            "exact" if found.exact and found.passed else "passed" if found.passed else "FAILED",
            escape(found.file),
        )
    return table


def _remarks(found: Dump, report: list[Agreement]) -> list[str]:
    lines = []
    for output in report:
        if output.mismatch is not None:
            lines.append(str(output.mismatch))
        if output.max_abs_at is not None:
            at = ", ".join(map(str, output.max_abs_at))
            lines.append(f"  largest difference {output.max_abs:.6g} at [{at}]; tolerance {output.tolerance}")
        if output.n_changed:
            lines.append(
                f"  rows that no token names: expected as they were, got {output.n_changed} others, the first in slot "
                f"{output.first_changed}"
            )
    if found.missing:
        lines.append(f"not there, so not checked: {', '.join(found.missing)}")
    if found.goldens_left_out:
        lines.append(f"goldens beside outputs, not checked: {len(found.goldens_left_out)} files")
    if found.unread:
        lines.append(f"of no argument, not read: {', '.join(found.unread)}")
    return lines


def _what_was_checked(found: Dump) -> str:
    smooth = " smooth" if found.weights.smooth_scales_cq is not None else ""
    dims = ",".join(map(str, astuple(found.weights.dims)))
    return (
        f"{len(found.x)} tokens, mode {found.weights.quant}{smooth}, {found.settings.numerics} numerics, "
        f"{found.settings.cache_mode}, dims {dims}"
    )


def _verdict(report: list[Agreement], exact: bool) -> str:
    passed = sum(output.passed for output in report)
    bits = sum(output.exact for output in report)
    how = "equal bits demanded" if exact else "by the tolerances of the reference operator's test"
    return f"{passed} of {len(report)} outputs pass, {how}; {bits} exact to the bit"


def _as_dict(folder: Path, found: Dump, report: list[Agreement], exact: bool) -> dict[str, Any]:
    settings = asdict(found.settings)
    return {
        "version": __version__,
        "folder": str(folder),
        "only_goldens": found.only_goldens,
        "exact_demanded": exact,
        "tokens": len(found.x),
        "quant": found.weights.quant,
        "smooth": found.weights.smooth_scales_cq is not None,
        "settings": settings,
        "outputs": [output.as_dict() for output in report],
        "missing": found.missing,
        "goldens_left_out": found.goldens_left_out,
        "unread": found.unread,
    }
