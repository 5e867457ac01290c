"""Ranks of the lightning index: those that are kept, their order, and lists of which several tasks write a part."""

import numba
import numpy as np
import pytest

from mla_numba.kernels.lightning import best, merging
from mla_numba.kernels.lightning.best import (
    BEGIN,
    END,
    SAMPLE,
    append_ranks,
    find_end,
    guess_end,
    keep_best,
    slack_of,
)
from mla_numba.kernels.lightning.chosen import can_append
from mla_numba.kernels.lightning.merging import Buffers, Desk, bounds_of, merge_part, n_parts_of
from mla_numba.kernels.lightning.sorting import N_BINS, sort_ranks, write_positions
from mla_numba.kernels.micro.table import ISA

HALF = np.uint64(32)


def ranks_of(kind, n, rng):
    """n different ranks, in order of their positions."""
    scores = {
        "random": lambda: rng.integers(0, 2**32, n),
        "near": lambda: 2**31 + rng.integers(0, 2 * n + 1, n),
        "few": lambda: rng.choice([5, 2**20, 2**31], n),
        "equal": lambda: np.full(n, 77),
        "rising": lambda: np.arange(n) * 1000,
        "falling": lambda: np.arange(n)[::-1] * 1000,
        "one far": lambda: np.where(np.arange(n) == n // 2, 0, 2**32 - 1 - np.arange(n) % 7),
    }[kind]().astype(np.uint64)
    return (scores << HALF) + np.arange(n, dtype=np.uint64)


KINDS = ("random", "near", "few", "equal", "rising", "falling", "one far")


@pytest.mark.parametrize("spread", [1, 2**10, 2**40, 2**63])
@pytest.mark.parametrize("slack", [0, 7])
def test_what_is_kept_of_ranks(spread, slack):
    rng = np.random.default_rng(spread % 1000)
    sample, counts = np.zeros(2 * SAMPLE, np.uint64), np.zeros(N_BINS, np.uint64)
    for n, k in ((1, 1), (50, 50), (50, 1), (1000, 37), (1000, 999), (2 * SAMPLE, 3), (2 * SAMPLE + 9, SAMPLE)):
        ranks = rng.permutation(np.arange(n, dtype=np.uint64) + rng.integers(0, spread, dtype=np.uint64))
        if spread > n:
            ranks = rng.choice(spread, n).astype(np.uint64)
            ranks = rng.permutation(np.unique(ranks))
            n, k = len(ranks), min(k, len(ranks))
        left = ranks.copy()
        n_kept, end = keep_best(left, np.int64(n), np.int64(k), np.int64(slack), sample)
        assert k <= n_kept <= k + slack
        assert left[:n_kept].tolist() == ranks[ranks < end].tolist()
        sort_ranks(left[:n_kept], np.empty(n_kept, np.uint64), counts)
        assert left[:n_kept].tolist() == sorted(ranks.tolist())[:n_kept]
    assert end <= END


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_without_slack_is_exact(kind):
    ranks = np.random.default_rng(1).permutation(ranks_of(kind, 200, np.random.default_rng(0)))
    for k in (1, 2, 100, 199, 200):
        assert (ranks < find_end(ranks, k, 0)).sum() == k


def test_a_sample_mostly_says_enough():
    """Of random ranks no fewer than k are below what it says, and not many more."""
    rng = np.random.default_rng(0)
    n, k = 6 * SAMPLE, 2 * SAMPLE
    n_below = []
    for _ in range(20):
        ranks = rng.permutation(n).astype(np.uint64)
        n_below.append(int((ranks < guess_end(ranks[::6], n, k)).sum()))
    assert sum(k <= below <= k + slack_of(k) for below in n_below) > 15
    assert guess_end(ranks[:0], 0, 0) == END
    assert guess_end(ranks[:5], 5, 5) == END


def misleading(ranks, sampled):
    """Ranks of which each tenth is one of the best, or of the worst."""
    n = len(ranks) // 10
    tenth = ranks[:n] if sampled == "the best" else ranks[-n:]
    return np.hstack([np.setdiff1d(ranks, tenth).reshape(n, 9), tenth[:, None]]).reshape(-1)


@pytest.mark.parametrize("sampled", ["the best", "the worst"])
def test_a_sample_that_misleads_costs_no_rank(monkeypatch, sampled):
    for module in (best, merging):
        monkeypatch.setattr(module, "SAMPLE", 16)
    ranks = ranks_of("rising", 160, np.random.default_rng(0))
    misled = misleading(ranks, sampled)
    left = misled.copy()
    n_kept, _ = keep_best(left, 160, 40, 10, np.zeros(32, np.uint64))
    assert 40 <= n_kept <= 50
    assert set(ranks[:40].tolist()) <= set(left[:n_kept].tolist())
    buffers = Buffers(misled.reshape(1, 1, -1), np.array([[160]]), np.array([[END]]))
    desk = Desk(np.empty(320, np.uint64), np.empty(320, np.uint64), np.empty(N_BINS, np.uint64))
    for n_parts in (1, 2, 40):
        chosen = np.full(40, -7, np.int32)
        for part in range(n_parts):
            merge_part(buffers, 0, part, n_parts, desk, chosen)
        assert chosen.tolist() == list(range(40))


@numba.njit
def _appended(more, ranks, n, first, end):
    return append_ranks(more, ranks, n, first, end)


@pytest.mark.parametrize("append", [append_ranks, _appended], ids=["python", "jitted"])
def test_ranks_that_are_appended(append):
    """Those within bounds, in their order, and nothing is written behind them."""
    rng = np.random.default_rng(0)
    keys = np.array([0, 1, 2, 3, 4, 5, 6, 7, 2**31, 2**31 + 1, 2**32 - 1], np.uint64)
    for n in (0, 1, 7, 8, 9, 16, 31, 32, 33, 100):
        for begin, bound in (
            (None, 0),
            (None, 3),
            (3, 7),
            (2, 2**31 + 1),
            (None, 2**32 - 1),
            (2**31, 2**32 - 1),
            (4, 4),
        ):
            more = (rng.choice(keys, n) << HALF) + np.arange(1000, 1000 + n, dtype=np.uint64)
            first = BEGIN if begin is None else np.uint64((begin << 32) + 1000)
            end = np.uint64((bound << 32) + 1001 + n // 2)
            want = more[(more >= first) & (more < end)].tolist()
            ranks = np.full(3 + len(want) + 9, 5, np.uint64)
            n_ranks = append(more, ranks, np.int64(3), first, end)
            assert ranks[3:n_ranks].tolist() == want
            assert (ranks[[0, 1, 2]] == 5).all()
            if append is _appended and can_append(ISA):
                assert (ranks[n_ranks:] == 5).all()
            n_ranks = append(more, more, np.int64(0), first, end)
            assert more[:n_ranks].tolist() == want
    all_ranks = np.array([0, 1, int(END) - 1], np.uint64)
    assert append(all_ranks, np.empty(8, np.uint64), np.int64(0), BEGIN, END) == 3
    assert append(all_ranks, np.empty(8, np.uint64), np.int64(0), np.uint64(5), np.uint64(5)) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["positions", "fallen", "any"])
def test_ranks_in_order(kind, order):
    """Equal scores that come in another order than their positions are many places off."""
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 3, 300):
        ranks = ranks_of(kind, n, rng)
        ranks = {"positions": ranks, "fallen": ranks[::-1], "any": rng.permutation(ranks)}[order].copy()
        want = sorted(ranks.tolist())
        spare = np.full(n + 2, 5, np.uint64)
        sort_ranks(ranks, spare, np.empty(N_BINS, np.uint64))
        assert ranks.tolist() == want
        assert spare[n:].tolist() == [5, 5]


