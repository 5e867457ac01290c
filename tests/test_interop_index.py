"""Indexer, lightning index and sparse attention on tensors: NumPy's bits, opcheck and `torch.compile`."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.calls import make_weights  # noqa: E402

import mla_numba as mla  # noqa: E402
from mla_numba.inputs import random_inputs  # noqa: E402
from mla_numba.interop.torch import (  # noqa: E402
    TorchCache,
    TorchIndexer,
    TorchIndexerCache,
    TorchProlog,
    lightning_index,
    sparse_attention,
    to_numpy,
    to_torch,
)
from mla_numba.interop.torch import index_operators as operators  # noqa: E402

DIMS = mla.MlaDims(128, 3, 64, 64, 32, 16)
CHECKS = {"test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"}
T, K, SCALE = 8, 4, 0.25


class Case:
    """Two sequences of 4 tokens, of 5 and 7 keys, in scattered blocks."""

    def __init__(self):
        weights = mla.IndexerWeights.random(DIMS, n_heads=4, head_dim=32)
        self.prolog, self.indexer = TorchProlog(make_weights(DIMS, "b")), TorchIndexer(weights)
        self.cache = TorchCache.allocate(DIMS, n_blocks=5, block_size=4)
        self.keys = TorchIndexerCache.allocate(weights.dims, n_blocks=5, block_size=4)
        self.table, self.act_seq = torch.tensor([[3, 0], [1, 4]]), torch.tensor([5, 7])
        self.x, self.cos, self.sin, _ = map(to_torch, random_inputs(DIMS, T, seed=0, capacity=20))
        self.slots = torch.tensor([13, 14, 15, 0, 7, 16, 17, 18])
        self.out = self.prolog(self.x, self.cos, self.sin, self.slots, self.cache)
        self.inputs = self.x, self.out.q_norm, self.out.q_norm_scale, self.cos, self.sin, self.slots

    def run(self, x):
        wanted = self.indexer(x * 1, *self.inputs[1:], self.keys)
        index = lightning_index(wanted, self.keys, self.table, self.act_seq, K)
        latent = sparse_attention(self.out, self.cache, index, self.table, self.act_seq, softmax_scale=SCALE)
        return wanted, index, latent.float() + 1


@pytest.fixture
def case():
    torch.compiler.reset()
    return Case()


def expected(case):
    """The same by the functions on arrays, on a cache of their own."""
    keys = case.keys.numpy().copy()
    wanted = case.indexer.prolog(*map(to_numpy, case.inputs), keys)
    table, act_seq = to_numpy(case.table), to_numpy(case.act_seq)
    index = mla.lightning_index(wanted, keys, table, act_seq, K)
    out = mla.PrologOutput(*map(to_numpy, case.out))
    latent = mla.sparse_attention(out, case.cache.numpy(), index, table, act_seq, softmax_scale=SCALE)
    return wanted, index, latent, keys


@pytest.mark.parametrize("compiled", [False, True])
def test_the_bits_of_arrays(case, compiled):
    want = expected(case)
    run = torch.compile(case.run, fullgraph=True, backend="aot_eager") if compiled else case.run
    wanted, index, latent = run(case.x)
    for ours, theirs in zip(wanted, want[0], strict=True):
        assert (to_numpy(ours) == theirs).all()
    assert (to_numpy(index) == want[1]).all()
    assert torch.equal(latent, to_torch(want[2]).float() + 1)
    assert (to_numpy(case.keys.k) == want[3].k).all()
    assert np.any(want[3].k)


def test_opcheck(case):
    wanted = case.indexer(*case.inputs, case.keys)
    index = lightning_index(wanted, case.keys, case.table, case.act_seq, K)
    starts = torch.tensor([0, 4, 8])
    queries = case.out.query_nope, case.out.query_rope
    for operator, operands in (
        (operators.indexer_prolog, (case.indexer._handle, *case.inputs, *case.keys, 4)),
        (operators.lightning_index, (*wanted, *case.keys, case.table, case.act_seq, K, None)),
        (operators.lightning_index, (*wanted, *case.keys, case.table, case.act_seq, K, starts)),
        (operators.sparse_attention, (*queries, *case.cache, index, case.table, case.act_seq, SCALE, starts)),
        (operators.sparse_attention, (*queries, *case.cache, None, case.table, case.act_seq, SCALE, None)),
    ):
        assert torch.library.opcheck(operator, operands) == dict.fromkeys(CHECKS, "SUCCESS")


def test_a_written_cache_and_gradients_are_noticed(case):
    version = case.keys.k._version
    case.indexer(*case.inputs, case.keys)
    assert case.keys.k._version == version + 1
    with pytest.raises(ValueError, match=r"^cache_index"):
        case.indexer(*case.inputs[:-1], case.slots + 20, case.keys)
    assert case.keys.k._version == case.keys.k_scale._version == version + 1
    grown = case.inputs[0].detach().clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^x: expected a tensor that needs no gradient"):
        case.indexer(grown, *case.inputs[1:], case.keys)
    query = case.out.query_nope.detach().clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^query_nope: expected a tensor that needs no gradient"):
        sparse_attention(
            case.out._replace(query_nope=query), case.cache, None, case.table, case.act_seq, softmax_scale=SCALE
        )


def test_a_meta_tensor_among_others(case):
    wanted = case.indexer(*case.inputs, case.keys)
    index = lightning_index(wanted, case.keys, case.table, case.act_seq, K)
    said = "expected a tensor on the CPU, as others are, got one on meta"
    with pytest.raises(ValueError, match=f"^q_norm: {said}"):
        case.indexer(case.x, case.inputs[1].to("meta"), *case.inputs[2:], case.keys)
    with pytest.raises(ValueError, match=f"^block_table: {said}"):
        lightning_index(wanted, case.keys, case.table.to("meta"), case.act_seq, K)
    with pytest.raises(ValueError, match=f"^index: {said}"):
        sparse_attention(case.out, case.cache, index.to("meta"), case.table, case.act_seq, softmax_scale=SCALE)


def test_copies_share_the_weights(case):
    want = case.indexer(*case.inputs, case.keys)
    for made in (copy.deepcopy(case.indexer), pickle.loads(pickle.dumps(case.indexer))):
        got = made(*case.inputs, case.keys)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert copy.deepcopy(case.indexer).prolog is case.indexer.prolog
    with pytest.raises(AttributeError, match="prolog: expected to stay"):
        case.indexer.prolog = None


def test_wrong_arguments_by_name(case):
    wanted = case.indexer(*case.inputs, case.keys)
    rest = case.table, case.act_seq
    with pytest.raises(TypeError, match="source: expected IndexerProlog, IndexerWeights or PackedIndexer, got int"):
        TorchIndexer(3)
    with pytest.raises(TypeError, match="out: expected TorchIndexerOutput, got tuple"):
        lightning_index(tuple(wanted), case.keys, *rest)
    with pytest.raises(TypeError, match="block_table: expected a tensor, got list"):
        lightning_index(wanted, case.keys, [[0]], case.act_seq)
    with pytest.raises(ValueError, match="k: expected"):
        lightning_index(wanted, case.keys, *rest, 0)
    with pytest.raises(TypeError, match="cache: expected TorchCache, got TorchIndexerCache"):
        sparse_attention(case.out, case.keys, None, *rest, softmax_scale=SCALE)
    with pytest.raises(TypeError, match="out: expected TorchOutput, got TorchIndexerOutput"):
        sparse_attention(wanted, case.cache, None, *rest, softmax_scale=SCALE)
    with pytest.raises(TypeError, match="q_norm: expected a tensor, got NoneType"):
        case.indexer(case.x, None, *case.inputs[2:], case.keys)
    with pytest.raises(ValueError, match="handle: expected that of an IndexerProlog, got that of MlaProlog"):
        operators.indexer_prolog(case.prolog._handle, *case.inputs, *case.keys, 4)
    with pytest.raises(ValueError, match="handle: expected that of an MlaProlog or a ShardedProlog"):
        torch.ops.mla_numba.mla_prolog(case.indexer._handle, case.x, case.cos, case.sin, case.slots, *case.cache, 3, 64)
    assert repr(case.keys).startswith("<TorchIndexerCache: PA_BSND, k (5, 4, 1, 32) int8")
    assert "H=128" in repr(case.indexer)


NO_TENSORS = {"an array": np.zeros(3), "a list": [1, 2], "a number": 3, "a string": "x"}


@pytest.mark.parametrize("what", NO_TENSORS)
def test_what_is_no_tensor_is_refused_by_our_names(case, what):
    """In fields of the tuples, too: an error of torch's dispatcher would name no argument of the caller."""
    value, kind = NO_TENSORS[what], type(NO_TENSORS[what]).__name__
    wanted = case.indexer(*case.inputs, case.keys)
    pages = case.table, case.act_seq
    beside = TorchProlog(make_weights(DIMS, "b"), indexer=mla.IndexerWeights.random(DIMS, n_heads=4, head_dim=32))
    call, out = (case.x, case.cos, case.sin, case.slots), beside.allocate_output(T)

    def prolog(cache=case.cache, **keywords):
        return case.prolog(*call, cache, **keywords)

    def both(**keywords):
        return beside(*call, case.cache, **{"indexer_cache": case.keys} | keywords)

    def attend(*arguments, **keywords):
        return sparse_attention(*arguments, softmax_scale=SCALE, **keywords)

    of_index = out.indexer
    wrong = [
        (f"{name}", lambda name=name: lightning_index(wanted._replace(**{name: value}), case.keys, *pages))
        for name in wanted._fields
    ]
    for name, field in (("kv_cache", "kv"), ("kr_cache", "kr"), ("k_scale_cache", "k_scale")):
        wrong.append((name, lambda field=field: prolog(case.cache._replace(**{field: value}))))
        wrong.append((name, lambda field=field: attend(case.out, case.cache._replace(**{field: value}), None, *pages)))
    for name, field in (("k_cache", "k"), ("k_scale_cache", "k_scale")):
        wrong.append((name, lambda field=field: both(indexer_cache=case.keys._replace(**{field: value}))))
        wrong.append((name, lambda field=field: lightning_index(wanted, case.keys._replace(**{field: value}), *pages)))
        wrong.append((name, lambda field=field: case.indexer(*case.inputs, case.keys._replace(**{field: value}))))
    for name in out._fields[:4]:
        plain = case.prolog.allocate_output(T)
        wrong.append((f"out.{name}", lambda name=name, plain=plain: prolog(out=plain._replace(**{name: value}))))
        wrong.append((f"out.{name}", lambda name=name: both(out=out._replace(**{name: value}))))
    for name in of_index._fields:
        given = out._replace(indexer=of_index._replace(**{name: value}))
        wrong.append((f"out.indexer.{name}", lambda given=given: both(out=given)))
    wrong += [
        ("index", lambda: attend(case.out, case.cache, value, *pages)),
        ("query_start_loc", lambda: attend(case.out, case.cache, None, *pages, query_start_loc=value)),
        ("query_start_loc", lambda: lightning_index(wanted, case.keys, *pages, query_start_loc=value)),
    ]
    for name, run in wrong:
        with pytest.raises(TypeError) as caught:
            run()
        assert str(caught.value) == f"{name}: expected a tensor, got {kind}"


