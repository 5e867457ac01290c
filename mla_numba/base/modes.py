"""The closed lists of names that arguments choose from."""

from tiling.modes import CALL_PHASES, QUANT_MODES

__all__ = [
    "CACHE_MODES",
    "CALL_PHASES",
    "CONTIGUOUS_MODES",
    "DUMP_FORMATS",
    "DUMP_STYLES",
    "NUMERICS",
    "PAGED_MODES",
    "QUANT_MODES",
]

# How rows are quantised: as the reference operator does it, or as CANN's operators do.
NUMERICS = ("pypto", "cann")

# Order of a cache's arrays. Paged: a slot for each token, given by cache_index. Contiguous: token t writes row t.
PAGED_MODES = ("PA_BSND", "PA_NZ")
CONTIGUOUS_MODES = ("BSND", "TND")
CACHE_MODES = PAGED_MODES + CONTIGUOUS_MODES

# Form and names of the files of a dump.
DUMP_FORMATS = ("npy", "bin", "pt")
DUMP_STYLES = ("reference", "pypto", "numbers")
