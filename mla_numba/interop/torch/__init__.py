"""The prolog and its neighbours on CPU tensors of PyTorch, as operators that `torch.compile` takes."""

from ...base.extras import needs

with needs("mla_numba.interop.torch", {"torch": "torch"}):
    from .attention import lightning_index, sparse_attention
    from .cache import TorchCache, TorchKeyRows
    from .indexer import TorchIndexer, TorchIndexerCache, TorchIndexerOutput
    from .prolog import TorchIndexedOutput, TorchOutput, TorchProlog
    from .tensors import to_numpy, to_torch

__all__ = [
    "TorchCache", "TorchIndexedOutput", "TorchIndexer", "TorchIndexerCache", "TorchIndexerOutput", "TorchKeyRows",
    "TorchOutput", "TorchProlog", "lightning_index", "sparse_attention", "to_numpy", "to_torch",
]  # fmt: skip
