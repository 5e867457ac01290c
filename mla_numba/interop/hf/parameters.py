"""The weights of one attention of a transformers model: checked, and taken over by a prolog."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from ...base.checks import Array
from ...base.dims import MlaDims
from ...base.modes import QuantMode
from ...weights.attention import CheckpointLayer, read_attention
from ...weights.checkpoint import Checkpoint
from ...weights.quantize import QuantizationReport
from ..torch.tensors import to_numpy
from .families import HfFamily
from .forward import AttentionForward
from .fresh import uncalled

__all__ = ["REPLACED", "AttentionPart"]

_NORMS = ("q_a_layernorm", "kv_a_layernorm")
_PROJECTIONS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
REPLACED = _PROJECTIONS + _NORMS  # the modules of an attention that a patched model does not call
_ATTENTION_KINDS = ("eager", "sdpa")  # attention implementations whose masks are tensors of 4 dimensions, or None


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """An attention that can be patched, `name` its name in the model."""

    name: str
    attention: Any
    family: HfFamily
    dims: MlaDims
    v_head_dim: int

    @classmethod
    def check(
        cls, name: str, attention: Any, family: HfFamily, checkpoint: Checkpoint | None, patched: bool = False
    ) -> Self:
        """Checks all that `load` needs, and reads nothing.

        Raises `TypeError` or `ValueError` naming what the prolog cannot take over. With a `checkpoint`, the model's own
        projections only have to have its dimensions. `patched`: whether its `forward` is a prolog's already.
        """
        if not patched:
            _check_forward(name, attention)
        _check_settings(name, attention, family)
        dims = MlaDims(
            attention.hidden_size, attention.num_heads, attention.q_lora_rank, attention.kv_lora_rank,
            attention.qk_nope_head_dim, attention.qk_rope_head_dim,
        )  # fmt: skip
        part = cls(name, attention, family, dims, attention.v_head_dim)
        for module in REPLACED:
            more = uncalled(f"{name}.{module}", getattr(attention, module))
            if more is not None:
                raise ValueError(more)
        if checkpoint is None:
            for module, shape in part._shapes().items():
                _check_module(f"{name}.{module}", getattr(attention, module), shape)
        elif (checkpoint.dims, checkpoint.v_head_dim) != (dims, part.v_head_dim):
            raise ValueError(
                f"checkpoint: expected {dims} and v_head_dim {part.v_head_dim}, which the model has, "
                f"got {checkpoint.dims} and {checkpoint.v_head_dim}"
            )
        elif attention.layer_idx not in checkpoint.layers:
            raise ValueError(f"checkpoint: expected layer {attention.layer_idx}, got layers {checkpoint.layers}")
        elif checkpoint.config.get("rope_interleave", True) != part._rope_pairs:
            raise ValueError(
                f"checkpoint.config.rope_interleave: expected {part._rope_pairs}, which the model computes, "
                f"got {not part._rope_pairs}"
            )
        return part

    @property
    def _rope_pairs(self) -> bool:
        return self.family.has_rope_pairs(self.attention.config)

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

    def load(self, checkpoint: Checkpoint | None, quant: QuantMode) -> tuple[CheckpointLayer, QuantizationReport]:
        """The weights in a mode, of a checkpoint or of the model's own parameters, and the error that it brought.

        Weights that a checkpoint has as int8 keep their codes. The epsilons are the model's own, whatever a
        checkpoint's configuration says.
        """
        attention = self.attention
        epsilon_cq, epsilon_ckv = (getattr(attention, name).variance_epsilon for name in _NORMS)
        if checkpoint is not None:
            layer = checkpoint.load_layer(attention.layer_idx, quant)
        else:
            source = _Parameters(attention)
            with torch.no_grad():
                layer = read_attention(source, self.dims, self.v_head_dim, epsilon_cq, self._rope_pairs)
            layer = layer._replace(weights=layer.weights.quantize(quant))
        report = layer.weights.quantization or QuantizationReport({})
        weights = replace(layer.weights, epsilon_cq=epsilon_cq, epsilon_ckv=epsilon_ckv)
        return layer._replace(weights=weights), report

    def free(self) -> None:
        """Gives up the memory of the projections and norms that `load` read."""
        for name in REPLACED:
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


def _check_forward(name: str, attention: Any) -> None:
    """Raises where something else was put around or in place of an attention's own `forward`."""
    replaced = vars(attention).get("forward")
    if isinstance(replaced, AttentionForward):
        raise ValueError(f"{name}: expected an attention as transformers made it, got one that is patched already")
    if hasattr(attention, "_hf_hook"):
        raise ValueError(
            f"{name}: expected an attention without hooks of accelerate, got {type(attention._hf_hook).__name__} "
            "(load the whole model into memory, without a device_map)"
        )
    if replaced is not None:
        raise ValueError(
            f"{name}.forward: expected that of {type(attention).__name__}, got one that was put in its place (as "
            "accelerate's hooks do for a device_map of several devices): load the whole model into memory without one"
        )


