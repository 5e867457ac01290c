"""The reference operator's entry points, with its names and order of arguments, on NumPy arrays.

They pack the weights in every call. For more than one call use `MlaProlog`, or pass `PackedWeights` as `w_dq`.
`mla_prolog_quant_p` and `mla_prolog_quant_d` compute the same; as in the reference, they differ in the scheduling
settings that go with a tile_config.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec

import numpy as np

from tiling import MlaTileConfig, RopeTileShapeConfig

from ..base import checks as check
from ..base.checks import (
    BF16,
    Array,
)
from ..base.modes import CacheMode, CallPhase, Numerics
from ..cache import PagedCache
from ..prolog import MlaProlog, PrologOutput
from ..weights.packed import PackedWeights
from ..weights.plain import MlaWeights
from .fractals import as_nd, is_fractal

__all__ = ["mla_prolog_quant_compute", "mla_prolog_quant_d", "mla_prolog_quant_p"]


def mla_prolog_quant_compute(
    token_x: Array,
    w_dq: Array | PackedWeights,
    w_uq_qr: Array | None,
    dequant_scale: Array | None,
    w_uk: Array | None,
    w_dkv_kr: Array | None,
    gamma_cq: Array | None,
    gamma_ckv: Array | None,
    cos: Array,
    sin: Array,
    cache_index: Array | None,
    kv_cache: Array,
    kr_cache: Array,
    k_scale_cache: Array | None,
    q_norm_out: Array,
    q_norm_scale_out: Array | None,
    query_nope_out: Array,
    query_rope_out: Array,
    kv_cache_out: Array,
    kr_cache_out: Array,
    k_scale_cache_out: Array | None,
    epsilon_cq: float = 1e-5,
    epsilon_ckv: float = 1e-5,
    cache_mode: CacheMode = "PA_BSND",
    tile_config: MlaTileConfig | None = None,
    rope_cfg: RopeTileShapeConfig | None = None,
    *,
    phase: CallPhase = "decode",
    numerics: Numerics = "pypto",
) -> None:
    """Computes the prolog of T tokens into the `*_out` arrays.

    Weights as in `MlaWeights`, or w_dq, w_uq_qr and w_dkv_kr in FRACTAL_NZ (4-D, see `layouts.to_fractal_nz`), whose
    padding the other arguments tell; w_uk is ND. A cache's `_out` is usually the cache itself; where it is another
    array, it receives the cache with the new rows in it.

    Args:
        token_x: Hidden states (T, H) bf16.
        w_dq: Weight (H, Rq) bf16; or `PackedWeights`, where the other five weights and `dequant_scale` are None.
        w_uq_qr: Weight (Rq, N*(D+R)), bf16 or int8.
        dequant_scale: Scale of w_uq_qr (N*(D+R), 1) float32, which switches the int8 mode on; None or an array of
            length 0 means bf16.
        w_uk: Weight (N, D, C) bf16.
        w_dkv_kr: Weight (H, C+R) bf16.
        gamma_cq: Factors of the query's norm (Rq,) bf16.
        gamma_ckv: Factors of the key's norm (C,) bf16.
        cos: Cosines (T, R) bf16.
        sin: Sines (T, R) bf16.
        cache_index: Flat slots (T,) int64 or int32, as for `MlaProlog`; None with "BSND" and "TND".
        kv_cache: As of `PagedCache`.
        kr_cache: As of `PagedCache`.
        k_scale_cache: As of `PagedCache`; unquantised it is left alone and may be None.
        q_norm_out: Where to write q_norm (T, Rq), int8 or bf16.
        q_norm_scale_out: Where to write its scale (T, 1) float32; unquantised it is left alone and may be None.
        query_nope_out: Where to write query_nope (T, N, C) bf16.
        query_rope_out: Where to write query_rope (T, N, R) bf16.
        kv_cache_out: Where to write rows of the cache.
        kr_cache_out: The same.
        k_scale_cache_out: The same; unquantised it may be None.
        epsilon_cq: Of the query's norm.
        epsilon_ckv: Of the key's norm.
        cache_mode: "PA_BSND", "PA_NZ", "BSND" or "TND", see `PagedCache`.
        tile_config: As for `MlaProlog`.
        rope_cfg: Tiles of an NPU; changes nothing on a CPU, where a row is rotated whole.
        phase: "decode" or "prefill", as for `MlaProlog`.
        numerics: "pypto" or "cann", see `MlaProlog`.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value; nothing is written.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> w = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), quant="none")
        >>> cache = mla.PagedCache.allocate(w.dims, n_blocks=2, block_size=16, quantized=False)
        >>> x, cos, sin, index = random_inputs(w.dims, t=3, seed=0, capacity=32)
        >>> out = mla.MlaProlog(w).allocate_output(3)
        >>> mla.mla_prolog_quant_compute(
        ...     x, w.w_dq, w.w_uq_qr, None, w.w_uk, w.w_dkv_kr, w.gamma_cq, w.gamma_ckv, cos, sin, index,
        ...     cache.kv, cache.kr, None, out.q_norm, None, out.query_nope, out.query_rope, cache.kv, cache.kr, None,
        ... )
    """
    if rope_cfg is not None and not isinstance(rope_cfg, RopeTileShapeConfig):
        raise TypeError(f"rope_cfg: expected RopeTileShapeConfig or None, got {type(rope_cfg).__name__}")
    given = {"w_uq_qr": w_uq_qr, "w_uk": w_uk, "w_dkv_kr": w_dkv_kr, "gamma_cq": gamma_cq, "gamma_ckv": gamma_ckv}
    with check.renamed(_NAMES_HERE):
        if not isinstance(w_dq, PackedWeights):
            w_dq, given["w_uq_qr"], given["w_dkv_kr"] = _prolog_weights(w_dq, given, token_x, cos)
        weights = _weights(w_dq, given, _scale_or_none(dequant_scale), epsilon_cq, epsilon_ckv)
        prolog = MlaProlog(weights, phase, tile_config=tile_config, numerics=numerics)
        k_scale_out = _present("k_scale_cache", k_scale_cache_out) if prolog.quantized else None
        cache = PagedCache(kv_cache_out, kr_cache_out, k_scale_out, cache_mode)
    sources = {"kv_cache": _present("kv_cache", kv_cache), "kr_cache": _present("kr_cache", kr_cache)}
    if prolog.quantized:
        sources["k_scale_cache"] = _present("k_scale_cache", k_scale_cache)
    out = PrologOutput(query_nope_out, query_rope_out, q_norm_out, q_norm_scale_out if prolog.quantized else None)
    _run(prolog, (token_x, cos, sin, cache_index), cache, out, sources)


def _run(
    prolog: MlaProlog,
    inputs: tuple[Array, Array, Array, Array | None],
    cache: PagedCache,
    out: PrologOutput,
    sources: dict[str, Array],
) -> None:
    """Runs one call into `cache`; arrays of `sources` that are not the cache's own are copied into it first."""
    after = cache.arrays()
    moved = {name: array for name, array in sources.items() if not _same_memory(array, after[name])}
    with check.renamed(_NAMES_HERE):
        call = prolog.bind(*inputs, cache, out, also_read={f"source {n}": a for n, a in moved.items()})
    for name, array in moved.items():
        check.check_shape(name, check.expect_array(name, array, (after[name].dtype,)), after[name].shape)
    for name, array in moved.items():
        after[name][...] = array
    prolog.run(call)


