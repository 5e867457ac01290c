"""Reading a folder of dumps: the arguments of a call, and the outputs that an operator left beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.checks import (
    BF16,
    FP16,
    FP32,
    INT8,
    Array,
    check_slots,
    renamed,
)
from ..base.dims import MlaDims
from ..base.modes import CONTIGUOUS_MODES, CacheMode
from ..base.short_repr import array_text, dims_text, short_repr
from ..cache import N_SCALES, PagedCache
from ..layouts import from_fractal_nz
from ..oracle.bits import reference_run
from ..oracle.reference import ReferenceOutput
from ..weights.plain import MlaWeights
from .files import SUFFIXES, DumpFile, DumpFiles, find_files
from .goldens import GoldenMark
from .kinds import Kind, cache_like, exactly, first_cache, fractals, rows, vector
from .names import INPUTS
from .settings import DumpSettings, dump_settings

__all__ = ["Dump", "DumpedOutput", "read_dump"]

INT64, INT32 = np.dtype(np.int64), np.dtype(np.int32)


class DumpedOutput(NamedTuple):
    """An output that a folder holds: `name` of the argument, its `file`, and its `array` in the oracle's shape.

    `write_dump` has an example.
    """

    name: str
    file: str
    array: Array

    def __repr__(self) -> str:
        return short_repr(self, self.name, array_text(self.array), f"of {self.file}")


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """What a folder holds, by its `settings`. `write_dump` has an example.

    `weights`, `x`, `cos`, `sin`, `cache_index` and `cache` are the arguments of a call of `MlaProlog(weights)`.
    `outputs` are the outputs to check; `only_goldens` is true if `write_dump` wrote all of them, and no operator any.
    `missing` are outputs without a file, `goldens_left_out` goldens beside an operator's outputs, `unread` files with
    other names.
    """

    settings: DumpSettings
    weights: MlaWeights
    x: Array
    cos: Array
    sin: Array
    cache_index: Array | None
    cache: PagedCache
    outputs: tuple[DumpedOutput, ...]
    only_goldens: bool
    missing: tuple[str, ...]
    goldens_left_out: tuple[str, ...]
    unread: tuple[str, ...]

    def __repr__(self) -> str:
        weights, cache = self.weights, self.cache
        tokens, slots = f"{len(self.x)} tokens", f"{cache.cache_mode} cache of {cache.capacity} slots"
        outputs = f"{len(self.outputs)} outputs{', all goldens' if self.only_goldens else ''}"
        return short_repr(self, tokens, dims_text(weights.dims), f"quant={weights.quant!r}", slots, outputs)

    def reference(self) -> ReferenceOutput:
        """The oracle's outputs for these inputs, with the numerics of the settings."""
        return reference_run(
            self.weights, self.x, self.cos, self.sin, self.cache_index, self.cache, numerics=self.settings.numerics
        )


def read_dump(folder: str | os.PathLike[str], settings: DumpSettings | None = None, *, goldens: bool = False) -> Dump:
    """Reads inputs and outputs from a folder. `write_dump` has an example.

    Outputs are the operator's. If it left none, they are the goldens of another oracle, and otherwise the goldens that
    `write_dump` wrote.

    Args:
        folder: The folder.
        settings: By default `dump_settings(folder)`.
        goldens: Take goldens of either kind, whatever else is in the folder.

    Returns:
        Arguments of a call, outputs, and what was left out.

    Raises:
        FileNotFoundError: There is no such folder.
        ImportError: There is a `.pt`, and torch is not installed.
        TypeError: A file has other elements.
        ValueError: Inputs are missing (all are named), there are two files for one, a size or shape does not fit, or a
            file is broken.
    """
    folder = Path(folder)
    settings = dump_settings(folder) if settings is None else settings
    files = find_files(folder)
    quantized = "dequant_scale" in files.inputs and files.has_elements("dequant_scale")
    _expect_inputs(files, quantized, settings.cache_mode)
    dims = settings.dims or _dims_of(files) or MlaDims.deepseek_v32()
    settings = replace(settings, dims=dims)
    weights = _read_weights(files, settings, dims)
    x, cos, sin, index, cache = _read_call(files, settings, dims, quantized)
    expected = _expected_outputs(len(x), dims, cache)
    chosen, left_out, only_goldens = _choose_outputs(files, expected, goldens)
    there = {name for name, _ in chosen}
    foreign = [str(file) for name in files.outputs if name not in expected for file in files.outputs[name]]
    return Dump(
        settings=settings,
        weights=weights,
        x=x,
        cos=cos,
        sin=sin,
        cache_index=index,
        cache=cache,
        outputs=tuple(DumpedOutput(name, str(file), files.read(name, file, expected[name])) for name, file in chosen),
        only_goldens=only_goldens,
        missing=tuple(name for name in expected if name not in there),
        goldens_left_out=tuple(left_out),
        unread=tuple(sorted(files.unread + foreign)),
    )


