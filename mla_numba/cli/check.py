"""The command `mla-numba check`: a folder of dumped arguments against the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from .._version import __version__
from ..dumps import Dump, ListsAgreement, check_dump, dump_settings, read_dump
from ..dumps.call import Verdict
from ..oracle.tolerance import Agreement
from .dump_options import check_read
from .faults import said_plainly
from .progress import Steps
from .shown import print_wide

__all__ = ["check"]

_TABLE_WIDTH = 130

_NOBODYS = (
    "no operator's outputs are here: what follows are the goldens that mla-numba dump wrote itself "
    "(--golden if they are what you want to check)"
)


def check(ctx: click.Context, folder: Path, exact: bool, goldens: bool, as_json: bool, **settings: Any) -> None:
    """Compares, prints the report, and ends with status 1 where an output fails."""
    given = {name: value for name, value in settings.items() if value is not None}
    with said_plainly(), Steps() as steps:
        with steps.step("reading files"):
            wanted = dump_settings(folder, **given)
            check_read(ctx, wanted.operator)
            found = read_dump(folder, wanted, goldens=goldens)
        if not found.outputs:
            names = ", ".join(argument.name for argument in found.call.arguments().outputs)
            raise ValueError(f"{folder}: expected at least one of {names}, got inputs only")
        with steps.step("computing the reference"):
            report = check_dump(found, exact)
    nobodys = found.only_goldens and not goldens
    passed = not nobodys and all(output.passed for output in report)
    if as_json:
        click.echo(json.dumps(_report_as_dict(folder, found, report, exact) | {"passed": passed}, indent=1))
    else:
        if nobodys:
            click.echo(_NOBODYS)
        click.echo(_what_was_checked(found))
        print_wide(_agreement_table(report), _TABLE_WIDTH)
        for line in _remarks(found, report):
            click.echo(line)
        click.echo(_verdict(report, exact))
    if not passed:
        ctx.exit(1)


def _agreement_table(report: list[Verdict]) -> Table:
    numbers = ("elements", "bits differ", "max abs", "max rel", "beyond", "allowed", "NaN, Inf")
    table = Table(
        Column("output", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        *(Column(name, no_wrap=True) for name in ("verdict", "file")),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for found in report:
        verdict = "exact" if found.exact and found.passed else "passed" if found.passed else "FAILED"
        differ = str(found.mismatch.n_differ) if found.mismatch else "none"
        cells = ("",) * 5 if isinstance(found, ListsAgreement) else _distances(found)
        table.add_row(found.name, str(found.n_elements), differ, *cells, verdict, escape(found.file))
    return table


def _distances(found: Agreement) -> tuple[str, ...]:
    """How far an output is from the oracle's, and how far it may be."""
    return (
        f"{found.max_abs:.3g}" if found.mismatch else "",
        f"{found.max_rel:.3g}" if found.mismatch else "",
        f"{found.share_beyond:.4%}" if found.n_beyond else "none",
        f"{found.tolerance.share:.1%}" if found.tolerance.share else "none",
        f"{found.n_nan}, {found.n_inf}" if found.n_nan or found.n_inf else "none",
    )


def _remarks(found: Dump, report: list[Verdict]) -> list[str]:
    lines = []
    for output in report:
        if output.mismatch is not None:
            lines.append(str(output.mismatch))
        lines += [str(output)] if isinstance(output, ListsAgreement) else _remarks_of_array(output)
    if found.missing:
        lines.append(f"not there, so not checked: {', '.join(found.missing)}")
    if found.goldens_left_out:
        lines.append(f"goldens beside outputs, not checked: {len(found.goldens_left_out)} files")
    if found.unread:
        lines.append(f"of no argument, not read: {', '.join(found.unread)}")
    return lines


def _remarks_of_array(output: Agreement) -> list[str]:
    lines = []
    if output.max_abs_at is not None:
        at = ", ".join(map(str, output.max_abs_at))
        lines.append(f"  largest difference {output.max_abs:.6g} at [{at}]; tolerance {output.tolerance}")
    if output.n_changed:
        lines.append(
            f"  rows that no token names: expected as they were, got {output.n_changed} others, the first in slot "
            f"{output.first_changed}"
        )
    return lines


def _what_was_checked(found: Dump) -> str:
    """The call in one line; its operator is named unless it is the prolog."""
    operator = found.call.operator
    return found.call.title if operator == "mla_prolog_quant" else f"{operator}: {found.call.title}"


def _verdict(report: list[Verdict], exact: bool) -> str:
    passed = sum(output.passed for output in report)
    bits = sum(output.exact for output in report)
    how = "equal bits demanded" if exact else "by the tolerances of the reference operator's test"
    return f"{passed} of {len(report)} outputs pass, {how}; {bits} exact to the bit"


def _report_as_dict(folder: Path, found: Dump, report: list[Verdict], exact: bool) -> dict[str, Any]:
    settings = found.settings.as_dict(found.call.settings_read)
    return {
        "version": __version__,
        "folder": str(folder),
        "only_goldens": found.only_goldens,
        "exact_demanded": exact,
        **found.call.facts(),
        "settings": settings,
        "outputs": [output.as_dict() for output in report],
        "missing": found.missing,
        "goldens_left_out": found.goldens_left_out,
        "unread": found.unread,
    }
