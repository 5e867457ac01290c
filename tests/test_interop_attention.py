"""Attention over latents against the sums written out in float64."""

import platform

import numpy as np
import pytest
from helpers import BF16, run_python

from mla_numba import MlaDims
from mla_numba.interop.hf.blocks import BlockPool

torch = pytest.importorskip("torch")

from mla_numba.interop.hf import latent_attention as module  # noqa: E402
from mla_numba.interop.hf.latent_attention import latent_attention, product_dtype, read_rows  # noqa: E402

B, S, N, C, R, L, V = 2, 5, 3, 16, 4, 9, 6
SCALE = 0.3


def normal(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def arguments():
    return {
        "query_nope": normal(B, S, N, C, seed=1),
        "query_rope": normal(B, S, N, R, seed=2),
        "latents": normal(B, L, C, seed=3).float(),
        "k_rope": normal(B, L, R, seed=4).float(),
        "w_uv": normal(N, C, V, seed=5),
        "scale": SCALE,
    }


def expected(query_nope, query_rope, latents, k_rope, w_uv, scale, added):
    """Values (B, S, N * V) and weights; `added` broadcasts to (B, N, S, L)."""
    q, r, keys, rope, up = (t.double() for t in (query_nope, query_rope, latents, k_rope, w_uv))
    scores = torch.einsum("bsnc,blc->bnsl", q, keys) + torch.einsum("bsnr,blr->bnsl", r, rope)
    weights = torch.softmax(scores * scale + added, dim=-1)
    values = torch.einsum("bnsl,blc,ncv->bsnv", weights, keys, up)
    return values.flatten(2), weights


def masks():
    generator = torch.Generator().manual_seed(9)
    causal = torch.arange(L) <= torch.arange(L - S, L)[:, None]
    yield "causal", None, causal[None, None]
    for heads in (1, N):
        seen = torch.rand(B, heads, S, L, generator=generator) < 0.7
        seen[..., 0] = True
        yield f"bool, {heads} heads", seen, seen
    yield "one for all", causal[None, None], causal[None, None]
    yield "floats", torch.randn(B, 1, S, L, generator=generator).bfloat16(), None


@pytest.mark.parametrize("score_bytes", [1, 4 * B * N * L * 2, 1 << 20])
@pytest.mark.parametrize(("mask", "seen"), [pytest.param(m, s, id=name) for name, m, s in masks()])
def test_values_and_weights(arguments, mask, seen, score_bytes, monkeypatch):
    monkeypatch.setattr(module, "_SCORE_BYTES", score_bytes)
    added = mask.double() if seen is None else torch.zeros(seen.shape).double().masked_fill(~seen, -torch.inf)
    want, want_weights = expected(**arguments, added=added)
    got, weights = latent_attention(**arguments, mask=mask, keep_weights=True)
    # The sums are rounded to bf16, and so are the products of C of them with w_uv: 2^-8 of either at most.
    largest = (arguments["w_uv"].double().abs().sum(1) * arguments["latents"].double().abs().max()).max()
    assert (got.double() - want).abs().max() <= 2**-8 * (largest / C**0.5 + want.abs().max())
    assert (weights.double() - want_weights).abs().max() <= 2**-8
    alone, none = latent_attention(**arguments, mask=mask)
    assert none is None
    assert (alone.double() - want).abs().max() <= 2**-8 * (largest / C**0.5 + want.abs().max())


def test_float32_values_of_w_uv_and_autocast_stay_within_the_rounding(arguments):
    got, _ = latent_attention(**arguments, mask=None)
    wide, _ = latent_attention(**arguments | {"w_uv": arguments["w_uv"].float()}, mask=None)
    assert wide.dtype == torch.bfloat16
    assert (wide.float() - got.float()).abs().max() <= 2**-8 * got.float().abs().max()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(latent_attention(**arguments, mask=None)[0], got)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a setting of oneDNN on x86")
def test_products_are_float32_where_onednn_has_none_of_bf16():
    probe = "from mla_numba.interop.hf.latent_attention import product_dtype\nprint(product_dtype())"
    assert run_python("-c", probe, ONEDNN_MAX_CPU_ISA="AVX2").strip() == "torch.float32"
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert product_dtype() == (torch.bfloat16 if has_bf16 else torch.float32)


def test_a_query_that_sees_nothing_is_finite(arguments):
    got, _ = latent_attention(**arguments, mask=torch.zeros(B, 1, S, L, dtype=torch.bool))
    assert torch.isfinite(got).all()
    got, _ = latent_attention(**arguments, mask=torch.full((B, 1, S, L), torch.finfo(torch.bfloat16).min))
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("order", [[[0, 1, 2], [3, 4, 5]], [[5, 0, 3], [1, 4, 2]]], ids=["in order", "scattered"])
def test_rows_are_those_of_gather(quantized, order):
    pool = BlockPool(MlaDims(32, 1, 8, C, 4, R), n_layers=1, block_size=3, n_blocks=6, quantized=quantized)
    pool.tables = np.array(order)
    rng = np.random.default_rng(0)
    cache = pool.cache(0)
    for array in cache.arrays().values():
        array[...] = rng.integers(-127, 128, array.shape) if array.dtype == np.int8 else rng.normal(size=array.shape)
    latents, k_rope = read_rows(pool, 0, 7)
    want = cache.gather(pool.slots(0, 7).reshape(-1))
    assert latents.dtype == k_rope.dtype == torch.float32
    assert (latents.numpy().reshape(-1, C) == want.kv.astype(np.float32)).all()
    assert (k_rope.numpy().astype(BF16).reshape(-1, R) == want.kr).all()