_NAMES_HERE = {
    "x": "token_x",
    "dequant_scale_w_uq_qr": "dequant_scale",
    **{f"out.{name}": f"{name}_out" for name in PrologOutput._fields},
    **{name: f"{name}_out" for name in ("kv_cache", "kr_cache", "k_scale_cache")},
    **{f"source {name}": name for name in ("kv_cache", "kr_cache", "k_scale_cache")},
}


_P = ParamSpec("_P")


def _for_phase(compute: Callable[_P, None], phase: CallPhase, name: str) -> Callable[_P, None]:
    """`mla_prolog_quant_compute` for one phase, under the reference's name, with its 26 arguments and `numerics`."""
    run: Any = compute  # for type checkers, which cannot express a signature without `phase`

    @functools.wraps(compute)
    def entry(*args: _P.args, **kwargs: _P.kwargs) -> None:
        run(*args, **kwargs, phase=phase)

    signature = inspect.signature(compute)
    shown = [p for p in signature.parameters.values() if p.name != "phase"]
    entry.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = _doc_of(phase)
    return entry


def _doc_of(phase: CallPhase) -> str:
    """The docstring for one phase, with the arguments and errors of `mla_prolog_quant_compute`."""
    about = f"Computes as `mla_prolog_quant_compute` does, with the scheduling settings of the {phase} phase.\n\n"
    example = "`mla_prolog_quant_compute` has an example.\n\n"
    lines = inspect.cleandoc(mla_prolog_quant_compute.__doc__ or "").splitlines()  # python -OO strips docstrings
    from_arguments = itertools.dropwhile(lambda line: line != "Args:", lines)
    shown = itertools.takewhile(lambda line: line != "Examples:", from_arguments)
    return about + example + "\n".join(line for line in shown if not line.startswith("    phase: "))


