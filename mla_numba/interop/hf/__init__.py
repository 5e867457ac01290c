"""The prolog in the attention of models of transformers."""

from typing import TYPE_CHECKING, Any

from tiling.lazy_names import lazy_names

from ...base.extras import needs

__all__ = ["BlockPool", "LatentCache", "Patched", "patch"]

if TYPE_CHECKING:
    from .blocks import BlockPool
    from .cache import LatentCache
    from .patched import Patched, patch
else:
    # Late, for block tables need no torch, and attention over latents no transformers.
    _get, __dir__ = lazy_names(
        __name__, {".blocks": ("BlockPool",), ".cache": ("LatentCache",), ".patched": ("Patched", "patch")}
    )

    def __getattr__(name: str) -> Any:
        with needs(__name__, {"torch": "transformers", "transformers": "transformers"}):
            return _get(name)
