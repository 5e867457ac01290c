"""Bit-exact CPU kernels for the quantised MLA prolog of DeepSeek-V3.2."""

from typing import TYPE_CHECKING

from .base import own_tiling as _own_tiling  # noqa: F401  # isort: skip (before anything of tiling)
from tiling.lazy_names import lazy_names

from . import former_paths
from ._version import __version__

__all__ = [
    "BoundCall",
    "Checkpoint",
    "CheckpointLayer",
    "CpuTiling",
    "HeadShard",
    "IndexedOutput",
    "IndexerCache",
    "IndexerDims",
    "IndexerOutput",
    "IndexerProlog",
    "IndexerWeights",
    "KeyRows",
    "MlaDims",
    "MlaProlog",
    "MlaQuantInputs",
    "MlaTileConfig",
    "MlaWeights",
    "PackedIndexer",
    "PackedWeights",
    "PagedCache",
    "PassOptions",
    "PrologOutput",
    "QuantizationReport",
    "RopeTable",
    "RopeTileShapeConfig",
    "Trace",
    "WeightError",
    "__version__",
    "dequant",
    "dequant_asymmetric",
    "k_nope_quant",
    "layouts",
    "lightning_index",
    "mla_prolog_quant_compute",
    "mla_prolog_quant_d",
    "mla_prolog_quant_p",
    "options_list",
    "pass_options",
    "pre_compute_2d",
    "preset",
    "quant",
    "rms_norm",
    "rope_3d_v2",
    "rope_v2",
    "rotate_half",
    "scalar_div",
    "sparse_attention",
    "sylvester_hadamard",
]

if TYPE_CHECKING:
    from tiling import CpuTiling, MlaTileConfig, PassOptions, RopeTileShapeConfig, options_list, pass_options, preset

    from . import layouts
    from .attention.lightning import lightning_index
    from .attention.sparse import sparse_attention
    from .base.dims import MlaDims
    from .base.head_shard import HeadShard
    from .base.indexer_dims import IndexerDims
    from .cache import KeyRows, PagedCache
    from .call.indexer import IndexerOutput
    from .call.trace import Trace
    from .indexer import IndexerProlog
    from .indexer_cache import IndexerCache
    from .prolog import BoundCall, IndexedOutput, MlaProlog, PrologOutput
    from .pypto.entry_points import (
        mla_prolog_quant_compute,
        mla_prolog_quant_d,
        mla_prolog_quant_p,
    )
    from .pypto.operations import (
        MlaQuantInputs,
        dequant,
        dequant_asymmetric,
        k_nope_quant,
        quant,
        rms_norm,
        rope_3d_v2,
        rope_v2,
        rotate_half,
        scalar_div,
    )
    from .pypto.pre_compute import pre_compute_2d
    from .rope_table import RopeTable
    from .weights.checkpoint import Checkpoint, CheckpointLayer
    from .weights.indexer import IndexerWeights, sylvester_hadamard
    from .weights.packed import PackedWeights
    from .weights.packed_indexer import PackedIndexer
    from .weights.plain import MlaWeights
    from .weights.quantize import QuantizationReport, WeightError
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "tiling": (
                "CpuTiling",
                "MlaTileConfig",
                "PassOptions",
                "RopeTileShapeConfig",
                "options_list",
                "pass_options",
                "preset",
            ),
            ".attention.lightning": ("lightning_index",),
            ".attention.sparse": ("sparse_attention",),
            ".base.dims": ("MlaDims",),
            ".base.head_shard": ("HeadShard",),
            ".base.indexer_dims": ("IndexerDims",),
            ".cache": ("KeyRows", "PagedCache"),
            ".call.indexer": ("IndexerOutput",),
            ".call.trace": ("Trace",),
            ".indexer": ("IndexerProlog",),
            ".indexer_cache": ("IndexerCache",),
            ".prolog": ("BoundCall", "IndexedOutput", "MlaProlog", "PrologOutput"),
            ".pypto.entry_points": ("mla_prolog_quant_compute", "mla_prolog_quant_d", "mla_prolog_quant_p"),
            ".pypto.operations": (
                "MlaQuantInputs",
                "dequant",
                "dequant_asymmetric",
                "k_nope_quant",
                "quant",
                "rms_norm",
                "rope_3d_v2",
                "rope_v2",
                "rotate_half",
                "scalar_div",
            ),
            ".pypto.pre_compute": ("pre_compute_2d",),
            ".rope_table": ("RopeTable",),
            ".weights.checkpoint": ("Checkpoint", "CheckpointLayer"),
            ".weights.indexer": ("IndexerWeights", "sylvester_hadamard"),
            ".weights.packed": ("PackedWeights",),
            ".weights.packed_indexer": ("PackedIndexer",),
            ".weights.plain": ("MlaWeights",),
            ".weights.quantize": ("QuantizationReport", "WeightError"),
        },
    )

former_paths.install()
