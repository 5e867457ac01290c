"""Options of `dump` and `check` that say what operator a folder of dumps is of, and those that only some have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from ..base.modes import DUMP_OPERATORS, ROPE_STYLES, DumpOperator
from .indexer_options import indexer_options
from .options import epsilon_type, finite

__all__ = ["check_read", "neighbour_options", "operator_option"]

Command = Callable[..., Any]

# Of every operator.
_COMMON = {"folder", "operator", "tokens", "quant", "seed", "file_format", "style", "exact", "goldens", "as_json"}
_MOST_LISTED = 2**20


def operator_option(help_text: str, default: DumpOperator | None) -> Callable[[Command], Command]:
    """`--operator`, by the reference's names."""
    return click.option(
        "--operator", type=click.Choice(DUMP_OPERATORS), metavar="NAME", default=default,
        show_default=default is not None, help=f"The reference's operator: {', '.join(DUMP_OPERATORS)}.{help_text}",
    )  # fmt: skip


def _float(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    return None if value is None else finite(ctx, param, value)


def neighbour_options(is_dump: bool) -> Callable[[Command], Command]:
    """Options of the operators beside the prolog. Without a value in `check`, what the folder says counts."""

    def default(value: Any) -> dict[str, Any]:
        return {"default": value, "show_default": True} if is_dump else {"default": None}

    def usual(value: object) -> str:
        return "" if is_dump else f"  [default: {value}]"

    scale = "(D + R)^-0.5" if is_dump else "dims.json, or what config.json says of a model"
    options = [
        click.option(
            "--epsilon-k", type=epsilon_type, **default(1e-6), help=f"Epsilon of the indexer's norm.{usual('1e-6')}"
        ),
        click.option(
            "--rope", type=click.Choice(ROPE_STYLES), **default("half"),
            help=f"Rope columns of the indexer: as halves, or as pairs.{usual('half')}",
        ),
        click.option(
            "--k", type=click.IntRange(1, _MOST_LISTED),
            help=f"Positions of a list.  [default: {2048 if is_dump else 'as many as there are'}]",
        ),
        click.option(
            "--softmax-scale", type=float, callback=_float, help=f"Factor of attention's scores.  [default: {scale}]"
        ),
        click.option(
            "--dense", is_flag=True, default=False if is_dump else None,
            help="Attention over all keys that a token sees: there are no lists.",
        ),
        click.option(
            "--flash-tile", type=click.IntRange(1),
            help="Merge tiles of so many keys, as flash operators do: other bits.  [default: no tiles]",
        ),
        click.option(
            "--record-order", type=click.Choice(["cann", "flashmla"]), **default("cann"),
            help=f"Order of a record of 656 bytes.{usual('cann')}",
        ),
    ]  # fmt: skip

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return indexer_options(command)  # type: ignore[no-any-return]

    return decorate


def check_read(ctx: click.Context, operator: DumpOperator) -> None:
    """Refuses options that were given and that the operator does not read."""
    from ..dumps.operators import OPERATORS  # which needs NumPy

    call = OPERATORS[operator]
    read = _COMMON | {*call.settings_read, *call.choices_read}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name not in read and ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]}: expected without --operator {operator}, which has none")
