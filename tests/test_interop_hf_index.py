"""The int8 index of patched models: what it chooses, in which blocks its keys are, and when it is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, generate, load_relative, make_prompt, save_relative  # noqa: E402

from mla_numba.interop.hf import forward as module  # noqa: E402
from mla_numba.interop.hf.patched import patch  # noqa: E402

TOPK = 8


def load(saved, tmp_path, kind):
    if kind == "v32 sparse":
        return saved(kind).load()
    save_relative(tmp_path, kind)
    return load_relative(tmp_path, kind)


def rms(a, b):
    return (a - b).square().mean(-1).sqrt()


def selections(model, monkeypatch, numerics, tokens, **arguments):
    """What the first layer selects in a call, by the int8 index with "pypto" and by the model's own with "cann"."""
    found = []
    with patch(model, quant="b", block_size=8, numerics=numerics), monkeypatch.context() as changes:
        attention = model.model.layers[0].self_attn.forward
        for name in ("_selected", "_chosen"):
            own = getattr(attention, name)
            changes.setattr(attention, name, lambda *args, own=own: found.append(own(*args)) or found[-1])
        forward(model, tokens, **arguments)
    return found[0].numpy()


@pytest.mark.parametrize("kind", ["v32 sparse", "glm-5 sparse"])
def test_it_chooses_as_the_model_s_own_indexer(saved, tmp_path, kind, monkeypatch):
    """Of the keys that are seen; int8 decides otherwise between a few that are about as good."""
    model, tokens = load(saved, tmp_path, kind), make_prompt(3, 40)
    mask = torch.ones_like(tokens)
    mask[1, :5] = mask[2, :20] = 0
    own, ours = (selections(model, monkeypatch, n, tokens, attention_mask=mask) for n in ("cann", "pypto"))
    shared = []
    for b, first in enumerate((0, 5, 20)):
        for i in range(40):
            chosen = ours[b, i][ours[b, i] >= 0]
            assert len(chosen) == len(set(chosen)) == max(min(i - first + 1, TOPK), 0)
            assert ((first <= chosen) & (chosen <= i)).all()
            if i - first >= TOPK:
                shared.append(len(set(chosen) & set(own[b, i])) / TOPK)
    assert 0.9 <= np.mean(shared) < 1
    full = torch.ones(3, 1, 40, 40, dtype=torch.bool).tril() & mask[:, None, None].bool()
    positions = torch.arange(40)[None]
    again = selections(model, monkeypatch, "pypto", tokens, attention_mask=full, position_ids=positions)
    assert (again == ours).all()


def test_a_list_of_all_keys_chooses_as_causality_does(saved, monkeypatch):
    model, tokens = saved("v32 sparse").load(), make_prompt(2, 30)
    want = selections(model, monkeypatch, "pypto", tokens)
    listed = module.listed
    monkeypatch.setattr(module, "listed", lambda seen, batch, causal=True: listed(seen, batch, causal=False))
    assert (selections(model, monkeypatch, "pypto", tokens) == want).all()


@pytest.mark.parametrize("kind", ["v32 sparse", "glm-5 sparse"])
def test_steps_chunks_and_tiles_choose_the_same(saved, tmp_path, kind, monkeypatch):
    model, tokens = load(saved, tmp_path, kind), make_prompt(2, 26)
    patched = patch(model, quant="ab", block_size=4)
    want, cache = forward(model, tokens), patched.new_cache()
    noise = 0.03 * want.std()
    steps = torch.cat([forward(model, part, cache=cache) for part in tokens.split([11, 1, 1, 13], dim=1)], 1)
    assert rms(steps, want).median() <= noise
    assert rms(forward(model, tokens, use_cache=False), want).median() <= noise
    monkeypatch.setattr(module, "_TILE_BYTES", 1)
    assert rms(forward(model, tokens), want).median() <= noise


def test_keys_share_the_blocks_of_their_tokens(saved):
    """Beams, cropped and selected caches, growing and fixed ones."""
    model = saved("v32 sparse").load()
    tokens, more = make_prompt(3, 21), make_prompt(3, 9, seed=1)
    for n_blocks in (None, 40):
        patched = patch(model, quant="b", block_size=4, n_blocks=n_blocks)
        cache = patched.new_cache()
        forward(model, tokens, cache=cache)
        cache.crop(-4)
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 3, 0, 2]))
        chosen = [2, 0, 2, 0]
        got = forward(model, more[chosen], cache=cache)
        want = forward(model, torch.cat([tokens[:, :17], more], 1)[chosen])[:, 17:]
        assert rms(got, want).median() <= 0.03 * want.std()
        pool = cache.layers[0].pool
        fresh = patched.new_cache()
        forward(model, torch.cat([tokens[:, :17], more], 1)[chosen], cache=fresh)
        keys = [p.index_cache(0).gather(p.slots(0, 26).reshape(-1)) for p in (pool, fresh.layers[0].pool)]
        assert (keys[0] == keys[1]).all()
        beams = model.generate(tokens[:1], max_new_tokens=8, num_beams=3, do_sample=False)
        assert (
            beams.tolist()
            == model.generate(tokens[:1], max_new_tokens=8, num_beams=3, do_sample=False, use_cache=False).tolist()
        )
        cache.reset()
        assert cache.get_seq_length() == 0
        patched.unpatch()


def test_padding_leaves_zeros_and_changes_no_choice(saved):
    model = saved("v32 sparse").load()
    cache = patch(model, quant="b", block_size=4).new_cache()
    prompt, padded = make_prompt(1, 14), torch.nn.functional.pad(make_prompt(1, 14), (5, 0))
    mask = (padded > 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    got = forward(model, padded, attention_mask=mask, position_ids=positions, cache=cache)[:, 5:]
    assert rms(got, forward(model, prompt)).median() <= 0.03 * got.std()
    keys = cache.layers[1].pool.index_cache(1).gather(cache.layers[1].pool.slots(0, 19)[0])
    assert np.any(keys, axis=-1).tolist() == [False] * 5 + [True] * 14


def test_what_it_refuses(saved):
    model = saved("v32 sparse").load(attn_implementation="eager")
    indexer = model.model.layers[1].self_attn.indexer
    handle = indexer.wk.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"^model\.layers\.1\.self_attn\.indexer\.wk: expected no forward hooks"):
        patch(model, quant="b")
    handle.remove()
    indexer.index_topk = 4097
    with pytest.raises(ValueError, match=r"indexer\.index_topk: expected at most 4096, got 4097"):
        patch(model, quant="b")
    indexer.index_topk = TOPK
    patched, tokens = patch(model, quant="b"), make_prompt(1, 6)
    bias = torch.full((1, 1, 6, 6), -1.0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="attention_mask: expected bool, or 0 and the least number"):
        forward(model, tokens, attention_mask=bias)
    assert "indexer.w_qb" in patched.quantization[1].errors
    want = forward(model, tokens)
    indexer.wq_b.weight.data.mul_(2)
    with pytest.raises(ValueError, match=r"self_attn\.indexer\.wq_b\.weight: expected the values that were packed"):
        forward(model, tokens)
    patched.refresh()
    assert forward(model, tokens).shape == want.shape
    tokens, _ = generate(model, make_prompt(1, 12), 4)
    assert tokens.shape == (1, 4)
