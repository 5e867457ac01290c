"""The edges of the contract at the reference operator's entry points; test_prolog_edges.py has those of `MlaProlog`."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import BF16, MODES, assert_none, assert_same_bits, make_inputs, make_weights, spread
from helpers.edge_calls import NOT_FINITE, other_tokens, tiny
from helpers.entry_points import BLOCK_SIZE, BLOCKS, DIMS, ENTRIES, Case

import mla_numba as mla
from mla_numba import MlaDims, MlaQuantInputs, reference
from mla_numba.oracle.bits import check_output, reference_run

INPUTS = ("token_x", "cos", "sin", "cache_index")
OUTPUTS = ("q_norm_out", "q_norm_scale_out", "query_nope_out", "query_rope_out")
CACHES = ("kv_cache_out", "kr_cache_out", "k_scale_cache_out")
CAPACITY = BLOCKS * BLOCK_SIZE


def changed(case, *, weights=None, **inputs):
    """The case with other inputs or weights, and what the reference makes of it now."""
    case.weights = weights or case.weights
    case.arguments |= inputs
    if weights is not None:
        names = ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv")
        case.arguments |= {name: getattr(weights, name) for name in names}
    case.want = reference_run(case.weights, *(case.arguments[n] for n in INPUTS), case.source)
    return case


@pytest.fixture(params=[True, False], ids=["in place", "into another cache"])
def in_place(request):
    return request.param


@pytest.mark.parametrize("quant", ["b", "none"])
@pytest.mark.parametrize("name", ENTRIES)
class TestValues:
    def test_zero_rows(self, name, quant, in_place):
        case = Case(quant, in_place=in_place)
        case.arguments["token_x"][[0, 7, 18]] = 0
        changed(case, cache_index=np.arange(19)).assert_computes(ENTRIES[name])
        assert not case.out.query_nope[[0, 7, 18]].astype(np.float32).any()
        for array in case.target.arrays().values():
            assert not array.reshape(CAPACITY, -1)[[0, 7, 18]].astype(np.float32).any()

    @pytest.mark.parametrize("exponent", [-133, -126, -122, -121, -110])
    def test_scales_that_overflow(self, name, quant, in_place, exponent):
        case = Case(quant, in_place=in_place)
        gammas = {"gamma_cq": tiny(exponent, 50), "gamma_ckv": tiny(exponent, 68)}
        changed(case, weights=replace(case.weights, **gammas)).assert_computes(ENTRIES[name])
        if quant == "b":
            assert np.isfinite(case.out.q_norm_scale).all()

    @pytest.mark.parametrize("where", ["token_x", "cos", "sin"])
    @pytest.mark.parametrize("bits", NOT_FINITE.values(), ids=NOT_FINITE)
    def test_nan_and_inf_stay_in_their_token(self, name, quant, in_place, bits, where):
        case = changed(Case(quant, in_place=in_place), cache_index=np.random.default_rng(0).permutation(CAPACITY)[:19])
        bad = [1, 5, 18]
        case.arguments[where].view(np.uint16)[bad, 3] = bits
        ENTRIES[name](**case.arguments)
        case.cache = case.target
        assert_none(other_tokens(case, case.want, bad, case.arguments["cache_index"]))
        if not in_place:
            case.assert_source_untouched()

    def test_paddings_write_no_row(self, name, quant, in_place):
        case = changed(Case(quant, in_place=in_place), cache_index=np.full(19, -1))
        case.assert_computes(ENTRIES[name])
        for cache, array in case.before.arrays().items():
            assert_same_bits(cache, case.target.arrays()[cache], array)

    @pytest.mark.parametrize("slots", [[0], [5, 6], [CAPACITY - 1, -1, 3]])
    def test_of_tokens_with_one_slot_the_last_wins(self, name, quant, in_place, slots):
        changed(Case(quant, in_place=in_place), cache_index=np.resize(slots, 19)).assert_computes(ENTRIES[name])

    def test_int32_slots(self, name, quant, in_place):
        case = Case(quant, in_place=in_place)
        case.assert_computes(ENTRIES[name], cache_index=case.arguments["cache_index"].astype(np.int32))


@pytest.mark.parametrize("t", [19, 203])
@pytest.mark.parametrize("quant", ["b", "none"])
def test_duplicates_among_threads(quant, t):
    """Work enough to be shared; every slot is named many times."""
    dims = MlaDims(514, 5, 101, 132, 33, 34)
    case = Case(quant, dims)
    inputs = make_inputs(dims, t, CAPACITY)
    slots = np.random.default_rng(t).choice([-1, 0, 1, CAPACITY - 1], t)
    outputs = {n: np.empty((t, *case.arguments[n].shape[1:]), case.arguments[n].dtype) for n in OUTPUTS[2:]}
    outputs["q_norm_out"] = np.empty((t, 101), case.out.q_norm.dtype)
    if quant == "b":
        outputs["q_norm_scale_out"] = np.empty((t, 1), np.float32)
    case.arguments |= outputs
    case.out = mla.PrologOutput(**{n: case.arguments[f"{n}_out"] for n in mla.PrologOutput._fields})
    given = dict(zip(INPUTS, inputs, strict=True)) | {"cache_index": slots}
    changed(case, **given).assert_computes(mla.mla_prolog_quant_compute, tile_config=None)


@pytest.mark.parametrize("name", ENTRIES)
class TestErrors:
    @pytest.mark.parametrize("slot", [-2, CAPACITY, 2**40, np.iinfo(np.int64).min])
    @pytest.mark.parametrize("token", [0, 18])
    def test_bad_slots(self, name, in_place, token, slot):
        case = Case("b", in_place=in_place)
        wrong = np.arange(19)
        wrong[token] = slot
        match = rf"^cache_index\[{token}\]: expected .* {CAPACITY}, got {slot}$"
        case.refuses(ENTRIES[name], ValueError, match, cache_index=wrong)

    @pytest.mark.parametrize("out", OUTPUTS + CACHES)
    def test_outputs_that_overlap_an_input(self, name, in_place, out):
        case = Case("b", in_place=in_place)
        array, read = case.arguments[out], ("token_x", "cos", "sin", "cache_index")
        for given in (case.arguments[n] for n in read):
            memory = np.zeros(array.nbytes + given.nbytes + 16, np.uint8)
            at = (given.nbytes - 1) // 8 * 8
            shared = memory[: given.nbytes].view(given.dtype).reshape(given.shape)
            shared[...] = given
            wrong = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            argument = next(n for n in read if case.arguments[n] is given)
            match = f"^{out}: expected memory of its own, got an overlap with {argument}$"
            before = memory.copy()
            case.refuses(ENTRIES[name], ValueError, match, **{out: wrong, argument: shared})
            assert_same_bits("memory", memory, before)

    @pytest.mark.parametrize("out", OUTPUTS + CACHES)
    def test_read_only_outputs(self, name, in_place, out):
        case = Case("b", in_place=in_place)
        wrong = case.arguments[out].copy()
        wrong.setflags(write=False)
        case.refuses(ENTRIES[name], ValueError, f"^{out}: expected a writable array", **{out: wrong})

    @pytest.mark.parametrize("out", OUTPUTS)
    def test_outputs_that_are_not_contiguous(self, name, in_place, out):
        case = Case("b", in_place=in_place)
        wide = np.repeat(case.arguments[out], 2, axis=0)[::2]
        case.refuses(ENTRIES[name], ValueError, f"^{out}: expected a C-contiguous array", **{out: wide})

    def test_an_odd_hidden_size(self, name, in_place):
        case = Case("b", in_place=in_place)
        odd = {"token_x": (19, 131), "w_dq": (131, 50), "w_dkv_kr": (131, 102)}
        wrong = {n: np.zeros(shape, BF16) for n, shape in odd.items()}
        case.refuses(ENTRIES[name], ValueError, r"^w_dq: expected an even hidden_size .*, got 131$", **wrong)

    def test_a_k_too_long_for_int32(self, name, in_place):
        case = Case("b", in_place=in_place)
        k = 132105
        wrong = {
            "w_dq": np.zeros((DIMS.hidden_size, k), BF16),
            "w_uq_qr": np.zeros((k, 201), np.int8),
            "gamma_cq": np.zeros(k, BF16),
        }
        case.refuses(ENTRIES[name], ValueError, r"^w_uq_qr: expected at most 132104 rows", **wrong)

    @pytest.mark.parametrize("cache", CACHES)
    def test_caches_whose_blocks_are_strided(self, name, cache):
        """Along axis 0 that is fine, as source and as target; within a block it is an error."""
        case = Case("b")
        array = case.arguments[cache]
        strided = np.repeat(array, 2, axis=0)[::2]
        source = cache.removesuffix("_out")
        ENTRIES[name](**(case.arguments | {source: strided, cache: strided}))
        assert_same_bits(cache, np.ascontiguousarray(strided), getattr(case.want, source))
        case = Case("b")
        gaps = np.repeat(array, 2, axis=1)[:, ::2]
        match = f"^{cache}: expected blocks that are contiguous within"
        case.refuses(ENTRIES[name], ValueError, match, **{source: gaps, cache: gaps})

    def test_a_strided_source(self, name):
        case = Case("b", in_place=False)
        wide = {n: np.repeat(a, 2, axis=1)[:, ::2] for n, a in case.source.arrays().items()}
        case.assert_computes(ENTRIES[name], **wide)


class TestPreCompute2d:
    names = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")

    def run(self, weights, x):
        scales = {name: getattr(weights, name) for name in self.names}
        arguments = (x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, 1e-3)
        got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales))
        return got, reference.pre_compute_2d(*arguments, **scales)

    @pytest.mark.parametrize("mode", MODES)
    def test_zero_rows_and_overflowing_scales(self, mode):
        for exponent in (0, -133, -126, -122, -110):
            gamma = tiny(exponent, 50) if exponent else spread(np.random.default_rng(0), 50)
            weights = make_weights(DIMS, mode, gamma_cq=gamma)
            x = spread(np.random.default_rng(1), 19, 130)
            x[[0, 4, 18]] = 0
            x[5] = tiny(exponent or -130, 130)
            for i, (g, w) in enumerate(zip(*self.run(weights, x), strict=False)):
                assert_same_bits(f"result {i}", g, w)

    @pytest.mark.parametrize("bits", NOT_FINITE.values(), ids=NOT_FINITE)
    @pytest.mark.parametrize("mode", MODES)
    def test_nan_and_inf_stay_in_their_token(self, mode, bits):
        weights = make_weights(DIMS, mode)
        x = spread(np.random.default_rng(1), 19, 130)
        _, want = self.run(weights, x)
        bad = [1, 5, 18]
        x.view(np.uint16)[bad, 7] = bits
        got, _ = self.run(weights, x)
        keep = np.setdiff1d(np.arange(19), bad)
        for i, (g, w) in enumerate(zip(got, want, strict=False)):
            assert_same_bits(f"result {i}", g[keep], w[keep])

    def test_inputs_are_not_written(self):
        weights = make_weights(DIMS, "ab smooth")
        x = spread(np.random.default_rng(1), 19, 130)
        before = x.copy(), weights.w_dq.copy(), weights.w_uq_qr.copy(), weights.w_dkv_kr.copy()
        self.run(weights, x)
        for i, (a, b) in enumerate(zip((x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr), before, strict=True)):
            assert_same_bits(f"input {i}", a, b)


class TestOperations:
    """The single operations where their arguments are zero, tiny, not finite or empty."""

    def test_no_rows(self):
        empty, tables = np.zeros((0, 8), BF16), np.zeros((0, 8), BF16)
        assert mla.rms_norm(empty, np.ones(8, BF16), 1e-5).shape == (0, 8)
        assert [a.shape for a in mla.quant(empty)] == [(0, 8), (0, 1)]
        assert [a.shape for a in mla.quant(empty, False)] == [(0, 8), (0, 1), (0, 1)]
        assert [a.shape for a in mla.k_nope_quant(np.zeros((0, 4, 2), BF16))] == [(0, 4, 2), (0, 4, 1)]
        assert mla.rope_v2(empty, tables, tables).shape == (0, 8)
        assert mla.rope_3d_v2(np.zeros((0, 3, 8), BF16), tables, tables).shape == (0, 3, 8)

    @pytest.mark.parametrize("value", [0, 2.0**-126, 2.0**-149])
    def test_scales_that_overflow_are_zero(self, value):
        codes, scale = mla.quant(np.full((2, 8), value, np.float32))
        assert not codes.any()
        assert scale.tolist() == [[0.0], [0.0]]

    def test_rows_that_are_not_finite_leave_the_others(self):
        rows = spread(np.random.default_rng(0), 4, 16)
        clean = mla.quant(rows), mla.rms_norm(rows, np.ones(16, BF16), 1e-5)
        rows[2, 3], rows[2, 5] = np.nan, np.inf
        keep = [0, 1, 3]
        for got, want in zip(mla.quant(rows), clean[0], strict=True):
            assert_same_bits("quant", got[keep], want[keep])
        assert_same_bits("norm", mla.rms_norm(rows, np.ones(16, BF16), 1e-5)[keep], clean[1][keep])


def test_an_error_leaves_the_next_call_right():
    case = Case("b", in_place=False)
    case.refuses(mla.mla_prolog_quant_p, ValueError, "^cache_index", cache_index=np.full(19, CAPACITY))
    case.assert_computes(mla.mla_prolog_quant_p)
    assert_none(check_output(case.out, case.target, case.want))
