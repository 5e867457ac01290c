"""A call of the prolog: `mla_prolog_quant`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from tiling import ceil_div

from ..base.checks import BF16, FP16, FP32, INT8, Array, check_int
from ..base.dims import MlaDims
from ..base.modes import CONTIGUOUS_MODES, QUANT_MODES, DumpOperator, QuantMode
from ..cache import PagedCache
from ..oracle.bits import reference_run
from ..oracle.inputs import random_inputs
from ..oracle.reference import ReferenceOutput
from ..oracle.tolerance import TOLERANCES, Tolerance
from ..weights.plain import MlaWeights
from .caches import cache_outputs, random_latents, read_latents
from .call import CallOfArrays, Choices, Wanted
from .kinds import Kind, exactly, rows, vector
from .reader import InputReader
from .settings import DumpSettings

__all__ = ["PrologCall", "read_weights"]


@dataclass(frozen=True, slots=True, eq=False)
class PrologCall(CallOfArrays):
    """The arguments of a call of `MlaProlog(weights)`."""

    operator: ClassVar[DumpOperator] = "mla_prolog_quant"
    settings_read: ClassVar = ("dims", "block_size", "cache_mode", "nz", "numerics", "epsilon_cq", "epsilon_ckv")
    choices_read: ClassVar = ("smooth", "n_blocks", "scale_dtype")
    modes: ClassVar[tuple[QuantMode, ...]] = QUANT_MODES

    settings: DumpSettings
    weights: MlaWeights
    x: Array
    cos: Array
    sin: Array
    cache_index: Array | None
    cache: PagedCache

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """Weights, inputs and earlier tokens of a seed."""
        settings = replace(settings, dims=settings.dims or MlaDims.deepseek_v32())
        dims, quant, seed = settings.dims, choices.quant, choices.seed
        assert dims is not None
        least = ceil_div(choices.t, settings.block_size)
        n_blocks = least + 1 if choices.n_blocks is None else check_int("n_blocks", choices.n_blocks, least)
        weights = MlaWeights.random(dims, seed, quant, choices.smooth)
        weights = replace(weights, epsilon_cq=settings.epsilon_cq, epsilon_ckv=settings.epsilon_ckv)
        cache = random_latents(dims, n_blocks, settings, "b" in quant, choices.scale_dtype, seed)
        x, cos, sin, index = random_inputs(dims, choices.t, seed, cache.capacity)
        return cls(settings, weights, x, cos, sin, index if cache.paged else None, cache)

    @classmethod
    def read(cls, reader: InputReader) -> Self:
        """The call of a folder."""
        quantized, mode = reader.has("dequant_scale"), reader.settings.cache_mode
        optional = {"dequant_scale"} | ({"cache_index"} if mode in CONTIGUOUS_MODES else set())
        reader.expect_all(optional if quantized else optional | {"k_scale_cache"})
        dims = reader.dims()
        weights = read_weights(reader, dims)
        x = reader.read("x", rows(None, dims.hidden_size, dtype=BF16))
        t = len(x)
        cos, sin = (reader.read(key, rows(t, dims.qk_rope_head_dim, dtype=BF16)) for key in ("cos", "sin"))
        cache = read_latents(reader, dims.kv_lora_rank, dims.qk_rope_head_dim, INT8 if quantized else BF16)
        index = reader.slots(t, cache.capacity) if cache.paged else None
        if index is None and t > cache.capacity:
            raise ValueError(f"token_x: expected at most {cache.capacity} tokens, the rows of kv_cache, got {t}")
        return cls(replace(reader.settings, dims=dims), weights, x, cos, sin, index, cache)

    def inputs(self) -> dict[str, Array | None]:
        """The arguments that are there."""
        w = self.weights
        scale = w.dequant_scale_w_uq_qr
        return {
            "x": self.x,
            "w_dq": w.w_dq,
            "w_uq_qr": w.w_uq_qr,
            "dequant_scale": None if scale is None else scale[:, None],
            "w_uk": w.w_uk,
            "w_dkv_kr": w.w_dkv_kr,
            "gamma_cq": w.gamma_cq,
            "gamma_ckv": w.gamma_ckv,
            "cos": self.cos,
            "sin": self.sin,
            "cache_index": self.cache_index,
            **self.cache.arrays(),
            "dequant_scale_w_dq": w.dequant_scale_w_dq,
            "dequant_scale_w_dkv_kr": w.dequant_scale_w_dkv_kr,
            "smooth_scales_cq": w.smooth_scales_cq,
        }

    def reference(self) -> ReferenceOutput:
        """The oracle's outputs, with the numerics of the settings."""
        return reference_run(
            self.weights, self.x, self.cos, self.sin, self.cache_index, self.cache, numerics=self.settings.numerics
        )

    def wanted(self) -> dict[str, Wanted]:
        """The oracle's outputs that the mode has."""
        return self.wanted_of(self.reference(), TOLERANCES)

    def wanted_of(
        self, reference: ReferenceOutput, tolerances: Mapping[tuple[str, str], Tolerance]
    ) -> dict[str, Wanted]:
        """The outputs of `reference`, with these tolerances by output and kind of elements."""
        before = self.cache.arrays()
        named = np.arange(len(self.x)) if self.cache_index is None else self.cache_index
        unnamed = np.setdiff1d(np.arange(self.cache.capacity), named)
        found = {}
        for key in self.expected():
            name = key.removesuffix("_out")
            array = getattr(reference, name)
            tolerance = tolerances[key, "int8" if array.dtype == INT8 else "float"]
            if name in before:
                is_nz = self.cache.cache_mode == "PA_NZ" and name != "k_scale_cache"
                found[key] = Wanted(array, tolerance, before[name], unnamed, is_nz)
            else:
                found[key] = Wanted(array, tolerance)
        return found

    def expected(self) -> dict[str, list[Kind]]:
        """What each output of the mode may be."""
        t, dims, quantized = len(self.x), self.weights.dims, self.cache.quantized
        heads = dims.num_attention_heads
        expected = {"q_norm_out": [rows(t, dims.q_lora_rank, dtype=INT8 if quantized else BF16)]}
        if quantized:
            expected["q_norm_scale_out"] = [rows(t, 1, dtype=dtype) for dtype in (FP32, FP16)]
        expected["query_nope_out"] = [rows(t, heads, dims.kv_lora_rank, dtype=BF16)]
        expected["query_rope_out"] = [rows(t, heads, dims.qk_rope_head_dim, dtype=BF16)]
        return expected | cache_outputs(self.cache)

    def facts(self) -> dict[str, Any]:
        """Tokens and mode."""
        smooth = self.weights.smooth_scales_cq is not None
        return {"tokens": len(self.x), "quant": self.weights.quant, "smooth": smooth}

    @property
    def title(self) -> str:
        """Tokens, mode, numerics, cache and dimensions."""
        smooth = " smooth" if self.weights.smooth_scales_cq is not None else ""
        dims = ",".join(map(str, astuple(self.weights.dims)))
        settings = self.settings
        return (
            f"{len(self.x)} tokens, mode {self.weights.quant}{smooth}, {settings.numerics} numerics, "
            f"{settings.cache_mode}, dims {dims}"
        )


