"""What `patch` and a patched model refuse, and how they say so."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.hf_models import forward, make_prompt, save_model  # noqa: E402
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, LlamaModel, StaticCache  # noqa: E402

from mla_numba.interop.hf.patched import patch  # noqa: E402


@pytest.fixture
def model(saved):
    return saved().load()


def test_gradients_are_refused(model):
    tokens = make_prompt(1, 5)
    patch(model)
    logits = model(tokens).logits
    assert logits.requires_grad
    with pytest.raises(RuntimeError, match="backward: expected none through a patched model"):
        logits.sum().backward()
    model.train()
    with pytest.raises(ValueError, match=r"model: expected eval mode .*, got training mode"):
        model(tokens)
    assert forward(model, tokens).shape == logits.shape


class OtherCache:
    """Has no layers, as `PagedAttentionCache` of `generate_batch` has none."""


def test_caches_that_do_not_fit(saved, model):
    tokens, prompt = make_prompt(1, 5), make_prompt(1, 5)
    filled = DynamicCache(config=model.config)
    forward(model, tokens, cache=filled)
    other = saved().load()
    quantised = patch(other, quant="b").new_cache()
    patched = patch(model)
    with pytest.raises(
        ValueError, match=r"cache: expected an empty DynamicCache .* with 5 tokens of an unpatched model"
    ):
        forward(model, tokens, cache=filled)
    with pytest.raises(TypeError, match="cache: expected an empty DynamicCache or a LatentCache, got StaticCache"):
        forward(model, tokens, cache=StaticCache(config=model.config, max_cache_len=16))
    with pytest.raises(TypeError, match="cache: expected an empty DynamicCache or a LatentCache, got OtherCache"):
        forward(model, tokens, cache=OtherCache())
    x, tables = torch.zeros(1, 2, 128, dtype=torch.bfloat16), (torch.ones(1, 2, 16, dtype=torch.bfloat16),) * 2
    with pytest.raises(TypeError, match="got OtherCache"):
        model.model.layers[0].self_attn(x, tables, None, cache=OtherCache())
    pair = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(TypeError, match="got EncoderDecoderCache"):
        forward(model, tokens, cache=pair)
    with pytest.raises(TypeError, match="got StaticCache"):
        model.generate(prompt, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(
        ValueError, match=r"cache: expected one of this model, .*quantized=False.* got .*quantized=True"
    ):
        forward(model, tokens, cache=quantised)
    cache = patched.new_cache()
    forward(model, tokens, cache=cache)
    with pytest.raises(ValueError, match="hidden_states: expected the 1 sequences that the cache holds, got 2"):
        forward(model, torch.cat([tokens, tokens]), cache=cache)
    with pytest.raises(ValueError, match="cache: expected no offloading"):
        cache.layers[0].offload()
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \(1, 10\), got \(1, 5\)"):
        forward(model, tokens, cache=cache, attention_mask=torch.ones(1, 5))
    patched.unpatch()
    with pytest.raises(TypeError, match="cache: expected a DynamicCache in a model that is not patched"):
        forward(model, tokens, cache=cache)


def test_blocks_that_do_not_suffice(model):
    patched = patch(model, block_size=4, n_blocks=3)
    cache = patched.new_cache()
    assert cache.get_max_length() == 12
    tokens = make_prompt(1, 12)
    forward(model, tokens, cache=cache)
    with pytest.raises(ValueError, match=r"n_blocks: expected blocks of 4 slots .*, got 3 in all"):
        forward(model, tokens[:, :1], cache=cache)
    assert cache.get_seq_length() == 12


class Hook:
    """In the place of accelerate's."""


class Linear(torch.nn.Module):
    """In the place of peft's, which is no Linear of torch either and has a weight."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    @property
    def weight(self):
        return self.base.weight


class Int8Linear(torch.nn.Linear):
    """In the place of those of bitsandbytes and transformers."""

    def forward(self, x):
        return super().forward(x)


class DTensor(torch.Tensor):
    """In the place of those of torchao and of tensor parallelism."""


class FullyShardedDataParallel(torch.nn.Module):
    """In the place of torch's."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def hooked(model, module):
    model.get_submodule(module).register_forward_pre_hook(lambda module, args: None)
    return model


def parametrised(model, module):
    torch.nn.utils.parametrize.register_parametrization(model.get_submodule(module), "weight", torch.nn.Identity())
    return model


def edited(model, module, **changes):
    for name, value in changes.items():
        setattr(model.get_submodule(module), name, value)
    return model


def with_weight(model, module, change):
    weight = model.get_submodule(module).weight
    return edited(model, module, weight=torch.nn.Parameter(change(weight.detach().clone())))


