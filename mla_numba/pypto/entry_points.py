"""The reference operator's entry points, with its names and order of arguments, on NumPy arrays.

They pack the weights in every call. For more than one call use `MlaProlog`, or pass `PackedWeights` as `w_dq`.
`mla_prolog_quant_p` and `mla_prolog_quant_d` compute the same; as in the reference, they differ in the scheduling
settings that go with a tile_config.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tiling import MlaTileConfig, RopeTileShapeConfig, plan_prolog

from ..base import checks as check
from ..base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
)
from ..base.dims import MlaDims
from ..base.modes import NUMERICS
from ..cache import PagedCache
from ..call.planning import MICRO_TILES, this_machine
from ..kernels import max_threads
from ..layouts import from_fractal_nz
from ..prolog import MlaProlog, PrologOutput
from ..weights.packed import PackedGemm, PackedWeights, pack_gemm
from ..weights.plain import MlaWeights
from .operations import MlaQuantInputs
from .projections import run_projections

__all__ = [
    "MlaProlog",
    "PrologOutput",
    "mla_prolog_quant_compute",
    "mla_prolog_quant_d",
    "mla_prolog_quant_p",
    "pre_compute_2d",
]


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
    cache_mode: str = "PA_BSND",
    tile_config: MlaTileConfig | None = None,
    rope_cfg: RopeTileShapeConfig | None = None,
    *,
    phase: str = "decode",
    numerics: str = "pypto",
) -> None:
    """Computes the prolog of T tokens into the `*_out` arrays.

    Weights as in `MlaWeights`, or w_dq, w_uq_qr and w_dkv_kr in FRACTAL_NZ (4-D, see `layouts.to_fractal_nz`), whose
    padding the other arguments tell; w_uk is ND. `dequant_scale` ((N*(D+R), 1) float32) switches the int8 mode on, None
    or an array of length 0 means bf16. With `PackedWeights` as `w_dq`, the other five weights and `dequant_scale` are
    None. A cache's `_out` is usually the cache itself; where it is another array, it receives the cache with the new
    rows in it. Unquantised, `k_scale_cache` and `q_norm_scale_out` are left alone and may be None. `cache_mode` and the
    caches: see `PagedCache`; with "BSND" and "TND" `cache_index` is None. `rope_cfg` sets tiles of an NPU and changes
    nothing on a CPU, where a row is rotated whole. `numerics`, "pypto" or "cann": see `MlaProlog`.

    Raises `TypeError` or `ValueError` naming the argument; nothing is written then.
    """
    if rope_cfg is not None and not isinstance(rope_cfg, RopeTileShapeConfig):
        raise TypeError(f"rope_cfg: expected RopeTileShapeConfig or None, got {type(rope_cfg).__name__}")
    given = {
        "w_uq_qr": w_uq_qr,
        "w_uk": w_uk,
        "w_dkv_kr": w_dkv_kr,
        "gamma_cq": gamma_cq,
        "gamma_ckv": gamma_ckv,
    }
    with check.renamed(_NAMES_HERE):
        if not isinstance(w_dq, PackedWeights):
            w_dq, given["w_uq_qr"], given["w_dkv_kr"] = _prolog_weights(w_dq, given, token_x, cos)
        weights = _weights(w_dq, given, _scale_or_none(dequant_scale), epsilon_cq, epsilon_ckv)
        prolog = MlaProlog(weights, phase, tile_config=tile_config, numerics=numerics)
        k_scale_out = _present("k_scale_cache", k_scale_cache_out) if prolog.quantized else None
        cache = PagedCache(kv_cache_out, kr_cache_out, k_scale_out, cache_mode)
    before = {"kv_cache": _present("kv_cache", kv_cache), "kr_cache": _present("kr_cache", kr_cache)}
    if prolog.quantized:
        before["k_scale_cache"] = _present("k_scale_cache", k_scale_cache)
    after = cache.arrays()
    moved = {name: array for name, array in before.items() if not _same_memory(array, after[name])}
    out = PrologOutput(query_nope_out, query_rope_out, q_norm_out, q_norm_scale_out if prolog.quantized else None)
    with check.renamed(_NAMES_HERE):
        call = prolog.bind(
            token_x, cos, sin, cache_index, cache, out, also_read={f"source {n}": a for n, a in moved.items()}
        )
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


def _for_phase(phase: str, name: str) -> Callable[..., None]:
    """`mla_prolog_quant_compute` for one phase, under the reference's name, with its 26 arguments and `numerics`."""

    @functools.wraps(mla_prolog_quant_compute)
    def entry(*args: Any, **kwargs: Any) -> None:
        mla_prolog_quant_compute(*args, **kwargs, phase=phase)

    signature = inspect.signature(mla_prolog_quant_compute)
    shown = [p for p in signature.parameters.values() if p.name != "phase"]
    entry.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"`mla_prolog_quant_compute` with the scheduling settings of the {phase} phase."
    return entry


