"""Prescribing a plan for a CPU, field by field."""

from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Self

from tiling.check import MAX_THREADS, check_int, check_ints
from tiling.json import JsonText
from tiling.short_repr import changed_repr

__all__ = ["CpuTiling", "listed"]


@dataclass(frozen=True)
class CpuTiling(JsonText):
    """Blocks, tasks and threads of a plan. The planner chooses the fields that are None, to suit the others.

    Counts are of elements, token rows, panels (of nr columns) or tasks. Blocks longer than the product are clipped,
    ``*_kc`` is rounded up to kr, and rows and panels are cut evenly, so a block may be a little smaller than asked for.
    A count is from 1 to 2^31 - 1, ``n_threads`` and ``n_groups`` at most 2^16, and ``unroll_list`` has at most
    4096 sizes; else ``ValueError`` names the field.

    - ``unroll_list``: numbers of tokens a tile may have, see ``loop_unroll``.
    - ``n_threads``: workers of the parallel regions; at most the threads that the plan is made for. ``n_groups``: even
      groups of them, each of which draws the legs of its own share of the weights first; by default one a NUMA node.
    - ``down_mc, down_kc, down_walk``: rows, k elements and panels of a task of the down projections; ``down_grain``:
      tasks a worker takes at a time; ``down_legs``: tasks that share such a task's k, one after the other.
    - ``rows_q``: token rows of a task that packs hidden states, and of an elementwise one of the query; ``rows_k``: of
      the key.
    - ``qb_mc``: token rows of a heads task; ``qb_kc, qb_walk``: k elements and panels of the query's up projection.
    - ``wuk_mc, wuk_kc, wuk_walk``: rows, k elements and panels of the product with w_uk; ``heads_grain``: tasks a
      worker takes at a time; ``heads_legs``: tasks that share a head, one after the other.

    Examples:
        >>> from tiling import CpuTiling
        >>> CpuTiling(unroll_list=[128, 1], down_kc=1792).replace(n_threads=2)
        CpuTiling(unroll_list=(128, 1), n_threads=2, down_kc=1792)
    """

    unroll_list: tuple[int, ...] | None = None
    n_threads: int | None = None
    n_groups: int | None = None
    down_mc: int | None = None
    down_kc: int | None = None
    down_walk: int | None = None
    down_grain: int | None = None
    down_legs: int | None = None
    rows_q: int | None = None
    rows_k: int | None = None
    qb_mc: int | None = None
    qb_kc: int | None = None
    qb_walk: int | None = None
    wuk_mc: int | None = None
    wuk_kc: int | None = None
    wuk_walk: int | None = None
    heads_grain: int | None = None
    heads_legs: int | None = None

    def __post_init__(self) -> None:
        """Check the fields that are given; the list becomes a tuple."""
        for name, value in self.given().items():
            if name == "unroll_list":
                object.__setattr__(self, name, tuple(check_ints(name, value, 1)))
            elif name in ("n_threads", "n_groups"):
                check_int(name, value, 1, MAX_THREADS)
            else:
                check_int(name, value, 1)

    def given(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def replace(self, **changes: Any) -> Self:
        """A checked copy.

        Args:
            **changes: Fields that are to differ.

        Returns:
            A new tiling.

        Raises:
            TypeError: There is no such field, or it is of another type.
            ValueError: A field has another value.
        """
        return dataclass_replace(self, **changes)

    def __repr__(self) -> str:
        """The given fields, as Python makes the same tiling of them."""
        return changed_repr(self)

    def __str__(self) -> str:
        """One line: the given fields."""
        return ", ".join(f"{name} {listed(value)}" for name, value in self.given().items()) or "nothing prescribed"


def listed(value: object) -> str:
    """A field's value as text: the tuple as a list."""
    return str(list(value)) if isinstance(value, tuple) else str(value)
