import random
from dataclasses import FrozenInstanceError, replace

import pytest

from tiling import (
    CubeTile,
    GemmPlan,
    Machine,
    MicroTile,
    MlaTileConfig,
    PassOptions,
    PlanDims,
    PrologPlan,
    Rates,
    RowPlan,
    Work,
    ceil_div,
    least_seconds,
    plan_prolog,
)
from tiling.gemm import row_distance

BF16 = MicroTile(mr=12, nr=32, kr=2, a_bytes=4)
INT8 = MicroTile(mr=8, nr=48, kr=4, a_bytes=1)
MICRO = {"bf16": BF16, "int8": INT8}
SMALL = PlanDims(64, 3, 40, 24, 16, 8)
MACHINE = Machine("made up", "x", "avx512vnni", 48 * 1024, 2**20, 2**25, 8, 4)

GEMM = GemmPlan("Matmul_qa", "bf16", 1, 20, 100, 70, 2, BF16, mc=8, kc=16, nc=32, l1_reuse=2)
PER_HEAD = GemmPlan("QuantMatmul_qb", "int8", 3, 9, 10, 50, 1, INT8, mc=9, kc=12, nc=96, l1_reuse=1)


def test_gemm_numbers_by_hand():
    assert (GEMM.part_kp, GEMM.kp, GEMM.n_panels, GEMM.np_) == (50, 100, 3, 96)
    assert (GEMM.walk, GEMM.n_row_blocks, GEMM.n_walks, GEMM.n_tasks) == (2, 3, 2, 6)
    assert GEMM.weight_bytes == 100 * 96 * 2
    assert GEMM.ops == 2 * 20 * 100 * 70
    assert GEMM.accumulator_bytes == 2 * 8 * 64 * 4
    assert (PER_HEAD.kp, PER_HEAD.n_panels, PER_HEAD.walk, PER_HEAD.n_tasks) == (12, 2, 2, 3)
    assert PER_HEAD.weight_bytes == 3 * 96 * (12 + 8)
    assert PER_HEAD.ops == 2 * 3 * 9 * 10 * 50


def test_each_part_of_k_is_padded():
    gemm = replace(GEMM, k=10, micro=INT8, kc=8, nc=48, dtype="int8")
    assert (gemm.part_kp, gemm.kp) == (8, 16)


def test_gemm_prints_on_one_line():
    assert str(GEMM) == (
        "Matmul_qa bf16 m20 k100 in 2 parts n70: mr12 nr32 kr2, mc8 kc16 nc32, walk 2 of 3 panels, 6 tasks"
    )
    assert str(PER_HEAD) == (
        "QuantMatmul_qb int8 3 x m9 k10 n50: mr8 nr48 kr4, mc9 kc12 nc96, walk 2 of 2 panels, 3 tasks"
    )


def test_gemm_without_rows():
    empty = replace(GEMM, m=0, mc=1)
    assert (empty.n_tasks, empty.ops) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mc": 21}, r"Matmul_qa\.mc: expected at most m = 20, or 1, got 21"),
        ({"m": 0}, r"Matmul_qa\.mc: expected at most m = 0, or 1, got 8"),
        ({"kc": 15}, r"Matmul_qa\.kc: expected a multiple of kr = 2, got 15"),
        ({"kc": 52}, r"Matmul_qa\.kc: expected at most the padded part of k, 50, got 52"),
        ({"nc": 40}, r"Matmul_qa\.nc: expected a multiple of nr = 32, got 40"),
        ({"nc": 128}, r"Matmul_qa\.nc: expected at most the padded n, 96, got 128"),
        ({"k": 101}, r"Matmul_qa\.k: expected a multiple of k_parts = 2, got 101"),
        ({"l1_reuse": 0}, r"Matmul_qa\.l1_reuse: expected at least 1, got 0"),
        ({"dtype": "fp8"}, r"Matmul_qa\.dtype: expected one of bf16, int8, got 'fp8'"),
    ],
)
def test_gemm_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GEMM, **change)


