"""What a run of the suite found, in some lines for the terminal."""

from __future__ import annotations

from ..chart_style import plain, tokens_text
from .findings import finding, milliseconds, where
from .results import Results

__all__ = ["summary"]


def summary(results: Results) -> str:
    """Headline, a line each number of tokens, and what was left out."""
    found = finding(results)
    lines = []
    if found is not None:
        state = f", weights {found.state}" if found.state else ""
        lines = [f"{found.headline}: {where(results)}{state}"]
        for t, seconds in found.seconds.items():
            peer = found.fastest(t)
            other = "" if peer is None else f"; {peer.name} takes {plain(peer.ratios[t])} times as long"
            lines.append(f"  {tokens_text(t):>12}: {milliseconds(seconds)} ms{other}")
    lines += [r if " left out: " in r else f"left out: {r}" for r in results.left_out]
    return "\n".join(lines)
