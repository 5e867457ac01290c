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

    The fields are those of `config.json`: `hidden_size` (H), `num_attention_heads` (N), `q_lora_rank` (Rq),
    `kv_lora_rank` (C), `qk_nope_head_dim` (D), `qk_rope_head_dim` (R), in this order.

    Raises:
        TypeError: A field is no int.
        ValueError: A field is below 1 or above 2^31 - 1, or `qk_rope_head_dim` is odd.

    Examples:
        >>> import mla_numba as mla
        >>> dims = mla.MlaDims.deepseek_v32()
        >>> dims.hidden_size, dims.num_attention_heads, dims.q_head_dim, dims.kv_a_dim
        (7168, 128, 192, 576)
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
        """From a model's configuration.

        Args:
            config: A mapping (the parsed `config.json`), or an object with those attributes. What a model of text and
                pictures has under `text_config` is found there.

        Returns:
            The model's dimensions.

        Raises:
            TypeError: A field, named in the message, is of another type.
            ValueError: A field is missing or null (a model without `q_lora_rank` has no query down-projection, so this
                prolog does not apply to it), a layer's weights would take more than 64 GiB, or there is a setting that
                this prolog does not compute (see `read_model_config`).

        Examples:
            >>> import mla_numba as mla
            >>> config = {"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128}
            >>> config |= {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
            >>> mla.MlaDims.from_hf(config) == mla.MlaDims.deepseek_v32()
            True
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
