"""The benches of calls through torch: every way is checked and timed."""

import pytest

from mla_numba import MlaDims

pytest.importorskip("torch")

import torch_threads
from torch_calls import Calls, measure

DIMS = MlaDims(130, 3, 50, 64, 34, 32)


def test_every_way_is_timed():
    times = measure(Calls(DIMS, 3), n_rounds=2)
    assert list(times) == [
        f"{way}, {out}" for out in ("given", "new") for way in ("MlaProlog", "TorchProlog", "compiled")
    ]
    assert all(len(taken) == 2 and min(taken) > 0 for taken in times.values())


def test_wrong_bits_are_found():
    calls = Calls(DIMS, 3)

    def wrong():
        out = calls.module(*calls.inputs, calls.cache)
        calls.cache.kr[0, 0, 0, 0] += 1
        out.q_norm[0, 0] ^= 1
        return out

    with pytest.raises(AssertionError, match=r"^q_norm: 1 of 150 elements differ"):
        calls.check(wrong)


def test_apart_and_together(monkeypatch):
    monkeypatch.setattr(torch_threads, "PAUSE", 0)
    seen = []
    times = torch_threads.measure(lambda: seen.append("torch"), lambda: seen.append("prolog"), 2)
    assert {name: [len(taken) for taken in both] for name, both in times.items()} == {
        "torch": [20, 20],
        "prolog": [20, 20],
    }
    assert seen[:4] == ["torch", "prolog"] * 2