def _read_call(
    files: DumpFiles, settings: DumpSettings, dims: MlaDims, quantized: bool
) -> tuple[Array, Array, Array, Array | None, PagedCache]:
    def read(name: str, *kinds: Kind) -> Array:
        return files.read(name, files.inputs[name], kinds)

    x = read("token_x", rows(None, dims.hidden_size, dtype=BF16))
    t = len(x)
    cos, sin = (read(name, rows(t, dims.qk_rope_head_dim, dtype=BF16)) for name in ("cos", "sin"))
    mode = settings.cache_mode
    kv = read("kv_cache", first_cache(dims.kv_lora_rank, INT8 if quantized else BF16, mode, settings.block_size))
    kr = read("kr_cache", cache_like(kv, dims.qk_rope_head_dim, BF16, mode))
    k_scale = None
    if "k_scale_cache" in files.inputs:
        kinds = (cache_like(kv, N_SCALES, dtype, _mode_of_scales(mode)) for dtype in (FP32, FP16))
        k_scale = read("k_scale_cache", *kinds)
    cache = PagedCache(kv, kr, k_scale, mode)
    if cache.paged:
        index = read("cache_index", *(rows(t, dtype=dtype) for dtype in (INT64, INT32)))
        return x, cos, sin, check_slots(index, t, cache.capacity), cache
    if t > cache.capacity:
        raise ValueError(f"token_x: expected at most {cache.capacity} tokens, the rows of kv_cache, got {t}")
    return x, cos, sin, None, cache


def _expected_outputs(t: int, dims: MlaDims, cache: PagedCache) -> dict[str, list[Kind]]:
    """What each output of a call may be."""
    heads = dims.num_attention_heads
    expected = {"q_norm_out": [rows(t, dims.q_lora_rank, dtype=INT8 if cache.quantized else BF16)]}
    if cache.quantized:
        expected["q_norm_scale_out"] = [rows(t, 1, dtype=dtype) for dtype in (FP32, FP16)]
    expected["query_nope_out"] = [rows(t, heads, dims.kv_lora_rank, dtype=BF16)]
    expected["query_rope_out"] = [rows(t, heads, dims.qk_rope_head_dim, dtype=BF16)]
    for name, array in cache.arrays().items():
        mode = cache.cache_mode if name != "k_scale_cache" else _mode_of_scales(cache.cache_mode)
        expected[f"{name}_out"] = [cache_like(cache.kv, array.shape[-1], array.dtype, mode)]
    return expected


def _mode_of_scales(cache_mode: CacheMode) -> CacheMode:
    return "PA_BSND" if cache_mode == "PA_NZ" else cache_mode


def _choose_outputs(
    files: DumpFiles, expected: Iterable[str], goldens: bool
) -> tuple[list[tuple[str, DumpFile]], list[str], bool]:
    """The outputs to check, the goldens beside them, and whether those to check are nobody's but `write_dump`'s."""
    mark = GoldenMark.read(files.folder)
    found = [(name, file) for name in expected for file in files.outputs.get(name, [])]
    own = [(name, file) for name, file in found if mark.is_as_written(files.folder, file.path)]
    foreign = [(name, file) for name, file in found if (name, file) not in own and file.is_golden]
    # A golden that somebody replaced is no longer the one that was written: it counts as the operator's.
    replaced = [(name, file) for name, file in foreign if str(file.path) in mark.digests]
    operators = [pair for pair in found if pair in replaced or (pair not in own and pair not in foreign)]
    chosen = [pair for pair in found if pair[1].is_golden] if goldens else operators or foreign or own
    left_out = [str(file) for name, file in found if (name, file) not in chosen and file.is_golden]
    return chosen, left_out, bool(chosen) and all(pair in own for pair in chosen)


