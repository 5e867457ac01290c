"""The prolog on CPU tensors of PyTorch, and as an operator that `torch.compile` takes."""

from ...base.extras import needs

with needs("mla_numba.interop.torch", {"torch": "torch"}):
    from .cache import TorchCache, TorchKeyRows
    from .prolog import TorchOutput, TorchProlog
    from .tensors import to_numpy, to_torch

__all__ = ["TorchCache", "TorchKeyRows", "TorchOutput", "TorchProlog", "to_numpy", "to_torch"]
