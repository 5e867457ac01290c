"""A layer shared by heads among ranks, over MPI and over PyTorch: the single process's bits, and errors that end."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers import MODES, SCRIPTS, assert_same_bits, make_weights

from mla_numba import HeadShard, IndexerWeights, MlaDims, MlaProlog
from mla_numba.call.workspace import Memory
from mla_numba.distributed import ShardedProlog
from mla_numba.distributed.communicator import all_gather_facts, as_communicator
from mla_numba.distributed.down_share import DownShare, cuts_of_share
from mla_numba.distributed.ways import Link, RankRates, down_work, measure_link, way_of
from mla_numba.kernels import ISA
from tiling import CpuTiling, ceil_div

SCRIPT = str(SCRIPTS / "shards_script.py")
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
SECONDS = 240  # far more than any takes; what hangs is found by it
LAUNCHERS = {
    "mpi": lambda size: [MPIEXEC, "-n", str(size), sys.executable, "-m", "mpi4py"],
    "gloo": lambda size: [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"],
}
MISSING = {
    "mpi": None if MPIEXEC and find_spec("mpi4py") else "mpi4py and an MPI library are not installed",
    "gloo": None if find_spec("torch") else "torch is not installed",
}
DIMS = MlaDims(130, 7, 50, 68, 33, 34)


def launch(kind, size, what):
    """The script on `size` ranks."""
    if MISSING[kind]:
        pytest.skip(MISSING[kind])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [*LAUNCHERS[kind](size), SCRIPT, kind, what]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)


def succeed(kind, size, what, said):
    done = launch(kind, size, what)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(said) == size, done.stdout


class OneRank:
    """A communicator of one."""

    rank, size = 0, 1

    def all_gather(self, part, n_bytes):
        assert list(n_bytes) == [len(part)]
        return part.copy()


@pytest.mark.parametrize(("kind", "size"), [*(("mpi", n) for n in (1, 2, 3, 5)), *(("gloo", n) for n in (1, 2, 3))])
def test_all_modes_are_exact(kind, size):
    succeed(kind, size, "exact", "74 calls are exact")


def test_modules_of_a_process_group_are_exact():
    succeed("gloo", 2, "torch_module", "modules are exact")


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_ranks_choose_alike(kind):
    succeed(kind, 2, "chosen", "replicated")


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_ranks_that_do_not_fit_each_other_are_refused_on_each(kind):
    succeed(kind, 2, "refused", "all refused")


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_rank_that_raises_ends_the_job_with_its_own_error(kind):
    done = launch(kind, 2, "fails")
    assert done.returncode != 0
    assert "ValueError: x: expected shape (any, 130), got (4, 129)" in done.stderr, done.stderr


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_rank_that_is_killed_ends_the_job(kind):
    done = launch(kind, 2, "killed")
    assert done.returncode != 0
    assert "signal 9" in (done.stdout + done.stderr).lower(), done.stdout + done.stderr


def test_an_indexer_is_refused_with_what_to_do():
    """Of one rank, or of many: the ranks share the heads of the prolog alone."""

    class Alone:
        rank, size = 0, 1

        def all_gather(self, part, n_bytes):
            return part

    indexer = IndexerWeights.random(DIMS, n_heads=2, head_dim=64)
    with pytest.raises(TypeError, match=r"^indexer: expected none, .* an IndexerProlog beside it, which reads q_norm"):
        ShardedProlog(make_weights(DIMS, "b"), Alone(), indexer=indexer)


class TestShards:
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
    @pytest.mark.parametrize("mode", ["none", "b smooth"])
    def test_cover_the_heads(self, mode, size):
        whole = make_weights(DIMS, mode)
        shards = [whole.shard(rank, size) for rank in range(size)]
        assert [head for shard in shards for head in shard.head_shard.heads] == list(range(7))
        assert_same_bits("w_uk", np.concatenate([shard.w_uk for shard in shards]), whole.w_uk)
        assert_same_bits("w_uq_qr", np.concatenate([shard.w_uq_qr for shard in shards], axis=1), whole.w_uq_qr)
        assert all(shard.w_dq is whole.w_dq for shard in shards)
        if mode != "none":
            scales = np.concatenate([shard.dequant_scale_w_uq_qr for shard in shards])
            assert_same_bits("scale", scales, whole.dequant_scale_w_uq_qr)

    @pytest.mark.parametrize("mode", ["none", "b"])
    def test_of_packed_weights_are_the_packed_shards(self, mode, tmp_path):
        whole = make_weights(DIMS, mode)
        for rank in range(3):
            viewed, packed = whole.pack().shard(rank, 3), whole.shard(rank, 3).pack()
            for name in ("up", "uk", "down"):
                for part in ("panels", "offset", "col_scale"):
                    assert_same_bits(f"{name}.{part}", *(getattr(getattr(w, name), part) for w in (viewed, packed)))
            viewed.save(tmp_path / "shard")
            assert type(viewed).load(tmp_path / "shard").head_shard == packed.head_shard == HeadShard(rank, 3, 7)

    def test_bytes_of_a_rank(self):
        """The heads are divided, the down-projection is not."""
        packed = make_weights(DIMS, "b").pack()
        shards = [packed.shard(rank, 3) for rank in range(3)]
        assert sum(shard.nbytes - shard.down.nbytes for shard in shards) == packed.nbytes - packed.down.nbytes

    @pytest.mark.parametrize(
        ("rank", "size", "text"),
        [
            (0, 8, r"size: expected at most 7 ranks, one for each head, got 8"),
            (3, 3, r"rank: expected at most 2, got 3"),
            (-1, 3, r"rank: expected at least 0, got -1"),
            (0, 0, r"size: expected at least 1, got 0"),
        ],
    )
    def test_that_cannot_be(self, rank, size, text):
        weights = make_weights(DIMS, "b")
        for given in (weights, weights.pack()):
            with pytest.raises(ValueError, match=text):
                given.shard(rank, size)

    def test_of_a_shard(self):
        shard = make_weights(DIMS, "b").shard(1, 2)
        for given in (shard, shard.pack()):
            with pytest.raises(ValueError, match=r"^shard: expected the weights of all heads, got heads 4 to 6 of 7"):
                given.shard(0, 2)

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
    def test_columns_of_the_down_projection(self, size):
        share = DownShare(DIMS, size)
        columns = [share.columns(rank) for rank in range(size)]
        assert [c for each in columns for c in each.q_a] == list(range(50))
        assert [c for each in columns for c in each.kv_a] == list(range(102))
        assert [share.panels(rank) for rank in range(size)][-1].stop == share.n_panels
        assert share.n_panels == ceil_div(50, ISA.nr) + ceil_div(102, ISA.nr)
        q_a, kv_a = (np.arange(3 * n, dtype=np.uint16).reshape(3, n) for n in (50, 102))
        parts = [whole[:, c.start : c.stop] for each in columns for whole, c in zip((q_a, kv_a), each, strict=True)]
        sent = np.concatenate([part.reshape(-1) for part in parts])
        assert sent.nbytes == sum(share.n_bytes(3))
        got = share.assemble(sent.view(np.uint8), 3)
        assert_same_bits("q_a", got[0], q_a)
        assert_same_bits("kv_a", got[1], kv_a)

    @pytest.mark.parametrize("size", [2, 3, 5])
    @pytest.mark.parametrize("down_walk", [1, 2, 3, 16])
    def test_relays_of_a_share_have_room_for_their_sums(self, size, down_walk):
        dims = MlaDims(130, 7, 11 * ISA.nr, 8 * ISA.nr, 33, 34)
        tiling = CpuTiling(down_legs=2, down_walk=down_walk)
        prolog = MlaProlog(make_weights(dims, "none"), n_threads=1, tile_config=tiling)
        tile = prolog.plan(3).tile_plan(3)
        cuts, buffers, _ = Memory(prolog.plan(3)).prepare(tile)
        down = cuts_of_share(cuts, size).down
        assert (cuts.down.legs, len(buffers.c_down)) == (2, tile.down.n_relays)
        for rank in range(size):
            q_a, kv_a = DownShare(dims, size).columns(rank)
            n_walks = ceil_div(ceil_div(len(q_a), ISA.nr), down.walk0) + ceil_div(
                ceil_div(len(kv_a), ISA.nr), down.walk1
            )
            assert n_walks * ceil_div(3, down.mc) <= len(buffers.c_down)


def test_one_rank_of_any_communicator():
    weights = make_weights(DIMS, "b")
    sharded = ShardedProlog(weights, OneRank())
    assert sharded.heads == range(7)
    assert (sharded.rank, sharded.size, sharded.dims) == (0, 1, DIMS)
    assert sharded.plan(8).reason == "one rank computes all"
    assert "rank 0 of 1" in repr(sharded)
    assert measure_link(OneRank()).seconds(1000) == 0
    assert all_gather_facts(OneRank(), {"a": [1, "x"]}) == [{"a": [1, "x"]}]


@pytest.mark.parametrize("comm", [None, 3, "mpi"])
def test_what_is_no_communicator(comm):
    with pytest.raises(TypeError, match=r"^comm: expected a communicator of mpi4py, a process group .*, got "):
        as_communicator(comm)


def test_the_way_is_the_faster_one():
    work = down_work(DIMS, "b", make_weights(DIMS, "b").pack().down.nbytes, 8)
    slow = [RankRates(1e6, 1e6, 1e6)] * 2
    assert way_of(work, [10, 10], slow, Link(1e-6, 1e9))[0] == "split"
    assert way_of(work, [20, 0], slow, Link(1e-6, 1e9))[0] == "replicated"  # one of them has all columns
    way, reason = way_of(work, [10, 10], slow, Link(1e9, 1e9))
    assert way == "replicated"
    assert "exchange" in reason


@pytest.mark.parametrize("mode", MODES)
def test_the_work_to_choose_by_is_that_of_one_tile(mode):
    weights = make_weights(DIMS, mode).pack()
    plan = MlaProlog(weights, n_threads=1).plan(8)
    assert [factor for _, factor in plan.tiles] == [8]
    got, want = down_work(DIMS, weights.quant, weights.down.nbytes, 8), plan.tile_plan(8).sweep_work["down"]
    assert (got.flops, got.int8_ops) == (want.flops, want.int8_ops)
    assert got.total_bytes == pytest.approx(want.total_bytes, rel=0.02)  # bf16 weights have scales that nothing reads
