"""What a call refuses: each argument, each output and each cache by name, and nothing is written then."""

import re

import numpy as np
import pytest
from helpers import (
    BF16,
    THREADS,
    assert_none,
    assert_same_bits,
    make_cache,
    make_inputs,
    make_output,
    make_weights,
    random_bytes,
)

from mla_numba import MlaDims, MlaProlog, MlaTileConfig, PagedCache, PrologOutput
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
T, BLOCKS, BLOCK_SIZE = 7, 3, 16
INPUTS = ("x", "cos", "sin", "cache_index")
CACHES = {"kv_cache": "kv", "kr_cache": "kr", "k_scale_cache": "k_scale"}


class Case:
    """A call that would succeed, and a copy of all it could write."""

    def __init__(self, quant="b", **settings):
        self.prolog = MlaProlog(make_weights(DIMS, quant), **settings)
        quantized = self.prolog.quantized
        self.arguments = make_inputs(DIMS, T, BLOCKS * BLOCK_SIZE)._asdict()
        self.arguments["cache"] = make_cache(DIMS, quantized, BLOCKS, BLOCK_SIZE)
        self.arguments["out"] = make_output(DIMS, quantized, T)
        for array in self.arguments["out"]:
            if array is not None:
                random_bytes(np.random.default_rng(2), array)
        self.written = list(self.arguments["cache"].arrays().items()) + [
            (name, a) for name, a in self.arguments["out"]._asdict().items() if a is not None
        ]
        self.before = [array.copy() for _, array in self.written]

    def refuses(self, error, match, **changes):
        with pytest.raises(error) as caught:
            self.prolog(**(self.arguments | changes))
        text = str(caught.value)
        assert re.search(match, text), text
        assert type(caught.value) is error, caught.value
        self.assert_untouched()
        return text

    def refuses_out(self, error, match, name, array):
        return self.refuses(error, match, out=self.arguments["out"]._replace(**{name: array}))

    def assert_untouched(self):
        for (name, array), old in zip(self.written, self.before, strict=True):
            assert_same_bits(name, array, old)

    def array(self, name):
        if name in INPUTS:
            return self.arguments[name]
        return getattr(self.arguments["out"], name)


@pytest.fixture(scope="module", params=["b", "none"])
def case(request):
    return Case(request.param)


def wrong_shapes(array):
    yield array[:-1]
    yield array[None]
    yield array.reshape(-1)[:0]
    if array.ndim > 1:
        yield array.reshape(-1)
        yield np.concatenate([array, array], axis=-1)
        yield array[..., :-1].copy()
        yield array[..., 0].copy()
        yield array.swapaxes(0, 1).copy() if array.shape[0] != array.shape[1] else array[:-1]


def strided(array):
    """The same values in other layouts."""
    wide = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    yield wide[..., ::2]
    yield np.asfortranarray(array)
    yield array[::-1]
    tall = np.empty((2 * array.shape[0], *array.shape[1:]), array.dtype)
    yield tall[::2]


@pytest.mark.parametrize("name", ["x", "cos", "sin"])
class TestInputs:
    def test_type(self, case, name):
        for wrong in (None, case.array(name).tolist(), 3.0, memoryview(case.array(name).view(np.uint16))):
            text = case.refuses(TypeError, rf"^{name}: expected .*array", **{name: wrong})
            assert f"got {type(wrong).__name__}" in text

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.uint16, np.int8])
    def test_dtype(self, case, name, dtype):
        wrong = np.zeros(case.array(name).shape, dtype)
        text = case.refuses(TypeError, rf"^{name}: expected .*bfloat16", **{name: wrong})
        assert f"got {wrong.dtype}" in text

    def test_shape(self, case, name):
        for wrong in wrong_shapes(case.array(name)):
            if name == "x" and wrong.ndim == 2 and wrong.shape[1] == DIMS.hidden_size:
                continue  # another number of tokens is the fault of those that follow
            text = case.refuses(ValueError, rf"^{name}: expected shape", **{name: wrong})
            assert f"got {wrong.shape}" in text

    def test_layout(self, case, name):
        for wrong in strided(case.array(name)):
            text = case.refuses(ValueError, rf"^{name}: expected .*contiguous", **{name: wrong})
            assert str(wrong.strides) in text


