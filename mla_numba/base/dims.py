"""The dimensions of a prolog, named as in a model's `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from tiling import PlanDims

__all__ = ["MAX_WEIGHT_BYTES", "MlaDims"]

MAX_WEIGHT_BYTES = 2**36  # of a layer in bf16, far more than any model has: 0.35 GB in DeepSeek-V3.2


@dataclass(frozen=True, slots=True)
class MlaDims(PlanDims):
    """Dimensions of the attention projections of one layer.

    Raises `TypeError` for a field that is no int, `ValueError` for one below 1 or above 2^31 - 1, or for an odd
    `qk_rope_head_dim`.
    """

    def __post_init__(self) -> None:
        PlanDims.__post_init__(self)  # no super(), which finds another class where there are slots
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim: expected an even number, got {self.qk_rope_head_dim}")

    @property
    def q_head_dim(self) -> int:
        """Columns of one head of the up-projected query: nope and rope."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kv_a_dim(self) -> int:
        """Columns of the down-projected key: latent and rope."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @classmethod
    def deepseek_v32(cls) -> Self:
        """DeepSeek-V3, V3.1 and V3.2 share these."""
        return cls(
            hidden_size=7168,
            num_attention_heads=128,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
        )

    @classmethod
    def from_hf(cls, config: Any) -> Self:
        """From a model's configuration: a mapping (the parsed `config.json`) or an object with those attributes.

        What a model of text and pictures has under `text_config` is found there. Raises `ValueError` naming the first
        field that is missing or null (a model without `q_lora_rank` has no query down-projection, so this prolog does
        not apply to it), the largest one where a layer's weights would take more than 64 GiB, and a setting that this
        prolog does not compute (see `read_model_config`).
        """
        from .model_config import read_model_config  # which needs NumPy

        model = read_model_config(config)
        values = {field.name: model.get(field.name) for field in fields(cls)}
        for name, value in values.items():
            if value is None:
                raise ValueError(f"{model.name}.{name}: expected an int, got none")
        try:
            dims = cls(**values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{model.name}.{error}") from None
        n_bytes = 2 * dims._n_weights()
        if n_bytes > MAX_WEIGHT_BYTES:
            largest = max(values, key=lambda name: getattr(dims, name))
            raise ValueError(
                f"{model.name}.{largest}: expected dimensions whose weights take at most {MAX_WEIGHT_BYTES} bytes a "
                f"layer, got {values[largest]}, hence {n_bytes} bytes"
            )
        return dims

    def _n_weights(self) -> int:
        """Elements of the projections of one layer."""
        down = self.hidden_size * (self.q_lora_rank + self.kv_a_dim)
        per_head = self.q_lora_rank * self.q_head_dim + self.qk_nope_head_dim * self.kv_lora_rank
        return down + self.num_attention_heads * per_head
