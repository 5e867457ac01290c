"""BSND and TND caches: token t writes row t, no index is taken, and no call makes one."""

import tracemalloc

import numpy as np
import pytest
from helpers import (
    BF16,
    THREADS,
    Fenced,
    assert_none,
    assert_same_bits,
    make_inputs,
    make_output,
    make_weights,
    random_bytes,
)

import mla_numba as mla
from mla_numba import MlaDims, MlaProlog, PagedCache
from mla_numba.kernels import ISA
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
LEADS = {"BSND": (3, 16, 1), "TND": (48, 1)}
NAMES = ("kv", "kr", "k_scale")


@pytest.fixture(params=LEADS)
def cache_mode(request):
    return request.param


def make_rows(dims, quantized, cache_mode, lead=None, fenced=None, scales=np.float32):
    """A cache of random bytes between fences."""
    lead = lead or LEADS[cache_mode]
    kinds = [(dims.kv_lora_rank, np.int8 if quantized else BF16), (dims.qk_rope_head_dim, BF16), (4, scales)]
    made = [Fenced(name, (*lead, d), np.dtype(kind)) for name, (d, kind) in zip(NAMES, kinds, strict=True)]
    made = made if quantized else made[:2]
    if fenced is not None:
        fenced += made
    rng = np.random.default_rng(3)
    arrays = {f.name: random_bytes(rng, f.array) for f in made}
    return PagedCache(**arrays, cache_mode=cache_mode)


def inputs_without_index(dims, t):
    return make_inputs(dims, t, max(t, 1))._replace(cache_index=None)


class TestCalls:
    @pytest.mark.parametrize("mode", ["none", "a", "b", "ab smooth"])
    @pytest.mark.parametrize("t", [1, ISA.mr + 3, 16, 17, 47, 48])
    def test_equals_the_reference(self, cache_mode, t, mode):
        weights = make_weights(DIMS, mode)
        quantized = "b" in weights.quant
        fenced = []
        cache = make_rows(DIMS, quantized, cache_mode, fenced=fenced)
        inputs, out = inputs_without_index(DIMS, t), make_output(DIMS, quantized, t, fenced)
        want = reference_run(weights, *inputs, cache)
        assert MlaProlog(weights)(*inputs, cache, out) is out
        assert_none(check_output(out, cache, want))
        for f in fenced:
            f.assert_intact()

    @pytest.mark.parametrize("threads", THREADS)
    def test_work_that_is_shared_among_threads(self, cache_mode, threads):
        t = 203
        weights = make_weights(SHARED, "b")
        cache = make_rows(SHARED, True, cache_mode, {"BSND": (2, 120, 1), "TND": (240, 1)}[cache_mode])
        inputs = inputs_without_index(SHARED, t)
        want = reference_run(weights, *inputs, cache)
        assert_none(check_output(MlaProlog(weights, n_threads=threads)(*inputs, cache), cache, want))

    @pytest.mark.parametrize("mode", ["none", "b"])
    def test_rows_are_those_of_a_paged_cache_in_order(self, cache_mode, mode):
        weights = make_weights(DIMS, mode)
        quantized, t = "b" in mode, 37
        cache = make_rows(DIMS, quantized, cache_mode)
        paged = PagedCache(
            *(None if a is None else a.copy().reshape(3, 16, 1, -1) for a in (cache.kv, cache.kr, cache.k_scale))
        )
        prolog, inputs = MlaProlog(weights), inputs_without_index(DIMS, t)
        prolog(*inputs, cache)
        prolog(*inputs._replace(cache_index=np.arange(t)), paged)
        for name, array in paged.arrays().items():
            assert_same_bits(name, cache.arrays()[name].reshape(array.shape), array)

    def test_strided_batches(self):
        """S of more places a sequence than are used: tokens go on in the next sequence, the rest stays."""
        weights = make_weights(DIMS, "b")
        whole = make_rows(DIMS, True, "BSND", (6, 19, 1))
        part = np.s_[::2, 2:18]
        cache = PagedCache(whole.kv[part], whole.kr[part], whole.k_scale[part], "BSND")
        inputs = inputs_without_index(DIMS, 37)
        want = reference_run(weights, *inputs, cache)
        expected = {name: array.copy() for name, array in whole.arrays().items()}
        for name, array in expected.items():
            array[part] = getattr(want, name)
        MlaProlog(weights)(*inputs, cache)
        for name, array in whole.arrays().items():
            assert_same_bits(name, array, expected[name])

    def test_fp16_scales(self, cache_mode):
        weights = make_weights(DIMS, "b")
        cache = make_rows(DIMS, True, cache_mode, scales=np.float16)
        inputs = inputs_without_index(DIMS, 19)
        want = reference_run(weights, *inputs, cache)
        assert want.k_scale_cache.dtype == np.float16
        assert_none(check_output(MlaProlog(weights)(*inputs, cache), cache, want))

    @pytest.mark.parametrize("mode", ["none", "b"])
    def test_no_tokens(self, cache_mode, mode):
        prolog, quantized = MlaProlog(make_weights(DIMS, mode)), "b" in mode
        empty = {"BSND": ((0, 16, 1), (3, 0, 1)), "TND": ((0, 1),)}[cache_mode]
        for lead in (LEADS[cache_mode], *empty):
            cache = make_rows(DIMS, quantized, cache_mode, lead)
            before = cache.copy()
            assert prolog(*inputs_without_index(DIMS, 0), cache).query_nope.shape == (0, 3, 68)
            for name, array in before.arrays().items():
                assert_same_bits(name, cache.arrays()[name], array)
        with pytest.raises(ValueError, match=r"^x: expected at most 0 tokens"):
            prolog(*inputs_without_index(DIMS, 1), cache)


