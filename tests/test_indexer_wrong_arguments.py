"""Every argument of the indexer's nouns replaced by each wrong one of a pool; see `test_wrong_arguments`."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pytest
from helpers import BF16
from helpers.wrong_arguments import objects
from test_wrong_arguments import (
    ANY_STRIDES,
    NUMBERS,
    OTHER_COLUMNS,
    OTHER_ROWS,
    SAME_VALUES,
    assert_takes,
)

import mla_numba as mla

LAYER = mla.MlaDims(16, 2, 9, 8, 3, 4)
DIMS = mla.IndexerDims(16, 9, 3, 8, 4)
VECTOR = SAME_VALUES | {"one axis more", "one axis more behind"}


def test_dims():
    assert_takes(mla.IndexerDims, asdict(DIMS), {})
    for value in objects().values():
        if not isinstance(value, Mapping):
            with pytest.raises(ValueError, match=r"^config\.hidden_size: expected an int, got none"):
                mla.IndexerDims.from_hf(value)
        for name, setting in (("n_heads", "index_n_heads"), ("head_dim", "index_head_dim"), ("hidden_size",) * 2):
            config = {"index_n_heads": 3, "index_head_dim": 8} | asdict(DIMS) | {setting: value}
            if name in ("n_heads", "head_dim"):
                del config[name]
            if value is not None and not (type(value) is int and 1 <= value < 2**31):
                with pytest.raises((TypeError, ValueError), match=rf"^config\.{setting}: expected "):
                    mla.IndexerDims.from_hf(config)


def test_weights():
    weights = mla.IndexerWeights.random(LAYER, n_heads=3, head_dim=8)
    arrays = ("w_qb", "w_qb_scale", "wk", "w_proj", "ln_gamma_k", "ln_beta_k", "hadamard_q", "hadamard_k")
    arguments = {name: getattr(weights, name) for name in (*arrays, "epsilon", "rope", "qk_rope_head_dim")}
    taken = dict.fromkeys(arrays, SAME_VALUES)
    taken["w_qb"] = SAME_VALUES | {"not aligned"} | OTHER_ROWS - {"no rows"}
    taken["w_qb_scale"] = VECTOR
    assert_takes(mla.IndexerWeights, arguments, taken | {"epsilon": NUMBERS})


def test_making_weights():
    arguments = {"dims": LAYER, "seed": 0, "n_heads": 3, "head_dim": 8, "rope": "half"}
    assert_takes(mla.IndexerWeights.random, arguments, {"seed": {"zero", "huge int", "64 bits"}})
    shapes = {"w_qb": (9, 24), "wk": (16, 8), "w_proj": (16, 3), "ln_gamma_k": (8,), "ln_beta_k": (8,)}
    arguments = {name: np.ones(shape, BF16) for name, shape in shapes.items()}
    arguments |= {"smooth_scales_cq": np.ones(9, np.float32), "rope": "half", "qk_rope_head_dim": 4}
    taken = dict.fromkeys(shapes, SAME_VALUES)
    taken["w_qb"] = SAME_VALUES
    taken["smooth_scales_cq"] = ANY_STRIDES | VECTOR | {"None"}
    assert_takes(mla.IndexerWeights.from_bf16, arguments, taken)
    assert_takes(mla.sylvester_hadamard, {"n": 8}, {})


def test_cache():
    cache = mla.IndexerCache(np.ones((2, 3, 1, 8), np.int8), np.ones((2, 3, 1, 1), np.float16))
    blocks = SAME_VALUES | {"every other row"}

    def make(k_cache, k_scale_cache, cache_mode):
        return mla.IndexerCache(k_cache, k_scale_cache, cache_mode)

    taken = {"k_cache": blocks | OTHER_COLUMNS | {"not aligned"}}
    taken["k_scale_cache"] = blocks | {"every other column", "columns backwards"}
    assert_takes(make, cache.arrays() | {"cache_mode": "PA_BSND"}, taken)
    assert_takes(mla.IndexerCache.allocate, {"dims": DIMS, "n_blocks": 2, "block_size": 2, "cache_mode": "PA_NZ"}, {})
    slots = np.array([0, 5, 2])
    assert_takes(cache.gather, {"slots": slots}, {"slots": SAME_VALUES | OTHER_ROWS | OTHER_COLUMNS | {"no columns"}})
