"""Small DeepSeek models of transformers with prologs in them, against themselves without and in float32."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, generate, load_model, make_prompt  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from mla_numba import Checkpoint  # noqa: E402
from mla_numba.interop.hf.patched import patch  # noqa: E402

N_NEW = 64


@pytest.fixture
def model(saved):
    return saved().load()


def rms(a, b):
    """Of each token's logits (..., vocabulary), the root mean square of the difference."""
    return (a - b).square().mean(-1).sqrt()


def clearest(model, prompts):
    """The prompt whose greedy choices are furthest from a tie, its tokens and logits, and how far."""
    tokens, logits = generate(model, prompts, N_NEW)
    top = logits.topk(2).values
    margins = (top[..., 0] - top[..., 1]).amin(1)
    best = margins.argmax()
    return prompts[best : best + 1], tokens[best : best + 1], logits[best : best + 1], margins[best]


def cache_rows(cache, layer=0):
    """What a cache holds of its tokens, by array."""
    pool = cache.pool if hasattr(cache, "pool") else cache.layers[0].pool
    slots = pool.slots(0, cache.get_seq_length()).reshape(-1)
    return [array.reshape(-1, array.shape[-1])[slots] for array in pool.cache(layer).arrays().values()]


@pytest.mark.parametrize("kind", ["moe", "dense", "halves", "yarn", "v32"])
def test_the_same_greedy_tokens_and_logits_as_near_to_the_truth(saved, kind):
    """The truth is the same model in float32: to it, the patched one is as near as the unpatched one.

    A token's error is bounded by the median and the ninth decile, of a model without experts by the largest too: where
    two experts are as good, rounding chooses, in either model, and that token's logits are others altogether.
    """
    model = saved(kind).load()
    prompt, tokens, logits, margin = clearest(model, make_prompt(96, 12))
    assert len(set(tokens[0].tolist())) >= 16
    patch(model, checkpoint=saved(kind).folder)
    ours, our_logits = generate(model, prompt, N_NEW)
    assert margin > 4 * rms(our_logits, logits).median()
    assert ours.tolist() == tokens.tolist()
    truth = forward(saved(kind).load(torch.float32), torch.cat([prompt, tokens], 1)[:, :-1])[:, prompt.shape[1] - 1 :]
    error, unpatched_error = rms(our_logits, truth)[0], rms(logits, truth)[0]
    for share, most in ((0.5, 1.4), (0.9, 1.4)) if kind == "moe" else ((0.5, 1.4), (0.9, 1.4), (1.0, 2)):
        assert error.quantile(share) <= most * unpatched_error.quantile(share)
    assert rms(our_logits, logits).median() <= 0.03 * truth.std()


def test_sparse_attention_takes_q_norm_from_the_prolog(saved):
    """Where two keys are as good, rounding chooses: medians only, and of a sequence that is longer than index_topk."""
    tokens = make_prompt(4, 48)
    model = saved("v32 sparse").load()
    truth, logits = forward(saved("v32 sparse").load(torch.float32), tokens), forward(model, tokens)
    dense = saved("v32 sparse").load()
    dense.config.index_topk = 2048
    for layer in dense.model.layers:
        layer.self_attn.indexer.index_topk = 2048
    assert rms(forward(dense, tokens), truth).median() > 4 * rms(logits, truth).median()
    patched = patch(model)
    ours = forward(model, tokens)
    assert rms(ours, truth).median() <= 1.4 * rms(logits, truth).median()
    # Token by token, so that the indexer's keys come from the cache.
    cache = patched.new_cache()
    steps = torch.cat([forward(model, tokens[:, i : i + 1], cache=cache) for i in range(tokens.shape[1])], 1)
    assert rms(steps, ours).median() <= rms(logits, truth).median()


@pytest.mark.parametrize("kind", ["moe", "halves", "v32"])
@pytest.mark.parametrize("quant", ["none", "ab"])
def test_parameters_and_checkpoint_give_the_same_bits(saved, kind, quant):
    tokens = make_prompt(2, 9)
    logits = []
    for checkpoint in (None, saved(kind).folder, Checkpoint(saved(kind).folder)):
        model = saved(kind).load()
        patched = patch(model, quant=quant, checkpoint=checkpoint)
        assert patched.quant == quant
        logits.append(forward(model, tokens))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_epsilons_are_those_of_the_norms(saved, from_checkpoint):
    """transformers' norms do not take the configuration's rms_norm_eps; whatever they have counts."""
    model = saved("halves").load()
    assert model.config.rms_norm_eps != 1e-6
    checkpoint = saved("halves").folder if from_checkpoint else None
    with patch(model, checkpoint=checkpoint) as patched:
        assert {float(p.weights.epsilon_cq) for p in patched.prologs} == {float(np.float32(1e-6))}
    tokens = make_prompt(2, 20)
    before = forward(model, tokens)
    for layer in model.model.layers:
        layer.self_attn.q_a_layernorm.variance_epsilon = 0.25
        layer.self_attn.kv_a_layernorm.variance_epsilon = 0.5
    want = forward(model, tokens)
    patched = patch(model, checkpoint=checkpoint)
    assert [(p.weights.epsilon_cq, p.weights.epsilon_ckv) for p in patched.prologs] == [(0.25, 0.5)] * 3
    error = rms(forward(model, tokens), want).median()
    assert error <= 0.02 * want.std()
    assert error < 0.2 * rms(before, want).median()


