"""One tile's plan from wanted block sizes: rounding, clipping and scheduling settings in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tiling.cpu_tiling import CpuTiling
from tiling.gemm import GemmPlan, MicroTile
from tiling.modes import Dtype
from tiling.plan.groups import even_groups, groups_of_nodes
from tiling.plan.sweeps import DownPlan, HeadsPlan, RowPlan
from tiling.plan.tile import TilePlan
from tiling.pypto.config import PassOptions
from tiling.pypto.scheduling import setting_of
from tiling.stages import StageShape

__all__ = ["SERIAL_OPS", "Blocks", "Tasks", "TileContext", "assemble_tile", "wanted_workers"]

# Below this a tile is done before the other threads have woken up.
SERIAL_OPS = 2_000_000


@dataclass(frozen=True)
class Blocks:
    """Wanted blocks of one product, in elements; ``fit`` rounds and clips them."""

    mc: int
    kc: int
    nc: int


class Tasks(NamedTuple):
    """How tasks of one sweep are to be drawn: ``grain`` at a time, each of them cut into ``legs``."""

    grain: int = 1
    legs: int = 1


ONE_BY_ONE = Tasks()


@dataclass(frozen=True)
class TileContext:
    """What every tile of a plan shares: the products, their register tiles, threads, NUMA nodes and settings."""

    shapes: tuple[StageShape, StageShape, StageShape, StageShape]
    micro: Mapping[Dtype, MicroTile]
    n_threads: int
    options: PassOptions
    given: CpuTiling
    node_cores: tuple[int, ...] = ()

    def micro_of(self, ordinal: int) -> MicroTile:
        """Register tile of stage ``ordinal``."""
        return self.micro[self.shapes[ordinal].dtype]

    def set_grain(self, ordinal: int) -> int:
        """Tasks of stage ``ordinal`` that are to be taken together, 0 if nothing is set."""
        return setting_of(self.options.cube_nbuffer_setting, ordinal) or 0

    def gemm(self, t: int, ordinal: int, blocks: Blocks) -> GemmPlan:
        """Plan of stage ``ordinal`` for ``t`` tokens."""
        return self.shapes[ordinal].fit(
            t,
            self.micro_of(ordinal),
            mc=blocks.mc,
            kc=blocks.kc,
            nc=blocks.nc,
            l1_reuse=setting_of(self.options.cube_l1_reuse_setting, ordinal) or 1,
        )


def wanted_workers(context: TileContext, t: int) -> int:
    """All threads, or 1 where a tile of ``t`` tokens has fewer than ``SERIAL_OPS`` operations; or as prescribed."""
    if context.given.n_threads is not None:
        return min(context.given.n_threads, context.n_threads)
    n_ops = sum(2 * shape.batch * t * shape.k * shape.n for shape in context.shapes)
    return 1 if n_ops < SERIAL_OPS else context.n_threads


def wanted_groups(context: TileContext, n_workers: int) -> tuple[int, ...]:
    """Workers of each group: one a NUMA node, or as prescribed."""
    if context.given.n_groups is not None:
        return even_groups(n_workers, context.given.n_groups)
    return groups_of_nodes(n_workers, context.node_cores)


def assemble_tile(
    context: TileContext,
    t: int,
    *,
    blocks: tuple[Blocks, Blocks, Blocks, Blocks],
    rows: tuple[int, int],
    down: Tasks = ONE_BY_ONE,
    heads: Tasks = ONE_BY_ONE,
) -> TilePlan:
    """Plan of one tile of ``t`` tokens; ``blocks`` by stage ordinal, ``rows`` of an elementwise task: query's, key's.

    ``cube_nbuffer_setting`` takes the place of both grains, ``vec_nbuffer_setting`` that of ``rows`` (by ordinals 0 and
    1), where they are set.
    """
    qa, qb, kva = (context.gemm(t, ordinal, blocks[ordinal]) for ordinal in range(3))
    inner = Blocks(min(blocks[3].mc, qb.mc), blocks[3].kc, blocks[3].nc)
    vec = context.options.vec_nbuffer_setting
    n_workers = wanted_workers(context, t)
    return TilePlan(
        t=t,
        n_workers=n_workers,
        down=DownPlan(qa, kva, context.set_grain(0) or down.grain, min(down.legs, qa.n_steps)),
        rows=RowPlan(
            t=t,
            rows_q=min(setting_of(vec, 0) or rows[0], t),
            rows_k=min(setting_of(vec, 1) or rows[1], t),
            q_lora_rank=qa.n,
            kv_lora_rank=context.shapes[3].n,
            qk_rope_head_dim=kva.n - context.shapes[3].n,
            quantised=qb.dtype == "int8",
        ),
        heads=HeadsPlan(
            qb=qb,
            wuk=context.gemm(t, 3, inner),
            grain=max(context.set_grain(1), context.set_grain(3)) or heads.grain,
            legs=min(heads.legs, qb.n_panels + 1),
        ),
        groups=wanted_groups(context, n_workers),
    )
