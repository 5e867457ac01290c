"""What stands around the `forward` of a patched model and of the modules that contain it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from .cache import check_cache_kind, restored_on_failure

__all__ = ["WRITTEN", "ModelForward"]

WRITTEN = "mla_written"  # the keyword in which attentions hear which of the new tokens (B, S) are no padding


class ModelForward:
    """The `forward` of a module with a cache: a call that fails leaves the cache as it was, in all layers.

    That holds for an interrupt too, which hooks of torch do not see. `tells_padding`: whether the module is the one
    whose attentions are patched; from a mask (B, tokens so far) they then learn which new tokens are padding.
    """

    def __init__(self, module: nn.Module, tells_padding: bool) -> None:
        self.module = module
        self.tells_padding = tells_padding
        self.own = vars(module).get("forward")  # what the instance had before, if anything
        module.forward = self

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the module's own `forward`: `generate` looks for the names of arguments."""
        return inspect.signature(self._forward())

    def _forward(self) -> Callable[..., Any]:
        return self.own if self.own is not None else MethodType(type(self.module).forward, self.module)

    # Blocks are bookkeeping in NumPy. The module's own frames are compiled as before.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own `forward` takes, gives and raises."""
        given = self.__signature__.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        cache = given.get("cache", given.get("past_key_values"))
        if cache is not None:
            check_cache_kind(cache)  # here, where transformers has not asked another kind for what it lacks
        if self.tells_padding:
            written = _written(given, cache)
            kwargs = kwargs if written is None else kwargs | {WRITTEN: written}
        with restored_on_failure(cache):
            return self._forward()(*args, **kwargs)

    def remove(self) -> None:
        """Gives the module back what it had."""
        if self.own is None:
            del self.module.forward
        else:
            self.module.forward = self.own


def _written(given: dict[str, Any], cache: Any) -> torch.Tensor | None:
    """Of the new tokens (B, S), which are no padding; None where the mask does not say."""
    mask = given.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return None
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        return None
    length = tokens.shape[1] + (0 if cache is None else cache.get_seq_length())
    if tuple(mask.shape) != (tokens.shape[0], length):
        raise ValueError(f"attention_mask: expected shape ({tokens.shape[0]}, {length}), got {tuple(mask.shape)}")
    return mask[:, length - tokens.shape[1] :].bool()
