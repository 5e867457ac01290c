"""The planner's own choice of blocks: one small function a choice, each with its reason.

Cache shares: in the down sweep the packed rows of A that one panel meets take half of L1d and a block of A half of L2.
A heads task keeps a whole head's weights in half of L2.
"""

from tiling.arith import ceil_div, round_up
from tiling.assemble import Blocks, TileContext, assemble_tile, wanted_workers
from tiling.gemm_plan import MicroTile
from tiling.machine import Machine
from tiling.plan import TilePlan
from tiling.stages import StageShape

__all__ = ["TILE_CAP", "own_tile", "own_unroll_list"]

TILE_CAP = 512
ROW_BLOCK_CAP = 128
ROWS_PER_TASK_CAP = 16
ROW_TASKS_PER_THREAD = 4

_WEIGHT_BYTES = {"bf16": 2, "int8": 1}

Reasons = list[tuple[str, str]]


def own_unroll_list(t: int) -> tuple[list[int], Reasons]:
    """Nearly even tiles of at most ``TILE_CAP`` tokens: weights are read once a tile, and its codes stay in cache."""
    if t == 0:
        return [1], [("unroll_list = [1]", "there are no tokens")]
    n_tiles = ceil_div(t, TILE_CAP)
    size = ceil_div(t, n_tiles)
    sizes = list(dict.fromkeys([size, t - (n_tiles - 1) * size]))
    return sizes, [(f"unroll_list = {sizes}", f"{t} tokens in {n_tiles} nearly even tiles of at most {TILE_CAP}")]


def own_tile(context: TileContext, machine: Machine, t: int) -> tuple[TilePlan, Reasons]:
    """Plan of one tile of ``t`` tokens for the caches of ``machine``."""
    n_workers = wanted_workers(context, t)
    qa, kva, reasons = down_blocks(context, machine, t)
    qb, wuk, heads_reasons = heads_blocks(context, machine, t)
    rows = rows_per_task(t, n_workers)
    rows_reason = f"{ROW_TASKS_PER_THREAD} tasks a thread for {n_workers}, at most {ROWS_PER_TASK_CAP} rows a task"
    tile = assemble_tile(context, t, blocks=(qa, qb, kva, wuk), rows_q=rows, rows_k=rows, q_rows=context.micro_of(1).mr)
    if (tile.rows.rows_q, tile.rows.rows_k) != (rows, rows):
        rows_reason = "vec_nbuffer_setting"
    reasons += [
        (f"rows_q = {tile.rows.rows_q}, rows_k = {tile.rows.rows_k}", rows_reason),
        *heads_reasons,
        (f"q_rows = {tile.heads.q_rows}", "the rows of one register tile are still in L1d"),
    ]
    return tile, reasons