mla_prolog_quant_p = _for_phase("prefill", "mla_prolog_quant_p")
"""`mla_prolog_quant_compute` with the scheduling settings of the prefill phase: the same arguments but `phase`."""
mla_prolog_quant_d = _for_phase("decode", "mla_prolog_quant_d")
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
    arrays = {name: _present(name, value) for name, value in others.items()}
    return MlaWeights(
        w_dq=w_dq, dequant_scale_w_uq_qr=dequant_scale, epsilon_cq=epsilon_cq, epsilon_ckv=epsilon_ckv, **arrays
    )


def _is_fractal(weight: object) -> bool:
    return isinstance(weight, np.ndarray) and weight.ndim == 4


def _nd(name: str, weight: Array, k: int, n: int) -> Array:
    """A (k, n) weight in ND layout, whichever of the two it came in."""
    if not _is_fractal(weight):
        return weight
    with check.renamed({"fractals": name}):
        return from_fractal_nz(weight, k, n)


def _prolog_weights(
    w_dq: Array, others: dict[str, Array | None], token_x: Array, cos: Array
) -> tuple[Array, Array | None, Array | None]:
    """w_dq, w_uq_qr and w_dkv_kr in ND; the shapes of the other arguments tell those that FRACTAL_NZ pads."""
    w_uq_qr, w_dkv_kr = others["w_uq_qr"], others["w_dkv_kr"]
    if not any(map(_is_fractal, (w_dq, w_uq_qr, w_dkv_kr))):
        return w_dq, w_uq_qr, w_dkv_kr
    hidden = check.check_array("token_x", token_x, (BF16,), (None, None)).shape[1]
    heads, nope, latent = check.check_array("w_uk", others["w_uk"], (BF16,), (None, None, None)).shape
    q_rank = len(check.check_array("gamma_cq", others["gamma_cq"], (BF16,), (None,)))
    rope = check.check_array("cos", cos, (BF16,), (None, None)).shape[1]
    return (
        _nd("w_dq", w_dq, hidden, q_rank),
        _nd("w_uq_qr", _present("w_uq_qr", w_uq_qr), q_rank, heads * (nope + rope)),
        _nd("w_dkv_kr", _present("w_dkv_kr", w_dkv_kr), hidden, latent + rope),
    )


def _columns(weight: Array, scale: Array | None) -> int:
    """Columns of a weight that may be in FRACTAL_NZ: as many as its scale has, else all that the fractals hold."""
    if isinstance(scale, np.ndarray):
        return scale.size
    return weight.shape[0] * weight.shape[3] if _is_fractal(weight) else 0


def _present(name: str, value: Array | None) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    return value


def _same_memory(a: object, b: Array) -> bool:
    return isinstance(a, np.ndarray) and (a.__array_interface__ == b.__array_interface__)


