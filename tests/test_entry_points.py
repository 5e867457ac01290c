"""The reference operator's public names, with its order of arguments, on NumPy arrays and on packed weights."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from helpers import (
    BF16,
    assert_none,
    assert_same_bits,
    make_weights,
)
from helpers.entry_points import (
    ARGUMENTS,
    BLOCK_SIZE,
    BLOCKS,
    DIMS,
    ENTRIES,
    FRACTAL,
    NO_SCALE,
    ROPE_TILES,
    Case,
    T,
    words,
)

import mla_numba as mla
from mla_numba import (
    MlaQuantInputs,
    MlaTileConfig,
    preset,
    reference,
)
from mla_numba.layouts import to_fractal_nz
from mla_numba.oracle.bits import check_output, reference_run


@pytest.mark.parametrize("name", ENTRIES)
class TestEntryPoints:
    def test_order_of_arguments(self, name):
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(ENTRIES[name]).parameters.values()
        assert [p.name for p in parameters if p.kind in kinds] == ARGUMENTS
        others = [p.name for p in parameters if p.kind not in kinds]
        assert others == (["phase", "numerics"] if name == "compute" else ["numerics"])
        assert ENTRIES[name].__name__ == f"mla_prolog_quant_{name}"
        assert ENTRIES[name].__doc__

    @pytest.mark.parametrize("in_place", [True, False])
    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("quant", ["b", "none"])
    @pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
    def test_equals_the_reference(self, name, quant, cache_mode, packed, in_place):
        dims = FRACTAL if cache_mode == "PA_NZ" else DIMS
        Case(quant, dims, cache_mode, packed, in_place).assert_computes(ENTRIES[name])

    def test_keywords_and_defaults(self, name):
        case = Case("b")
        case.weights = replace(case.weights, epsilon_cq=1e-5, epsilon_ckv=1e-5)
        inputs = (case.arguments[n] for n in ("token_x", "cos", "sin", "cache_index"))
        case.want = reference_run(case.weights, *inputs, case.source)
        assert ENTRIES[name](**{n: case.arguments[n] for n in ARGUMENTS[:21]}) is None
        assert_none(check_output(case.out, case.target, case.want))

    @pytest.mark.parametrize("scale", [None, NO_SCALE, np.zeros(0, np.float32), np.zeros((0, 1, 1), np.float32)])
    def test_no_scale_means_unquantised(self, name, scale):
        Case("none").assert_computes(ENTRIES[name], dequant_scale=scale)

    def test_scales_of_either_shape(self, name):
        case = Case("b")
        n = case.weights.dequant_scale_w_uq_qr
        for scale in (n, n[None], n[:, None]):
            Case("b").assert_computes(ENTRIES[name], dequant_scale=scale)

    def test_unquantised_scales_are_left_alone(self, name):
        scales = np.full((BLOCKS, BLOCK_SIZE, 1, 4), np.nan, np.float32)
        q_scale = np.full((T, 1), np.nan, np.float32)
        Case("none").assert_computes(
            ENTRIES[name], k_scale_cache=scales, k_scale_cache_out=scales, q_norm_scale_out=q_scale
        )
        assert np.isnan(scales).all()
        assert np.isnan(q_scale).all()

    def test_every_config(self, name):
        for config in (None, MlaTileConfig(unroll_list=[3]), preset("decode_b64_s2", "910")):
            for rope in (None, ROPE_TILES):
                Case("b").assert_computes(ENTRIES[name], tile_config=config, rope_cfg=rope)

    def test_fp16_scale_cache(self, name):
        """Its docstrings say FP16 here and there: such a cache is accepted, and scales are rounded into it."""
        case = Case("b")
        half = np.random.default_rng(0).standard_normal((BLOCKS, BLOCK_SIZE, 1, 4)).astype(np.float16)
        want = reference.scatter(half, *scales_by_slot(case), "PA_BSND")
        ENTRIES[name](**(case.arguments | {"k_scale_cache": half, "k_scale_cache_out": half}))
        assert_same_bits("k_scale_cache", half, want)
        assert_same_bits("kv_cache", case.target.kv, case.want.kv_cache)

    def test_wrong_arguments(self, name):
        entry = ENTRIES[name]
        for in_place in (True, False):
            case = Case("b", in_place=in_place)
            for argument in ("w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv"):
                case.refuses(entry, TypeError, f"^{argument}: expected .*array.*got NoneType", **{argument: None})
                case.refuses(entry, TypeError, f"^{argument}: expected .*got list", **{argument: [1.0]})
            case.refuses(entry, TypeError, "^w_dq: expected .*array.*got NoneType", w_dq=None)
            for argument in ("kv_cache", "kr_cache", "k_scale_cache"):
                for changed in (argument, f"{argument}_out"):
                    case.refuses(entry, TypeError, f"^{argument}.*: expected .*array.*got NoneType", **{changed: None})
            case.refuses(entry, TypeError, "^rope_cfg: expected RopeTileShapeConfig or None, got dict", rope_cfg={})
            case.refuses(entry, TypeError, "^tile_config: expected MlaTileConfig.* or None, got dict", tile_config={})
            case.refuses(entry, ValueError, "^cache_mode: expected one of PA_BSND, PA_NZ", cache_mode="BNSD")
            case.refuses(entry, ValueError, "^cache_index", cache_index=np.full(T, -2))
            case.refuses(
                entry, ValueError, "^(token_x|x): expected shape", token_x=case.arguments["token_x"][:, :-2].copy()
            )
            case.refuses(entry, TypeError, "^(token_x|x): expected .*bfloat16", token_x=np.zeros((T, 130), np.float32))
            scale = case.arguments["dequant_scale"]
            case.refuses(
                entry, TypeError, "^dequant_scale.*: expected .*float32", dequant_scale=scale.astype(np.float64)
            )
            case.refuses(entry, ValueError, "^dequant_scale.*: expected shape", dequant_scale=scale[1:])
            case.refuses(entry, TypeError, "^w_uq_qr: expected .*bfloat16.*got int8", dequant_scale=NO_SCALE)
            case.refuses(entry, TypeError, "w_uq_qr: expected .*int8", w_uq_qr=case.weights.w_uq_qr.astype(BF16))

    @pytest.mark.parametrize(
        "argument",
        words("token_x dequant_scale q_norm_out q_norm_scale_out query_nope_out query_rope_out")
        + words("kv_cache_out kr_cache_out k_scale_cache_out"),
    )
    def test_errors_name_the_argument_as_it_is_here(self, name, argument):
        for in_place in (True, False):
            case = Case("b", in_place=in_place)
            array = case.arguments[argument]
            wrong = np.zeros(array.shape, np.float64)
            case.refuses(ENTRIES[name], TypeError, f"^{argument}: expected .*got float64", **{argument: wrong})
            wrong = np.concatenate([array, array], axis=-1)
            case.refuses(ENTRIES[name], ValueError, f"^{argument}: expected ", **{argument: wrong})

    def test_weights_beside_packed_ones(self, name):
        case = Case("b", packed=True)
        for argument in ("w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv"):
            case.refuses(
                ENTRIES[name], ValueError, f"^{argument}: expected None", **{argument: getattr(case.weights, argument)}
            )
        case.refuses(
            ENTRIES[name], ValueError, "^dequant_scale: expected None", dequant_scale=np.ones((5, 1), np.float32)
        )

    def test_a_source_that_overlaps_the_target(self, name):
        case = Case("b", in_place=False)
        memory = np.zeros((BLOCKS + 1, BLOCK_SIZE, 1, 68), np.int8)
        match = "^kv_cache_out: expected memory of its own, got an overlap with kv_cache$"
        case.refuses(ENTRIES[name], ValueError, match, kv_cache=memory[1:], kv_cache_out=memory[:-1])
        assert not memory.any()

    def test_a_source_of_another_shape_or_type(self, name):
        case = Case("b", in_place=False)
        for argument in ("kv_cache", "kr_cache", "k_scale_cache"):
            array = case.arguments[argument]
            case.refuses(ENTRIES[name], ValueError, f"^{argument}: expected shape", **{argument: array[1:]})
            wrong = np.zeros(array.shape, np.float64)
            case.refuses(
                ENTRIES[name], TypeError, f"^{argument}: expected .*{array.dtype}.*got float64", **{argument: wrong}
            )

    def test_a_read_only_source(self, name):
        case = Case("b", in_place=False)
        for array in case.source.arrays().values():
            array.setflags(write=False)
        case.assert_computes(ENTRIES[name])

    def test_no_tokens(self, name):
        case = Case("b", in_place=False)
        per_token = {n: case.arguments[n][:0] for n in ("token_x", "cos", "sin", "cache_index")}
        per_token |= {n: a[:0] for n, a in case.arguments.items() if n.startswith("q") and n.endswith("_out")}
        ENTRIES[name](**(case.arguments | per_token))
        for cache, array in case.before.arrays().items():
            assert_same_bits(cache, case.target.arrays()[cache], array)


def scales_by_slot(case):
    """Slots that were written, and their four scales."""
    slots = case.arguments["cache_index"]
    slots = np.unique(slots[slots >= 0])
    return slots, case.want.k_scale_cache.reshape(-1, 4)[slots]


def test_packed_weights_take_the_epsilons_of_the_call():
    case = Case("b", packed=True)
    case.weights = replace(case.weights, epsilon_cq=0.25, epsilon_ckv=0.75)
    inputs = (case.arguments[n] for n in ("token_x", "cos", "sin", "cache_index"))
    case.want = reference_run(case.weights, *inputs, case.source)
    case.assert_computes(mla.mla_prolog_quant_compute, epsilon_cq=0.25, epsilon_ckv=0.75)


@pytest.mark.parametrize("mode", ["a", "ab", "ab smooth", "b smooth"])
def test_packed_weights_of_the_other_modes(mode):
    quantized = "b" in mode.split()[0]
    case = Case("b" if quantized else "none")
    case.weights = weights = make_weights(DIMS, mode, epsilon_cq=1e-3, epsilon_ckv=1e-4)
    inputs = (case.arguments[n] for n in ("token_x", "cos", "sin", "cache_index"))
    case.want = reference_run(weights, *inputs, case.source)
    others = dict.fromkeys(ARGUMENTS[2:8])
    case.assert_computes(mla.mla_prolog_quant_compute, w_dq=weights.pack(), **others)


FRACTAL_WEIGHTS = words("w_dq w_uq_qr w_dkv_kr")


@pytest.mark.parametrize("name", ENTRIES)
class TestFractalWeights:
    """FRACTAL_NZ weights; no dimension of DIMS is a multiple of a fractal, so each has rows and columns of padding."""

    @pytest.mark.parametrize("quant", ["b", "none"])
    @pytest.mark.parametrize("which", [FRACTAL_WEIGHTS, *([weight] for weight in FRACTAL_WEIGHTS)], ids="-".join)
    def test_equals_the_reference(self, name, quant, which):
        case = Case(quant)
        fractals = {weight: to_fractal_nz(case.arguments[weight]) for weight in which}
        assert all(f.size > case.arguments[weight].size for weight, f in fractals.items())
        before = {weight: f.copy() for weight, f in fractals.items()}
        case.assert_computes(ENTRIES[name], **fractals)
        for weight, array in before.items():
            assert_same_bits(weight, fractals[weight], array)

    def test_wrong_fractals(self, name):
        entry, case = ENTRIES[name], Case("b")
        for weight in FRACTAL_WEIGHTS:
            fractals = to_fractal_nz(case.arguments[weight])
            k, n = case.arguments[weight].shape
            shape = rf"^{weight}: expected shape \(\.\.\., \d+, \d+, 16, \d+\) of a \({k}, {n}\) weight, got \("
            for wrong in (fractals[1:], fractals[:, 1:], fractals.swapaxes(0, 1), fractals[:, :, :8]):
                case.refuses(entry, ValueError, shape, **{weight: wrong.copy()})
            case.refuses(entry, TypeError, f"^{weight}: expected dtype", **{weight: fractals.astype(np.float32)})
            dirty = fractals.copy()
            dirty[-1, -1, -1, -1] = 1
            padding = f"^{weight}: expected zeros beyond row {k} and column {n}"
            case.refuses(entry, ValueError, padding, **{weight: dirty})
        codes = to_fractal_nz(case.weights.w_uq_qr)
        case.refuses(entry, TypeError, "^w_uq_qr: expected .*bfloat16, got int8", w_uq_qr=codes, dequant_scale=None)

    def test_what_tells_the_dimensions_is_checked_first(self, name):
        entry, case = ENTRIES[name], Case("b")
        fractals = {weight: to_fractal_nz(case.arguments[weight]) for weight in FRACTAL_WEIGHTS}
        for argument in words("token_x w_uk gamma_cq cos"):
            array = case.arguments[argument]
            case.refuses(entry, TypeError, f"^{argument}: expected .*NoneType", **(fractals | {argument: None}))
            case.refuses(entry, ValueError, f"^{argument}: expected shape", **(fractals | {argument: array[None]}))
        for argument in ("w_uq_qr", "w_dkv_kr"):
            case.refuses(entry, TypeError, f"^{argument}: expected .*NoneType", **(fractals | {argument: None}))

    def test_w_uk_is_not_in_fractals(self, name):
        case = Case("b")
        text = r"^w_uk: expected shape \(any, any, any\), got \(3, 5, 3, 16, 16\)"
        case.refuses(ENTRIES[name], ValueError, text, w_uk=to_fractal_nz(case.weights.w_uk))


class TestSettings:
    def test_quant_inputs(self):
        names = words(
            "dequant_scale_x dequant_scale_w_dq dequant_scale_w_uq_qr dequant_scale_w_dkv_kr quant_scale_ckv "
            "quant_scale_ckr smooth_scales_cq"
        )
        assert list(inspect.signature(MlaQuantInputs).parameters) == names
        inputs = MlaQuantInputs()
        assert all(getattr(inputs, name) is None for name in names)
        inputs.dequant_scale_w_uq_qr = np.ones(3, np.float32)
        with pytest.raises(AttributeError):
            inputs.dequant_scale = 3

    def test_tile_config_attribute_by_attribute(self):
        config = MlaTileConfig()
        config.tile_bs = 8
        config.m_tile = 16
        config.mv_tile = 8
        config.pre_quant_cube_tile = [16, 16, 256, 256, 128, 128]
        config.cube_qb_tile = [16, 16, 256, 256, 256, 256]
        config.cube_wuk_tile = [16, 16, 128, 128, 128, 128]
        config.q_vec_tile0, config.q_vec_tile1 = 1, 32
        config.k_vec_tile0, config.k_vec_tile1 = 2, 512
        config.unroll_list = [8, 4, 2, 1]
        assert config == preset("decode_b4_s2")
        Case("b").assert_computes(mla.mla_prolog_quant_d, tile_config=config)
        with pytest.raises(AttributeError):
            config.cube_tile = [1]
        with pytest.raises(ValueError, match="pre_quant_cube_tile"):
            config.pre_quant_cube_tile = [16, 24, 256, 256, 128, 128]

    def test_options_list(self):
        assert mla.options_list() == {"runtime_options": {"device_sched_mode": 3}}
        assert mla.options_list("910") == {"runtime_options": {"device_sched_mode": 2, "stitch_function_max_num": 128}}

    def test_public_names(self):
        seeds = words("""
            scalar_div k_nope_quant rms_norm quant dequant rotate_half rope_v2 rope_3d_v2 pre_compute_2d
            mla_prolog_quant_compute mla_prolog_quant_p mla_prolog_quant_d options_list MlaTileConfig MlaQuantInputs
            RopeTileShapeConfig
        """)
        assert set(seeds) <= set(mla.__all__)
        assert all(hasattr(mla, name) for name in mla.__all__)
