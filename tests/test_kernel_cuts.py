"""The kernels' own cut of rows, columns and k: each element of a result is stored once, in the plan's blocks."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mla_numba import MlaDims
from mla_numba.call.workspace import cuts_of
from mla_numba.kernels import ISA, ISAS
from mla_numba.kernels.micro.operands import A, C, Y
from mla_numba.kernels.micro.ukernel import A_BF16_DTYPE
from mla_numba.kernels.sweeps import gemm, heads
from mla_numba.kernels.sweeps import rows as row_sweep
from mla_numba.kernels.sweeps.arguments import Activations, HeadsCut, PairCut, Weight
from mla_numba.kernels.sweeps.phase import DOWN, NO_LAPS
from mla_numba.kernels.threads.tasks import block_of
from tiling import Machine, MicroTile, ceil_div, chunks, plan_prolog, round_up

MR, NR, KR = ISA.mr, ISA.nr, ISA.kr_bf16
T = (1, MR, 2 * MR + 1)
NO_SCALES, NO_OFFSETS = np.zeros(0, np.float32), np.zeros(0, np.int32)


class Stores:
    """Stands in for what stores: counts, by element of an array, how often it is."""

    def __init__(self, *arrays):
        self.arrays = arrays
        self.counts = [np.zeros(array.size, int) for array in arrays]

    def add(self, y, rows, n_cols):
        pairs = zip(self.arrays, self.counts, strict=True)
        ((array, count),) = ((a, c) for a, c in pairs if np.shares_memory(a, y.values))
        begin, start = (a.__array_interface__["data"][0] for a in (array, y.values))  # y's values may be a window
        at = y.at + (start - begin) // array.itemsize
        for i in range(rows):
            here = count[at + i * y.step : at + i * y.step + n_cols]
            assert len(here) == n_cols
            here += 1

    def block(self, a, rows, walk, depth, c, no_subnormals, y, n_cols):
        if n_cols:
            assert 0 < n_cols <= walk.n * NR
            self.add(y, rows, n_cols)

    def split(self, c, second_at, rows, walk, n_cols, y):
        self.add(y, rows, n_cols)


def weight(n_parts=1):
    return Weight(np.zeros(0, np.uint16), NO_OFFSETS, NO_SCALES, kp=4 * KR, n_parts=n_parts, min_magnitude=0)


def activations(t):
    return Activations(np.zeros((t, 4 * KR), A_BF16_DTYPE), NO_SCALES, np.zeros(t, np.int32))


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize(("n0", "n1"), [(1, 1), (NR, 0), (2 * NR + 3, NR - 1), (5 * NR, 3 * NR + 1)])
def test_two_products_store_each_element_once(n0, n1, n_parts, monkeypatch):
    for t, mc, walk0, walk1 in product(T, (1, MR, 3 * MR), (1, 2, 9), (1, 2)):
        y0, y1 = np.zeros((t, n0), np.uint16), np.zeros((t, n1), np.uint16)
        stores = Stores(y0, y1) if n1 else Stores(y0)
        monkeypatch.setattr(gemm, "multiply_block", stores.block)
        monkeypatch.setattr(gemm, "_store_split", stores.split)
        cut = PairCut(mc, KR, walk0, walk1, grain=1)
        pair = gemm.Pair(activations(t), weight(n_parts), y0, y1, np.zeros((1, 0), np.float32), cut)
        n_tasks = gemm.pair_tasks(DOWN, pair).n
        for task in range(n_tasks):
            gemm.pair_task(task, n_tasks, 0, pair)
        assert all((count == 1).all() for count in stores.counts)


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("legs", [1, 2, 3, 5])
def test_legs_take_a_walks_k_one_after_the_other(legs, n_parts, monkeypatch):
    """Each relay's legs meet k in order, go on with its sums, and only its last leg stores; of 4 steps 5 legs have one
    without any.
    """
    met, stored = {}, []

    def multiply(a, rows, walk, depth, c, no_subnormals, y, n_cols):
        assert depth.begin < depth.end
        relay = (c.sums.__array_interface__["data"][0] - sums.__array_interface__["data"][0]) // sums.strides[0]
        assert relay == (task % n_relays if legs > 1 else 0)
        met.setdefault((a.at, walk.first), []).append((depth.begin, depth.end, c.at, c.carry))
        stored.extend([(task, a.at, walk.first)] if n_cols else [])

    monkeypatch.setattr(gemm, "multiply_block", multiply)
    monkeypatch.setattr(gemm, "_store_split", lambda *args: stored.append((task, None, None)))
    t, n0, n1, mc = 2 * MR + 1, 3 * NR - 1, NR, MR
    y0, y1 = np.zeros((t, n0), np.uint16), np.zeros((t, n1), np.uint16)
    n_relays = 4 * ceil_div(t, mc)
    sums = np.zeros((n_relays, 2 * mc * NR), np.float32)
    pair = gemm.Pair(activations(t), weight(n_parts), y0, y1, sums, PairCut(mc, KR, 1, 1, 1, legs))
    n_tasks = gemm.pair_tasks(DOWN, pair).n
    assert n_tasks == n_relays * legs
    for task in range(n_tasks):
        gemm.pair_task(task, n_tasks, 0, pair)
    assert [task for task, _, _ in stored] == list(range(n_tasks - n_relays, n_tasks))
    assert len(met) == n_relays
    for (_, first_panel), pieces in met.items():
        assert [begin for begin, _, _, _ in pieces] == [0, *[end for _, end, _, _ in pieces[:-1]]]
        assert pieces[-1][1] == 4 * KR
        half = 2 * KR if n_parts == 2 and first_panel < 3 else 4 * KR
        for begin, end, at, carry in pieces:
            assert begin // half == (end - 1) // half  # the two sums never meet
            assert carry == (begin % half > 0)
            assert (at > 0) == (begin >= half)


@pytest.mark.parametrize(("rope", "nope", "latent"), [(2, 1, 1), (NR, NR, NR), (10, 2 * NR, 3 * NR + 1)])
def test_heads_store_each_element_once(rope, nope, latent, monkeypatch):
    n_heads, t0, width = 2, 3, round_up(rope + nope, NR)
    n_panels = width // NR
    for t, mc, walk, (mc_uk, walk_uk), legs in product(
        T, (1, MR, 3 * MR), (1, 9), ((1, 1), (MR, 2), (99, 9)), sorted({1, 2, n_panels + 1})
    ):
        if legs > 1 and mc_uk != MR:
            continue
        query_nope = np.zeros((t0 + t, n_heads, latent), np.uint16)
        query_rope = np.zeros((t0 + t, n_heads, rope), np.uint16)
        n_blocks = ceil_div(t, mc)
        n_relays = n_heads * n_blocks
        q_head = np.zeros((n_relays if legs > 1 else 1, mc, width + 1), A_BF16_DTYPE)
        cut = HeadsCut(mc, KR, walk, mc_uk, KR, walk_uk, 1, legs, max(1, n_panels // max(legs - 1, 1)))
        table = np.zeros((t0 + t, rope), np.uint16)
        stores = Stores(query_nope, q_head)
        monkeypatch.setattr(heads, "multiply_block", stores.block)
        work = heads.Heads(
            activations(t), weight(), weight(), table, table, query_nope, query_rope, *np.zeros((2, 1, 0), np.float32),
            q_head, np.zeros((1, rope), np.float32), cut, nope, t0, t,
            NO_LAPS,
        )  # fmt: skip
        for task in range(n_relays * legs):
            heads.head_task(task, n_relays * legs, 0, work)
            if task < n_relays * (legs - 1):
                assert not stores.counts[0].any()  # the last leg alone has a whole query
                continue
            relay = task % n_relays
            _, rows = block_of(t, n_blocks, relay % n_blocks)
            of_q = stores.counts[1].reshape(q_head.shape)[relay if legs > 1 else 0]
            assert (of_q[:rows, :width] == 1).all()
            assert of_q.sum() == rows * width
            of_q[...] = 0
        assert (stores.counts[0].reshape(query_nope.shape)[t0:] == 1).all()
        assert not stores.counts[0].reshape(query_nope.shape)[:t0].any()


@pytest.mark.parametrize("n_cols", [0, 1, NR, 2 * NR - 1, 3 * NR])
def test_a_block_multiplies_each_register_tile_once_for_each_block_of_k_and_stores_it_once(n_cols, monkeypatch):
    for rows, n_steps, kc in product(T, (1, 4, 5), (1, 2, 5)):
        values = np.zeros((rows, 3 * NR + 1), np.uint16)
        stores, multiplied = Stores(values), []

        def multiply(mr, k, a, b, c, no_subnormals, made=multiplied):
            made.append((a.at, b.at, c.at, mr, k, c.carry))

        def multiply_and_store(*args, stored=stores, multiply=multiply):
            multiply(*args[:-1])
            stored.add(args[-1], args[0], NR)

        def multiply_two(mr, k, a, b, c, no_subnormals, second, multiply=multiply):
            multiply(mr, k, a, b, c, no_subnormals)
            b, c = b._replace(at=b.at + second.panel), c._replace(at=c.at + second.sums)
            multiply(mr, k, a, b, c, no_subnormals)

        def multiply_two_and_store(*args, stored=stores, multiply_two=multiply_two):
            multiply_two(*args[:-2], args[-1])
            stored.add(args[-2], args[0], 2 * NR)

        monkeypatch.setattr(gemm, "ukernel_two", multiply_two)
        monkeypatch.setattr(gemm, "ukernel_two_store", multiply_two_and_store)
        monkeypatch.setattr(gemm, "ukernel", multiply)
        monkeypatch.setattr(gemm, "ukernel_store", multiply_and_store)
        monkeypatch.setattr(gemm, "store_tile", lambda mr, n, c, y, stored=stores: stored.add(y, mr, min(n, NR)))
        k, lda = n_steps * KR, 7 * KR
        walk = gemm.Walk(np.zeros(0, np.uint16), k, 2, 3, 3)
        y = Y(values, 0, values.shape[1], NO_SCALES, 0, NO_SCALES, NO_OFFSETS, 0)
        a, c = A(np.zeros(0, A_BF16_DTYPE), 0, lda), C(NO_SCALES, 0, False)
        gemm.multiply_block(a, rows, walk, gemm.Depth(0, k, kc * KR), c, True, y, n_cols)
        met = np.zeros((rows, 3, n_steps), int)
        for a_at, b_at, c_at, mr, k_cur, carry in multiplied:
            row, ks = divmod(a_at, lda)
            panel, k_in_panel = divmod(b_at // NR, k)
            assert 1 <= mr <= MR
            assert (k_in_panel, c_at, carry) == (ks, ((panel - 2) * rows + row) * NR, ks > 0)
            met[row : row + mr, panel - 2, ks // KR : (ks + k_cur) // KR] += 1
        assert (met == 1).all()
        stored = stores.counts[0].reshape(values.shape)
        assert (stored[:, :n_cols] == 1).all()
        assert not stored[:, n_cols:].any()


@pytest.mark.parametrize(("mr", "few"), [(6, 3), (6, 0), (12, 0), (8, 4), (4, 1)])
def test_register_tiles_meet_each_row_once_and_the_plan_knows_which_take_two_panels(mr, few, monkeypatch):
    monkeypatch.setattr(gemm, "MR", mr)
    micro = MicroTile(mr, 16, 2, 4, few)
    for rows in range(1, 6 * mr):
        n_tiles = ceil_div(rows, mr)
        tiles = [gemm._tile_of(rows, n_tiles, i, few) for i in range(n_tiles)]
        met = [row for first, n in tiles for row in range(first, first + n)]
        assert met == list(range(rows))
        sizes = [n for _, n in tiles]
        assert max(sizes) <= mr
        assert micro.has_two_panels(rows) == any(n <= few for n in sizes)
        if not few or sizes[-1] != few:
            assert max(sizes) - min(sizes) <= 1
    assert not micro.has_two_panels(0)


@pytest.mark.parametrize(
    ("rows", "kp", "n", "few", "k_ahead"),
    [
        (1, 4096, 2, 3, 256),
        (3, 4096, 2, 3, 256),
        (1, 4096, 1, 0, 256),
        (1, 128, 8, 0, 256),  # short ones one by one
        (2, 128, 8, 3, 256),  # a pair ahead
        (3, 32, 8, 3, 64),
    ],
)
def test_few_rows_are_fetched_what_they_take_next(rows, kp, n, few, k_ahead, monkeypatch):
    """Of bf16 on AVX2; distances are in steps of k of a panel."""
    monkeypatch.setattr(gemm, "NR", 16)
    monkeypatch.setattr(gemm, "_FEW_ROWS", 3)
    monkeypatch.setattr(gemm, "rows_of_two", lambda panels: ISAS["avx2"].bf16.two_panels)
    walk = gemm.Walk(np.zeros(0, np.uint16), kp, 0, n, n)
    assert gemm._rows_of_two_in(walk, rows) == few
    ahead, _, locality = gemm._what_to_prefetch(walk, 0, kp, 0, rows, rows)
    assert (ahead, locality) == (k_ahead * 16, gemm.ONCE)


def test_eight_rows_of_avx2_are_five_and_three(monkeypatch):
    """Four rows of two vectors are fewer sums than hide a multiply-add's latency."""
    monkeypatch.setattr(gemm, "MR", ISAS["avx2"].mr)
    few = ISAS["avx2"].bf16.two_panels
    assert [gemm._tile_of(8, 2, i, few) for i in range(2)] == [(0, 5), (5, 3)]
    assert [gemm._tile_of(13, 3, i, few)[1] for i in range(3)] == [5, 5, 3]
    assert [gemm._tile_of(8, 2, i, ISAS["avx2"].int8.two_panels)[1] for i in range(2)] == [4, 4]


