"""The bench of far memory: what it prints is what the page has, and it fails where groups are idle for too long."""

import far_share
import pytest
from click.testing import CliRunner
from helpers import ROOT

PAGE = ROOT / "docs/many_cores.md"


def printed(*options):
    return CliRunner().invoke(far_share.main, [*options])


def test_the_page_has_the_table():
    result = printed("--markdown")
    assert result.exit_code == 0, result.output
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- far -->\n\n")
    command = "put what python bench/far_share.py --markdown prints there"
    assert rest.partition("\n<!-- /far -->")[0] == result.output, command


def test_groups_that_are_idle_for_too_long_fail():
    result = printed("--tokens", "8", "--threads", "96")
    assert result.exit_code == 1
    assert "of the workers' time is idle in groups, more than 8%" in result.output
    assert "2 x 48: far" in result.output


def test_far_memory_costs_what_is_said():
    """On as many nodes as threads of one row each next leg comes from another node: nearly all weights are far."""
    calls = far_share.calls_of(8, 64, 64, 64 * 7e9, far=2.0)
    assert calls.one_row.far > 0.3  # of the call; legs are those of the down sweep alone
    assert calls.groups.far < 0.05
    assert calls.groups.seconds < calls.one_row.seconds
    near = far_share.calls_of(8, 1, 64, 64 * 7e9, far=2.0)
    assert near.one_row == near.groups == near.near
    assert near.near.far == 0
    assert near.near.seconds <= calls.groups.seconds


@pytest.mark.parametrize("n_nodes", [2, 4])
def test_groups_read_what_they_packed(n_nodes):
    calls = far_share.calls_of(1, n_nodes, 64, 64 * 7e9, far=2.0)
    assert calls.one_row.far > 0.15
    assert calls.groups.far < 0.01
    assert calls.groups.idle <= calls.one_row.idle