@pytest.mark.parametrize(("quant", "most", "agreement"), [("a", 0.08, 0.85), ("b", 0.08, 0.85), ("ab", 0.1, 0.85)])
@pytest.mark.parametrize("numerics", ["pypto", "cann"])
def test_quantised_modes_stay_near(model, quant, most, agreement, numerics):
    """Relative error of the logits of a median token, and the share of equal greedy choices; docs/huggingface.md."""
    tokens = make_prompt(8, 48)
    want = forward(model, tokens)
    patched = patch(model, quant=quant, numerics=numerics)
    got = forward(model, tokens)
    error = rms(got, want).median() / want.std()
    assert 0.01 < error <= most
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() >= agreement
    quantised = {"a": {"w_dq", "w_dkv_kr"}, "b": {"w_uq_qr"}}
    names = set().union(*(quantised[letter] for letter in quant))
    assert [set(report.errors) for report in patched.quantization] == [names] * 3


@pytest.mark.parametrize("quant", ["none", "b"])
def test_steps_chunks_and_whole_prompts_fill_the_same_cache(model, quant):
    """Rows of the first layer are equal to the bit: a token's bits depend on nothing else."""
    tokens = make_prompt(2, 20)
    patched = patch(model, quant=quant, block_size=8)
    rows, logits = [], []
    for sizes in ([20], [1] * 20, [7, 1, 12]):
        cache = patched.new_cache()
        logits.append(torch.cat([forward(model, part, cache=cache) for part in tokens.split(sizes, dim=1)], dim=1))
        assert cache.get_seq_length() == 20
        rows.append(cache_rows(cache))
    for other in rows[1:]:
        assert all((a == b).all() for a, b in zip(rows[0], other, strict=True))
    noise = rms(logits[0], forward(model, tokens)).max() + 0.02 * logits[0].std()
    for other in logits[1:]:
        assert rms(other, logits[0]).median() <= noise
    assert torch.equal(logits[0], forward(model, tokens, use_cache=False))


def test_block_size_and_threads_change_no_bit(saved):
    tokens = make_prompt(2, 21)
    settings = [{}, {"block_size": 4}, {"block_size": 5, "n_blocks": 10}, {"n_threads": 1}]
    logits = []
    for changes in settings:
        model = saved().load()
        cache = patch(model, **changes).new_cache()
        logits.append(torch.cat([forward(model, part, cache=cache) for part in tokens.split([13, 1, 7], dim=1)], dim=1))
    assert all(torch.equal(logits[0], other) for other in logits[1:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["dense", "v32"])
def test_left_padding_equals_single_sequences(saved, kind, implementation):
    model = saved(kind).load(attn_implementation=implementation)
    patch(model, block_size=8)
    lengths, longest = (3, 11, 7), 11
    prompts = [make_prompt(1, n, seed=n) for n in lengths]
    padded = torch.cat([torch.nn.functional.pad(p, (longest - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (longest - p.shape[1], 0)) for p in prompts])
    out = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    for i, prompt in enumerate(prompts):
        tokens, logits = generate(model, prompt, 12)
        together = torch.stack(out.logits, 1)[i].float()
        assert out.sequences[i, longest:].tolist() == tokens[0].tolist()
        assert rms(together, logits[0]).max() <= 0.03 * logits.std()
    latents = cache_rows(out.cache)[0].reshape(3, -1, 64)[:, :longest]
    assert (np.any(latents, axis=-1) == mask.numpy().astype(bool)).all()  # padding has slot -1: no row is written


@pytest.mark.parametrize("kind", ["dense", "v32"])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 20, "num_return_sequences": 3},
        {"prefill_chunk_size": 5},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["beams", "sampling", "chunks", "prompt lookup"],
)
def test_ways_to_generate(saved, kind, settings):
    """With the cache the same tokens as when every step computes all of them anew."""
    model = saved(kind).load()
    batch = 1 if "prompt_lookup_num_tokens" in settings else 2
    prompt = torch.cat([make_prompt(batch, 7, seed=3)] * 2, dim=1)  # something to look up
    plain = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)} | settings
    patch(model, block_size=4)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        changes = (
            {} if use_cache else {"use_cache": False, "prefill_chunk_size": None, "prompt_lookup_num_tokens": None}
        )
        found.append(model.generate(prompt, **plain | changes).tolist())
    assert found[0] == found[1]
    assert len({tuple(sequence) for sequence in found[0]}) == len(found[0])


