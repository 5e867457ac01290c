"""DeepSeek-V3's settings of its rope."""

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
PLAIN_CONFIG = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "rope_theta": 10000, "max_position_embeddings": 163840}
CONFIG = PLAIN_CONFIG | {"rope_scaling": YARN}  # DeepSeek-V3's