def test_another_number_of_tokens(case):
    case.refuses(ValueError, r"^cos: expected shape \(6, 34\), got \(7, 34\)", x=case.array("x")[:-1])
    text = case.refuses(ValueError, "^cache_index: expected shape", cache_index=np.arange(T + 1))
    assert "(7,)" in text
    assert "(8,)" in text


class TestCacheIndex:
    def test_type(self, case):
        for wrong in (None, list(range(T)), 3, range(T)):
            text = case.refuses(TypeError, "^cache_index: expected .*array", cache_index=wrong)
            assert f"got {type(wrong).__name__}" in text

    @pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "i1", "u4", "u8", "?", ">i8", ">i4", "O", "m8[s]"])
    def test_dtype(self, case, dtype):
        wrong = np.arange(T).astype(dtype)
        text = case.refuses(TypeError, "^cache_index: expected .*int64 or int32", cache_index=wrong)
        assert ("byte order" in text) == dtype.startswith(">")

    def test_shape(self, case):
        for wrong in (np.arange(T - 1), np.arange(T)[None], np.arange(T)[:, None], np.array(3), np.arange(0)):
            text = case.refuses(ValueError, "^cache_index: expected shape", cache_index=wrong)
            assert f"got {wrong.shape}" in text

    @pytest.mark.parametrize("slot", [-2, -(2**62), BLOCKS * BLOCK_SIZE, 2**40, np.iinfo(np.int64).min])
    @pytest.mark.parametrize("token", [0, 3, T - 1])
    def test_range(self, case, token, slot):
        wrong = np.arange(T)
        wrong[token:] = slot
        text = case.refuses(ValueError, "^cache_index", cache_index=wrong)
        assert re.search(rf"\b{token}\b", text), text
        assert str(slot) in text
        assert re.search(rf"\b{BLOCKS * BLOCK_SIZE}\b", text), text

    def test_range_of_int32(self, case):
        wrong = np.array([0, 1, 2, -7, 4, 99, 6], np.int32)
        assert "-7" in case.refuses(ValueError, r"^cache_index\b.*\b3\b", cache_index=wrong)


class TestOut:
    def test_type(self, case):
        for wrong in (tuple(case.arguments["out"]), list(case.arguments["out"]), {}, case.array("query_nope")):
            text = case.refuses(TypeError, "^out: expected PrologOutput", out=wrong)
            assert f"got {type(wrong).__name__}" in text

    @pytest.mark.parametrize("name", PrologOutput._fields)
    def test_fields(self, case, name):
        array = case.array(name)
        if array is None:
            text = case.refuses_out(ValueError, "^out.q_norm_scale: expected None", name, np.zeros((T, 1), np.float32))
            assert "got" in text
            return
        at = rf"^out\.{name}: expected "
        for wrong in (None, array.tolist()):
            assert f"got {type(wrong).__name__}" in case.refuses_out(TypeError, at + ".*array", name, wrong)
        others = {np.float64, np.float16, np.uint16, np.int32, np.uint8} | (
            {np.float32} if array.dtype != np.float32 else set()
        )
        for dtype in others:
            wrong = np.zeros(array.shape, dtype)
            text = case.refuses_out(TypeError, at + f".*{array.dtype}", name, wrong)
            assert f"got {wrong.dtype}" in text
        for wrong in wrong_shapes(array):
            text = case.refuses_out(ValueError, at + "shape", name, wrong)
            assert f"got {wrong.shape}" in text
        for wrong in strided(array):
            if not wrong.flags.c_contiguous:
                case.refuses_out(ValueError, at + ".*contiguous", name, wrong)
        wrong = array.copy()
        wrong.setflags(write=False)
        case.refuses_out(ValueError, at + ".*writable.*read-only", name, wrong)

    def test_byte_order(self, case):
        if not case.prolog.quantized:
            pytest.skip("an unquantised call has no float32 output")
        wrong = np.zeros((T, 1), ">f4")
        assert "byte order" in case.refuses_out(
            TypeError, r"^out\.q_norm_scale: expected .*float32", "q_norm_scale", wrong
        )

    def test_of_another_mode(self):
        b, none = Case("b"), Case("none")
        b.refuses(TypeError, r"^out\.q_norm: .*int8.*bfloat16", out=none.arguments["out"])
        none.refuses((TypeError), r"^out\.q_norm: .*bfloat16.*int8", out=b.arguments["out"]._replace(q_norm_scale=None))
        none.refuses(ValueError, r"^out\.q_norm_scale: ", out=b.arguments["out"])


