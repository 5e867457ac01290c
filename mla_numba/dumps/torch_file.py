"""Files that `torch.save` wrote: a tensor, or several in a dict or a list. PyTorch is imported where one is met."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..base.checks import BF16, Array
from ..base.extras import missing

__all__ = ["import_torch", "load_tensors", "save_tensor"]


def import_torch(label: str) -> Any:
    """The package torch; `label` begins the message of an `ImportError` where it is missing."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise missing(label, "torch", "torch") from error
    return torch


def load_tensors(path: Path, label: str) -> dict[str | None, Array]:
    """The tensors of a `.pt` as arrays over the mapped file, by name.

    A single tensor has the name None, those of a dict their keys, those of a list or tuple "0", "1", ...; what else a
    dict or list holds is passed over. bf16 is `ml_dtypes.bfloat16`. The file is read with `weights_only=True`, so no
    code of it runs.

    Raises `ImportError` without torch, `ValueError` for a file that torch refuses or that holds no tensor, `TypeError`
    for a tensor that is sparse, quantised or of a dtype that NumPy does not have. `label` begins their messages.
    """
    torch = import_torch(label)
    loaded = _load(torch, path, label)
    if isinstance(loaded, torch.Tensor):
        return {None: _as_array(torch, loaded, label)}
    if isinstance(loaded, (list, tuple)):
        loaded = {str(i): item for i, item in enumerate(loaded)}
    if not isinstance(loaded, dict):
        raise ValueError(f"{label}: expected a tensor, or a dict or list of tensors, got {type(loaded).__name__}")
    found: dict[str | None, Array] = {
        str(key): _as_array(torch, item, f"{label}[{key!r}]")
        for key, item in loaded.items()
        if isinstance(item, torch.Tensor)
    }
    if not found:
        raise ValueError(f"{label}: expected a tensor, or a dict or list of tensors, got one without any")
    return found


def save_tensor(file: BinaryIO, array: Array) -> None:
    """Writes an array as one tensor."""
    torch = import_torch("file_format")
    array = np.ascontiguousarray(array)
    bits = array.view(np.int16) if array.dtype == BF16 else array
    tensor = torch.from_numpy(bits)
    torch.save(tensor.view(torch.bfloat16) if array.dtype == BF16 else tensor, file)


def _load(torch: Any, path: Path, label: str) -> Any:
    is_zip = zipfile.is_zipfile(path)  # the older form is a bare pickle, which cannot be mapped
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("a compressed archive, which torch.save does not write")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # torch raises what the pickle made it raise
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{label}: expected a file that torch.load takes with weights_only, got {first}") from None


def _as_array(torch: Any, tensor: Any, label: str) -> Array:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{label}: expected a plain tensor, got a {kind} one on {tensor.device}")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{label}: expected a tensor with each element in the file, got an expanded one")
    is_bf16 = tensor.dtype == torch.bfloat16
    try:
        array: Array = (tensor.view(torch.int16) if is_bf16 else tensor).numpy()
    except (RuntimeError, TypeError):
        raise TypeError(f"{label}: expected a dtype that NumPy has, or bfloat16, got {tensor.dtype}") from None
    return array.view(BF16) if is_bf16 else array
