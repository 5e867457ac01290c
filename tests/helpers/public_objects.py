"""An object of every public class."""

import importlib
import inspect
from dataclasses import replace

import numpy as np

import mla_numba as mla
import tiling
from mla_numba import dump_names, dumps, layouts, verify
from mla_numba.call.planning import this_machine
from mla_numba.inputs import random_inputs
from mla_numba.reference import indexer_prolog_reference
from mla_numba.tolerance import IndexAgreement, compare_within

from .checkpoint_maker import make_checkpoint
from .machines import CLUSTER

MODULES = (
    "mla_numba", "tiling", "mla_numba.dump_names", "mla_numba.dumps", "mla_numba.inputs", "mla_numba.layouts",
    "mla_numba.reference", "mla_numba.rope_table", "mla_numba.tolerance", "mla_numba.verify",
)  # fmt: skip
DIMS = mla.MlaDims(256, 4, 96, 64, 32, 32)
WRONG_LIST = IndexAgreement(2, 1, 0, 0, 1, 1, "expected each position once, got 0 again")


def public_classes(modules=MODULES):
    """The classes that public modules name, without types of others and collections of names."""
    found = {}
    for name in modules:
        module = importlib.import_module(name)
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.isclass(value) and value.__module__.split(".")[0] in ("mla_numba", "tiling"):
                found[value] = public
    return sorted(found, key=found.get)


def make_objects(folder):
    """One object of each public class, in a list; `folder` is for a checkpoint and a dump."""
    weights = mla.MlaWeights.random(DIMS)
    prolog = mla.MlaProlog(weights)
    cache = mla.PagedCache.allocate(DIMS, 2, 16)
    inputs = random_inputs(DIMS, 3, 0, cache.capacity)
    out, trace = prolog.profile(*inputs, cache)
    make_checkpoint(folder / "model", DIMS)
    checkpoint = mla.Checkpoint(folder / "model")
    settings = dumps.DumpSettings(dims=DIMS, block_size=16)
    dumps.write_dump(folder / "dump", 3, settings=settings)
    dump = dumps.read_dump(folder / "dump")
    got = dump.outputs[0].array
    table = mla.RopeTable((10000 ** -np.arange(0, 1, 1 / 16)).astype(np.float32))
    plan = prolog.plan(40)
    tile = plan.tile_plans[0]
    rows = [np.zeros((3, 512), np.int8), np.zeros((3, 4), np.float32), np.zeros((3, 64), cache.kr.dtype)]
    indexer = mla.IndexerWeights.random(DIMS, n_heads=4, head_dim=32)
    keys = mla.IndexerCache.allocate(indexer.dims, 2, 16)
    indexer_reference = indexer_prolog_reference(
        indexer, inputs.x, out.q_norm, out.q_norm_scale, inputs.cos, inputs.sin, inputs.cache_index, keys
    )
    alone = mla.IndexerProlog(indexer)
    index_plan = alone.plan(40)
    beside = mla.MlaProlog(weights, indexer=indexer).allocate_output(3)
    for array in (*beside, *beside.indexer):
        array.view(np.uint8)[...] = 1
    return [
        CLUSTER, CLUSTER.node_link,
        weights, weights.pack(), prolog, cache, inputs, out, trace, checkpoint, dump, DIMS, table, plan, tile,
        prolog.bind(*inputs, cache), cache.gather(inputs.cache_index), checkpoint.load_layer(0), weights.quantization,
        weights.quantization.errors["w_uq_qr"], mla.MlaQuantInputs(dequant_scale_w_uq_qr=np.ones(256, np.float32)),
        mla.preset("decode_b64_s2"), mla.pass_options("prefill", 8), mla.CpuTiling(down_mc=4, unroll_list=(8, 1)),
        tiling.ROPE_TILES, tile.down, tile.rows, tile.heads, tile.down.qa, tile.down.qa.micro, tile.down.qa.work,
        tiling.CubeTile(16, 16, 256, 256, 128, 128), replace(this_machine(), name="a CPU"), plan.costs, plan.dims,
        tiling.Rates(1e10, 1e12, 1e12), layouts.RecordFields(*rows), settings, dump.outputs[0],
        table.at(np.arange(3)), dump.reference(), dump_names.FileMeaning("token_x"),
        verify.compare_bits("q_norm", got, got + np.int8(1)), compare_within("q_norm_out", got, got),
        compare_within("q_norm_out", got, got).tolerance, mla.HeadShard(1, 2, 4), indexer,
        indexer.dims, keys, mla.IndexerOutput(*indexer_reference[:3]), indexer_reference, indexer.pack(), alone,
        index_plan, index_plan.dims, index_plan.tile_plans[0], beside,
        WRONG_LIST, dumps.ListsAgreement("topk_res", "topk_res.npy", 8, None, WRONG_LIST, False),
    ]  # fmt: skip
