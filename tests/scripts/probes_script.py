"""Run by test_measure.py: the probes of the instruction set that is named, or of any, do all their work."""

import sys
from itertools import product

import numpy as np
from helpers import THREADS

from mla_numba.kernels import ISA, peaks
from mla_numba.kernels.threads import tasks
from mla_numba.tuning.rates import Probes, rates_as_dict


def counters(n):
    return np.zeros(n * tasks.COUNTER_STRIDE, np.int64)


def check_reads(n):
    """Every word is read once, by whoever it is, and the last piece is a short one."""
    words = np.empty(3 * peaks.PIECE_WORDS + 5 * peaks.READ_WORDS if peaks.COMPILED else peaks.READ_WORDS, np.uint32)
    peaks.fill_words(n, n, words, n)
    assert (words == np.arange(words.size)).all()
    words += np.uint32(2**31)
    sums = np.full(n, -1, np.int64)
    peaks.read_stream(n, n, words, sums, counters(n), n)
    assert int(sums.sum()) % 2**32 == int(words.sum(dtype=np.uint64)) % 2**32
    assert sums.min() >= 0


def check_chains(n):
    """Each probe computes what its Python body does, to the bit, so none of its steps was left out."""
    rng = np.random.default_rng(0)
    size, steps = peaks.CHAINS * ISA.lanes, 5
    f32 = rng.uniform(-4, 4, (n, size)).astype(np.float32)
    words = rng.integers(0, 256, (n, 4 * size), np.uint8).view(np.int32)
    halves = np.repeat(np.array([0.5, 1], np.float32), ISA.lanes)
    pairs = rng.uniform(-2, 2, 4 * ISA.lanes).astype(np.float32).view(np.uint32) >> np.uint32(16)
    pairs = pairs[0::2] << np.uint32(16) | pairs[1::2]
    pairs[: ISA.lanes] = pairs[0]
    dot = (words, words[0, : 2 * ISA.lanes]) if peaks.DOT_DTYPE is np.int32 else (f32, halves)
    probes = [(peaks.fma_peak, peaks.fma_chain, f32, halves), (peaks.dot_peak, peaks.dot_chain, *dot)]
    if ISA.bf16_dot:
        probes.append((peaks.bf16_peak, peaks.bf16_chain, f32, pairs))
    n_tasks = 4
    for probe, body, start, operands in probes:
        operands, got = operands.copy(), start.copy()
        probe(n, n, got, operands, steps, counters(n), n_tasks, n)
        n_drawn = []
        for before, row in zip(start, got, strict=True):  # how many of the tasks a worker draws is a matter of luck
            want = [before.copy()]
            for _ in range(n_tasks):
                want.append(want[-1].copy())
                body(want[-1], operands, steps)
            n_drawn.append([i for i, state in enumerate(want) if (row == state).all()])
        assert any(sum(drawn) == n_tasks for drawn in product(*n_drawn)), f"{probe.__name__}: {n_drawn}"


def check_probes(isa):
    assert isa in (ISA.name, "any")
    threads = THREADS if peaks.COMPILED else (1,)
    for n in threads:
        check_reads(n)
        check_chains(n)
        rates = Probes(n, buffer_bytes=2**20 if peaks.COMPILED else 1, steps=2).rates(seconds=0)
        assert min(rates_as_dict(rates).values()) > 0
        assert (rates.bf16_flops_s is not None) == ISA.bf16_dot


if __name__ == "__main__":
    check_probes(sys.argv[1])
