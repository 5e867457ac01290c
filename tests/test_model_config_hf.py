"""Queries and keys of a checkpoint of each family against those of transformers' own model."""

import numpy as np
import pytest
from helpers import BF16, make_cache

from mla_numba import Checkpoint, RopeTable
from mla_numba.base.model_config import FAMILIES, read_model_config
from mla_numba.oracle.bits import reference_run
from mla_numba.rope_table import softmax_scale

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

T = 12
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4, "mscale": 1.0, "mscale_all_dim": 1.0,
    "rope_theta": 100.0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
SMALL = {
    "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_hidden_layers": 1, "intermediate_size": 16,
    "vocab_size": 32, "pad_token_id": 0, "max_position_embeddings": 16, "rope_parameters": PLAIN,
}  # fmt: skip
DENSE = {"first_k_dense_replace": 1}
INDEXED = DENSE | {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 16}
# Family: the stem of its classes, and what its configuration has besides.
MODELS = {
    "deepseek_v2": ("DeepseekV2", DENSE),
    "deepseek_v3": ("DeepseekV3", DENSE),
    "deepseek_v3 yarn": ("DeepseekV3", DENSE | {"rope_parameters": YARN}),
    "deepseek_v3 halves": ("DeepseekV3", DENSE | {"rope_interleave": False}),
    "deepseek_v32": ("DeepseekV32", INDEXED),
    "glm_moe_dsa": ("GlmMoeDsa", INDEXED),
    "glm4_moe_lite": ("Glm4MoeLite", {"mlp_layer_types": ["dense"]}),
    "youtu": ("Youtu", {}),
    "mistral4": ("Mistral4", DENSE | {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.0}}),
    "minicpm3": ("MiniCPM3", {}),
    "minicpm3 yarn": ("MiniCPM3", {"rope_parameters": YARN}),
}


def record(module, query, key, value, *args, **kwargs):
    """An attention that keeps what it is given."""
    module.recorded = query, key, kwargs["scaling"]
    return torch.zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    """A random model of one layer in bf16, saved, and loaded in float32; norms are not all 1."""
    stem, changes = MODELS[request.param]
    torch.manual_seed(0)
    settings = SMALL | changes
    settings["rope_parameters"] = dict(settings["rope_parameters"])
    config = getattr(transformers, f"{stem}Config")(**settings)
    kind = getattr(transformers, f"{stem}ForCausalLM")
    made = kind(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "self_attn" in name:
                long = parameter.ndim == 2
                parameter.normal_(0, 2 * parameter.shape[1] ** -0.5) if long else parameter.uniform_(0.5, 1.5)
    made.to(torch.bfloat16).save_pretrained(tmp_path)
    transformers.AttentionInterface.register("record", record)
    transformers.masking_utils.AttentionMaskInterface.register("record", transformers.masking_utils.eager_mask)
    return kind.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="record").eval(), tmp_path


def test_queries_and_keys_are_those_of_the_model(model):
    model, folder = model
    attention, inputs = model.model.layers[0].self_attn, []
    attention.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(torch.arange(T)[None] + 1)
        x = (inputs[0][1].get("hidden_states") if not inputs[0][0] else inputs[0][0][0]).to(torch.bfloat16)
        arguments = inputs[0][1] | {"hidden_states": x.float(), "cache": None}
        attention(**arguments)
    query, key, scaling = (part[0].numpy() if isinstance(part, torch.Tensor) else part for part in attention.recorded)

    checkpoint = Checkpoint(folder)
    assert checkpoint.config["model_type"] in FAMILIES
    weights, _ = checkpoint.load_layer(0, "none")
    cos, sin = RopeTable.from_hf(checkpoint.config).at(np.arange(T))
    cache = make_cache(checkpoint.dims, False, 1, T)
    got = reference_run(weights, x[0].float().numpy().astype(BF16), cos, sin, np.arange(T), cache)
    nope, rope, latents, keys = (
        part.astype(np.float32)
        for part in (got.query_nope, got.query_rope, got.kv_cache[0, :, 0], got.kr_cache[0, :, 0])
    )
    of_rope = np.einsum("tnr,sr->nts", rope, keys)
    d = checkpoint.dims.qk_nope_head_dim
    wanted = query[..., d:] @ key[..., d:].transpose(0, 2, 1)
    assert np.abs(of_rope - wanted).max() <= 2.0**-6 * np.abs(wanted).max()
    scores = np.einsum("tnc,sc->nts", nope, latents) + of_rope
    wanted = query @ key.transpose(0, 2, 1)
    assert np.abs(scores - wanted).max() <= 2.0**-6 * np.abs(wanted).max()
    assert softmax_scale(checkpoint.config) == pytest.approx(scaling, rel=1e-12)
    assert softmax_scale(model.config) == softmax_scale(checkpoint.config)

    of_object, of_file = read_model_config(model.config, "model.config"), read_model_config(checkpoint.config)
    assert (of_object.model_type, of_object.rope_interleave) == (of_file.model_type, of_file.rope_interleave)
    assert of_object.epsilon == of_file.epsilon
    frequencies = (RopeTable.from_hf(each).frequencies.tolist() for each in (model.config, checkpoint.config))
    assert next(frequencies) == next(frequencies)


def test_each_family_that_transformers_has_is_here():
    known = {name.split()[0] for name in MODELS}
    assert set(FAMILIES) - known == {"kimi_k2", "kimi_k25"}  # whose text model is DeepSeek-V3's


@pytest.mark.parametrize(
    ("stem", "setting"),
    [
        ("KimiLinear", "model_type: .*its keys have no rope"),
        ("LongcatFlash", "model_type: .*mla_scale_q_lora and mla_scale_kv_lora"),
        ("DeepseekV4", "model_type: .*compressed over tokens|compress_rates"),
        ("Mistral4", "rope_(scaling|parameters).llama_4_scaling_beta"),
        ("Llama", "model_type"),
    ],
)
def test_their_other_configurations_are_refused(stem, setting):
    config = getattr(transformers, f"{stem}Config")()
    for given in (config, config.to_dict()):
        with pytest.raises(ValueError, match=rf"^model\.config\.({setting})"):
            read_model_config(given, "model.config")
