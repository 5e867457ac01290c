"""DeepSeek's dimensions against the reference, bit for bit.

It is computed once, for 128 tokens: a token's bits don't depend on its batch.
"""

import numpy as np
import pytest
from helpers import THREADS, expect_rows, fullsize, make_cache, make_call

from mla_numba import MlaDims, MlaProlog

pytestmark = pytest.mark.fullsize
DIMS = MlaDims.deepseek_v32()
BLOCKS, BLOCK_SIZE = 2, 128
SPREAD_TOKENS = (0, 1, 2, 3, 7, 8, 31, 33, 128)


@pytest.fixture(scope="module", params=["b", "none"])
def case(request):
    full = fullsize(request.param)
    return full, {n: MlaProlog(full.weights, n_threads=n) for n in THREADS}


def run_tokens(full, prolog, tokens, cache_mode="PA_BSND"):
    """A call of the tokens in this order, with a padding and scattered slots, compared whole."""
    t = len(tokens)
    rng = np.random.default_rng(t)
    slots = rng.permutation(BLOCKS * BLOCK_SIZE)[:t]
    if t > 2:
        slots[t // 2] = -1
    call = make_call(DIMS, prolog.quantized, t, BLOCKS, BLOCK_SIZE, cache_mode, seed=t)
    want = expect_rows(full, tokens, slots, call.cache)
    inputs = full.inputs
    prolog(inputs.x[tokens], inputs.cos[tokens], inputs.sin[tokens], slots, call.cache, call.out)
    call.assert_equals(want)


@pytest.mark.parametrize("t", SPREAD_TOKENS)
@pytest.mark.parametrize("threads", THREADS)
def test_batches(case, threads, t):
    full, prologs = case
    run_tokens(full, prologs[threads], np.random.default_rng(t).permutation(128)[:t])


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_phases(case, phase):
    full, prologs = case
    run_tokens(full, MlaProlog(prologs[1].weights, phase), np.arange(33))


@pytest.mark.parametrize("token", [0, 77, 127])
def test_one_token_has_the_same_bits_alone_and_in_any_batch(case, token):
    full, prologs = case
    threads = THREADS[-1]
    outputs = []
    for t in (1, 7, 128):
        tokens = (token + np.arange(t)) % 128
        cache = make_cache(DIMS, prologs[threads].quantized, BLOCKS, BLOCK_SIZE, seed=token)
        inputs = full.inputs
        slots = np.arange(t) + 5
        out = prologs[threads](inputs.x[tokens], inputs.cos[tokens], inputs.sin[tokens], slots, cache)
        rows = [a[0] for a in out if a is not None] + [a.reshape(-1, a.shape[3])[5] for a in cache.arrays().values()]
        outputs.append([row.tobytes() for row in rows])
    assert outputs[0] == outputs[1] == outputs[2]


def test_outputs_of_its_own_memory_have_the_same_bits(case):
    full, prologs = case
    inputs = full.inputs
    cache = make_cache(DIMS, prologs[1].quantized, BLOCKS, BLOCK_SIZE)
    out = prologs[THREADS[-1]](*inputs, cache)
    want = expect_rows(full, np.arange(128), inputs.cache_index, cache)
    for name, array in out._asdict().items():
        other = getattr(want, name)
        assert (array is None) == (other is None), name
        assert array is None or array.tobytes() == other.tobytes(), name
