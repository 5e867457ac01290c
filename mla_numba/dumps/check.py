"""The outputs of a folder of dumps against the oracle's."""

from __future__ import annotations

import numpy as np

from ..base.checks import expect_type
from ..layouts import pa_nz_to_pa_bsnd
from ..oracle.tolerance import Agreement, compare_within
from .read import Dump

__all__ = ["check_dump"]


def check_dump(dump: Dump, exact: bool = False) -> list[Agreement]:
    """How each output of a folder agrees with the oracle's, and whether rows that no token names were left alone.

    Caches in PA_NZ are compared in the order of PA_BSND, so that places are blocks and slots. `write_dump` has an
    example.

    Args:
        dump: What `read_dump` found.
        exact: Let an output pass only if every bit is equal, in place of the reference operator's tolerances.

    Returns:
        A verdict for each of `dump.outputs`.

    Raises:
        TypeError: `dump` is none.
    """
    expect_type("dump", dump, Dump)
    want = dump.reference()
    nz = dump.settings.cache_mode == "PA_NZ"
    before = dump.cache.arrays()
    named = np.arange(len(dump.x)) if dump.cache_index is None else dump.cache_index
    untouched = np.setdiff1d(np.arange(dump.cache.capacity), named)
    found = []
    for name, file, got in dump.outputs:
        of_cache = name.removesuffix("_out") in before
        arrays = [got, getattr(want, name.removesuffix("_out"))]
        if of_cache:
            arrays.append(before[name.removesuffix("_out")])
            if nz and name != "k_scale_cache_out":
                arrays = [pa_nz_to_pa_bsnd(array) for array in arrays]
        kept = (arrays[2], untouched) if of_cache else None
        with np.errstate(over="ignore"):
            expected = arrays[1].astype(got.dtype)  # float16 scales are the oracle's float32 ones, rounded
        found.append(compare_within(name, arrays[0], expected, file=file, exact=exact, untouched=kept))
    return found