def test_patched_models_assist_and_are_assisted(saved):
    """Drafts that are turned down are cut off the caches of both."""
    models = [saved("dense").load(), load_model(saved("moe").folder)]
    prompt = make_prompt(1, 10)
    with patch(models[0], block_size=4), patch(models[1], quant="ab", block_size=4):
        want, _ = generate(models[0], prompt, 16)
        got, _ = generate(models[0], prompt, 16, assistant_model=models[1])
    assert got.tolist() == want.tolist()


def test_going_on_with_a_cache(model):
    """A second call takes the first one's cache, and a fresh DynamicCache is filled for whoever passed it."""
    prompt = make_prompt(1, 9)
    patched = patch(model)
    whole, _ = generate(model, prompt, 16)
    for cache in (patched.new_cache(), DynamicCache(), DynamicCache(config=model.config)):
        first, _ = generate(model, prompt, 8, cache=cache)
        assert cache.get_seq_length() == 16
        both = torch.cat([prompt, first], 1)
        second, _ = generate(model, both, 8, cache=cache)
        assert torch.cat([first, second], 1).tolist() == whole.tolist()
        assert cache.batch_size == 1
        cache.reset()
        again, _ = generate(model, prompt, 8, cache=cache)
        assert again.tolist() == first.tolist()


def test_a_patched_model_and_its_cache_say_what_they_are(model):
    patched = patch(model, n_blocks=4, block_size=16)
    cache = patched.new_cache()
    generate(model, make_prompt(2, 9), 3, cache=cache)
    assert repr(patched).startswith(
        "<Patched: DeepseekV3ForCausalLM, 3 layers, H=128 N=4 Rq=64 C=64 D=32 R=16, quant='none', "
    )
    pool = "<BlockPool: 2 sequences, 4 blocks of 16 slots, bf16, 30.7 kB>"
    assert repr(cache) == f"<LatentCache: 3 layers, 11 tokens, {pool}>"
    assert repr(cache.layers[1]) == f"<LatentLayer: layer 1, 11 tokens, {pool}>"
    assert ", growing," in repr(patch(patched.unpatch() or model).new_cache())


@pytest.mark.parametrize("kind", ["dense", "v32 sparse"])
def test_cropped_and_selected_caches(saved, kind):
    """Blocks and, where there is one, the indexer's keys; a median token, as rounding chooses between equal keys."""
    model = saved(kind).load()
    patched = patch(model, block_size=4)
    tokens, more = make_prompt(3, 31), make_prompt(3, 9, seed=1)
    cache = patched.new_cache()
    forward(model, tokens, cache=cache)
    cache.crop(-4)
    assert [layer.get_seq_length() for layer in cache.layers] == [27] * 3
    assert cache.pool.tables.shape == (3, 7)
    with pytest.raises(ValueError, match="tokens_to_remove: expected 0 or a negative number, got 2"):
        cache.crop(2)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([1, 3, 0, 2]))
    chosen = [2, 0, 2, 0]
    got = forward(model, more[chosen], cache=cache)
    want = forward(model, torch.cat([tokens[:, :27], more], 1)[chosen])[:, 27:]
    assert (rms(got, want).median(1).values <= 0.2 * want.std()).all()
    assert cache.get_max_length() == -1


@pytest.mark.parametrize(
    ("kind", "dtype"),
    # In fp16 the norm of an indexer's keys fails in the unpatched model already.
    [("dense", torch.bfloat16), ("dense", torch.float16), ("v32", torch.bfloat16)],
)
def test_autocast(saved, kind, dtype):
    """The prolog writes the same bits, and the logits are as near to the unpatched model's as without autocast."""
    model = saved(kind).load()
    tokens = make_prompt(3, 20)
    truth = forward(saved(kind).load(torch.float32), tokens)
    with torch.autocast("cpu", dtype=dtype):
        logits = forward(model, tokens)
    patched = patch(model)
    caches = patched.new_cache(), patched.new_cache()
    forward(model, tokens, cache=caches[0])
    with torch.autocast("cpu", dtype=dtype):
        ours = forward(model, tokens, cache=caches[1])
    assert all((a == b).all() for a, b in zip(*map(cache_rows, caches), strict=True))
    assert rms(ours, truth).median() <= 1.4 * rms(logits, truth).median() + 0.005 * truth.std()
    assert rms(ours, logits).median() <= 0.03 * truth.std()
    assert model(tokens[:, :1]).logits.dtype == torch.bfloat16


