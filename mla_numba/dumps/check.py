"""The outputs of a folder of dumps against the oracle's."""

from __future__ import annotations

from ..base.checks import expect_type
from .call import Verdict
from .read import Dump

__all__ = ["check_dump"]


def check_dump(dump: Dump, exact: bool = False) -> list[Verdict]:
    """How each output of a folder agrees with the oracle's, and whether rows that no token names were left alone.

    Caches in PA_NZ are compared in the order of PA_BSND, so that places are blocks and slots. Lists of positions pass
    if keys that only one of the two has score as much as the last one, see `compare_index`. `write_dump` has an
    example.

    Args:
        dump: What `read_dump` found.
        exact: Let an output pass only if every bit is equal, in place of the reference operator's tolerances.

    Returns:
        A verdict for each of `dump.outputs`: an `Agreement`, or a `ListsAgreement` for lists of positions.

    Raises:
        TypeError: `dump` is none.
    """
    expect_type("dump", dump, Dump)
    return list(dump.call.compare(dump.outputs, exact))
