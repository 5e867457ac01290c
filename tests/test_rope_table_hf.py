"""Rope tables against transformers' own, for the same configurations."""

import numpy as np
import pytest
from helpers import BF16
from helpers.rope_configs import CONFIG, PLAIN_CONFIG, YARN

from mla_numba.rope_table import RopeTable, softmax_scale

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DeepseekV3Config  # noqa: E402
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs  # noqa: E402

SCALINGS = {
    "plain": None,
    "V3": YARN,
    "V2": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "no mscale": {k: v for k, v in YARN.items() if "mscale" not in k},
    "no width": YARN | {"beta_fast": 4, "beta_slow": 4},
    "untruncated": YARN | {"truncate": False},
}
POSITIONS = np.concatenate([np.arange(8192), np.arange(8192, 163840, 61)])


@pytest.fixture(params=SCALINGS)
def config(request):
    scaling = SCALINGS[request.param]
    return PLAIN_CONFIG if scaling is None else CONFIG | {"rope_scaling": scaling}


def theirs_of(config):
    settings = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    return DeepseekV3Config(**settings, hidden_size=32, num_attention_heads=2, q_lora_rank=8, kv_lora_rank=8)


def test_frequencies_have_the_same_bits(config):
    rope = theirs.DeepseekV3RotaryEmbedding(theirs_of(config))
    table = RopeTable.from_hf(config)
    assert table.frequencies.tolist() == rope.inv_freq.tolist()
    assert table.attention_factor == rope.attention_scaling


def test_their_own_config_object_reads_alike(config):
    assert RopeTable.from_hf(theirs_of(config)).frequencies.tolist() == RopeTable.from_hf(config).frequencies.tolist()


def test_tables_are_equal(config):
    """Torch's float32 cos and sin are not correctly rounded, so that a few land on another side of a tie of bf16."""
    rope = theirs.DeepseekV3RotaryEmbedding(theirs_of(config))
    like = torch.zeros(1, dtype=torch.bfloat16)
    want = rope(like, torch.from_numpy(POSITIONS)[None])
    for got, other in zip(RopeTable.from_hf(config).at(POSITIONS), want, strict=True):
        bits = other[0].view(torch.int16).numpy()
        apart = np.abs(got.view(np.int16).astype(int) - bits)
        assert got.shape == bits.shape
        assert got.dtype == BF16
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-5


def test_softmax_scale(config):
    attention = theirs.DeepseekV3Attention(theirs_of(config), 0)
    assert softmax_scale(config) == pytest.approx(attention.scaling, rel=1e-15)
