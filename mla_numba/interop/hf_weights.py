"""The weights of one attention of a transformers model: checked, and taken over by a prolog."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from .._checks import Array
from ..attention_weights import CheckpointLayer, read_attention
from ..checkpoint import Checkpoint
from ..dims import MlaDims
from .tensors import to_numpy

__all__ = ["AttentionPart"]

_NORMS = ("q_a_layernorm", "kv_a_layernorm")
_PROJECTIONS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
_ATTENTION_KINDS = ("eager", "sdpa")  # whose masks are tensors of 4 dimensions, or none


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """An attention that can be patched, `name` its name in the model."""

    name: str
    attention: Any
    dims: MlaDims
    v_head_dim: int

    @classmethod
    def check(cls, name: str, attention: Any, checkpoint: Checkpoint | None) -> Self:
        """Checks all that `load` needs, and reads nothing.

        Raises `TypeError` or `ValueError` naming what the prolog cannot take over. With a `checkpoint`, the model's own
        projections only have to have its dimensions.
        """
        config = attention.config
        if "forward" in attention.__dict__:
            raise ValueError(f"{name}: expected an attention as transformers made it, got one that is patched already")
        if attention.q_lora_rank is None:
            raise ValueError(f"{name}.q_lora_rank: expected an int (the prolog projects queries down), got None")
        if config.attention_bias:
            raise ValueError("model.config.attention_bias: expected False (the prolog adds no bias), got True")
        if not getattr(config, "is_causal", True):
            raise ValueError("model.config.is_causal: expected True, got False")
        if config._attn_implementation not in _ATTENTION_KINDS:
            kinds = " or ".join(_ATTENTION_KINDS)
            raise ValueError(f"model.config._attn_implementation: expected {kinds}, got {config._attn_implementation}")
        dims = MlaDims(
            attention.hidden_size, attention.num_heads, attention.q_lora_rank, attention.kv_lora_rank,
            attention.qk_nope_head_dim, attention.qk_rope_head_dim,
        )  # fmt: skip
        part = cls(name, attention, dims, attention.v_head_dim)
        if checkpoint is None:
            for module, shape in part._shapes().items():
                _check_parameter(f"{name}.{module}", getattr(attention, module), shape)
        elif (checkpoint.dims, checkpoint.v_head_dim) != (dims, part.v_head_dim):
            raise ValueError(
                f"checkpoint: expected {dims} and v_head_dim {part.v_head_dim}, which the model has, "
                f"got {checkpoint.dims} and {checkpoint.v_head_dim}"
            )
        elif attention.layer_idx not in checkpoint.layers:
            raise ValueError(f"checkpoint: expected layer {attention.layer_idx}, got layers {checkpoint.layers}")
        return part

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """(out, in) of each Linear that a prolog replaces, and the length of each norm."""
        d = self.dims
        return {
            "q_a_proj": (d.q_lora_rank, d.hidden_size),
            "q_a_layernorm": (d.q_lora_rank,),
            "q_b_proj": (d.num_attention_heads * d.q_head_dim, d.q_lora_rank),
            "kv_a_proj_with_mqa": (d.kv_a_dim, d.hidden_size),
            "kv_a_layernorm": (d.kv_lora_rank,),
            "kv_b_proj": (d.num_attention_heads * (d.qk_nope_head_dim + self.v_head_dim), d.kv_lora_rank),
        }

    def load(self, checkpoint: Checkpoint | None) -> CheckpointLayer:
        """The weights, not quantised, of a checkpoint or of the model's own parameters.

        The epsilons are the model's own, whatever a checkpoint's configuration says.
        """
        attention = self.attention
        epsilon_cq, epsilon_ckv = (getattr(attention, name).variance_epsilon for name in _NORMS)
        if checkpoint is not None:
            layer = checkpoint.load_layer(attention.layer_idx, "none")
        else:
            pairs = getattr(attention.config, "rope_interleave", True)  # DeepSeek-V3.2 knows no other order
            with torch.no_grad():
                layer = read_attention(_Parameters(attention), self.dims, self.v_head_dim, epsilon_cq, pairs)
        return layer._replace(weights=replace(layer.weights, epsilon_cq=epsilon_cq, epsilon_ckv=epsilon_ckv))

    def free(self) -> None:
        """Gives up the memory of the projections and norms that `load` read."""
        for name in (*_PROJECTIONS, *_NORMS):
            module = getattr(self.attention, name)
            module.weight = nn.Parameter(torch.empty_like(module.weight, device="meta"), requires_grad=False)


@dataclass(frozen=True)
class _Parameters:
    """An `AttentionSource`: parameters in memory, of shapes that were checked."""

    attention: nn.Module

    def vector(self, module: str, n: int) -> Array:
        return to_numpy(self._weight(module).clone())

    def weight(self, module: str, n_out: int, n_in: int) -> Array:
        return to_numpy(self._weight(module).contiguous())

    def transposed(self, module: str, n_out: int, n_in: int) -> Array:
        return to_numpy(self._weight(module).t().contiguous())

    def _weight(self, module: str) -> torch.Tensor:
        weight: torch.Tensor = getattr(self.attention, module).weight
        return weight


def _check_parameter(name: str, module: Any, shape: tuple[int, ...]) -> None:
    """Raises where a Linear or a norm is not what the prolog can take over."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or (len(shape) == 2 and not isinstance(module, nn.Linear)):
        raise TypeError(f"{name}: expected a Linear or norm with a weight of its own, got {type(module).__name__}")
    if weight.dtype != torch.bfloat16:
        raise TypeError(
            f"{name}.weight: expected dtype torch.bfloat16 (from_pretrained(..., dtype=torch.bfloat16)), "
            f"got {weight.dtype}"
        )
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}.weight: expected shape {shape}, got {tuple(weight.shape)}")
    if weight.device.type != "cpu":
        raise ValueError(f"{name}.weight: expected a tensor on the CPU, got one on {weight.device}")
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name}.weight: expected finite values, got NaN or Inf")
