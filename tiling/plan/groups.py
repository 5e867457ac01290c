"""Groups of workers, one a NUMA node: workers of a group follow each other, as the cores of a node do.

Each group packs an even share of a weight, and draws the legs of its own share first: see
``mla_numba.kernels.threads.relays``.
"""

from collections.abc import Iterable
from itertools import accumulate, pairwise

from tiling.arith import chunks

__all__ = ["even_groups", "first_workers", "group_of_each", "groups_of_nodes", "groups_text"]


def even_groups(n_workers: int, n_groups: int) -> tuple[int, ...]:
    """Workers of each of at most ``n_groups`` nearly even groups, none of them empty; nothing for a single one."""
    return _several(end - begin for begin, end in chunks(n_workers, min(n_groups, n_workers)))


def groups_of_nodes(n_workers: int, node_cores: tuple[int, ...]) -> tuple[int, ...]:
    """Workers of each node that has some, if they are spread evenly over all cores; nothing for a single group."""
    cores = first_workers(node_cores)
    return _several(n_workers * end // cores[-1] - n_workers * begin // cores[-1] for begin, end in pairwise(cores))


def _several(sizes: Iterable[int]) -> tuple[int, ...]:
    groups = tuple(size for size in sizes if size)
    return groups if len(groups) > 1 else ()


def first_workers(groups: tuple[int, ...]) -> list[int]:
    """The first worker of each group, and behind them the number of workers."""
    return [0, *accumulate(groups)]


def group_of_each(groups: tuple[int, ...], n_workers: int) -> list[int]:
    """The group of each worker."""
    return [group for group, size in enumerate(groups or (n_workers,)) for _ in range(size)]


def groups_text(groups: tuple[int, ...]) -> str:
    """Their sizes in a few words."""
    if len(set(groups)) == 1:
        return f"{len(groups)} groups of {groups[0]}"
    return f"{len(groups)} groups of {', '.join(map(str, groups[:-1]))} and {groups[-1]}"
