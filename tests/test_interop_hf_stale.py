"""Weights that change after a model was patched: noticed before a call, and packed anew when asked."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, make_prompt  # noqa: E402

from mla_numba.interop.hf.fresh import PackedFrom  # noqa: E402
from mla_numba.interop.hf.patched import patch  # noqa: E402
from tiling import ceil_div  # noqa: E402

TOKENS = make_prompt(1, 7)


class Adapted(torch.nn.Module):
    """What an adapter does with a Linear."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) * 3


def in_place(attention):
    with torch.no_grad():
        attention.q_b_proj.weight.mul_(3)


def through_data(attention):
    attention.kv_a_proj_with_mqa.weight.data.mul_(3)


def of_a_norm(attention):
    attention.kv_a_layernorm.weight.data.mul_(3)


def a_state(attention):
    attention.load_state_dict({"kv_b_proj.weight": attention.kv_b_proj.weight * 3}, strict=False)


def other_storage(attention):
    attention.q_a_proj.weight.data = attention.q_a_proj.weight.detach().roll(1, 0)


def other_parameter(attention):
    attention.q_a_proj.weight = torch.nn.Parameter(attention.q_a_proj.weight.detach().clone())


def other_module(attention):
    attention.kv_b_proj = Adapted(attention.kv_b_proj)


def other_epsilon(attention):
    attention.q_a_layernorm.variance_epsilon = 0.5


def a_hook(attention):
    attention.q_b_proj.register_forward_hook(lambda module, args, out: out * 3)


def another_forward(attention):
    attention.q_b_proj.forward = attention.q_b_proj.forward


CHANGES = {
    in_place: r"q_b_proj\.weight: expected the values that were packed, got changed ones",
    through_data: r"kv_a_proj_with_mqa\.weight: expected the values that were packed",
    of_a_norm: r"kv_a_layernorm\.weight: expected the values that were packed",
    a_state: r"kv_b_proj\.weight: expected the values that were packed",
    other_storage: r"q_a_proj\.weight: expected the values that were packed",
    other_parameter: r"q_a_proj\.weight: expected the parameter that was packed, got another",
    other_module: r"kv_b_proj: expected the module that was packed, got another Adapted",
    other_epsilon: r"q_a_layernorm\.variance_epsilon: expected 1e-06, which was packed, got 0\.5",
    a_hook: r"q_b_proj: expected no forward hooks, as a patched model does not call the module",
    another_forward: r"q_b_proj\.forward: expected that of Linear, got one that was put in its place",
}


