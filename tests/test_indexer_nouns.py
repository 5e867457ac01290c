"""The lightning indexer's dimensions, weights and cache: what fits, what is refused by name, what is read back."""

import re
from dataclasses import FrozenInstanceError, astuple, replace

import numpy as np
import pytest
from helpers import BF16, random_bytes
from helpers.published_configs import DEEPSEEK, DEEPSEEK_V32, GLM, GLM_52, KIMI_K25

import mla_numba as mla
from mla_numba.layouts import pa_bsnd_to_pa_nz

LAYER = mla.MlaDims(34, 3, 10, 68, 33, 8)
DIMS = mla.IndexerDims(34, 10, 3, 16, 8)
SHAPES = {
    "w_qb": (10, 48), "w_qb_scale": (48,), "wk": (34, 16), "w_proj": (34, 3), "ln_gamma_k": (16,), "ln_beta_k": (16,),
    "hadamard_q": (16, 16), "hadamard_k": (16, 16),
}  # fmt: skip
DTYPES = {name: {"w_qb": np.dtype(np.int8), "w_qb_scale": np.dtype(np.float32)}.get(name, BF16) for name in SHAPES}


@pytest.fixture(scope="module")
def weights():
    return mla.IndexerWeights.random(LAYER, n_heads=3, head_dim=16)


def refuses(error, match, make, *arguments, **settings):
    with pytest.raises(error) as caught:
        make(*arguments, **settings)
    assert type(caught.value) is error
    assert re.search(match, str(caught.value)), str(caught.value)


class TestDims:
    def test_deepseek_v32(self):
        assert astuple(mla.IndexerDims.deepseek_v32()) == (7168, 1536, 64, 128, 64)

    def test_frozen(self):
        with pytest.raises(FrozenInstanceError):
            DIMS.n_heads = 2

    @pytest.mark.parametrize("name", ["hidden_size", "q_lora_rank", "n_heads", "head_dim", "qk_rope_head_dim"])
    def test_fields_are_counts(self, name):
        for wrong in (2.0, "2", None, True):
            refuses(TypeError, f"^{name}: expected int, got {type(wrong).__name__}", replace, DIMS, **{name: wrong})
        refuses(ValueError, f"^{name}: expected at least 1, got 0", replace, DIMS, **{name: 0})
        refuses(ValueError, f"^{name}: expected at most ", replace, DIMS, **{name: 2**31})

    def test_sums_that_float32_holds(self):
        """Di * 128 * 128, the largest sum of products of int8 codes, is 2^24 where Di is 1024."""
        assert replace(DIMS, head_dim=1024).head_dim == 1024
        assert np.float32(1024 * 128 * 128 - 1) == 1024 * 128 * 128 - 1
        refuses(ValueError, "^head_dim: expected at most 1024, got 1025", replace, DIMS, head_dim=1025)

    def test_rope_is_even_and_within_a_head(self):
        refuses(ValueError, "^qk_rope_head_dim: expected an even number, got 7", replace, DIMS, qk_rope_head_dim=7)
        refuses(ValueError, "^qk_rope_head_dim: expected at most the 16 columns", replace, DIMS, qk_rope_head_dim=18)
        assert replace(DIMS, qk_rope_head_dim=16).query_dim == 48

    def test_from_a_configuration(self):
        config = {"model_type": "glm_moe_dsa", "hidden_size": 6144, "q_lora_rank": 2048, "qk_rope_head_dim": 64}
        config |= {"index_n_heads": 32, "index_head_dim": 128}
        assert mla.IndexerDims.from_hf(config) == mla.IndexerDims(6144, 2048, 32, 128, 64)
        assert mla.IndexerDims.from_hf({"text_config": config}) == mla.IndexerDims(6144, 2048, 32, 128, 64)
        for name in ("index_n_heads", "index_head_dim"):
            without = {key: value for key, value in config.items() if key != name}
            refuses(ValueError, rf"^config\.{name}: expected an int \(a model without it has no indexer\), got none",
                    mla.IndexerDims.from_hf, without)  # fmt: skip
            refuses(TypeError, rf"^config\.{name}: expected int, got str", mla.IndexerDims.from_hf, config | {name: ""})
        refuses(ValueError, r"^config\.hidden_size: expected an int, got none", mla.IndexerDims.from_hf, {})

    def test_published_configurations(self):
        assert mla.IndexerDims.from_hf(DEEPSEEK_V32) == mla.IndexerDims.deepseek_v32()
        for config in (GLM, GLM_52):
            assert mla.IndexerDims.from_hf(config) == mla.IndexerDims(6144, 2048, 32, 128, 64)
        for config in (DEEPSEEK, KIMI_K25):
            refuses(ValueError, r"index_n_heads: expected an int \(a model without", mla.IndexerDims.from_hf, config)

    def test_unknown_settings_of_an_indexer(self):
        for setting in ("index_key_pool", "indexer_pool_size"):
            text = rf"^config\.{setting}: expected none \(no such setting .*got 4"
            refuses(ValueError, text, mla.IndexerDims.from_hf, DEEPSEEK_V32 | {setting: 4})
            for off in (None, 0, False):
                mla.IndexerDims.from_hf(DEEPSEEK_V32 | {setting: off})
        mla.IndexerDims.from_hf(DEEPSEEK_V32 | {"indexes": 4, "indexer": 4})


