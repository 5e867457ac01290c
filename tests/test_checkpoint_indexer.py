"""Indexers of small checkpoints: every dtype and prefix, and each fault by file and tensor."""

import json
import re

import numpy as np
import pytest
from helpers import BF16, assert_same_bits
from helpers.checkpoint_maker import CODED, config_of, indexer_tensors, layer_tensors, prefix, write_checkpoint

from mla_numba import Checkpoint, IndexerDims, IndexerWeights, MlaDims, sylvester_hadamard
from mla_numba.weights.quantize import quantize_columns
from mla_numba.weights.tensor_names import PREFIXES

pytest.importorskip("safetensors")
LAYER = MlaDims(140, 2, 130, 8, 6, 4)  # no dimension is a multiple of 128
V = 3
DIMS = IndexerDims(140, 130, 3, 16, 4)
ARRAYS = ("w_qb", "w_qb_scale", "wk", "w_proj", "ln_gamma_k", "ln_beta_k", "hadamard_q", "hadamard_k")


def make(folder, dtype="fp8", layers=(0, 2), n_shards=2, attention="bf16", **config):
    """A model of three layers, of which `layers` have an indexer. Returns the tensors."""
    rng = np.random.default_rng(3)
    tensors = {}
    for layer in range(3):
        tensors |= layer_tensors(rng, LAYER, V, layer, attention)
        if layer in layers:
            tensors |= indexer_tensors(rng, DIMS, layer, dtype)
    settings = config_of(LAYER, V, dtype) | {"index_n_heads": 3, "index_head_dim": 16, "index_topk": 4}
    settings |= {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"} | config
    settings = {name: value for name, value in settings.items() if value is not ...}
    write_checkpoint(folder, settings, tensors, n_shards)
    return tensors


def dequantised(tensors, name):
    """A Linear's (out, in) weight as bf16, element by element."""
    weight = tensors[f"{name}.weight"]
    scales = [tensors[f"{name}.{kind}"] for kind in ("weight_scale_inv", "weight_scale") if f"{name}.{kind}" in tensors]
    if not scales:
        return weight.astype(BF16)
    scale = scales[0].astype(np.float32)
    n_rows, n_columns = 1 if len(scale) == len(weight) else 128, 128 if scale.shape[1] > 1 else weight.shape[1]
    rows, columns = np.indices(weight.shape)
    return (weight.astype(np.float32) * scale[rows // n_rows, columns // n_columns]).astype(BF16)


def assert_indexer(got, tensors, layer):
    name = f"{prefix(layer)}indexer."
    assert got.dims == DIMS
    assert got.epsilon == 1e-6
    codes, scale, error = quantize_columns("w_qb", np.ascontiguousarray(dequantised(tensors, f"{name}wq_b").T))
    assert_same_bits("w_qb", got.w_qb, codes)
    assert_same_bits("w_qb_scale", got.w_qb_scale, scale)
    assert got.quantization.errors == {"w_qb": error}
    for ours, module in (("wk", "wk"), ("w_proj", "weights_proj")):
        assert_same_bits(ours, getattr(got, ours), np.ascontiguousarray(dequantised(tensors, f"{name}{module}").T))
    for ours, kind in (("ln_gamma_k", "weight"), ("ln_beta_k", "bias")):
        assert_same_bits(ours, getattr(got, ours), tensors[f"{name}k_norm.{kind}"].astype(BF16))
    for ours in ("hadamard_q", "hadamard_k"):
        assert_same_bits(ours, getattr(got, ours), sylvester_hadamard(16))


def refusal(folder, tensors=None, layer=0, error=ValueError, **config):
    """What loading says after these changes."""
    if tensors is not None:
        write_checkpoint(folder, json.loads((folder / "config.json").read_text()) | config, tensors, 0)
    with pytest.raises(error) as caught:
        Checkpoint(folder).load_indexer(layer)
    return str(caught.value).replace(str(folder), "FOLDER")


class TestLoading:
    @pytest.mark.parametrize("n_shards", [0, 3])
    @pytest.mark.parametrize("dtype", ["fp8", "bf16", "float32", "fp8 rows"])
    def test_every_dtype_and_file_layout(self, tmp_path, dtype, n_shards):
        tensors = make(tmp_path, dtype, n_shards=n_shards)
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.layers == [0, 1, 2]
        assert checkpoint.indexer_layers == [0, 2]
        for layer in (0, 2):
            assert_indexer(checkpoint.load_indexer(layer), tensors, layer)

    @pytest.mark.parametrize("dtype", [name for name in CODED if name.startswith("int8 rows")])
    def test_int8_codes_by_row_stay_as_they_are(self, tmp_path, dtype):
        tensors = make(tmp_path, dtype)
        name = f"{prefix(0)}indexer.wq_b.weight"
        got = Checkpoint(tmp_path).load_indexer(0)
        assert_same_bits("w_qb", got.w_qb, np.ascontiguousarray(tensors[name].T))
        assert_same_bits("w_qb_scale", got.w_qb_scale, tensors[f"{name}_scale"].astype(np.float32).reshape(-1))
        assert got.quantization is None
        assert got.wk.dtype == BF16
        with pytest.raises(ValueError, match=r"^smooth_scales_cq: expected None where .*indexer.wq_b holds int8 codes"):
            Checkpoint(tmp_path).load_indexer(0, np.ones(130, np.float32))

    @pytest.mark.parametrize("to", PREFIXES)
    def test_each_prefix_is_read_alike(self, tmp_path, to):
        tensors = make(tmp_path)
        want = Checkpoint(tmp_path).load_indexer(2)
        own = {"q_a_proj": "wq_a", "q_a_layernorm": "q_norm", "q_b_proj": "wq_b", "kv_a_proj_with_mqa": "wkv_a",
               "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b", "weight_scale_inv": "scale"}  # fmt: skip
        moved = {}
        for name, tensor in tensors.items():
            layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.(.+)", name).groups()
            rest = ".".join(own.get(part, part) for part in rest.split(".")) if to.endswith(".attn.") else rest
            moved[to.replace("N", layer) + rest] = tensor
        write_checkpoint(tmp_path, json.loads((tmp_path / "config.json").read_text()), moved, 0)
        (tmp_path / "model.safetensors.index.json").unlink()
        names = []
        got = Checkpoint(tmp_path).load_indexer(2, finished=names.append)
        for name in ARRAYS:
            assert_same_bits(name, getattr(got, name), getattr(want, name))
        indexer = f"{to.replace('N', '2')}indexer."
        assert {*names} == {f"{indexer}{m}.weight" for m in ("wq_b", "wk", "weights_proj", "k_norm")} | {
            f"{indexer}k_norm.bias"
        }

    @pytest.mark.parametrize(
        ("config", "rope"),
        [
            ({}, "half"),
            ({"model_type": "glm_moe_dsa", "architectures": ["GlmMoeDsaForCausalLM"]}, "interleaved"),
            ({"indexer_rope_interleave": True}, "interleaved"),
            ({"model_type": "glm_moe_dsa", "architectures": ..., "indexer_rope_interleave": False}, "half"),
        ],
    )
    def test_rope(self, tmp_path, config, rope):
        make(tmp_path, "bf16", **config)
        assert Checkpoint(tmp_path).load_indexer(0).rope == rope

    def test_smooth_scales(self, tmp_path):
        tensors = make(tmp_path, "bf16")
        smooth = np.random.default_rng(0).uniform(0.5, 2, 130).astype(np.float32)
        got = Checkpoint(tmp_path).load_indexer(0, smooth[None])
        weight = np.ascontiguousarray(tensors[f"{prefix(0)}indexer.wq_b.weight"].T)
        codes, scale, _ = quantize_columns("w_qb", weight, smooth)
        assert_same_bits("w_qb", got.w_qb, codes)
        assert_same_bits("w_qb_scale", got.w_qb_scale, scale)

    def test_an_indexer_beside_an_attention_of_another_format(self, tmp_path):
        """Published NVFP4 models keep their indexers in bf16."""
        tensors = make(tmp_path, "bf16")
        tensors[f"{prefix(0)}q_b_proj.weight_scale_2"] = np.ones(1, np.float32)
        write_checkpoint(tmp_path, json.loads((tmp_path / "config.json").read_text()), tensors, 0)
        assert_indexer(Checkpoint(tmp_path).load_indexer(0), tensors, 0)

    def test_the_layer_s_prolog_is_read_as_before(self, tmp_path):
        make(tmp_path)
        assert Checkpoint(tmp_path).load_layer(0).weights.dims == LAYER

    def test_loaded_and_random_ones_are_alike(self, tmp_path):
        make(tmp_path, "bf16")
        got, other = Checkpoint(tmp_path).load_indexer(0), IndexerWeights.random(LAYER, n_heads=3, head_dim=16)
        assert (got.dims, got.nbytes) == (other.dims, other.nbytes)


class TestRefused:
    def test_a_layer_without_an_indexer(self, tmp_path):
        tensors = make(tmp_path)
        text = "layer: expected one of 0, 2 in FOLDER, got 1, which has no model.layers.1.self_attn.indexer"
        assert refusal(tmp_path, layer=1) == text
        bare = {name: tensor for name, tensor in tensors.items() if "indexer" not in name}
        text = "layer: expected a model with indexers in FOLDER, got 0, which has no model.layers.0.self_attn.indexer"
        assert refusal(tmp_path, bare) == text
        assert refusal(tmp_path, layer=5).startswith("layer: expected one of 0 to 2 in FOLDER")

    @pytest.mark.parametrize("name", ["index_n_heads", "index_head_dim"])
    def test_no_dimensions(self, tmp_path, name):
        tensors = make(tmp_path)
        text = f"FOLDER/config.json: config.{name}: expected an int (a model without it has no indexer), got none"
        assert refusal(tmp_path, tensors, **{name: None}) == text

    def test_dimensions_of_another_type(self, tmp_path):
        text = "FOLDER/config.json: config.index_head_dim: expected int, got str"
        assert refusal(tmp_path, make(tmp_path), error=TypeError, index_head_dim="16") == text
        text = "FOLDER/config.json: config.indexer_rope_interleave: expected bool, got str"
        assert refusal(tmp_path, make(tmp_path), error=TypeError, indexer_rope_interleave="yes") == text

    @pytest.mark.parametrize(
        "name", ["wq_b.weight", "wk.weight", "weights_proj.weight", "k_norm.weight", "k_norm.bias"]
    )
    def test_missing_and_wrong_tensors(self, tmp_path, name):
        tensors = make(tmp_path, "bf16")
        full = f"{prefix(0)}indexer.{name}"
        without = {n: t for n, t in tensors.items() if n != full}
        assert refusal(tmp_path, without) == f"FOLDER: {full}: expected a tensor of that name, got none"
        file = "FOLDER/model.safetensors"
        wrong = tensors[full][:-1].copy()
        assert refusal(tmp_path, tensors | {full: wrong}).startswith(f"{file}: {full}: expected shape ")
        bad = tensors[full].copy()
        bad.reshape(-1)[1] = np.nan
        assert refusal(tmp_path, tensors | {full: bad}) == (
            f"{file}: {full}: expected finite values, got NaN or Inf in row {0 if bad.ndim == 2 else 1}"
        )
        ints = tensors[full].astype(np.int32)
        assert f"{file}: {full}: expected dtype " in refusal(tmp_path, tensors | {full: ints}, error=TypeError)

    @pytest.mark.parametrize("rest", ["wk.bias", "q_norm.weight", "k_norm.weight_scale", "wq_c.weight"])
    def test_tensors_that_would_have_to_be_applied(self, tmp_path, rest):
        name = f"{prefix(0)}indexer.{rest}"
        tensors = make(tmp_path, "bf16") | {name: np.ones(16, np.float32)}
        text = "expected tensors of wq_b, wk, weights_proj and k_norm of an indexer, got one that it does not compute"
        assert refusal(tmp_path, tensors) == f"FOLDER: {name}: {text}"

    def test_formats_that_are_not_read(self, tmp_path):
        tensors = make(tmp_path, "bf16") | {f"{prefix(0)}indexer.wk.weight_scale_2": np.ones(1, np.float32)}
        assert re.match(rf"FOLDER: {re.escape(prefix(0))}indexer\.wk: expected a weight in .*, got NVFP4", refusal(
            tmp_path, tensors))  # fmt: skip

    def test_rope_tables_are_passed_over(self, tmp_path):
        tensors = make(tmp_path, "bf16") | {f"{prefix(0)}indexer.rotary_emb.inv_freq": np.ones(2, np.float32)}
        write_checkpoint(tmp_path, json.loads((tmp_path / "config.json").read_text()), tensors, 0)
        assert_indexer(Checkpoint(tmp_path).load_indexer(0), tensors, 0)

    def test_heads_that_no_power_of_two_rotates(self, tmp_path):
        text = refusal(tmp_path, make(tmp_path, "bf16"), index_head_dim=24)
        assert text == "FOLDER/config.json: config.index_head_dim: expected a power of two, at most 1024, got 24"
