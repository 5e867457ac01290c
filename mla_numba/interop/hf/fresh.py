"""Whether the weights that a prolog has packed are still those of the model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

__all__ = ["PackedFrom", "uncalled"]

_N_SAMPLES = 64  # elements of a weight that are compared in each call
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # so that NaN equals itself


class PackedFrom:
    """What an attention's weights were when they were packed: objects, versions, and the bits of some elements.

    Torch counts the changes of a tensor, but not those through `.data`, and not at all those of a tensor that was made
    in inference mode. So 64 elements of each weight, in other rows and columns, are compared too. A copy of the model
    has objects of its own: a copy of this takes them as they are in its first `check` and compares the elements.
    `modules`: names within the attention, with dots where a module is deeper.
    """

    def __init__(self, name: str, attention: nn.Module, modules: tuple[str, ...]) -> None:
        self.name = name
        self.attention = attention
        self.modules = {module: _module(attention, module) for module in modules}
        self.weights = {module: _weights(found) for module, found in self.modules.items()}
        self.epsilons = {module: _epsilon(found) for module, found in self.modules.items()}
        self.samples = {module: [_sample(weight) for _, weight in found] for module, found in self.weights.items()}
        self.marks: dict[str, list[tuple[int, int]]] = {}
        self._mark()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"marks": {}}

    def _mark(self) -> None:
        self.marks = {module: [_mark(weight) for _, weight in found] for module, found in self.weights.items()}

    def check(self) -> None:
        """Raises `ValueError` naming the module or parameter that is another one or has changed since."""
        if not self.marks:
            self._mark()
        found = next(filter(None, map(self._difference, self.modules)), None)
        if found is not None:
            raise ValueError(
                f"{self.name}.{found} (the prolog computes with the weights that it packed; "
                "`refresh()` of the patched model packs the present ones)"
            )

    def _difference(self, name: str) -> str | None:
        module = _module(self.attention, name)
        if module is not self.modules[name]:
            return f"{name}: expected the module that was packed, got another {type(module).__name__}"
        kept = zip(self.weights[name], self.marks[name], self.samples[name], strict=True)
        for (kind, packed), mark, sample in kept:
            weight = _weight(module, kind)
            if weight is not packed:
                return f"{name}.{kind}: expected the parameter that was packed, got another"
            if weight is not None and (_mark(weight) != mark or not _equal(_sample(weight), sample)):
                return f"{name}.{kind}: expected the values that were packed, got changed ones"
        epsilon, value = self.epsilons[name]
        found = vars(module).get(epsilon)
        if found != value:
            return f"{name}.{epsilon}: expected {value}, which was packed, got {found}"
        return uncalled(name, module)


def uncalled(name: str, module: nn.Module) -> str | None:
    """What calling a module would do besides its class's own forward, such as a hook; None for nothing."""
    if "_hf_hook" in vars(module):
        return (
            f"{name}: expected a module without hooks of accelerate, got {type(module._hf_hook).__name__} "
            "(load the whole model into memory, without a device_map)"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        return f"{name}: expected no forward hooks, as a patched model does not call the module, got some"
    if "forward" in vars(module):
        return f"{name}.forward: expected that of {type(module).__name__}, got one that was put in its place"
    return None


def _module(attention: nn.Module, name: str) -> Any:
    """The module of this name, or None."""
    found: Any = attention
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _mark(weight: torch.Tensor | None) -> tuple[int, int]:
    """Where a weight lies, and how often it was changed; tensors of inference mode do not count."""
    if weight is None or not _is_plain(weight):
        return 0, 0
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


def _weights(module: nn.Module) -> list[tuple[str, torch.Tensor | None]]:
    """The parameters that a module of its kind computes with, by name; None for those that this one has not."""
    return [(kind, _weight(module, kind)) for kind in ("weight", "bias") if hasattr(module, kind)]


def _weight(module: nn.Module, kind: str) -> torch.Tensor | None:
    own = module._parameters  # what a module lacks raises in `getattr`, which takes longer than all else here
    return own[kind] if kind in own else getattr(module, kind, None)


def _epsilon(module: nn.Module) -> tuple[str, Any]:
    """The name and value of a norm's epsilon: an RMSNorm of transformers has another name for it than a LayerNorm."""
    name = "variance_epsilon" if "variance_epsilon" in vars(module) else "eps"
    return name, vars(module).get(name)


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.layout == torch.strided


def _sample(weight: torch.Tensor | None) -> torch.Tensor | None:
    """The bits of some elements; None of a weight that has no plain memory."""
    if weight is None or not _is_plain(weight) or weight.device.type != "cpu":
        return None
    return weight.detach().view(_INTEGERS[weight.element_size()])[_places(tuple(weight.shape))]


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


@lru_cache(maxsize=64)
def _places(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Indices of elements that lie apart in each dimension: the last ones are in other columns than the first."""
    steps = torch.arange(_N_SAMPLES)
    # A stride that shares no factor with the number of samples takes the other dimensions in another order.
    return tuple(((steps * (2 * i + 1) % _N_SAMPLES) * n + n // 2) // _N_SAMPLES for i, n in enumerate(shape))
