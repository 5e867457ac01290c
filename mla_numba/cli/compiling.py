"""How far the compilation of kernels is, by what the library logs of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..base.modes import QUANT_MODES

__all__ = ["counting_kernels", "parts_behind_the_prolog", "parts_of_a_call", "parts_of_a_step", "parts_of_all"]

_log = logging.getLogger("mla_numba")
# About how long phases, and what calls them, take to compile beside the small ones: packers, the parallel region.
_PHASES = {"outlined.pack": 4, "outlined.down": 6, "outlined.query": 5, "outlined.key": 6, "outlined.heads": 9}
_CALL = {"kernels.prolog_tile": 4}
_INDEX_PHASES = {"outlined.index_pack": 3, "outlined.index_keys": 14, "outlined.index_heads": 6}
_INDEX_CALL = {"kernels.prolog_and_indexer_tile": 6}
_INDEX_ALONE = {"kernels.indexer_tile": 3}
_LIGHTNING = {"kernels.lightning_tile": 11}
_ATTEND = {"outlined.scores": 3, "outlined.latents": 2, "kernels.attend": 1}  # for keys of int8, and of bf16
_ATTEND_ONCE = {"outlined.pack_queries": 1, "outlined.softmax": 2}
_SMALL = 1
_PARTS = (
    _PHASES | _CALL | _INDEX_PHASES | _INDEX_CALL | _INDEX_ALONE | _LIGHTNING | _ATTEND | _ATTEND_ONCE
)  # fmt: skip


def parts_of_a_call(n_threads: int, *, with_indexer: bool = False) -> int:
    """What a first call compiles or loads, in the parts that `counting_kernels` counts."""
    call = _INDEX_PHASES | _INDEX_CALL if with_indexer else _CALL
    sums = _PHASES["outlined.down"] if with_indexer else 0  # the indexer's are float32
    return sum((_PHASES | call).values()) + sums + (_SMALL if n_threads > 1 else 0)


def parts_of_a_step(n_threads: int) -> int:
    """The same of a step of sparse attention: a call with an indexer, the index, attention over int8 keys."""
    behind = _LIGHTNING | _ATTEND | _ATTEND_ONCE
    return parts_of_a_call(n_threads, with_indexer=True) + sum(behind.values()) + 3 * _SMALL


def parts_behind_the_prolog() -> int:
    """What the indexer's prolog, beside a prolog of either mode and alone, the index and attention compile or load."""
    once = _INDEX_PHASES | _INDEX_ALONE | _LIGHTNING | _ATTEND_ONCE
    small = 4  # the index's vector code, the checks of tables of two types, and of positions
    twice = 2 * sum((_INDEX_CALL | _ATTEND).values())
    return sum(once.values()) + _PHASES["outlined.down"] + twice + small * _SMALL


def parts_of_all(n_threads: int) -> int:
    """The same for all modes: phases for bf16 and for int8, what calls them in each mode, microkernels and packers."""
    small = 6 + (1 if n_threads > 1 else 0)
    return 2 * sum(_PHASES.values()) + len(QUANT_MODES) * sum(_CALL.values()) + small * _SMALL


class _Kernels(logging.Handler):
    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__(logging.DEBUG)
        self._advance = advance

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "kernel", "")
        if name:
            self._advance(_PARTS.get(name, _SMALL))


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
