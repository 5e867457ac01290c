"""Layers of small checkpoints: FP8 blocks by hand, every dtype and file layout, and each fault by file and tensor."""

import json
import re
import struct
from dataclasses import asdict

import ml_dtypes
import numpy as np
import pytest
from helpers import BF16, QUANTS, assert_same_bits, run_python
from helpers.checkpoint_maker import FP8, linear_shapes, make_checkpoint, prefix, write_checkpoint

from mla_numba import Checkpoint, MlaDims
from mla_numba.base.extras import how_to_install
from mla_numba.reference import rope_v2

DIMS = MlaDims(260, 3, 130, 68, 33, 34)  # no dimension is a multiple of 128
V = 20
WEIGHT_NAMES = ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv")
INDEX = "model.safetensors.index.json"


def dequantised(tensors, layer, module, block=(128, 128)):
    """A Linear's (out, in) weight, element by element, as bf16."""
    name = f"{prefix(layer)}{module}.weight"
    weight = tensors[name]
    if weight.dtype != FP8:
        return weight.astype(BF16)
    rows, columns = np.indices(weight.shape)
    scale = tensors[f"{name}_scale_inv"].astype(np.float32)[rows // block[0], columns // block[1]]
    return (weight.astype(np.float32) * scale).astype(BF16)


def assert_layer(layer, tensors, number=0, dims=DIMS, block=(128, 128)):
    """Equal to what the tensors hold, the orientation written out."""
    heads, latent, nope = dims.num_attention_heads, dims.kv_lora_rank, dims.qk_nope_head_dim
    w = layer.weights
    assert (w.dims, w.quant) == (dims, "none")
    for ours, module in (("w_dq", "q_a_proj"), ("w_uq_qr", "q_b_proj"), ("w_dkv_kr", "kv_a_proj_with_mqa")):
        assert_same_bits(ours, getattr(w, ours), np.ascontiguousarray(dequantised(tensors, number, module, block).T))
    kv_b = dequantised(tensors, number, "kv_b_proj", block)
    assert layer.w_uv.shape == (heads, latent, V)
    for n in range(heads):
        head = kv_b[n * (nope + V) : (n + 1) * (nope + V)]
        assert_same_bits("w_uk", w.w_uk[n], head[:nope])
        assert_same_bits("w_uv", layer.w_uv[n], np.ascontiguousarray(head[nope:].T))
    for ours, module in (("gamma_cq", "q_a_layernorm"), ("gamma_ckv", "kv_a_layernorm")):
        assert_same_bits(ours, getattr(w, ours), tensors[f"{prefix(number)}{module}.weight"].astype(BF16))
    assert w.epsilon_cq == w.epsilon_ckv == 1e-6


class TestLoading:
    @pytest.mark.parametrize("n_shards", [0, 1, 3])
    @pytest.mark.parametrize("dtype", ["fp8", "bf16", "float32"])
    def test_every_dtype_and_file_layout(self, tmp_path, dtype, n_shards):
        tensors = make_checkpoint(tmp_path, DIMS, V, dtype, n_shards)
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.dims == DIMS
        assert checkpoint.v_head_dim == V
        assert checkpoint.layers == [0, 1]
        for number in (0, 1):
            assert_layer(checkpoint.load_layer(number, "none"), tensors, number)

    def test_one_file_is_taken_before_shards_as_transformers_does(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V, "bf16", 2)
        tensors = make_checkpoint(tmp_path, DIMS, V, "fp8", 0)
        assert_layer(Checkpoint(tmp_path).load_layer(1, "none"), tensors, 1)

    @pytest.mark.parametrize("block", [(128, 128), (64, 32), (1, 7), (500, 500)])
    def test_blocks_of_any_size_partial_ones_too(self, tmp_path, block):
        tensors = make_checkpoint(tmp_path, DIMS, V, block=block)
        assert_layer(Checkpoint(tmp_path).load_layer(0, "none"), tensors, block=block)

    def test_blocks_are_128_x_128_where_the_configuration_is_silent(self, tmp_path):
        tensors = make_checkpoint(tmp_path, DIMS, V, quantization_config=None)
        assert_layer(Checkpoint(tmp_path).load_layer(0, "none"), tensors)

    @pytest.mark.parametrize("dtype", [BF16, np.dtype(ml_dtypes.float8_e8m0fnu)])
    def test_scales_of_other_dtypes(self, tmp_path, dtype):
        tensors = make_checkpoint(tmp_path, DIMS, V)
        tensors = {n: t.astype(dtype) if n.endswith("_scale_inv") else t for n, t in tensors.items()}
        write_checkpoint(tmp_path, json.loads((tmp_path / "config.json").read_text()), tensors, 2)
        assert_layer(Checkpoint(tmp_path).load_layer(0, "none"), tensors)

    def test_modes_are_those_of_quantize(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V)
        checkpoint = Checkpoint(tmp_path)
        plain = checkpoint.load_layer(0, "none").weights
        for quant in QUANTS:
            got, want = checkpoint.load_layer(0, quant).weights, plain.quantize(quant)
            assert got.quant == quant
            for name in WEIGHT_NAMES:
                assert_same_bits(name, getattr(got, name), getattr(want, name))
        assert checkpoint.load_layer(0).weights.quant == "b"
        smooth = np.full((1, DIMS.q_lora_rank), 2, np.float32)
        got, want = checkpoint.load_layer(0, "b", smooth).weights, plain.quantize("b", smooth)
        assert_same_bits("smooth_scales_cq", got.smooth_scales_cq, want.smooth_scales_cq)
        assert_same_bits("scale", got.dequant_scale_w_uq_qr, want.dequant_scale_w_uq_qr)

    def test_says_which_tensors_it_has_read(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V)
        names = []
        Checkpoint(tmp_path).load_layer(1, "none", finished=names.append)
        assert sorted(names) == sorted(f"{prefix(1)}{module}.weight" for module in linear_shapes(DIMS, V))

    def test_only_the_shards_of_the_layer_need_to_be_there(self, tmp_path):
        tensors = make_checkpoint(tmp_path, DIMS, V, n_shards=1)
        index = json.loads((tmp_path / INDEX).read_text())
        index["weight_map"] |= {name: "far.safetensors" for name in tensors if name.startswith(prefix(1))}
        (tmp_path / INDEX).write_text(json.dumps(index))
        checkpoint = Checkpoint(tmp_path)
        assert_layer(checkpoint.load_layer(0, "none"), tensors)
        missing = re.escape(f"{tmp_path / 'far.safetensors'}: expected the shard that holds {prefix(1)}")
        with pytest.raises(FileNotFoundError, match=missing):
            checkpoint.load_layer(1)

    def test_tensors_at_odd_bytes(self, tmp_path):
        tensors = make_checkpoint(tmp_path, DIMS, V, n_shards=0)
        path = tmp_path / "model.safetensors"
        raw = path.read_bytes()
        n = struct.unpack("<Q", raw[:8])[0]
        header = raw[8 : 8 + n].rstrip() + b" "
        header += b" " * (1 - len(header) % 2)  # an odd length, as the format allows
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + n :])
        assert_layer(Checkpoint(tmp_path).load_layer(0, "none"), tensors)

    def test_a_multi_token_prediction_layer(self, tmp_path):
        tensors = make_checkpoint(tmp_path, DIMS, V, layers=(2, 61), num_hidden_layers=61)
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.layers == [2, 61]
        assert_layer(checkpoint.load_layer(61, "none"), tensors, 61)

    def test_epsilon_is_the_configuration_s(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V, rms_norm_eps=1e-5)
        assert Checkpoint(tmp_path).load_layer(0).weights.epsilon_ckv == 1e-5