def test_positions_of_ranks():
    ranks = np.array([7, (9 << 32) + 3, (2**32 - 1 << 32) + 2**31 - 1], np.uint64)
    for room in range(5):
        out = np.full(room, 8, np.int32)
        write_positions(ranks, out)
        assert out.tolist() == [7, 3, 2**31 - 1, -1][:room]


def buffers_of(ranks, n_workers, k, room, rng):
    """Ranks that workers buffered of token 1, a few at a time, as in a scan."""
    rows = np.full((n_workers, 2, room), 3, np.uint64)
    n_ranks, ends = np.zeros((n_workers, 4), np.int64), np.full((n_workers, 4), END)
    for first in range(0, len(ranks), 8):
        w, tile = int(rng.integers(n_workers)), ranks[first : first + 8]
        if n_ranks[w, 1] + len(tile) > room:
            sample = np.empty(2 * best.SAMPLE, np.uint64)
            n_ranks[w, 1], ends[w, 1] = keep_best(rows[w, 1], int(n_ranks[w, 1]), k, slack_of(k), sample)
        n_ranks[w, 1] = append_ranks(tile, rows[w, 1], int(n_ranks[w, 1]), BEGIN, ends[w, 1])
    return Buffers(rows, n_ranks, ends)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 8, 64])
def test_parts_are_the_whole_list(monkeypatch, kind, size):
    """However small the sample, and where many buffers have more ranks than a worker can take at once."""
    for module in (best, merging):
        monkeypatch.setattr(module, "SAMPLE", size)
    rng = np.random.default_rng(size)
    for n, k, n_workers in ((0, 3, 2), (1, 1, 3), (30, 40, 2), (40, 40, 2), (41, 40, 2), (400, 40, 5), (300, 1, 2)):
        ranks = rng.permutation(ranks_of(kind, n, rng))
        room = 3 * k + 8
        buffers = buffers_of(ranks, n_workers, k, room, rng)
        want = (np.sort(ranks)[:k] & np.uint64(2**32 - 1)).astype(np.int32).tolist()
        spare = np.empty(2 * max(room, size), np.uint64)
        desk = Desk(np.empty(2 * room, np.uint64), spare, np.empty(N_BINS, np.uint64))
        for n_parts in (1, 2, 5):
            chosen = np.full(k, -7, np.int32)
            for part in rng.permutation(n_parts):
                merge_part(buffers, 1, int(part), n_parts, desk, chosen)
            assert chosen.tolist() == want + [-1] * (k - len(want))


def test_bounds_of_parts_never_fall(monkeypatch):
    """What is guessed of more ranks may be less."""
    monkeypatch.setattr(merging, "guess_end", lambda sample, n, k: np.uint64({10: 30, 20: 70, 30: 60, 40: 90}[k]))
    bounds = [bounds_of(np.empty(0, np.uint64), 100, 40, part, 4, np.uint64(80)) for part in range(4)]
    assert bounds == [(0, 30), (30, 70), (70, 70), (70, 80)]


def test_a_list_has_parts_where_workers_would_idle():
    assert n_parts_of(2, 1, 2048) == 2
    assert n_parts_of(2, 2, 2048) == n_parts_of(2, 1, 1023) == n_parts_of(8, 1, 1) == 1
    assert n_parts_of(8, 3, 2048) == 3
    assert n_parts_of(100, 1, 4096) == 8