def _check_settings(name: str, attention: Any, family: HfFamily) -> None:
    """Raises where an attention computes something that the prolog and attention over latents do not."""
    config = attention.config
    if attention.q_lora_rank is None:
        raise ValueError(f"{name}.q_lora_rank: expected an int (the prolog projects queries down), got None")
    if config.attention_bias:
        raise ValueError("model.config.attention_bias: expected False (the prolog adds no bias), got True")
    if not getattr(config, "is_causal", True):
        raise ValueError("model.config.is_causal: expected True, got False")
    beta = config.rope_parameters.get("llama_4_scaling_beta") if family.positions_scale_queries else None
    if beta:
        raise ValueError(
            "model.config.rope_parameters.llama_4_scaling_beta: expected 0 or none (queries are not multiplied by a "
            f"factor of their position), got {beta}"
        )
    if config._attn_implementation not in _ATTENTION_KINDS:
        kinds = " or ".join(_ATTENTION_KINDS)
        raise ValueError(f"model.config._attn_implementation: expected {kinds}, got {config._attn_implementation}")


def _check_module(name: str, module: Any, shape: tuple[int, ...]) -> None:
    """Raises where a Linear or a norm is not what the prolog can take over."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if len(shape) == 1:
        if not hasattr(module, "variance_epsilon") or any(module.children()):
            raise TypeError(f"{name}: expected an RMSNorm of transformers, got {kind}")
    elif not isinstance(module, nn.Linear) and any(isinstance(m, nn.Linear) for m in module.modules()):
        raise TypeError(
            f"{name}: expected a torch.nn.Linear, got {kind} around one (merge an adapter into the weight before "
            "`patch`: `merge_and_unload()`)"
        )
    elif not isinstance(module, nn.Linear):
        raise TypeError(f"{name}: expected a torch.nn.Linear, got {kind}")
    elif type(module).forward is not nn.Linear.forward or nn.utils.parametrize.is_parametrized(module):
        raise TypeError(
            f"{name}: expected a torch.nn.Linear, got {kind}, which computes something else (a quantised or "
            "parametrised one: load the model unquantised, or give `checkpoint`)"
        )
    elif module.bias is not None:
        raise ValueError(f"{name}.bias: expected None (the prolog adds no bias), got one")
    _check_weight(f"{name}.weight", module.weight, shape)


def _check_weight(name: str, weight: torch.Tensor, shape: tuple[int, ...]) -> None:
    if type(weight) not in (torch.Tensor, nn.Parameter):
        raise TypeError(
            f"{name}: expected a plain parameter, got a {type(weight).__name__} (a quantised weight, or one that is "
            "spread over processes)"
        )
    if weight.device.type == "meta":
        raise ValueError(
            f"{name}: expected a tensor on the CPU, got one on meta, which has no values (offloaded, not loaded, or "
            "given up by `keep_projections=False`)"
        )
    if weight.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {weight.device}")
    if weight.dtype != torch.bfloat16:
        raise TypeError(
            f"{name}: expected dtype torch.bfloat16 (from_pretrained(..., dtype=torch.bfloat16)), got {weight.dtype}"
        )
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")
    if not torch.isfinite(weight.detach()).all():
        raise ValueError(f"{name}: expected finite values, got NaN or Inf")