class Blocks:
    """Stands in for `multiply_block`: the output blocks (array, rows, columns) that it is asked for, and the sums."""

    def __init__(self):
        self.stored, self.n_sums = [], 0

    def block(self, a, rows, walk, depth, c, no_subnormals, y, n_cols):
        self.n_sums = max(self.n_sums, c.at + rows * walk.n * gemm.NR)
        if n_cols:
            self.add(y, rows, n_cols)

    def split(self, c, second_at, rows, walk, n_cols, y):
        self.add(y, rows, n_cols)

    def add(self, y, rows, n_cols):
        row, column = divmod(y.at, y.step)
        self.stored.append((y.values, row, row + rows, column, column + n_cols))

    def of(self, array):
        return [tuple(block) for values, *block in self.stored if values is array]


def blocks_of(gemm):
    """Output block (m0, m1, n0, n1) of each task of a plan; row blocks innermost, so that neighbours share panels."""
    nr = gemm.micro.nr
    walks, row_blocks = chunks(gemm.n_panels, gemm.n_walks), chunks(gemm.m, gemm.n_row_blocks)
    return [(m0, m1, p0 * nr, min(p1 * nr, gemm.n)) for p0, p1 in walks for m0, m1 in row_blocks]


def assert_each_element_once(blocks, shape):
    counts = np.zeros(shape, int)
    for m0, m1, n0, n1 in blocks:
        counts[m0:m1, n0:n1] += 1
    assert (counts == 1).all()


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_kernels_cut_as_the_plan_says(isa, monkeypatch):
    """With the register tile of every instruction set, the tasks and their blocks in the plan's order."""
    for module in (gemm, heads):
        monkeypatch.setattr(module, "NR", isa.nr)
    micro = {
        "bf16": MicroTile(isa.mr, isa.nr, isa.kr_bf16, isa.a_bf16_bytes),
        "int8": MicroTile(isa.mr, isa.nr, isa.kr_int8, isa.a_int8_bytes),
    }
    dims, machine = MlaDims(64, 3, 5 * isa.nr + 1, 2 * isa.nr + 4, 33, 34), replace(Machine.detect(), isa=isa.name)
    for t, quant in product((1, isa.mr, isa.mr + 1, 5 * isa.mr), ("none", "b")):
        plan = plan_prolog(dims, t, None, machine, micro=micro, quant=quant, n_threads=3)
        (tile,) = plan.tile_plans
        qa, qb, kva, wuk = tile.gemms
        cuts, blocks = cuts_of(tile), Blocks()
        for module in (gemm, heads):
            monkeypatch.setattr(module, "multiply_block", blocks.block)
        monkeypatch.setattr(gemm, "_store_split", blocks.split)
        y0, y1 = np.zeros((t, qa.n), np.uint16), np.zeros((t, kva.n), np.uint16)
        pair = gemm.Pair(activations(t), weight(qa.k_parts), y0, y1, np.zeros((1, 0), np.float32), cuts.down)
        n_tasks = gemm.pair_tasks(DOWN, pair).n
        assert n_tasks == tile.down.n_tasks
        for task in range(n_tasks):
            gemm.pair_task(task, n_tasks, 0, pair)
        assert blocks.of(y0) == blocks_of(qa)
        assert blocks.of(y1) == blocks_of(kva)
        assert_each_element_once(blocks.of(y0), y0.shape)
        assert_each_element_once(blocks.of(y1), y1.shape)
        nope, rope = dims.qk_nope_head_dim, dims.qk_rope_head_dim
        query_nope, query_rope = np.zeros((t, 3, wuk.n), np.uint16), np.zeros((t, 3, rope), np.uint16)
        table, scratch = np.zeros((t, rope), np.uint16), np.zeros((2, 1, 0), np.float32)
        q_head, y = np.zeros((1, qb.mc, tile.heads.ldq), A_BF16_DTYPE), np.zeros((1, rope), np.float32)
        work = heads.Heads(
            activations(t), weight(), weight(), table, table, query_nope, query_rope, *scratch, q_head, y, cuts.heads,
            nope, 0, t, NO_LAPS,
        )  # fmt: skip
        for task, (head, (m0, m1)) in enumerate(product(range(3), chunks(t, qb.n_row_blocks))):
            blocks.stored.clear()
            heads.head_task(task, tile.heads.n_tasks, 0, work)
            rows = set()
            for values, begin, end, at, _ in blocks.stored:
                if values is query_nope:  # its rows are those of one head, n_heads * C apart
                    assert at // wuk.n == head
                    rows.add((begin, end))
            assert rows == {(m0 + a, m0 + b) for a, b in chunks(m1 - m0, ceil_div(m1 - m0, wuk.mc))}
        assert task + 1 == tile.heads.n_tasks
        assert blocks.n_sums * 4 <= tile.worker_workspace["c"]


