"""Weights as checkpoints hold them, each format by its own arithmetic; int8 codes reach the prolog as they are."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from helpers import BF16, QUANTS, assert_exact, assert_same_bits
from helpers.checkpoint_maker import (
    CODED,
    E8M0,
    FP8,
    PLAIN,
    encoded,
    layer_tensors,
    linear_shapes,
    make_checkpoint,
    prefix,
    write_checkpoint,
)

from mla_numba import Checkpoint, MlaDims

DIMS = MlaDims(130, 3, 70, 68, 5, 6)
V = 4
BLOCK = (32, 48)  # no dimension is a multiple of it
FIELDS = {"w_dq": "q_a_proj", "w_uq_qr": "q_b_proj", "w_dkv_kr": "kv_a_proj_with_mqa"}
MODES = {"w_dq": "a", "w_dkv_kr": "a", "w_uq_qr": "b"}
INT8_ROWS = ("int8 rows", "int8 rows, bf16 (n,)", "int8 rows, float16", "int8 tensor")


def values_of(tensors, module):
    """A Linear's weight (out, in) as bf16, element by element."""
    name = f"{prefix(0)}{module}.weight"
    weight = tensors[name]
    scales = next((t for n, t in tensors.items() if n.startswith(f"{name}_scale")), None)
    if scales is None:
        return weight.astype(BF16)
    rows, columns = np.indices(weight.shape)
    scales = scales.view(E8M0) if scales.dtype == np.uint8 else scales
    if scales.size == 1:
        scale = np.broadcast_to(scales.reshape(-1), weight.shape)
    elif scales.size == len(weight):
        scale = scales.reshape(-1)[rows]
    elif len(scales) == len(weight):
        scale = scales[rows, columns // 32]
    else:
        scale = scales[rows // BLOCK[0], columns // BLOCK[1]]
    return (weight.astype(np.float32) * scale.astype(np.float32)).astype(BF16)


def scale_of(tensors, module):
    """A scale for each row, where there is one for each row or for all."""
    name = f"{prefix(0)}{module}.weight"
    return np.resize(tensors[f"{name}_scale"].astype(np.float32), len(tensors[name]))


def assert_codes(weights, name, tensors):
    """The codes and scales of the file, transposed."""
    codes = tensors[f"{prefix(0)}{FIELDS[name]}.weight"]
    assert codes.dtype == np.int8
    assert_same_bits(name, getattr(weights, name), np.ascontiguousarray(codes.T))
    assert_same_bits("scale", getattr(weights, f"dequant_scale_{name}"), scale_of(tensors, FIELDS[name]))


def rewrite(folder, tensors):
    write_checkpoint(folder, json.loads((folder / "config.json").read_text()), tensors, 0)
    return Checkpoint(folder)


@pytest.mark.parametrize("dtype", [*PLAIN, *CODED])
def test_every_format_in_bf16(tmp_path, dtype):
    tensors = make_checkpoint(tmp_path, DIMS, V, dtype, 2, (0,), BLOCK)
    layer = Checkpoint(tmp_path).load_layer(0, "none")
    assert layer.weights.quant == "none"
    for name, module in FIELDS.items():
        assert_same_bits(name, getattr(layer.weights, name), np.ascontiguousarray(values_of(tensors, module).T))
    heads = values_of(tensors, "kv_b_proj").reshape(DIMS.num_attention_heads, -1, DIMS.kv_lora_rank)
    assert_same_bits("w_uk", layer.weights.w_uk, heads[:, : DIMS.qk_nope_head_dim].copy())
    values = heads[:, DIMS.qk_nope_head_dim :].transpose(0, 2, 1)
    assert_same_bits("w_uv", layer.w_uv, np.ascontiguousarray(values))


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("dtype", INT8_ROWS)
def test_int8_rows_are_not_quantised_anew(tmp_path, dtype, quant):
    tensors = make_checkpoint(tmp_path, DIMS, V, dtype, 0, (0,))
    weights = Checkpoint(tmp_path).load_layer(0, quant).weights
    assert weights.quant == quant
    for name, mode in MODES.items():
        if mode in quant:
            assert_codes(weights, name, tensors)
        else:
            want = np.ascontiguousarray(values_of(tensors, FIELDS[name]).T)
            assert_same_bits(name, getattr(weights, name), want)
    assert weights.quantization is None or not weights.quantization.errors  # no error is ours


@pytest.mark.parametrize("dtype", ["int8 blocks", "fp8 rows", "fp8 tensor ()", "float16"])
def test_other_formats_are_quantised_from_bf16(tmp_path, dtype):
    make_checkpoint(tmp_path, DIMS, V, dtype, 0, (0,), BLOCK)
    checkpoint = Checkpoint(tmp_path)
    got, want = checkpoint.load_layer(0, "ab").weights, checkpoint.load_layer(0, "none").weights.quantize("ab")
    for name in MODES:
        for field in (name, f"dequant_scale_{name}"):
            assert_same_bits(field, getattr(got, field), getattr(want, field))
    assert got.quantization == want.quantization


@pytest.mark.parametrize("int8", [["q_b_proj"], ["q_a_proj"], ["kv_a_proj_with_mqa"], ["q_a_proj", "q_b_proj"]])
def test_layers_of_which_some_weights_are_int8(tmp_path, int8):
    tensors = make_checkpoint(tmp_path, DIMS, V, "bf16", 0, (0,))
    tensors |= {
        name: tensor
        for name, tensor in layer_tensors(np.random.default_rng(1), DIMS, V, 0, "int8 rows").items()
        if name.removeprefix(prefix(0)).split(".")[0] in int8
    }
    checkpoint = rewrite(tmp_path, tensors)
    plain = checkpoint.load_layer(0, "none").weights
    for quant in ("a", "b", "ab"):
        got, want = checkpoint.load_layer(0, quant).weights, plain.quantize(quant)
        assert got.quant == quant
        ours = [name for name in MODES if MODES[name] in quant and FIELDS[name] not in int8]
        for name, mode in MODES.items():
            if mode in quant and FIELDS[name] in int8:
                assert_codes(got, name, tensors)
            else:
                assert_same_bits(name, getattr(got, name), getattr(want, name))
        reported = got.quantization.errors if got.quantization else {}
        assert reported == {name: want.quantization.errors[name] for name in ours}


def test_a_prolog_of_int8_codes_is_exact(tmp_path):
    tensors = make_checkpoint(tmp_path, DIMS, V, "int8 rows", 0, (0,))
    for module in FIELDS.values():
        tensors[f"{prefix(0)}{module}.weight"][::3] = -128  # which quantisation of ours never makes
    weights = rewrite(tmp_path, tensors).load_layer(0, "ab").weights
    assert_codes(weights, "w_uq_qr", tensors)
    assert_exact(weights, 5)


def test_scales_for_activations_need_weights_that_are_quantised_here(tmp_path):
    make_checkpoint(tmp_path, DIMS, V, "int8 rows", 0, (0,))
    checkpoint = Checkpoint(tmp_path)
    smooth = np.full((1, DIMS.q_lora_rank), 2, np.float32)
    with pytest.raises(
        ValueError, match=r"^smooth_scales_cq: expected None where model\.layers\.0\.self_attn\.q_b_proj "
    ):
        checkpoint.load_layer(0, "b", smooth)
    with pytest.raises(ValueError, match=r"^smooth_scales_cq: expected None where w_uq_qr is not quantised"):
        checkpoint.load_layer(0, "a", smooth)
    anew = checkpoint.load_layer(0, "none").weights.quantize("b", smooth)
    assert_same_bits("smooth", anew.smooth_scales_cq, smooth.reshape(-1))


def test_rope_halves_of_int8_codes_are_made_pairs(tmp_path):
    make_checkpoint(tmp_path / "pairs", DIMS, V, "int8 rows", 0, (0,))
    make_checkpoint(tmp_path / "halves", DIMS, V, "int8 rows", 0, (0,), rope_interleave=False)
    stored, got = (Checkpoint(tmp_path / name).load_layer(0, "ab").weights for name in ("pairs", "halves"))
    rope, latent = DIMS.qk_rope_head_dim, DIMS.kv_lora_rank
    order = [0, 3, 1, 4, 2, 5]  # of 6 columns: pair i is columns i and i + 3
    kv = [*range(latent), *(latent + i for i in order)]
    nope, width = DIMS.qk_nope_head_dim, DIMS.q_head_dim
    q = [n * width + i for n in range(DIMS.num_attention_heads) for i in (*range(nope), *(nope + j for j in order))]
    assert rope == len(order)
    for name, columns in (("w_dkv_kr", kv), ("w_uq_qr", q)):
        assert (getattr(got, name) == getattr(stored, name)[:, columns]).all()
        scale = f"dequant_scale_{name}"
        assert (getattr(got, scale) == getattr(stored, scale)[columns]).all()


WEIGHTS = {
    "q_a_proj": [[1, 2, 3, 4], [-128, 0, 127, 5]],
    "q_b_proj": [[1, -2], [3, 4], [5, -127]],
    "kv_a_proj_with_mqa": [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0], [8, 0, 0, 0], [9, 0, 0, 0]],
    "kv_b_proj": [[1, 2, 3, 4], [5, 6, 7, 8]],
}
SCALES = {
    "q_a_proj": [[0.5], [0.25]],
    "q_b_proj": [[1], [0.5], [0.125]],
    "kv_a_proj_with_mqa": [[1], [2], [3], [4], [5], [6]],
    "kv_b_proj": [[0.5], [2]],
}


class TestByHand:
    """H 4, one head, Rq 2, C 4, D 1, R 2, V 1."""

    DIMS = MlaDims(4, 1, 2, 4, 1, 2)

    def write(self, folder, dtype, kind, scales, **others):
        tensors = {f"{prefix(0)}{name}.weight": np.array(rows, dtype) for name, rows in WEIGHTS.items()}
        tensors |= {f"{prefix(0)}{name}.{kind}": np.array(rows, np.float32) for name, rows in scales.items()}
        tensors |= {
            f"{prefix(0)}{n}.weight": np.ones(k, BF16) for n, k in (("q_a_layernorm", 2), ("kv_a_layernorm", 4))
        }
        tensors |= {prefix(0) + name.replace("__", "."): tensor for name, tensor in others.items()}
        write_checkpoint(folder, asdict(self.DIMS) | {"v_head_dim": 1}, tensors, 0)
        return Checkpoint(folder)

    def test_int8_rows(self, tmp_path):
        offsets = {f"{name}__weight_offset": np.zeros((len(rows), 1), BF16) for name, rows in WEIGHTS.items()}
        weights, w_uv = self.write(tmp_path, np.int8, "weight_scale", SCALES, **offsets).load_layer(0, "ab")
        assert weights.w_dq.tolist() == [[1, -128], [2, 0], [3, 127], [4, 5]]
        assert weights.dequant_scale_w_dq.tolist() == [0.5, 0.25]
        assert weights.w_uq_qr.tolist() == [[1, 3, 5], [-2, 4, -127]]
        assert weights.dequant_scale_w_uq_qr.tolist() == [1, 0.5, 0.125]
        assert weights.w_dkv_kr[0].tolist() == [1, 0, 0, 1, 8, 9]
        assert weights.dequant_scale_w_dkv_kr.tolist() == [1, 2, 3, 4, 5, 6]
        assert weights.w_uk.tolist() == [[[0.5, 1, 1.5, 2]]]
        assert w_uv.tolist() == [[[10], [12], [14], [16]]]

    def test_int8_rows_in_bf16(self, tmp_path):
        weights, _ = self.write(tmp_path, np.int8, "weight_scale", SCALES).load_layer(0, "none")
        assert weights.w_dq.tolist() == [[0.5, -32], [1, 0], [1.5, 31.75], [2, 1.25]]
        assert weights.w_uq_qr.tolist() == [[1, 1.5, 0.625], [-2, 2, -15.875]]
        assert weights.w_dkv_kr.tolist()[0] == [1, 0, 0, 4, 40, 54]

    def test_fp8_with_a_scale_for_the_tensor(self, tmp_path):
        scales = {name: [0.5] for name in WEIGHTS}
        weights, w_uv = self.write(tmp_path, FP8, "weight_scale", scales).load_layer(0, "none")
        assert weights.w_dq.tolist() == [[0.5, -64], [1, 0], [1.5, 64], [2, 2.5]]  # 127 is 128 in FP8
        assert w_uv.tolist() == [[[2.5], [3], [3.5], [4]]]


class TestRefused:
    @pytest.fixture
    def tensors(self, tmp_path):
        return make_checkpoint(tmp_path, DIMS, V, "int8 rows", 0, (0,))

    def refuses(self, folder, tensors, error, text):
        with pytest.raises(error) as caught:
            rewrite(folder, tensors).load_layer(0)
        assert str(caught.value) == f"{folder / 'model.safetensors'}: {prefix(0)}{text}"

    def test_offsets_other_than_0(self, tmp_path, tensors):
        offsets = np.zeros((DIMS.q_lora_rank, 1), np.float32)
        offsets[7] = -3
        text = "q_a_proj.weight_offset: expected offsets of 0 (the prolog's codes are symmetric), got -3.0 in row 7"
        self.refuses(tmp_path, tensors | {f"{prefix(0)}q_a_proj.weight_offset": offsets}, ValueError, text)
        text = "q_a_proj.weight_offset: expected shape (70, 1), got (69, 1)"
        self.refuses(tmp_path, tensors | {f"{prefix(0)}q_a_proj.weight_offset": offsets[1:].copy()}, ValueError, text)

    def test_scales_that_are_not_finite(self, tmp_path, tensors):
        tensors[f"{prefix(0)}q_b_proj.weight_scale"][9] = np.nan
        text = "q_b_proj.weight_scale: expected finite values, got NaN or Inf in row 9"
        self.refuses(tmp_path, tensors, ValueError, text)

    def test_no_scale_or_two(self, tmp_path, tensors):
        name = f"{prefix(0)}q_b_proj.weight_scale"
        text = "q_b_proj.weight: expected I8 codes with one of weight_scale_inv, weight_scale, scale, got"
        two = f"{name}_inv and {name}"
        self.refuses(tmp_path, tensors | {f"{name}_inv": tensors[name]}, ValueError, f"{text} {two}")
        scales = tensors.pop(name)
        self.refuses(tmp_path, tensors, ValueError, f"{text} none")
        tensors[name] = scales
        tensors |= {
            f"{prefix(0)}q_b_proj.{kind}": t for kind, t in encoded(np.ones((33, 70), "f4"), "bf16", BLOCK).items()
        }
        text = f"q_b_proj.weight: expected codes where {name} is, got BF16"
        self.refuses(tmp_path, tensors, ValueError, text)

    def test_scales_of_other_shapes(self, tmp_path, tensors):
        for shape in ((32, 1), (1, 33), (33, 2), (1, 1, 1)):
            tensors[f"{prefix(0)}q_b_proj.weight_scale"] = np.ones(shape, np.float32)
            text = f"expected shape (1, 1) for blocks of 128 x 128, (33, 1) for rows or (1,), got {shape}"
            self.refuses(tmp_path, tensors, ValueError, f"q_b_proj.weight_scale: {text}")

    def test_every_linear_s_shape_is_compared(self, tmp_path, tensors):
        for module, shape in linear_shapes(DIMS, V).items():
            name = f"{prefix(0)}{module}.weight"
            text = f"{module}.weight: expected shape {shape}, got {(shape[0] - 1, *shape[1:])}"
            self.refuses(tmp_path, tensors | {name: tensors[name][1:].copy()}, ValueError, text)
