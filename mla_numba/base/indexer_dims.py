"""The dimensions of a lightning indexer."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Self

from tiling.check import MAX_COUNT, check_int

__all__ = ["MAX_HEAD_DIM", "IndexerDims"]

MAX_HEAD_DIM = 1024  # float32 holds every sum of so many products of two int8 codes
_OF_INDEXER = re.compile(r"index(er)?_\w+")
_KNOWN = {  # settings of the indexer; those of the index itself, and of which layers have one, change nothing here
    "index_head_dim", "index_n_heads", "index_share_for_mtp_iteration", "index_skip_topk_offset", "index_topk",
    "index_topk_freq", "index_topk_pattern", "indexer_rope_interleave", "indexer_types",
}  # fmt: skip
_SETTINGS = {"n_heads": "index_n_heads", "head_dim": "index_head_dim"}  # of config.json, where it is another name


@dataclass(frozen=True, slots=True)
class IndexerDims:
    """Dimensions of the lightning indexer of one layer.

    | field              | letter | `config.json`    | DeepSeek-V3.2 | GLM-5 |
    |--------------------|--------|------------------|---------------|-------|
    | `hidden_size`      | H      | the same         | 7168          | 6144  |
    | `q_lora_rank`      | Rq     | the same         | 1536          | 2048  |
    | `n_heads`          | Ni     | `index_n_heads`  | 64            | 32    |
    | `head_dim`         | Di     | `index_head_dim` | 128           | 128   |
    | `qk_rope_head_dim` | R      | the same         | 64            | 64    |

    The first R of a head's Di columns are rotated.

    Raises:
        TypeError: A field is no int.
        ValueError: A field is below 1 or above 2^31 - 1, `head_dim` is above 1024 (float32 would not hold every sum of
            its int8 products), or `qk_rope_head_dim` is odd or above `head_dim`.

    Examples:
        >>> import mla_numba as mla
        >>> dims = mla.IndexerDims.deepseek_v32()
        >>> dims.n_heads, dims.head_dim, dims.query_dim
        (64, 128, 8192)
    """

    hidden_size: int
    q_lora_rank: int
    n_heads: int
    head_dim: int
    qk_rope_head_dim: int

    def __post_init__(self) -> None:
        for f in fields(self):
            check_int(f.name, getattr(self, f.name), 1, MAX_HEAD_DIM if f.name == "head_dim" else MAX_COUNT)
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim: expected an even number, got {self.qk_rope_head_dim}")
        if self.qk_rope_head_dim > self.head_dim:
            raise ValueError(
                f"qk_rope_head_dim: expected at most the {self.head_dim} columns of a head, got {self.qk_rope_head_dim}"
            )

    @property
    def query_dim(self) -> int:
        """Columns of all heads: Ni * Di."""
        return self.n_heads * self.head_dim

    @classmethod
    def deepseek_v32(cls) -> Self:
        """Those of DeepSeek-V3.2."""
        return cls(hidden_size=7168, q_lora_rank=1536, n_heads=64, head_dim=128, qk_rope_head_dim=64)

    @classmethod
    def from_hf(cls, config: Any) -> Self:
        """From a model's configuration.

        Args:
            config: A mapping (the parsed `config.json`), or an object with those attributes. What a model of text and
                pictures has under `text_config` is found there.

        Returns:
            The dimensions of the model's indexers.

        Raises:
            TypeError: A field, named in the message, is of another type.
            ValueError: A field is missing or null (a model without `index_n_heads` has no indexer), or there is a
                setting that the prolog does not compute (see `read_model_config`), or an unknown one whose name begins
                like those of indexers.

        Examples:
            >>> import mla_numba as mla
            >>> config = {"model_type": "deepseek_v32", "hidden_size": 7168, "q_lora_rank": 1536}
            >>> config |= {"index_n_heads": 64, "index_head_dim": 128, "qk_rope_head_dim": 64}
            >>> mla.IndexerDims.from_hf(config) == mla.IndexerDims.deepseek_v32()
            True
        """
        from .model_config import is_set, read_model_config, shown  # which needs NumPy

        model = read_model_config(config)
        for setting in model.settings:
            value = model.get(setting)
            if _OF_INDEXER.fullmatch(setting) and setting not in _KNOWN and is_set(value):
                reason = "no such setting of an indexer is known"
                raise ValueError(f"{model.name}.{setting[:60]}: expected none ({reason}), got {shown(value)}")
        values = {f.name: model.get(_SETTINGS.get(f.name, f.name)) for f in fields(cls)}
        for name, value in values.items():
            if value is None:
                without = " (a model without it has no indexer)" if name in _SETTINGS else ""
                raise ValueError(f"{model.name}.{_SETTINGS.get(name, name)}: expected an int{without}, got none")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            name, _, rest = str(error).partition(":")
            raise type(error)(f"{model.name}.{_SETTINGS.get(name, name)}:{rest}") from None
