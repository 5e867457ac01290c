"""The closed lists of names that arguments choose from."""

from tiling.modes import CALL_PHASES, QUANT_MODES

__all__ = ["CALL_PHASES", "NUMERICS", "QUANT_MODES"]

# How rows are quantised: as the reference operator does it, or as CANN's operators do.
NUMERICS = ("pypto", "cann")
