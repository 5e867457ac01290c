"""What the modules of a prolog and of an indexer have in common."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch

from .operator import OfLayer, make_handle

__all__ = ["LayerModule"]


class LayerModule(torch.nn.Module):
    """A module of a `prolog`, whose packed weights are no parameters. A copy of it shares them."""

    prolog: OfLayer

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "prolog" and name in self.__dict__:  # the handle would still stand for the former prolog
            raise AttributeError("prolog: expected to stay as the module was made, got an assignment")
        super().__setattr__(name, value)

    def _take_handle(self) -> None:
        # What `forward` needs, so that a compiler need not look into the prolog. Not a buffer, which `.to` would move.
        self._handle = make_handle(self.prolog)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_handle"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_handle()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self.prolog)] = self.prolog
        made = self.__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made
