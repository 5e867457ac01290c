"""Bit-exact CPU kernels for the quantised MLA prolog of DeepSeek-V3.2."""

from ._version import __version__
from .cache import PagedCache
from .dims import MlaDims
from .packed import PackedWeights
from .prolog import MlaProlog, PrologOutput
from .weights import MlaWeights

__all__ = ["MlaDims", "MlaProlog", "MlaWeights", "PackedWeights", "PagedCache", "PrologOutput", "__version__"]
