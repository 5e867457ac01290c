"""The NumPy reference; it lives in `oracle`."""

from .base.modes import NUMERICS
from .oracle.exp import exp_reference
from .oracle.indexer import IndexerReferenceOutput, indexer_prolog_reference, layer_norm, rope_first_columns
from .oracle.lightning_index import best_positions, index_scores, lightning_index_reference
from .oracle.norm_quant import N_LANES, k_nope_quant, lane_sum, quant, quant_cann, rms_norm, scalar_div
from .oracle.products import COLUMN_BLOCK, dequant, dequant_asymmetric, matmul_int8, sum_of_products
from .oracle.reference import N_GROUPS, ReferenceOutput, mla_prolog, pre_compute_2d
from .oracle.rope import rope_3d_v2, rope_v2, rotate_half
from .oracle.scatter import nz_addresses, scatter
from .oracle.sparse_attention import listed_positions, sparse_attention_reference

__all__ = [
    "COLUMN_BLOCK",
    "NUMERICS",
    "N_GROUPS",
    "N_LANES",
    "IndexerReferenceOutput",
    "ReferenceOutput",
    "best_positions",
    "dequant",
    "dequant_asymmetric",
    "exp_reference",
    "index_scores",
    "indexer_prolog_reference",
    "k_nope_quant",
    "lane_sum",
    "layer_norm",
    "lightning_index_reference",
    "listed_positions",
    "matmul_int8",
    "mla_prolog",
    "nz_addresses",
    "pre_compute_2d",
    "quant",
    "quant_cann",
    "rms_norm",
    "rope_3d_v2",
    "rope_first_columns",
    "rope_v2",
    "rotate_half",
    "scalar_div",
    "scatter",
    "sparse_attention_reference",
    "sum_of_products",
]