class TestOverlap:
    @pytest.mark.parametrize("name", ["query_nope", "query_rope", "q_norm"])
    @pytest.mark.parametrize("source", ["x", "cos", "sin", "cache_index"])
    def test_an_output_with_an_input(self, case, name, source):
        out = case.array(name)
        size = max(out.nbytes, case.array(source).nbytes)
        memory = np.zeros(size + 64, np.uint8)
        array = case.array(source)
        shared = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
        shared[...] = array
        for at in (0, 2 * ((array.nbytes - 1) // 2)):  # all of it, and its last element alone
            memory = np.concatenate([memory, np.zeros(out.nbytes, np.uint8)])
            shared = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
            wrong = memory[at : at + out.nbytes].view(out.dtype).reshape(out.shape)
            wrong_out = case.arguments["out"]._replace(**{name: wrong})
            text = case.refuses(ValueError, "overlap", out=wrong_out, **{source: shared})
            assert name in text
            assert source in text

    def test_an_output_with_an_output(self, case):
        memory = np.zeros(T * 3 * (68 + 34), BF16)
        nope = memory[: T * 3 * 68].reshape(T, 3, 68)
        rope = memory[T * 3 * 68 - 1 :][: T * 3 * 34].reshape(T, 3, 34)
        out = case.arguments["out"]._replace(query_nope=nope, query_rope=rope)
        text = case.refuses(ValueError, "overlap", out=out)
        assert "query_nope" in text
        assert "query_rope" in text
        rope = memory[T * 3 * 68 :].reshape(T, 3, 34)
        wanted = case.prolog(**(case.arguments | {"cache": case.arguments["cache"].copy(), "out": None}))
        out = case.arguments["out"]._replace(query_nope=nope, query_rope=rope)
        mine = out._replace(q_norm=out.q_norm.copy(), q_norm_scale=None if out[3] is None else out[3].copy())
        got = case.prolog(**(case.arguments | {"cache": case.arguments["cache"].copy(), "out": mine}))
        assert_same_bits("query_nope", got.query_nope, wanted.query_nope)
        assert_same_bits("query_rope", got.query_rope, wanted.query_rope)

    @pytest.mark.parametrize("name", ["query_nope", "query_rope"])
    @pytest.mark.parametrize("cached", ["kv_cache", "kr_cache"])
    def test_an_output_with_a_cache(self, case, name, cached):
        out = case.array(name)
        array = case.arguments["cache"].arrays()[cached]
        memory = np.zeros(2 * array.nbytes + out.nbytes, np.uint8)
        shared = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
        wrong = memory[array.nbytes - 2 :][: out.nbytes].view(out.dtype).reshape(out.shape)
        arrays = {CACHES[n]: a for n, a in case.arguments["cache"].arrays().items()} | {CACHES[cached]: shared}
        text = case.refuses(
            ValueError, "overlap", cache=PagedCache(**arrays), out=case.arguments["out"]._replace(**{name: wrong})
        )
        assert name in text
        assert cached in text
        assert not memory.any()

    @pytest.mark.parametrize("cached", ["kv_cache", "kr_cache"])
    @pytest.mark.parametrize("source", ["x", "cos", "sin", "cache_index"])
    def test_a_cache_with_an_input(self, case, cached, source):
        array = case.arguments["cache"].arrays()[cached]
        given = case.array(source)
        memory = np.zeros(array.nbytes + given.nbytes, np.uint8)
        at = (array.nbytes - 1) // 8 * 8
        shared = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
        wrong = memory[at : at + given.nbytes].view(given.dtype).reshape(given.shape)
        arrays = {CACHES[n]: a for n, a in case.arguments["cache"].arrays().items()} | {CACHES[cached]: shared}
        text = case.refuses(ValueError, "overlap", cache=PagedCache(**arrays), **{source: wrong})
        assert cached in text
        assert source in text
        assert not memory.any()

    def test_a_cache_with_a_cache(self):
        case = Case("b")
        kv = case.arguments["cache"].kv
        scale_memory = np.zeros(BLOCKS * BLOCK_SIZE * 4 + kv.size // 4, np.float32)
        k_scale = scale_memory[: BLOCKS * BLOCK_SIZE * 4].reshape(BLOCKS, BLOCK_SIZE, 1, 4)
        shared = scale_memory.view(np.int8)[k_scale.nbytes - 1 :][: kv.size].reshape(kv.shape)
        text = case.refuses(ValueError, "overlap", cache=PagedCache(shared, case.arguments["cache"].kr, k_scale))
        assert "kv_cache" in text
        assert "k_scale_cache" in text

    def test_blocks_that_interleave_and_overlap(self):
        """Blocks of one array reach into the gaps of the other, and one byte too far."""
        case = Case("b")
        kv_bytes, kr_bytes = BLOCK_SIZE * 68, BLOCK_SIZE * 34 * 2
        buffer = np.zeros((BLOCKS, kv_bytes + kr_bytes), np.uint8)
        kv = buffer[:, :kv_bytes].view(np.int8).reshape(BLOCKS, BLOCK_SIZE, 1, 68)
        kr = buffer[:, kv_bytes:].view(BF16).reshape(BLOCKS, BLOCK_SIZE, 1, 34)
        k_scale = np.zeros((BLOCKS, BLOCK_SIZE, 1, 4), np.float32)
        case.prolog(**(case.arguments | {"cache": PagedCache(kv, kr, k_scale), "out": None}))
        early = buffer[:, kv_bytes - 2 : -2].view(BF16).reshape(BLOCKS, BLOCK_SIZE, 1, 34)
        buffer[...] = 0
        text = case.refuses(ValueError, "overlap", cache=PagedCache(kv, early, k_scale))
        assert "kv_cache" in text
        assert "kr_cache" in text
        assert not buffer.any()


class TestCache:
    def test_type(self, case):
        cache = case.arguments["cache"]
        for wrong in (None, cache.kv, (cache.kv, cache.kr), cache.arrays()):
            text = case.refuses(TypeError, "^cache: expected PagedCache", cache=wrong)
            assert f"got {type(wrong).__name__}" in text

    @pytest.mark.parametrize("name", CACHES)
    def test_read_only(self, case, name):
        cache = case.arguments["cache"].copy()
        if name not in cache.arrays():
            return
        cache.arrays()[name].setflags(write=False)
        before = cache.copy()
        case.refuses(ValueError, f"^{name}: expected .*writable.*read-only", cache=cache)
        for other, array in before.arrays().items():
            assert_same_bits(other, cache.arrays()[other], array)

    def test_of_another_mode(self):
        b, none = Case("b"), Case("none")
        b.refuses(TypeError, "^kv_cache: expected .*int8.*got bfloat16", cache=none.arguments["cache"])
        none.refuses(TypeError, "^kv_cache: expected .*bfloat16.*got int8", cache=b.arguments["cache"])

    def test_of_other_dims(self, case):
        quantized = case.prolog.quantized
        wide = make_cache(MlaDims(130, 3, 50, 72, 33, 34), quantized, BLOCKS, BLOCK_SIZE)
        case.refuses(ValueError, r"^kv_cache: expected .*\b68\b.*got.*\b72\b", cache=wide)
        wide = make_cache(MlaDims(130, 3, 50, 68, 33, 36), quantized, BLOCKS, BLOCK_SIZE)
        case.refuses(ValueError, r"^kr_cache: expected .*\b34\b.*got.*\b36\b", cache=wide)


class TestFinite:
    @pytest.mark.parametrize("quant", ["none", "a", "b", "ab"])
    @pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80, 0xFFFF, 0x7F81])
    def test_names_the_first_token(self, quant, bits):
        case = Case(quant, check_finite=True)
        x = case.arguments["x"].copy()
        x.view(np.uint16)[5, 0] = bits
        x.view(np.uint16)[3, -1] = bits
        assert re.search(r"\b3\b", case.refuses(ValueError, "^x: expected finite.*NaN or Inf", x=x))

    def test_the_largest_finite_values_pass(self):
        case = Case("b", check_finite=True)
        x = case.arguments["x"].copy()
        x.view(np.uint16)[2, :2] = 0x7F7F, 0xFF7F
        given = case.arguments | {"x": x}
        want = reference_run(make_weights(DIMS, "b"), *(given[name] for name in INPUTS), given["cache"])
        case.prolog(**given)
        assert_none(check_output(given["out"], given["cache"], want))


class TestConstructor:
    weights = make_weights(DIMS, "b")

    def test_weights(self):
        for wrong in (None, {}, self.weights.w_dq):
            with pytest.raises(
                TypeError, match=f"^weights: expected MlaWeights or PackedWeights, got {type(wrong).__name__}"
            ):
                MlaProlog(wrong)

    def test_phase(self):
        with pytest.raises(ValueError, match=r"^phase: expected one of decode, prefill, got 'both'"):
            MlaProlog(self.weights, "both")
        with pytest.raises(TypeError, match=r"^phase: expected str, got int"):
            MlaProlog(self.weights, 3)

    def test_tile_config(self):
        for wrong in ({}, 8, MlaTileConfig):
            with pytest.raises(
                TypeError, match=r"^tile_config: expected MlaTileConfig, CpuTiling, 'auto' or None, got "
            ):
                MlaProlog(self.weights, tile_config=wrong)
        with pytest.raises(ValueError, match=r"^tile_config: expected .*auto"):
            MlaProlog(self.weights, tile_config="default")

    def test_options(self):
        for wrong in ({}, "decode", 3):
            with pytest.raises(TypeError, match=r"^options: expected PassOptions or None, got "):
                MlaProlog(self.weights, options=wrong).plan(8)

    def test_n_threads(self):
        with pytest.raises(ValueError, match=f"^n_threads: expected .*{THREADS[-1]}.*got {THREADS[-1] + 1}"):
            MlaProlog(self.weights, n_threads=THREADS[-1] + 1)
        for wrong in (0, -1):
            with pytest.raises(ValueError, match=f"^n_threads: expected at least 1, got {wrong}"):
                MlaProlog(self.weights, n_threads=wrong)
        for wrong in (True, 1.0, "1"):
            with pytest.raises(TypeError, match=f"^n_threads: expected int, got {type(wrong).__name__}"):
                MlaProlog(self.weights, n_threads=wrong)

    def test_plan(self):
        prolog = MlaProlog(self.weights)
        with pytest.raises(ValueError, match=r"^t: expected at least 0, got -1"):
            prolog.plan(-1)
        with pytest.raises(TypeError, match=r"^t: expected int, got float"):
            prolog.plan(8.0)


def test_an_error_leaves_the_next_call_right():
    case = Case("b")
    case.refuses(ValueError, "^cache_index", cache_index=np.full(T, 99))
    wanted = case.prolog(**(case.arguments | {"cache": case.arguments["cache"].copy(), "out": None}))
    case.refuses(ValueError, "^cache_index", cache_index=np.full(T, -2))
    got = case.prolog(**case.arguments)
    for name, array in wanted._asdict().items():
        assert_same_bits(name, getattr(got, name), array)


@pytest.mark.parametrize("slot", [-2, BLOCKS * BLOCK_SIZE, 2**62])
def test_a_bound_call_refuses_slots_that_changed(slot):
    case = Case()
    call = case.prolog.bind(**case.arguments)
    case.arguments["cache_index"][3] = slot
    before = [(array, array.copy()) for _, array in case.written]
    with pytest.raises(ValueError, match=rf"cache_index\[3\]: expected .* below the capacity 48, got {slot}"):
        case.prolog.run(call)
    for array, copy in before:
        assert_same_bits("written", array, copy)