def test_plans_are_frozen():
    with pytest.raises(FrozenInstanceError):
        GEMM.mc = 4
    with pytest.raises(ValueError, match="kr: expected at least 1, got 0"):
        MicroTile(1, 1, 0, 1)


def test_row_plan_by_hand():
    rows = RowPlan(t=5, rows_q=2, rows_k=5, q_lora_rank=40, kv_lora_rank=24, qk_rope_head_dim=8, quantised=True)
    assert (rows.n_q_tasks, rows.n_k_tasks, rows.n_tasks) == (3, 1, 4)
    assert rows.read_bytes == 5 * (40 * 2 + 24 * 2 + 8 * 2 + 8 * 2 + 8 * 2 + 8)
    assert rows.written_bytes == 5 * (40 + 4 + 24 + 4 * 4 + 8 * 2)
    assert replace(rows, quantised=False).written_bytes == 5 * (40 * 2 + 24 * 2 + 8 * 2)
    assert rows.activation_bytes == rows.read_bytes + rows.written_bytes
    assert str(rows) == "rows: 4 tasks, rows_q 2 rows_k 5"


def small_plan(**kwargs):
    return plan_prolog(SMALL, 5, MlaTileConfig(unroll_list=[5]), MACHINE, micro=MICRO, **kwargs)


def test_workspace_by_hand():
    tile = small_plan(quant="ab").tile_plan(5)
    assert tile.shared_workspace == {
        "x_rows": 384,  # 5 rows of 64 codes, a cache line each; up to a pair of lines
        "x_scale": 128,  # 5 * 4, likewise
        "q_a": 512,  # 5 * 40 * 2 = 400
        "kv_a": 384,  # 5 * 32 * 2
        "q_rows": 384,  # 5 rows of 40 codes, up to a cache line
    }
    assert tile.worker_workspace == {
        "c": 5056,  # 5 rows of one panel of 48 columns, the widest of the four, and a page to the next worker's
        "q_head": 5376,  # 6 * 48 * 4, three cache lines a row, and as many rows as a page begins
        "y": 4416,  # 64 hidden states and 16 lanes, 4 bytes each, and a page
    }
    assert tile.n_workers == 1
    assert tile.workspace == tile.shared_workspace | tile.worker_workspace
    two = replace(tile, n_workers=2)
    assert two.workspace == tile.shared_workspace | {"c": 10112, "q_head": 10752, "y": 8832}
    assert two.workspace_bytes == 1792 + 29696
    assert "x_scale" not in small_plan(quant="b").tile_plan(5).workspace


@pytest.mark.parametrize(("k", "lines"), [(28, 1), (30, 1), (31, 3), (32, 3), (94, 3), (95, 5), (96, 5)])
def test_a_row_has_room_for_what_its_sums_begin_with(k, lines):
    """Two elements of two bytes, where 32 are a line; without them a row may end where the next one begins."""
    micro = MicroTile(6, 16, 1, 2, a_begin=2)
    gemm = replace(PER_HEAD, k=k, micro=micro, kc=1, nc=16)
    assert gemm.lda * 2 == lines * 64
    assert replace(gemm, micro=replace(micro, a_begin=0)).lda * 2 == (1 if k <= 32 else 3) * 64
    with pytest.raises(ValueError, match="a_begin: expected at least 0, got -1"):
        replace(micro, a_begin=-1)


@pytest.mark.parametrize("item_bytes", [1, 2, 4])
def test_rows_are_an_odd_number_of_lines_apart(item_bytes):
    for n in range(1, 1100):
        apart = row_distance(n, item_bytes) * item_bytes
        assert n * item_bytes <= apart <= (n * item_bytes + 191) // 64 * 64
        assert apart % 128 == 64
    assert row_distance(7168, 4) * 4 == 449 * 64
    assert row_distance(1008, 4) * 4 == 63 * 64  # one line more would be 4 KiB


