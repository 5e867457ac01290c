"""The bench of the lightning index: every way is checked and timed."""

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from lightning_index import N_COPIES, OURS, Calls, Sizes, main, measure, measure_alone


@pytest.mark.parametrize("t", [1, 3])
def test_every_way_is_checked_and_timed(t):
    bench, left_out = measure(Calls(Sizes(t, 300, n_heads=17, head_dim=32, k=20)), n_rounds=2, compiled=False)
    assert [*bench.ms] == [name for name in (OURS, "fp32", "int8") if name not in left_out]
    assert {*left_out} <= {"int8"}  # which is wrong on CPUs without VNNI
    assert all(reason.startswith(f"{name}: ") for name, reason in left_out.items())
    assert bench.least_ms > 0


def test_ours_alone_goes_over_copies_of_the_keys():
    calls = Calls(Sizes(2, 300, n_heads=17, head_dim=32, k=20))
    seen = []
    ours, calls.ours = calls.ours, lambda cache=None: seen.append(id(cache)) or ours(cache)
    bench = measure_alone(calls, n_rounds=8)
    assert [*bench.ms] == [OURS]
    assert bench.least_ms > 0
    assert len({*seen}) == 1 + N_COPIES


def test_the_command_alone():
    result = CliRunner().invoke(main, ["--alone", "--tokens", "1", "--keys", "2048", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert OURS in result.output
    assert "int8" not in result.output


def test_a_wrong_list_is_found():
    calls = Calls(Sizes(1, 200, n_heads=3, head_dim=32, k=5))
    index = calls.ours()
    index[0, :2] = index[0, 1::-1]
    calls.check("another", lambda: index)
    with pytest.raises(AssertionError, match=f"{OURS}: 0 of 1 lists equal, 1 in another order"):
        calls.check(OURS, lambda: index)
    index[0, 0] = index[0, 1]
    with pytest.raises(AssertionError, match=r"another: .* 1 wrong"):
        calls.check("another", lambda: index)
