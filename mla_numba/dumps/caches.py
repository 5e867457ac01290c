"""Caches of a call: read from a folder, made at random, and what an operator may write of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.checks import BF16, FP16, FP32, INT8, Array, check_choice, renamed
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.modes import PAGED_MODES, CacheMode, PagedMode, ScaleDtype
from ..cache import N_SCALES, PagedCache
from ..indexer_cache import IndexerCache
from .kinds import Kind, cache_like, first_cache
from .reader import InputReader
from .settings import DumpSettings

__all__ = [
    "cache_outputs", "key_outputs", "paged_mode", "random_keys", "random_latents", "read_keys", "read_latents",
]  # fmt: skip


def paged_mode(settings: DumpSettings) -> PagedMode:
    """The cache mode of an operator whose caches have block tables or a cache_index. Raises `ValueError`."""
    check_choice("cache_mode", settings.cache_mode, PAGED_MODES)
    return "PA_NZ" if settings.cache_mode == "PA_NZ" else "PA_BSND"


def read_latents(reader: InputReader, latent: int, rope: int, *dtypes: np.dtype[Any]) -> PagedCache:
    """The cache `kv_cache`, `kr_cache` and, where it is there, `k_scale_cache`; kv_cache is of one of `dtypes`."""
    mode, block_size = reader.settings.cache_mode, reader.settings.block_size
    kv = reader.read("kv_cache", *(first_cache(latent, dtype, mode, block_size) for dtype in dtypes))
    kr = reader.read("kr_cache", cache_like(kv, rope, BF16, mode))
    k_scale = None
    if reader.has("k_scale_cache"):
        kinds = (cache_like(kv, N_SCALES, dtype, _mode_of_scales(mode)) for dtype in (FP32, FP16))
        k_scale = reader.read("k_scale_cache", *kinds)
    with renamed({key: reader.name(key) for key in ("kv_cache", "kr_cache", "k_scale_cache")}):
        return PagedCache(kv, kr, k_scale, mode)


def read_keys(reader: InputReader, width: int) -> IndexerCache:
    """The indexer's cache: codes `index_k` and scales `index_k_scale`."""
    mode = paged_mode(reader.settings)
    k = reader.read("index_k", first_cache(width, INT8, mode, reader.settings.block_size))
    k_scale = reader.read("index_k_scale", cache_like(k, 1, FP16, "PA_BSND"))
    with renamed({"k_cache": reader.name("index_k"), "k_scale_cache": reader.name("index_k_scale")}):
        return IndexerCache(k, k_scale, mode)


def cache_outputs(cache: PagedCache) -> dict[str, list[Kind]]:
    """What the caches may be that an operator wrote, by key."""
    expected = {}
    for name, array in cache.arrays().items():
        mode = cache.cache_mode if name != "k_scale_cache" else _mode_of_scales(cache.cache_mode)
        expected[f"{name}_out"] = [cache_like(cache.kv, array.shape[-1], array.dtype, mode)]
    return expected


def key_outputs(cache: IndexerCache) -> dict[str, list[Kind]]:
    """The same of the indexer's cache."""
    return {
        "index_k_out": [cache_like(cache.k, cache.k.shape[-1], INT8, cache.cache_mode)],
        "index_k_scale_out": [cache_like(cache.k, 1, FP16, "PA_BSND")],
    }


def random_latents(
    dims: MlaDims, n_blocks: int, settings: DumpSettings, quantized: bool, scale_dtype: ScaleDtype, seed: int
) -> PagedCache:
    """A cache with earlier tokens in every slot."""
    rng = np.random.default_rng((seed, 2))
    empty = PagedCache.allocate(dims, n_blocks, settings.block_size, settings.cache_mode, quantized)
    kv = rng.integers(-127, 128, empty.kv.shape, np.int8) if quantized else rng.standard_normal(empty.kv.shape)
    kr = rng.standard_normal(empty.kr.shape).astype(BF16)
    k_scale = None
    if empty.k_scale is not None:
        k_scale = rng.uniform(0.01, 0.04, empty.k_scale.shape).astype(scale_dtype)
    return PagedCache(kv.astype(empty.kv.dtype), kr, k_scale, empty.cache_mode)


def random_keys(dims: IndexerDims, n_blocks: int, settings: DumpSettings, seed: int) -> IndexerCache:
    """An indexer's cache with a key in every slot."""
    rng = np.random.default_rng((seed, 3))
    empty = IndexerCache.allocate(dims, n_blocks, settings.block_size, paged_mode(settings))
    k: Array = rng.integers(-127, 128, empty.k.shape, np.int8)
    return IndexerCache(k, rng.uniform(0.01, 0.04, empty.k_scale.shape).astype(FP16), empty.cache_mode)


def _mode_of_scales(cache_mode: CacheMode) -> CacheMode:
    """The order of a cache's scales, which have none in NZ."""
    return "PA_BSND" if cache_mode == "PA_NZ" else cache_mode
