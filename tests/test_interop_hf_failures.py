"""A call of a patched model that fails, or is interrupted, leaves the cache as it was."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, make_prompt  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from mla_numba.interop.hf.patched import patch  # noqa: E402


def interrupt(*_):
    raise KeyboardInterrupt


def contents(cache):
    """Lengths, tables, and the indexers' keys of all layers."""
    indexers = [layer.indexer for layer in cache.layers]
    keys = [None if i is None or i.indexer_keys is None else i.indexer_keys.tolist() for i in indexers]
    return [layer.length for layer in cache.layers], cache.pool.tables.tolist(), keys


PLACES = {
    "before the first layer": "model.layers.0.input_layernorm",
    "after the last attention product": "model.layers.1.self_attn.o_proj",
    "between layers": "model.layers.1.mlp",
    "after the layers": "model.norm",
    "after the model": "lm_head",
}


@pytest.mark.parametrize(
    ("kind", "place"),
    [("v32", "the indexer"), *((kind, place) for kind in ("dense", "v32") for place in (*PLACES, "the prolog"))],
)
def test_an_interrupt_leaves_the_cache_as_it_was(saved, kind, place):
    """The retry, by two sequences that share what was there, has the logits of a run without the interrupt."""
    model = saved(kind).load()
    patched = patch(model, block_size=4)
    first, more = make_prompt(1, 5), make_prompt(2, 9, seed=1)

    def run(fails):
        cache = patched.new_cache()
        forward(model, first, cache=cache)
        if fails:
            before = contents(cache)
            if place == "the indexer":  # its keys are in then
                hook = model.model.layers[1].self_attn.indexer.register_forward_hook(interrupt)
            elif place == "the prolog":
                hook = model.model.layers[1].self_attn.forward.prolog.register_forward_hook(interrupt)
            else:
                hook = model.get_submodule(PLACES[place]).register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                forward(model, more[:1], cache=cache)
            hook.remove()
            assert contents(cache) == before
        cache.batch_repeat_interleave(2)
        return forward(model, more, cache=cache)

    assert torch.equal(run(True), run(False))


def test_the_first_call_of_a_cache_and_errors_of_every_kind(saved):
    model = saved("v32").load()
    unpatched = forward(model, make_prompt(1, 5))
    patched = patch(model, block_size=4)
    tokens = make_prompt(1, 5)
    own, fresh = patched.new_cache(), DynamicCache(config=model.config)
    hook = model.model.layers[2].mlp.register_forward_hook(interrupt)
    for cache in (own, fresh):
        with pytest.raises(KeyboardInterrupt):
            forward(model, tokens, cache=cache)
        assert cache.get_seq_length() == 0
    hook.remove()
    assert own.pool.tables is None
    with pytest.raises(RuntimeError):
        forward(model, tokens, cache=own, position_ids=torch.arange(3)[None])
    assert own.pool.tables is None
    assert torch.equal(forward(model, tokens, cache=own), forward(model, tokens))
    patched.unpatch()
    assert torch.equal(forward(model, tokens, cache=fresh), unpatched)  # no paged layers were left in it


def test_an_attention_that_is_called_by_itself(saved):
    model = saved("v32").load()
    patched = patch(model, block_size=4)
    cache = patched.new_cache()
    forward(model, make_prompt(1, 5), cache=cache)
    before = contents(cache)
    attention = model.model.layers[1].self_attn
    x, mask = torch.zeros(1, 4, 128, dtype=torch.bfloat16), torch.ones(1, 1, 4, 9, dtype=torch.bool)
    tables = (torch.ones(1, 4, 16, dtype=torch.bfloat16),) * 2
    hook = attention.o_proj.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        attention(x, tables, mask, cache=cache)
    hook.remove()
    assert contents(cache) == before


def test_rows_of_padding_hold_nothing_of_a_call_that_failed(saved):
    """NaN that such a call wrote behind the last token would spread through products with weights of zero."""
    model = saved("dense").load()
    cache = patch(model, block_size=8).new_cache()
    tokens = make_prompt(1, 6)
    forward(model, tokens[:, :3], cache=cache)
    hook = model.lm_head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        forward(model, None, inputs_embeds=torch.full((1, 3, 128), torch.nan, dtype=torch.bfloat16), cache=cache)
    hook.remove()
    mask = torch.tensor([[1, 1, 1, 0, 1, 1]])
    assert torch.isfinite(forward(model, tokens[:, 3:], cache=cache, attention_mask=mask)[:, 1:]).all()
    rows = cache.pool.cache(0).kr[cache.pool.tables[0, 0]].astype(np.float32)
    assert rows.any(axis=(1, 2)).tolist()[:6] == [True, True, True, False, True, True]