class TestWhatIsRefused:
    @pytest.fixture
    def call(self, cache_mode):
        """Raises as it should, and has written nothing."""
        prolog = MlaProlog(make_weights(DIMS, "b"))

        def refuses(error, match, t, cache_index):
            cache, out = make_rows(DIMS, True, cache_mode), make_output(DIMS, True, t)
            written = [*cache.arrays().values(), *out]
            before = [array.copy() for array in written]
            with pytest.raises(error, match=match):
                prolog(*inputs_without_index(DIMS, t)._replace(cache_index=cache_index), cache, out)
            for array, old in zip(written, before, strict=True):
                assert_same_bits("array", array, old)

        return refuses

    def test_an_index(self, call, cache_mode):
        for wrong in (np.arange(5), np.full(5, -1), [0, 1, 2, 3, 4], 3):
            text = f"^cache_index: expected None with a {cache_mode} cache, .*row t, got {type(wrong).__name__}$"
            call(ValueError, text, 5, wrong)

    @pytest.mark.parametrize("t", [49, 200])
    def test_more_tokens_than_rows(self, call, cache_mode, t):
        call(ValueError, f"^x: expected at most 48 tokens, the rows of the {cache_mode} cache, got {t}$", t, None)

    @pytest.mark.parametrize("paged", ["PA_BSND", "PA_NZ"])
    def test_none_with_a_paged_cache(self, paged):
        dims = MlaDims(130, 3, 50, 64, 33, 32)
        prolog, cache = MlaProlog(make_weights(dims, "b")), PagedCache.allocate(dims, 3, 16, paged)
        with pytest.raises(
            TypeError, match=f"^cache_index: expected a NumPy array with a {paged} cache, got NoneType$"
        ):
            prolog(*inputs_without_index(dims, 5), cache)
        assert not any(array.view(np.uint8).any() for array in cache.arrays().values())


class TestNoAllocation:
    def test_a_call_takes_no_more_memory_than_a_paged_one(self, cache_mode):
        t = 2000
        dims = MlaDims(2, 1, 4, 4, 1, 2)
        prolog = MlaProlog(make_weights(dims, "b"), n_threads=1)
        paged = PagedCache.allocate(dims, 1, t)
        cache = PagedCache.allocate(dims, 1, t, cache_mode)
        inputs = make_inputs(dims, t, t)
        out = prolog.allocate_output(t)

        def peak(index, cache):
            arguments = (inputs.x, inputs.cos, inputs.sin, index, cache, out)
            prolog(*arguments)
            tracemalloc.start()
            prolog(*arguments)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return most

        assert peak(None, cache) < peak(np.arange(t), paged) + 8000  # an index has 8 * t = 16,000 bytes, noise 4000


