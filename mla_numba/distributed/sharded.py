"""The prolog of one layer, shared by heads among the ranks of a communicator."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NoReturn, Unpack

import numpy as np

from tiling import Costs

from ..base.checks import Array, check_choice, check_flag, check_int, expect_type
from ..base.dims import MlaDims
from ..base.memory import UINT16, aligned_empty
from ..base.modes import DOWN_WAYS, CallPhase, DownWay
from ..cache import PagedCache
from ..call.bind import BoundCall, PrologOutput
from ..call.planning import stored_choice
from ..prolog import PrologSettings
from ..weights.packed import PackedWeights
from ..weights.plain import MlaWeights
from .agreement import agree, on_all_ranks
from .assemble import assemble
from .communicator import Communicator, as_communicator
from .down_share import LocalProlog
from .sharded_plan import ShardedPlan, ShardedTimes
from .ways import Link, down_work, measure_link, way_of

__all__ = ["ShardedProlog"]


class ShardedProlog:
    """The MLA prolog of one layer whose heads are shared among the ranks of a communicator.

    Each rank has the queries of its own heads, and all of q_norm. Each writes all cache rows, to a cache of its own.
    All equal the bits of `MlaProlog`, whatever the number of ranks and the way of the down-projection.

    Making one and calling it are collective: every rank does both, in the same order, with the same tokens. An error in
    the making is raised on every rank: where it arose as it is, elsewhere as `OtherRankError`. An argument that is
    wrong on one rank only raises there, while the others wait for it: let the launcher end the job then, as
    `python -m mpi4py` and torchrun do. Let one thread of a rank make all calls, for their order is what holds the ranks
    together. It cannot be copied or pickled, which raises `TypeError`; a `TorchProlog` and its copies share it.

    Args:
        weights: `MlaWeights` or `PackedWeights`, all heads on every rank or on each its own shard
            (`weights.shard(rank, size)`).
        comm: A communicator of mpi4py, a process group of torch.distributed, or a `Communicator`.
        phase: As for `MlaProlog`.
        down: "replicated", each rank computes the down-projection whole; "split", each computes its share of the
            columns and gathers the others; or "auto", whichever takes less time by the model of the planner, the
            measured link and the rates of the ranks, the same on all of them.
        **settings: Those of `MlaProlog`; `n_threads` are this rank's.

    Raises:
        TypeError: `comm` is none of these; or as for `MlaProlog`.
        ValueError: There are more ranks than heads, or ranks have other weights or settings than another one; or as for
            `MlaProlog`.
        OtherRankError: Another rank failed.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.distributed import ShardedProlog
        >>> from mla_numba.inputs import random_inputs
        >>> class Alone:  # instead of MPI.COMM_WORLD or a process group
        ...     rank, size = 0, 1
        ...     def all_gather(self, part, n_bytes):
        ...         return part
        >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32))
        >>> sharded = ShardedProlog(weights, Alone(), n_threads=1)
        >>> cache = mla.PagedCache.allocate(weights.dims, n_blocks=2, block_size=16)
        >>> out, times = sharded.profile(*random_inputs(weights.dims, t=3, seed=0, capacity=32), cache)
        >>> sharded.heads, out.query_nope.shape, sharded.plan(3).down, times.exchanged_bytes
        (range(0, 4), (3, 4, 64), 'replicated', 0)
    """

    def __init__(
        self,
        weights: MlaWeights | PackedWeights,
        comm: Any,
        phase: CallPhase = "decode",
        *,
        down: DownWay = "auto",
        **settings: Unpack[PrologSettings],
    ) -> None:
        self._comm: Communicator = as_communicator(comm)
        self.prolog = on_all_ranks(self._comm, partial(self._make, weights, phase, down, settings))
        self._shard = self.prolog.head_shard
        machine, quant, n_threads = self.prolog.machine, self.prolog.weights.quant, self.prolog.n_threads
        _, costs, _ = stored_choice(machine, self.prolog.dims, quant, n_threads, 0)
        self._agreed = agree(self._comm, self.prolog, down, costs or Costs.of_isa(machine.isa))
        self._link = measure_link(self._comm)
        self._way = down
        if down == "split" and not self._agreed.same_panels:
            raise ValueError(
                "down: expected 'replicated' or 'auto' where ranks have other instruction sets, got 'split'"
            )

    def _make(
        self, weights: MlaWeights | PackedWeights, phase: CallPhase, down: DownWay, settings: PrologSettings
    ) -> LocalProlog:
        check_choice("down", down, DOWN_WAYS)
        if "indexer" in settings:
            raise TypeError(
                "indexer: expected none, since the ranks share the heads of the prolog alone: an IndexerProlog beside "
                "it, which reads q_norm, computes the indexer whole on each rank"
            )
        if not isinstance(weights, (MlaWeights, PackedWeights)):
            raise TypeError(f"weights: expected MlaWeights or PackedWeights, got {type(weights).__name__}")
        if weights.head_shard is None:
            weights = weights.shard(self._comm.rank, self._comm.size)
        return LocalProlog(weights, phase, **settings)

    @property
    def rank(self) -> int:
        """This rank's number."""
        return self._comm.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._comm.size

    @property
    def heads(self) -> range:
        """This rank's heads."""
        return self._shard.heads

    @property
    def dims(self) -> MlaDims:
        """The dimensions of this rank's share: those of the layer but for the heads."""
        return self.prolog.dims

    @property
    def weights(self) -> PackedWeights:
        """This rank's weights."""
        return self.prolog.weights

    @property
    def phase(self) -> CallPhase:
        """ "decode" or "prefill"."""
        return self.prolog.phase

    @property
    def n_threads(self) -> int:
        """This rank's threads."""
        return self.prolog.n_threads

    @property
    def quantized(self) -> bool:
        """Whether w_uq_qr is int8, and with it q_norm and the cache."""
        return self.prolog.quantized

    @property
    def link(self) -> Link:
        """What the slowest rank's all-gather cost when the prolog was made."""
        return self._link

    def plan(self, t: int) -> ShardedPlan:
        """How tokens are computed; not collective.

        Args:
            t: Tokens of a call.

        Returns:
            This rank's plan.

        Raises:
            TypeError: As `MlaProlog.plan`.
            ValueError: As `MlaProlog.plan`.
        """
        local = self.prolog.plan(check_int("t", t, 0))
        way, reason = self._choose(t)
        sent = self.prolog.share.n_bytes(t)
        return ShardedPlan(local, way, reason, sum(sent) - sent[self.rank] if way == "split" else 0, self.size)

    def _choose(self, t: int) -> tuple[DownWay, str]:
        """The way and its reason, from facts that are the same on every rank; a plan is a rank's own."""
        if self._way != "auto":
            return self._way, "as was asked for"
        if not self._agreed.same_panels:
            return "replicated", "ranks have other instruction sets, and so other panels"
        work = down_work(self.dims, self.weights.quant, self.weights.down.nbytes, t)
        return way_of(work, self.prolog.share.n_bytes(t), self._agreed.rates, self._link)

    def allocate_output(self, t: int) -> PrologOutput:
        """Uninitialised outputs of this rank's heads, to be passed as `out`.

        Args:
            t: Tokens of the call.

        Returns:
            Arrays with the shapes and dtypes of `PrologOutput`.

        Raises:
            TypeError: As `MlaProlog.allocate_output`.
            ValueError: As `MlaProlog.allocate_output`.
        """
        return self.prolog.allocate_output(t)

    def __call__(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
        *,
        gather: bool = False,
    ) -> PrologOutput:
        """Computes T tokens, the same on every rank, and writes their rows of this rank's cache.

        Args:
            x: As for `MlaProlog`, and so the others.
            cos: Cosines.
            sin: Sines.
            cache_index: Slots.
            cache: This rank's cache.
            out: Where to write this rank's outputs.
            gather: Whether the queries of all heads are wanted, as new arrays.

        Returns:
            The outputs: query_nope and query_rope of this rank's heads, or of all with `gather`.

        Raises:
            TypeError: As `MlaProlog` raises it.
            ValueError: Likewise.
        """
        return self.profile(x, cos, sin, cache_index, cache, out, gather=gather)[0]

    def profile(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
        *,
        gather: bool = False,
    ) -> tuple[PrologOutput, ShardedTimes]:
        """A call, and its times on this rank.

        Args:
            x: As for a call.
            cos: As for a call.
            sin: As for a call.
            cache_index: As for a call.
            cache: As for a call.
            out: As for a call.
            gather: As for a call.

        Returns:
            What a call returns, and what it took.

        Raises:
            TypeError: As for a call.
            ValueError: As for a call.
        """
        check_flag("gather", gather)
        exchange = _Exchange(self._comm)
        begin = time.perf_counter()
        result = self._run(self.bind(x, cos, sin, cache_index, cache, out), exchange, None)
        if gather:
            result = self._gathered(result, exchange)
        return result, ShardedTimes(time.perf_counter() - begin, exchange.seconds, exchange.n_bytes)

    def bind(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
    ) -> BoundCall:
        """Checks the arguments of a call and holds them for `run`, as `MlaProlog.bind` does; not collective.

        Args:
            x: As for a call.
            cos: As for a call.
            sin: As for a call.
            cache_index: As for a call.
            cache: As for a call.
            out: As for a call.

        Returns:
            What `run` takes.

        Raises:
            TypeError: As for a call.
            ValueError: As for a call.
        """
        return self.prolog.bind(x, cos, sin, cache_index, cache, out)

    def run(self, call: BoundCall, *, most_threads: int | None = None) -> PrologOutput:
        """Computes a bound call, as `MlaProlog.run` does, with every rank.

        Args:
            call: What `bind` returned.
            most_threads: Lowers the number of threads of this run.

        Returns:
            The outputs of the bound call.

        Raises:
            TypeError: As `MlaProlog.run`.
            ValueError: As `MlaProlog.run`.
        """
        if most_threads is not None:
            check_int("most_threads", most_threads, 1)
        expect_type("call", call, BoundCall)
        return self._run(call, _Exchange(self._comm), most_threads)

    def _run(self, call: BoundCall, exchange: _Exchange, most_threads: int | None) -> PrologOutput:
        t = call.tokens.x.shape[0]
        if t == 0 or self._choose(t)[0] == "replicated":
            return self.prolog.run(call, most_threads=most_threads)
        send = partial(exchange, n_bytes=self.prolog.share.n_bytes(t))
        return self.prolog.run_split(call, send, most_threads)

    def _gathered(self, own: PrologOutput, exchange: _Exchange) -> PrologOutput:
        """The output with the queries of all heads."""
        t = len(own.query_nope)
        heads = [self._shard.of_rank(rank).heads for rank in range(self.size)]
        every = []
        for queries in (own.query_nope, own.query_rope):
            width = queries.shape[2]
            parts = exchange(queries.reshape(-1).view(np.uint8), n_bytes=[2 * t * len(each) * width for each in heads])
            whole = aligned_empty((t, self._shard.num_attention_heads * width), UINT16)
            assemble(parts, [whole], ([range(each.start * width, each.stop * width)] for each in heads))
            every.append(whole.view(queries.dtype).reshape(t, self._shard.num_attention_heads, width))
        return own._replace(query_nope=every[0], query_rope=every[1])

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "ShardedProlog: expected to stay in its process, as its communicator does, got a copy; its weights can be "
            "pickled"
        )

    def __repr__(self) -> str:
        """One line."""
        return f"ShardedProlog({self._shard}, {self.dims}, quant={self.prolog.weights.quant!r}, down={self._way!r})"


class _Exchange:
    """All-gathers of one call, and what they took."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.seconds = 0.0
        self.n_bytes = 0

    def __call__(self, part: Array, n_bytes: list[int]) -> Array:
        begin = time.perf_counter()
        parts = self._comm.all_gather(part, n_bytes)
        self.seconds += time.perf_counter() - begin
        self.n_bytes += sum(n_bytes) - n_bytes[self._comm.rank]
        return parts
