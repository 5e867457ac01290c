"""The rope of published configurations, and of settings that contradict each other, against transformers' own."""

import copy

import numpy as np
import pytest
from helpers.published_configs import COMPUTED, DEEPSEEK, YARN

from mla_numba.rope_table import RopeTable, softmax_scale

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.deepseek_v3 import modeling_deepseek_v3  # noqa: E402
from transformers.models.deepseek_v32 import modeling_deepseek_v32  # noqa: E402
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa  # noqa: E402

THEIRS = {  # the stem of a family's classes, and where they are; Kimi's are those of DeepSeek-V3
    "deepseek_v32": ("DeepseekV32", modeling_deepseek_v32),
    "glm_moe_dsa": ("GlmMoeDsa", modeling_glm_moe_dsa),
}
V3 = "DeepseekV3", modeling_deepseek_v3

PLAIN = {"rope_type": "default", "rope_theta": 1e4}
NEWER = {key: value for key, value in YARN.items() if key != "type"} | {"rope_type": "yarn", "rope_theta": 1e4}
UNTRAINED = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
CONFLICTS = {
    "rope_scaling beside rope_parameters": {"rope_scaling": YARN, "rope_parameters": PLAIN},
    "the same without a theta of its own": {"rope_scaling": YARN, "rope_parameters": PLAIN, "rope_theta": ...},
    "an empty rope_scaling beside rope_parameters": {"rope_scaling": {}, "rope_parameters": NEWER},
    "rope_theta in both": {"rope_scaling": None, "rope_parameters": NEWER | {"rope_theta": 5e4}, "rope_theta": 1e4},
    "type and rope_type yarn": {"rope_scaling": YARN | {"rope_type": "yarn"}},
    "type linear, rope_type yarn": {"rope_scaling": YARN | {"type": "linear", "rope_type": "yarn"}},
    "type yarn, rope_type default": {"rope_scaling": {"type": "yarn", "rope_type": "default"}},
    "a trained length at the top": {"rope_scaling": UNTRAINED, "original_max_position_embeddings": 4096},
    "a trained length at the top and another": {"rope_scaling": YARN, "original_max_position_embeddings": 8192},
    "no trained length": {"rope_scaling": UNTRAINED},
    "another factor than the lengths have": {"rope_scaling": YARN | {"factor": 3}},
    "a null factor": {"rope_scaling": YARN | {"factor": None}},
    "a factor below 1": {"rope_scaling": YARN | {"factor": 0.5}},
    "betas of 0": {"rope_scaling": YARN | {"beta_fast": 0, "beta_slow": None}},
    "betas the other way round": {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 32}},
    "truncate null": {"rope_scaling": YARN | {"truncate": None}},
    "an attention factor": {"rope_scaling": YARN | {"attention_factor": 0.5}},
    "mscale of 0": {"rope_scaling": YARN | {"mscale": 0}},
    "a factor of 1 without a type": {"rope_scaling": {"factor": 1.0}},
}  # fmt: skip


def theirs_of(config, **changes):
    """Their configuration, rope and attention."""
    stem, module = THEIRS.get(config["model_type"], V3)
    left_out = ("architectures", "model_type")
    settings = {k: copy.deepcopy(v) for k, v in (config | changes).items() if v is not ... and k not in left_out}
    made = getattr(transformers, f"{stem}Config")(**settings)
    return made, getattr(module, f"{stem}RotaryEmbedding"), getattr(module, f"{stem}Attention")


def ours_of(config):
    return {key: value for key, value in config.items() if value is not ...}


def assert_same_frequencies(ours, theirs):
    """To the bit for a theta of 10000; torch's power is one unit of float32 off for some others."""
    units = np.abs(ours.view(np.int32) - theirs.numpy().view(np.int32))
    assert units.max() <= 1


def assert_same(config):
    theirs, rotary, attention = theirs_of(config)
    table, rope = RopeTable.from_hf(ours_of(config)), rotary(theirs)
    assert_same_frequencies(table.frequencies, rope.inv_freq)
    assert table.attention_factor == rope.attention_scaling
    if theirs.rope_parameters["rope_type"] == "yarn":
        frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs)
        assert_same_frequencies(table.frequencies, frequencies)
        assert table.attention_factor == factor
    if theirs.rope_parameters.get("factor", 1) is not None:  # their attention fails on a null, their rope does not
        small = theirs_of(config, hidden_size=8, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)[0]
        assert softmax_scale(ours_of(config)) == pytest.approx(attention(small, 0).scaling, rel=1e-15)


@pytest.mark.parametrize("model", COMPUTED)
def test_published(model):
    config = COMPUTED[model][0]
    config = config.get("text_config", config)
    assert_same(config)
    assert RopeTable.from_hf(COMPUTED[model][0]).frequencies.tolist() == RopeTable.from_hf(config).frequencies.tolist()


@pytest.mark.parametrize("case", CONFLICTS)
def test_settings_that_contradict_each_other(case):
    assert_same(DEEPSEEK | CONFLICTS[case])
