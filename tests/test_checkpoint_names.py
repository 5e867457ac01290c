"""Tensors by their names: every prefix that is read, what is passed over, and that nothing else is."""

import json
import re

import numpy as np
import pytest
from helpers import BF16, assert_same_bits
from helpers.checkpoint_maker import linear_shapes, make_checkpoint, prefix, write_checkpoint

from mla_numba import Checkpoint, MlaDims
from mla_numba.weights.tensor_names import PREFIXES

DIMS = MlaDims(20, 1, 6, 4, 3, 2)
V = 2
OWN = {
    "q_a_proj": "wq_a", "q_a_layernorm": "q_norm", "q_b_proj": "wq_b", "kv_a_proj_with_mqa": "wkv_a",
    "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b", "weight_scale_inv": "scale",
}  # fmt: skip


def renamed(tensors, to):
    """The tensors under another prefix, and DeepSeek's own names where the prefix is theirs."""
    found = {}
    for name, tensor in tensors.items():
        layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.(.+)", name).groups()
        if to.endswith(".attn."):
            rest = ".".join(OWN.get(part, part) for part in rest.split("."))
        found[to.replace("N", layer) + rest] = tensor
    return found


def assert_same_weights(got, want):
    for name in ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv"):
        assert_same_bits(name, getattr(got, name), getattr(want, name))


@pytest.fixture
def tensors(tmp_path):
    return make_checkpoint(tmp_path, DIMS, V, "fp8", 0, (0, 3))


def rewrite(folder, tensors, **config):
    write_checkpoint(folder, json.loads((folder / "config.json").read_text()) | config, tensors, 0)
    return Checkpoint(folder)


def refusal(folder, tensors, layer=0, **config):
    with pytest.raises(ValueError, match=r": expected ") as caught:
        rewrite(folder, tensors, **config).load_layer(layer)
    return str(caught.value).replace(str(folder), "FOLDER")


class TestPrefixes:
    @pytest.mark.parametrize("to", PREFIXES)
    def test_each_is_read_alike(self, tmp_path, tensors, to):
        want = Checkpoint(tmp_path).load_layer(3, "none").weights
        moved = renamed(tensors, to) | {"vision_tower.layers.0.attn.wq_a.weight": np.ones(3, BF16)}
        checkpoint = rewrite(tmp_path, moved)
        assert checkpoint.layers == [0, 3]
        names = []
        assert_same_weights(checkpoint.load_layer(3, "none", finished=names.append).weights, want)
        assert set(names) == {name for name in moved if name.startswith(to.replace("N", "3")) and "scale" not in name}

    def test_two_of_one_layer(self, tmp_path, tensors):
        both = tensors | renamed({n: t for n, t in tensors.items() if n.startswith(prefix(0))}, PREFIXES[1])
        text = "FOLDER: expected one attention of layer 0, got language_model.model.layers.0.self_attn. and "
        assert refusal(tmp_path, both) == f"{text}{prefix(0)}"
        rewrite(tmp_path, both).load_layer(3)

    def test_a_layer_that_is_not_there(self, tmp_path, tensors):
        text = "layer: expected one of 0, 3 in FOLDER (model.layers.N.self_attn.), got 1"
        assert refusal(tmp_path, tensors, 1) == text
        text = "layer: expected one of 0, 3 in FOLDER (layers.N.attn.), got 1"
        assert refusal(tmp_path, renamed(tensors, PREFIXES[-1]), 1) == text

    @pytest.mark.parametrize(
        "where", ["model.layers.0.self_attn.0.", "model.layers.0.attention.", "model.layers.00.self_attn."]
    )
    def test_none(self, tmp_path, tensors, where):
        moved = {f"{where}kv_b_proj.weight": np.ones(3, BF16), "lm_head.weight": np.ones(3, BF16)}
        looked_for = " or ".join(PREFIXES)
        got = re.sub(r"\.\d+\.", ".N.", f"{where}kv_b_proj.weight, lm_head.weight")
        assert (
            refusal(tmp_path, moved) == f"layer: expected tensors of an attention, {looked_for}, in FOLDER, got {got}"
        )
        assert Checkpoint(tmp_path).layers == []

    def test_none_among_many_and_none_at_all(self, tmp_path, tensors):
        many = {f"model.layers.{i}.mlp.{name}.weight": np.ones(3, BF16) for i in range(9) for name in "abcdef"}
        assert refusal(tmp_path, many).endswith(
            "got model.layers.N.mlp.a.weight, model.layers.N.mlp.b.weight, model.layers.N.mlp.c.weight, "
            "model.layers.N.mlp.d.weight and 2 other kinds"
        )
        assert refusal(tmp_path, {}).endswith("got no tensors")


PASSED = (
    "o_proj.weight", "o_proj.weight_scale_inv", "o_proj.bias", "rotary_emb.inv_freq", "indexer.wq_b.weight",
    "indexer.k_norm.bias", "indexer.weights_proj.weight", "k_proj.k_scale", "v_proj.v_scale", "k_scale",
    "mla_attn.mla_attn.k_scale",
)  # fmt: skip


@pytest.mark.parametrize("name", PASSED)
def test_what_the_prolog_does_not_compute_is_passed(tmp_path, tensors, name):
    want = Checkpoint(tmp_path).load_layer(0).weights
    got = rewrite(tmp_path, tensors | {prefix(0) + name: np.full(3, np.nan, np.float32)}).load_layer(0).weights
    assert_same_weights(got, want)


