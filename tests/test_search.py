"""Search for faults: whole calls of every kind, drawn together, against the reference bit for bit.

In CI 3000 calls, the same ones on every machine. A nightly-sized search draws 30,000 new ones:
`python -m pytest tests/test_search.py --hypothesis-profile=nightly` (or MLA_HYPOTHESIS_PROFILE=nightly). The header of
the run says its seed; `--hypothesis-seed` repeats it.
"""

from dataclasses import dataclass, replace

import numpy as np
from helpers import (
    MODES,
    THREADS,
    assert_none,
    assert_same_bits,
    make_cache,
    make_inputs,
    make_output,
    make_weights,
    random_bytes,
)
from helpers.tile_settings import pass_settings, tile_configs
from hypothesis import given, settings
from hypothesis import strategies as st

import mla_numba as mla
from mla_numba import (
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    PagedCache,
    reference,
)
from mla_numba.kernels import ISA
from mla_numba.oracle.bits import check_output, reference_run

SCALES = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")
# Many of the drawn lengths are multiples of a tile, or differ from one by 1.
near_tiles = st.sampled_from([s + d for s in (ISA.nr, ISA.nr // 2, 2 * ISA.nr) for d in (-1, 0, 1)])


def lengths(most):
    return st.one_of(st.integers(1, most), near_tiles)


def scaled(strategy, factor):
    return strategy.map(lambda n: n * factor)


@dataclass(frozen=True)
class Layout:
    """How the caches lie: mode and block size, whether blocks and slots have gaps between, fp16 scales."""

    cache_mode: str
    n_blocks: int
    block_size: int
    gap: int
    fp16: bool

    def make(self, dims, quantized, seed):
        """A buffer of random bytes for each array, and the cache within."""
        whole = make_cache(dims, quantized, self.n_blocks * (1 + self.gap), self.block_size, self.cache_mode, seed)
        arrays = list(whole.arrays().values())
        if quantized and self.fp16:
            arrays[2] = random_bytes(np.random.default_rng(seed), np.empty(arrays[2].shape, np.float16))
        return arrays, self.cache(arrays)

    def cache(self, arrays):
        parts = [a[:: 1 + self.gap] for a in arrays]
        return PagedCache(*parts, *[None] * (3 - len(parts)), self.cache_mode)


@st.composite
def calls(draw):
    mode = draw(st.sampled_from(MODES))
    quantized = "b" in mode.split()[0]
    cache_mode = draw(st.sampled_from(["PA_BSND", "PA_NZ"]))
    c0 = 1 if cache_mode == "PA_BSND" else 32
    group = 4 if quantized else 1
    hidden = draw(lengths(140)) if "a" in mode.split()[0] else 2 * draw(lengths(70))
    dims = MlaDims(
        hidden_size=hidden,
        num_attention_heads=draw(st.integers(1, 5)),
        q_lora_rank=draw(lengths(90)),
        kv_lora_rank=draw(st.integers(1, 4)) * c0 if c0 > 1 else draw(scaled(st.integers(1, 70 // group), group)),
        qk_nope_head_dim=draw(lengths(50)),
        qk_rope_head_dim=draw(st.integers(1, 3)) * 16 if c0 > 1 else 2 * draw(st.integers(1, 20)),
    )
    layout = Layout(
        cache_mode, draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(0, 2)), draw(st.booleans())
    )
    slot = st.integers(-1, layout.n_blocks * layout.block_size - 1)
    slots = draw(st.lists(slot, max_size=4 * ISA.mr + 2))
    return mode, dims, layout, slots, draw(st.integers(0, 99))


prolog_settings = st.fixed_dictionaries(
    {
        "n_threads": st.sampled_from(THREADS),
        "phase": st.sampled_from(["decode", "prefill"]),
        "tile_config": st.one_of(st.none(), tile_configs),
        "options": pass_settings,
    }
)


@settings(max_examples=20 * settings.default.max_examples)
@given(calls(), prolog_settings, st.sampled_from([np.int64, np.int32]), st.booleans())
def test_any_call_of_a_prolog(call, given_settings, index_type, with_out):
    mode, dims, layout, slots, seed = call
    weights = make_weights(dims, mode, seed)
    quantized = "b" in weights.quant
    inputs = make_inputs(dims, len(slots), 1, seed)._replace(cache_index=np.array(slots, index_type))
    buffers, cache = layout.make(dims, quantized, seed)
    want = reference_run(weights, *inputs, cache)
    expected = [b.copy() for b in buffers]
    for name, array in layout.cache(expected).arrays().items():
        array[...] = getattr(want, name)
    out = make_output(dims, quantized, len(slots)) if with_out else None
    got = MlaProlog(weights, **given_settings)(*inputs, cache, out)
    assert_none(check_output(got, cache, want))
    for i, (buffer, whole) in enumerate(zip(buffers, expected, strict=True)):
        assert_same_bits(f"buffer {i}, gaps included", buffer, whole)


@settings(max_examples=5 * settings.default.max_examples)
@given(calls(), st.sampled_from(["p", "d"]), st.one_of(st.none(), tile_configs), st.booleans(), st.booleans())
def test_any_call_of_an_entry_point(call, phase, tile_config, packed, in_place):
    mode, dims, layout, slots, seed = call
    quantized = "b" in mode.split()[0]
    if not packed:  # the 26 arguments have no room for the scales of the other modes
        mode = "b" if quantized else "none"
        dims = replace(dims, hidden_size=dims.hidden_size + dims.hidden_size % 2)
    weights = make_weights(dims, mode, seed)
    inputs = make_inputs(dims, len(slots), 1, seed)._replace(cache_index=np.array(slots, np.int64))
    _, source = layout.make(dims, quantized, seed)
    target = source if in_place else layout.make(dims, quantized, seed + 1)[1]
    want = reference_run(weights, *inputs, source)
    out = make_output(dims, quantized, len(slots))
    ours = [weights.w_uq_qr, weights.dequant_scale_w_uq_qr, weights.w_uk, weights.w_dkv_kr, weights.gamma_cq]
    ours = [weights.w_dq, *ours, weights.gamma_ckv] if not packed else [weights.pack(), *[None] * 6]
    entry = {"p": mla.mla_prolog_quant_p, "d": mla.mla_prolog_quant_d}[phase]
    entry(
        inputs.x, *ours, *inputs[1:], source.kv, source.kr, source.k_scale, out.q_norm, out.q_norm_scale,
        out.query_nope, out.query_rope, target.kv, target.kr, target.k_scale, weights.epsilon_cq, weights.epsilon_ckv,
        layout.cache_mode, tile_config,
    )  # fmt: skip
    assert_none(check_output(out, target, want))


@settings(max_examples=5 * settings.default.max_examples)
@given(calls(), st.one_of(st.none(), tile_configs))
def test_any_call_of_the_projections(call, tile_config):
    mode, dims, _, slots, seed = call
    dims = replace(dims, num_attention_heads=1)
    weights = make_weights(dims, mode, seed)
    x = make_inputs(dims, len(slots), 1, seed).x
    arguments = (x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, weights.epsilon_cq)
    scales = {name: getattr(weights, name) for name in SCALES}
    want = reference.pre_compute_2d(*arguments, **scales)
    got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales), tile_config)
    for i, (g, w) in enumerate(zip(got, want, strict=False)):
        assert_same_bits(f"result {i}", g, w)