def test_numbers_and_modes_that_no_operator_takes(case):
    wanted = case.indexer(*case.inputs, case.keys)
    pages = case.table, case.act_seq
    for k in (4.0, True, None, "4"):
        with pytest.raises(TypeError, match=f"^k: expected int, got {type(k).__name__}"):
            lightning_index(wanted, case.keys, *pages, k)
    for k in (0, -1, 4097, 10**30, 2**63):
        with pytest.raises(ValueError, match=r"^k: expected at (least 1|most 4096), got "):
            lightning_index(wanted, case.keys, *pages, k)
    want = lightning_index(wanted, case.keys, *pages, 4)
    assert torch.equal(lightning_index(wanted, case.keys, *pages, np.int64(4)), want)
    for scale in (None, "1", 1j, True):
        with pytest.raises(TypeError, match=f"^softmax_scale: expected a number, got {type(scale).__name__}"):
            sparse_attention(case.out, case.cache, None, *pages, softmax_scale=scale)
    for scale in (10**400, 1e39, np.nan):
        with pytest.raises(ValueError, match=r"^softmax_scale: expected a number that "):
            sparse_attention(case.out, case.cache, None, *pages, softmax_scale=scale)
    for mode in (None, 1):
        with pytest.raises(TypeError, match=f"^cache_mode: expected str, got {type(mode).__name__}"):
            lightning_index(wanted, case.keys._replace(cache_mode=mode), *pages)
        with pytest.raises(TypeError, match=f"^cache_mode: expected str, got {type(mode).__name__}"):
            sparse_attention(case.out, case.cache._replace(cache_mode=mode), None, *pages, softmax_scale=SCALE)
    with pytest.raises(ValueError, match=r"^cache_mode: expected one of PA_BSND, PA_NZ, got 'TND'"):
        lightning_index(wanted, case.keys._replace(cache_mode="TND"), *pages)
