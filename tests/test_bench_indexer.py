"""The bench of the indexer's prolog: both ways are checked and timed."""

import click
import pytest
from indexer_prolog import ONE, PROLOG, TWO, Calls, measure, table

import mla_numba as mla
from mla_numba.testing import copies_to_be_cold

DIMS = mla.MlaDims(256, 4, 96, 64, 32, 32)
INDEXER = mla.IndexerWeights.random(DIMS, n_heads=3, head_dim=32)


@pytest.fixture
def calls(monkeypatch):
    assert copies_to_be_cold(1) > 2
    monkeypatch.setattr("indexer_prolog.copies_to_be_cold", lambda n_bytes: 2)
    return Calls(DIMS, INDEXER, 5, n_threads=1)


def test_all_three_are_timed(calls):
    bench = measure(calls, 1.0, n_rounds=7)
    assert {name: len(times) for name, times in bench.ms.items()} == {PROLOG: 7, ONE: 7, TWO: 7}
    shown = table({5: bench})
    assert shown.row_count == 3
    least = min(bench.ms[ONE]) / min(bench.ms[PROLOG])
    assert list(shown.columns[-1].cells)[:2] == ["", f"{least:.2f}"]


def test_other_bits_are_found(calls):
    calls.check()
    calls.alone[0] = mla.IndexerProlog(mla.IndexerWeights.random(DIMS, seed=1, n_heads=3, head_dim=32), n_threads=1)
    with pytest.raises(click.ClickException, match="one call and two give other bits"):
        calls.check()