X, SCRATCH, SLOTS = np.zeros((max(T) + 3, 0), np.uint16), np.zeros((1, 0), np.float32), np.arange(max(T) + 3)
ROW_TASKS = {
    "operand_row": (row_sweep._pack_task, lambda t: (X, activations(t), 0, 1, False, SCRATCH, 3, t)),
    "query_row": (
        row_sweep._query_task,
        lambda t: (X, None, False, X, NO_SCALES, activations(t), 0, SCRATCH, 3, t),
    ),
    "key_row": (row_sweep._key_task, lambda t: (X, None, False, X, X, SLOTS, None, SCRATCH, 3, t)),
}
ROW_WORK = {"operand_row": row_sweep.PackRows, "query_row": row_sweep.QueryRows, "key_row": row_sweep.KeyRows}


@pytest.mark.parametrize("name", ROW_TASKS)
def test_row_tasks_meet_each_row_once(name, monkeypatch):
    run, fields = ROW_TASKS[name]
    for t, most in product(T, (1, 3, MR, 99)):
        met = []

        def meet(*args, met=met):
            met.append(args[-1] if name == "operand_row" else args[1])
            return 0

        monkeypatch.setattr(row_sweep, name, meet)
        n_tasks = ceil_div(t, most)
        for task in range(n_tasks):
            before = len(met)
            run(task, n_tasks, 0, ROW_WORK[name](*fields(t)))
            assert 0 < len(met) - before <= most
        assert met == list(range(t))
