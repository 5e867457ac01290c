"""Small DeepSeek checkpoints in the Hugging Face layout, made on the spot."""

import json
from dataclasses import asdict

import ml_dtypes
import numpy as np

from mla_numba import MlaDims
from tiling import ceil_div

from .calls import BF16

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
NORMS = ("q_a_layernorm", "kv_a_layernorm")


def linear_shapes(dims, v_head_dim):
    """(out, in) of each Linear, and of each norm its length."""
    d = dims
    return {
        "q_a_proj": (d.q_lora_rank, d.hidden_size),
        "q_a_layernorm": (d.q_lora_rank,),
        "q_b_proj": (d.num_attention_heads * d.q_head_dim, d.q_lora_rank),
        "kv_a_proj_with_mqa": (d.kv_a_dim, d.hidden_size),
        "kv_a_layernorm": (d.kv_lora_rank,),
        "kv_b_proj": (d.num_attention_heads * (d.qk_nope_head_dim + v_head_dim), d.kv_lora_rank),
    }


def prefix(layer):
    return f"model.layers.{layer}.self_attn."


def to_fp8(weight, block):
    """FP8 codes and a scale a block, its largest magnitude over 448, of a float32 weight."""
    rows, columns = (ceil_div(n, b) for n, b in zip(weight.shape, block, strict=True))
    scales = np.ones((rows, columns), np.float32)
    codes = np.zeros(weight.shape, FP8)
    for i in range(rows):
        for j in range(columns):
            here = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scales[i, j] = max(np.abs(weight[here]).max(), 1e-6) / 448
            codes[here] = (weight[here] / scales[i, j]).astype(FP8)
    return codes, scales


def to_int8(weight, block):
    """int8 codes and a scale a block, its largest magnitude over 127."""
    codes = np.zeros(weight.shape, np.int8)
    scales = np.ones([ceil_div(n, b) for n, b in zip(weight.shape, block, strict=True)], np.float32)
    for i, j in np.ndindex(scales.shape):
        here = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
        scales[i, j] = max(np.abs(weight[here]).max(), 1e-6) / 127
        codes[here] = np.rint(weight[here] / scales[i, j])
    return codes, scales


