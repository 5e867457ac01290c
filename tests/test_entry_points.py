"""The reference operator's public names, with its order of arguments, on NumPy arrays and on packed weights."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from helpers import (
    BF16,
    MODES,
    assert_none,
    assert_same_bits,
    make_weights,
    spread,
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
    MlaDims,
    MlaQuantInputs,
    MlaTileConfig,
    preset,
)
from mla_numba.layouts import to_fractal_nz
from mla_numba.oracle import reference
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


class TestPreCompute2d:
    def arguments(self, mode, t=T, hidden=130, columns=201):
        weights = make_weights(MlaDims(hidden, 1, 50, 68, columns - 34, 34), mode)
        x = spread(np.random.default_rng(5), t, hidden)
        scales = ("dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr", "smooth_scales_cq")
        given = {name: getattr(weights, name) for name in scales}
        return [x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, 1e-3], given

    def test_order_of_arguments(self):
        names = words("token_x w_dq w_uq_qr w_dkv_kr gamma_cq epsilon_cq quant_inputs tile_config")
        *positional, numerics = inspect.signature(mla.pre_compute_2d).parameters.values()
        assert [p.name for p in positional] == names
        assert (numerics.name, numerics.kind) == ("numerics", inspect.Parameter.KEYWORD_ONLY)

    @pytest.mark.parametrize("t", [0, 1, 13, 37])
    @pytest.mark.parametrize("mode", MODES)
    def test_equals_the_reference(self, mode, t):
        arguments, scales = self.arguments(mode, t)
        want = reference.pre_compute_2d(*arguments, **scales)
        for config in (None, MlaTileConfig(), MlaTileConfig(unroll_list=[5])):
            got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales), config)
            assert len(got) == (4 if "b" in mode else 3)
            for name, g, w in zip(("q_b_proj", "compressed_kv", "q_norm", "q_norm_scale"), got, want, strict=False):
                assert_same_bits(name, g, w)

    @pytest.mark.parametrize("mode", MODES)
    def test_fractal_weights(self, mode):
        """Scales tell the columns; where a weight has none its padding gives columns of zeros."""
        arguments, scales = self.arguments(mode)
        want = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales))
        x, *weights, gamma, epsilon = arguments
        got = mla.pre_compute_2d(x, *map(to_fractal_nz, weights), gamma, epsilon, MlaQuantInputs(**scales))
        assert len(got) == len(want)
        widths = [201 if "b" in mode else 208, 102 if "a" in mode else 112, 50, 1]
        for name, g, w, width in zip(("q_b_proj", "compressed_kv", "q_norm", "scale"), got, want, widths, strict=False):
            assert g.shape == (T, width)
            n = w.shape[1]
            assert_same_bits(name, g[:, :n].copy(), w)
            assert not g[:, n:].astype(np.float32).any()

    def test_wrong_fractals(self):
        arguments, scales = self.arguments("ab")
        for i, name in ((1, "w_dq"), (2, "w_uq_qr"), (3, "w_dkv_kr")):
            fractals = to_fractal_nz(arguments[i])
            k, n = arguments[i].shape
            given = [*arguments[:i], fractals[1:], *arguments[i + 1 :], MlaQuantInputs(**scales)]
            with pytest.raises(ValueError, match=rf"^{name}: expected shape .* of a \({k}, {n}\) weight, got"):
                mla.pre_compute_2d(*given)
            given[i] = fractals.astype(np.float32)
            with pytest.raises(TypeError, match=f"^{name}: expected dtype"):
                mla.pre_compute_2d(*given)

    def test_a_lone_scale_of_the_down_projections_switches_nothing(self):
        arguments, _ = self.arguments("none")
        want = mla.pre_compute_2d(*arguments, MlaQuantInputs(), None)
        for name, n in (("dequant_scale_w_dq", 50), ("dequant_scale_w_dkv_kr", 102)):
            got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**{name: np.ones(n, np.float32)}), MlaTileConfig())
            for g, w in zip(got, want, strict=True):
                assert_same_bits(name, g, w)

    def test_work_that_is_shared_among_threads(self):
        arguments, scales = self.arguments("b", 64, 514, 901)
        want = reference.pre_compute_2d(*arguments, **scales)
        for g, w in zip(mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales)), want, strict=True):
            assert_same_bits("array", g, w)

    def test_errors_name_the_argument(self):
        arguments, scales = self.arguments("b")
        names = ("token_x", "w_dq", "w_uq_qr", "w_dkv_kr", "gamma_cq")
        for i, name in enumerate(names):
            for wrong in (None, np.zeros(arguments[i].shape, np.float32)):
                with pytest.raises(TypeError, match=f"^{name}: expected "):
                    mla.pre_compute_2d(*arguments[:i], wrong, *arguments[i + 1 :], MlaQuantInputs(**scales))
            with pytest.raises(ValueError, match=f"^{name}: expected shape"):
                mla.pre_compute_2d(*arguments[:i], arguments[i][None], *arguments[i + 1 :], MlaQuantInputs(**scales))
        with pytest.raises(TypeError, match=r"^quant_inputs: expected MlaQuantInputs, got dict"):
            mla.pre_compute_2d(*arguments, {})
        with pytest.raises(TypeError, match=r"^tile_config: expected MlaTileConfig"):
            mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales), {})

    def test_scales_of_another_length(self):
        arguments, scales = self.arguments("ab smooth")
        for name in scales:
            for wrong, error in (
                (scales[name].reshape(-1)[1:], ValueError),
                (scales[name].astype(np.float64), TypeError),
            ):
                with pytest.raises(error, match=f"^quant_inputs.{name}: expected "):
                    mla.pre_compute_2d(*arguments, MlaQuantInputs(**(scales | {name: wrong})))

    def test_scales_that_no_mode_reads(self):
        arguments, scales = self.arguments("b")
        for name in ("dequant_scale_x", "quant_scale_ckv", "quant_scale_ckr"):
            with pytest.raises(ValueError, match=f"^quant_inputs.{name}: expected None"):
                mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales, **{name: np.ones(1, np.float32)}))

    def test_odd_hidden_size(self):
        arguments, scales = self.arguments("a", hidden=131)
        want = reference.pre_compute_2d(*arguments, **scales)
        for g, w in zip(mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales)), want[:3], strict=True):
            assert_same_bits("array", g, w)
        x, _, *others = arguments
        w_dq, w_dkv_kr = np.zeros((131, 50), BF16), np.zeros((131, 102), BF16)
        with pytest.raises(ValueError, match=r"even hidden_size.*131"):
            mla.pre_compute_2d(x, w_dq, others[0], w_dkv_kr, *others[2:], MlaQuantInputs())

    def test_a_k_too_long_for_int32(self):
        """132104 products of 127 and 128 are below 2**31, and 132105 are not."""
        k = 132105
        up, gamma = np.zeros((3, 3), BF16), np.ones(3, BF16)
        ones = np.ones(3, np.float32)
        scales = MlaQuantInputs(dequant_scale_w_dq=ones, dequant_scale_w_dkv_kr=ones)
        down = np.full((k, 3), 127, np.int8)
        mla.pre_compute_2d(np.ones((1, k - 1), BF16), down[1:], up, down[1:], gamma, 1e-5, scales)
        with pytest.raises(ValueError, match=r"^w_dq: expected .*132104.*got 132105"):
            mla.pre_compute_2d(np.ones((1, k), BF16), down, up, down, gamma, 1e-5, scales)
        w_dq, up = np.ones((2, k), BF16), np.full((k, 3), 127, np.int8)
        w_dkv_kr = np.ones((2, 3), BF16)
        with pytest.raises(ValueError, match=r"^w_uq_qr: expected .*132104.*got 132105"):
            mla.pre_compute_2d(
                np.ones((1, 2), BF16), w_dq, up, w_dkv_kr, np.ones(k, BF16), 1e-5, MlaQuantInputs(None, None, ones)
            )


class TestOperations:
    """Each with the reference's positions, on values worked out by hand."""

    rng = np.random.default_rng(8)

    def test_scalar_div(self):
        x = np.array([1, 2, 4], np.float32)
        assert mla.scalar_div(x, 4.0).tolist() == [0.25, 0.5, 1]
        assert mla.scalar_div(x, 4.0, True).tolist() == [4, 2, 1]
        assert mla.scalar_div(x.astype(BF16), 3.0).dtype == BF16

    def test_rms_norm(self):
        x = np.full((2, 3, 64), 2, BF16)
        x[1] = 0
        got = mla.rms_norm(x, np.arange(64).astype(BF16), 0.0)
        assert got.dtype == BF16
        assert got[0, 2].astype(int).tolist() == list(range(64))
        assert mla.rms_norm(np.full((1, 4), 3, np.float32), np.ones(4, np.float32), 7.0)[0, 0] == 0.75

    def test_symmetric_quant(self):
        x = np.array([[127, -127, 0.5, 1.5, 2.5, -0.5], [0] * 6], np.float32).astype(BF16)
        codes, scale = mla.quant(x)
        assert codes.dtype == np.int8
        assert codes.tolist() == [[127, -127, 0, 2, 2, 0], [0] * 6]
        assert scale.dtype == np.float32
        assert scale.tolist() == [[1.0], [0.0]]

    def test_smooth_quant(self):
        codes, scale = mla.quant(np.ones((1, 4), BF16), True, True, np.array([[1, 2, 127, -64]], np.float32))
        assert codes.tolist() == [[1, 2, 127, -64]]
        assert scale.tolist() == [[1.0]]
        with pytest.raises(TypeError, match=r"^smooth_factor: expected an array"):
            mla.quant(np.ones((1, 4), BF16), True, True)

    def test_asymmetric_quant(self):
        codes, scale, zero_point = mla.quant(np.array([[0, 255, 100]], np.float32), False)
        assert (codes.tolist(), scale.tolist(), zero_point.tolist()) == ([[-128, 127, -28]], [[1.0]], [[-128.0]])
        x = self.rng.uniform(-3, 5, (20, 333)).astype(np.float32)
        codes, scale, zero_point = mla.quant(x, False)
        assert codes.dtype == np.int8
        back = mla.dequant_asymmetric(codes, scale, zero_point)
        assert (np.abs(back - x) <= scale * 0.5001 + 1e-6).all()
        codes, scale, _ = mla.quant(np.zeros((2, 8), np.float32), False)
        assert (scale == np.float32(1e-12)).all()
        assert (codes == -128).all()

    def test_dequant(self):
        sums = np.array([[3, 2**24 + 1]], np.int32)
        scale, w_scale = np.array([[0.5]], np.float32), np.array([[4, 2]], np.float32)
        got = mla.dequant(np.float32, sums, scale, w_scale)
        assert got.tolist() == [[6.0, 2.0**24]]
        assert mla.dequant(BF16, sums, scale, w_scale).dtype == BF16

    def test_k_nope_quant(self):
        x = spread(self.rng, 5, 4, 17)
        x[2, 1] = 0
        codes, scale = mla.k_nope_quant(x)
        assert (codes.shape, scale.shape) == ((5, 4, 17), (5, 4, 1))
        assert (np.abs(codes).max(axis=-1) == np.where(scale[..., 0] == 0, 0, 127)).all()
        assert scale[2, 1, 0] == 0

    def test_rotate_half(self):
        assert mla.rotate_half(np.array([[1, 2, 3, 4]], np.float32)).tolist() == [[-3, -4, 1, 2]]
        with pytest.raises(ValueError, match="even"):
            mla.rotate_half(np.zeros((2, 3), np.float32))

    def test_rope(self):
        x = np.arange(1, 9).astype(BF16).reshape(1, 8)  # interleaved pairs (1, 2), (3, 4), ...
        one, zero = np.ones((1, 8), BF16), np.zeros((1, 8), BF16)
        assert mla.rope_v2(x, one, zero, ROPE_TILES).astype(int).tolist() == [[1, 3, 5, 7, 2, 4, 6, 8]]
        assert mla.rope_v2(x, zero, one, ROPE_TILES).astype(int).tolist() == [[-2, -4, -6, -8, 1, 3, 5, 7]]
        heads = np.repeat(x[:, None], 3, axis=1)
        assert mla.rope_3d_v2(heads, zero, one).astype(int).tolist() == [[[-2, -4, -6, -8, 1, 3, 5, 7]] * 3]

    @pytest.mark.parametrize(
        ("name", "parameters"),
        {
            "scalar_div": "tensor other is_reserve",
            "k_nope_quant": "x",
            "rms_norm": "input_tensor gamma epsilon",
            "quant": "input_tensor is_symmetry has_smooth_factor smooth_factor",
            "dequant": "dtype input_tensor scale w_scale",
            "rotate_half": "input_tensor",
            "rope_v2": "x cos sin tile_config",
            "rope_3d_v2": "x cos sin",
        }.items(),
    )
    def test_order_of_arguments(self, name, parameters):
        assert list(inspect.signature(getattr(mla, name)).parameters) == parameters.split()


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
