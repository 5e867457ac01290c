"""A random call, what an operator is given for it, and what the oracle makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypedDict

import numpy as np

from tiling import ceil_div

from ..base.checks import BF16, Array, check_choice, check_int
from ..base.dims import MlaDims
from ..base.modes import SCALE_DTYPES, Numerics, QuantMode, ScaleDtype
from ..cache import PagedCache
from ..layouts import to_fractal_nz
from ..oracle.bits import reference_run
from ..oracle.inputs import random_inputs
from ..weights.plain import MlaWeights
from .names import NZ_WEIGHTS
from .settings import DumpSettings

__all__ = ["CallChoices", "GoldenCall"]


class CallChoices(TypedDict, total=False):
    """What may be chosen of a random call; see `write_dump`."""

    smooth: bool
    seed: int
    n_blocks: int | None
    scale_dtype: ScaleDtype


class GoldenCall(NamedTuple):
    """A random call; the cache holds earlier tokens."""

    weights: MlaWeights
    cache: PagedCache
    x: Array
    cos: Array
    sin: Array
    cache_index: Array | None

    @classmethod
    def random(
        cls,
        settings: DumpSettings,
        t: int,
        quant: QuantMode,
        *,
        smooth: bool = False,
        seed: int = 0,
        n_blocks: int | None = None,
        scale_dtype: ScaleDtype = "float32",
    ) -> GoldenCall:
        """Weights, inputs and earlier tokens of a seed; see `CallChoices`."""
        check_choice("scale_dtype", scale_dtype, SCALE_DTYPES)
        dims = settings.dims or MlaDims.deepseek_v32()
        least = ceil_div(check_int("t", t, 1), settings.block_size)
        n_blocks = least + 1 if n_blocks is None else check_int("n_blocks", n_blocks, least)
        weights = MlaWeights.random(dims, seed, quant, smooth)
        weights = replace(weights, epsilon_cq=settings.epsilon_cq, epsilon_ckv=settings.epsilon_ckv)
        empty = PagedCache.allocate(dims, n_blocks, settings.block_size, settings.cache_mode, "b" in quant)
        cache = _random_cache(empty, seed, scale_dtype)
        x, cos, sin, index = random_inputs(dims, t, seed, cache.capacity)
        return cls(weights, cache, x, cos, sin, index if cache.paged else None)

    def inputs(self, nz: bool) -> dict[str, Array]:
        """The arguments that are there, in the operator's order."""
        w = self.weights
        scale = w.dequant_scale_w_uq_qr
        arrays = {
            "token_x": self.x,
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
        there = {name: array for name, array in arrays.items() if array is not None}
        return there | ({name: to_fractal_nz(there[name]) for name in NZ_WEIGHTS} if nz else {})

    def outputs(self, numerics: Numerics) -> dict[str, Array]:
        """The oracle's."""
        reference = reference_run(
            self.weights, self.x, self.cos, self.sin, self.cache_index, self.cache, numerics=numerics
        )
        return {f"{name}_out": array for name, array in reference._asdict().items() if array is not None}


def _random_cache(cache: PagedCache, seed: int, scale_dtype: ScaleDtype) -> PagedCache:
    """The cache with earlier tokens of every slot in it."""
    rng = np.random.default_rng((check_int("seed", seed, 0), 2))
    kv = rng.integers(-127, 128, cache.kv.shape, np.int8) if cache.quantized else rng.standard_normal(cache.kv.shape)
    kr = rng.standard_normal(cache.kr.shape).astype(BF16)
    k_scale = None
    if cache.k_scale is not None:
        k_scale = rng.uniform(0.01, 0.04, cache.k_scale.shape).astype(scale_dtype)
    return PagedCache(kv.astype(cache.kv.dtype), kr, k_scale, cache.cache_mode)