E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
PLAIN = {"bf16": BF16, "float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
CODED = {  # codes; what shares a scale; the name, dtype and shape of the scales (None: as they are)
    "fp8": (to_fp8, "block", "weight_scale_inv", np.float32, None),
    "fp8 blocks, bf16 weight_scale": (to_fp8, "block", "weight_scale", BF16, None),
    "fp8 blocks, E8M0 weight_scale": (to_fp8, "block", "weight_scale", E8M0, None),
    "fp8 rows": (to_fp8, "row", "weight_scale", np.float32, None),
    "fp8 rows, E8M0 (n,)": (to_fp8, "row", "weight_scale_inv", E8M0, (-1,)),
    "fp8 groups of 32, E8M0": (to_fp8, "group", "weight_scale", E8M0, None),
    "fp8 groups of 32, E8M0 as uint8": (to_fp8, "group", "weight_scale_inv", "as uint8", None),
    "fp8 tensor ()": (to_fp8, "tensor", "weight_scale", np.float32, ()),
    "fp8 tensor, float16 (1,)": (to_fp8, "tensor", "weight_scale_inv", np.float16, (1,)),
    "int8 rows": (to_int8, "row", "weight_scale", np.float32, None),
    "int8 rows, bf16 (n,)": (to_int8, "row", "weight_scale", BF16, (-1,)),
    "int8 rows, float16": (to_int8, "row", "weight_scale", np.float16, None),
    "int8 tensor": (to_int8, "tensor", "weight_scale", np.float32, (1,)),
    "int8 blocks": (to_int8, "block", "weight_scale_inv", np.float32, None),
}


def encoded(weight, dtype, block):
    """The tensors of a float32 weight in one of the formats, by their names behind the module's."""
    if dtype in PLAIN:
        return {"weight": weight.astype(PLAIN[dtype])}
    to_codes, shared, kind, scale_dtype, shape = CODED[dtype]
    blocks = {"block": block, "group": (1, 32), "row": (1, weight.shape[1]), "tensor": weight.shape}
    codes, scales = to_codes(weight, blocks[shared])
    scales = scales.astype(E8M0).view(np.uint8) if scale_dtype == "as uint8" else scales.astype(scale_dtype)
    return {"weight": codes, kind: scales if shape is None else scales.reshape(shape)}


def layer_tensors(rng, dims, v_head_dim, layer, dtype, block=(128, 128)):
    """Random tensors of a layer in one of the formats; norms in bf16, or as plain weights are."""
    tensors = {}
    for module, shape in linear_shapes(dims, v_head_dim).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if module in NORMS:
            kinds = {"weight": (1 + 0.1 * values).astype(PLAIN.get(dtype, BF16))}
        else:
            kinds = encoded(values * np.float32(shape[1] ** -0.5), dtype, block)
        tensors |= {f"{prefix(layer)}{module}.{kind}": values for kind, values in kinds.items()}
    return tensors


def indexer_tensors(rng, dims, layer, dtype, block=(128, 128)):
    """Random tensors of a layer's indexer: wq_b and wk in one of the formats, the others plain, the norm in float32."""
    d = dims
    shapes = {"wq_b": (d.query_dim, d.q_lora_rank), "wk": (d.head_dim, d.hidden_size)}
    shapes["weights_proj"] = (d.n_heads, d.hidden_size)
    tensors = {}
    for module, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        kinds = encoded(values, "bf16" if module == "weights_proj" else dtype, block)
        tensors |= {f"{prefix(layer)}indexer.{module}.{kind}": values for kind, values in kinds.items()}
    gamma, beta = 1 + 0.1 * rng.standard_normal((1, d.head_dim)), 0.1 * rng.standard_normal((1, d.head_dim))
    for kind, values in (("weight", gamma), ("bias", beta)):
        tensors[f"{prefix(layer)}indexer.k_norm.{kind}"] = values[0].astype(np.float32)
    return tensors


def config_of(dims, v_head_dim, dtype, block=(128, 128)):
    config = asdict(dims) | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "v_head_dim": v_head_dim,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
    }
    if dtype in CODED:
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    return config


def write_checkpoint(folder, config, tensors, n_shards):
    """`n_shards` 0: a single file without index; else the tensors in turn over that many files, beside others."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if not n_shards:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        here = {name: tensors[name] for name in list(tensors)[i::n_shards]}
        here[f"model.of_no_interest.{i}"] = np.arange(5, dtype=np.int64)
        save_file(here, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(here, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_checkpoint(
    folder, dims, v_head_dim=20, dtype="fp8", n_shards=2, layers=(0, 1), block=(128, 128), indexer=None, **config
):
    """Writes a checkpoint of random weights and returns its tensors. `config` changes fields of its config.json.

    With the `IndexerDims` of an indexer, the last layer has one.
    """
    rng = np.random.default_rng(7)
    tensors = {}
    for layer in layers:
        tensors |= layer_tensors(rng, dims, v_head_dim, layer, dtype, block)
    settings = config_of(dims, v_head_dim, dtype, block)
    if indexer is not None:
        tensors |= indexer_tensors(rng, indexer, layers[-1], dtype, block)
        settings |= {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"}
        settings |= {"index_n_heads": indexer.n_heads, "index_head_dim": indexer.head_dim}
    write_checkpoint(folder, settings | config, tensors, n_shards)
    return tensors


def make_full_size(folder, layer=0):
    """One FP8 layer of DeepSeek-V3.2's dimensions in two shards."""
    make_checkpoint(folder, MlaDims.deepseek_v32(), 128, layers=(layer,))