class TestByHand:
    """H 4, one head, Rq 2, C 4, D 1, R 2, V 1; blocks of 2 x 3."""

    DIMS = MlaDims(4, 1, 2, 4, 1, 2)

    def write(self, folder):
        weights = {
            "q_a_proj": [[1, 2, 3, 4], [-1, 0.5, 448, 0]],
            "q_b_proj": [[1, 2], [3, 4], [5, 6]],
            "kv_a_proj_with_mqa": [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0], [8, 0, 0, 0], [9, 0, 0, 0]],
            "kv_b_proj": [[1, 2, 3, 4], [5, 6, 7, 8]],
        }
        scales = {
            "q_a_proj": [[2, 0.5]],  # columns 0 to 2, and 3
            "q_b_proj": [[1], [10]],  # rows 0 and 1, and 2
            "kv_a_proj_with_mqa": [[1, 3], [1, 3], [0.25, 1]],
            "kv_b_proj": [[1, 0.125]],
        }
        tensors = {f"{prefix(0)}{name}.weight": np.array(rows, FP8) for name, rows in weights.items()}
        tensors |= {f"{prefix(0)}{n}.weight_scale_inv": np.array(rows, np.float32) for n, rows in scales.items()}
        norms = {"q_a_layernorm": 2, "kv_a_layernorm": 4}
        tensors |= {f"{prefix(0)}{name}.weight": np.ones(n, BF16) for name, n in norms.items()}
        config = {"v_head_dim": 1, "quantization_config": {"weight_block_size": [2, 3]}}
        write_checkpoint(folder, asdict(self.DIMS) | config, tensors, 0)
        return Checkpoint(folder).load_layer(0, "none")

    def test_blocks_partial_blocks_and_orientation(self, tmp_path):
        weights, w_uv = self.write(tmp_path)
        assert weights.w_dq.tolist() == [[2, -2], [4, 1], [6, 896], [2, 0]]
        assert weights.w_uq_qr.tolist() == [[1, 3, 50], [2, 4, 60]]
        assert weights.w_dkv_kr.tolist() == [
            [1, 0, 0, 1, 2, 2.25],
            [0, 1, 0, 1, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [3, 3, 3, 0, 0, 0],
        ]
        assert weights.w_uk.tolist() == [[[1, 2, 3, 0.5]]]
        assert w_uv.tolist() == [[[5], [6], [7], [1]]]
        assert weights.epsilon_cq == 1e-6  # where the configuration has none


class TestRopeOrder:
    def test_halves_are_made_pairs_that_rotate_alike(self, tmp_path):
        pairs = make_checkpoint(tmp_path / "a", DIMS, V, "bf16", 0)
        make_checkpoint(tmp_path / "b", DIMS, V, "bf16", 0, rope_interleave=False)
        as_pairs, as_halves = (Checkpoint(tmp_path / name).load_layer(0, "none").weights for name in "ab")
        rope = DIMS.qk_rope_head_dim
        assert as_halves.w_dkv_kr.flags.c_contiguous
        latent = DIMS.kv_lora_rank
        stored = dequantised(pairs, 0, "kv_a_proj_with_mqa").T
        assert_same_bits("latent", as_halves.w_dkv_kr[:, :latent].copy(), stored[:, :latent].copy())
        # transformers rotates (x, rotate_half x) of stored halves; the prolog takes pairs apart into halves first
        x = as_halves.w_dkv_kr[:, latent:].astype(np.float32)
        assert (np.concatenate([x[:, 0::2], x[:, 1::2]], axis=1) == stored[:, latent:].astype(np.float32)).all()
        for n in range(DIMS.num_attention_heads):
            head = np.s_[:, n * DIMS.q_head_dim : (n + 1) * DIMS.q_head_dim]
            ours, theirs = as_halves.w_uq_qr[head], as_pairs.w_uq_qr[head]
            nope = DIMS.qk_nope_head_dim
            assert (ours[:, :nope] == theirs[:, :nope]).all()
            assert (ours[:, nope::2] == theirs[:, nope : nope + rope // 2]).all()
            assert (ours[:, nope + 1 :: 2] == theirs[:, nope + rope // 2 :]).all()

    def test_a_rotation_by_hand(self):
        # pair (1, 2) turned by 90 degrees is (-2, 1); pairs in, halves out
        x = np.array([[1, 2, 3, 4]], BF16)
        zero, one = np.zeros((1, 4), BF16), np.ones((1, 4), BF16)
        assert rope_v2(x, zero, one).astype(float).tolist() == [[-2, -4, 1, 3]]


class TestErrors:
    @pytest.fixture
    def folder(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V)
        return tmp_path

    def refuses(self, error, path, text, folder=None, layer=0):
        with pytest.raises(error) as caught:
            Checkpoint(folder or path).load_layer(layer)
        assert str(caught.value).startswith(f"{path}: "), str(caught.value)
        assert re.search(text, str(caught.value)), str(caught.value)

    def rewrite(self, folder, change):
        """The checkpoint with tensors changed, in one file."""
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        tensors = make_checkpoint(folder, DIMS, V, n_shards=0)
        change(tensors)
        write_checkpoint(folder, json.loads((folder / "config.json").read_text()), tensors, 0)
        return folder / "model.safetensors"

    def edit_json(self, path, **changes):
        value = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in (value | changes).items() if v is not ...}))
        return path

    def test_no_folder_and_no_configuration(self, folder):
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            Checkpoint(folder / "no")
        (folder / "config.json").write_text("{")
        self.refuses(ValueError, folder / "config.json", "expected JSON, got ", folder)
        (folder / "config.json").write_text("[]")
        self.refuses(ValueError, folder / "config.json", "expected a JSON object, got list", folder)

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"q_lora_rank": None}, ValueError, r"config\.q_lora_rank: expected an int, got none"),  # V2-Lite
            ({"q_lora_rank": ...}, ValueError, r"config\.q_lora_rank: expected an int, got none"),
            ({"kv_lora_rank": "512"}, TypeError, r"kv_lora_rank: expected int, got str"),
            ({"v_head_dim": ...}, TypeError, r"config\.v_head_dim: expected int, got NoneType"),
            ({"attention_bias": True}, ValueError, r"config\.attention_bias: expected false .*, got true"),
            ({"rms_norm_eps": "1e-6"}, TypeError, r"config\.rms_norm_eps: expected a number, got str"),
            (
                {"quantization_config": {"weight_block_size": [128]}},
                ValueError,
                r"config\.quantization_config\.weight_block_size: expected two numbers, got \[128\]",
            ),
            (
                {"quantization_config": {"weight_block_size": [0, 1]}},
                ValueError,
                "weight_block_size: expected at least 1",
            ),
        ],
    )
    def test_a_model_that_does_not_fit(self, folder, changes, error, text):
        self.refuses(error, self.edit_json(folder / "config.json", **changes), text, folder)

    def test_no_index(self, folder):
        (folder / INDEX).unlink()
        with pytest.raises(FileNotFoundError) as caught:
            Checkpoint(folder)
        names = f"{folder}: expected {INDEX} or model.safetensors, got"
        assert str(caught.value) == f"{names} 2 files of other names without an index"
        for path in folder.glob("*.safetensors"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match=f"{names} neither$"):
            Checkpoint(folder)

    @pytest.mark.parametrize("weight_map", [..., [], None, "file"])
    def test_an_index_without_a_map(self, folder, weight_map):
        self.refuses(ValueError, self.edit_json(folder / INDEX, weight_map=weight_map), "expected weight_map", folder)

    def test_no_such_layer(self, folder):
        checkpoint = Checkpoint(folder)
        with pytest.raises(ValueError, match=r"^layer: expected one of 0 to 1 in .*, got 2$"):
            checkpoint.load_layer(2)
        with pytest.raises(ValueError, match=r"^layer: expected at least 0, got -1"):
            checkpoint.load_layer(-1)
        with pytest.raises(TypeError, match=r"^layer: expected int, got str"):
            checkpoint.load_layer("0")
        with pytest.raises(ValueError, match=r"^quant: expected one of none, a, b, ab, got 'fp8'"):
            checkpoint.load_layer(0, "fp8")

    def test_layers_are_named_in_runs(self, tmp_path):
        make_checkpoint(tmp_path, MlaDims(4, 1, 2, 4, 1, 2), 1, layers=(0, 1, 2, 5, 61))
        with pytest.raises(ValueError, match=r"^layer: expected one of 0 to 2, 5, 61 in "):
            Checkpoint(tmp_path).load_layer(4)

    @pytest.mark.parametrize("module", [*linear_shapes(DIMS, V)])
    def test_a_missing_tensor(self, folder, module):
        name = f"{prefix(0)}{module}.weight"
        self.rewrite(folder, lambda tensors: tensors.pop(name))
        self.refuses(ValueError, folder, f"{re.escape(name)}: expected a tensor of that name, got none")

    def test_missing_scales(self, folder):
        name = f"{prefix(0)}kv_b_proj.weight"
        path = self.rewrite(folder, lambda tensors: tensors.pop(f"{name}_scale_inv"))
        text = "expected F8_E4M3 codes with one of weight_scale_inv, weight_scale, scale, got none"
        self.refuses(ValueError, path, f"{re.escape(name)}: {text}$", folder)

    def test_a_tensor_that_is_not_where_the_index_says(self, folder):
        index = json.loads((folder / INDEX).read_text())
        name = f"{prefix(0)}kv_b_proj.weight"
        here, other = index["weight_map"][name], "model-00001-of-00002.safetensors"
        other = other if other != here else "model-00002-of-00002.safetensors"
        index["weight_map"][name] = other
        (folder / INDEX).write_text(json.dumps(index))
        self.refuses(ValueError, folder / other, f"{re.escape(name)}: expected a tensor of that name, got none", folder)

    @pytest.mark.parametrize("module", [*linear_shapes(DIMS, V)])
    def test_a_wrong_shape(self, folder, module):
        name = f"{prefix(0)}{module}.weight"

        def change(tensors):
            tensors[name] = np.concatenate([tensors[name], tensors[name][:1]])

        path = self.rewrite(folder, change)
        shape = linear_shapes(DIMS, V)[module]
        text = re.escape(f"{name}: expected shape {shape}, got {(shape[0] + 1, *shape[1:])}")
        self.refuses(ValueError, path, f"{text}$", folder)

    def test_scales_of_another_shape(self, folder):
        name = f"{prefix(0)}q_a_proj.weight_scale_inv"

        def change(tensors):
            tensors[name] = tensors[name][:1].copy()

        path = self.rewrite(folder, change)
        text = "expected shape (2, 3) for blocks of 128 x 128, (130, 1) for rows or (1,), got (1, 3)"
        self.refuses(ValueError, path, re.escape(f"{name}: {text}"), folder)

    @pytest.mark.parametrize(
        ("module", "dtype", "text"),
        [
            ("q_a_proj.weight", "f8", "expected dtype BF16 or F32 or F16 or F8_E4M3 or I8, got F64"),
            ("q_a_proj.weight", ml_dtypes.float8_e5m2, "expected dtype .* or I8, got F8_E5M2"),
            ("q_a_proj.weight", "u1", r"expected dtype .* got U8, as of packed weights \(NVFP4, MXFP4, int4\)"),
            ("q_a_proj.weight_scale_inv", "f8", "expected dtype F32 or BF16 or F16 or F8_E8M0 or U8, got F64"),
            ("q_a_layernorm.weight", "i4", "expected dtype BF16 or F32 or F16, got I32"),
        ],
    )
    def test_a_wrong_dtype(self, folder, module, dtype, text):
        def change(tensors):
            tensors[f"{prefix(0)}{module}"] = tensors[f"{prefix(0)}{module}"].astype(np.float32).astype(dtype)

        path = self.rewrite(folder, change)
        self.refuses(TypeError, path, f"{re.escape(prefix(0) + module)}: {text}$", folder)

    @pytest.mark.parametrize("n", [0, 4, 100, -1])
    def test_a_truncated_shard(self, folder, n):
        path = folder / "model-00001-of-00002.safetensors"
        raw = path.read_bytes()
        path.write_bytes(raw[:n])
        size = path.stat().st_size
        self.refuses(
            ValueError, path, rf"{prefix(0)}.*: expected it in a whole safetensors file, got {size} bytes", folder
        )

    def test_a_pointer_of_git_lfs(self, folder):
        for path in folder.glob("model-*"):
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
        self.refuses(
            ValueError, folder / "model-00001-of-00002.safetensors", "expected it in a whole safetensors", folder
        )

    def test_a_truncated_single_file(self, folder):
        path = self.rewrite(folder, lambda tensors: None)
        path.write_bytes(path.read_bytes()[:-1])
        self.refuses(ValueError, path, "expected it in a whole safetensors file, got", folder)

    @pytest.mark.parametrize(
        ("module", "value"),
        [("q_b_proj.weight", np.nan), ("q_b_proj.weight_scale_inv", np.inf), ("kv_a_layernorm.weight", np.nan)],
    )
    def test_values_that_are_not_finite(self, folder, module, value):
        def change(tensors):
            tensors[f"{prefix(0)}{module}"][-1] = value

        path = self.rewrite(folder, change)
        row = {"q_b_proj.weight": 200, "q_b_proj.weight_scale_inv": 1, "kv_a_layernorm.weight": 67}[module]
        text = f"{re.escape(prefix(0) + module)}: expected finite values, got NaN or Inf in row {row}$"
        self.refuses(ValueError, path, text, folder)

    def test_float32_that_bf16_cannot_hold(self, tmp_path):
        tensors = make_checkpoint(tmp_path, DIMS, V, "float32", 0)
        name = f"{prefix(0)}q_a_proj.weight"
        tensors[name][129, 3] = np.finfo(np.float32).max
        write_checkpoint(tmp_path, json.loads((tmp_path / "config.json").read_text()), tensors, 0)
        path = tmp_path / "model.safetensors"
        self.refuses(ValueError, path, f"{re.escape(name)}: expected finite values, .* in row 129$", tmp_path)

    def test_without_safetensors(self, folder):
        probe = (
            "import sys; sys.modules['safetensors'] = None\n"
            "import mla_numba\n"
            "try: mla_numba.Checkpoint(sys.argv[1])\n"
            "except ImportError as error: print(error)\n"
        )
        how = how_to_install("hf", "safetensors")
        assert f"expected the package safetensors, got none: {how}" in run_python("-c", probe, str(folder))
