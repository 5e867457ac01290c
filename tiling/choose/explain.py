"""The planner's candidates as a table: the best, and those that were refused with their reasons."""

from collections import Counter

from tiling.choose.candidates import Chooser, SweepCandidate

__all__ = ["candidate_lines"]

_SHOWN = 12
_HEADINGS = ("ms", "computing ms", "L2 MB", "L3 MB", "balance", "edge waste")


def candidate_lines(chooser: Chooser) -> list[str]:
    """Lines on one tile: for each sweep a row for each of the dozen best, the chosen first, and each reason against."""
    listed = chooser.listed()
    lines = []
    for sweep in ("down", "heads"):
        of_sweep = [candidate for candidate in listed if candidate.sweep == sweep]
        lines += [f"  {sweep}: {_counted(of_sweep)}", *_table([c for c in of_sweep if c.cost is not None])]
        lines += [f"    refused: {reason} ({example})" for reason, example in _reasons(of_sweep)]
    for dtype, micro in chooser.micro.items():
        lines.append(
            f"  {dtype} register tile: {micro}; refused: any other, not_offered: the kernels of "
            f"{chooser.machine.isa} are built for this one"
        )
    return lines


def _counted(candidates: list[SweepCandidate]) -> str:
    n_refused = sum(bool(candidate.refused) for candidate in candidates)
    scored = len(candidates) - n_refused
    return f"{scored} candidates scored, the best {min(_SHOWN, scored)} shown; {n_refused} refused"


def _table(scored: list[SweepCandidate]) -> list[str]:
    best = sorted(scored, key=lambda candidate: candidate.cost.seconds if candidate.cost else 0.0)[:_SHOWN]
    width = max((len(str(candidate)) for candidate in best), default=0)
    lines = [f"    {'':<{width}}  " + "  ".join(f"{heading:>12}" for heading in _HEADINGS)]
    for candidate in best:
        cost = candidate.cost
        assert cost is not None
        cells = (
            f"{cost.seconds * 1e3:.4f}",
            f"{cost.core_s * 1e3:.4f}",
            f"{cost.l2_bytes / 1e6:.2f}",
            f"{cost.l3_bytes / 1e6:.2f}",
            f"{cost.balance:.3f}",
            f"{cost.edge_waste:.1%}",
        )
        lines.append(f"    {candidate!s:<{width}}  " + "  ".join(f"{cell:>12}" for cell in cells))
    return lines if best else []


def _reasons(candidates: list[SweepCandidate]) -> list[tuple[str, str]]:
    counts = Counter(candidate.refused for candidate in candidates if candidate.refused)
    first = {candidate.refused: candidate for candidate in reversed(candidates) if candidate.refused}
    return [
        (reason, f"{n} of them, such as {first[reason]}" if n > 1 else str(first[reason]))
        for reason, n in counts.items()
    ]
