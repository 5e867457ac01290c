"""Which keys a query attends to, by mask and selection, and that nothing else is computed where a list says it all."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, make_prompt  # noqa: E402

from mla_numba.interop.hf import forward as module  # noqa: E402
from mla_numba.interop.hf.masks import hide_others, listed, seen_keys, sees_later  # noqa: E402
from mla_numba.interop.hf.patched import patch  # noqa: E402

LEAST = torch.finfo(torch.bfloat16).min


def causal(n, length):
    return torch.ones(n, length, dtype=torch.bool).tril(length - n)


def as_floats(seen, hidden=LEAST):
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, hidden)


def rms(a, b):
    return (a - b).square().mean(-1).sqrt()


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [5, 8])
@pytest.mark.parametrize("floats", [False, True])
def test_the_first_later_key_is_found(step, length, floats):
    assert not sees_later(None, step)
    for row in range(5):
        for column in range(length):
            seen = causal(5, length)
            seen[row, column] = True
            mask = seen[None, None].expand(2, 1, 5, length)
            assert sees_later(as_floats(mask) if floats else mask, step) == (column > length - 5 + row)


def test_masks_that_show_and_hide_and_those_that_say_more():
    seen = (torch.arange(2 * 3 * 7) % 3 > 0).view(2, 1, 3, 7)
    for mask in (seen, as_floats(seen), as_floats(seen, -torch.inf)):
        assert torch.equal(seen_keys(mask), seen[:, 0])
    biased = as_floats(seen)
    biased[1, 0, 2, 6] = -1
    assert seen_keys(biased) is None
    assert seen_keys(seen.expand(2, 4, 3, 7)) is None


def test_positions_are_listed_in_their_order():
    seen = causal(3, 5)[None]
    assert listed(seen, 2) is None
    seen = seen.repeat(2, 1, 1)
    seen[1, :, :2] = False
    assert listed(seen, 2).tolist() == [
        [0, 1, 2, -1, -1], [0, 1, 2, 3, -1], [0, 1, 2, 3, 4],
        [2, -1, -1, -1, -1], [2, 3, -1, -1, -1], [2, 3, 4, -1, -1],
    ]  # fmt: skip
    one = listed(seen[1:], 2)
    assert one.dtype == np.int32
    assert one.tolist() == [[2, -1, -1], [2, 3, -1], [2, 3, 4]] * 2
    assert listed(torch.zeros(1, 2, 4, dtype=torch.bool), 1).shape == (2, 0)


def test_a_selection_hides_the_others():
    seen = causal(2, 4)[None, None]
    selected = torch.tensor([[[3, 0], [1, -1]]], dtype=torch.int32)
    want = torch.tensor([[True, False, False, False], [False, True, False, False]])
    assert torch.equal(hide_others(seen, selected)[0, 0], want)
    assert torch.equal(hide_others(as_floats(seen), selected)[0, 0] > LEAST, want)


@pytest.fixture
def refused(monkeypatch):
    def fail(*args):
        raise AssertionError("scores of keys that are hidden were asked for")

    monkeypatch.setattr(module, "latent_attention", fail)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["dense", "v32 sparse"])
@pytest.mark.parametrize("quant", ["none", "b"])
@pytest.mark.usefixtures("refused")
def test_no_step_computes_scores_that_it_hides(saved, kind, implementation, quant):
    """Prompts, chunks and single tokens, padded or not."""
    model = saved(kind).load(attn_implementation=implementation)
    cache = patch(model, block_size=4, quant=quant).new_cache()
    tokens = make_prompt(2, 14)
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    for start, end in ((0, 9), (9, 10), (10, 14)):
        logits = forward(model, tokens[:, start:end], attention_mask=mask[:, :end], cache=cache)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", ["dense", "v32"])
def test_lists_are_as_near_as_all_scores(saved, kind, monkeypatch):
    """Against the same model whose every mask is taken for one that says more."""
    model = saved(kind).load(attn_implementation="eager")
    patch(model, block_size=4)
    tokens = make_prompt(2, 20)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    got = forward(model, tokens, attention_mask=mask)
    monkeypatch.setattr(module, "seen_keys", lambda mask: None)
    want = forward(model, tokens, attention_mask=mask)
    assert not torch.equal(got, want)
    assert rms(got, want)[mask.bool()].median() <= 0.02 * want.std()


@pytest.mark.usefixtures("refused")
def test_what_a_list_cannot_say_is_computed_from_all_scores(saved):
    """Biases, heads that differ, keys behind a query's own, and weights that are asked for."""
    model = saved("dense").load(attn_implementation="eager")
    patch(model)
    tokens, positions = make_prompt(1, 6), torch.arange(6)[None]
    seen = causal(6, 6)[None, None]
    bias, later = as_floats(seen), seen.clone()
    bias[..., 5, 0] = -1
    later[..., 0, 5] = True
    by_head = seen.repeat(1, 4, 1, 1)
    for mask in (bias, later, by_head):
        with pytest.raises(AssertionError, match="scores of keys that are hidden"):
            forward(model, tokens, attention_mask=mask, position_ids=positions)
    with pytest.raises(AssertionError, match="scores of keys that are hidden"):
        model(tokens, output_attentions=True)


@pytest.mark.parametrize("kind", ["dense", "v32", "v32 sparse"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_tiles_of_a_prompt_are_as_one(saved, kind, use_cache, monkeypatch):
    """One query at a time, the indexer's too; where two keys are as good, rounding may choose."""
    model = saved(kind).load()
    patch(model, block_size=4)
    tokens = make_prompt(2, 13)
    want = forward(model, tokens, use_cache=use_cache)
    calls = []
    listed = module.listed
    monkeypatch.setattr(module, "_SCORE_BYTES", 1)
    monkeypatch.setattr(module, "listed", lambda *args: calls.append(1) or listed(*args))
    for tile_bytes, n_tiles in (
        (1, 13),
        (2 * 5 * module._query_bytes(model.model.layers[0].self_attn.forward.settings.dims), 3),
    ):
        monkeypatch.setattr(module, "_TILE_BYTES", tile_bytes)
        got = forward(model, tokens, use_cache=use_cache)
        assert rms(got, want).median() <= 0.02 * want.std()
        assert len(calls) == (0 if kind == "dense" else 3 * n_tiles)
        calls.clear()
