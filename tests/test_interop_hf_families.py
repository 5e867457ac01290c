"""Other models of transformers whose attention is this prolog, against themselves without it and in float32."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import (  # noqa: E402
    RELATIVES,
    forward,
    generate,
    load_relative,
    make_prompt,
    rope,
    save_kimi_k25,
    save_relative,
)
from transformers import Kimi_K25ForConditionalGeneration  # noqa: E402

from mla_numba.interop.hf.patched import patch  # noqa: E402


def rms(a, b):
    return (a - b).square().mean(-1).sqrt()


@pytest.mark.parametrize("kind", RELATIVES)
def test_as_near_to_the_truth_and_the_same_tokens(tmp_path, kind):
    """Where a selection is sparse and two keys are as good, rounding chooses: median tokens, and no greedy ones."""
    save_relative(tmp_path, kind)
    model = load_relative(tmp_path, kind)
    tokens = make_prompt(4, 24)
    truth, logits = forward(load_relative(tmp_path, kind, torch.float32), tokens), forward(model, tokens)
    prompts = make_prompt(24, 12)
    want, want_logits = generate(model, prompts, 12)
    top = want_logits.topk(2).values
    margins = (top[..., 0] - top[..., 1]).amin(1)
    clearest = int(margins.argmax())
    with patch(model, block_size=8):
        ours = forward(model, tokens)
        got, _ = generate(model, prompts[clearest : clearest + 1], 12)
    assert not torch.equal(ours, logits)
    assert rms(ours, truth).median() <= 1.4 * rms(logits, truth).median()
    if "sparse" not in kind:
        assert rms(ours, logits).median() <= 0.03 * truth.std()
        assert margins.max() > 4 * rms(ours, logits).median()
        assert got[0].tolist() == want[clearest].tolist()
    assert torch.equal(forward(model, tokens), logits)


def test_a_language_model_within_a_larger_one(tmp_path):
    save_kimi_k25(tmp_path)
    model = Kimi_K25ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    prompt = make_prompt(1, 9)
    want, logits = generate(model, prompt, 8)
    with patch(model) as patched:
        got, ours = generate(model, prompt, 8)
        assert got.tolist() == want.tolist()
        assert rms(ours, logits).median() <= 0.03 * logits.std()
        cache = patched.new_cache()
        hook = model.lm_head.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(model, prompt, cache=cache)
        hook.remove()
        assert cache.get_seq_length() == 0
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_layer_without_an_indexer_takes_the_last_selection(tmp_path):
    """Token by token through a cache as all at once; without a selection from before it is an error."""
    save_relative(tmp_path, "glm-5 sparse")
    model = load_relative(tmp_path, "glm-5 sparse")
    tokens = make_prompt(2, 20)
    unpatched = forward(model, tokens)
    patched = patch(model, block_size=4)
    whole, cache = forward(model, tokens), patched.new_cache()
    steps = torch.cat([forward(model, part, cache=cache) for part in tokens.split([11, 1, 8], dim=1)], 1)
    noise = rms(whole, unpatched).median()
    assert rms(steps, whole).median() <= noise
    attention = model.model.layers[1].self_attn
    x, mask = torch.zeros(1, 2, 128, dtype=torch.bfloat16), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    tables = (torch.ones(1, 2, 16, dtype=torch.bfloat16),) * 2
    with pytest.raises(ValueError, match="prev_topk_indices: expected those of a layer with an indexer, got None"):
        attention(x, tables, mask)


def test_queries_that_are_scaled_by_position_are_refused(tmp_path):
    save_relative(tmp_path, "mistral-4", rope_parameters=rope(0.1))
    model = load_relative(tmp_path, "mistral-4")
    with pytest.raises(ValueError, match=r"rope_parameters\.llama_4_scaling_beta: expected 0 or none .*, got 0\.1"):
        patch(model)