def down_blocks(context: TileContext, machine: Machine, t: int) -> tuple[Blocks, Blocks, Reasons]:
    """Blocks of the query's and the key's down projection."""
    qa, _, kva, _ = context.shapes
    micro = context.micro_of(0)
    if t <= micro.mr:
        kc = max(qa.k, kva.k)
        reason = f"{t} rows fit one register tile of {micro.mr}: each panel is read once, front to back"
        return Blocks(t, kc, micro.nr), Blocks(t, kc, micro.nr), [("down: mc = t, whole k, one panel a task", reason)]
    kc = down_kc(qa, micro, machine)
    mc = even_rows(t, machine.l2_bytes // 2 // (kc * micro.a_bytes))
    nc = micro.nr
    return (
        Blocks(mc, kc, nc),
        Blocks(mc, kc, nc),
        [
            (
                f"down: kc = {kc}",
                f"{micro.mr} packed rows take {micro.mr * kc * micro.a_bytes} bytes, at most half of L1d's "
                f"{machine.l1d_bytes}; k in even blocks",
            ),
            (
                f"down: mc = {mc}",
                f"{t} rows in even blocks of at most {ROW_BLOCK_CAP}; one takes {mc * kc * micro.a_bytes} bytes, "
                f"half of L2 is {machine.l2_bytes // 2}",
            ),
            (
                f"down: nc = {nc}",
                "one panel a task: more panels would share a block of A in L1d, but L2 keeps up without, and small "
                "tasks end together",
            ),
        ],
    )


def down_kc(shape: StageShape, micro: MicroTile, machine: Machine) -> int:
    """Elements of k whose ``mr`` packed rows take at most half of L1d, in even blocks of a part of k."""
    part = shape.k // shape.k_parts
    most = max(1, machine.l1d_bytes // 2 // (micro.mr * micro.a_bytes) // micro.kr) * micro.kr
    return round_up(ceil_div(part, ceil_div(part, most)), micro.kr)


def even_rows(t: int, most: int, cap: int = ROW_BLOCK_CAP) -> int:
    """Rows of each of the fewest even row blocks of at most ``most`` and ``cap`` rows."""
    return ceil_div(t, ceil_div(t, max(1, min(most, cap))))


def heads_blocks(context: TileContext, machine: Machine, t: int) -> tuple[Blocks, Blocks, Reasons]:
    """Blocks of the query's up projection and of the product with w_uk, within a task of one head."""
    qb, wuk = context.shapes[1], context.shapes[3]
    b, u = head_blocks(qb, context.micro_of(1), machine), head_blocks(wuk, context.micro_of(3), machine)
    mc = even_rows(t, t)
    micro = context.micro_of(3)
    inner_mc = nope_rows(mc, micro, round_up(wuk.k, micro.kr), machine)
    return (
        Blocks(mc, b.kc, b.nc),
        Blocks(inner_mc, u.kc, u.nc),
        [
            (f"heads: token block mc = {mc}", f"{t} rows in even blocks of at most {ROW_BLOCK_CAP}"),
            (
                f"heads: kc = {b.kc}, nc = {b.nc} of {qb.stage}; kc = {u.kc}, nc = {u.nc} of {wuk.stage}",
                f"a panel takes at most a quarter of L2's {machine.l2_bytes} bytes, the panels of a walk half of it",
            ),
            (
                f"heads: row block mc = {inner_mc} of {wuk.stage}",
                f"its packed rows take {inner_mc * round_up(wuk.k, micro.kr) * micro.a_bytes} bytes, half of L1d is "
                f"{machine.l1d_bytes // 2}",
            ),
        ],
    )


def head_blocks(shape: StageShape, micro: MicroTile, machine: Machine) -> Blocks:
    """kc: the whole k if one panel takes at most a quarter of L2; nc: the panels of one head that fit in half of it."""
    row_bytes = micro.nr * _WEIGHT_BYTES[shape.dtype]
    kp = round_up(shape.k, micro.kr)
    most = max(1, machine.l2_bytes // 4 // row_bytes // micro.kr) * micro.kr
    kc = round_up(ceil_div(kp, ceil_div(kp, most)), micro.kr)
    walk = min(ceil_div(shape.n, micro.nr), max(1, machine.l2_bytes // 2 // (kc * row_bytes)))
    return Blocks(mc=1, kc=kc, nc=walk * micro.nr)


def nope_rows(mc: int, micro: MicroTile, kp: int, machine: Machine) -> int:
    """Rows of the inner row block: whole register tiles whose packed rows take at most half of L1d."""
    most = max(1, machine.l1d_bytes // 2 // (kp * micro.a_bytes) // micro.mr) * micro.mr
    return min(mc, most)


def rows_per_task(t: int, n_workers: int) -> int:
    """Token rows of an elementwise task: several tasks a thread, at most ``ROWS_PER_TASK_CAP`` rows each."""
    return max(1, min(ROWS_PER_TASK_CAP, ceil_div(t, ROW_TASKS_PER_THREAD * n_workers)))
