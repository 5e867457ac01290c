"""The prolog in the attention of models of transformers."""

from .blocks import BlockPool
from .cache import LatentCache
from .patched import Patched, patch

__all__ = ["BlockPool", "LatentCache", "Patched", "patch"]
