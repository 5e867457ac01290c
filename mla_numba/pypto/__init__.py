"""The reference operator's own names: entry points, projections and single operations on NumPy arrays."""

from typing import TYPE_CHECKING

from tiling.lazy_names import lazy_names

__all__ = [
    "IndexerPrologQuantAttr",
    "lightning_indexer_decode",
    "lightning_indexer_prolog_quant",
    "sparse_flash_attention_quant_compute_flash",
    "sparse_flash_attention_quant_d",
    "sparse_flash_attention_quant_p",
]

if TYPE_CHECKING:
    from .attention_entry_points import (
        sparse_flash_attention_quant_compute_flash,
        sparse_flash_attention_quant_d,
        sparse_flash_attention_quant_p,
    )
    from .indexer_entry_points import (
        IndexerPrologQuantAttr,
        lightning_indexer_decode,
        lightning_indexer_prolog_quant,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {".attention_entry_points": tuple(__all__[3:]), ".indexer_entry_points": tuple(__all__[:3])},
    )
