"""TorchProlog: the reference's bits in every mode, over the caller's memory, and what becomes of a module."""

import copy
import gc
import io
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import MODES

torch = pytest.importorskip("torch")

from helpers.interop_cases import CAPACITY, DIMS, LEADS, assert_is_reference, clone, make_cache, make_case  # noqa: E402

from mla_numba import MlaProlog, PagedCache  # noqa: E402
from mla_numba.interop.torch.operator import mla_prolog  # noqa: E402
from mla_numba.interop.torch.prolog import (  # noqa: E402
    TorchCache,
    TorchOutput,
    TorchProlog,
    to_numpy,
)


def raw(tensor):
    return tensor.view(torch.uint8)


def memory(cache):
    return [raw(tensor).clone() for tensor in cache[:3] if tensor is not None]


class TestBits:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("cache_mode", LEADS)
    def test_equals_the_reference(self, mode, cache_mode):
        case = make_case(mode, cache_mode)
        want = case.reference()
        assert_is_reference(case.prolog(*case.call), case.cache, want)

    @pytest.mark.parametrize("mode", ["b", "none"])
    @pytest.mark.parametrize("t", [0, 1, 47])
    def test_into_given_outputs(self, mode, t):
        case = make_case(mode, t=t, numerics="cann")
        want = case.reference()
        out = case.prolog.allocate_output(t)
        assert case.prolog(*case.call, out) is out
        assert_is_reference(out, case.cache, want)

    def test_the_prolog_of_a_module_cannot_be_assigned(self):
        """The operator would go on with the one that it was made with."""
        case, other = make_case(), make_case("none")
        with pytest.raises(AttributeError, match=r"^prolog: expected to stay as the module was made"):
            case.prolog.prolog = other.prolog.prolog
        want = case.reference()
        assert_is_reference(case.prolog(*case.call), case.cache, want)

    def test_int32_slots(self):
        case = make_case()
        want = case.reference()
        case.inputs[3] = case.inputs[3].to(torch.int32)
        assert_is_reference(case.prolog(*case.call), case.cache, want)

    def test_strided_blocks_and_fp16_scales(self):
        case = make_case()
        whole = [tensor.repeat_interleave(2, 0) for tensor in case.cache[:3]]
        whole[2] = whole[2].clamp(-1000, 1000).nan_to_num().half()
        cache = TorchCache(*(tensor[1::2] for tensor in whole))
        case = case._replace(cache=cache)
        want, before = case.reference(), [raw(tensor[::2]).clone() for tensor in whole]
        assert_is_reference(case.prolog(*case.call), cache, want)
        assert all(torch.equal(raw(tensor[::2]), old) for tensor, old in zip(whole, before, strict=True))


class TestCache:
    @pytest.mark.parametrize("cache_mode", LEADS)
    @pytest.mark.parametrize("quantized", [True, False])
    def test_both_ways_over_the_same_memory(self, cache_mode, quantized):
        ours = make_cache(quantized, cache_mode)
        theirs = TorchCache.from_numpy(ours)
        assert theirs.cache_mode == cache_mode
        again = theirs.numpy()
        assert again.arrays().keys() == ours.arrays().keys()
        for name, array in ours.arrays().items():
            at = array.__array_interface__["data"][0]
            assert again.arrays()[name].__array_interface__["data"][0] == at
            assert getattr(theirs, name.removesuffix("_cache")).data_ptr() == at

    def test_allocate(self):
        cache = TorchCache.allocate(DIMS, 3, 16, "TND", quantized=False)
        shapes = [None if a is None else tuple(a.shape) for a in cache[:3]]
        assert (shapes, cache.cache_mode) == ([(48, 1, 64), (48, 1, 32), None], "TND")
        assert not cache.kv.any()

    def test_gather(self):
        ours = make_cache(True)
        slots = torch.tensor([5, 0, 47, 5])
        rows, want = TorchCache.from_numpy(ours).gather(slots), ours.gather(slots.numpy())
        for got, array in zip(rows, want, strict=True):
            assert np.array_equal(to_numpy(got).view(np.uint8), array.view(np.uint8))
        with pytest.raises(ValueError, match=r"^slots\[1\]: expected a slot"):
            TorchCache.from_numpy(ours).gather(torch.tensor([0, -1]))

    def test_what_does_not_fit(self):
        cache = TorchCache.from_numpy(make_cache(True))
        with pytest.raises(ValueError, match=r"^kr_cache: expected a tensor on the CPU, got one on meta"):
            cache._replace(kr=cache.kr.to("meta")).numpy()
        with pytest.raises(ValueError, match=r"^k_scale_cache: expected an array beside an int8 kv_cache, got None"):
            cache._replace(k_scale=None).numpy()
        with pytest.raises(TypeError, match=r"^cache: expected PagedCache, got TorchCache"):
            TorchCache.from_numpy(cache)


