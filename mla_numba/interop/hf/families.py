"""The attentions of transformers that are this prolog and attention over latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3Model
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention, DeepseekV32Model
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteAttention, Glm4MoeLiteModel
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaAttention, GlmMoeDsaModel
from transformers.models.mistral4.modeling_mistral4 import Mistral4Attention, Mistral4Model
from transformers.models.youtu.modeling_youtu import YoutuAttention, YoutuModel

from ...base.modes import RopeStyle

__all__ = ["HF_FAMILIES", "HfFamily", "family_of", "find_attentions"]


@dataclass(frozen=True)
class HfFamily:
    """Two classes of transformers, and what their attention does beside the prolog.

    - `indexed`: a layer has an indexer that selects keys; its rope columns are pairs, whatever the configuration says.
    - `indexer_rope`: how those of the indexer itself come.
    - `selection_returned`: `forward` returns the selected keys too, and layers without an indexer take the last ones.
    - `positions_scale_queries`: queries are multiplied by a factor of their position (`llama_4_scaling_beta`).
    """

    attention: type[nn.Module]
    model: type[nn.Module]
    indexed: bool = False
    indexer_rope: RopeStyle = "half"
    selection_returned: bool = False
    positions_scale_queries: bool = False

    def has_rope_pairs(self, config: Any) -> bool:
        """Whether the rope columns of the weights are interleaved pairs; else they are two halves."""
        return self.indexed or bool(config.rope_interleave)


HF_FAMILIES = (
    HfFamily(DeepseekV3Attention, DeepseekV3Model),  # R1, V3.1, Kimi-K2 and K2.5 too
    HfFamily(DeepseekV32Attention, DeepseekV32Model, indexed=True),
    HfFamily(GlmMoeDsaAttention, GlmMoeDsaModel, indexed=True, indexer_rope="interleaved", selection_returned=True),
    HfFamily(Glm4MoeLiteAttention, Glm4MoeLiteModel),
    HfFamily(YoutuAttention, YoutuModel),
    HfFamily(Mistral4Attention, Mistral4Model, positions_scale_queries=True),
)


def family_of(module: nn.Module) -> HfFamily | None:
    """The family of a model or of an attention."""
    return next((f for f in HF_FAMILIES if isinstance(module, (f.model, f.attention))), None)


def find_attentions(model: nn.Module) -> tuple[str, nn.Module, dict[str, nn.Module]]:
    """The name and the module of the one model of a family within `model`, and its attentions by name, in the order
    of their layers.

    Raises `TypeError` where there is none or several, or where the attentions are not those of layers 0, 1, ...
    """
    models, attentions = tuple(f.model for f in HF_FAMILIES), tuple(f.attention for f in HF_FAMILIES)
    bases: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, models)}
    if len(bases) != 1:
        what = "none" if not bases else f"{len(bases)} of them"
        raise TypeError(
            f"model: expected a module with one {', '.join(f.model.__name__ for f in HF_FAMILIES[:-1])} or "
            f"{HF_FAMILIES[-1].model.__name__} of transformers, got {type(model).__name__} with {what}"
        )
    prefix, base = next(iter(bases.items()))
    found: dict[str, Any] = {
        ".".join(filter(None, (prefix, name))): module
        for name, module in base.named_modules()
        if isinstance(module, attentions)
    }
    indices = [module.layer_idx for module in found.values()]
    if indices != list(range(len(indices))) or not indices:
        raise TypeError(f"model: expected attentions of layers 0, 1, ..., got those of {indices or 'none'}")
    return prefix, base, found
