"""The closed lists of names that arguments choose from: a type of each for checkers, and its names as a tuple."""

from typing import Literal, get_args

from tiling.modes import CALL_PHASES, NPU_ARCHS, QUANT_MODES, CallPhase, NpuArch, PresetName, QuantMode

__all__ = [
    "CACHE_MODES",
    "CALL_PHASES",
    "CONTIGUOUS_MODES",
    "DUMP_FORMATS",
    "DUMP_STYLES",
    "NPU_ARCHS",
    "NUMERICS",
    "PAGED_MODES",
    "QUANT_MODES",
    "SCALE_DTYPES",
    "CacheMode",
    "CallPhase",
    "ContiguousMode",
    "DumpFormat",
    "DumpStyle",
    "NpuArch",
    "Numerics",
    "PagedMode",
    "PresetName",
    "QuantMode",
    "RecordOrder",
    "ScaleDtype",
    "quant_mode",
]

# How rows are quantised: as the reference operator does it, or as CANN's operators do.
Numerics = Literal["pypto", "cann"]
NUMERICS: tuple[Numerics, ...] = get_args(Numerics)

# Where a token's row of a cache is: in the slot that cache_index gives, or in the order of the tokens.
PagedMode = Literal["PA_BSND", "PA_NZ"]
PAGED_MODES: tuple[PagedMode, ...] = get_args(PagedMode)
ContiguousMode = Literal["BSND", "TND"]
CONTIGUOUS_MODES: tuple[ContiguousMode, ...] = get_args(ContiguousMode)
CacheMode = Literal[PagedMode, ContiguousMode]
CACHE_MODES: tuple[CacheMode, ...] = get_args(CacheMode)

# The order of codes, scales and rope in a token's record of 656 bytes; `layouts.RECORD_ORDERS` has the orders.
RecordOrder = Literal["cann", "flashmla"]

# A dumped file's form, the names of a folder's files, and the elements of its k_scale_cache.
DumpFormat = Literal["npy", "bin", "pt"]
DUMP_FORMATS: tuple[DumpFormat, ...] = get_args(DumpFormat)
DumpStyle = Literal["reference", "pypto", "numbers"]
DUMP_STYLES: tuple[DumpStyle, ...] = get_args(DumpStyle)
ScaleDtype = Literal["float32", "float16"]
SCALE_DTYPES: tuple[ScaleDtype, ...] = get_args(ScaleDtype)


def quant_mode(is_a: bool, is_b: bool) -> QuantMode:
    """The mode in which the down projections (a) and the up projection (b) are int8 or not."""
    if is_a:
        return "ab" if is_b else "a"
    return "b" if is_b else "none"
