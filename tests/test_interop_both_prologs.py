"""TorchProlog with an indexer: NumPy's bits in one call, opcheck and `torch.compile`, and what it refuses."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from helpers.calls import assert_none, make_weights  # noqa: E402
from helpers.indexer_calls import assert_as_reference, expect_indexer  # noqa: E402

import mla_numba as mla  # noqa: E402
from mla_numba.inputs import random_inputs  # noqa: E402
from mla_numba.interop.torch import (  # noqa: E402
    TorchCache,
    TorchIndexedOutput,
    TorchIndexer,
    TorchIndexerCache,
    TorchIndexerOutput,
    TorchOutput,
    TorchProlog,
    lightning_index,
    sparse_attention,
    to_numpy,
    to_torch,
)
from mla_numba.interop.torch.indexed_operator import mla_prolog_indexed, mla_prolog_indexed_out  # noqa: E402
from mla_numba.interop.torch.operator import mla_prolog  # noqa: E402
from mla_numba.oracle.bits import check_output  # noqa: E402

DIMS = mla.MlaDims(128, 3, 64, 64, 32, 16)
CHECKS = {"test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"}
T = 8
SIZES = (3, 64, 4)
WEIGHTS, INDEXER = make_weights(DIMS, "b"), mla.IndexerWeights.random(DIMS, n_heads=4, head_dim=32)
MODULE = TorchProlog(WEIGHTS, indexer=INDEXER)


class Case:
    """A call of the module, and what the reference makes of it."""

    def __init__(self, module=MODULE, cache_mode="PA_BSND"):
        self.module = module
        self.cache = TorchCache.allocate(DIMS, n_blocks=5, block_size=4, cache_mode=cache_mode)
        self.keys = TorchIndexerCache.allocate(INDEXER.dims, n_blocks=5, block_size=4)
        self.inputs = [to_torch(array) for array in random_inputs(DIMS, T, seed=0, capacity=20)]
        if cache_mode == "TND":
            self.inputs[3] = None
        self.call = (*self.inputs, self.cache)

    def expected(self):
        inputs = mla.inputs.Inputs(*(None if a is None else to_numpy(a) for a in self.inputs))
        return expect_indexer(WEIGHTS, INDEXER, inputs, self.cache.numpy(), self.keys.numpy())

    def assert_is(self, out, want):
        assert isinstance(out, TorchIndexedOutput)
        assert isinstance(out.indexer, TorchIndexerOutput)
        of_prolog, of_indexer = want
        arrays = mla.PrologOutput(*map(to_numpy, out[:4]))
        assert_none(check_output(arrays, self.cache.numpy(), of_prolog))
        arrays = mla.IndexerOutput(*map(to_numpy, out.indexer))
        assert_as_reference(arrays, self.keys.numpy(), of_indexer)


@pytest.fixture
def case():
    torch.compiler.reset()
    return Case()


@pytest.mark.parametrize("source", ["weights", "packed", "a prolog"])
def test_the_bits_of_the_reference(source):
    module = {
        "weights": MODULE,
        "packed": TorchProlog(WEIGHTS.pack(), indexer=INDEXER.pack(), n_threads=1),
        "a prolog": TorchProlog(mla.MlaProlog(WEIGHTS, "prefill", indexer=INDEXER)),
    }[source]
    case = Case(module)
    want = case.expected()
    case.assert_is(module(*case.call, indexer_cache=case.keys), want)


def test_into_given_outputs(case):
    want = case.expected()
    out = case.module.allocate_output(T)
    versions = [tensor._version for tensor in (*out[:4], *out.indexer, *case.keys[:2], *case.cache[:3])]
    assert case.module(*case.call, out, indexer_cache=case.keys) is out
    case.assert_is(out, want)
    after = [tensor._version for tensor in (*out[:4], *out.indexer, *case.keys[:2], *case.cache[:3])]
    assert after == [version + 1 for version in versions]


def test_no_tokens(case):
    empty = [tensor[:0] for tensor in case.inputs]
    out = case.module(*empty, case.cache, indexer_cache=case.keys)
    assert out.indexer.query.shape == (0, 4, 32)
    assert not case.keys.k.any()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(again):
    case = Case(again(MODULE))
    want = case.expected()
    case.assert_is(case.module(*case.call, indexer_cache=case.keys), want)


def test_compiled_with_what_follows_it(case):
    table, act_seq = torch.tensor([[3, 0], [1, 4]]), torch.tensor([5, 7])
    case.inputs[3] = torch.tensor([13, 14, 15, 0, 7, 16, 17, 18])

    def run(x):
        out = case.module(x * 1, *case.inputs[1:], case.cache, indexer_cache=case.keys)
        index = lightning_index(out.indexer, case.keys, table, act_seq, 4)
        return sparse_attention(out, case.cache, index, table, act_seq, softmax_scale=0.25).float() + 1

    want = run(case.inputs[0])
    case.keys.k.zero_()
    case.cache.kv.zero_()
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(case.inputs[0]), want)
    assert case.keys.k.any()


@pytest.mark.parametrize("cache_mode", ["PA_BSND", "TND"])
def test_opcheck(cache_mode):
    case = Case(cache_mode=cache_mode)
    operands = (case.module._handle, *case.call[:4], *case.cache, *case.keys)
    out = case.module.allocate_output(T)
    for operator, rest in ((mla_prolog_indexed, SIZES), (mla_prolog_indexed_out, (*out[:4], *out.indexer))):
        assert torch.library.opcheck(operator, (*operands, *rest)) == dict.fromkeys(CHECKS, "SUCCESS")


def test_wrong_arguments_by_name_and_nothing_is_written(case):
    x = case.inputs[0].detach().clone().requires_grad_()
    small = TorchIndexerCache.allocate(INDEXER.dims, n_blocks=4, block_size=4)
    out, plain, alone = case.module.allocate_output(T), TorchProlog(WEIGHTS), TorchIndexer(INDEXER)
    beside = {"indexer_cache": case.keys}
    for module, call, keywords, error, match in (
        (case.module, case.call, {}, TypeError, "indexer_cache: expected TorchIndexerCache, got NoneType"),
        (case.module, case.call, {"indexer_cache": case.cache}, TypeError, "indexer_cache: expected TorchIndexerCache"),
        (case.module, case.call, {"indexer_cache": small}, ValueError, "indexer_cache: expected at least 20 slots"),
        (case.module, (x, *case.call[1:]), beside, ValueError, "x: expected a tensor that needs no gradient"),
        (case.module, (*case.call, plain.allocate_output(T)), beside, TypeError, "out: expected TorchIndexedOutput,"),
        (case.module, (*case.call, out._replace(indexer=None)), beside, TypeError, "out.indexer: expected TorchInd"),
        (
            case.module, (*case.call, out._replace(indexer=out.indexer._replace(weights=out.indexer.weights[:3]))),
            beside, ValueError, r"out.indexer.weights: expected shape \(8, 4\), got \(3, 4\)",
        ),
        (plain, case.call, beside, ValueError, "indexer_cache: expected None for a prolog without an indexer, got"),
        (plain, (*case.call, out), {}, TypeError, "out: expected TorchOutput, got TorchIndexedOutput"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{match}"):
            module(*call, **keywords)
    assert not case.keys.k.any()
    assert not case.cache.kv.any()
    with pytest.raises(ValueError, match=r"^n_index_heads: expected that of the handle's indexer, 4, got 5"):
        mla_prolog_indexed(case.module._handle, *case.call[:4], *case.cache, *case.keys, 3, 64, 5)
    for handle, kind in ((plain._handle, "MlaProlog without an indexer"), (alone._handle, "IndexerProlog")):
        with pytest.raises(
            ValueError, match=f"^handle: expected that of an MlaProlog with an indexer, got that of {kind}$"
        ):
            mla_prolog_indexed(handle, *case.call[:4], *case.cache, *case.keys, *SIZES)
    with pytest.raises(TypeError, match=r"^indexer_cache: expected IndexerCache, got NoneType"):
        mla_prolog(case.module._handle, *case.call[:4], *case.cache, 3, 64)


def test_what_cannot_be_made():
    with pytest.raises(TypeError, match=r"^indexer: expected no settings beside an MlaProlog, which has its own"):
        TorchProlog(mla.MlaProlog(WEIGHTS), indexer=INDEXER)
    with pytest.raises(ValueError, match=r"^indexer: expected None with a group, .* TorchIndexer beside it"):
        TorchProlog(WEIGHTS, indexer=INDEXER, group=object())
    with pytest.raises(ValueError, match=r"^indexer: expected None for weights of quant 'none'"):
        TorchProlog(make_weights(DIMS, "none"), indexer=INDEXER)


def test_what_is_printed(case):
    assert "indexer=(H=128 Rq=64 Ni=4 Di=32 R=16)" in repr(case.module)
    text = repr(case.module.allocate_output(2))
    assert text.startswith("<TorchIndexedOutput: query_nope (2, 3, 64) bf16, ")
    assert "<TorchIndexerOutput: query (2, 4, 32) int8" in text
    assert isinstance(TorchProlog(WEIGHTS).allocate_output(2), TorchOutput)