def pre_compute_2d(
    token_x: Array,
    w_dq: Array,
    w_uq_qr: Array,
    w_dkv_kr: Array,
    gamma_cq: Array,
    epsilon_cq: float,
    quant_inputs: MlaQuantInputs,
    tile_config: MlaTileConfig | None = None,
    *,
    numerics: str = "pypto",
) -> list[Array]:
    """The projections without heads: sweeps 1 and 2 for the query, and the up-projection as one matrix.

    token_x (T, H) bf16; w_dq (H, Rq), w_dkv_kr (H, C+R): bf16, int8 in quant_a; w_uq_qr (Rq, M): bf16, int8 in quant_b;
    gamma_cq (Rq,) bf16. Returns [q_b_proj (T, M) bf16, compressed_kv (T, C+R) bf16, q_norm (T, Rq)] and in quant_b also
    q_norm_scale (T, 1) float32. Which of `quant_inputs` are given decides the mode, see `MlaQuantInputs`; one lone
    scale of the two down-projections switches nothing, as in the reference. `numerics`, "pypto" or "cann": see
    `MlaProlog`.

    Weights may be in FRACTAL_NZ (4-D, see `layouts.to_fractal_nz`). How many columns w_uq_qr or w_dkv_kr then has, only
    its scale tells: without one its padding counts, as columns of zeros.

    Raises `TypeError` or `ValueError` naming the argument that does not fit.
    """
    if not isinstance(quant_inputs, MlaQuantInputs):
        raise TypeError(f"quant_inputs: expected MlaQuantInputs, got {type(quant_inputs).__name__}")
    quant_inputs.reject_unread()
    epsilon = check.check_epsilon("epsilon_cq", epsilon_cq)
    if tile_config is not None and not isinstance(tile_config, MlaTileConfig):
        raise TypeError(f"tile_config: expected MlaTileConfig or None, got {type(tile_config).__name__}")
    check.check_choice("numerics", numerics, NUMERICS)
    scale_dq, scale_dkv = quant_inputs.dequant_scale_w_dq, quant_inputs.dequant_scale_w_dkv_kr
    if scale_dq is None or scale_dkv is None:
        scale_dq = scale_dkv = None
    scale_up = quant_inputs.dequant_scale_w_uq_qr
    if any(map(_is_fractal, (w_dq, w_uq_qr, w_dkv_kr))):
        hidden = check.check_array("token_x", token_x, (BF16,), (None, None)).shape[1]
        q_rank = len(check.check_array("gamma_cq", gamma_cq, (BF16,), (None,)))
        w_dq = _nd("w_dq", w_dq, hidden, q_rank)
        w_uq_qr = _nd("w_uq_qr", w_uq_qr, q_rank, _columns(w_uq_qr, scale_up))
        w_dkv_kr = _nd("w_dkv_kr", w_dkv_kr, hidden, _columns(w_dkv_kr, scale_dkv))
    quant = ("a" if scale_dq is not None else "") + ("b" if scale_up is not None else "") or "none"
    check.check_array("w_uq_qr", w_uq_qr, (BF16 if scale_up is None else INT8,), (None, None))
    q_rank, n_up = w_uq_qr.shape
    check.check_array("w_dq", w_dq, (BF16 if scale_dq is None else INT8,), (None, q_rank))
    hidden = w_dq.shape[0]
    check.check_array("w_dkv_kr", w_dkv_kr, (w_dq.dtype,), (hidden, None))
    check.check_array("gamma_cq", gamma_cq, (BF16,), (q_rank,))
    check.check_array("token_x", token_x, (BF16,), (None, hidden))
    n_kv = w_dkv_kr.shape[1]
    scale_dq = _vector("dequant_scale_w_dq", scale_dq, q_rank)
    scale_dkv = _vector("dequant_scale_w_dkv_kr", scale_dkv, n_kv)
    scale_up = _vector("dequant_scale_w_uq_qr", scale_up, n_up)
    smooth = _vector("smooth_scales_cq", quant_inputs.smooth_scales_cq, q_rank) if scale_up is not None else None
    if n_kv < 3 or n_up < 3:
        raise ValueError(f"w_dkv_kr, w_uq_qr: expected at least 3 columns, got {n_kv} and {n_up}")
    if scale_dq is None and hidden % 2:
        raise ValueError(f"w_dq: expected an even hidden_size (its two halves are summed apart), got {hidden}")
    for name, k, scale in (("w_dq", hidden, scale_dq), ("w_uq_qr", q_rank, scale_up)):
        if scale is not None:
            check.check_k_int8(name, k)
    n_threads = max_threads()
    weights = PackedWeights(
        # The planner knows a prolog, not a lone projection: one head as wide as the matrix stands for it.
        dims=MlaDims(hidden, 1, q_rank, n_kv - 2, n_up - 2, 2),
        quant=quant,
        down=pack_gemm([w_dq, w_dkv_kr], [scale_dq, scale_dkv], n_threads, n_parts=2 if scale_dq is None else 1),
        up=pack_gemm([w_uq_qr], [scale_up], n_threads),
        uk=PackedGemm.nothing(),
        gamma_cq=gamma_cq.astype(np.float32),
        gamma_ckv=np.zeros(0, np.float32),
        smooth_scales_cq=np.zeros(0, np.float32) if smooth is None else smooth,
        epsilon_cq=epsilon,
        epsilon_ckv=np.float32(0),
    )
    plan = plan_prolog(
        weights.dims, token_x.shape[0], tile_config, this_machine(), micro=MICRO_TILES, quant=quant, n_threads=n_threads
    )
    return run_projections(weights, plan, token_x, numerics)


def _vector(name: str, value: Array | None, n: int) -> Array | None:
    return None if value is None else check.check_vector(f"quant_inputs.{name}", value, FP32, n)
