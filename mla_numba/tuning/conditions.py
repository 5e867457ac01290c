"""What else a machine did while something was measured, and whether the figures can be trusted then.

The kernel counts the time that each CPU was busy. Without this process's own part that is what others took: other
programs, and on a virtual machine other tenants, as far as the host says so. Where nothing is counted, as on systems
other than Linux, only the spread of repeated probes speaks of others.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Conditions", "Load", "Meter", "n_cpus", "watch_idle"]

_STAT = Path("/proc/stat")
_SHORTEST_S = 0.1  # the kernel counts in hundredths of a second
_WINDOW_S = 0.5
_PAUSE_S = 0.3
_TOLERATED = 0.15  # of a thread's core, for two threads at most
_SPREAD = 0.35  # how far the slowest quarter of the probes may be behind the fastest; others cause more


def n_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Seconds that the CPUs of this process were busy since the system began, None where nothing counts them."""
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
        mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        ticks_a_second = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    ticks = 0
    for line in lines:
        name, *fields = line.split()
        if name in mine and len(fields) >= 7:
            user, nice, system, _idle, _wait, irq, softirq, *rest = map(int, fields)
            stolen = rest[0] if rest else 0  # what the hypervisor gave to other tenants
            ticks += user + nice + system + irq + softirq + stolen
    return ticks / ticks_a_second


class Load(NamedTuple):
    """How many cores others took over some seconds; None where that is not known."""

    seconds: float
    cores: float | None

    def disturbs(self, n_threads: int) -> bool:
        """Whether `n_threads` threads of ours did not have a core each."""
        spare = n_cpus() - n_threads + _TOLERATED * min(n_threads, 2)
        return self.cores is not None and self.cores > spare


class _Moment(NamedTuple):
    wall: float
    own: float
    busy: float | None

    @classmethod
    def now(cls) -> _Moment:
        return cls(time.perf_counter(), time.process_time(), busy_seconds())


class Meter:
    """How many cores others take, asked again and again."""

    def __init__(self) -> None:
        self._first = _Moment.now()
        self._seen = deque([self._first])

    def since_start(self) -> Load:
        """Since the meter was made."""
        return _between(self._first, _Moment.now())

    def lately(self) -> Load:
        """Since the last question that is at least half a second ago, or the first one."""
        now = _Moment.now()
        while len(self._seen) > 1 and now.wall - self._seen[1].wall >= _WINDOW_S:
            self._seen.popleft()
        load = _between(self._seen[0], now)
        self._seen.append(now)
        return load


def _between(first: _Moment, last: _Moment) -> Load:
    seconds = last.wall - first.wall
    if first.busy is None or last.busy is None or seconds < _SHORTEST_S:
        return Load(seconds, None)
    return Load(seconds, max(0.0, (last.busy - first.busy - (last.own - first.own)) / seconds))


def watch_idle(seconds: float = _PAUSE_S) -> Load:
    """What others take while this process sleeps."""
    meter = Meter()
    time.sleep(seconds)
    return meter.since_start()


@dataclass(frozen=True)
class Conditions:
    """What the machine was like around a measurement; `do_bench` has an example.

    | field                       | what it is                                                                    |
    |-----------------------------|-------------------------------------------------------------------------------|
    | `n_threads`, `n_cpus`       | threads that were measured; CPUs that this process may run on                 |
    | `before`, `during`, `after` | how many cores others took; None where that is not known                      |
    | `spread`                    | by how much the slowest quarter of repeated probes was behind the fastest     |
    | `slower`                    | rates at which all threads together were slower than one, a sentence for each |
    """

    n_threads: int
    n_cpus: int
    before: float | None = None
    during: float | None = None
    after: float | None = None
    spread: float | None = None
    slower: tuple[str, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """Why the figures cannot be trusted; empty where they can."""
        found = []
        for when, cores in (("before", self.before), ("during", self.during), ("after", self.after)):
            if Load(0.0, cores).disturbs(self.n_threads):
                found.append(f"others took {cores:.2f} of {self.n_cpus} cores {when} the measurement")
        if self.spread is not None and self.spread > _SPREAD:
            found.append(
                f"the slowest quarter of repeated probes took {1 + self.spread:.2f} times as long as the fastest"
            )
        return [*found, *self.slower]

    @property
    def is_busy(self) -> bool:
        """Whether there is a reason not to trust the figures."""
        return bool(self.reasons)

    def __str__(self) -> str:
        """One line."""
        if self.is_busy:
            first, *others = self.reasons
            more = f" (and {len(others)} more sign{'s' if len(others) > 1 else ''})" if others else ""
            return f"busy machine, do not trust these figures: {first}{more}"
        known = [cores for cores in (self.before, self.during, self.after) if cores is not None]
        took = f"others took at most {max(known):.2f} of {self.n_cpus} cores" if known else "the load is not known here"
        return f"quiet machine: {took}"

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self) | {"busy": self.is_busy, "reasons": self.reasons}
