"""A rank's heads of a checkpoint: the shard of the whole layer, of every format, and no row of other heads read."""

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.checkpoint_maker import CODED, PLAIN, make_checkpoint, prefix
from safetensors.numpy import load_file, save_file

from mla_numba import Checkpoint, HeadShard, MlaDims
from mla_numba.weights.checkpoint_formats import StoredWeight

DIMS = MlaDims(130, 5, 70, 68, 5, 6)
V, BLOCK = 4, (32, 48)  # no head begins with a block
ARRAYS = ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv")


@pytest.fixture(params=[*PLAIN, *CODED])
def checkpoint(request, tmp_path):
    make_checkpoint(tmp_path, DIMS, V, dtype=request.param, block=BLOCK)
    return Checkpoint(tmp_path)


@pytest.mark.parametrize("quant", ["none", "ab"])
def test_is_the_shard_of_the_layer(checkpoint, quant):
    whole, w_uv = checkpoint.load_layer(0, quant)
    for rank in range(3):
        got, got_w_uv = checkpoint.load_layer(0, quant, shard=(rank, 3))
        want = whole.shard(rank, 3)
        assert got.head_shard == HeadShard(rank, 3, 5)
        heads = got.head_shard.heads
        assert_same_bits("w_uv", got_w_uv, w_uv[heads.start : heads.stop])
        for name in (*ARRAYS, *(f"dequant_scale_{name}" for name in ("w_dq", "w_uq_qr", "w_dkv_kr"))):
            if getattr(want, name) is not None:
                assert_same_bits(name, getattr(got, name), getattr(want, name))


def test_reads_its_own_rows_only(tmp_path, monkeypatch):
    make_checkpoint(tmp_path, DIMS, V)
    n_rows = {}
    read = StoredWeight.read_bf16

    def counted(self, out):
        n_rows[self.name.split(".")[-2]] = len(self.stored)
        read(self, out)

    monkeypatch.setattr(StoredWeight, "read_bf16", counted)
    Checkpoint(tmp_path).load_layer(0, "none", shard=(4, 5))
    assert n_rows["q_b_proj"] == DIMS.q_head_dim
    assert n_rows["kv_b_proj"] == DIMS.qk_nope_head_dim + V
    assert n_rows["q_a_proj"] == DIMS.q_lora_rank


@pytest.mark.parametrize(
    ("shard", "error", "text"),
    [
        ((0, 6), ValueError, r"^size: expected at most 5 ranks, one for each head, got 6"),
        ((5, 5), ValueError, r"^rank: expected at most 4, got 5"),
        (("0", 5), TypeError, r"^rank: expected int, got str"),
        ([0, 5], TypeError, r"^shard: expected a tuple \(rank, size\) or None, got \[0, 5\]"),
        ((0, 1, 2), TypeError, r"^shard: expected a tuple"),
    ],
)
def test_that_cannot_be(tmp_path, shard, error, text):
    make_checkpoint(tmp_path, DIMS, V)
    with pytest.raises(error, match=text):
        Checkpoint(tmp_path).load_layer(0, shard=shard)


def test_rows_that_are_not_finite_are_named_as_in_the_file(tmp_path):
    make_checkpoint(tmp_path, DIMS, V, "bf16", n_shards=1, layers=(0,))
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    tensors[f"{prefix(0)}kv_b_proj.weight"][40, 3] = np.nan
    save_file(tensors, path)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.load_layer(0, "none", shard=(0, 5))  # rows 0 to 8
    with pytest.raises(ValueError, match=r"kv_b_proj.weight: expected finite values, got NaN or Inf in row 40$"):
        checkpoint.load_layer(0, "none", shard=(4, 5))