mla_prolog_quant_p = _for_phase(mla_prolog_quant_compute, "prefill", "mla_prolog_quant_p")
"""`mla_prolog_quant_compute` with the scheduling settings of the prefill phase: the same arguments but `phase`."""
mla_prolog_quant_d = _for_phase(mla_prolog_quant_compute, "decode", "mla_prolog_quant_d")
"""`mla_prolog_quant_compute` with the scheduling settings of the decode phase: the same arguments but `phase`."""


def _scale_or_none(dequant_scale: Array | None) -> Array | None:
    """The reference says "no scale" by an array of length 0."""
    is_empty = isinstance(dequant_scale, np.ndarray) and dequant_scale.ndim > 0 and dequant_scale.shape[0] == 0
    return None if is_empty else dequant_scale


def _weights(
    w_dq: Array | PackedWeights,
    others: dict[str, Array | None],
    dequant_scale: Array | None,
    epsilon_cq: float,
    epsilon_ckv: float,
) -> MlaWeights | PackedWeights:
    if isinstance(w_dq, PackedWeights):
        for name, value in (others | {"dequant_scale": dequant_scale}).items():
            if value is not None:
                raise ValueError(f"{name}: expected None beside PackedWeights, got {type(value).__name__}")
        return replace(
            w_dq,
            epsilon_cq=check.check_epsilon("epsilon_cq", epsilon_cq),
            epsilon_ckv=check.check_epsilon("epsilon_ckv", epsilon_ckv),
        )
    _present("w_dq", w_dq)
    arrays: dict[str, Any] = {name: _present(name, value) for name, value in others.items()}
    return MlaWeights(
        w_dq=w_dq, dequant_scale_w_uq_qr=dequant_scale, epsilon_cq=epsilon_cq, epsilon_ckv=epsilon_ckv, **arrays
    )


def _prolog_weights(
    w_dq: Array, others: dict[str, Array | None], token_x: Array, cos: Array
) -> tuple[Array, Array | None, Array | None]:
    """w_dq, w_uq_qr and w_dkv_kr in ND; the shapes of the other arguments tell those that FRACTAL_NZ pads."""
    w_uq_qr, w_dkv_kr = others["w_uq_qr"], others["w_dkv_kr"]
    if not any(map(is_fractal, (w_dq, w_uq_qr, w_dkv_kr))):
        return w_dq, w_uq_qr, w_dkv_kr
    hidden = check.check_array("token_x", token_x, (BF16,), (None, None)).shape[1]
    heads, nope, latent = check.check_array("w_uk", others["w_uk"], (BF16,), (None, None, None)).shape
    q_rank = len(check.check_array("gamma_cq", others["gamma_cq"], (BF16,), (None,)))
    rope = check.check_array("cos", cos, (BF16,), (None, None)).shape[1]
    return (
        as_nd("w_dq", w_dq, hidden, q_rank),
        as_nd("w_uq_qr", _present("w_uq_qr", w_uq_qr), q_rank, heads * (nope + rope)),
        as_nd("w_dkv_kr", _present("w_dkv_kr", w_dkv_kr), hidden, latent + rope),
    )


def _present(name: str, value: Array | None) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    return value


def _same_memory(a: object, b: Array) -> bool:
    return isinstance(a, np.ndarray) and (a.__array_interface__ == b.__array_interface__)
