"""Legs: tasks that share what would be one task, one after the other, so that the last round of tasks is not half idle.

A task of the down sweep, a walk of panels, has its k cut in legs; one of the heads sweep, a head, the panels of its up
projection: its last leg takes what is left of them and the product with w_uk.
"""

from tiling.arith import ceil_div

__all__ = ["LEG_BYTES_S", "LEG_S", "head_leg_panels", "longest_leg", "useful_legs"]

# What a leg loses by beginning in the middle of a stream, and bytes a second at which it takes over what another core
# has just written: measured on two cores (Zen 5).
LEG_S = 4e-7
LEG_BYTES_S = 8e9
_LEGS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
_EVEN = 1.04  # so much longer than an even share whole rounds of tasks may take without being cut


def useful_legs(n_relays: int, n_workers: int, most: int) -> list[int]:
    """One leg, and numbers of legs up to ``most`` each of which makes whole rounds of tasks more even than fewer do.

    One alone where there are no more relays than workers: legs of the same relay run one after the other.
    """
    found, best = [1], _unevenness(n_relays, n_workers)
    for legs in _LEGS:
        uneven = _unevenness(n_relays * legs, n_workers)
        if n_relays > n_workers and legs <= most and best > _EVEN and uneven < best:
            found.append(legs)
            best = uneven
    return found


def _unevenness(n_tasks: int, n_workers: int) -> float:
    """How much longer whole rounds of equal tasks take than an even share of them would, at least 1."""
    return ceil_div(n_tasks, n_workers) * n_workers / max(n_tasks, 1)


def head_leg_panels(n_panels: int, uk_panels: float, legs: int) -> int:
    """Panels of each leg of a head but the last, which has the rest of them and work that is worth ``uk_panels``."""
    if legs == 1:
        return 0
    return max(1, min(round((n_panels + uk_panels) / legs), n_panels // (legs - 1)))


def longest_leg(n_panels: int, uk_panels: float, legs: int) -> float:
    """The longest leg of a head as a multiple of their mean."""
    first = head_leg_panels(n_panels, uk_panels, legs)
    last = n_panels - (legs - 1) * first + uk_panels
    return max(first, last) * legs / (n_panels + uk_panels)
