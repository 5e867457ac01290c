"""What kernels rely on is what was checked: no assignment, no other thread and no other object comes between."""

import copy
import pickle
import warnings
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from helpers import BF16, MODES, assert_none, assert_same_bits, make_cache, make_call, make_inputs, make_weights

from mla_numba import (
    MlaDims,
    MlaProlog,
    MlaWeights,
    PackedWeights,
    PagedCache,
    cache,
)
from mla_numba.call import bind as bound_call
from mla_numba.call import run as bound_run
from mla_numba.kernels import max_threads
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
T, BLOCKS, BLOCK_SIZE = 9, 3, 16
OTHERS = [
    replace(DIMS, **{f.name: getattr(DIMS, f.name) + n})
    for f in fields(DIMS)
    for n in (-4, 4)
    if getattr(DIMS, f.name) + n > 0
]


class Case:
    """A prolog with a call's arguments, and what the reference makes of them."""

    def __init__(self, mode="b", t=T, dims=DIMS, cache_mode="PA_BSND"):
        self.weights = make_weights(dims, mode)
        self.prolog = MlaProlog(self.weights)
        self.inputs = make_inputs(dims, t, BLOCKS * BLOCK_SIZE)
        self.call = make_call(dims, "b" in mode, t, BLOCKS, BLOCK_SIZE, cache_mode)
        self.want = reference_run(self.weights, *self.inputs, self.call.cache)

    @property
    def arguments(self):
        return (*self.inputs, self.call.cache, self.call.out)

    def bind(self):
        return self.prolog.bind(*self.arguments)


def assign(array, name, value):
    """Gives an array another shape or dtype in place, which NumPy deprecates and does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(array, name, value)


@pytest.fixture
def case():
    return Case()


class TestBoundCalls:
    def refuses(self, case, prolog, text):
        before = [a.copy() for a in (*case.call.cache.arrays().values(), *case.call.out) if a is not None]
        with pytest.raises(ValueError, match=text):
            prolog.run(case.bind())
        after = [a for a in (*case.call.cache.arrays().values(), *case.call.out) if a is not None]
        for old, new in zip(before, after, strict=True):
            assert_same_bits("written", new, old)

    @pytest.mark.parametrize("dims", OTHERS)
    def test_of_other_dimensions(self, case, dims):
        self.refuses(case, MlaProlog(make_weights(dims, "b")), r"^call: expected one that a prolog of MlaDims\(.* got")

    @pytest.mark.parametrize("mode", ["none", "a", "ab"])
    def test_of_another_mode(self, case, mode):
        prolog = MlaProlog(make_weights(DIMS, mode))
        self.refuses(case, prolog, f"^call: expected one that a prolog of quant '{mode}' bound, got one of 'b'$")
        other = Case(mode)
        self.refuses(other, case.prolog, f"^call: expected one that a prolog of quant 'b' bound, got one of '{mode}'$")

    def test_of_an_equal_prolog_runs_with_the_weights_of_the_one_that_runs_it(self, case):
        weights = make_weights(DIMS, "b smooth", seed=1)
        want = reference_run(weights, *case.inputs, case.call.cache, numerics="cann")
        assert MlaProlog(weights, numerics="cann").run(case.bind()) is case.call.out
        case.call.assert_equals(want)

    def test_what_is_none(self, case):
        for wrong in (None, case.call.out, tuple(case.bind())):
            with pytest.raises(TypeError, match=f"^call: expected BoundCall, got {type(wrong).__name__}$"):
                case.prolog.run(wrong)

    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_it_is_not_copied(self, case, again):
        """The copy's outputs would not be the arrays that it writes."""
        with pytest.raises(TypeError, match=r"^call: expected to stay in its process"):
            again(case.bind())

    def test_most_threads(self, case):
        call = case.bind()
        for wrong, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)):
            with pytest.raises(error, match=r"^most_threads: expected"):
                case.prolog.run(call, most_threads=wrong)
        case.prolog.run(call, most_threads=max_threads() + 1)
        case.call.assert_equals(case.want)

    @pytest.mark.parametrize("dtype", [np.int64, np.int32])
    def test_it_reads_the_values_of_now(self, case, dtype):
        index = case.inputs.cache_index.astype(dtype)
        call = case.prolog.bind(*case.inputs._replace(cache_index=index), case.call.cache, case.call.out)
        case.inputs.x[:] = case.inputs.x[::-1].copy()
        index[:] = case.inputs.cache_index[:] = np.arange(T)[::-1]
        want = reference_run(case.weights, *case.inputs, case.call.cache)
        case.prolog.run(call)
        case.call.assert_equals(want)


