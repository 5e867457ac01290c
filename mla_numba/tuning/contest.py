"""Plans of one prolog against each other: the same inputs, the same bits, times in pairs.

What the machine reaches drifts from second to second, so a candidate's time is worth something only beside the
baseline's of the same moment: both are timed in turns, in alternating order, and compared pair by pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tiling import CpuTiling, MlaTileConfig, PassOptions, PrologPlan, ceil_div

from ..base.checks import Array
from ..base.dims import MlaDims
from ..base.modes import CallPhase, QuantMode
from ..base.short_repr import dims_text, short_repr
from ..cache import PagedCache
from ..call.trace import Trace
from ..oracle.bits import (
    Mismatch,
    compare_bits,
    poison,
    reference_run,
)
from ..oracle.inputs import Inputs, random_inputs
from ..prolog import MlaProlog
from ..weights.packed import PackedWeights
from ..weights.plain import MlaWeights
from .interval import Interval, median_interval
from .turns import Call, rounds

__all__ = ["Arena", "Contender", "ExactnessError", "Pairs"]

Arrays = dict[str, Array]

_BLOCK_SIZE = 128
_CHECKED_TOKENS = 64


class ExactnessError(RuntimeError):
    """The baseline's bits are not the reference's."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of calls in pairs: round i timed one after the other."""

    ours_s: tuple[float, ...]
    baseline_s: tuple[float, ...]

    def __repr__(self) -> str:
        times = f"{self.median_s * 1e3:.3f} ms against {self.baseline_median_s * 1e3:.3f} ms"
        return short_repr(self, f"{len(self.ours_s)} pairs", times, f"ratio {self.ratio:.3f}", f"wins {self.wins:.0%}")

    @property
    def min_s(self) -> float:
        """Our fastest call."""
        return min(self.ours_s)

    @property
    def median_s(self) -> float:
        """Our call in the middle."""
        return statistics.median(self.ours_s)

    @property
    def baseline_median_s(self) -> float:
        """The baseline's call in the middle."""
        return statistics.median(self.baseline_s)

    @property
    def ratio(self) -> float:
        """Median of our time over the baseline's, pair by pair: below 1, ours is faster."""
        return statistics.median(self._ratios)

    @property
    def interval(self) -> Interval:
        """The ratio, and how far it is known."""
        return median_interval(self._ratios)

    @property
    def _ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours_s, self.baseline_s, strict=True)]

    @property
    def wins(self) -> float:
        """The part of the pairs in which ours was faster."""
        return sum(a < b for a, b in zip(self.ours_s, self.baseline_s, strict=True)) / len(self.ours_s)


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A prolog for each weight set, with one plan for `t` tokens."""

    t: int
    prologs: tuple[MlaProlog, ...]

    def __repr__(self) -> str:
        return short_repr(self, f"{self.t} tokens", f"{len(self.prologs)} weight sets", repr(self.prologs[0]))

    @property
    def plan(self) -> PrologPlan:
        """The plan for its tokens."""
        return self.prologs[0].plan(self.t)


class Arena:
    """Weights, inputs, cache and outputs that contenders share, and the baseline's bits, checked against the reference.

    `tokens`: the numbers of tokens to come; the inputs of fewer tokens begin those of more. `n_weight_sets` are
    taken in turns, so that weights come from memory as in a model of many layers.

    Raises `ExactnessError` if a bit of the baseline, the planner's own plan, differs from the NumPy reference. Of more
    than 64 tokens 64 are compared, spread evenly, since a token's bits do not depend on its neighbours.
    """

    def __init__(
        self,
        dims: MlaDims,
        quant: QuantMode,
        tokens: Sequence[int],
        *,
        phase: CallPhase = "decode",
        n_threads: int | None = None,
        seed: int = 0,
        n_weight_sets: int = 1,
    ) -> None:
        self.phase, self.n_threads = phase, n_threads
        longest = max(tokens)
        n_blocks = ceil_div(longest, _BLOCK_SIZE) + 1
        self._empty = PagedCache.allocate(dims, n_blocks, _BLOCK_SIZE, quantized="b" in quant)
        poison(*self._empty.arrays().values())
        self._cache = self._empty.copy()
        self._inputs = random_inputs(dims, longest, seed, self._cache.capacity)
        self._weights: list[PackedWeights] = []
        sample = np.unique(np.linspace(0, longest - 1, min(longest, _CHECKED_TOKENS)).astype(np.int64))
        wanted = []
        for i in range(n_weight_sets):
            weights = MlaWeights.random(dims, seed + i, quant)
            inputs = Inputs(*(array[sample] for array in self._inputs))
            wanted.append(_rows_of_tokens(reference_run(weights, *inputs, self._empty)._asdict(), inputs.cache_index))
            self._weights.append(weights.pack(n_threads or 1))
        self._baselines = {t: self.contender(t) for t in dict.fromkeys(tokens)}
        self._outputs = {t: contender.prologs[0].allocate_output(t) for t, contender in self._baselines.items()}
        self._bits: dict[int, list[Arrays]] = {}
        for t, baseline in self._baselines.items():
            self._bits[t] = [self._computed(baseline, i) for i in range(n_weight_sets)]
            for bits, want in zip(self._bits[t], wanted, strict=True):
                tokens_t = sample[sample < t]
                got = _rows_of_tokens(bits, self._inputs.cache_index[tokens_t], tokens_t)
                found = [compare_bits(name, got[name], want[name][: len(tokens_t)]) for name in want]
                if any(found):
                    raise ExactnessError(f"{t} tokens: " + "; ".join(str(one) for one in found if one))

    def __repr__(self) -> str:
        tokens = ", ".join(map(str, self._baselines))
        sets = f"{len(self._weights)} weight set{'' if len(self._weights) == 1 else 's'}"
        return short_repr(
            self,
            dims_text(self._weights[0].dims),
            f"quant={self._weights[0].quant!r}",
            f"phase={self.phase!r}",
            f"{tokens} tokens",
            sets,
        )

    def baseline(self, t: int) -> Contender:
        """The planner's own plan."""
        return self._baselines[t]

    def contender(
        self,
        t: int,
        config: MlaTileConfig | CpuTiling | None = None,
        options: PassOptions | None = None,
    ) -> Contender:
        """Prologs with other settings on the same packed weights."""
        prologs = (
            MlaProlog(weights, self.phase, tile_config=config, options=options, n_threads=self.n_threads)
            for weights in self._weights
        )
        return Contender(t, tuple(prologs))

    def mismatches(self, contender: Contender) -> list[Mismatch]:
        """What differs between a contender's outputs and whole caches and the baseline's: nothing, if all is well."""
        found = []
        for i, want in enumerate(self._bits[contender.t]):
            got = self._computed(contender, i)
            found += [compare_bits(name, got[name], want[name]) for name in want]
        return [mismatch for mismatch in found if mismatch is not None]

    def pairs(self, contender: Contender) -> Iterator[Pairs]:
        """Times of one more pair of calls at each step, all so far in one; without end. Best within `quiet`.

        Each prolog is called once before: a first call plans and takes memory.
        """
        arguments = self._arguments(contender.t)
        rivals: list[list[Call]] = [
            [partial(prolog, *arguments) for prolog in rival.prologs]
            for rival in (self._baselines[contender.t], contender)
        ]
        for call in (*rivals[0], *rivals[1]):
            call()
        ours: list[float] = []
        baseline: list[float] = []
        for of_baseline, of_contender in rounds(rivals):
            baseline.append(of_baseline)
            ours.append(of_contender)
            yield Pairs(tuple(ours), tuple(baseline))

    def profile(self, contender: Contender, i: int) -> Trace:
        """When the threads did what in one call on weight set `i` modulo their number."""
        _, trace = contender.prologs[i % len(self._weights)].profile(*self._arguments(contender.t))
        return trace

    def _arguments(self, t: int) -> tuple[Any, ...]:
        return (*(array[:t] for array in self._inputs), self._cache, self._outputs[t])

    def _computed(self, contender: Contender, i: int) -> Arrays:
        """A contender's outputs on weight set `i`, and the caches, whose other rows hold what no call writes."""
        out, cache = contender.prologs[i].allocate_output(contender.t), self._empty.copy()
        poison(*out)
        inputs = Inputs(*(array[: contender.t] for array in self._inputs))
        contender.prologs[i](*inputs, cache, out)
        return {name: array for name, array in (out._asdict() | cache.arrays()).items() if array is not None}


def _rows_of_tokens(arrays: Mapping[str, Array | None], slots: Array, tokens: Array | None = None) -> Arrays:
    """The rows of some tokens (all, if not said): of outputs by token, of caches by slot."""
    picked = {}
    for name, array in arrays.items():
        if array is None:
            continue
        if name.endswith("_cache"):
            picked[name] = array.reshape(-1, array.shape[3])[slots]
        else:
            picked[name] = array if tokens is None else array[tokens]
    return picked
