"""The prolog in the attention of models of transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import BlockPool
    from .cache import LatentCache
    from .patched import Patched, patch

__all__ = ["BlockPool", "LatentCache", "Patched", "patch"]

_HOMES = {"BlockPool": "blocks", "LatentCache": "cache", "Patched": "patched", "patch": "patched"}


def __getattr__(name: str) -> Any:
    """A name when it is asked for: block tables need no torch, and attention over latents no transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