def change(index, make):
    """A change of one argument of a call."""

    def changed(case):
        call = list(case.call)
        call[index] = make(call[index])
        return call

    return changed


def shared_memory(case):
    x = case.inputs[0]
    whole = torch.zeros(x.shape[0] * case.cache.kr.shape[-1] * 3 + x.numel(), dtype=x.dtype)
    kr = whole[: case.cache.kr.numel()].view(case.cache.kr.shape)
    return (
        x.new_zeros(0).set_(whole.untyped_storage(), 7, x.shape, x.stride()),
        *case.inputs[1:],
        case.cache._replace(kr=kr),
    )


WRONG = {
    "no tensor": (change(0, to_numpy), TypeError, "x: expected a tensor, got ndarray"),
    "None": (change(1, lambda _: None), TypeError, "cos: expected a tensor, got NoneType"),
    "dtype": (change(0, lambda x: x.half()), TypeError, "x: expected dtype bfloat16, got float16"),
    "shape": (change(2, lambda x: x[:, 1:].clone()), ValueError, "sin: expected shape (9, 32), got (9, 31)"),
    "strides": (
        change(0, lambda x: x.t().contiguous().t()), ValueError,
        "x: expected a contiguous tensor, got strides (1, 9) for shape (9, 130)",
    ),
    "slots": (change(3, lambda x: x.float()), TypeError, "cache_index: expected dtype int64 or int32, got float"),
    "no slots": (
        change(3, lambda _: None), TypeError, "cache_index: expected a tensor with a PA_BSND cache, got None",
    ),
    "slot": (
        change(3, lambda x: x.clone().fill_(48)), ValueError,
        "cache_index[0]: expected -1 (no row) or a slot below the capacity 48, got 48",
    ),
    "PagedCache": (change(4, lambda c: c.numpy()), TypeError, "cache: expected TorchCache, got PagedCache"),
    "cache dtype": (
        change(4, lambda c: c._replace(kv=c.kv.bfloat16())), TypeError,
        "kv_cache: expected dtype bfloat16 for quant 'none', got int8",
    ),
    "cache mode": (
        change(4, lambda c: c._replace(cache_mode="NZ")), ValueError,
        "cache_mode: expected one of PA_BSND, PA_NZ, BSND, TND, got 'NZ'",
    ),
    "overlap": (shared_memory, ValueError, "kr_cache: expected memory of its own, got an overlap with x"),
    "grad": (
        change(0, lambda x: x.requires_grad_()), ValueError,
        "x: expected a tensor that needs no gradient (or torch.no_grad), as there is no backward, got one that",
    ),
    "out": (lambda c: (*c.call, c.prolog.allocate_output(8)), ValueError, "out.query_nope: expected shape (9, 3, 64),"),
    "out type": (lambda c: (*c.call, tuple(c.prolog.allocate_output(9))), TypeError, "out: expected TorchOutput, got "),
    "out strides": (
        lambda c: (*c.call, c.prolog.allocate_output(9)._replace(q_norm=torch.empty(50, 9, dtype=torch.int8).t())),
        ValueError, "out.q_norm: expected a contiguous tensor, got strides (1, 9) for shape (9, 50)",
    ),
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("what", WRONG)
    def test_name_what_is_wrong_and_write_nothing(self, what):
        wrong, error, text = WRONG[what]
        case = make_case("none" if what == "cache dtype" else "b")
        if what == "cache dtype":
            case = case._replace(cache=TorchCache.from_numpy(make_cache(True)))
            wrong = lambda case: case.call  # noqa: E731
        arguments = wrong(case)
        before = memory(case.cache)
        versions = [tensor._version for tensor in case.cache[:3] if tensor is not None]
        with pytest.raises(error) as caught:
            case.prolog(*arguments)
        assert str(caught.value).startswith(text)
        assert all(map(torch.equal, memory(case.cache), before))
        assert [tensor._version for tensor in case.cache[:3] if tensor is not None] == versions

    def test_non_finite_tokens(self):
        case = make_case(check_finite=True)
        case.inputs[0][4, 7] = torch.inf
        with pytest.raises(ValueError, match=r"^x: expected finite values, got NaN or Inf in token 4"):
            case.prolog(*case.call)

    def test_shapes_that_are_not_the_prologs(self):
        case = make_case()
        with pytest.raises(
            ValueError, match=r"^n_heads, q_rank: expected those of the handle's prolog, \(3, 50\), got"
        ):
            mla_prolog(*case.operands()[:-1], 51)

    def test_sources_of_a_module(self):
        case = make_case()
        with pytest.raises(
            TypeError, match=r"^source: expected MlaProlog, MlaWeights or PackedWeights, got PagedCache"
        ):
            TorchProlog(make_cache(True))
        with pytest.raises(TypeError, match=r"^n_threads: expected no settings beside an MlaProlog"):
            TorchProlog(case.prolog.prolog, n_threads=1)

    def test_a_transform_that_batches(self):
        case = make_case()
        with pytest.raises(RuntimeError, match="Batching rule not implemented for mla_numba::mla_prolog"):
            torch.vmap(lambda x: case.prolog(x, *case.call[1:]))(case.inputs[0][None])


class TestGradients:
    def test_taken_where_none_are_recorded(self):
        case = make_case()
        want = case.reference()
        case.inputs[0].requires_grad_()
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                cache = clone(case.cache)
                out = case.prolog(*case.inputs, cache)
                assert not out.query_nope.requires_grad
                assert_is_reference(out, cache, want)

    def test_a_graph_that_saved_the_cache_notices_the_write(self):
        case = make_case("none")
        factor = torch.ones(1, requires_grad=True)
        loss = (case.cache.kr * factor).sum()
        case.prolog(*case.call)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("into", [False, True])
    def test_versions_of_what_is_written(self, into):
        case = make_case()
        out = case.prolog.allocate_output(9) if into else None
        written = [*case.cache[:3], *(out or ())]
        before = [tensor._version for tensor in written]
        with torch.inference_mode():
            case.prolog(*case.call, out)
        assert [tensor._version for tensor in written] == [version + 1 for version in before]
        assert {tensor._version for tensor in case.inputs} == {0}

    def test_inference_tensors(self):
        case = make_case()
        want = case.reference()
        with torch.inference_mode():
            cache = clone(case.cache)
            assert case.prolog(*case.inputs, cache).query_nope.is_inference()
        assert_is_reference(case.prolog(*case.inputs, cache), cache, want)


def moved(module):
    return module.to("meta").half().double().bfloat16().train().eval().to_empty(device="cpu")


AGAIN = {
    "deepcopy": copy.deepcopy,
    "deepcopy of a model": lambda module: copy.deepcopy(torch.nn.Sequential(module))[0],
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: torch.load(saved(module), weights_only=False),
}


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


class TestModule:
    @pytest.mark.parametrize("how", AGAIN)
    def test_of_itself_made_again(self, how):
        case = make_case()
        want = case.reference()
        again = AGAIN[how](case.prolog)
        assert again is not case.prolog
        del case.prolog.prolog  # it is gone, if nothing else keeps it
        gc.collect()
        assert_is_reference(again(*case.call), case.cache, want)

    def test_moved_it_stays_what_it_is(self):
        case = make_case()
        want = case.reference()
        assert_is_reference(moved(case.prolog)(*case.call), case.cache, want)

    def test_copies_share_the_weights(self):
        module = make_case().prolog
        for how in ("deepcopy", "copy"):
            assert AGAIN[how](module).prolog is module.prolog
        memo = {}
        pair = copy.deepcopy([module, module], memo)
        assert pair[0] is pair[1]

    def test_a_state_without_weights(self):
        module = make_case().prolog
        assert not module.state_dict()
        assert not list(module.parameters()) + list(module.buffers())
        module.load_state_dict({})

    def test_made_where_tensors_are_made_elsewhere(self):
        packed = make_case().prolog.prolog
        with torch.device("meta"):
            module = TorchProlog(packed)
        case = make_case()
        want = case.reference()
        assert_is_reference(module(*case.call), case.cache, want)

    def test_of_packed_weights_and_of_a_prolog(self):
        case = make_case()
        want = case.reference()
        packed = case.weights.pack()
        for module in (TorchProlog(packed, phase="prefill", n_threads=1), TorchProlog(MlaProlog(packed))):
            cache = clone(case.cache)
            assert_is_reference(module(*case.inputs, cache), cache, want)
        assert "quant='b'" in repr(TorchProlog(packed))

    def test_within_autocast(self):
        case = make_case()
        want = case.reference()
        with torch.autocast("cpu", dtype=torch.float16):
            assert_is_reference(case.prolog(*case.call), case.cache, want)

    def test_meta_tensors_give_meta_outputs(self):
        case = make_case()
        cache = TorchCache(*(tensor.to("meta") for tensor in case.cache[:3]))
        out = case.prolog(*(tensor.to("meta") for tensor in case.inputs), cache)
        want = case.prolog(*case.call)
        for got, real in zip(out, want, strict=True):
            assert got.is_meta
            assert (got.shape, got.dtype, got.stride()) == (real.shape, real.dtype, real.stride())

    @pytest.mark.parametrize("place", range(4))
    def test_a_meta_tensor_among_others(self, place):
        """Nothing could be computed, and so no row would be written."""
        case = make_case()
        inputs, name = list(case.inputs), ("x", "cos", "sin", "cache_index")[place]
        inputs[place] = inputs[place].to("meta")
        with pytest.raises(ValueError, match=rf"^{name}: expected a tensor on the CPU, as others are, got one on meta"):
            case.prolog(*inputs, case.cache)
        cache = case.cache._replace(kr=case.cache.kr.to("meta"))
        with pytest.raises(
            ValueError, match=r"^kr_cache: expected a tensor on the CPU, as others are, got one on meta"
        ):
            case.prolog(*case.inputs, cache)

    def test_a_handle_of_a_prolog_that_is_gone(self):
        case = make_case()
        operands = case.operands()
        alive = weakref.ref(case.prolog.prolog)
        del case
        gc.collect()
        assert alive() is None
        with pytest.raises(
            ValueError, match=r"^handle: expected that of a prolog which is alive in this process, got "
        ):
            mla_prolog(*operands)

    @pytest.mark.parametrize("handle", [[], [1, 2], 0.5])
    def test_no_handle(self, handle):
        operands = make_case().operands()
        with pytest.raises(ValueError, match=r"^handle: expected that of a prolog"):
            mla_prolog(torch.tensor(handle), *operands[1:])

    def test_several_threads_at_once(self):
        case = make_case(t=24)
        want = case.reference()
        caches = [clone(case.cache) for _ in range(4)]

        def run(cache):
            with torch.inference_mode():
                return [case.prolog(*case.inputs, cache) for _ in range(20)][-1]

        with ThreadPoolExecutor(4) as pool:
            for out, cache in zip(pool.map(run, caches), caches, strict=True):
                assert_is_reference(out, cache, want)

    def test_outputs_outlive_all_else(self):
        case = make_case()
        want, out, cache = case.reference(), case.prolog(*case.call), case.cache
        del case
        gc.collect()
        assert isinstance(out, TorchOutput)
        assert isinstance(cache.numpy(), PagedCache)
        assert_is_reference(out, cache, want)
        assert cache.numpy().capacity == CAPACITY
