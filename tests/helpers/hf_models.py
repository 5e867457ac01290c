"""Small random DeepSeek models of transformers, saved and loaded again."""

import torch
from shared.random_deepseek import save_random_model
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    Glm4MoeLiteForCausalLM,
    GlmMoeDsaForCausalLM,
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Mistral4ForCausalLM,
    YoutuForCausalLM,
)

YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10000.0,
}  # fmt: skip
SMALL = {
    "vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24,
    "first_k_dense_replace": 2, "intermediate_size": 192, "moe_intermediate_size": 48, "n_routed_experts": 8,
    "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "max_position_embeddings": 128,
    "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
INDEXER = {"index_n_heads": 4, "index_head_dim": 32, "index_topk": 2048}


def save_model(folder, seed=0, indexer=False, habit=1.0, **config):
    """Writes a random bf16 model; `indexer` makes it a DeepSeek-V3.2. `habit`: see `save_random_model`."""
    if indexer:
        save_random_model(folder, DeepseekV32Config(**SMALL | INDEXER | config), seed, habit)
    else:
        save_random_model(folder, DeepseekV3Config(**SMALL | config), seed, habit)


def load_model(folder, dtype=torch.bfloat16, indexer=False, **changes):
    """The saved model, its rope in float32 whatever the dtype."""
    kind = DeepseekV32ForCausalLM if indexer else DeepseekV3ForCausalLM
    return kind.from_pretrained(folder, dtype=dtype, **changes).eval()


def make_prompt(batch, n, seed=0):
    return torch.randint(1, SMALL["vocab_size"], (batch, n), generator=torch.Generator().manual_seed(seed))


def generate(model, prompt, n, **settings):
    """Greedy unless `settings` say otherwise: tokens behind the prompt, and the logits that chose them in float32."""
    settings = {"do_sample": False, "attention_mask": torch.ones_like(prompt)} | settings
    out = model.generate(prompt, max_new_tokens=n, return_dict_in_generate=True, output_logits=True, **settings)
    return out.sequences[:, prompt.shape[1] :], torch.stack(out.logits, dim=1).float()


KINDS = {
    "moe": {},
    "dense": {"first_k_dense_replace": 3},
    "halves": {"first_k_dense_replace": 3, "rope_interleave": False, "rms_norm_eps": 1e-2},
    "yarn": {"first_k_dense_replace": 3, "rope_parameters": YARN},
    "v32": {"indexer": True, "first_k_dense_replace": 3},
    "v32 sparse": {"indexer": True, "index_topk": 8},
}


def rope(beta):
    return YARN | {"llama_4_scaling_beta": beta, "max_position_embeddings": 128}


# Other models with this prolog; of a wide epsilon, which transformers' norms do not take.
RELATIVES = {
    "glm-5": (GlmMoeDsaForCausalLM, INDEXER | {"indexer_types": ["full", "shared", "full"]}),
    "glm-5 sparse": (GlmMoeDsaForCausalLM, INDEXER | {"indexer_types": ["full", "shared", "shared"], "index_topk": 8}),
    "glm-4.7-flash": (Glm4MoeLiteForCausalLM, {"mlp_layer_types": ["dense", "dense", "sparse"], "rms_norm_eps": 1e-2}),
    "glm-4.7-flash halves": (Glm4MoeLiteForCausalLM, {"mlp_layer_types": ["dense"] * 3, "rope_interleave": False}),
    "youtu": (YoutuForCausalLM, {"tie_word_embeddings": False, "rope_parameters": YARN}),
    "mistral-4": (Mistral4ForCausalLM, {"first_k_dense_replace": 3, "rope_parameters": rope(0.0)}),
    "mistral-4 halves": (
        Mistral4ForCausalLM, {"first_k_dense_replace": 3, "rope_parameters": rope(0.0), "rope_interleave": False},
    ),
}  # fmt: skip


def save_kimi_k25(folder):
    """A Kimi-K2.5, whose language model is a DeepSeek-V3."""
    text = DeepseekV3Config(**SMALL | {"first_k_dense_replace": 3})
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=32, tie_word_embeddings=False
    )
    save_random_model(folder, config, 0, 1.0, Kimi_K25ForConditionalGeneration)


def save_relative(folder, kind, **changes):
    model, settings = RELATIVES[kind]
    save_random_model(folder, model.config_class(**SMALL | settings | changes), 0, 1.0, model)


def load_relative(folder, kind, dtype=torch.bfloat16):
    return RELATIVES[kind][0].from_pretrained(folder, dtype=dtype).eval()


class Saved:
    """A saved model: its folder, and how to load it."""

    def __init__(self, folder, kind):
        self.folder = folder
        self.is_v32 = kind.startswith("v32")
        save_model(folder, **KINDS[kind])

    def load(self, dtype=torch.bfloat16, **changes):
        return load_model(self.folder, dtype, self.is_v32, **changes)


def forward(model, tokens, **arguments):
    with torch.no_grad():
        return model(tokens, **arguments).logits.float()
