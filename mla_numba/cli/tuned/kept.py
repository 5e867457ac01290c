"""What `mla-numba tune` keeps: `--list` and `--forget`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich import box
from rich.table import Column, Table

from ..._version import __version__
from ...call.planning import this_machine
from ...call.tuned import (
    FOLDER_VARIABLE,
    Entry,
    bucket_of,
    forget,
    forget_search,
    machine_key,
    store_folder,
    stored,
    unfinished,
)
from ..options import LayerOptions
from ..shown import TABLE_WIDTH, print_wide

__all__ = ["forget_kept", "list_kept"]


def list_kept(ctx: click.Context, options: LayerOptions, *, as_json: bool) -> None:
    """Shows every entry, and which of them this version uses on this machine."""
    entries, searches = _chosen(ctx, options)
    if as_json:
        click.echo(
            json.dumps({"folder": str(store_folder()), "entries": [_as_dict(entry) for entry in entries]}, indent=1)
        )
        return
    if entries:
        names = ("T", "quant", "threads", "dimensions", "used here")
        table = Table(*(Column(name, no_wrap=True) for name in names), "found", box=box.SIMPLE)
        for entry in entries:
            table.add_row(*_cells(entry))
        print_wide(table, TABLE_WIDTH)
    click.echo(f"{_counted(entries, searches)} in {store_folder()} ({FOLDER_VARIABLE})")


def forget_kept(ctx: click.Context, options: LayerOptions, *, as_json: bool) -> None:
    """Removes entries, and says how many."""
    entries, searches = _chosen(ctx, options)
    try:
        for entry in entries:
            forget(entry)
        for path in searches:
            forget_search(path)
    except OSError as error:
        raise click.ClickException(f"expected to remove what is kept, got {error}") from None
    if as_json:
        removed = [_as_dict(entry) for entry in entries]
        click.echo(json.dumps({"folder": str(store_folder()), "removed": removed}, indent=1))
        return
    click.echo(f"{_counted(entries, searches)} removed from {store_folder()} ({FOLDER_VARIABLE})")


def _chosen(ctx: click.Context, options: LayerOptions) -> tuple[list[Entry], list[Path]]:
    """The entries that are kept for the options which were given; all of them, and all searches, if none was."""
    wanted: dict[str, Any] = {"quant": options.quant, "n_threads": options.threads, "dims": asdict(options.sizes)}
    wanted["bucket"] = {bucket_of(t) for t in ctx.params["tokens"]}
    options_of = {"quant": ("quant",), "n_threads": ("threads",), "dims": ("model", "small"), "bucket": ("tokens",)}
    given = {
        name: wanted[name]
        for name, params in options_of.items()
        if any(ctx.get_parameter_source(param) is not ParameterSource.DEFAULT for param in params)
    }
    try:
        entries, searches = stored(), [] if given else unfinished()
    except OSError as error:
        raise click.ClickException(str(error)) from None
    fitting = [entry for entry in entries if all(_fits(entry.key.get(name), value) for name, value in given.items())]
    return fitting, searches


def _fits(kept: Any, wanted: Any) -> bool:
    return kept in wanted if isinstance(wanted, set) else bool(kept == wanted)


def _is_used(entry: Entry) -> bool:
    return entry.key.get("machine") == machine_key(this_machine()) and entry.key.get("version") == __version__


def _cells(entry: Entry) -> list[str]:
    key = entry.key
    used = "yes" if _is_used(entry) else "no: another machine or version"
    threads = str(key.get("n_threads"))
    if key["kind"] == "rates":
        return ["", "", threads, "", used, "rates of the machine"]
    dims = ",".join(map(str, dict(key.get("dims") or {}).values()))
    found = "a form that this version does not read" if entry.tuned is None else str(entry.tuned)
    return [f"up to {key.get('bucket')}", str(key.get("quant")), threads, dims, used, found]


def _as_dict(entry: Entry) -> dict[str, Any]:
    tuned = None if entry.tuned is None else asdict(entry.tuned) | {"tiling": entry.tuned.tiling.given()}
    return {"file": str(entry.path), "key": entry.key, "tuned": tuned, "used_here": _is_used(entry)}


def _counted(entries: list[Entry], searches: list[Path]) -> str:
    n_tuned = sum(entry.key["kind"] == "tuned" for entry in entries)
    n_rates = len(entries) - n_tuned
    return f"{n_tuned} results of searches, {n_rates} of measured rates, {len(searches)} interrupted searches"