def read_weights(reader: InputReader, dims: MlaDims) -> MlaWeights:
    """The prolog's weights."""
    n_up = dims.num_attention_heads * dims.q_head_dim
    scales = {
        "w_dq": reader.scales("dequant_scale_w_dq", dims.q_lora_rank),
        "w_uq_qr": reader.scales("dequant_scale", n_up),
        "w_dkv_kr": reader.scales("dequant_scale_w_dkv_kr", dims.kv_a_dim),
    }

    def weight(key: str, k: int, n: int) -> Array:
        return reader.weight(key, k, n, BF16 if scales[key] is None else INT8)

    w_uk = exactly((dims.num_attention_heads, dims.qk_nope_head_dim, dims.kv_lora_rank), BF16)
    return MlaWeights(
        w_dq=weight("w_dq", dims.hidden_size, dims.q_lora_rank),
        w_uq_qr=weight("w_uq_qr", dims.q_lora_rank, n_up),
        w_uk=reader.read("w_uk", w_uk),
        w_dkv_kr=weight("w_dkv_kr", dims.hidden_size, dims.kv_a_dim),
        gamma_cq=reader.read("gamma_cq", *vector(dims.q_lora_rank, BF16)),
        gamma_ckv=reader.read("gamma_ckv", *vector(dims.kv_lora_rank, BF16)),
        dequant_scale_w_uq_qr=scales["w_uq_qr"],
        dequant_scale_w_dq=scales["w_dq"],
        dequant_scale_w_dkv_kr=scales["w_dkv_kr"],
        smooth_scales_cq=reader.scales("smooth_scales_cq", dims.q_lora_rank),
        epsilon_cq=reader.settings.epsilon_cq,
        epsilon_ckv=reader.settings.epsilon_ckv,
    )