ATTENTION = "model.layers.1.self_attn"
BAD_MODELS = {
    "no module": (lambda m: "model", TypeError, "model: expected a module of transformers, got str"),
    "another model": (
        lambda m: LlamaModel(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)),
        TypeError, "model: expected a module with one DeepseekV3Model, .*Mistral4Model .*, got LlamaModel with none",
    ),
    "two models": (lambda m: torch.nn.ModuleList([m, copy.deepcopy(m)]), TypeError, "got ModuleList with 2 of them"),
    "float32": (lambda m: m.float(), TypeError, r"0\.self_attn\.q_a_proj\.weight: expected dtype torch\.bf"),
    "no q_lora_rank": (
        lambda m: edited(m, ATTENTION, q_lora_rank=None), ValueError,
        r"model\.layers\.1\.self_attn\.q_lora_rank: expected an int .*, got None",
    ),
    "biases": (lambda m: edited(m, ATTENTION, config=changed(m, attention_bias=True)), ValueError, "attention_bias"),
    "not causal": (lambda m: edited(m, ATTENTION, config=changed(m, is_causal=False)), ValueError, "is_causal"),
    "flex": (
        lambda m: edited(m, ATTENTION, config=changed(m, _attn_implementation="flex_attention")), ValueError,
        "_attn_implementation: expected eager or sdpa, got flex_attention",
    ),
    "no Linear": (
        lambda m: edited(m, ATTENTION, q_b_proj=torch.nn.Sequential()), TypeError,
        r"self_attn\.q_b_proj: expected a torch\.nn\.Linear, got torch\.nn\.modules\.container\.Sequential",
    ),
    "a hook of accelerate": (
        lambda m: edited(m, ATTENTION, _hf_hook=Hook()), ValueError,
        r"layers\.1\.self_attn: expected an attention without hooks of accelerate, got Hook \(load the whole model",
    ),
    "a hook of accelerate within": (
        lambda m: edited(m, f"{ATTENTION}.kv_b_proj", _hf_hook=Hook()), ValueError,
        r"kv_b_proj: expected a module without hooks of accelerate, got Hook",
    ),
    "another forward": (
        lambda m: edited(m, ATTENTION, forward=m.get_submodule(ATTENTION).forward), ValueError,
        r"layers\.1\.self_attn\.forward: expected that of DeepseekV3Attention, got one that was put in its place",
    ),
    "a forward hook": (
        lambda m: hooked(m, f"{ATTENTION}.q_b_proj"), ValueError,
        r"q_b_proj: expected no forward hooks, as a patched model does not call the module, got some",
    ),
    "an adapter": (
        lambda m: edited(m, ATTENTION, q_b_proj=Linear(m.get_submodule(f"{ATTENTION}.q_b_proj"))), TypeError,
        r"q_b_proj: expected a torch\.nn\.Linear, got \S*\.Linear around one \(merge an adapter",
    ),
    "an adapter of a norm": (
        lambda m: edited(m, ATTENTION, q_a_layernorm=Linear(m.get_submodule(f"{ATTENTION}.q_a_layernorm"))), TypeError,
        r"q_a_layernorm: expected an RMSNorm of transformers, got \S*\.Linear",
    ),
    "a quantised Linear": (
        lambda m: edited(m, ATTENTION, kv_b_proj=Int8Linear(64, 4 * 56, bias=False).bfloat16()), TypeError,
        r"kv_b_proj: expected a torch\.nn\.Linear, got \S*\.Int8Linear, which computes something else \(a quantised",
    ),
    "a parametrised Linear": (
        lambda m: parametrised(m, f"{ATTENTION}.kv_b_proj"), TypeError,
        r"kv_b_proj: expected a torch\.nn\.Linear, got \S*\.ParametrizedLinear, which computes something else",
    ),
    "a parameter of another kind": (
        lambda m: with_weight(m, f"{ATTENTION}.kv_b_proj", lambda w: w.as_subclass(DTensor)), TypeError,
        r"kv_b_proj\.weight: expected a plain parameter, got a DTensor \(a quantised weight, or one that is spread",
    ),
    "a bias": (
        lambda m: edited(m, f"{ATTENTION}.q_b_proj", bias=torch.nn.Parameter(torch.zeros(192))), ValueError,
        r"q_b_proj\.bias: expected None \(the prolog adds no bias\), got one",
    ),
    "FSDP": (
        lambda m: edited(m, "model.layers.1", self_attn=FullyShardedDataParallel(m.get_submodule(ATTENTION))),
        ValueError, r"model\.layers\.1\.self_attn: expected a module whose weights are whole .*, got FullyShardedData",
    ),
    "another shape": (
        lambda m: with_weight(m, f"{ATTENTION}.kv_b_proj", lambda w: w[:-1]), ValueError,
        r"kv_b_proj\.weight: expected shape \(224, 64\), got \(223, 64\)",
    ),
    "another device": (
        lambda m: edited(m, ATTENTION, q_a_proj=m.get_submodule(f"{ATTENTION}.q_a_proj").to("meta")), ValueError,
        r"q_a_proj\.weight: expected a tensor on the CPU, got one on meta, which has no values \(offloaded",
    ),
    "not finite": (
        lambda m: with_weight(m, f"{ATTENTION}.kv_a_layernorm", lambda w: w * float("nan")), ValueError,
        r"kv_a_layernorm\.weight: expected finite values, got NaN or Inf",
    ),
}  # fmt: skip


