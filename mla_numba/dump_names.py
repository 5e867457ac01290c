"""The names of dumped files: `mla_numba.dumps.names` under its first name."""

from .dumps.names import INPUTS, NZ_WEIGHTS, OUTPUTS, SCALES, STYLES, FileMeaning, meaning_of, name_in

__all__ = ["INPUTS", "NZ_WEIGHTS", "OUTPUTS", "SCALES", "STYLES", "FileMeaning", "meaning_of", "name_in"]
