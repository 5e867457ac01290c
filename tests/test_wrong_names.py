"""Public functions that take a name or another function's result refuse what is none, and name the argument."""

import numpy as np
import pytest

import mla_numba as mla
import tiling
from mla_numba.dump_names import INPUTS, OUTPUTS, SCALES, meaning_of, name_in
from mla_numba.dumps import check_dump
from mla_numba.tolerance import TOLERANCES, Tolerance, compare_within, tolerance_of
from mla_numba.verify import check_output, compare_bits, poison

FLOATS, CODES = np.zeros(3, np.float32), np.zeros(3, np.int8)
CACHE = mla.PagedCache.allocate(mla.MlaDims(16, 2, 8, 8, 4, 4), 1)
OUTPUT = mla.PrologOutput(FLOATS, FLOATS, FLOATS, None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: name_in("pyto", "w_dq"), ValueError, "style: expected one of reference, pypto, numbers, got 'pyto'"),
        (lambda: name_in(3, "w_dq"), TypeError, "style: expected str, got int"),
        (lambda: name_in("pypto", "w_d"), ValueError, "argument: expected one of token_x, .*, got 'w_d'"),
        (lambda: meaning_of(3), TypeError, "stem: expected str, got int"),
        (lambda: meaning_of("x", None), TypeError, "folder: expected str, got NoneType"),
        (lambda: tolerance_of("q_norm", CODES.dtype), ValueError, "name: expected one of query_nope_out, .*'q_norm'"),
        (lambda: tolerance_of("kr_cache_out", CODES.dtype), ValueError, "kr_cache_out: expected elements of another"),
        (lambda: compare_within("x", FLOATS, FLOATS), ValueError, "name: expected one of .*, got 'x'"),
        (lambda: compare_within("x", [0], FLOATS), TypeError, "x: expected ndarray, got list"),
        (lambda: compare_bits("y", FLOATS, [0.0]), TypeError, "y: expected ndarray, got list"),
        (lambda: poison([1]), TypeError, "arrays: expected ndarray, got list"),
        (lambda: check_output(1, CACHE, 3), TypeError, "output: expected PrologOutput, got int"),
        (lambda: check_output(OUTPUT, None, 3), TypeError, "cache: expected PagedCache, got NoneType"),
        (lambda: check_output(OUTPUT, CACHE, OUTPUT), TypeError, "reference: expected ReferenceOutput, got Prolog"),
        (lambda: check_dump("folder"), TypeError, "dump: expected Dump, got str"),
        (lambda: mla.Trace().busy_s("rows"), ValueError, "phase: expected one of pack, down, query, key, heads"),
        (lambda: mla.Trace().busy_s(0), TypeError, "phase: expected str, got int"),
        (lambda: tiling.Costs.of_isa("avx3"), ValueError, "isa: expected one of .*, got 'avx3'"),
        (lambda: tiling.Costs.of_isa(["avx2"]), TypeError, "isa: expected str, got list"),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_what_is_a_name_is_taken():
    for argument in INPUTS | SCALES | OUTPUTS:
        assert meaning_of(name_in("reference", argument)).argument == argument
    for name, kind in TOLERANCES:
        assert tolerance_of(name, CODES.dtype if kind == "int8" else FLOATS.dtype) is TOLERANCES[name, kind]
    assert compare_within("x", FLOATS, FLOATS, tolerance=Tolerance(0, 0, 0)).passed
