"""The closed lists of names that arguments choose from: a type of each for checkers, and its names as a tuple."""

from typing import Literal, get_args

from tiling.modes import CALL_PHASES, NPU_ARCHS, PRESETS, QUANT_MODES, CallPhase, NpuArch, PresetName, QuantMode

__all__ = [
    "CACHE_MODES",
    "CALL_PHASES",
    "CONTIGUOUS_MODES",
    "DOWN_WAYS",
    "DUMP_FORMATS",
    "DUMP_OPERATORS",
    "DUMP_STYLES",
    "NPU_ARCHS",
    "NUMERICS",
    "PAGED_MODES",
    "PRESETS",
    "QUANT_MODES",
    "ROPE_STYLES",
    "SCALE_DTYPES",
    "CacheMode",
    "CallPhase",
    "ContiguousMode",
    "DownWay",
    "DumpFormat",
    "DumpOperator",
    "DumpStyle",
    "NpuArch",
    "Numerics",
    "PagedMode",
    "PresetName",
    "QuantMode",
    "RecordOrder",
    "RopeStyle",
    "ScaleDtype",
    "quant_mode",
]

Numerics = Literal["pypto", "cann"]
"""How rows are quantised: as the reference operator does it, or as CANN's operators do."""
NUMERICS: tuple[Numerics, ...] = get_args(Numerics)

DownWay = Literal["auto", "replicated", "split"]
"""How ranks compute a layer's down-projection: all of it each, or a share each; "auto" is the faster one."""
DOWN_WAYS: tuple[DownWay, ...] = get_args(DownWay)

PagedMode = Literal["PA_BSND", "PA_NZ"]
"""A cache whose slots cache_index gives: in ND, or in FRACTAL_NZ blocks."""
PAGED_MODES: tuple[PagedMode, ...] = get_args(PagedMode)

ContiguousMode = Literal["BSND", "TND"]
"""A cache with a row for each token, in the order of the tokens."""
CONTIGUOUS_MODES: tuple[ContiguousMode, ...] = get_args(ContiguousMode)

CacheMode = Literal[PagedMode, ContiguousMode]
"""Any cache: "PA_BSND", "PA_NZ", "BSND" or "TND"; see `PagedCache`."""
CACHE_MODES: tuple[CacheMode, ...] = get_args(CacheMode)

RecordOrder = Literal["cann", "flashmla"]
"""The order of codes, scales and rope in a token's record of 656 bytes; `layouts.RECORD_ORDERS` has the orders."""

RopeStyle = Literal["half", "interleaved"]
"""How an indexer's rope columns come: as two halves (DeepSeek-V3.2), or as pairs side by side (GLM-5)."""
ROPE_STYLES: tuple[RopeStyle, ...] = get_args(RopeStyle)

DumpFormat = Literal["npy", "bin", "pt"]
"""A dumped file: an array of NumPy, its bare elements, or a tensor of torch."""
DUMP_FORMATS: tuple[DumpFormat, ...] = get_args(DumpFormat)

DumpStyle = Literal["reference", "pypto", "numbers"]
"""The names of a folder's files; see `mla_numba.dump_names.name_in`."""
DUMP_STYLES: tuple[DumpStyle, ...] = get_args(DumpStyle)

DumpOperator = Literal[
    "mla_prolog_quant",
    "lightning_indexer_prolog_quant",
    "mla_indexer_prolog_quant",
    "lightning_indexer_quant",
    "sparse_flash_attention_quant",
    "sparse_attention_antiquant",
]
"""The reference's operator whose arguments a folder of dumps holds; `mla_numba.dumps` says what each computes."""
DUMP_OPERATORS: tuple[DumpOperator, ...] = get_args(DumpOperator)

ScaleDtype = Literal["float32", "float16"]
"""Elements of k_scale_cache."""
SCALE_DTYPES: tuple[ScaleDtype, ...] = get_args(ScaleDtype)


def quant_mode(is_a: bool, is_b: bool) -> QuantMode:
    """The mode in which the down projections (a) and the up projection (b) are int8 or not."""
    if is_a:
        return "ab" if is_b else "a"
    return "b" if is_b else "none"
