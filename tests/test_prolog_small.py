"""Small and odd dimensions against the reference, bit for bit: edges of every tile, all modes, threads and layouts."""

import numpy as np
import pytest
from helpers import MODES, THREADS, assert_exact, make_weights, most_workers
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_numba import MlaDims
from mla_numba.kernels import ISA

MR, NR = ISA.mr, ISA.nr
TOKENS = sorted({0, 1, 2, 3, MR - 1, MR, MR + 1, 3 * MR + 1})

# hidden, heads, q_lora_rank, kv_lora_rank, nope, rope: multiples of no tile, single elements, one more than a tile
DIMS = [
    MlaDims(2, 1, 1, 4, 1, 2),
    MlaDims(6, 3, 5, 8, 3, 6),
    MlaDims(50, 5, 17, 20, 10, 10),
    MlaDims(64, 1, 33, 36, 33, 34),
    MlaDims(130, 3, 50, 68, 10, 2),
    MlaDims(130, 1, 64, 64, 32, 32),
    MlaDims(34, 5, NR + 1, NR + 4, NR - 1, 10),
]
IDS = ["-".join(map(str, (d.hidden_size, d.q_lora_rank, d.kv_lora_rank))) for d in DIMS]


@pytest.mark.parametrize("t", TOKENS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dims", DIMS, ids=IDS)
def test_edges_of_the_tiles(dims, mode, t):
    assert_exact(make_weights(dims, mode, seed=t), t, block_size=3, n_blocks=5, seed=t)


@pytest.mark.parametrize("t", TOKENS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dims", [DIMS[0], DIMS[4]], ids=[IDS[0], IDS[4]])
def test_edges_of_the_tiles_in_the_numerics_of_cann(dims, mode, t):
    assert_exact(make_weights(dims, mode, seed=t), t, block_size=3, n_blocks=5, seed=t, numerics="cann")


@pytest.mark.parametrize("kv_lora_rank", [1, 3, 5, 33, 50, NR - 1, NR + 1])
@pytest.mark.parametrize("quant", ["none", "a"])
def test_unquantised_latent_of_any_length(quant, kv_lora_rank):
    dims = MlaDims(50, 3, 17, kv_lora_rank, 3, 6)
    assert_exact(make_weights(dims, quant), MR + 1)


@pytest.mark.parametrize("hidden_size", [1, 3, 63, 131])
@pytest.mark.parametrize("quant", ["a", "ab"])
def test_odd_hidden_size_where_its_halves_are_not_summed_apart(quant, hidden_size):
    dims = MlaDims(hidden_size, 3, 17, 20, 3, 6)
    assert_exact(make_weights(dims, quant), MR + 1)


@pytest.mark.parametrize("hidden_size", range(2, 36, 2))
@pytest.mark.parametrize("mode", ["none", "ab"])
def test_every_length_of_k_around_a_vector(mode, hidden_size):
    dims = MlaDims(hidden_size, 2, hidden_size + 1, 4 * hidden_size, hidden_size - 1, hidden_size)
    assert_exact(make_weights(dims, mode, seed=hidden_size), 3)


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 128])
@pytest.mark.parametrize("quant", ["none", "b"])
def test_block_sizes(quant, block_size):
    n_blocks = 64 // block_size + 1
    weights = make_weights(MlaDims(50, 3, 17, 20, 10, 6), quant)
    assert_exact(weights, 40, n_blocks=n_blocks, block_size=block_size)


@pytest.mark.parametrize(
    ("kv_lora_rank", "rope", "numerics"), [(32, 16, "pypto"), (64, 48, "pypto"), (96, 16, "pypto"), (64, 32, "cann")]
)
@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("mode", MODES)
def test_fractal_caches(mode, block_size, kv_lora_rank, rope, numerics):
    weights = make_weights(MlaDims(50, 3, 17, kv_lora_rank, 10, rope), mode)
    cache = {"n_blocks": 64 // block_size, "block_size": block_size, "cache_mode": "PA_NZ"}
    assert_exact(weights, MR + 1, **cache, numerics=numerics)


@pytest.mark.parametrize(  # of 5 tokens one thread makes as much as of several
    ("t", "numerics"), [(max(MR + 1, 7), "pypto"), (40, "pypto"), (40, "cann")]
)
@pytest.mark.parametrize("mode", MODES)
def test_work_that_is_shared_among_threads(mode, t, numerics):
    weights = make_weights(MlaDims(514, 5, 101, 132, 33, 34), mode, seed=t)
    prologs = assert_exact(weights, t, n_blocks=3, block_size=16, numerics=numerics)
    assert [most_workers(p, t) for p in prologs] == list(THREADS)


@pytest.mark.parametrize("seed", range(200))
def test_random_dimensions(seed):
    rng = np.random.default_rng((seed, 1))
    mode = MODES[seed % len(MODES)]
    groups = 4 if "b" in mode else 1
    dims = MlaDims(
        hidden_size=2 * int(rng.integers(1, 100)),
        num_attention_heads=int(rng.choice([1, 2, 3, 5])),
        q_lora_rank=int(rng.integers(1, 100)),
        kv_lora_rank=groups * int(rng.integers(1, 120 // groups)),
        qk_nope_head_dim=int(rng.integers(1, 50)),
        qk_rope_head_dim=2 * int(rng.integers(1, 20)),
    )
    block_size = int(rng.choice([1, 2, 3, 16, 128]))
    t = int(rng.integers(0, 4 * MR))
    phase = str(rng.choice(["decode", "prefill"]))
    n_blocks = 40 // block_size + 1
    assert_exact(make_weights(dims, mode, seed), t, n_blocks=n_blocks, block_size=block_size, seed=seed, phase=phase)


@st.composite
def small_calls(draw):
    mode = draw(st.sampled_from(MODES))
    groups = 4 if "b" in mode else 1
    dims = MlaDims(
        hidden_size=2 * draw(st.integers(1, 40)),
        num_attention_heads=draw(st.integers(1, 6)),
        q_lora_rank=draw(st.integers(1, 70)),
        kv_lora_rank=groups * draw(st.integers(1, 20)),
        qk_nope_head_dim=draw(st.integers(1, 36)),
        qk_rope_head_dim=2 * draw(st.integers(1, 18)),
    )
    return mode, dims, draw(st.integers(0, 3 * MR + 1)), draw(st.integers(1, 9)), draw(st.integers(0, 99))


@settings(max_examples=100)
@given(small_calls())
def test_any_call(call):
    mode, dims, t, block_size, seed = call
    assert_exact(make_weights(dims, mode, seed), t, n_blocks=4, block_size=block_size, seed=seed)
