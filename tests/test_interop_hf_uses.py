"""What is usually done with a model of transformers, done with a patched one."""

import io
import pickle

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, generate, make_prompt  # noqa: E402

from mla_numba.interop.hf.patched import patch  # noqa: E402

KINDS = pytest.mark.parametrize(("kind", "quant"), [("dense", "none"), ("v32 sparse", "none"), ("v32 sparse", "b")])


def rms(a, b):
    return (a - b).square().mean(-1).sqrt()


@KINDS
def test_padding_on_the_right_changes_no_token_before_it(saved, kind, quant):
    model, tokens = saved(kind).load(), make_prompt(2, 12)
    patch(model, quant=quant)
    padded = torch.nn.functional.pad(tokens, (0, 4))
    mask = (padded > 0).long()
    mask[1, 9:] = 0
    got, want = forward(model, padded, attention_mask=mask), forward(model, tokens)
    assert rms(got[0, :12], want[0]).max() <= 0.02 * want.std()
    assert rms(got[1, :9], want[1, :9]).max() <= 0.02 * want.std()


@KINDS
def test_hidden_keys_might_as_well_not_be_there(saved, kind, quant):
    model, tokens = saved(kind).load(), make_prompt(1, 12)
    patch(model, quant=quant)
    mask, kept = torch.ones_like(tokens), [0, 1, 2, 6, 7, 8, 9, 10, 11]
    mask[:, 3:6] = 0
    positions = torch.arange(12)[None]
    got = forward(model, tokens, attention_mask=mask, position_ids=positions)[:, kept]
    want = forward(model, tokens[:, kept], position_ids=positions[:, kept])
    assert rms(got, want).median() <= 0.02 * want.std()


@KINDS
def test_generation_after_refresh_is_that_of_the_changed_model(saved, kind, quant):
    model, other = saved(kind).load(), saved(kind).load()
    patched, prompt = patch(model, quant=quant), make_prompt(2, 9)
    before, _ = generate(model, prompt, 6)
    for changed in (model, other):
        with torch.no_grad():
            changed.model.layers[0].self_attn.kv_b_proj.weight.mul_(-2)
    with pytest.raises(ValueError, match=r"kv_b_proj\.weight: expected the values that were packed"):
        generate(model, prompt, 6)
    patched.refresh()
    patch(other, quant=quant)
    got, want = generate(model, prompt, 6), generate(other, prompt, 6)
    assert got[0].tolist() == want[0].tolist()
    assert torch.equal(got[1], want[1])
    assert before.shape == got[0].shape


@KINDS
def test_pickled_models(saved, kind, quant):
    model, tokens = saved(kind).load(), make_prompt(2, 9)
    patch(model, quant=quant)
    want, file = forward(model, tokens), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(forward(copied, tokens), want)
        copied.model.layers[1].self_attn.kv_a_layernorm.weight.data.mul_(3)
        with pytest.raises(ValueError, match=r"kv_a_layernorm\.weight: expected the values that were packed"):
            forward(copied, tokens)
    assert torch.equal(forward(model, tokens), want)


def test_two_models_are_patched_apart(saved):
    models, tokens = [saved("dense").load(), saved("v32 sparse").load()], make_prompt(1, 9)
    before = [forward(model, tokens) for model in models]
    handles = [patch(model, quant=quant) for model, quant in zip(models, ("ab", "b"), strict=True)]
    ours = [forward(model, tokens) for model in models]
    handles[0].unpatch()
    assert torch.equal(forward(models[0], tokens), before[0])
    assert torch.equal(forward(models[1], tokens), ours[1])
    with pytest.raises(ValueError, match="cache: expected one of this model"):
        forward(models[1], tokens, cache=handles[0].new_cache())


def test_a_saved_model_has_the_weights_that_it_had(saved, tmp_path):
    model, tokens = saved("v32 sparse").load(), make_prompt(1, 9)
    want = forward(model, tokens)
    patch(model, quant="b")
    model.save_pretrained(tmp_path)
    assert torch.equal(forward(type(model).from_pretrained(tmp_path, dtype=torch.bfloat16), tokens), want)


def test_a_patched_model_that_is_cast_is_refused(saved):
    model = saved("dense").load()
    patch(model)
    with pytest.raises(TypeError, match=r"hidden_states: expected dtype torch\.bfloat16, got torch\.float32"):
        forward(model.float(), make_prompt(1, 5))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_model_is_patched(saved):
    model, tokens = saved("dense").load(), make_prompt(1, 9)
    with patch(model):
        want = forward(model, tokens)
    compiled = torch.compile(model, backend="eager")
    with patch(compiled) as patched:
        got = forward(compiled, tokens)
        assert patched.model is compiled
    torch.compiler.reset()
    assert rms(got, want).max() <= 0.02 * want.std()
