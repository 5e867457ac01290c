"""CPU tensors as NumPy arrays and back, over the same memory.

NumPy has no bfloat16 or FP8 of its own, nor does torch know those of `ml_dtypes`: they cross as integers of their size.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ...base.checks import BF16, Array, dtype_text

__all__ = ["check_mode", "check_tensors", "refuse_gradient", "to_numpy", "to_torch"]

_AS_INTEGERS = {
    torch.bfloat16: (torch.int16, BF16),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e8m0fnu: (torch.uint8, np.dtype(ml_dtypes.float8_e8m0fnu)),
}
_AS_TENSORS = {ours: (np.dtype(f"i{ours.itemsize}"), theirs) for theirs, (_, ours) in _AS_INTEGERS.items()}


def to_numpy(tensor: Tensor, name: str = "tensor") -> Array:
    """The array over a CPU tensor's memory: its shape, strides and dtype, bf16 as `ml_dtypes.bfloat16`.

    Nothing is copied, and the array keeps the memory alive. A tensor that requires grad is accepted only where no
    gradients are recorded (`torch.no_grad`), since nothing that reads the array is part of a graph.

    Args:
        tensor: A tensor on the CPU.
        name: What errors call it.

    Returns:
        The array.

    Raises:
        TypeError: It is not a tensor, has no memory of its own (under a transform, or fake), or has a dtype that NumPy
            lacks.
        ValueError: It is not on the CPU, not strided, a conjugate or negative view, or would have its gradient
            recorded.

    Examples:
        >>> import torch
        >>> from mla_numba.interop.torch import to_numpy
        >>> tensor = torch.zeros(2, 3, dtype=torch.bfloat16)
        >>> to_numpy(tensor)[0] = 1
        >>> tensor.sum().item()
        3.0
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if isinstance(tensor, FakeTensor):
        raise TypeError(f"{name}: expected a tensor with memory, got a FakeTensor")
    if not tensor.is_cpu:
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: expected a strided tensor, got layout {tensor.layout}")
    if tensor.is_conj() or tensor.is_neg():
        kind = "conjugate" if tensor.is_conj() else "negative"
        raise ValueError(f"{name}: expected values as they lie in memory, got a {kind} view")
    refuse_gradient(name, tensor)
    if tensor.requires_grad:
        tensor = tensor.detach()
    integers, ours = _AS_INTEGERS.get(tensor.dtype, (None, None))
    try:
        array: Array = (tensor if integers is None else tensor.view(integers)).numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{name}: expected a plain tensor of a NumPy dtype, got {type(tensor).__name__} of {tensor.dtype}: {error}"
        ) from None
    return array if ours is None else array.view(ours)


def check_tensors(named: Mapping[str, object], *, or_none: tuple[str, ...] = ()) -> None:
    """Raises `TypeError` for what is no tensor; those of `or_none` may be None.

    An operator that is given something else raises a `RuntimeError` of torch's, which names no argument of the caller.
    """
    for name, value in named.items():
        if not isinstance(value, Tensor) and not (value is None and name in or_none):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_mode(mode: object) -> None:
    """Raises `TypeError` for a cache's mode that is no string; which strings there are is checked with the cache."""
    if not isinstance(mode, str):
        raise TypeError(f"cache_mode: expected str, got {type(mode).__name__}")


def refuse_gradient(name: str, tensor: Tensor) -> None:
    """Raises `ValueError` for a tensor whose gradient would be recorded."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: expected a tensor that needs no gradient (or torch.no_grad), as there is no backward, "
            "got one that requires grad"
        )


def to_torch(array: Array, name: str = "array") -> Tensor:
    """The tensor over a NumPy array's memory: its shape, strides and dtype, `ml_dtypes.bfloat16` as bf16.

    Nothing is copied, and the tensor keeps the memory alive.

    Args:
        array: A writable array.
        name: What errors call it.

    Returns:
        The tensor.

    Raises:
        TypeError: It is not an array, or has a dtype that torch lacks.
        ValueError: It is read-only, which a tensor cannot be, or has strides that a tensor cannot have (negative, or
            not a multiple of the element).

    Examples:
        >>> import ml_dtypes
        >>> import numpy as np
        >>> from mla_numba.interop.torch import to_torch
        >>> to_torch(np.ones(2, ml_dtypes.bfloat16)).dtype
        torch.bfloat16
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    if not array.dtype.isnative:
        raise TypeError(f"{name}: expected the machine's byte order, got dtype {dtype_text(array.dtype)}")
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, as a tensor over it can be written, got a read-only one")
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        raise ValueError(
            f"{name}: expected strides of whole elements that are not negative, got {array.strides} for {array.dtype}"
        )
    integers, theirs = _AS_TENSORS.get(array.dtype, (None, None))
    try:
        tensor = torch.from_numpy(array if integers is None else array.view(integers))
    except TypeError:
        raise TypeError(f"{name}: expected a dtype that torch has, got {dtype_text(array.dtype)}") from None
    return tensor if theirs is None else tensor.view(theirs)
