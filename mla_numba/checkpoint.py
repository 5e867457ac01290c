"""A layer's attention projections from a DeepSeek checkpoint in the Hugging Face layout."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ._checks import BF16, Array, check_choice, check_int
from .attention_weights import CheckpointLayer, read_attention
from .dims import MAX_WEIGHT_BYTES, MlaDims
from .model_config import read_config_file, read_model_config
from .shards import Shard, find_shards, import_safetensors
from .weights import QUANT_MODES

__all__ = ["Checkpoint", "CheckpointLayer"]

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_WEIGHTS = ("BF16", "F32", "F8_E4M3")
_SCALES = ("F32", "BF16", "F8_E8M0")
_VECTORS = ("BF16", "F32")
_FP8_VALUES = np.arange(256, dtype=np.uint8).view(_FP8).astype(np.float32)
_ROWS = 128  # of a weight without scales, taken at a time


class Checkpoint:
    """A folder with `config.json` and `model.safetensors`, or shards of it and `model.safetensors.index.json`.

    Models of the families in `mla_numba.model_config.FAMILIES`: DeepSeek-V3, V3.1, V3.2, V2 with a `q_lora_rank`, and
    others of that attention. Opening one reads the JSON files only. Needs the package safetensors
    (`pip install 'mla_numba[hf]'`).

    `config` is the parsed `config.json` (`RopeTable.from_hf(checkpoint.config)` has the rope's tables), `dims` the
    model's `MlaDims`, `v_head_dim` its V.

    Raises `ImportError` without safetensors, `OSError` for a file that is missing or cannot be read, `TypeError` or
    `ValueError` naming the file and the field for a model that this prolog does not compute: of another family, without
    `q_lora_rank`, or with a setting that changes queries, keys or the cache's rows.
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
            self._block = _block_of(self.config)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None
        self._shards = find_shards(self.folder)

    @cached_property
    def layers(self) -> list[int]:
        """The layers whose attention it holds; those of multi-token prediction follow the model's own."""
        found = (re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.kv_b_proj\.weight", name) for name in self._shards)
        return sorted(int(match[1]) for match in found if match)

    def load_layer(
        self,
        layer: int,
        quant: str = "b",
        smooth_scales_cq: Array | None = None,
        *,
        finished: Callable[[str], None] = lambda name: None,
    ) -> CheckpointLayer:
        """The weights of one layer in a mode: "none" as they are, "a", "b" or "ab" quantised by `MlaWeights.quantize`.

        From `model.layers.{layer}.self_attn`, whose Linear weights are (out, in):

        | field               | is                                                                           |
        |---------------------|------------------------------------------------------------------------------|
        | w_dq, gamma_cq      | q_a_proj.weight transposed, q_a_layernorm.weight                             |
        | w_uq_qr             | q_b_proj.weight transposed; of each head D columns nope and R rope           |
        | w_dkv_kr, gamma_ckv | kv_a_proj_with_mqa.weight transposed; kv_a_layernorm.weight                  |
        | w_uk[n]             | of kv_b_proj.weight the first D of the D + V rows of head n                  |
        | w_uv[n]             | the last V of them, transposed                                               |
        | epsilon_*           | rms_norm_eps of the configuration (transformers' own class always has 1e-6)  |

        Weights are bf16, float32 (rounded to bf16) or FP8 E4M3 with a float32, bf16 or E8M0 scale a block,
        `weight_scale_inv`: value times scale in float32, rounded to bf16. The last blocks of a row or column may be
        partial; the size of a block is `quantization_config.weight_block_size`, by default 128 x 128.

        The rope columns of these checkpoints are interleaved pairs, which is what the prolog takes (`rope_interleave`
        of transformers' DeepseekV3Config, true by default; V2 and V3.2 know no other). Those of a configuration where
        it is false are brought into that order; the prolog's outputs are then what transformers computes.

        Only these tensors are read, mapped into memory; `finished` is called with the name of each.

        Raises `OSError` for a shard that is missing, `TypeError` or `ValueError` naming file and tensor for one that is
        missing, of another dtype or shape or not finite, or in a shard that is truncated.
        """
        check_int("layer", layer, 0)
        check_choice("quant", quant, QUANT_MODES)
        if layer not in self.layers:
            raise ValueError(f"layer: expected one of {_ranges(self.layers)} in {self.folder}, got {layer}")
        source = _Source(self._shards, self._block, f"model.layers.{layer}.self_attn.", finished)
        weights, w_uv = read_attention(source, self.dims, self.v_head_dim, self._epsilon, self._rope_interleave)
        return CheckpointLayer(weights.quantize(quant, smooth_scales_cq), w_uv)


class _Source:
    """Reads tensors of one layer; a shard is opened, and its header checked, once."""

    def __init__(
        self, shards: dict[str, Path], block: tuple[int, int], prefix: str, finished: Callable[[str], None]
    ) -> None:
        self._shards = shards
        self._block = block
        self._prefix = prefix
        self._finished = finished
        self._open: dict[Path, Shard] = {}

    def vector(self, module: str, n: int) -> Array:
        """A norm's weight as bf16 (n,)."""
        name = f"{self._prefix}{module}.weight"
        shard = self._shard(name)
        values = shard.tensor(name, _VECTORS, (n,)).astype(BF16)
        shard.check_finite(name, values, 0)
        self._finished(name)
        return values

    def weight(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight as bf16 (n_out, n_in)."""
        out = np.empty((n_out, n_in), BF16)
        self._read(f"{self._prefix}{module}.weight", out)
        return out

    def transposed(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight as bf16 (n_in, n_out)."""
        out = np.empty((n_in, n_out), BF16)
        self._read(f"{self._prefix}{module}.weight", out.T)
        return out

    def _read(self, name: str, out: Array) -> None:
        shard = self._shard(name)
        weight = shard.tensor(name, _WEIGHTS, out.shape)
        blocks = self._dequantised(name, weight) if weight.dtype == _FP8 else _by_rows(weight)
        row = 0
        for values in blocks:
            shard.check_finite(name, values, row)
            out[row : row + len(values)] = values.astype(BF16)
            row += len(values)
        self._finished(name)

    def _dequantised(self, name: str, weight: Array) -> Iterator[Array]:
        """float32 values of an FP8 weight, a row of blocks at a time."""
        n_rows, n_columns = self._block
        shape = (-(-weight.shape[0] // n_rows), -(-weight.shape[1] // n_columns))
        scale_name = f"{name}_scale_inv"
        scales = self._shard(scale_name).tensor(scale_name, _SCALES, shape).astype(np.float32)
        for i, of_blocks in enumerate(scales):
            codes = weight[i * n_rows : (i + 1) * n_rows].view(np.uint8)
            yield _FP8_VALUES[codes] * np.repeat(of_blocks, n_columns)[: weight.shape[1]]

    def _shard(self, tensor: str) -> Shard:
        path = self._shards.get(tensor)
        if path is None:
            where = next(iter(self._shards.values())).parent
            raise ValueError(f"{where}: {tensor}: expected a tensor of that name, got none")
        if path not in self._open:
            self._open[path] = Shard.open(path, tensor)
        return self._open[path]


def _block_of(config: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of a block that shares an FP8 scale."""
    size = (config.get("quantization_config") or {}).get("weight_block_size") or (128, 128)
    if len(size) != 2:
        raise ValueError(f"config.quantization_config.weight_block_size: expected two numbers, got {size}")
    rows, columns = (check_int("config.quantization_config.weight_block_size", n, 1) for n in size)
    return rows, columns


def _by_rows(weight: Array) -> Iterator[Array]:
    for row in range(0, len(weight), _ROWS):
        yield weight[row : row + _ROWS]


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs) or "none"
