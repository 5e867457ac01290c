"""What published models' config.json say of their attention, and what must come of it."""

from mla_numba import MlaDims

YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False,
    "attention_dropout": 0.0, "hidden_size": 7168, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000, "rope_scaling": YARN, "v_head_dim": 128,
}  # fmt: skip
DEEPSEEK_V32 = DEEPSEEK | {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "index_head_dim": 128,
    "index_n_heads": 64, "index_topk": 2048,
}  # fmt: skip
KIMI_K2 = DEEPSEEK | {
    "model_type": "kimi_k2", "num_attention_heads": 64, "num_key_value_heads": 64, "max_position_embeddings": 131072,
    "rope_theta": 50000.0, "rope_scaling": YARN | {"factor": 32.0, "beta_fast": 1.0},
}  # fmt: skip
KIMI_K25_TEXT = KIMI_K2 | {
    "max_position_embeddings": 262144, "rms_norm_eps": 1e-05, "rope_scaling": YARN | {"factor": 64.0},
    "_name_or_path": "", "add_cross_attention": False, "cross_attention_hidden_size": None,
}  # fmt: skip
KIMI_K25 = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "text_config": KIMI_K25_TEXT,
    "vision_config": {"hidden_size": 1152},
}
KIMI_K27 = KIMI_K25 | {
    "text_config": {key: value for key, value in KIMI_K25_TEXT.items() if key != "rope_scaling"}
    | {
        "model_type": "deepseek_v3",
        "rope_parameters": YARN | {"factor": 64.0, "rope_theta": 50000.0, "rope_type": "yarn"},
    }
}
GLM = {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "attention_bias": False,
    "attention_dropout": 0.0, "head_dim": 64, "hidden_size": 6144, "index_head_dim": 128, "index_n_heads": 32,
    "index_topk": 2048, "indexer_rope_interleave": True, "kv_lora_rank": 512, "max_position_embeddings": 202752,
    "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 2048, "qk_head_dim": 256,
    "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-05, "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "v_head_dim": 256,
}  # fmt: skip
GLM_52 = GLM | {
    "head_dim": 192, "index_share_for_mtp_iteration": True, "index_skip_topk_offset": 3, "index_topk_freq": 4,
    "index_topk_pattern": None, "indexer_types": ["full", "shared"], "max_position_embeddings": 1048576,
    "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
}  # fmt: skip
KIMI_K3 = {
    "architectures": ["KimiK3ForConditionalGeneration"],
    "model_type": "kimi_k3",
    "text_config": {
        "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "attn_res_block_size": 12,
        "hidden_size": 7168, "kv_lora_rank": 512, "mla_use_nope": True, "mla_use_output_gate": True,
        "num_attention_heads": 96, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05, "v_head_dim": 128,
    },
}  # fmt: skip
DEEPSEEK_V4 = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "attention_bias": False, "head_dim": 512,
    "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 1, "o_lora_rank": 1024, "q_lora_rank": 1024,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": YARN | {"factor": 16}, "rope_theta": 10000,
    "sliding_window": 128, "compress_rope_theta": 160000, "compress_ratios": [0, 4, 128],
}  # fmt: skip
DEEPSEEK_V4_SGLANG = DEEPSEEK_V4 | {"model_type": "deepseek_ref"}

_KIMI = MlaDims(7168, 64, 1536, 512, 128, 64)
_GLM = MlaDims(6144, 64, 2048, 512, 192, 64)
# Model: its configuration, dimensions, epsilon.
COMPUTED = {
    "DeepSeek-V3, R1, V3.1": (DEEPSEEK, MlaDims.deepseek_v32(), 1e-6),
    "DeepSeek-V3.2": (DEEPSEEK_V32, MlaDims.deepseek_v32(), 1e-6),
    "Kimi-K2": (KIMI_K2, _KIMI, 1e-6),
    "Kimi-K2.5, K2.6": (KIMI_K25, _KIMI, 1e-5),
    "Kimi-K2.7": (KIMI_K27, _KIMI, 1e-5),
    "GLM-5, 5.1": (GLM, _GLM, 1e-5),
    "GLM-5.2": (GLM_52, _GLM, 1e-5),
}
# Model: its configuration, and the setting that refuses it.
REFUSED = {
    "Kimi-K3": (KIMI_K3, "config.text_config.mla_use_nope: expected false (the prolog rotates the rope columns)"),
    "DeepSeek-V4": (DEEPSEEK_V4, "config.compress_ratios: expected none (the prolog computes keys of single tokens)"),
    "DeepSeek-V4 of SGLang": (DEEPSEEK_V4_SGLANG, "config.compress_ratios: expected none"),
}
