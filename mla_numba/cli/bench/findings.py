"""What a run of the suite says first: how much faster than what, on which machine."""

from __future__ import annotations

from typing import NamedTuple

from ...base.dims import MlaDims
from ..chart_style import plain
from .names import full_name
from .results import Group, Results

__all__ = ["Finding", "Peer", "finding", "milliseconds", "span", "where"]

_PROLOG = "prolog"
_STATES = ("cold", "warm", "")  # the first that was run; in a model weights are cold


class Peer(NamedTuple):
    """Another implementation: its time over ours by number of tokens."""

    name: str
    ratios: dict[int, float]


class Finding(NamedTuple):
    """Whole calls in one cache state: our seconds by number of tokens, and the peers, the fastest first."""

    state: str
    seconds: dict[int, float]
    peers: list[Peer]
    shares: dict[int, float | None]

    def fastest(self, t: int) -> Peer | None:
        """The fastest of the others at that number of tokens."""
        return min((peer for peer in self.peers if t in peer.ratios), key=lambda peer: peer.ratios[t], default=None)

    @property
    def headline(self) -> str:
        """In a sentence: the range of the fastest others, or our times where there are none."""
        best = [peer.ratios[t] for t in self.seconds if (peer := self.fastest(t)) is not None]
        if best:
            return f"mla_numba is {span(best)} times as fast as the fastest alternative"
        times = span([seconds * 1e3 for seconds in self.seconds.values()])
        return f"A call of mla_numba takes {times} ms"


def finding(results: Results) -> Finding | None:
    """Of the groups of the whole prolog; None where none was run, or not ours."""
    for state in _STATES:
        groups = [g for g in results.families.get((_PROLOG, state), []) if g.baseline is not None and g.t is not None]
        if results.unfinished:  # the peers of the last number of tokens may not have had their turn
            most = max((len(group.rows) for group in groups), default=0)
            groups = [group for group in groups if len(group.rows) == most]
        if groups:
            return _finding(state, sorted(groups, key=lambda group: group.t or 0))
    return None


def _finding(state: str, groups: list[Group]) -> Finding:
    seconds, shares = {}, {}
    ratios: dict[str, dict[int, float]] = {}
    for group in groups:
        ours, t = group.baseline, group.t
        assert ours is not None
        assert t is not None
        seconds[t], shares[t] = ours.median_s, ours.share
        for row in group.rows:
            if not row.is_ours:
                ratios.setdefault(row.name, {})[t] = row.median_s / ours.median_s
    peers = [Peer(full_name(name), of_name) for name, of_name in ratios.items()]
    peers.sort(key=lambda peer: sorted(peer.ratios.values())[len(peer.ratios) // 2])
    return Finding(state, seconds, peers, shares)


def where(results: Results) -> str:
    """Machine, threads and dimensions, in a phrase."""
    facts = results.facts
    threads = facts.get("threads", "").partition(" ")[0]
    full_size = MlaDims.deepseek_v32()
    sizes = ", ".join(f"{name} {getattr(full_size, name)}" for name in full_size.__dataclass_fields__)
    dims = facts.get("dimensions", "")
    shown = "DeepSeek-V3.2's dimensions" if dims == sizes else f"other dimensions than a model's ({dims})"
    machine = facts.get("machine", "an unknown machine").partition(":")[0]  # without its caches
    counted = f"{threads} thread{'' if threads == '1' else 's'}"
    return f"{machine}, {counted}, {shown}"


def span(values: list[float]) -> str:
    """The range of some numbers; one where they look alike."""
    least, most = plain(min(values)), plain(max(values))
    return least if least == most else f"{least} to {most}"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds with three digits, and never a power of ten."""
    return plain(seconds * 1e3)
