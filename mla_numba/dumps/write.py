"""Golden data: the inputs of a call and the oracle's outputs, as a folder of dumps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.checks import (
    BF16,
    Array,
    check_choice,
    check_int,
)
from ..base.dims import MlaDims
from ..base.output_file import write_text
from ..cache import PagedCache
from ..layouts import to_fractal_nz
from ..oracle.bits import reference_run
from ..oracle.inputs import random_inputs
from ..weights.plain import MlaWeights
from .elements import write_array
from .goldens import MARK_FILE, GoldenMark
from .names import NZ_WEIGHTS, OUTPUTS, STYLES, name_in
from .settings import SETTINGS_FILE, DumpSettings
from .torch_file import import_torch

__all__ = ["FORMATS", "write_dump"]

FORMATS = ("npy", "bin", "pt")
_ONLY_INT8 = ("q_norm_scale_out", "k_scale_cache_out")


def write_dump(
    folder: str | os.PathLike[str],
    t: int,
    quant: str = "b",
    *,
    settings: DumpSettings | None = None,
    smooth: bool = False,
    seed: int = 0,
    n_blocks: int | None = None,
    scale_dtype: str = "float32",
    file_format: str = "npy",
    style: str = "reference",
    finished: Callable[[str], None] = lambda name: None,
) -> list[Path]:
    """Writes inputs of `t` tokens and the oracle's outputs (`*_golden`) into a folder; the files' paths.

    It also writes `dims.json` with the settings, and `golden.json`, by which `read_dump` recognises these outputs.

    Weights and inputs are random ones of `seed`. Caches hold random rows, `n_blocks` blocks of them (default: one more
    than the tokens need), their scales in `scale_dtype`, "float32" or "float16". `file_format`: "npy", "bin", or "pt"
    for a tensor of torch a file; `style`: see `mla_numba.dump_names.name_in`. With `settings.nz` w_dq, w_uq_qr and
    w_dkv_kr are written as FRACTAL_NZ. `finished(argument)` is called after each file.

    The folder may exist, the files may not. Raises `TypeError` or `ValueError` naming the argument that does not fit,
    `FileExistsError` naming the first file that exists, `OSError` if one cannot be written; no file of the dump is left
    then. `ImportError` for "pt" without torch.
    """
    folder = Path(folder)
    settings = settings or DumpSettings()
    check_choice("file_format", file_format, FORMATS)
    check_choice("style", style, STYLES)
    if file_format == "pt":
        import_torch("file_format")
    call = _GoldenCall.random(settings, t, quant, smooth, seed, n_blocks, scale_dtype)
    arrays = call.inputs(settings.nz)
    names = [*arrays, *(name for name in OUTPUTS if "b" in quant or name not in _ONLY_INT8)]
    paths = {name: folder / f"{name_in(style, name)}.{file_format}" for name in names}
    _prepare(folder, [*paths.values(), folder / SETTINGS_FILE, folder / MARK_FILE])
    arrays |= call.outputs(settings.numerics)
    content = asdict(call.weights.dims) | {k: v for k, v in asdict(settings).items() if k != "dims"}
    begun = []
    try:
        for name, path in paths.items():
            begun.append(path)
            write_array(path, arrays[name])
            finished(name)
        begun.append(folder / SETTINGS_FILE)
        write_text(begun[-1], json.dumps(content, indent=1) + "\n")
        begun.append(folder / MARK_FILE)
        GoldenMark.of(folder, [path for name, path in paths.items() if name in OUTPUTS]).write(folder)
    except BaseException:
        for path in begun:
            with suppress(OSError):
                path.unlink()
        raise
    return begun


def _prepare(folder: Path, paths: Iterable[Path]) -> None:
    """Makes the folder, or raises what would otherwise be raised once everything is computed."""
    for path in paths:
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: expected no such file, got one")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, got another kind of file")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: expected a folder that can be written, got one that cannot")


class _GoldenCall(NamedTuple):
    """A random call; the cache holds earlier tokens."""

    weights: MlaWeights
    cache: PagedCache
    x: Array
    cos: Array
    sin: Array
    cache_index: Array | None

    @classmethod
    def random(
        cls, settings: DumpSettings, t: int, quant: str, smooth: bool, seed: int, n_blocks: int | None, scale_dtype: str
    ) -> _GoldenCall:
        check_choice("scale_dtype", scale_dtype, ("float32", "float16"))
        dims = settings.dims or MlaDims.deepseek_v32()
        least = -(-check_int("t", t, 1) // settings.block_size)
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

    def outputs(self, numerics: str) -> dict[str, Array]:
        """The oracle's."""
        reference = reference_run(
            self.weights, self.x, self.cos, self.sin, self.cache_index, self.cache, numerics=numerics
        )
        return {f"{name}_out": array for name, array in reference._asdict().items() if array is not None}


def _random_cache(cache: PagedCache, seed: int, scale_dtype: str) -> PagedCache:
    """The cache with earlier tokens of every slot in it."""
    rng = np.random.default_rng((check_int("seed", seed, 0), 2))
    kv = rng.integers(-127, 128, cache.kv.shape, np.int8) if cache.quantized else rng.standard_normal(cache.kv.shape)
    kr = rng.standard_normal(cache.kr.shape).astype(BF16)
    k_scale = None
    if cache.k_scale is not None:
        k_scale = rng.uniform(0.01, 0.04, cache.k_scale.shape).astype(scale_dtype)
    return PagedCache(kv.astype(cache.kv.dtype), kr, k_scale, cache.cache_mode)
