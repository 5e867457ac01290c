"""How far the compilation of kernels is, by what the library logs of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..base.modes import QUANT_MODES

__all__ = ["counting_kernels", "parts_of_a_call", "parts_of_all"]

_log = logging.getLogger("mla_numba")
# About how long phases, and what calls them, take to compile beside the small ones: packers, the parallel region.
_PHASES = {"outlined.pack": 4, "outlined.down": 6, "outlined.query": 5, "outlined.key": 6, "outlined.heads": 9}
_CALL = {"kernels.prolog_tile": 4}
_SMALL = 1


def parts_of_a_call(n_threads: int) -> int:
    """What a first call compiles or loads, in the parts that `counting_kernels` counts."""
    return sum((_PHASES | _CALL).values()) + (2 * _SMALL if n_threads > 1 else 0)


def parts_of_all(n_threads: int) -> int:
    """The same for all modes: phases for bf16 and for int8, what calls them in each mode, microkernels and packers."""
    small = 6 + (2 if n_threads > 1 else 0)
    return 2 * sum(_PHASES.values()) + len(QUANT_MODES) * sum(_CALL.values()) + small * _SMALL


class _Kernels(logging.Handler):
    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__(logging.DEBUG)
        self._advance = advance

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "kernel", "")
        if name:
            self._advance((_PHASES | _CALL).get(name, _SMALL))


@contextmanager
def counting_kernels(advance: Callable[[float], None]) -> Iterator[None]:
    """Calls `advance` with the parts of each kernel that is compiled or loaded meanwhile."""
    handler, level = _Kernels(advance), _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _log.setLevel(level)
        _log.removeHandler(handler)
