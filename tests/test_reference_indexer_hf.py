"""The references of the indexer against transformers' indexers, which have no rotation and no int8.

So they are close and not equal; a wrong order of rope columns, norm, factor or mask would be far from them.
"""

from dataclasses import replace

import numpy as np
import pytest
from helpers import BF16

import mla_numba as mla
from mla_numba.reference import (
    index_scores,
    indexer_prolog_reference,
    lightning_index_reference,
    quant,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

T, HIDDEN, Q_RANK, ROPE = 48, 96, 64, 16
N_HEADS, HEAD_DIM = 4, 32
DIMS = {
    "hidden_size": HIDDEN, "q_lora_rank": Q_RANK, "qk_rope_head_dim": ROPE, "index_n_heads": N_HEADS,
    "index_head_dim": HEAD_DIM, "index_topk": T, "num_attention_heads": 4,
}  # fmt: skip


def make_indexer(family):
    """transformers' module with bf16 values, and the rope style that its family has."""
    if family == "deepseek_v32":
        from transformers import DeepseekV32Config as Config
        from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer as Indexer
    else:
        from transformers import GlmMoeDsaConfig as Config
        from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaIndexer as Indexer
    torch.manual_seed(0)
    module = Indexer(Config(**DIMS), 0)
    with torch.no_grad():
        module.k_norm.weight.normal_(1, 0.1)
        module.k_norm.bias.normal_(0, 0.1)
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return module


def to_weights(module, rope):
    def bf16(parameter):
        return np.ascontiguousarray(parameter.detach().numpy().T).astype(BF16)

    weights = [bf16(p) for p in (module.wq_b.weight, module.wk.weight, module.weights_proj.weight)]
    norm = [bf16(p) for p in (module.k_norm.weight, module.k_norm.bias)]
    return mla.IndexerWeights.from_bf16(*weights, *norm, rope=rope, qk_rope_head_dim=ROPE)


@pytest.fixture(params=[("deepseek_v32", "half"), ("glm_moe_dsa", "interleaved")], ids=lambda param: param[0])
def case(request, monkeypatch):
    """Scores (T, T) of transformers, what it selects, and the arguments of ours."""
    family, rope = request.param
    module = make_indexer(family)
    rng = np.random.default_rng(1)
    x, q = (rng.standard_normal((T, n), dtype=np.float32).astype(BF16) for n in (HIDDEN, Q_RANK))
    cos, sin = mla.RopeTable((100 ** -np.arange(0, 1, 2 / ROPE)).astype(np.float32)).at(np.arange(T))
    seen, topk = [], torch.Tensor.topk

    def recording(scores, *arguments, **settings):
        seen.append(scores[0].numpy().copy())
        return topk(scores, *arguments, **settings)

    monkeypatch.setattr(torch.Tensor, "topk", recording)
    given = [torch.from_numpy(a.astype(np.float32))[None] for a in (x, q, cos, sin)]
    mask = torch.full((T, T), -torch.inf).triu(1)[None]
    indices = module(given[0], given[1], (given[2], given[3]), mask, torch.arange(T)[None])
    return seen[0], indices[0].numpy(), to_weights(module, rope), (x, *quant(q), cos, sin)


def run(weights, inputs):
    """An output of ours, the keys that it wrote, and the blocks where they are."""
    table = np.random.default_rng(2).permutation(T // 8)
    slots = table.repeat(8) * 8 + np.arange(T) % 8
    cache = mla.IndexerCache.allocate(weights.dims, T // 8, 8)
    x, codes, scale, cos, sin = inputs
    found = indexer_prolog_reference(weights, x, codes, scale, cos, sin, slots, cache)
    return mla.IndexerOutput(*found[:3]), mla.IndexerCache(found.k_cache, found.k_scale_cache), table


def relative_error(case, weights):
    """Root of the mean square of differences over that of the scores, where a key is seen."""
    want, _, _, inputs = case
    out, cache, table = run(weights, inputs)
    keys, scale = cache.k[table].reshape(T, -1), cache.k_scale[table].reshape(T)
    scores = [index_scores(q, s.reshape(-1), w, keys, scale) for q, s, w in zip(*out, strict=True)]
    seen = np.tril(np.ones((T, T), bool))
    difference = (np.array(scores) * 2.0**11 - want)[seen]
    return np.sqrt(np.mean(difference**2) / np.mean(want[seen] ** 2))


def test_scores(case):
    assert relative_error(case, case[2]) < 0.03


def test_the_other_rope_is_far(case):
    other = {"half": "interleaved", "interleaved": "half"}[case[2].rope]
    assert relative_error(case, replace(case[2], rope=other)) > 0.2


def test_selected_keys(case):
    _, indices, weights, inputs = case
    out, cache, table = run(weights, inputs)
    index = lightning_index_reference(out, cache, table[None], np.array([T]), k=8)
    for token in range(T):
        n = min(token + 1, 8)
        assert (index[token, n:] == -1).all()
        common = {*index[token, :n].tolist()} & {*indices[token, :n].tolist()}
        assert len(common) >= n - 1, token
