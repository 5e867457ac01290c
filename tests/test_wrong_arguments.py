"""Every argument of every public function replaced by each wrong one of a pool.

Only `TypeError` and `ValueError` may come, naming an argument; what a call would have written is then as it was. What
is no error has to be one of the values that are meant to be taken, and where arrays are written, to give the same bits.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from helpers import assert_none, make_cache, make_inputs, make_output, make_weights, spread
from helpers.entry_points import Case
from helpers.indexer_calls import (
    assert_as_reference,
    expect_indexer,
    make_indexer,
    make_indexer_cache,
    make_indexer_output,
)
from helpers.lightning_calls import Shape, reference_of
from helpers.lightning_calls import make_call as make_index_call
from helpers.wrong_arguments import HUGE, arrays_like, objects

import mla_numba as mla
import tiling
from mla_numba import (
    IndexerOutput,
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    MlaTileConfig,
    MlaWeights,
    PagedCache,
    PassOptions,
    lightning_index,
    reference,
)
from mla_numba.call.planning import MICRO_TILES
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(16, 2, 9, 8, 3, 4)
T, BLOCKS, BLOCK_SIZE = 5, 2, 3
# A wrong shape or a missing scale may be blamed on an argument that it does not fit to.
OF_OTHERS = re.compile(r"one (row|column|axis)|no (rows|columns)|None|flat|transposed|0-d|empty|array|dtype")
SAME_VALUES = {"read-only", "subclass", "Fortran", "transposed", "flat", "dtype i4"}
ANY_STRIDES = SAME_VALUES | {
    "backwards", "columns backwards", "every other column", "every other row", "one row again and again",
    "one element again and again",
}  # fmt: skip
ONLY_NONE = {"None"}
FLAG = {"True", "NumPy bool"}
NUMBERS = {"zero", "huge int", "64 bits", "float", "whole float", "NumPy float"}
OTHER_ROWS = {"one row fewer", "one row more", "no rows"}
OTHER_COLUMNS = {"one column fewer", "one column more"}


def attempt(function, arguments, name, value, label, written=(), blamed=None):
    """True where the call succeeded; an error has to be a documented one, and to leave `written` as it was."""
    before = [None if a is None else a.tobytes() for a in written]
    error = None
    try:
        function(**(arguments | {name: value}))
    except (TypeError, ValueError) as raised:
        error = raised
    if error is None:
        return True
    where = f"{name} = {label}: {type(error).__name__}: {error}"
    assert type(error) in (TypeError, ValueError), where
    names = {blamed or name}
    if OF_OTHERS.search(label):
        names |= set(arguments)
    head = str(error) if "overlap" in str(error) else str(error).split(":")[0]
    assert any(re.search(rf"\b{n}\b", head) for n in names), where
    assert ": expected " in str(error), where
    for array, old in zip(written, before, strict=True):
        assert array is None or array.tobytes() == old, f"{where}: written"
    return False


def assert_takes(function, arguments, taken, names=None, **more):
    """Tries the whole pool in each place; `taken[name]` are the labels that are no errors there."""
    n = 0
    for name in names or arguments:
        right = arguments[name]
        pool = list(objects().items())
        if isinstance(right, np.ndarray):
            pool += arrays_like(right)
        found = set()
        for label, value in pool:
            n += 1
            if attempt(function, arguments, name, value, label, **more):
                found.add(label)
        allowed = taken.get(name, set())
        assert found <= allowed, f"{name}: taken without an error: {sorted(found - allowed)}"
    return n


class TestCall:
    @pytest.fixture(params=["b", "none", "ab smooth"])
    def call(self, request):
        weights = make_weights(DIMS, request.param)
        quantized = "b" in weights.quant
        inputs = make_inputs(DIMS, T, BLOCKS * BLOCK_SIZE)
        cache = make_cache(DIMS, quantized, BLOCKS, BLOCK_SIZE)
        out = make_output(DIMS, quantized, T)
        want = reference_run(weights, *inputs, cache)
        written = [*out, *cache.arrays().values()]
        return MlaProlog(weights), inputs._asdict() | {"cache": cache, "out": out}, written, want

    def test_inputs(self, call):
        prolog, arguments, written, want = call
        saved = arguments["cache"].copy()

        def run(**given):
            prolog(**given)
            assert_none(check_output(given["out"], given["cache"], want))
            for array, old in zip(given["cache"].arrays().values(), saved.arrays().values(), strict=True):
                array[...] = old

        taken = dict.fromkeys(("x", "cos", "sin", "cache_index"), SAME_VALUES)
        assert_takes(run, arguments, taken, names=("x", "cos", "sin", "cache_index", "cache"), written=written)

    def test_outputs(self, call):
        prolog, arguments, written, want = call
        for name, array in arguments["out"]._asdict().items():
            pool = [*objects().items(), *([] if array is None else arrays_like(array))]
            for label, value in pool:
                out = arguments["out"]._replace(**{name: value})
                saved = [None if a is None else a.copy() for a in written]
                if attempt(prolog, arguments, "out", out, label, written, blamed=name):
                    if array is None:
                        assert value is None
                        continue
                    odd = {"not aligned"} if array.itemsize == 1 else set()
                    odd |= {"columns backwards", "Fortran", "transposed"} if array.shape[-1] == 1 else set()
                    assert label in {"subclass", "Fortran"} | odd, f"{name}: {label}"
                    assert_none(check_output(out, arguments["cache"], want))
                    for a, old in zip(written, saved, strict=True):
                        if a is not None:
                            a[...] = old

    def test_out_and_cache(self, call):
        prolog, arguments, written, _ = call
        for name, taken in (("out", {"None"}), ("cache", set())):
            for label, value in objects().items():
                if label not in taken:
                    assert not attempt(prolog, arguments, name, value, label, written)


class TestIndexerCall:
    """The indexer's prolog alone, and the arguments that it adds to a prolog's call."""

    @pytest.fixture
    def case(self):
        weights, indexer = make_weights(DIMS, "b"), make_indexer(DIMS, 2, 6)
        inputs = make_inputs(DIMS, T, BLOCKS * BLOCK_SIZE)
        keys = make_indexer_cache(indexer.dims, BLOCKS, BLOCK_SIZE)
        of_prolog, want = expect_indexer(weights, indexer, inputs, make_cache(DIMS, True, BLOCKS, BLOCK_SIZE), keys)
        q = {"q_norm": of_prolog.q_norm, "q_norm_scale": of_prolog.q_norm_scale}
        arguments = inputs._asdict() | q | {"cache": keys, "out": make_indexer_output(indexer.dims, T)}
        return weights, indexer, arguments, want

    def test_inputs(self, case):
        _, indexer, arguments, want = case
        alone, keys = mla.IndexerProlog(indexer), arguments["cache"]
        saved = keys.copy()

        def run(**given):
            alone(**given)
            assert_as_reference(given["out"], given["cache"], want)
            keys.k[...], keys.k_scale[...] = saved.k, saved.k_scale

        names = ("x", "q_norm", "q_norm_scale", "cos", "sin", "cache_index")
        taken = dict.fromkeys(names, SAME_VALUES)
        taken["q_norm"] = SAME_VALUES | {"not aligned"}  # elements of a byte
        taken["q_norm_scale"] = SAME_VALUES | {"columns backwards"}  # of one column
        written = [*arguments["out"], keys.k, keys.k_scale]
        assert_takes(run, arguments, taken, names=(*names, "cache"), written=written)
        for label, value in objects().items():
            if value is not None:
                assert not attempt(alone, arguments, "out", value, label, written)

    def test_outputs(self, case):
        _, indexer, arguments, _ = case
        alone, written = mla.IndexerProlog(indexer), [*arguments["out"], *arguments["cache"].arrays().values()]
        for name, array in arguments["out"]._asdict().items():
            for label, value in [*objects().items(), *arrays_like(array)]:
                out = arguments["out"]._replace(**{name: value})
                if attempt(alone, arguments, "out", out, label, written, blamed=name):
                    odd = {"not aligned"} if array.itemsize == 1 else set()
                    odd |= {"columns backwards", "transposed"} if array.shape[-1] == 1 else set()
                    assert label in {"subclass", "Fortran"} | odd, f"{name}: {label}"

    def test_beside_a_prolog(self, case):
        weights, indexer, arguments, _ = case
        prolog = MlaProlog(weights, indexer=indexer)
        cache, out = make_cache(DIMS, True, BLOCKS, BLOCK_SIZE), make_output(DIMS, True, T)
        given = {name: arguments[name] for name in ("x", "cos", "sin", "cache_index")}
        given |= {"cache": cache, "out": mla.IndexedOutput(out, arguments["out"]), "indexer_cache": arguments["cache"]}
        written = [*out, *arguments["out"], *cache.arrays().values(), *arguments["cache"].arrays().values()]
        assert assert_takes(prolog, given, {}, names=("indexer_cache",), written=written) == len(objects())
        for label, value in objects().items():
            if value is not None:
                assert not attempt(prolog, given, "out", value, label, written)

    def test_making_one(self, case):
        weights, indexer, _, _ = case
        arguments = {"weights": indexer, "n_threads": 1, "check_finite": False}
        assert_takes(mla.IndexerProlog, arguments, {"n_threads": ONLY_NONE, "check_finite": FLAG})
        assert_takes(MlaProlog, {"weights": weights, "indexer": indexer}, {"indexer": ONLY_NONE}, names=("indexer",))
        assert_takes(indexer.pack, {"n_threads": 1}, {"n_threads": ONLY_NONE})
        for method in ("plan", "allocate_output"):
            assert_takes(getattr(mla.IndexerProlog(indexer), method), {"t": 1}, {"t": {"zero"}})


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("quant", ["b", "none"])
def test_entry_points(quant, packed, in_place):
    """`_p` and `_d` are the same function for another phase; test_entry_points.py holds them to it."""
    case = Case(quant, DIMS, packed=packed, in_place=in_place)
    written = [*case.out, *case.target.arrays().values(), *case.source.arrays().values()]
    saved = [None if a is None else a.copy() for a in written]

    def run(**given):
        mla.mla_prolog_quant_compute(**given)
        for array, old in zip(written, saved, strict=True):
            if array is not None:
                array[...] = old

    arrays = {n: SAME_VALUES for n, a in case.arguments.items() if isinstance(a, np.ndarray)}
    taken = arrays | {
        "tile_config": {"None"},
        "rope_cfg": {"None"},
        "epsilon_cq": NUMBERS,
        "epsilon_ckv": NUMBERS,
    }
    if quant == "b":
        taken["w_uq_qr"] = SAME_VALUES | {"not aligned"}
    for name in ("q_norm_out", "kv_cache_out", "kv_cache", "kr_cache_out", "k_scale_cache_out"):
        taken[name] = SAME_VALUES | {"not aligned", "every other row", "dtype f2"}
    # A source that is not the target is copied, whatever its strides.
    for name in ("kv_cache", "kr_cache", "k_scale_cache"):
        taken[name] = taken.get(name, set()) | ANY_STRIDES | {"not aligned"}
    if quant == "b":
        taken["dequant_scale"] = ANY_STRIDES  # (n, 1) is copied into (n,)
        taken["q_norm_scale_out"] = SAME_VALUES | {"columns backwards"}
    else:
        nothing_read = set(objects()) | {label for label, _ in arrays_like(np.zeros((2, 3), np.float32))}
        for name in ("k_scale_cache", "k_scale_cache_out", "q_norm_scale_out"):
            taken[name] = nothing_read
    if packed:  # the other weights are in the packed ones
        taken |= dict.fromkeys(("w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv"), ONLY_NONE)
    no_scale = {"dequant_scale": {"None", "empty array"}}
    if case.weights.quant == "none" or packed:
        without = case.arguments | {"dequant_scale": None}
        assert_takes(run, without, no_scale, names=no_scale, written=written)
    names = [n for n in case.arguments if n != "dequant_scale" or (quant == "b" and not packed)]
    assert_takes(run, case.arguments, taken, names=names, written=written)


class TestPreCompute2d:
    scales = ("dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr", "smooth_scales_cq")

    def arguments(self, mode):
        weights = make_weights(MlaDims(16, 1, 9, 8, 6, 4), mode)
        names = ("w_dq", "w_uq_qr", "w_dkv_kr", "gamma_cq")
        inputs = MlaQuantInputs(**{name: getattr(weights, name) for name in self.scales})
        x = make_inputs(DIMS, T, 6).x
        given = {"token_x": x} | {n: getattr(weights, n) for n in names}
        return given | {"epsilon_cq": 1e-5, "quant_inputs": inputs, "tile_config": None}

    @pytest.mark.parametrize("mode", ["ab smooth", "none"])
    def test_arguments(self, mode):
        arguments = self.arguments(mode)
        taken = {n: SAME_VALUES | {"not aligned"} for n in ("w_dq", "w_uq_qr", "w_dkv_kr")}
        if mode == "none":
            taken = dict.fromkeys(("w_uq_qr", "w_dkv_kr"), SAME_VALUES | OTHER_COLUMNS) | {"w_dq": SAME_VALUES}
        taken |= {"token_x": SAME_VALUES | OTHER_ROWS, "gamma_cq": SAME_VALUES, "tile_config": {"None"}}
        taken["epsilon_cq"] = NUMBERS
        want = reference.pre_compute_2d(
            *(arguments[n] for n in ("token_x", "w_dq", "w_uq_qr", "w_dkv_kr", "gamma_cq", "epsilon_cq")),
            **{n: getattr(arguments["quant_inputs"], n) for n in self.scales},
        )
        got = mla.pre_compute_2d(**arguments)
        assert all((g.view(np.uint8) == w.view(np.uint8)).all() for g, w in zip(got, want, strict=False))
        # Errors name a scale as `quant_inputs.dequant_scale_...`.
        assert_takes(mla.pre_compute_2d, arguments, taken)

    @pytest.mark.parametrize("name", scales)
    def test_scales(self, name):
        arguments = self.arguments("ab smooth")
        right = getattr(arguments["quant_inputs"], name)
        for label, value in [*objects().items(), *arrays_like(right)]:
            given = replace(arguments["quant_inputs"], **{name: value})
            if attempt(mla.pre_compute_2d, arguments, "quant_inputs", given, label, blamed=name):
                kept = SAME_VALUES | {"one axis more", "one axis more behind"}
                assert label in kept | ({"None"} if name == "smooth_scales_cq" else set()), label


@pytest.mark.parametrize("mode", ["ab smooth", "none"])
def test_weights(mode):
    weights = make_weights(DIMS, mode)
    arguments = {name: getattr(weights, name) for name in (f.name for f in fields(weights) if f.init)}
    scales = [n for n in arguments if "scale" in n]
    taken = dict.fromkeys(arguments, SAME_VALUES | {"one axis more", "one axis more behind"})
    for name in ("w_dq", "w_uq_qr", "w_dkv_kr"):
        taken[name] = SAME_VALUES | ({"not aligned"} if mode != "none" else set())
    taken |= dict.fromkeys(scales, taken["gamma_cq"] | {"None"}) | {"head_shard": {"None"}}
    assert_takes(MlaWeights, arguments, taken | dict.fromkeys(("epsilon_cq", "epsilon_ckv"), NUMBERS))


def test_making_weights():
    bf16 = make_weights(DIMS, "none")
    smooth = np.ones((1, 9), np.float32)
    taken = {"smooth_scales_cq": ANY_STRIDES | {"None"}}
    assert_takes(bf16.quantize, {"quant": "b", "smooth_scales_cq": smooth}, taken)
    assert_takes(bf16.pack, {"n_threads": 1}, {"n_threads": {"None"}})
    arguments = {"dims": DIMS, "seed": 0, "quant": "b", "smooth": False}
    taken = {"seed": {"zero", "huge int", "64 bits"}, "smooth": FLAG}
    assert_takes(MlaWeights.random, arguments, taken)


def test_cache():
    cache = make_cache(DIMS, True, BLOCKS, BLOCK_SIZE)

    def make(kv_cache, kr_cache, k_scale_cache, cache_mode):
        return PagedCache(kv_cache, kr_cache, k_scale_cache, cache_mode)

    blocks = SAME_VALUES | {"every other row"}
    taken = {"kv_cache": blocks | OTHER_COLUMNS | {"not aligned"}, "kr_cache": blocks | OTHER_COLUMNS}
    assert_takes(make, cache.arrays() | {"cache_mode": "PA_BSND"}, taken | {"k_scale_cache": blocks | {"dtype f2"}})
    arguments = {"dims": DIMS, "n_blocks": 2, "block_size": 2, "cache_mode": "PA_BSND", "quantized": True}
    assert_takes(PagedCache.allocate, arguments, {"quantized": FLAG})


def test_lightning_index():
    call = make_index_call(Shape((2, 2), 20, 3, 8, 4, 6))
    call.block_table[call.block_table < 0] = 0
    want = reference_of(call)
    arguments = {
        **call.out._asdict(), "cache": call.cache, "block_table": call.block_table, "act_seq": call.act_seq, "k": 6,
        "query_start_loc": np.array([0, 2, 4]), "n_threads": 1,
    }  # fmt: skip

    def run(query, query_scale, weights, **others):
        index = lightning_index(IndexerOutput(query, query_scale, weights), **others)
        values = (query, query_scale, weights, others["block_table"], others["act_seq"])
        if all(np.array_equal(a, b) for a, b in zip(values, [*call.out, call.block_table, call.act_seq], strict=True)):
            assert (index[:, :6] == want[:, : index.shape[1]]).all()

    integers = ANY_STRIDES | {"dtype i4", "dtype i8"}
    taken = {
        "query": SAME_VALUES | {"not aligned"}, "query_scale": SAME_VALUES | {"columns backwards"},
        "weights": SAME_VALUES,
        "block_table": integers | {"one column more", "matrix"}, "act_seq": integers,
        "query_start_loc": {"None"} | integers,
        "n_threads": {"None"},
    }  # fmt: skip
    assert_takes(run, arguments, taken)


def test_dims():
    assert_takes(MlaDims, asdict(DIMS), {})
    for value in objects().values():
        if not isinstance(value, Mapping):
            with pytest.raises(ValueError, match=r"^config\.hidden_size: expected an int, got none"):
                MlaDims.from_hf(value)
        for name in asdict(DIMS):
            with pytest.raises((TypeError, ValueError), match=rf"{name}: expected "):
                MlaDims.from_hf(asdict(DIMS) | {name: value})


def test_tile_settings():
    defaults = MlaTileConfig()
    arguments = {f.name: getattr(defaults, f.name) for f in fields(defaults)}
    empty = {"dict"}
    taken = {n: empty for n in arguments if n.endswith("_setting")}
    sequences = {"empty list", "tuple", "set", "generator", "memoryview", "empty array"}
    taken |= {"unroll_list": sequences, "dynamic_unaligned_enable": {"True"}}
    assert_takes(MlaTileConfig, arguments, taken)
    assert_takes(tiling.CubeTile.of, {"values": [1] * 6}, {}, blamed="CubeTile")
    rope = {"two_dim": [1, 2], "three_dim": [1, 2, 3], "four_dim": [1, 2, 3, 4]}
    assert_takes(mla.RopeTileShapeConfig, rope, {"two_dim": {"tuple"}, "four_dim": {"memoryview"}})
    options = {f.name: getattr(PassOptions(), f.name) for f in fields(PassOptions)}
    taken = {n: empty if n.endswith("_setting") else {"None", "zero"} for n in options}
    assert_takes(PassOptions, options, taken)
    assert_takes(MlaTileConfig.from_json, {"text": "{}"}, {})
    assert_takes(mla.options_list, {"npuarch": "950"}, {})
    assert_takes(mla.pass_options, {"phase": "decode", "t": 8, "npuarch": "950"}, {"t": {"zero"}})


def test_cube_tile_values_are_named():
    for value in (None, 3, np.array(3), [1, 2], [0] * 6, "text"):
        with pytest.raises((TypeError, ValueError), match=r"^cube_qb_tile(\[0\])?: expected "):
            MlaTileConfig(cube_qb_tile=value)


def test_presets():
    for value in objects().values():
        with pytest.raises((TypeError, ValueError), match=r"^preset: expected "):
            mla.preset(value)
        with pytest.raises((TypeError, ValueError), match=r"^npuarch: expected "):
            mla.preset("default", value)


def test_planning():
    arguments = {
        "dims": DIMS, "t": 4, "config": None, "machine": None, "micro": MICRO_TILES, "phase": "decode", "quant": "b",
        "n_threads": 1, "options": None,
    }  # fmt: skip
    taken = {"t": {"zero"}, "n_threads": {"None"}}
    taken |= dict.fromkeys(("config", "machine", "options"), ONLY_NONE)
    assert_takes(tiling.plan_prolog, arguments, taken)
    weights = make_weights(DIMS, "b")
    assert_takes(MlaProlog(weights).plan, {"t": 3}, {"t": {"zero"}})
    with pytest.raises(ValueError, match=f"^t: expected at most 4194304 tokens a call, got {HUGE}"):
        MlaProlog(weights).plan(HUGE)
    arguments = {
        "weights": weights, "phase": "decode", "tile_config": None, "options": None, "n_threads": 1,
        "check_finite": False,
    }  # fmt: skip
    taken = dict.fromkeys(("tile_config", "options", "n_threads"), ONLY_NONE) | {"check_finite": FLAG}
    assert_takes(MlaProlog, arguments, taken)


@pytest.mark.parametrize("size", [HUGE, 2**31, 2**31 - 1, -HUGE])
def test_huge_settings_change_no_bit(size):
    """Integers beyond what kernels take are refused; the greatest that are not change nothing."""
    weights = make_weights(DIMS, "b")
    inputs = make_inputs(DIMS, T, 6)
    cache = make_cache(DIMS, True, BLOCKS, BLOCK_SIZE)
    want = reference_run(weights, *inputs, cache)
    if not 0 < size < 2**31:
        with pytest.raises(ValueError, match=r"^m_tile: expected "):
            MlaTileConfig(m_tile=size)
        return
    tile, setting = [size] * 6, {-1: size}
    config = MlaTileConfig(
        tile_b=size, tile_s=size, tile_bs=size, m_tile=size, mv_tile=size, pre_quant_cube_tile=tile, cube_qb_tile=tile,
        cube_wuk_tile=tile, unroll_list=[size], q_vec_tile0=size, q_vec_tile1=size, k_vec_tile0=size, k_vec_tile1=size,
        cube_l1_reuse_setting=setting, cube_nbuffer_setting=setting, vec_nbuffer_setting=setting,
    )  # fmt: skip
    out = MlaProlog(weights, tile_config=config)(*inputs, cache)
    assert_none(check_output(out, cache, want))


class TestOperations:
    rng = np.random.default_rng(0)
    f32 = np.ones((3, 8), np.float32)
    bf16 = spread(rng, 3, 8)
    shapes = ANY_STRIDES | OTHER_ROWS | OTHER_COLUMNS | {
        "dtype f4", "dtype f2", "one axis more", "one axis more behind", "0-d", "no columns", "empty array",
    }  # fmt: skip

    def test_elementwise(self):
        values = NUMBERS | {"minus one", "minus two", "huge negative int", "NaN", "inf", "NumPy NaN"}
        arguments = {"tensor": self.f32, "other": 2.0, "is_reserve": False}
        with np.errstate(all="ignore"):
            taken = {"tensor": self.shapes | {"NumPy float"}, "other": values, "is_reserve": FLAG}
            assert_takes(mla.scalar_div, arguments, taken)
        assert_takes(mla.rotate_half, {"input_tensor": self.bf16}, {"input_tensor": self.shapes})

    def test_norm(self):
        arguments = {"input_tensor": self.bf16, "gamma": self.bf16[0].copy(), "epsilon": 1e-5}
        gamma = ANY_STRIDES | {"dtype f4", "dtype f2"}
        taken = {"input_tensor": self.shapes, "gamma": gamma, "epsilon": NUMBERS}
        assert_takes(mla.rms_norm, arguments, taken)

    def test_quantisation(self):
        arguments = {
            "input_tensor": self.bf16, "is_symmetry": True, "has_smooth_factor": True, "smooth_factor": self.f32[:1],
        }  # fmt: skip
        factors = ANY_STRIDES | {"dtype f2"}
        taken = {"input_tensor": self.shapes, "smooth_factor": factors}
        assert_takes(mla.quant, arguments, taken | dict.fromkeys(("is_symmetry", "has_smooth_factor"), FLAG))
        assert_takes(mla.k_nope_quant, {"x": spread(self.rng, 3, 4, 8)}, {"x": self.shapes})

    def test_dequantisation(self):
        row, column = np.ones((1, 8), np.float32), np.ones((3, 1), np.float32)
        arguments = {"dtype": "f4", "input_tensor": np.ones((3, 8), np.int32), "scale": column, "w_scale": row}
        taken = dict.fromkeys(("scale", "w_scale"), ANY_STRIDES) | {"input_tensor": ANY_STRIDES | {"dtype i1"}}
        assert_takes(mla.dequant, arguments, taken | {"dtype": {"NumPy float"}})
        arguments = {"codes": np.ones((3, 8), np.int8), "scale": column, "zero_point": column}
        taken = dict.fromkeys(("scale", "zero_point"), ANY_STRIDES)
        codes = ANY_STRIDES | OTHER_COLUMNS | {"no columns", "not aligned"}
        assert_takes(mla.dequant_asymmetric, arguments, taken | {"codes": codes})

    def test_rope(self):
        tables = dict.fromkeys(("cos", "sin"), self.bf16)
        taken = dict.fromkeys(("x", "cos", "sin"), ANY_STRIDES | {"dtype f4", "dtype f2"})
        with np.errstate(all="ignore"):
            assert_takes(
                mla.rope_v2, {"x": self.bf16, **tables, "tile_config": None}, taken | {"tile_config": {"None"}}
            )
            taken["x"] = taken["x"] | OTHER_COLUMNS | {"no columns", "one axis more"}
            assert_takes(mla.rope_3d_v2, {"x": spread(self.rng, 3, 2, 8), **tables}, taken)