@pytest.mark.parametrize("a_bytes", [2, 4])
def test_rows_that_microkernels_read_fall_on_different_sets_of_l1(a_bytes):
    """Up to 64 rows: those of a register tile do not push each other out."""
    micro = {"bf16": MicroTile(6, 16, 2, a_bytes), "int8": MicroTile(6, 16, 4, 2)}
    for hidden, rank, nope, rope in (
        (7168, 1536, 128, 64),
        (2048, 1024, 64, 64),
        (4096, 960, 192, 64),
        (992, 32, 8, 8),
    ):
        dims = PlanDims(hidden, 4, rank, 64, nope, rope)
        tile = plan_prolog(dims, 64, None, MACHINE, micro=micro).tile_plan(64)
        qa, qb, _, wuk = tile.gemms
        for apart in (qa.lda * qa.micro.a_bytes, qb.lda * qb.micro.a_bytes, tile.heads.ldq * wuk.micro.a_bytes):
            assert len({row * apart // 64 % 64 for row in range(64)}) == 64


def test_bytes_and_operations_by_hand():
    plan = plan_prolog(SMALL, 11, MlaTileConfig(unroll_list=[5]), MACHINE, micro=MICRO, quant="b")
    assert plan.tiles == ((0, 5), (5, 5), (10, 1))
    assert [tile.t for tile in plan.tile_plans] == [5, 1]
    qa, qb, kva, wuk = 64 * 64 * 2, 3 * 48 * (40 + 8), 64 * 32 * 2, 3 * 16 * 32 * 2
    assert plan.weight_bytes == 3 * (qa + qb + kva + wuk)  # three tiles
    inputs, queries = 64 * 2 + 8 * 2 * 2 + 8, 3 * (24 + 8) * 2
    rows = 40 + 4 + 24 + 16 + 8 * 2
    assert plan.activation_bytes == 11 * (inputs + rows + queries)
    assert plan.total_bytes == plan.weight_bytes + plan.activation_bytes
    assert plan.flops == 2 * 11 * (64 * 40 + 64 * 32 + 3 * 16 * 24)
    assert plan.int8_ops == 2 * 11 * 3 * 40 * 24
    assert plan.work == Work(plan.total_bytes, plan.flops, plan.int8_ops)
    assert plan.sweep_work == {
        "down": Work(3 * (qa + kva) + 11 * 2 * (64 + 40 + 32), flops=2 * 11 * (64 * 40 + 64 * 32)),
        "rows": Work(11 * (2 * (40 + 32) + 2 * 2 * 8 + 8 + rows)),
        "heads": Work(3 * (qb + wuk) + 11 * (40 + queries), flops=2 * 11 * 3 * 16 * 24, int8_ops=plan.int8_ops),
    }
    assert plan.workspace_bytes == plan.tile_plan(5).workspace_bytes > plan.tile_plan(1).workspace_bytes


def test_least_seconds_is_the_longer_of_moving_and_computing():
    plan = small_plan()
    moving = Rates(bandwidth_bytes_s=plan.total_bytes / 4, flops_s=1e30, ops_s=1e30)
    assert least_seconds(plan, moving) == pytest.approx(4)
    computing = Rates(bandwidth_bytes_s=1e30, flops_s=plan.flops / 2, ops_s=plan.int8_ops / 3)
    assert least_seconds(plan, computing) == pytest.approx(5)
    with pytest.raises(ValueError, match=r"flops_s: expected a float > 0, got 0"):
        Rates(1.0, 0.0, 1.0)
    with pytest.raises(TypeError, match=r"ops_s: expected a float > 0, got '1'"):
        Rates(1.0, 1.0, "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiles": ((0, 4),)}, "tiles: expected 5 tokens, got 4"),
        ({"tiles": ((1, 4),)}, "tiles: expected one that begins at token 0, got 1"),
        ({"tiles": ((0, 4), (4, 1))}, r"tile_plans: expected one for each of \[4, 1\], got \[5\]"),
        ({"quant": "none"}, "tile_plans: expected StageShape.*Matmul_qb"),
        ({"phase": "train"}, "phase: expected one of decode, prefill, got 'train'"),
    ],
)
def test_prolog_plan_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        replace(small_plan(), **change)