@pytest.mark.parametrize("kind", ["bias", "weight_mask", "weight_shape", "output_scale", "module.weight", "bias\n"])
@pytest.mark.parametrize("module", [*linear_shapes(DIMS, V)])
def test_a_tensor_beside_a_weight(tmp_path, tensors, module, kind):
    name = f"{prefix(0)}{module}.{kind}"
    known = "weight" if "norm" in module else "weight, weight_scale_inv, weight_scale, scale, weight_offset"
    text = f"expected no tensor of {prefix(0)}{module} but {known}, got one that the prolog does not apply"
    assert refusal(tmp_path, tensors | {name: np.zeros(1, BF16)}) == f"FOLDER: {name}: {text}"


@pytest.mark.parametrize("kind", ["weight_scale_inv", "weight_offset", "scale"])
def test_a_norm_has_no_scale(tmp_path, tensors, kind):
    name = f"{prefix(0)}kv_a_layernorm.{kind}"
    text = f"expected no tensor of {prefix(0)}kv_a_layernorm but weight, got one that the prolog does not apply"
    assert refusal(tmp_path, tensors | {name: np.ones(1, BF16)}) == f"FOLDER: {name}: {text}"


@pytest.mark.parametrize(
    "name", ["q_norm.weight", "gate.weight", "q_proj.weight", "sinks", "fa_q.scale", "wq_a.weight", "o_proj2"]
)
def test_another_module(tmp_path, tensors, name):
    text = "expected tensors of q_a_proj, q_b_proj, kv_a_proj_with_mqa, kv_b_proj, q_a_layernorm, kv_a_layernorm, "
    text += "o_proj and the indexer, got one that the prolog does not compute"
    assert refusal(tmp_path, tensors | {prefix(0) + name: np.ones(1, BF16)}) == f"FOLDER: {prefix(0)}{name}: {text}"
    rewrite(tmp_path, tensors | {prefix(3) + name: np.ones(1, BF16)}).load_layer(0)  # another layer's


def test_another_module_of_deepseek_s_own_names(tmp_path, tensors):
    moved = renamed(tensors, "layers.N.attn.") | {"layers.0.attn.q_a_proj.weight": np.ones(1, BF16)}
    text = "layers.0.attn.q_a_proj.weight: expected tensors of wq_a, wq_b, wkv_a, wkv_b, q_norm, kv_norm, o_proj and "
    assert refusal(tmp_path, moved).startswith(f"FOLDER: {text}")
    moved = renamed(tensors, "layers.N.attn.") | {"layers.0.attn.wq_a.bias": np.ones(1, BF16)}
    assert refusal(tmp_path, moved).startswith(
        "FOLDER: layers.0.attn.wq_a.bias: expected no tensor of layers.0.attn.wq_a but "
    )
    moved = renamed({n: t for n, t in tensors.items() if "kv_b_proj" not in n}, "layers.N.attn.")
    assert refusal(tmp_path, moved) == "FOLDER: layers.0.attn.wkv_b.weight: expected a tensor of that name, got none"


FORMATS = {  # what stands in the place of a weight, and what that is called
    ("qweight", "qzeros", "scales"): "AWQ or GPTQ",
    ("qweight", "qzeros", "scales", "g_idx"): "GPTQ",
    ("weight_packed", "weight_scale", "weight_shape"): "packed weights of compressed-tensors",
    ("weight_packed", "weight_scale", "weight_global_scale"): "NVFP4",
    ("weight", "weight_scale", "weight_scale_2", "input_scale"): "NVFP4",
    ("weight_blocks", "weight_scales"): "MXFP4",
    ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"): "bitsandbytes 4-bit",
    ("weight", "SCB", "weight_format"): "bitsandbytes int8",
    ("weight", "weight_scale", "input_scale"): "activations with static scales",
    ("weight", "weight_scale_inv", "activation_scale"): "activations with static scales",
    ("weight", "deq_scale", "quant_bias", "input_scale", "input_offset"): (
        "W8A8 of ModelSlim, whose activations have static scales,"
    ),
    ("weight", "weight_scale", "weight_scale_second", "scale_bias"): "W4A8 of ModelSlim",
    ("weight", "weight_scale", "weight_zero_point"): "asymmetric codes",
    ("weight", "lora_A.weight", "lora_B.weight"): "a LoRA adapter",
    ("W_q", "meta"): "HQQ",
    ("codes", "codebooks", "scales"): "AQLM",
}


@pytest.mark.parametrize(("kinds", "name"), FORMATS.items(), ids=list(FORMATS.values()))
def test_formats_that_are_not_read_are_named(tmp_path, tensors, kinds, name):
    module = f"{prefix(0)}kv_b_proj"
    others = {n: t for n, t in tensors.items() if not n.startswith(f"{module}.")}
    here = others | {f"{module}.{kind}": np.ones(4, np.uint8) for kind in kinds}
    text = f"FOLDER: {module}: expected a weight in bf16, float32, float16, FP8 or int8, got {name} "
    text += f"({', '.join(sorted(kinds))})"
    assert refusal(tmp_path, here, quantization_config=None) == text
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    said = "; config.quantization_config: compressed-tensors, pack-quantized"
    assert refusal(tmp_path, here, quantization_config=config) == text + said
    assert 0 in Checkpoint(tmp_path).layers