def test_unpatched_again(saved, tmp_path):
    model = saved().load()
    tokens = make_prompt(2, 10)
    before, weights = forward(model, tokens), copy.deepcopy(model.state_dict())
    with patch(model, quant="ab") as patched:
        assert not torch.equal(forward(model, tokens), before)
        model.save_pretrained(tmp_path / "patched")
        with pytest.raises(
            ValueError, match=r"model\.layers\.0\.self_attn: expected .*, got one that is patched already"
        ):
            patch(model)
    assert torch.equal(forward(model, tokens), before)
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())
    patched.unpatch()
    patch(model, checkpoint=tmp_path / "patched")


def test_projections_given_up(model):
    tokens = make_prompt(1, 10)
    with patch(model):
        want = forward(model, tokens)
    bytes_before = sum(p.nbytes for p in model.parameters() if p.device.type == "cpu")
    patched = patch(model, keep_projections=False)
    attention = model.model.layers[0].self_attn
    assert attention.kv_b_proj.weight.device.type == "meta"
    assert attention.o_proj.weight.device.type == "cpu"
    freed = bytes_before - sum(p.nbytes for p in model.parameters() if p.device.type == "cpu")
    assert freed > 3 * 2 * (128 * 64 + 64 * 4 * 48 + 128 * 80 + 64 * 4 * 56)
    assert torch.equal(forward(model, tokens), want)
    with pytest.raises(ValueError, match="keep_projections: expected True for a model to be unpatched, got False"):
        patched.unpatch()
    with pytest.raises(ValueError, match="keep_projections: expected True where the block's end unpatches"), patched:
        pass


def test_projections_of_a_checkpoint_need_not_be_in_memory(saved):
    """With a checkpoint the model's own projections are not looked at: FP8 ones, or none at all."""
    tokens = make_prompt(1, 10)
    model = saved().load()
    with patch(model):
        want = forward(model, tokens)
    for layer in model.model.layers:
        for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"):
            getattr(layer.self_attn, name).to("meta")
    patch(model, checkpoint=saved().folder)
    assert torch.equal(forward(model, tokens), want)


def test_a_model_without_its_head_and_positional_arguments(model):
    prompt = torch.nn.functional.pad(make_prompt(1, 6), (2, 0))
    mask = (prompt > 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    patched = patch(model.model)
    caches = [patched.new_cache(), patched.new_cache()]
    with torch.no_grad():
        first = model.model(prompt, mask, positions, caches[0]).last_hidden_state
        second = model.model(
            inputs_embeds=model.model.embed_tokens(prompt), attention_mask=mask, position_ids=positions, cache=caches[1]
        ).last_hidden_state
    assert torch.equal(first, second)
    for cache in caches:
        assert np.any(cache_rows(cache)[0], axis=-1).tolist() == [False] * 2 + [True] * 6


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16])
def test_masks_of_four_dimensions(model, dtype):
    """A token that is hidden from all others might as well not be there."""
    tokens = make_prompt(1, 9)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    seen[3, :3] = False
    seen[4:, 3] = False
    mask = seen if dtype == torch.bool else torch.zeros(9, 9, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    kept = [0, 1, 2, 4, 5, 6, 7, 8]
    patch(model)
    positions = torch.arange(9)[None]
    got = forward(model, tokens, attention_mask=mask[None, None], position_ids=positions)[:, kept]
    want = forward(model, tokens[:, kept], position_ids=positions[:, kept])
    assert rms(got, want).median() <= 0.02 * want.std()


def test_attention_weights(saved):
    model = saved("dense").load(attn_implementation="eager")
    tokens = make_prompt(2, 9)
    with torch.no_grad():
        want = model(tokens, output_attentions=True)
        patch(model)
        got = model(tokens, output_attentions=True, output_hidden_states=True)
    assert len(got.attentions) == 3
    assert len(got.hidden_states) == 4
    for ours, theirs in zip(got.attentions, want.attentions, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 0.05
    assert model(tokens).attentions is None


def test_a_copy_of_a_patched_model(model):
    tokens = make_prompt(2, 9)
    patched = patch(model)
    want = forward(model, tokens)
    copied = copy.deepcopy(model)
    patched.unpatch()
    assert torch.equal(forward(copied, tokens), want)
    assert copied.model.layers[0].self_attn.forward.prolog.prolog is patched.prologs[0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_model_leaves_the_attention_out(saved):
    model = saved("dense").load()
    tokens = make_prompt(2, 9)
    cache = patch(model).new_cache()
    want = forward(model, tokens)
    compiled = torch.compile(model, backend="eager")
    got = torch.cat([forward(compiled, part, cache=cache) for part in tokens.split([5, 4], dim=1)], dim=1)
    torch.compiler.reset()
    assert rms(got, want).max() <= 0.02 * want.std()