def test_parts_of_a_plan_must_belong_together():
    tile = small_plan().tile_plan(5)
    with pytest.raises(ValueError, match=r"wuk\.mc: expected at most qb\.mc = 2, got 5"):
        replace(tile.heads, qb=replace(tile.heads.qb, mc=2))
    with pytest.raises(ValueError, match=r"kva\.m: expected that of qa, 5, got 6"):
        replace(tile.down, kva=replace(tile.down.kva, m=6))
    with pytest.raises(ValueError, match=r"rows: expected a plan for 5 tokens, got one for 4"):
        replace(tile, rows=replace(tile.rows, t=4))
    with pytest.raises(ValueError, match=r"factor: expected one of \[5\], got 7"):
        small_plan().tile_plan(7)


def random_case(rng):
    kr = {"bf16": rng.choice([1, 2]), "int8": rng.choice([2, 4])}
    micro = {d: MicroTile(rng.randint(1, 12), 16 * rng.randint(1, 3), kr[d], rng.choice([1, 4])) for d in kr}
    dims = PlanDims(2 * rng.randint(1, 40), *(rng.randint(1, top) for top in (4, 70, 90, 40, 40)))

    def cube():
        l0 = [rng.randint(1, 40) for _ in range(3)]
        return CubeTile(*(v for size in l0 for v in (size, size * rng.randint(1, 3))))

    config = MlaTileConfig(
        m_tile=rng.randint(1, 20),
        mv_tile=rng.randint(1, 20),
        k_vec_tile0=rng.randint(1, 20),
        q_vec_tile0=rng.randint(1, 20),
        pre_quant_cube_tile=cube(),
        cube_qb_tile=cube(),
        cube_wuk_tile=cube(),
        unroll_list=[rng.randint(1, 30) for _ in range(rng.randint(0, 3))],
        cube_l1_reuse_setting={rng.randint(-1, 3): rng.randint(1, 5)},
        cube_nbuffer_setting={rng.randint(-1, 3): rng.randint(1, 5)},
    )
    machine = replace(MACHINE, l1d_bytes=rng.randint(1, 3000), l2_bytes=rng.randint(1, 30000))
    return plan_prolog(
        dims,
        rng.randint(0, 300 if rng.random() < 0.3 else 40),
        rng.choice([config, None]),
        machine,
        micro=micro,
        quant=rng.choice(["none", "a", "b", "ab"]),
        n_threads=rng.randint(1, 9),
        options=rng.choice([None, PassOptions({-1: rng.randint(1, 4)}, {}, {-1: rng.randint(1, 9)})]),
    )


@pytest.mark.parametrize("seed", range(300))
def test_even_cuts_keep_within_the_blocks_and_plans_come_back_from_json(seed):
    plan = random_case(random.Random(seed))
    for tile in plan.tile_plans:
        for gemm in tile.gemms:
            assert ceil_div(gemm.m, gemm.n_row_blocks) <= gemm.mc
            assert ceil_div(gemm.n_panels, gemm.n_walks) <= gemm.walk
        assert ceil_div(tile.t, tile.rows.n_q_tasks) <= tile.rows.rows_q
        assert ceil_div(tile.t, tile.rows.n_k_tasks) <= tile.rows.rows_k
        assert tile.heads.n_relays == tile.heads.qb.batch * tile.heads.qb.n_row_blocks
        for sweep in (tile.down, tile.heads):
            assert sweep.n_tasks == sweep.n_relays * sweep.legs
            assert sweep.legs == 1 or sweep.n_relays > tile.n_workers
        assert tile.down.legs <= tile.down.qa.n_steps
        assert 0 <= tile.heads.leg_panels * (tile.heads.legs - 1) <= tile.heads.qb.n_panels
    assert PrologPlan.from_json(plan.to_json()) == plan
