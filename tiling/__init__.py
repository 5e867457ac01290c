"""Tiles, plans and the planner of the MLA prolog: standard library only, no kernels."""

from typing import TYPE_CHECKING

from tiling.lazy_names import lazy_names

__all__ = [
    "PRESETS",
    "ROPE_TILES",
    "Cluster",
    "Costs",
    "CpuTiling",
    "CubeTile",
    "DownPlan",
    "GemmPlan",
    "HeadsPlan",
    "IndexerPlan",
    "IndexerPlanDims",
    "IndexerTile",
    "LinkRate",
    "Machine",
    "MicroTile",
    "MlaTileConfig",
    "PassOptions",
    "PlanDims",
    "PrologPlan",
    "Rates",
    "RopeTileShapeConfig",
    "RowPlan",
    "TilePlan",
    "Work",
    "ceil_div",
    "chunks",
    "least_seconds",
    "loop_unroll",
    "options_list",
    "pass_options",
    "plan_indexer",
    "plan_prolog",
    "preset",
    "round_up",
]

if TYPE_CHECKING:
    from tiling.arith import ceil_div, chunks, round_up
    from tiling.choose.costs import Costs
    from tiling.cluster import Cluster, LinkRate
    from tiling.cpu_tiling import CpuTiling
    from tiling.gemm import GemmPlan, MicroTile
    from tiling.machine import Machine
    from tiling.plan.indexer import IndexerPlan, plan_indexer
    from tiling.plan.indexer_tile import IndexerPlanDims, IndexerTile
    from tiling.plan.prolog import PrologPlan
    from tiling.plan.sweeps import DownPlan, HeadsPlan, RowPlan
    from tiling.plan.tile import TilePlan
    from tiling.plan.unroll import loop_unroll
    from tiling.planner import plan_prolog
    from tiling.pypto.config import (
        CubeTile,
        MlaTileConfig,
        PassOptions,
        RopeTileShapeConfig,
    )
    from tiling.pypto.presets import (
        PRESETS,
        ROPE_TILES,
        options_list,
        pass_options,
        preset,
    )
    from tiling.rates import Rates
    from tiling.roofline import Work, least_seconds
    from tiling.stages import PlanDims
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "tiling.arith": ("ceil_div", "chunks", "round_up"),
            "tiling.choose.costs": ("Costs",),
            "tiling.cluster": ("Cluster", "LinkRate"),
            "tiling.cpu_tiling": ("CpuTiling",),
            "tiling.gemm": ("GemmPlan", "MicroTile"),
            "tiling.machine": ("Machine",),
            "tiling.plan.indexer": ("IndexerPlan", "plan_indexer"),
            "tiling.plan.indexer_tile": ("IndexerPlanDims", "IndexerTile"),
            "tiling.plan.prolog": ("PrologPlan",),
            "tiling.plan.sweeps": ("DownPlan", "HeadsPlan", "RowPlan"),
            "tiling.plan.tile": ("TilePlan",),
            "tiling.plan.unroll": ("loop_unroll",),
            "tiling.planner": ("plan_prolog",),
            "tiling.pypto.config": ("CubeTile", "MlaTileConfig", "PassOptions", "RopeTileShapeConfig"),
            "tiling.pypto.presets": ("PRESETS", "ROPE_TILES", "options_list", "pass_options", "preset"),
            "tiling.rates": ("Rates",),
            "tiling.roofline": ("Work", "least_seconds"),
            "tiling.stages": ("PlanDims",),
        },
    )