class TestSlots:
    """Another thread may write the caller's index at any time; here it does so right before the kernel starts."""

    @pytest.fixture(params=[np.int64, np.int32])
    def scribbled(self, request, case, monkeypatch):
        index = case.inputs.cache_index.astype(request.param)
        case.inputs = case.inputs._replace(cache_index=index)
        tile = bound_run.prolog_tile

        def scribbling(*args):
            index[:] = np.iinfo(index.dtype).max
            tile(*args)

        monkeypatch.setattr(bound_run, "prolog_tile", scribbling)
        return case

    def test_a_call(self, scribbled):
        scribbled.prolog(*scribbled.arguments)
        scribbled.call.assert_equals(scribbled.want)

    def test_a_profiled_one(self, scribbled):
        scribbled.prolog.profile(*scribbled.arguments)
        scribbled.call.assert_equals(scribbled.want)

    def test_a_bound_one(self, scribbled):
        call = scribbled.bind()
        scribbled.prolog.run(call)
        scribbled.call.assert_equals(scribbled.want)
        with pytest.raises(ValueError, match=r"^cache_index\[0\]: expected -1"):
            scribbled.prolog.run(call)

    @pytest.mark.parametrize("cache_mode", ["BSND", "TND"])
    def test_rows_without_an_index_are_nobodys_array(self, cache_mode):
        kept = PagedCache.allocate(DIMS, 1, 16, cache_mode)
        prolog, inputs = MlaProlog(make_weights(DIMS, "b")), make_inputs(DIMS, T, 16)
        first = prolog.bind(*inputs._replace(cache_index=None), kept)
        first.tokens.cache_index[:] = -1
        second = prolog.bind(*inputs._replace(cache_index=None), kept)
        assert second.tokens.cache_index.tolist() == list(range(T))

    @pytest.mark.parametrize("dtype", [np.int64, np.int32])
    def test_gathered_rows(self, case, dtype, monkeypatch):
        slots = np.array([3, 0, 47], dtype)
        want = case.call.cache.gather(slots)
        rows = cache.rows_of

        def scribbling(*args):
            slots[:] = -5
            return rows(*args)

        monkeypatch.setattr(cache, "rows_of", scribbling)
        for name, got in case.call.cache.gather(slots)._asdict().items():
            assert_same_bits(name, got, getattr(want, name))


class TestWeights:
    @pytest.mark.parametrize("mode", ["none", "ab smooth"])
    def test_fields_cannot_be_assigned(self, mode):
        weights = make_weights(DIMS, mode)
        for field in fields(weights):
            with pytest.raises(FrozenInstanceError):
                setattr(weights, field.name, getattr(weights, field.name))
            with pytest.raises(FrozenInstanceError):
                delattr(weights, field.name)

    @pytest.mark.parametrize("mode", MODES)
    def test_shapes_assigned_in_place_are_seen(self, mode):
        names = [
            f.name for f in fields(MlaWeights) if isinstance(getattr(make_weights(DIMS, mode), f.name), np.ndarray)
        ]
        for name in names:
            weights = make_weights(DIMS, mode)
            array = getattr(weights, name)
            assign(array, "shape", (array.size, 1) if array.ndim > 1 else (1, 1, array.size))
            with pytest.raises(ValueError, match=r"^\w+: expected"):
                weights.pack()

    @pytest.mark.parametrize("again", [lambda w: pickle.loads(pickle.dumps(w)), copy.copy, copy.deepcopy, replace])
    def test_copies_are_the_same_weights(self, again):
        weights = MlaWeights.random(DIMS, 0, "ab", smooth=True)
        copied = again(weights)
        for field in fields(weights):
            ours, theirs = (getattr(w, field.name) for w in (copied, weights))
            if isinstance(theirs, np.ndarray):
                assert_same_bits(field.name, ours, theirs)
            elif field.name == "quantization":
                assert (ours is None) == (again is replace)
            else:
                assert ours == theirs
        with pytest.raises(FrozenInstanceError):
            copied.epsilon_cq = 1.0
        inputs = make_inputs(DIMS, T, BLOCKS * BLOCK_SIZE)
        kept = make_cache(DIMS, True, BLOCKS, BLOCK_SIZE)
        want = reference_run(weights, *inputs, kept)
        assert_none(check_output(MlaProlog(copied)(*inputs, kept), kept, want))