class TestCaches:
    @pytest.mark.parametrize("quantized", [True, False])
    def test_allocate(self, cache_mode, quantized):
        cache = PagedCache.allocate(DIMS, 5, 7, cache_mode, quantized)
        lead = {"BSND": (5, 7, 1), "TND": (35, 1)}[cache_mode]
        assert {name: a.shape[:-1] for name, a in cache.arrays().items()} == dict.fromkeys(cache.arrays(), lead)
        assert cache.block_size == {"BSND": 7, "TND": 35}[cache_mode]
        assert (cache.capacity, cache.paged, cache.quantized) == (35, False, quantized)
        twin = cache.copy()
        assert (twin.cache_mode, twin.capacity) == (cache_mode, 35)
        assert PagedCache.allocate(DIMS, 5, 7).paged

    @pytest.mark.parametrize("name", NAMES)
    def test_shapes(self, cache_mode, name):
        cache = make_rows(DIMS, True, cache_mode)
        given = {n: getattr(cache, n) for n in NAMES}
        shown = {"BSND": r"\(B, S, 1, d\)", "TND": r"\(rows, 1, d\)"}[cache_mode]
        right = given[name]
        for wrong in (
            right[0],
            right[None],
            right.repeat(2, axis=-2),
            right[..., :0],
            np.zeros((), right.dtype),
        ):
            with pytest.raises(ValueError, match=rf"^{name}_cache: expected shape {shown} in {cache_mode}, got \("):
                PagedCache(**(given | {name: wrong}), cache_mode=cache_mode)
        if name != "kv":
            with pytest.raises(ValueError, match=rf"^{name}_cache: expected \(.* as kv_cache, got \("):
                PagedCache(**(given | {name: right[1:]}), cache_mode=cache_mode)
        for other in {"BSND": ("TND",), "TND": ("BSND", "PA_BSND", "PA_NZ")}[cache_mode]:
            with pytest.raises(ValueError, match=rf"^kv_cache: expected shape \(.*\) in {other}, got \("):
                PagedCache(**given, cache_mode=other)

    def test_rows_of_tnd_are_side_by_side(self):
        cache = make_rows(DIMS, True, "TND")
        for name in NAMES:
            wrong = getattr(cache, name)[::2]
            given = {n: getattr(cache, n)[:24] for n in NAMES} | {name: wrong}
            with pytest.raises(ValueError, match=rf"^{name}_cache: expected .*contiguous within, got strides"):
                PagedCache(**given, cache_mode="TND")

    @pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ", "BSND", "TND"])
    def test_int8_rows_have_four_groups(self, mode):
        lead = (48, 1) if mode == "TND" else (3, 16, 1)
        rope, scale = np.zeros((*lead, 32), BF16), np.zeros((*lead, 4), np.float32)
        with pytest.raises(ValueError, match=r"^kv_cache: expected rows of 4 equal groups, got 66 elements"):
            PagedCache(np.zeros((*lead, 66), np.int8), rope, scale, mode)


@pytest.mark.parametrize("entry", [mla.mla_prolog_quant_compute, mla.mla_prolog_quant_p, mla.mla_prolog_quant_d])
class TestEntryPoints:
    def arguments(self, weights, cache_mode, t, in_place):
        quantized = "b" in weights.quant
        target = make_rows(DIMS, quantized, cache_mode)
        source = target if in_place else target.copy()
        out = make_output(DIMS, quantized, t)
        inputs = inputs_without_index(DIMS, t)
        want = reference_run(weights, *inputs, source) if t <= target.capacity else None
        if not in_place:
            for array in target.arrays().values():
                random_bytes(np.random.default_rng(9), array)
        given = {
            "token_x": inputs.x,
            "dequant_scale": weights.dequant_scale_w_uq_qr,
            "cos": inputs.cos,
            "sin": inputs.sin,
            "cache_index": None,
            "cache_mode": cache_mode,
            "epsilon_cq": weights.epsilon_cq,
            "epsilon_ckv": weights.epsilon_ckv,
            **{n: getattr(weights, n) for n in ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv")},
            **{f"{n}_cache": getattr(source, n) for n in NAMES},
            **{f"{n}_cache_out": getattr(target, n) for n in NAMES},
            **{f"{n}_out": getattr(out, n) for n in out._fields},
        }
        return given, out, target, want

    @pytest.mark.parametrize("in_place", [True, False])
    @pytest.mark.parametrize("quant", ["b", "none"])
    def test_equals_the_reference(self, entry, cache_mode, quant, in_place):
        given, out, target, want = self.arguments(make_weights(DIMS, quant), cache_mode, 19, in_place)
        assert entry(**given) is None
        assert_none(check_output(out, target, want))

    def test_errors(self, entry, cache_mode):
        given, out, target, _ = self.arguments(make_weights(DIMS, "b"), cache_mode, 49, True)
        before = [array.copy() for array in (*out, *target.arrays().values())]
        with pytest.raises(ValueError, match=f"^token_x: expected at most 48 tokens, .*{cache_mode} cache, got 49"):
            entry(**given)
        with pytest.raises(ValueError, match=f"^cache_index: expected None with a {cache_mode} cache"):
            entry(**(given | {"cache_index": np.arange(49)}))
        other = "TND" if cache_mode == "BSND" else "BSND"
        with pytest.raises(ValueError, match=rf"^kv_cache_out: expected shape .* in {other}"):
            entry(**(given | {"cache_mode": other}))
        for array, old in zip((*out, *target.arrays().values()), before, strict=True):
            assert_same_bits("array", array, old)
