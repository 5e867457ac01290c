"""A model that transformers saved, read back: the prolog's outputs are its attention's own queries, keys and values."""

import numpy as np
import pytest
from helpers import BF16, make_cache

from mla_numba import Checkpoint, RopeTable
from mla_numba.oracle.bits import reference_run

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DeepseekV3Config, DeepseekV3ForCausalLM  # noqa: E402
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs  # noqa: E402

T = 5


@pytest.fixture(params=[True, False], ids=["pairs", "halves"])
def model(request, tmp_path):
    """A random one-layer model and its folder; RMSNorm weights are not all 1."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        hidden_size=64, num_attention_heads=3, q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=12, num_hidden_layers=1, first_k_dense_replace=1, intermediate_size=16, moe_intermediate_size=8,
        n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=1, vocab_size=32,
        rope_interleave=request.param, initializer_range=0.2,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).to(torch.bfloat16)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for norm in (attention.q_a_layernorm, attention.kv_a_layernorm):
            norm.weight.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    # Computed in float32, from bf16 weights; not by model.float(), whose rope would keep frequencies rounded to bf16.
    return DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), tmp_path


def of(tensor):
    return tensor.detach().numpy()


def assert_close(got, want):
    """To bf16 noise: three roundings, relative to the largest value."""
    assert got.shape == want.shape
    assert np.abs(got.astype(np.float32) - want).max() <= 2.0**-6 * np.abs(want).max()


def test_projections_are_those_of_the_model(model):
    model, folder = model
    attention, config = model.model.layers[0].self_attn, model.config
    checkpoint = Checkpoint(folder)
    weights, w_uv = checkpoint.load_layer(0, "none")
    dims = checkpoint.dims
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, dims.hidden_size), dtype=np.float32).astype(BF16)
    positions = np.array([0, 1, 7, 50, 1000])
    cos, sin = RopeTable.from_hf(checkpoint.config).at(positions)
    cache = make_cache(dims, False, 1, T)
    got = reference_run(weights, x, cos, sin, np.arange(T), cache)

    hidden = torch.from_numpy(x.astype(np.float32))[None]
    embedded = model.model.rotary_emb(hidden, torch.from_numpy(positions)[None])
    q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(hidden)))
    q = q.view(1, T, dims.num_attention_heads, -1).transpose(1, 2)
    q_nope, q_rope = q.split([dims.qk_nope_head_dim, dims.qk_rope_head_dim], dim=-1)
    latent, k_rope = attention.kv_a_proj_with_mqa(hidden).split([dims.kv_lora_rank, dims.qk_rope_head_dim], dim=-1)
    latent = attention.kv_a_layernorm(latent)
    rotate = theirs.apply_rotary_pos_emb_interleave if config.rope_interleave else theirs.apply_rotary_pos_emb
    q_rope, k_rope = rotate(q_rope, k_rope[:, None], *embedded)
    keys, values = attention.expand_kv(latent[:, None], k_rope)

    assert_close(got.kv_cache[0, :, 0], of(latent)[0])
    assert_close(got.kr_cache[0, :, 0], of(k_rope)[0, 0])
    assert_close(got.query_rope, of(q_rope)[0].transpose(1, 0, 2))
    scores = np.einsum("tnc,sc->nts", got.query_nope.astype(np.float32), of(latent)[0])
    assert_close(scores, of(q_nope @ keys[..., : dims.qk_nope_head_dim].transpose(2, 3))[0])
    assert_close(np.einsum("sc,ncv->nsv", of(latent)[0], w_uv.astype(np.float32)), of(values)[0])
