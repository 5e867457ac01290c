"""Peers that fail: each is left out with its reason, and the others are timed all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["LeftOutError", "first_line", "or_left_out", "or_skipped"]


class LeftOutError(Exception):
    """A peer that this machine cannot run, or that is wrong on it: the reason, in a line."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__


@contextmanager
def or_left_out() -> Iterator[None]:
    """Around the preparation and checks of a peer: raises `LeftOutError` for whatever fails there."""
    try:
        yield
    except Exception as error:
        raise LeftOutError(first_line(error)) from error


@contextmanager
def or_skipped(name: str) -> Iterator[None]:
    """The same in a bench of pytest, which is skipped with the reason."""
    try:
        with or_left_out():
            yield
    except LeftOutError as error:
        pytest.skip(f"{name} left out: {error}")