class TestPackedWeights:
    def refuses(self, weights, text, error=ValueError):
        with pytest.raises(error, match=rf"^weights.*: expected {text}"):
            MlaProlog(weights)

    @pytest.mark.parametrize("name", ["gamma_cq", "gamma_ckv", "smooth_scales_cq"])
    def test_vectors_that_do_not_fit(self, name):
        weights = make_weights(DIMS, "b smooth").pack()
        array = getattr(weights, name)
        for wrong in (array[:-1], array[::-1], np.repeat(array, 2)[::2], array[None], array.astype("f8"), None):
            self.refuses(replace(weights, **{name: wrong}), f"{name} of the size and type")

    @pytest.mark.parametrize("part", ["panels", "offset", "col_scale"])
    def test_products_that_do_not_fit(self, part):
        weights = make_weights(DIMS, "b").pack()
        array = getattr(weights.up, part)
        for wrong in (array[:-1], array[::-1], array.reshape(2, -1), array.astype("f8"), None):
            self.refuses(replace(weights, up=replace(weights.up, **{part: wrong})), "up of the size and type")

    @pytest.mark.parametrize(
        "change", [{"kp": 64.0}, {"kp": 0}, {"n_parts": True}, {"least_magnitude": 0x8000}, {"least_magnitude": -1}]
    )
    def test_facts_that_do_not_fit(self, change):
        weights = make_weights(DIMS, "none").pack()
        self.refuses(replace(weights, uk=replace(weights.uk, **change)), "uk of the size and type")

    def test_dimensions_and_modes(self):
        weights = make_weights(DIMS, "b").pack()
        self.refuses(replace(weights, dims=tuple(range(6))), "MlaDims, got tuple", TypeError)
        self.refuses(replace(weights, dims=replace(DIMS, hidden_size=131)), "an even number")
        self.refuses(replace(weights, quant="ba"), "one of none, a, b, ab, got 'ba'")
        self.refuses(replace(weights, quant="none"), "up of the size")
        self.refuses(replace(weights, epsilon_cq=1e-5), "np.float32, got float", TypeError)
        self.refuses(replace(weights, epsilon_cq=np.float32("nan")), "a number of at least 0")
        self.refuses(replace(weights, down=None), "PackedGemm, got NoneType", TypeError)

    def test_shapes_assigned_in_place(self):
        case = Case()
        packed = case.weights.pack()
        prolog = MlaProlog(packed)
        assign(packed.gamma_cq, "shape", (2, -1))
        with pytest.raises(ValueError, match=r"^weights: expected gamma_cq of the size and type"):
            prolog(*case.arguments)
        assign(packed.gamma_cq, "shape", (-1,))
        prolog(*case.arguments)
        for array in (packed.gamma_cq, packed.gamma_ckv, packed.up.panels, packed.up.offset, packed.uk.panels):
            assign(array, "shape", (1, -1))  # what the kernels have are views of their own
        prolog(*case.arguments)
        case.call.assert_equals(case.want)


class TestProlog:
    def test_attributes_cannot_be_assigned(self, case):
        other = make_weights(DIMS, "b", seed=1).pack()
        assert isinstance(other, PackedWeights)
        case.prolog(*case.arguments)
        names = [name for name in vars(case.prolog) if not name.startswith("_")]
        assert {"weights", "dims", "n_threads", "numerics", "tile_config", "phase", "check_finite"} <= set(names)
        for name in names:
            with pytest.raises(AttributeError, match=f"^{name}: expected to stay as the prolog was made"):
                setattr(case.prolog, name, other if name == "weights" else getattr(case.prolog, name))
        case.prolog(*case.arguments)
        case.call.assert_equals(case.want)

    def test_one_of_a_subclass_may_have_more(self, case):
        class Named(MlaProlog):
            pass

        prolog = Named(case.weights)
        prolog.name = "layer 3"
        assert prolog.name == "layer 3"


class TestArraysOfACall:
    @pytest.mark.parametrize("mode", ["b", "none"])
    def test_shapes_and_dtypes_assigned_after_binding(self, mode):
        case = Case(mode)
        call = case.bind()
        arrays = [*case.inputs[:3], *(a for a in case.call.out if a is not None)]
        arrays += case.call.cache.arrays().values()
        for array in arrays:
            before = array.shape, array.dtype
            assign(array, "shape", (1, -1))
            assign(array, "dtype", np.int8)
            case.prolog.run(call)
            assign(array, "dtype", before[1])
            assign(array, "shape", before[0])
        case.call.assert_equals(case.want)

    def test_a_cache_is_what_it_was_made_as(self):
        """Of bf16 rows, by the dtype assigned later, int8 rows of twice the length."""
        kv, kr = np.zeros((2, 4, 1, 32), BF16), np.zeros((2, 4, 1, 8), BF16)
        made = PagedCache(kv, kr, np.zeros((2, 4, 1, 4), np.float32))
        assign(kv, "dtype", np.int8)
        prolog = MlaProlog(make_weights(MlaDims(64, 2, 32, 64, 16, 8), "b"))
        with pytest.raises(TypeError, match=r"^kv_cache: expected dtype int8 for quant 'b', got bfloat16$"):
            prolog(*make_inputs(prolog.dims, 3, 8), made)
        with pytest.raises(TypeError):
            made.views["kv_cache"] = None

    def test_an_array_in_use_is_not_resized(self, case):
        x = case.inputs.x.copy()
        case.inputs = case.inputs._replace(x=x)
        call = case.bind()
        with pytest.raises(ValueError, match="resize"):
            x.resize((1, 1))
        case.prolog.run(call)
        case.call.assert_equals(case.want)


def test_what_a_bound_call_holds():
    """A field that is added belongs to what `run` compares, or to what the kernels are given as it is."""
    fields = ("out", "tokens", "caches", "cache_index", "capacity", "dims", "quant", "indexer")
    assert bound_call.BoundCall._fields == fields
