"""Folders of dumped arguments of the reference operator: reading them, checking them against the oracle, writing them.

A file is a `.npy`, or a `.bin` with the bare elements, little-endian and in C order. `dump_names` says which names are
known; files lie in the folder or in its `input`, `output` and `golden`.

| argument                          | shape                         | elements                                      |
|-----------------------------------|-------------------------------|-----------------------------------------------|
| token_x                           | (T, H), or (B, S, H)          | bf16                                          |
| w_dq, w_dkv_kr                    | (H, Rq), (H, C+R); FRACTAL_NZ | bf16, int8 with scales                        |
| w_uq_qr                           | (Rq, N*(D+R)); FRACTAL_NZ     | bf16, int8 with dequant_scale                 |
| w_uk, gamma_cq, gamma_ckv         | (N, D, C), (Rq,), (C,)        | bf16                                          |
| dequant_scale and the scales of a | (n,), (n, 1) or (1, n)        | float32, float16; a file of no elements: none |
| cos, sin                          | (T, R), or (B, S, R)          | bf16                                          |
| cache_index                       | (T,), or (B, S)               | int64, int32                                  |
| kv_cache, kr_cache, k_scale_cache | those of `PagedCache`         | int8 or bf16, bf16, float32 or float16        |
| query_nope_out, query_rope_out    | (T, N, C), (T, N, R)          | bf16                                          |
| q_norm_out, q_norm_scale_out      | (T, Rq), (T, 1)               | int8 or bf16, float32 or float16              |

In a `.npy`, bf16 is what `ml_dtypes` saves (`|V2`), uint16 or int16 holding the bits, or float32 whose values bf16
holds. The shape of a `.bin` follows from the dimensions and its size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._checks import (
    BF16,
    FP16,
    FP32,
    INT8,
    Array,
    check_choice,
    check_epsilon,
    check_flag,
    check_int,
    check_slots,
    renamed,
)
from .cache import CACHE_MODES, CONTIGUOUS_MODES, N_SCALES, PagedCache
from .dims import MlaDims
from .dump_files import (
    DumpFiles,
    Kind,
    cache_like,
    exactly,
    find_files,
    first_cache,
    fractals,
    has_elements,
    npy_shape,
    read_file,
    rows,
    vector,
)
from .dump_names import INPUTS, NZ_WEIGHTS, OUTPUTS, SCALES, STYLES, name_in
from .inputs import random_inputs
from .layouts import from_fractal_nz, pa_nz_to_pa_bsnd, to_fractal_nz
from .output_file import output_file, write_text
from .reference import NUMERICS, ReferenceOutput
from .tolerance import Agreement, compare_within
from .verify import reference_run
from .weights import MlaWeights

__all__ = ["Dump", "DumpSettings", "DumpedOutput", "check_dump", "dump_settings", "read_dump", "write_dump"]

FORMATS = ("npy", "bin")
SETTINGS_FILE = "dims.json"
INT64, INT32 = np.dtype(np.int64), np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class DumpSettings:
    """What the files of a folder don't say.

    `dims` None: those of the arrays where the files are `.npy` in ND, else DeepSeek-V3.2's. `nz`: w_dq, w_uq_qr and
    w_dkv_kr of `.bin` files are FRACTAL_NZ whatever they are called. `block_size`: slots of a cache block (S in BSND),
    which only a `.bin` needs. `cache_mode`, `numerics` and epsilons as in `PagedCache`, `MlaProlog` and `MlaWeights`.

    Raises `TypeError` or `ValueError` naming the field that does not fit.
    """

    dims: MlaDims | None = None
    block_size: int = 128
    cache_mode: str = "PA_BSND"
    nz: bool = False
    numerics: str = "pypto"
    epsilon_cq: float = 1e-5
    epsilon_ckv: float = 1e-5

    def __post_init__(self) -> None:
        if self.dims is not None and not isinstance(self.dims, MlaDims):
            raise TypeError(f"dims: expected MlaDims or None, got {type(self.dims).__name__}")
        check_int("block_size", self.block_size, 1)
        check_choice("cache_mode", self.cache_mode, CACHE_MODES)
        check_flag("nz", self.nz)
        check_choice("numerics", self.numerics, NUMERICS)
        check_epsilon("epsilon_cq", self.epsilon_cq)
        check_epsilon("epsilon_ckv", self.epsilon_ckv)


class DumpedOutput(NamedTuple):
    """An output that a folder holds: `name` of the argument, its `file`, and its `array` in the oracle's shape."""

    name: str
    file: str
    array: Array


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """What a folder holds.

    `x`, `cos`, `sin`, `cache_index` and `cache` are those of a call of `MlaProlog(weights)`. `missing` are outputs that
    are not there, `unread` files of other names, `goldens_left_out` those of another oracle that lie beside outputs.
    """

    settings: DumpSettings
    weights: MlaWeights
    x: Array
    cos: Array
    sin: Array
    cache_index: Array | None
    cache: PagedCache
    outputs: tuple[DumpedOutput, ...]
    missing: tuple[str, ...]
    goldens_left_out: tuple[str, ...]
    unread: tuple[str, ...]

    def reference(self) -> ReferenceOutput:
        """The oracle's outputs for these inputs."""
        return reference_run(
            self.weights, self.x, self.cos, self.sin, self.cache_index, self.cache, numerics=self.settings.numerics
        )


