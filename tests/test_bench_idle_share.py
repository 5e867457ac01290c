"""The bench of idle threads: what it prints is what the page has, and it fails where too many are idle."""

import idle_share
import pytest
from click.testing import CliRunner
from helpers import ROOT

PAGE = ROOT / "docs/many_cores.md"


def printed(*options):
    return CliRunner().invoke(idle_share.main, [*options])


@pytest.mark.parametrize(
    ("name", "options"), [("legs", ()), ("tasks", ("--tasks",)), ("whole", ("--whole", "--most", "1"))]
)
def test_the_page_has_the_table(name, options):
    result = printed("--markdown", *options)
    assert result.exit_code == 0, result.output
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n\n")
    command = f"put what python bench/idle_share.py --markdown {' '.join(options)} prints there"
    assert rest.partition(f"\n<!-- /{name} -->")[0] == result.output, command


def test_too_many_idle_threads_fail():
    result = printed("--whole", "--tokens", "8", "--threads", "2,64")
    assert result.exit_code == 1
    assert "25.3% of the workers' time is idle at 64 threads, more than 8%" in result.output
    assert "64 threads" in result.output


def test_what_all_threads_read_together_is_shared():
    """With so little bandwidth moving is all that counts, and the parts are those of bytes."""
    calls = [
        idle_share.simulate(idle_share.plan_for(8, 64, bytes_s, tiling=idle_share.WHOLE)) for bytes_s in (1e9, 2e9)
    ]
    assert calls[0].seconds == pytest.approx(2 * calls[1].seconds, rel=0.05)
    assert calls[0].n_tasks == ("1-2", "2")
