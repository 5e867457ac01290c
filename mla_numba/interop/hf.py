"""DeepSeek models of transformers with the prolog in their attention.

`patch(model)` replaces what `DeepseekV3Attention` and `DeepseekV32Attention` do before attention proper: projections,
norms and rope of queries and keys are one call of an `MlaProlog`, whose cache rows are latents in paged blocks.
Attention itself is plain PyTorch over those latents, `mla_numba.interop.latent_attention`, for prompts and for single
tokens alike.
"""

from __future__ import annotations

import inspect
import os
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3Model
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention, DeepseekV32Model

from .._checks import check_choice, check_flag, check_int, check_threads
from ..checkpoint import Checkpoint
from ..engine import MlaProlog
from ..kernels import max_threads
from ..quantization import QuantizationReport
from ..reference import NUMERICS
from ..weights import QUANT_MODES
from .hf_attention import WRITTEN, AttentionForward
from .hf_cache import CacheSettings, LatentCache
from .hf_weights import AttentionPart
from .torch import TorchProlog, to_torch

__all__ = ["Patched", "patch"]


def patch(
    model: nn.Module,
    *,
    quant: str = "none",
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    block_size: int = 128,
    n_blocks: int | None = None,
    n_threads: int | None = None,
    numerics: str = "pypto",
    keep_projections: bool = True,
) -> Patched:
    """Puts a prolog into every attention of a DeepSeek-V3, V3.1 or V3.2 model of transformers, in place.

    - `model`: `DeepseekV3ForCausalLM`, `DeepseekV32ForCausalLM`, their `Model`, or what contains one; bf16, on the CPU.
    - `quant`: "none" leaves the weights as they are; "a", "b" and "ab" quantise them (`MlaWeights.quantize`), and with
      "b" the cache is int8.
    - `checkpoint`: a `Checkpoint` or its folder, to read the weights of the projections from. None takes the model's
      own parameters; from the checkpoint that the model was loaded from both are the same bits.
    - `block_size`: tokens a block of the cache. `n_blocks`: blocks of each layer's cache, allocated at once and an
      error when they do not suffice; None lets it grow.
    - `n_threads`, `numerics`: those of `MlaProlog`.
    - `keep_projections`: False gives up the memory of the weights that the prologs replace. The model can then not be
      unpatched, nor saved.

    Returns the handle that undoes it. `generate` and direct calls of the model then work as before: greedy, sampling,
    beams, left padding, chunks of a prompt, caches that are passed on. Of DeepSeek-V3.2 the indexer stays the model's
    own; it takes q_norm from the prolog. There are no gradients.

    Raises `TypeError` for a model that holds no such attention or has weights that are not bf16, `ValueError` naming
    the module for one without `q_lora_rank`, with biases, on another device or with weights that are not finite, for a
    checkpoint of other dimensions, and for a model that is patched already. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module of transformers, got {type(model).__name__}")
    check_choice("quant", quant, QUANT_MODES)
    check_int("block_size", block_size, 1)
    if n_blocks is not None:
        check_int("n_blocks", n_blocks, 1)
    n_threads = check_threads("n_threads", n_threads, max_threads())
    check_choice("numerics", numerics, NUMERICS)
    check_flag("keep_projections", keep_projections)
    base, attentions = _find(model)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    parts = [AttentionPart.check(name, attention, checkpoint) for name, attention in attentions.items()]
    settings = CacheSettings(
        parts[0].dims, len(parts), "b" in quant, isinstance(base, DeepseekV32Model), int(block_size), n_blocks
    )
    forwards, reports = [], []
    for part in parts:
        weights, w_uv = part.load(checkpoint)
        weights = weights.quantize(quant)
        prolog = MlaProlog(weights, n_threads=n_threads, numerics=numerics)
        forwards.append(AttentionForward(part.attention, TorchProlog(prolog), to_torch(w_uv), settings))
        reports.append(weights.quantization or QuantizationReport({}))
    if not keep_projections:
        for part in parts:
            part.free()
    return Patched(model, base, forwards, reports, settings, keep_projections)


class Patched:
    """A patched model, as `patch` returns it.

    `model` is the model, `quant` the mode, `prologs` the `MlaProlog` of each layer, `quantization` the error that
    quantising each layer's weights brought. As a context manager it unpatches at the end of the block.
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        forwards: list[AttentionForward],
        quantization: list[QuantizationReport],
        settings: CacheSettings,
        kept: bool,
    ) -> None:
        self.model = model
        self.prologs = [forward.prolog.prolog for forward in forwards]
        self.quant = self.prologs[0].weights.quant
        self.quantization = quantization
        self._forwards = forwards
        self._settings = settings
        self._kept = kept
        for forward in forwards:
            forward.attention.forward = forward
        self._hook = base.register_forward_pre_hook(_tell_padding, with_kwargs=True)

    def new_cache(self) -> LatentCache:
        """An empty cache for `generate` or a direct call of the model, which make their own where none is given."""
        return LatentCache(self._settings)

    def unpatch(self) -> None:
        """Gives the model its own attention back; its weights were never changed. Once is enough.

        Raises `ValueError` if the weights were not kept.
        """
        if not self._kept:
            raise ValueError("keep_projections: expected True for a model to be unpatched, got False")
        self._hook.remove()
        for forward in self._forwards:
            if forward.attention.__dict__.get("forward") is forward:
                del forward.attention.forward

    def __enter__(self) -> Self:
        if not self._kept:
            raise ValueError("keep_projections: expected True where the block's end unpatches, got False")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unpatch()


def _find(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The one DeepSeek model within `model`, and its attentions by name, in the order of their layers."""
    bases = [m for m in model.modules() if isinstance(m, (DeepseekV3Model, DeepseekV32Model))]
    if len(bases) != 1:
        what = "none" if not bases else f"{len(bases)} of them"
        raise TypeError(
            f"model: expected a module with one DeepseekV3Model or DeepseekV32Model of transformers, "
            f"got {type(model).__name__} with {what}"
        )
    base = bases[0]
    prefix = next(name for name, module in model.named_modules() if module is base)
    found = {
        ".".join(filter(None, (prefix, name))): module
        for name, module in base.named_modules()
        if isinstance(module, (DeepseekV3Attention, DeepseekV32Attention))
    }
    indices = [module.layer_idx for module in found.values()]
    if indices != list(range(len(indices))) or not indices:
        raise TypeError(f"model: expected attentions of layers 0, 1, ..., got those of {indices or 'none'}")
    return base, found


def _tell_padding(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Before a model runs: from a mask (B, tokens so far) its attentions learn which new tokens are padding."""
    given = inspect.signature(base.forward).bind_partial(*args, **kwargs).arguments
    given |= given.pop("kwargs", {})
    mask = given.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return None
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    cache = given.get("cache", given.get("past_key_values"))
    if tokens is None:
        return None
    length = tokens.shape[1] + (0 if cache is None else cache.get_seq_length())
    if tuple(mask.shape) != (tokens.shape[0], length):
        raise ValueError(f"attention_mask: expected shape ({tokens.shape[0]}, {length}), got {tuple(mask.shape)}")
    return args, kwargs | {WRITTEN: mask[:, length - tokens.shape[1] :].bool()}