def dump_settings(folder: str | os.PathLike[str], **changes: Any) -> DumpSettings:
    """The settings that a folder's `dims.json` names, or dimensions by its `config.json`; `changes` come before both.

    `dims.json` holds the fields of `MlaDims`, and may hold those of `DumpSettings`. Raises `ValueError` or `TypeError`
    naming file and field.
    """
    folder = Path(folder)
    known = {field.name for field in fields(DumpSettings)} - {"dims"}
    found: dict[str, Any] = {}
    for name in (SETTINGS_FILE, "config.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise TypeError(f"expected an object, got {type(content).__name__}")
            if changes.get("dims") is None:
                found["dims"] = MlaDims.from_hf(content)
            if name == SETTINGS_FILE:
                found |= {key: value for key, value in content.items() if key in known}
            DumpSettings(**found)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{folder / name}: {error}") from None
        break
    given = {key: value for key, value in changes.items() if (key, value) != ("dims", None)}
    return DumpSettings(**(found | given))


def read_dump(folder: str | os.PathLike[str], settings: DumpSettings | None = None) -> Dump:
    """Reads inputs and outputs from a folder; `settings` None: `dump_settings(folder)`.

    Raises `ValueError` for inputs that are missing (it says all that are), two files for one input, a size or shape
    that does not fit, `TypeError` for other elements, `FileNotFoundError` for a folder that is not there.
    """
    folder = Path(folder)
    settings = dump_settings(folder) if settings is None else settings
    files = find_files(folder)
    scale_file = files.inputs.get("dequant_scale")
    quantized = scale_file is not None and has_elements(folder, "dequant_scale", scale_file)
    _expect_inputs(folder, files, quantized, settings.cache_mode)
    dims = settings.dims or _dims_of(folder, files) or MlaDims.deepseek_v32()
    settings = replace(settings, dims=dims)
    weights = _read_weights(folder, files, settings, dims)

    def read(name: str, *kinds: Kind) -> Array:
        return read_file(folder, name, files.inputs[name], kinds)

    x = read("token_x", rows(None, dims.hidden_size, dtype=BF16))
    t = len(x)
    cos, sin = (read(name, rows(t, dims.qk_rope_head_dim, dtype=BF16)) for name in ("cos", "sin"))
    mode = settings.cache_mode
    mode_of_scales = "PA_BSND" if mode == "PA_NZ" else mode
    kv = read("kv_cache", first_cache(dims.kv_lora_rank, INT8 if quantized else BF16, mode, settings.block_size))
    kr = read("kr_cache", cache_like(kv, dims.qk_rope_head_dim, BF16, mode))
    k_scale = None
    if "k_scale_cache" in files.inputs:
        k_scale = read("k_scale_cache", *(cache_like(kv, N_SCALES, dtype, mode_of_scales) for dtype in (FP32, FP16)))
    cache = PagedCache(kv, kr, k_scale, mode)
    index = None
    if cache.paged:
        index = check_slots(read("cache_index", *(rows(t, dtype=dtype) for dtype in (INT64, INT32))), t, cache.capacity)
    elif t > cache.capacity:
        raise ValueError(f"token_x: expected at most {cache.capacity} tokens, the rows of kv_cache, got {t}")

    heads = dims.num_attention_heads
    expected = {"q_norm_out": [rows(t, dims.q_lora_rank, dtype=INT8 if quantized else BF16)]}
    if quantized:
        expected["q_norm_scale_out"] = [rows(t, 1, dtype=dtype) for dtype in (FP32, FP16)]
    expected["query_nope_out"] = [rows(t, heads, dims.kv_lora_rank, dtype=BF16)]
    expected["query_rope_out"] = [rows(t, heads, dims.qk_rope_head_dim, dtype=BF16)]
    for name, array in cache.arrays().items():
        of_cache = mode if name != "k_scale_cache" else mode_of_scales
        expected[f"{name}_out"] = [cache_like(kv, array.shape[-1], array.dtype, of_cache)]
    found = {name: files.outputs.get(name, []) for name in expected}
    own = any(not file.is_golden for of_name in found.values() for file in of_name)
    outputs, left_out = [], []
    for name, of_name in found.items():
        for file in of_name:
            if own and file.is_golden:
                left_out.append(str(file.path))
            else:
                outputs.append(DumpedOutput(name, str(file.path), read_file(folder, name, file, expected[name])))
    there = {output.name for output in outputs}
    foreign = [str(file.path) for name in files.outputs if name not in expected for file in files.outputs[name]]
    return Dump(
        settings=settings,
        weights=weights,
        x=x,
        cos=cos,
        sin=sin,
        cache_index=index,
        cache=cache,
        outputs=tuple(outputs),
        missing=tuple(name for name in expected if name not in there),
        goldens_left_out=tuple(left_out),
        unread=tuple(sorted(files.unread + foreign)),
    )


def _read_weights(folder: Path, files: DumpFiles, settings: DumpSettings, dims: MlaDims) -> MlaWeights:
    def scale(name: str, n: int) -> Array | None:
        file = files.inputs.get(name)
        if file is None or not has_elements(folder, name, file):
            return None
        return read_file(folder, name, file, vector(n, FP32, FP16)).astype(FP32)

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
        array = read_file(folder, name, file, [nz] if is_nz else [nd] if is_bin else [nd, nz])
        if array.ndim == 2:
            return array
        with renamed({"fractals": f"{name} ({file.path})"}):
            return from_fractal_nz(array, k, n)

    w_uk = exactly((dims.num_attention_heads, dims.qk_nope_head_dim, dims.kv_lora_rank), BF16)
    return MlaWeights(
        w_dq=weight("w_dq", dims.hidden_size, dims.q_lora_rank),
        w_uq_qr=weight("w_uq_qr", dims.q_lora_rank, n_up),
        w_uk=read_file(folder, "w_uk", files.inputs["w_uk"], [w_uk]),
        w_dkv_kr=weight("w_dkv_kr", dims.hidden_size, dims.kv_a_dim),
        gamma_cq=read_file(folder, "gamma_cq", files.inputs["gamma_cq"], vector(dims.q_lora_rank, BF16)),
        gamma_ckv=read_file(folder, "gamma_ckv", files.inputs["gamma_ckv"], vector(dims.kv_lora_rank, BF16)),
        dequant_scale_w_uq_qr=scales["w_uq_qr"],
        dequant_scale_w_dq=scales["w_dq"],
        dequant_scale_w_dkv_kr=scales["w_dkv_kr"],
        smooth_scales_cq=scale("smooth_scales_cq", dims.q_lora_rank),
        epsilon_cq=settings.epsilon_cq,
        epsilon_ckv=settings.epsilon_ckv,
    )


def _expect_inputs(folder: Path, files: DumpFiles, quantized: bool, cache_mode: str) -> None:
    optional = {"dequant_scale"} | ({"cache_index"} if cache_mode in CONTIGUOUS_MODES else set())
    if not quantized:
        optional.add("k_scale_cache")
    missing = [name for name in INPUTS if name not in files.inputs and name not in optional]
    if not missing:
        return
    there = [str(file.path) for file in files.inputs.values()]
    there += [str(file.path) for found in files.outputs.values() for file in found] + files.unread
    numbers = list(INPUTS)
    others = {name: dict.fromkeys((*INPUTS[name], f"input_{numbers.index(name)}")) for name in missing}
    lines = [f"{name}, or {', '.join(other for other in others[name] if other != name)}" for name in missing]
    raise ValueError(
        f"{folder}: expected {', '.join(INPUTS)} as .npy or .bin, got {', '.join(sorted(there)) or 'none of them'}; "
        "missing are\n  " + "\n  ".join(lines)
    )


def _dims_of(folder: Path, files: DumpFiles) -> MlaDims | None:
    """The dimensions that arrays show; None where one of those is a `.bin` or of another rank."""
    shapes = {name: npy_shape(folder, name, files.inputs[name]) for name in ("token_x", "w_uk", "gamma_cq", "cos")}
    x, w_uk, gamma_cq, cos = shapes.values()
    if not x or not gamma_cq or not cos or w_uk is None or len(w_uk) != 3:
        return None
    heads, nope, latent = w_uk
    return MlaDims(x[-1], heads, prod(gamma_cq), latent, nope, cos[-1])


def check_dump(dump: Dump, exact: bool = False) -> list[Agreement]:
    """How each output of a folder agrees with the oracle's, and whether rows that no token names were left alone.

    Caches in PA_NZ are compared in the order of PA_BSND, so that places are blocks and slots.
    """
    want = dump.reference()
    nz = dump.settings.cache_mode == "PA_NZ"
    before = dump.cache.arrays()
    named = np.arange(len(dump.x)) if dump.cache_index is None else dump.cache_index
    untouched = np.setdiff1d(np.arange(dump.cache.capacity), named)
    found = []
    for name, file, got in dump.outputs:
        of_cache = name.removesuffix("_out") in before
        arrays = [got, getattr(want, name.removesuffix("_out"))]
        if of_cache:
            arrays.append(before[name.removesuffix("_out")])
            if nz and name != "k_scale_cache_out":
                arrays = [pa_nz_to_pa_bsnd(array) for array in arrays]
        kept = (arrays[2], untouched) if of_cache else None
        with np.errstate(over="ignore"):
            expected = arrays[1].astype(got.dtype)  # float16 scales are the oracle's float32 ones, rounded
        found.append(compare_within(name, arrays[0], expected, file=file, exact=exact, untouched=kept))
    return found


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
    """Writes inputs of `t` tokens, the oracle's outputs (`*_golden`) and `dims.json` into a folder; the files' paths.

    Weights and inputs are random ones of `seed`. Caches hold random rows, `n_blocks` blocks of them (default: one more
    than the tokens need), their scales in `scale_dtype`, "float32" or "float16". `file_format`: "npy" or "bin";
    `style`: see `dump_names.name_in`. With `settings.nz` w_dq, w_uq_qr and w_dkv_kr are written as FRACTAL_NZ.
    `finished(argument)` is called after each file.

    The folder may be there, the files may not. Raises `TypeError` or `ValueError` naming the argument that does not
    fit, `FileExistsError` naming the first file that is there, `OSError` where one cannot be written; no file of the
    dump is left then.
    """
    folder = Path(folder)
    settings = settings or DumpSettings()
    dims = settings.dims or MlaDims.deepseek_v32()
    check_choice("file_format", file_format, FORMATS)
    check_choice("style", style, STYLES)
    check_choice("scale_dtype", scale_dtype, ("float32", "float16"))
    block_size, mode = settings.block_size, settings.cache_mode
    least = -(-check_int("t", t, 1) // block_size)
    n_blocks = least + 1 if n_blocks is None else check_int("n_blocks", n_blocks, least)
    weights = MlaWeights.random(dims, seed, quant, smooth)
    weights = replace(weights, epsilon_cq=settings.epsilon_cq, epsilon_ckv=settings.epsilon_ckv)
    cache = _random_cache(PagedCache.allocate(dims, n_blocks, block_size, mode, "b" in quant), seed, scale_dtype)
    x, cos, sin, index = random_inputs(dims, t, seed, cache.capacity)
    cache_index = index if cache.paged else None
    arrays: dict[str, Array | None] = {
        "token_x": x,
        "w_dq": weights.w_dq,
        "w_uq_qr": weights.w_uq_qr,
        "dequant_scale": None,
        "w_uk": weights.w_uk,
        "w_dkv_kr": weights.w_dkv_kr,
        "gamma_cq": weights.gamma_cq,
        "gamma_ckv": weights.gamma_ckv,
        "cos": cos,
        "sin": sin,
        "cache_index": cache_index,
        **cache.arrays(),
        "dequant_scale_w_dq": weights.dequant_scale_w_dq,
        "dequant_scale_w_dkv_kr": weights.dequant_scale_w_dkv_kr,
        "smooth_scales_cq": weights.smooth_scales_cq,
    }
    if weights.dequant_scale_w_uq_qr is not None:
        arrays["dequant_scale"] = weights.dequant_scale_w_uq_qr[:, None]
    if settings.nz:
        arrays |= {name: to_fractal_nz(array) for name in NZ_WEIGHTS if (array := arrays[name]) is not None}
    names = [name for name in (*INPUTS, *SCALES) if arrays.get(name) is not None] + [
        name for name in OUTPUTS if name not in ("q_norm_scale_out", "k_scale_cache_out") or "b" in quant
    ]
    paths = {name: folder / f"{name_in(style, name)}.{file_format}" for name in names}
    for path in (*paths.values(), folder / SETTINGS_FILE):
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: expected no such file, got one")
    reference = reference_run(weights, x, cos, sin, cache_index, cache, numerics=settings.numerics)
    arrays |= {f"{name}_out": array for name, array in reference._asdict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    content = asdict(dims) | {k: v for k, v in asdict(settings).items() if k != "dims"}
    begun = []
    try:
        for name, path in paths.items():
            array = arrays[name]
            assert array is not None
            begun.append(path)
            _write_array(path, array)
            finished(name)
        begun.append(folder / SETTINGS_FILE)
        write_text(begun[-1], json.dumps(content, indent=1) + "\n")
    except BaseException:
        for path in begun:
            with suppress(OSError):
                path.unlink()
        raise
    return begun


def _write_array(path: Path, array: Array) -> None:
    with output_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, array, allow_pickle=False)
        else:
            bits = np.ascontiguousarray(array).view(f"u{array.itemsize}")
            bits.astype(f"<u{array.itemsize}", copy=False).tofile(file)


def _random_cache(cache: PagedCache, seed: int, scale_dtype: str) -> PagedCache:
    """The cache with earlier tokens of every slot in it."""
    rng = np.random.default_rng((check_int("seed", seed, 0), 2))
    kv = rng.integers(-127, 128, cache.kv.shape, np.int8) if cache.quantized else rng.standard_normal(cache.kv.shape)
    kr = rng.standard_normal(cache.kr.shape).astype(BF16)
    k_scale = None
    if cache.k_scale is not None:
        k_scale = rng.uniform(0.01, 0.04, cache.k_scale.shape).astype(scale_dtype)
    return PagedCache(kv.astype(cache.kv.dtype), kr, k_scale, cache.cache_mode)
