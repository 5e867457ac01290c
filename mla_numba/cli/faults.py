"""What the library complains of, as the errors of a command: one line, and nothing of Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..tuning.contest import ExactnessError

__all__ = ["blame", "own_plan_is_exact", "said_plainly"]


@contextmanager
def blame(option: str) -> Iterator[None]:
    """Turns the library's complaint about a value into one about the option that it came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


@contextmanager
def said_plainly() -> Iterator[None]:
    """Ends the command with what the library complains of: files, values, a package that is missing."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def own_plan_is_exact() -> Iterator[None]:
    """Ends the command where the planner's own plan, with which others are compared, has a wrong bit."""
    try:
        yield
    except ExactnessError as error:
        raise click.ClickException(f"the planner's own plan differs from the reference: {error}") from None
