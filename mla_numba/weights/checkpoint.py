"""A layer's attention projections from a DeepSeek checkpoint in the Hugging Face layout."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..base.checks import (
    Array,
    check_choice,
    check_int,
)
from ..base.dims import MAX_WEIGHT_BYTES, MlaDims
from ..base.head_shard import HeadShard
from ..base.indexer_dims import IndexerDims
from ..base.model_config import read_config_file, read_model_config
from ..base.modes import QUANT_MODES, QuantMode
from ..base.short_repr import dims_text, short_repr
from .attention import CheckpointLayer, read_attention
from .checkpoint_source import CheckpointSource
from .indexer import IndexerWeights, check_power_of_two
from .indexer_checkpoint import check_indexer_names, find_indexer, read_indexer
from .quantization_config import block_of, method_of
from .safetensors_file import find_shards, import_safetensors
from .tensor_names import PREFIXES, AttentionNames, check_names, find_attentions, summary

__all__ = ["Checkpoint", "CheckpointLayer"]

_INT8_OF_MODE = {"a": ("q_a_proj", "kv_a_proj_with_mqa"), "b": ("q_b_proj",)}


class Checkpoint:
    """A folder with `config.json` and `model.safetensors`, or shards of it and `model.safetensors.index.json`.

    Models of the families in `mla_numba.base.model_config.FAMILIES`: DeepSeek-V3, V3.1, V3.2, V2 with a `q_lora_rank`,
    and others with that attention. Opening a checkpoint reads only its JSON files. Needs the package safetensors
    (`pip install 'mla_numba[hf]'`).

    `config` is the parsed `config.json` (`RopeTable.from_hf(checkpoint.config)` has the rope's tables), `dims` the
    model's `MlaDims`, `v_head_dim` its V, `layers` the numbers of the layers that are there.

    Args:
        folder: The folder.

    Raises:
        ImportError: safetensors is not installed.
        OSError: A file is missing or cannot be read.
        TypeError: A field of the configuration, which the message names beside its file, is of another type.
        ValueError: The model is none that this prolog computes: of another family, without `q_lora_rank`, or with a
            setting that changes queries, keys or the cache's rows.

    Examples:
        >>> import mla_numba as mla
        >>> checkpoint = mla.Checkpoint("DeepSeek-V3.2")  # doctest: +SKIP
        >>> weights, w_uv = checkpoint.load_layer(0, "b")  # doctest: +SKIP
        >>> prolog = mla.MlaProlog(weights)  # doctest: +SKIP
        >>> rope = mla.RopeTable.from_hf(checkpoint.config)  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import_safetensors()
        self.folder = Path(folder)
        path = self.folder / "config.json"
        self.config = read_config_file(path)
        try:
            model = read_model_config(self.config)
            self.dims = MlaDims.from_hf(self.config)
            most = max(MAX_WEIGHT_BYTES // (2 * self.dims.num_attention_heads * self.dims.kv_lora_rank), 1)
            self.v_head_dim = check_int(f"{model.name}.v_head_dim", model.v_head_dim, 1, most)
            self._epsilon = model.epsilon
            self._rope_interleave = model.rope_interleave
            self._block, self._method = block_of(self.config), method_of(self.config)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None
        self._shards = find_shards(self.folder)

    def __repr__(self) -> str:
        layers = f"layers {_ranges(self.layers)}"
        return short_repr(self, str(self.folder), dims_text(self.dims), f"v_head_dim={self.v_head_dim}", layers)

    @cached_property
    def layers(self) -> list[int]:
        """The layers of whose attention it holds tensors; those of multi-token prediction follow the model's own."""
        return sorted(self._attentions)

    @cached_property
    def _attentions(self) -> dict[int, list[AttentionNames]]:
        return find_attentions(self._shards)

    def load_layer(
        self,
        layer: int,
        quant: QuantMode = "b",
        smooth_scales_cq: Array | None = None,
        *,
        shard: tuple[int, int] | None = None,
        finished: Callable[[str], None] = lambda name: None,
    ) -> CheckpointLayer:
        """The weights of one layer in a mode.

        From `model.layers.{layer}.self_attn` (or what stands for it: `language_model.model.layers`, DeepSeek's own
        `layers.{layer}.attn.wq_a`, ...), whose Linear weights are (out, in):

        | field               | is                                                                           |
        |---------------------|------------------------------------------------------------------------------|
        | w_dq, gamma_cq      | q_a_proj.weight transposed, q_a_layernorm.weight                             |
        | w_uq_qr             | q_b_proj.weight transposed; of each head D columns nope and R rope           |
        | w_dkv_kr, gamma_ckv | kv_a_proj_with_mqa.weight transposed; kv_a_layernorm.weight                  |
        | w_uk[n]             | of kv_b_proj.weight the first D of the D + V rows of head n                  |
        | w_uv[n]             | the last V of them, transposed                                               |
        | epsilon_*           | rms_norm_eps of the configuration (transformers' own class always has 1e-6)  |

        Weights are bf16, or float32 or float16 (rounded to bf16), or codes, FP8 E4M3 or int8, with a scale
        `weight_scale_inv`, `weight_scale` or (DeepSeek's own) `scale`, in float32, bf16, float16 or E8M0: one for the
        tensor, for each row (out,) or (out, 1), for 32 columns of a row (E8M0 only), or for each block. The last blocks
        of a row or column may be partial; the size of a block is `quantization_config.weight_block_size`, by default
        128 x 128.

        int8 codes with one scale a row become `w_uq_qr` in modes b and ab, `w_dq` and `w_dkv_kr` in a and ab: codes and
        scales unchanged, to the bit. All other codes become `bf16(float32(code) * scale)`, those of `kv_b_proj` in
        every mode. A weight that is then bf16, and is int8 in the wanted mode, is quantised as by
        `MlaWeights.quantize`.

        The rope columns of these checkpoints are interleaved pairs, as the prolog takes them (`rope_interleave` of
        transformers' DeepseekV3Config, true by default; always so in V2 and V3.2). If a configuration says false, the
        columns are reordered, and the prolog's outputs are those of transformers.

        Only these tensors are read, mapped into memory; of q_b_proj and kv_b_proj only the rows of the shard's heads,
        and all scales.

        Args:
            layer: The layer's number, one of `layers`.
            quant: "none" in bf16, "a", "b" or "ab" with int8 weights.
            smooth_scales_cq: As for `MlaWeights.quantize`: for weights that are quantised here, so not with int8 codes
                of `q_b_proj`.
            shard: A rank and the number of ranks: the weights are those of the rank's heads (`HeadShard`), w_uv too.
            finished: Called with the name of each weight that was read.

        Returns:
            The weights of the prolog, and the value half of `kv_b_proj`.

        Raises:
            OSError: A shard is missing.
            TypeError: A tensor, named in the message beside its file, is of another dtype.
            ValueError: It is missing, of another shape, not finite, or in a shard that is truncated; or the attention
                has one that the prolog would have to apply and does not: a bias, an offset, packed weights (by format).
        """
        check_int("layer", layer, 0)
        check_choice("quant", quant, QUANT_MODES)
        if smooth_scales_cq is not None and "b" not in quant:
            raise ValueError("smooth_scales_cq: expected None where w_uq_qr is not quantised, got an array")
        head_shard = None if shard is None else HeadShard(*_pair(shard), self.dims.num_attention_heads)
        names = self._attention(layer)
        try:
            check_names(names, self._method)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        int8 = {module for mode, modules in _INT8_OF_MODE.items() if mode in quant for module in modules}
        source = CheckpointSource(self._shards, self._block, names, int8, head_shard, finished)
        dims = self.dims
        if head_shard is not None:
            dims = replace(dims, num_attention_heads=len(head_shard.heads))
        weights, w_uv = read_attention(source, dims, self.v_head_dim, self._epsilon, self._rope_interleave, head_shard)
        if "b" in weights.quant and smooth_scales_cq is not None:
            raise ValueError(
                f"smooth_scales_cq: expected None where {names.module('q_b_proj')} holds int8 codes "
                "(load_layer(layer, 'none').weights.quantize quantises them anew), got scales"
            )
        if weights.quant != quant or quant == "none":
            weights = weights.quantize(quant, smooth_scales_cq)
        return CheckpointLayer(weights, w_uv)

    @cached_property
    def indexer_layers(self) -> list[int]:
        """The layers that have an indexer of their own; in GLM-5.2 the others take the list of the last one before."""
        return [layer for layer in self.layers if any(find_indexer(names) for names in self._attentions[layer])]

    def load_indexer(
        self,
        layer: int,
        smooth_scales_cq: Array | None = None,
        *,
        finished: Callable[[str], None] = lambda name: None,
    ) -> IndexerWeights:
        """The weights of one layer's lightning indexer, in DeepSeek-V3.2, GLM-5 and their relatives.

        From `model.layers.{layer}.self_attn.indexer` (or what stands for it, see `load_layer`), whose Linear weights
        are (out, in):

        | field                  | is                                                                         |
        |------------------------|----------------------------------------------------------------------------|
        | w_qb, w_qb_scale       | wq_b.weight transposed, quantised by columns                               |
        | wk, w_proj             | wk.weight and weights_proj.weight transposed                               |
        | ln_gamma_k, ln_beta_k  | k_norm.weight, k_norm.bias                                                 |
        | hadamard_q, hadamard_k | `sylvester_hadamard(Di)`, as in DeepSeek's own code                         |
        | epsilon                | 1e-6                                                                       |
        | rope                   | "interleaved" or "half", see below                                         |

        `indexer_rope_interleave` of the configuration says how rope columns come; without it GLM-5's are "interleaved"
        and all others "half".
        Formats are those of `load_layer`: int8 codes with one scale a row stay as they are in w_qb.

        Args:
            layer: The layer's number, one of `indexer_layers`.
            smooth_scales_cq: Those of the prolog whose q_norm the indexer reads, see `IndexerWeights.from_bf16`; not
                with int8 codes of `wq_b`.
            finished: Called with the name of each tensor that was read.

        Returns:
            The weights.

        Raises:
            OSError: A shard is missing.
            TypeError: A tensor, named in the message beside its file, is of another dtype.
            ValueError: It is missing, of another shape, not finite, or in a shard that is truncated; the layer has no
                indexer, or one with a tensor that would have to be applied and is not; or the configuration has no
                dimensions of it.
        """
        check_int("layer", layer, 0)
        attention = self._attention(layer)
        names = find_indexer(attention)
        if names is None:
            there = f"one of {_ranges(self.indexer_layers)}" if self.indexer_layers else "a model with indexers"
            raise ValueError(
                f"layer: expected {there} in {self.folder}, got {layer}, which has no {attention.prefix}indexer"
            )
        try:
            dims, rope = IndexerDims.from_hf(self.config), read_model_config(self.config).index_rope
            check_power_of_two("config.index_head_dim", dims.head_dim)  # which the Hadamard matrices need
            check_indexer_names(names, self._method)
        except (TypeError, ValueError) as error:
            where = self.folder if str(error).startswith(names.prefix) else self.folder / "config.json"
            raise type(error)(f"{where}: {error}") from None
        source = CheckpointSource(self._shards, self._block, names, {"wq_b"}, None, finished)
        return read_indexer(source, dims, rope, smooth_scales_cq, names.prefix)

    def _attention(self, layer: int) -> AttentionNames:
        """The names of a layer's tensors."""
        if not self._attentions:
            raise ValueError(
                f"layer: expected tensors of an attention, {' or '.join(PREFIXES)}, in {self.folder}, "
                f"got {summary(self._shards)}"
            )
        if layer not in self._attentions:
            prefixes = sorted({names.any_layer for found in self._attentions.values() for names in found})
            raise ValueError(
                f"layer: expected one of {_ranges(self.layers)} in {self.folder} ({', '.join(prefixes)}), got {layer}"
            )
        found = self._attentions[layer]
        if len(found) > 1:
            prefixes_found = " and ".join(names.prefix for names in found)
            raise ValueError(f"{self.folder}: expected one attention of layer {layer}, got {prefixes_found}")
        return found[0]


def _pair(shard: object) -> tuple[int, int]:
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise TypeError(f"shard: expected a tuple (rank, size) or None, got {reprlib.repr(shard)}")
    return shard


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs) or "none"
