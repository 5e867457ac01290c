"""Models of transformers with the prolog in their attention.

`patch(model)` replaces what the attention of a DeepSeek-V3 and of its relatives (`families`) does up to `o_proj`:
projections, norms and rope of queries and keys are one call of an `MlaProlog`, whose cache rows are latents in paged
blocks, and attention is `sparse_attention` over those blocks. Where a mask says more than which positions a query sees,
or weights are asked for, it is plain PyTorch over the same rows, `mla_numba.interop.hf.latent_attention`.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import NamedTuple, Self

from torch import nn
from transformers.utils import logging

from ...base.checks import (
    check_choice,
    check_flag,
    check_int,
    check_threads,
)
from ...base.indexer_dims import IndexerDims
from ...base.modes import NUMERICS, QUANT_MODES, Numerics, QuantMode
from ...base.short_repr import dims_text, short_repr, size_text
from ...kernels import max_threads
from ...prolog import MlaProlog
from ...weights.checkpoint import Checkpoint
from ...weights.quantize import QuantizationReport
from ..torch.prolog import TorchProlog, to_torch
from .cache import CacheSettings, LatentCache
from .calls import ModelForward
from .families import family_of, find_attentions
from .forward import AttentionForward
from .fresh import PackedFrom
from .index import INDEXER_MODULES, check_indexer_module, indexer_weights
from .parameters import REPLACED, AttentionPart

__all__ = ["Patched", "patch"]


def patch(
    model: nn.Module,
    *,
    quant: QuantMode = "none",
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    block_size: int = 128,
    n_blocks: int | None = None,
    n_threads: int | None = None,
    numerics: Numerics = "pypto",
    keep_projections: bool = True,
) -> Patched:
    """Puts a prolog into every attention of a model of transformers, in place.

    `generate` and direct calls of the model work as before: greedy, sampling, beams,
    left padding, chunks of a prompt, caches that are passed on. DeepSeek-V3.2 and GLM-5 keep their own indexer, which
    takes q_norm from the prolog; with an int8 q_norm ("b", "ab", numerics "pypto") `lightning_index` takes its place.
    There are no gradients. The weights are packed now: if they change later, calls are
    refused until `Patched.refresh` packs them again. On a terminal a progress bar counts the layers that are packed;
    `transformers.utils.logging.disable_progress_bar()` turns it off.

    Args:
        model: A DeepSeek-V3, V3.1, V3.2, Kimi-K2, GLM-5, GLM-4.7-Flash, Youtu or Mistral-4 for causal LM, its `Model`,
            or what contains one; bf16, on the CPU.
        quant: "none" leaves the weights as they are; "a", "b" and "ab" quantise them (`MlaWeights.quantize`), and with
            "b" the cache is int8.
        checkpoint: A `Checkpoint` or its folder, to read the weights of the projections from. None takes the model's
            own parameters. For the checkpoint that the model was loaded from, both give the same bits.
        block_size: Tokens in a block of the cache.
        n_blocks: Blocks of each layer's cache, allocated at once, with an error when there are too few; None lets the
            cache grow.
        n_threads: As for `MlaProlog`.
        numerics: As for `MlaProlog`.
        keep_projections: False frees the memory of the weights that the prologs replace. The model can then not be
            unpatched or saved.

    Returns:
        A handle that undoes it.

    Raises:
        TypeError: The model holds no such attention, or has weights that are not bf16. It is then as it was.
        ValueError: A module, named in the message, has no `q_lora_rank`, has biases, is on another device, has weights
            that are not finite, or scales queries by their position; the checkpoint has other dimensions; or the model
            is patched already. It is then as it was.

    Examples:
        >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
        >>> from mla_numba.interop.hf import patch  # doctest: +SKIP
        >>> model = AutoModelForCausalLM.from_pretrained("DeepSeek-V3", dtype="bfloat16")  # doctest: +SKIP
        >>> with patch(model, quant="b") as patched:  # doctest: +SKIP
        ...     model.generate(**inputs, max_new_tokens=20)
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
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    settings = _Settings(quant, n_threads, numerics, keep_projections)
    return Patched(model, checkpoint, settings, int(block_size), n_blocks)


class _Settings(NamedTuple):
    """Of `patch`, what `refresh` needs again."""

    quant: QuantMode
    n_threads: int | None
    numerics: Numerics
    keep_projections: bool