class TestHadamard:
    def test_by_recursion(self):
        """H(2n) = [[H, H], [H, -H]], here element by element by the parity of common bits."""
        for n in (1, 2, 8, 128):
            got = mla.sylvester_hadamard(n)
            signs = [[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
            assert got.dtype == BF16
            assert (np.sign(got.astype(np.float32)) == signs).all()
            assert set(np.abs(got.astype(np.float64)).reshape(-1)) == {float(np.array(n**-0.5).astype(BF16))}

    def test_a_rotation(self):
        got = mla.sylvester_hadamard(64).astype(np.float64)  # 1/8 is exact
        assert (got @ got.T == np.eye(64)).all()

    def test_refused(self):
        for wrong in (3, 48, 127):
            refuses(ValueError, f"^n: expected a power of two, .*got {wrong}", mla.sylvester_hadamard, wrong)
        refuses(ValueError, "^n: expected at least 1", mla.sylvester_hadamard, 0)
        refuses(ValueError, "^n: expected a power of two, at most 1024, got 2048", mla.sylvester_hadamard, 2048)
        refuses(TypeError, "^n: expected int", mla.sylvester_hadamard, 4.0)


class TestWeights:
    def test_shapes_tell_the_dims(self, weights):
        assert weights.dims == DIMS
        assert {name: getattr(weights, name).shape for name in SHAPES} == SHAPES
        assert {name: getattr(weights, name).dtype for name in SHAPES} == DTYPES
        assert weights.nbytes == sum(np.prod(SHAPES[name]) * DTYPES[name].itemsize for name in SHAPES)
        assert (weights.epsilon, weights.rope) == (1e-6, "half")

    @pytest.mark.parametrize("name", SHAPES)
    def test_type_dtype_and_layout(self, weights, name):
        array = getattr(weights, name)
        for wrong in (None, array.tolist()):
            refuses(TypeError, f"^{name}: expected a NumPy array, got ", replace, weights, **{name: wrong})
        for dtype in {np.float64, np.float16, np.uint16, np.uint8} - {array.dtype.type}:
            wrong = np.zeros(array.shape, dtype)
            refuses(TypeError, f"^{name}: expected dtype {array.dtype}, got {wrong.dtype}", replace, weights,
                    **{name: wrong})  # fmt: skip
        refuses(ValueError, f"^{name}: expected shape ", replace, weights, **{name: array[None, None]})
        if array.ndim == 2:
            wrong = np.asfortranarray(array)
            refuses(ValueError, f"^{name}: expected a C-contiguous array", replace, weights, **{name: wrong})

    @pytest.mark.parametrize(
        ("name", "shape", "blamed"),
        [
            ("w_qb", (10, 47), "w_qb"), ("w_qb_scale", (47,), "w_qb_scale"), ("wk", (33, 16), "w_proj"),
            ("wk", (34, 15), "w_qb"), ("w_proj", (34, 4), "w_qb"), ("ln_gamma_k", (15,), "ln_gamma_k"),
            ("ln_beta_k", (17,), "ln_beta_k"), ("hadamard_q", (16, 15), "hadamard_q"),
            ("hadamard_k", (8, 8), "hadamard_k"), ("w_proj", (34, 0), "w_qb"), ("w_qb", (0, 48), "w_qb"),
            ("wk", (34, 0), "w_qb"),
        ],
    )  # fmt: skip
    def test_shapes_that_do_not_fit_each_other(self, weights, name, shape, blamed):
        wrong = np.zeros(shape, DTYPES[name])
        refuses(ValueError, f"^{blamed}: expected ", replace, weights, **{name: wrong})

    def test_scales_of_other_shapes(self, weights):
        for shape in ((48, 1), (1, 48)):
            scale = weights.w_qb_scale.reshape(shape)
            assert replace(weights, w_qb_scale=scale).w_qb_scale.tolist() == weights.w_qb_scale.tolist()

    def test_settings(self, weights):
        assert replace(weights, rope="interleaved").rope == "interleaved"
        assert "rope='interleaved'" in repr(replace(weights, rope="interleaved"))
        refuses(ValueError, "^rope: expected one of half, interleaved, got 'neox'", replace, weights, rope="neox")
        refuses(ValueError, "^epsilon: expected ", replace, weights, epsilon=-1.0)
        refuses(TypeError, "^epsilon: expected a number", replace, weights, epsilon="1e-6")
        for wrong, error in ((0, ValueError), (7, ValueError), (18, ValueError), (8.0, TypeError)):
            refuses(error, "^qk_rope_head_dim: expected ", replace, weights, qk_rope_head_dim=wrong)

    def test_a_head_too_wide_for_float32(self, weights):
        wide = {"w_qb": np.zeros((10, 3 * 1025), np.int8), "wk": np.zeros((34, 1025), BF16)}
        refuses(ValueError, "^wk: expected at most 1024 columns, .*got 1025", replace, weights, **wide)

    def test_a_q_lora_rank_too_long_for_int32(self, weights):
        k = (2**31 - 1) // (127 * 128)
        assert replace(weights, w_qb=np.zeros((k, 48), np.int8)).dims.q_lora_rank == k
        refuses(ValueError, f"^w_qb: expected at most {k} rows", replace, weights, w_qb=np.zeros((k + 1, 48), np.int8))

    def test_random_depends_on_the_seed_alone(self, weights):
        again = mla.IndexerWeights.random(LAYER, 0, 3, 16)
        other = mla.IndexerWeights.random(LAYER, 1, 3, 16)
        for name in ("w_qb", "wk", "w_proj", "ln_gamma_k", "ln_beta_k"):
            assert getattr(again, name).tobytes() == getattr(weights, name).tobytes()
            assert getattr(other, name).tobytes() != getattr(weights, name).tobytes()
        refuses(ValueError, "^head_dim: expected a power of two, .*got 24", mla.IndexerWeights.random, LAYER, 0, 3, 24)
        refuses(TypeError, "^dims: expected MlaDims", mla.IndexerWeights.random, DIMS)

    def test_defaults_are_those_of_deepseek(self):
        dims = mla.IndexerWeights.random(mla.MlaDims(4, 1, 2, 4, 2, 64)).dims
        assert dims == mla.IndexerDims(4, 2, 64, 128, 64)


class TestFromBf16:
    def make(self, w_qb, **settings):
        n = w_qb.shape[1]
        ones = {"wk": (4, n), "w_proj": (4, 1), "ln_gamma_k": (n,), "ln_beta_k": (n,)}
        arrays = {name: np.ones(shape, BF16) for name, shape in ones.items()}
        return mla.IndexerWeights.from_bf16(w_qb, **arrays, **({"qk_rope_head_dim": 2} | settings))

    def test_codes_and_scales(self):
        """Columns of maxima 127 and 254: scales 1 and 2; 3 / 2 is halfway and goes to the even code."""
        weights = self.make(np.array([[127, 254], [-3, 3]], np.float32).astype(BF16))
        assert weights.w_qb.tolist() == [[127, 127], [-3, 2]]
        assert weights.w_qb_scale.tolist() == [1.0, 2.0]
        assert weights.quantization.errors["w_qb"].max_abs == 1.0
        assert weights.hadamard_q is weights.hadamard_k

    def test_smooth_scales_are_divided_out_first(self):
        smooth = np.array([2, 0.25], np.float32)
        values = np.array([[254, 4], [1, 8]], np.float32)
        want = self.make((values / smooth[:, None]).astype(BF16))
        for shape in ((2,), (1, 2), (2, 1)):
            got = self.make(values.astype(BF16), smooth_scales_cq=smooth.reshape(shape))
            assert got.w_qb.tolist() == want.w_qb.tolist()
            assert got.w_qb_scale.tolist() == want.w_qb_scale.tolist()

    def test_refused(self):
        ones = np.ones((2, 2), BF16)
        for bad in (0, np.nan, np.inf):
            refuses(ValueError, "^smooth_scales_cq: expected finite values other than 0", self.make, ones,
                    smooth_scales_cq=np.array([1, bad], np.float32))  # fmt: skip
        refuses(ValueError, r"^wk\.shape\[1\]: expected a power of two, .*got 6", self.make, np.ones((2, 6), BF16))
        refuses(TypeError, "^w_qb: expected dtype bfloat16, got int8", self.make, np.ones((2, 2), np.int8))
        refuses(ValueError, "^w_qb: expected finite weights, got NaN or Inf in column 1", self.make,
                np.array([[1, np.inf]], np.float32).astype(BF16))  # fmt: skip


class TestCache:
    @pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
    def test_allocated(self, mode):
        cache = mla.IndexerCache.allocate(replace(DIMS, head_dim=64), 3, 5, mode)
        assert (cache.k.shape, cache.k.dtype) == ((3, 5, 1, 64), np.int8)
        assert (cache.k_scale.shape, cache.k_scale.dtype) == ((3, 5, 1, 1), np.float16)
        assert (cache.capacity, cache.block_size, cache.cache_mode) == (15, 5, mode)
        assert not cache.k.any()
        assert not cache.k_scale.any()
        assert tuple(cache.sizes) == (15, 5, 64)

    @pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
    def test_gather_multiplies_codes_by_scales(self, mode):
        rng = np.random.default_rng(1)
        rows = random_bytes(rng, np.zeros((3, 5, 1, 64), np.int8))
        scale = rng.uniform(0.01, 2, (3, 5, 1, 1)).astype(np.float16)
        cache = mla.IndexerCache(pa_bsnd_to_pa_nz(rows) if mode == "PA_NZ" else rows, scale, mode)
        slots = np.array([14, 0, 7, 14], np.int32)
        got = cache.gather(slots)
        assert got.dtype == np.float32
        want = rows.reshape(15, 64)[slots].astype(np.float64) * scale.reshape(15, 1)[slots].astype(np.float64)
        assert (got == want).all()  # 7 bits times 11 are exact in float32
        assert cache.gather(np.zeros(0, np.int64)).shape == (0, 64)

    def test_views_give_the_address_of_each_element(self):
        rows = np.arange(2 * 3 * 64).astype(np.int8).reshape(2, 3, 1, 64)
        scale = np.arange(6, dtype=np.float16).reshape(2, 3, 1, 1)
        for mode, k in (("PA_BSND", rows), ("PA_NZ", pa_bsnd_to_pa_nz(rows))):
            views = mla.IndexerCache(k, scale, mode).views
            for name, width, want in (("k_cache", 64, rows), ("k_scale_cache", 1, scale)):
                size, block_stride, c0, chunk, row = views[name].layout.tolist()
                slot, c = np.meshgrid(np.arange(6), np.arange(width), indexing="ij")
                at = slot // size * block_stride + c // c0 * chunk + slot % size * row + c % c0
                assert (views[name].flat[at].view(want.dtype) == want.reshape(6, width)).all()

    def test_blocks_of_a_larger_buffer(self):
        buffer = np.zeros((4, 2 * 3 * 64), np.int8)
        cache = mla.IndexerCache(buffer[:, :192].reshape(4, 3, 1, 64), np.ones((4, 3, 1, 1), np.float16))
        buffer[2, 64:128] = 7
        assert cache.gather(np.array([7]))[0].tolist() == [7.0] * 64

    def test_copy(self):
        cache = mla.IndexerCache.allocate(DIMS, 2, 4)
        other = cache.copy()
        other.k[...] = 1
        assert not cache.k.any()
        assert {name: a.dtype for name, a in cache.arrays().items()} == {
            "k_cache": np.int8,
            "k_scale_cache": np.float16,
        }

    def test_refused(self):
        k, scale = np.zeros((2, 4, 1, 32), np.int8), np.zeros((2, 4, 1, 1), np.float16)
        cls = mla.IndexerCache
        refuses(TypeError, "^k_cache: expected dtype int8, got uint8", cls, k.view(np.uint8), scale)
        refuses(TypeError, "^k_scale_cache: expected dtype float16, got float32", cls, k, scale.astype(np.float32))
        refuses(ValueError, r"^k_cache: expected shape \(blocks, block_size, 1, d\)", cls, k[:, :, 0], scale)
        refuses(ValueError, r"^k_scale_cache: expected shape \(blocks, block_size, 1, d\)", cls, k, scale[..., 0])
        refuses(ValueError, r"^k_scale_cache: expected \(2, 4\) .* as k_cache, got \(1, 4\)", cls, k, scale[:1])
        refuses(ValueError, "^k_scale_cache: expected one scale a slot, got 4", cls, k, np.zeros((2, 4, 1, 4), "f2"))
        refuses(ValueError, "^k_cache: expected blocks that are contiguous", cls, k[:, ::2], scale[:, ::2])
        refuses(ValueError, "^cache_mode: expected one of PA_BSND, PA_NZ, got 'TND'", cls, k, scale, "TND")
        narrow = np.zeros((2, 4, 1, 48), np.int8)
        refuses(ValueError, "^k_cache: expected rows of a multiple of 32 elements in PA_NZ, got 48", cls, narrow, scale,
                "PA_NZ")  # fmt: skip
        refuses(TypeError, "^dims: expected IndexerDims, got MlaDims", cls.allocate, LAYER, 2)
        refuses(ValueError, "^n_blocks: expected at least 1", cls.allocate, DIMS, 0)
        refuses(ValueError, "^n_blocks: expected at most", cls.allocate, DIMS, 2**62)
        for wrong in (-1, 8):
            refuses(ValueError, rf"^slots\[1\]: expected a slot .* got {wrong}", cls(k, scale).gather,
                    np.array([0, wrong]))  # fmt: skip
