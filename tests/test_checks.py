"""Checks of single values: one wording in both packages; NumPy's ints and bools are taken where arrays are."""

import numpy as np
import pytest

from mla_numba import MlaDims
from mla_numba.base import checks
from tiling import PlanDims, check


@pytest.mark.parametrize("module", [check, checks], ids=["tiling", "mla_numba"])
def test_one_wording(module):
    for args, error, message in (
        ((module.check_int, "n", "3", 1), TypeError, "^n: expected int, got str$"),
        ((module.check_int, "n", True, 1), TypeError, "^n: expected int, got bool$"),
        ((module.check_int, "n", np.float64(3), 1), TypeError, "^n: expected int, got float64$"),
        ((module.check_int, "n", 0, 1), ValueError, "^n: expected at least 1, got 0$"),
        ((module.check_int, "n", 9, 1, 8), ValueError, "^n: expected at most 8, got 9$"),
        ((module.check_int, "n", -(10**5000), 1), ValueError, "^n: expected at least 1, got an int of 16610 bits$"),
        ((module.check_flag, "f", 1), TypeError, "^f: expected bool, got int$"),
        ((module.check_choice, "c", 1, ("a", "b")), TypeError, "^c: expected str, got int$"),
        ((module.check_choice, "c", "x", ("a", "b")), ValueError, "^c: expected one of a, b, got 'x'$"),
    ):
        run, *rest = args
        with pytest.raises(error, match=message):
            run(*rest)


def test_numbers_of_numpy_become_those_of_python():
    for value in (np.int8(3), np.uint64(3)):
        assert type(checks.check_int("n", value, 1)) is int
        with pytest.raises(TypeError, match=r"^n: expected int, got u?int\d+$"):
            check.check_int("n", value, 1)
    assert checks.check_flag("f", np.True_) is True
    assert checks.check_int("n", 10**30, 1) == 10**30  # without a bound there is none
    with pytest.raises(ValueError, match=r"^n: expected at most 2147483647, got 1000000"):
        check.check_int("n", 10**30, 1)


def test_dimensions_of_weights_are_those_of_plans():
    dims = MlaDims.deepseek_v32()
    assert isinstance(dims, PlanDims)
    assert PlanDims.of(dims) == PlanDims(7168, 128, 1536, 512, 128, 64) != dims
    assert MlaDims.of(PlanDims.of(dims)) == dims
    with pytest.raises(ValueError, match=r"^qk_rope_head_dim: expected an even number, got 63"):
        MlaDims.of(PlanDims(7168, 128, 1536, 512, 128, 63))
