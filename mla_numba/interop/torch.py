"""The prolog for PyTorch: CPU tensors in and out (extra `torch`)."""

from __future__ import annotations

from .tensors import to_numpy, to_torch

__all__ = ["to_numpy", "to_torch"]