def _read_weights(files: DumpFiles, settings: DumpSettings, dims: MlaDims) -> MlaWeights:
    def scale(name: str, n: int) -> Array | None:
        file = files.inputs.get(name)
        if file is None or not files.has_elements(name):
            return None
        return files.read(name, file, vector(n, FP32, FP16)).astype(FP32)

    n_up = dims.num_attention_heads * dims.q_head_dim
    scales = {
        "w_dq": scale("dequant_scale_w_dq", dims.q_lora_rank),
        "w_uq_qr": scale("dequant_scale", n_up),
        "w_dkv_kr": scale("dequant_scale_w_dkv_kr", dims.kv_a_dim),
    }

    def weight(name: str, k: int, n: int) -> Array:
        """ND from ND or FRACTAL_NZ; which of them a `.npy` has, its axes tell."""
        file = files.inputs[name]
        dtype = BF16 if scales[name] is None else INT8
        is_bin = file.path.suffix == ".bin"
        nd, nz = exactly((k, n), dtype), fractals(k, n, dtype)
        is_nz = file.is_nz or (is_bin and settings.nz)
        array = files.read(name, file, [nz] if is_nz else [nd] if is_bin else [nd, nz])
        if array.ndim == 2:
            return array
        with renamed({"fractals": f"{name} ({file})"}):
            return from_fractal_nz(array, k, n)

    w_uk = exactly((dims.num_attention_heads, dims.qk_nope_head_dim, dims.kv_lora_rank), BF16)
    return MlaWeights(
        w_dq=weight("w_dq", dims.hidden_size, dims.q_lora_rank),
        w_uq_qr=weight("w_uq_qr", dims.q_lora_rank, n_up),
        w_uk=files.read("w_uk", files.inputs["w_uk"], [w_uk]),
        w_dkv_kr=weight("w_dkv_kr", dims.hidden_size, dims.kv_a_dim),
        gamma_cq=files.read("gamma_cq", files.inputs["gamma_cq"], vector(dims.q_lora_rank, BF16)),
        gamma_ckv=files.read("gamma_ckv", files.inputs["gamma_ckv"], vector(dims.kv_lora_rank, BF16)),
        dequant_scale_w_uq_qr=scales["w_uq_qr"],
        dequant_scale_w_dq=scales["w_dq"],
        dequant_scale_w_dkv_kr=scales["w_dkv_kr"],
        smooth_scales_cq=scale("smooth_scales_cq", dims.q_lora_rank),
        epsilon_cq=settings.epsilon_cq,
        epsilon_ckv=settings.epsilon_ckv,
    )


def _expect_inputs(files: DumpFiles, quantized: bool, cache_mode: CacheMode) -> None:
    optional = {"dequant_scale"} | ({"cache_index"} if cache_mode in CONTIGUOUS_MODES else set())
    if not quantized:
        optional.add("k_scale_cache")
    missing = [name for name in INPUTS if name not in files.inputs and name not in optional]
    if not missing:
        return
    there = [str(file) for file in files.inputs.values()]
    there += [str(file) for found in files.outputs.values() for file in found] + files.unread
    numbers = list(INPUTS)
    others = {name: dict.fromkeys((*INPUTS[name], f"input_{numbers.index(name)}")) for name in missing}
    lines = [f"{name}, or {', '.join(other for other in others[name] if other != name)}" for name in missing]
    got = ", ".join(sorted(there)) or "none of them"
    raise ValueError(
        f"{files.folder}: expected {', '.join(INPUTS)} as {' or '.join(SUFFIXES)}, got {got}; missing are\n  "
        + "\n  ".join(lines)
    )


def _dims_of(files: DumpFiles) -> MlaDims | None:
    """The dimensions that arrays show; None where one of those is a `.bin` or of another rank."""
    shapes = {name: files.shape(name) for name in ("token_x", "w_uk", "gamma_cq", "cos")}
    x, w_uk, gamma_cq, cos = shapes.values()
    if not x or not gamma_cq or not cos or w_uk is None or len(w_uk) != 3:
        return None
    heads, nope, latent = w_uk
    return MlaDims(x[-1], heads, prod(gamma_cq), latent, nope, cos[-1])