class Patched:
    """A patched model, as `patch` returns it.

    `model` is the model, `quant` the mode, `prologs` the `MlaProlog` of each layer, `quantization` the error that
    quantising each layer's weights brought. As a context manager it unpatches at the end of the block. `patch` has an
    example.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint | None,
        settings: _Settings,
        block_size: int,
        n_blocks: int | None,
    ) -> None:
        prefix, base, self._attentions = find_attentions(model)
        family = family_of(base)
        assert family is not None
        _refuse_sharding(model)
        parts = [AttentionPart.check(name, a, family, checkpoint) for name, a in self._attentions.items()]
        self.model = model
        self.quant = settings.quant
        self._family = family
        self._settings = settings
        self._cache_settings = CacheSettings(
            parts[0].dims, len(parts), "b" in settings.quant, family.indexed, block_size, n_blocks,
            _indexers(parts, settings) if family.indexed else (),
        )  # fmt: skip
        self._forwards = [AttentionForward(part.attention, family, self._cache_settings) for part in parts]
        self.prologs: list[MlaProlog] = []
        self.quantization: list[QuantizationReport] = []
        self._pack(parts, checkpoint)
        for forward in self._forwards:
            forward.attention.forward = forward
        self._around = [ModelForward(module, module is base) for module in _path(model, prefix)]

    def __repr__(self) -> str:
        first, memory = self.prologs[0], size_text(sum(prolog.weights.nbytes for prolog in self.prologs))
        name, layers = type(self.model).__name__, f"{len(self.prologs)} layers"
        return short_repr(self, name, layers, dims_text(first.dims), f"quant={self.quant!r}", memory)

    def _pack(self, parts: list[AttentionPart], checkpoint: Checkpoint | None) -> None:
        """Packs all layers, and then gives all of them their new weights."""
        made, reports = [], []
        for part in logging.tqdm(parts, desc="Packing weights", unit="layer", disable=None):
            (weights, w_uv), report = part.load(checkpoint, self.quant)
            indexer = None
            if self._cache_settings.indexers and part.attention.indexer is not None:
                indexer = indexer_weights(part.attention.indexer, self._family.indexer_rope)
                assert indexer.quantization is not None
                errors = {f"indexer.{name}": error for name, error in indexer.quantization.errors.items()}
                report = QuantizationReport({**report.errors, **errors})
            prolog = MlaProlog(
                weights, n_threads=self._settings.n_threads, numerics=self._settings.numerics, indexer=indexer
            )
            made.append((prolog, TorchProlog(prolog), to_torch(w_uv)))
            reports.append(report)
        for part, forward, (prolog, torch_prolog, values) in zip(parts, self._forwards, made, strict=True):
            if not self._settings.keep_projections:
                part.free()
            modules = REPLACED if prolog.indexer is None else REPLACED + INDEXER_MODULES
            forward.take(torch_prolog, values, PackedFrom(part.name, part.attention, modules))
        self.prologs = [prolog for prolog, _, _ in made]
        self.quantization = reports

    def refresh(self, checkpoint: Checkpoint | str | os.PathLike[str] | None = None) -> None:
        """Packs the weights again after they have changed: by an update, `load_state_dict` or a merged adapter.

        Caches that were filled before hold rows of the old weights.

        Args:
            checkpoint: A `Checkpoint` or its folder to read the projections from; None takes the model's own
                parameters, even if `patch` was given a checkpoint.

        Raises:
            TypeError: As `patch`; the model is then unchanged.
            ValueError: As `patch`, the model is then unchanged; or there is no checkpoint, and the projections were not
                kept.
        """
        if checkpoint is None and not self._settings.keep_projections:
            raise ValueError(
                "keep_projections: expected True for `refresh` without a checkpoint (the projections were given up), "
                "got False"
            )
        if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        parts = [
            AttentionPart.check(name, a, self._family, checkpoint, patched=True) for name, a in self._attentions.items()
        ]
        if self._family.indexed:
            _indexers(parts, self._settings)
        self._pack(parts, checkpoint)

    def new_cache(self) -> LatentCache:
        """An empty cache for `generate` or a direct call of the model, which make one themselves if none is given."""
        return LatentCache(self._cache_settings)

    def unpatch(self) -> None:
        """Gives the model its own attention back; its weights were never changed. Calling it again does nothing.

        Raises:
            ValueError: The weights were not kept, or something else, such as a hook of accelerate, was put since around
                the `forward` of a module, which the message names; the model is then unchanged.
        """
        if not self._settings.keep_projections:
            raise ValueError("keep_projections: expected True for a model to be unpatched, got False")
        around, forwards = self._around, self._forwards
        for module, own in [*((f.attention, f) for f in forwards), *((a.module, a) for a in around)]:
            if vars(module).get("forward") is not own:
                raise ValueError(
                    f"{type(module).__name__}.forward: expected the one that `patch` set, got another (whatever was "
                    "put around it since has to be removed first)"
                )
        self._around, self._forwards = [], []
        for module_forward in reversed(around):
            module_forward.remove()
        for forward in forwards:
            del forward.attention.forward

    def __enter__(self) -> Self:
        if not self._settings.keep_projections:
            raise ValueError("keep_projections: expected True where the block's end unpatches, got False")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unpatch()


def _indexers(parts: list[AttentionPart], settings: _Settings) -> tuple[IndexerDims | None, ...]:
    """The dimensions of each layer's indexer where the index is int8, else nothing."""
    if "b" not in settings.quant or settings.numerics != "pypto":
        return ()
    found = [(f"{part.name}.indexer", part.attention.indexer) for part in parts]
    return tuple(None if indexer is None else check_indexer_module(name, indexer) for name, indexer in found)


def _path(model: nn.Module, name: str) -> list[nn.Module]:
    """`model`, the modules down to the one of this name, and that one."""
    parts = name.split(".") if name else []
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]


def _refuse_sharding(model: nn.Module) -> None:
    """Raises for FSDP, under which a module has its weights only while it runs."""
    for name, module in model.named_modules():
        if any(kind.__name__ in ("FullyShardedDataParallel", "FSDPModule") for kind in type(module).__mro__):
            raise ValueError(
                f"model.{name}: expected a module whose weights are whole in this process, got {type(module).__name__} "
                "of FSDP"
            )
