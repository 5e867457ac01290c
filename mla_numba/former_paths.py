"""Modules under the names that they had in 0.1, when all of them lay in one folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["FORMER", "install"]

# A former name below `mla_numba`, and where the module is now.
FORMER = {
    "array_file": "weights.mapped_file",
    "attention_weights": "weights.attention",
    "checkpoint": "weights.checkpoint",
    "contest": "tuning.contest",
    "dims": "base.dims",
    "engine": "prolog",
    "interop.blocks": "interop.hf.blocks",
    "interop.hf_attention": "interop.hf.forward",
    "interop.hf_cache": "interop.hf.cache",
    "interop.hf_weights": "interop.hf.parameters",
    "interop.latent_attention": "interop.hf.latent_attention",
    "interop.operator": "interop.torch.operator",
    "interop.tensors": "interop.torch.tensors",
    "interop.torch_cache": "interop.torch.cache",
    "measure": "tuning.rates",
    "memory": "base.memory",
    "packed": "weights.packed",
    "projections": "pypto.projections",
    "quantization": "weights.quantize",
    "shards": "weights.safetensors_file",
    "tile_space": "tuning.space",
    "tile_sweep": "tuning.study",
    "trace": "call.trace",
    "tuner": "tuning.search",
    "workspace": "call.workspace",
}
_PREFIX = "mla_numba."


class _Alias(Loader):
    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # which the import system has just replaced


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        now = FORMER.get(fullname.removeprefix(_PREFIX)) if fullname.startswith(_PREFIX) else None
        return None if now is None else ModuleSpec(fullname, _Alias(_PREFIX + now))


def install() -> None:
    """Lets `import` find modules by their former names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