def changed(model, **fields):
    config = copy.deepcopy(model.config)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("case", BAD_MODELS)
def test_models_that_are_refused(model, case):
    change, kind, message = BAD_MODELS[case]
    bad = change(model)
    before = [module.__dict__.get("forward") for module in model.modules()]
    with pytest.raises(kind, match=message):
        patch(bad)
    assert [module.__dict__.get("forward") for module in model.modules()] == before


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"quant": "int4"}, ValueError, "quant: expected one of none, a, b, ab, got 'int4'"),
        ({"block_size": 0}, ValueError, "block_size: expected at least 1, got 0"),
        ({"n_blocks": 2.0}, TypeError, "n_blocks: expected int, got float"),
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"numerics": "other"}, ValueError, "numerics"),
        ({"keep_projections": 1}, TypeError, "keep_projections: expected bool, got int"),
        ({"checkpoint": "nowhere"}, OSError, "nowhere"),
    ],
)
def test_arguments_that_are_refused(model, arguments, kind, message):
    with pytest.raises(kind, match=message):
        patch(model, **arguments)


def test_a_checkpoint_of_another_model(model, tmp_path):
    save_model(tmp_path / "wide", v_head_dim=32)
    with pytest.raises(ValueError, match=r"checkpoint: expected MlaDims.* and v_head_dim 24, which the model has"):
        patch(model, checkpoint=tmp_path / "wide")
    save_model(tmp_path / "short", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"checkpoint: expected layer 2, got layers \[0, 1\]"):
        patch(model, checkpoint=tmp_path / "short")


def test_what_was_put_around_a_patched_model_is_named(saved):
    model = saved("dense").load()
    patched = patch(model)
    for module in (model.model.layers[1].self_attn, model.model, model):
        own, module.forward = module.forward, lambda *args, **kwargs: None
        with pytest.raises(ValueError, match=rf"{type(module).__name__}\.forward: expected the one that `patch` set"):
            patched.unpatch()
        module.forward = own
    patched.unpatch()
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_checkpoint_whose_rope_columns_are_in_another_order(saved, tmp_path):
    save_model(tmp_path, rope_interleave=False)
    with pytest.raises(ValueError, match=r"checkpoint\.config\.rope_interleave: expected True, which the model com"):
        patch(saved("dense").load(), checkpoint=tmp_path)


def test_masks_and_states_that_are_refused(saved, model):
    patch(model)
    tokens = make_prompt(1, 4)
    cases = [
        (
            torch.ones(1, 2, 4, 4, dtype=torch.bool),
            ValueError,
            r"attention_mask: expected a mask .*, got shape \(1, 2, 4, 4",
        ),
        (torch.ones(1, 1, 4, 4, dtype=torch.long), TypeError, r"attention_mask: expected dtype torch\.bool or floats"),
    ]
    for mask, kind, message in cases:
        with pytest.raises(kind, match=message):
            forward(model, tokens, attention_mask=mask)
    with pytest.raises(ValueError, match="hidden_states: expected at least 1 sequence, got 0"):
        forward(model, tokens[:0])
    attention = model.model.layers[0].self_attn
    x = torch.zeros(1, 4, 128)
    with pytest.raises(TypeError, match=r"hidden_states: expected dtype torch\.bfloat16, got torch\.float32"):
        attention(x, (x, x), None)
    with pytest.raises(ValueError, match="hidden_states: expected a tensor on the CPU, got one on meta"):
        attention(x.bfloat16().to("meta"), (x, x), None)
    with pytest.raises(TypeError, match=r"attention_mask: expected a mask of shape .*, got str"):
        attention(x.bfloat16(), (x, x), "mask")
    v32 = saved("v32").load()
    patch(v32)
    with pytest.raises(TypeError, match=r"attention_mask: expected a mask of shape .*\), got NoneType"):
        v32.model.layers[0].self_attn(x.bfloat16(), (x, x), None)
