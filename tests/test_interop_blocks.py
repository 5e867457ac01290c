"""Block tables: sequences that grow, are exchanged, share blocks and are cut back keep the rows they wrote."""

import numpy as np
import pytest

from mla_numba import MlaDims
from mla_numba.interop.hf.blocks import BlockPool

DIMS = MlaDims(32, 1, 8, 4, 4, 2)


def write(pool, start, rows):
    """Writes rows (B, n), a number a token, into all layers."""
    rows = np.array(rows)
    pool.reserve(len(rows), start, rows.shape[1])
    slots = pool.slots(start, rows.shape[1])
    for layer in range(len(pool.caches)):
        flat = pool.cache(layer).kr.reshape(-1, 2)
        flat[slots.reshape(-1)] = rows.reshape(-1, 1) + layer


def read(pool, length, layer=0):
    rows = pool.cache(layer).gather(pool.slots(0, length).reshape(-1)).kr[:, 0].astype(int) - layer
    return rows.reshape(pool.batch, length).tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n_blocks", [None, 80])
def test_sequences_keep_what_they_wrote(seed, n_blocks):
    """Random histories against plain lists; numbers up to 127 are exact in bf16."""
    rng = np.random.default_rng(seed)
    pool = BlockPool(DIMS, n_layers=2, block_size=int(rng.integers(1, 6)), n_blocks=n_blocks, quantized=True)
    sequences = [[] for _ in range(rng.integers(1, 4))]
    for _ in range(30):
        length = len(sequences[0])
        match rng.integers(0, 5):
            case 0 | 1 if length < 12:
                rows = rng.integers(1, 120, (len(sequences), rng.integers(1, 5)))
                write(pool, length, rows)
                sequences = [old + new for old, new in zip(sequences, rows.tolist(), strict=True)]
            case 2 if length:
                chosen = rng.integers(0, len(sequences), rng.integers(1, 5))
                pool.select(chosen)
                sequences = [list(sequences[i]) for i in chosen]
            case 3 if length:
                keep = int(rng.integers(1, length + 1))
                pool.truncate(keep)
                sequences = [old[:keep] for old in sequences]
            case 4 if rng.random() < 0.2:
                pool.reset()
                sequences = [[] for _ in range(rng.integers(1, 4))]
        if sequences[0]:
            for layer in range(2):
                assert read(pool, len(sequences[0]), layer) == sequences


def test_shared_blocks_are_copied_only_when_written():
    pool = BlockPool(DIMS, n_layers=1, block_size=4, n_blocks=None, quantized=False)
    write(pool, 0, [[1, 2, 3, 4, 5]])
    pool.select(np.array([0, 0, 0]))
    assert len(np.unique(pool.tables)) == 2
    write(pool, 5, [[6], [7], [8]])
    assert len(np.unique(pool.tables[:, 0])) == 1
    assert len(np.unique(pool.tables[:, 1])) == 3
    assert read(pool, 6) == [[1, 2, 3, 4, 5, n] for n in (6, 7, 8)]


def test_a_lone_sequence_lies_in_order():
    pool = BlockPool(DIMS, n_layers=1, block_size=2, n_blocks=None, quantized=False)
    for position in range(9):
        write(pool, position, [[position + 1]])
    assert pool.tables.tolist() == [[0, 1, 2, 3, 4]]


def test_slots_are_cleared_in_one_layer():
    pool = BlockPool(DIMS, n_layers=2, block_size=2, n_blocks=3, quantized=True)
    write(pool, 0, [[9, 8, 7]])
    for layer in range(2):
        pool.cache(layer).kr[...] += np.array(np.nan, pool.cache(layer).kr.dtype)
    pool.clear(1, pool.slots(1, 2).reshape(-1))
    assert np.isnan(pool.cache(0).kr[pool.tables[0]].astype(float)).all()
    rows = pool.cache(1).gather(pool.slots(0, 3).reshape(-1)).kr.astype(float)
    assert np.isnan(rows).all(axis=1).tolist() == [True, False, False]
    assert not rows[1:].any()


def test_no_block_is_shared_from_the_first_new_position_on():
    """Blocks may have been reserved, and never written, before sequences were repeated."""
    pool = BlockPool(DIMS, n_layers=1, block_size=2, n_blocks=None, quantized=False)
    write(pool, 0, [[1, 2, 3]])
    pool.reserve(1, 3, 6)
    pool.select(np.array([0, 0, 0]))
    write(pool, 3, [[i + 1 for i in range(k, k + 5)] for k in (10, 20, 30)])
    assert len(np.unique(pool.tables[:, 0])) == 1
    assert all(len(np.unique(pool.tables[:, i])) == 3 for i in range(1, pool.tables.shape[1]))
    assert read(pool, 8) == [[1, 2, 3, *(i + 1 for i in range(k, k + 5))] for k in (10, 20, 30)]


def test_too_few_blocks_change_nothing():
    pool = BlockPool(DIMS, n_layers=1, block_size=2, n_blocks=3, quantized=False)
    write(pool, 0, [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"n_blocks: expected .* 3 beside the 2 in use, got 3 in all"):
        pool.reserve(1, 3, 7)
    assert read(pool, 3) == [[1, 2, 3]]
    with pytest.raises(ValueError, match="hidden_states: expected the 1 sequences that the cache holds, got 2"):
        pool.reserve(2, 3, 1)
    write(pool, 3, [[4, 5, 6]])
    assert read(pool, 6) == [[1, 2, 3, 4, 5, 6]]


def test_a_growth_that_fails_changes_nothing(monkeypatch):
    pool = BlockPool(DIMS, n_layers=3, block_size=4, n_blocks=None, quantized=True)
    write(pool, 0, [[1, 2, 3]])
    allocate, n_made = pool._allocate, 0

    def no_memory_for_the_second(n_blocks):
        nonlocal n_made
        n_made += 1
        if n_made == 2:
            raise MemoryError
        return allocate(n_blocks)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_allocate", no_memory_for_the_second)
        with pytest.raises(MemoryError):
            pool.reserve(1, 3, 40)
    write(pool, 3, [list(range(4, 44))])
    assert [read(pool, 43, layer) for layer in range(3)] == [[list(range(1, 44))]] * 3