@pytest.mark.parametrize("from_checkpoint", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_refused_by_name_and_taken_by_refresh(saved, change, from_checkpoint):
    model = saved("dense").load()
    patched = patch(model, checkpoint=saved("dense").folder if from_checkpoint else None)
    cache = patched.new_cache()
    before = forward(model, TOKENS, cache=cache)
    change(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match=rf"model\.layers\.1\.self_attn\.{CHANGES[change]}.*`refresh\(\)`"):
        forward(model, TOKENS, cache=cache)
    assert [layer.length for layer in cache.layers] == [7, 7, 7]
    if change in (other_module, a_hook, another_forward):
        with pytest.raises(
            (TypeError, ValueError), match=r"kv_b_proj: expected a torch\.nn\.Linear|q_b_proj\S*: expected (no|that)"
        ):
            patched.refresh()
        return
    patched.refresh()
    got = forward(model, TOKENS)
    assert torch.equal(got, before) == (change is other_parameter)
    patched.unpatch()
    patch(model)
    assert torch.equal(got, forward(model, TOKENS))


def norm_bias(indexer):
    indexer.k_norm.bias.data.add_(1)


def norm_epsilon(indexer):
    indexer.k_norm.eps = 0.5


def no_bias(indexer):
    indexer.k_norm.bias = None


def added_bias(indexer):
    indexer.wk.bias = torch.nn.Parameter(torch.ones(32, dtype=torch.bfloat16))


def indexer_hook(indexer):
    indexer.register_forward_hook(lambda module, args, out: out)


INDEXER_CHANGES = {
    norm_bias: r"indexer\.k_norm\.bias: expected the values that were packed, got changed ones",
    norm_epsilon: r"indexer\.k_norm\.eps: expected 1e-06, which was packed, got 0\.5",
    no_bias: r"indexer\.k_norm\.bias: expected the parameter that was packed, got another",
    added_bias: r"indexer\.wk\.bias: expected the parameter that was packed, got another",
    indexer_hook: r"indexer: expected no forward hooks, as a patched model does not call the module",
}


@pytest.mark.parametrize("change", INDEXER_CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_an_int8_index_is_refused_by_name(saved, change):
    model = saved("v32 sparse").load()
    patched = patch(model, quant="b")
    before = forward(model, TOKENS)
    change(model.model.layers[1].self_attn.indexer)
    with pytest.raises(ValueError, match=rf"model\.layers\.1\.self_attn\.{INDEXER_CHANGES[change]}.*`refresh\(\)`"):
        forward(model, TOKENS)
    if change in (norm_bias, norm_epsilon):
        patched.refresh()
        assert patched.prologs[1].indexer.epsilon == (0.5 if change is norm_epsilon else 1e-6)
        assert forward(model, TOKENS).shape == before.shape
        return
    with pytest.raises(
        ValueError,
        match=r"indexer(\.wk\.bias: expected None|\.k_norm\.bias: expected finite|: expected no forward hooks)",
    ):
        patched.refresh()


def test_another_indexer_is_noticed(saved):
    model = saved("v32 sparse").load()
    patch(model, quant="b")
    attention = model.model.layers[2].self_attn
    attention.indexer = copy.deepcopy(attention.indexer)
    with pytest.raises(ValueError, match=r"self_attn\.indexer: expected the module that was packed, got another Deep"):
        forward(model, TOKENS)


def test_an_indexer_of_the_model_s_own_may_change(saved):
    """It is called, and nothing of it is packed."""
    model = saved("v32 sparse").load()
    patch(model)
    indexer = model.model.layers[1].self_attn.indexer
    for change in (norm_bias, norm_epsilon, indexer_hook):
        change(indexer)
    forward(model, TOKENS)


def test_tensors_of_inference_mode(saved):
    """They have no version counter: elements are compared."""
    model = saved("dense").load()
    with torch.inference_mode():
        weight = torch.nn.Parameter(model.model.layers[0].self_attn.q_b_proj.weight.clone())
    model.model.layers[0].self_attn.q_b_proj.weight = weight
    assert weight.is_inference()
    patch(model)
    forward(model, TOKENS)
    with torch.inference_mode():
        weight.mul_(3)
    with pytest.raises(ValueError, match=r"q_b_proj\.weight: expected the values that were packed"):
        forward(model, TOKENS)


def test_refresh_of_a_quantised_model_takes_its_report_along(saved):
    model = saved("dense").load()
    patched = patch(model, quant="ab", n_threads=1)
    prologs, errors = patched.prologs, patched.quantization
    in_place(model.model.layers[0].self_attn)
    patched.refresh()
    assert [p.weights.quant for p in patched.prologs] == ["ab"] * 3
    assert not set(map(id, prologs)) & set(map(id, patched.prologs))
    assert patched.prologs[0].n_threads == 1
    assert patched.quantization[0].errors["w_uq_qr"] != errors[0].errors["w_uq_qr"]


def test_a_refresh_that_fails_changes_nothing(saved):
    model = saved("dense").load()
    patched = patch(model)
    before = forward(model, TOKENS)
    weight = model.model.layers[2].self_attn.q_b_proj.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.2\.self_attn\.q_b_proj\.weight: expected finite values"):
        patched.refresh()
    weight.data.copy_(kept)
    assert torch.equal(forward(model, TOKENS), before)


def test_weights_that_were_given_up(saved):
    """There is nothing to compare, but a module or parameter in the place of one is noticed."""
    model = saved("dense").load()
    patched = patch(model, keep_projections=False)
    want = forward(model, TOKENS)
    with pytest.raises(ValueError, match="keep_projections: expected True for `refresh` without a checkpoint"):
        patched.refresh()
    patched.refresh(saved("dense").folder)
    assert torch.equal(forward(model, TOKENS), want)
    other_module(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match="kv_b_proj: expected the module that was packed"):
        forward(model, TOKENS)


def test_a_copy_looks_at_its_own_weights(saved):
    model = saved("dense").load()
    patch(model)
    want = forward(model, TOKENS)
    copied = copy.deepcopy(model)
    in_place(copied.model.layers[0].self_attn)
    with pytest.raises(ValueError, match=r"q_b_proj\.weight: expected the values that were packed"):
        forward(copied, TOKENS)
    assert torch.equal(forward(model, TOKENS), want)
    through_data(model.model.layers[0].self_attn)
    with pytest.raises(ValueError, match=r"kv_a_proj_with_mqa\.weight"):
        forward(copy.deepcopy(model), TOKENS)


@pytest.mark.parametrize("shape", [(128,), (5, 3), (64, 200), (513, 130)])
def test_a_band_of_a_sixty_fourth_is_noticed(shape):
    """Through `.data`, which counts no version: any n / 64 rows, or columns, that lie side by side."""
    attention = torch.nn.Module()
    attention.part = torch.nn.Module()
    attention.part.weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    packed = PackedFrom("attention", attention, ("part",))
    packed.check()
    for axis, n in enumerate(shape):
        width = ceil_div(n, 64)
        for start in range(n - width + 1):
            band = attention.part.weight.data.narrow(axis, start, width)
            band.fill_(1)
            with pytest.raises(ValueError, match=r"attention\.part\.weight: expected the values"):
                packed.check()
            band.fill_(0)
    packed.check()
