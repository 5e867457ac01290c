"""The prolog: plan once, run often."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Self, TypedDict, Unpack

from tiling import CpuTiling, Machine, MlaTileConfig, PassOptions, PrologPlan
from tiling.check import MAX_TOKENS

from .base import checks as check
from .base.checks import BF16, FP32, INT8, Array
from .base.indexer_dims import IndexerDims
from .base.memory import aligned_empty
from .base.modes import NUMERICS, CallPhase, Numerics
from .base.short_repr import dims_text, fields_text, indexer_dims_text, short_repr, size_text
from .cache import PagedCache
from .call.bind import BoundCall, CallInputs, IndexedOutput, PrologOutput, check_inputs, hold, writable_outputs
from .call.indexer_bind import (
    allocate_indexer_output,
    check_beside,
    check_indexer,
    hold_beside,
    writable_indexer_outputs,
)
from .call.planning import Plans, PlanSettings
from .call.run import Layers, run_tiles
from .call.trace import Trace
from .call.workspace import Memory
from .indexer_cache import IndexerCache
from .kernels import max_threads
from .kernels.launch import plain
from .kernels.sweeps.arguments import Tokens
from .weights.indexer import IndexerWeights
from .weights.packed import PackedWeights
from .weights.packed_indexer import PackedIndexer
from .weights.plain import MlaWeights

__all__ = ["BoundCall", "IndexedOutput", "MlaProlog", "PrologChoices", "PrologOutput", "PrologSettings"]


class PrologSettings(TypedDict, total=False):
    """The settings of `MlaProlog`, by name."""

    tile_config: MlaTileConfig | CpuTiling | Literal["auto"] | None
    options: PassOptions | None
    n_threads: int | None
    check_finite: bool
    numerics: Numerics


class PrologChoices(PrologSettings, total=False):
    """The settings of `MlaProlog` and its phase, by name."""

    phase: CallPhase


class MlaProlog:
    """The MLA prolog of one layer on this CPU.

    A call computes a token's bits from that token alone: batch, tiles, threads and instruction set never change them.
    Several threads may call one instance at once. Attributes cannot be assigned.

    Args:
        weights: `MlaWeights`, packed here, or `PackedWeights`.
        phase: "decode" or "prefill". Decides which scheduling settings of the reference operator go with a
            `MlaTileConfig`.
        tile_config: None lets the planner choose. An `MlaTileConfig` holds the reference operator's tile settings,
            which are reproduced as far as they mean something on a CPU. The fields of a `CpuTiling` are taken as given,
            and the planner chooses the others. "auto" takes what `mla-numba tune` found on this machine, or else the
            planner's choice with the rates that `tune` measured.
        options: Scheduling settings in place of those of the phase; None with a `CpuTiling` or "auto".
        n_threads: At most Numba's thread count. By default NUMBA_NUM_THREADS if it is set, else a thread for each core
            that this process may use, see `mla-numba info`.
        check_finite: Raise `ValueError` if a hidden state is NaN or Inf.
        numerics: How rows are quantised. "pypto", the reference operator's way, quantises the norm rounded to bf16 with
            the scale `1 / (127 / amax)`. "cann" quantises the norm in float32 with the scale `amax / 127`. Values that
            are not quantised are the same in both.
        indexer: Weights of the layer's lightning indexer, `IndexerWeights`, packed here, or `PackedIndexer`. Each call
            then takes an `indexer_cache`, computes the indexer's prolog, too, and returns an `IndexedOutput`. Only with
            weights of mode "b" or "ab", and with the numerics "pypto".

    Raises:
        TypeError: An argument is of another type.
        ValueError: Another name, more threads than Numba has, options where there can be none, packed weights that do
            not fit their dimensions and mode, or an indexer that does not fit the weights, their mode or the numerics.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> prolog = mla.MlaProlog(mla.MlaWeights.random(dims))
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, cache_index = random_inputs(dims, t=3, seed=0, capacity=cache.capacity)
        >>> out = prolog(x, cos, sin, cache_index, cache)
        >>> out.query_nope.shape, out.query_rope.shape, out.q_norm.dtype
        ((3, 4, 64), (3, 4, 32), dtype('int8'))
        >>> cache.gather(cache_index).kv.shape
        (3, 64)
    """

    def __init__(
        self,
        weights: MlaWeights | PackedWeights,
        phase: CallPhase = "decode",
        *,
        tile_config: MlaTileConfig | CpuTiling | Literal["auto"] | None = None,
        options: PassOptions | None = None,
        n_threads: int | None = None,
        check_finite: bool = False,
        numerics: Numerics = "pypto",
        indexer: IndexerWeights | PackedIndexer | None = None,
    ) -> None:
        if not isinstance(weights, (MlaWeights, PackedWeights)):
            raise TypeError(f"weights: expected MlaWeights or PackedWeights, got {type(weights).__name__}")
        self.numerics = check.check_choice("numerics", numerics, NUMERICS)
        settings = PlanSettings(phase, tile_config, options)
        self.phase, self.tile_config, self.options = settings.phase, settings.tile_config, settings.options
        self.n_threads = check.check_threads("n_threads", n_threads, max_threads())
        self.check_finite = check.check_flag("check_finite", check_finite)
        self.weights = weights.pack(self.n_threads) if isinstance(weights, MlaWeights) else weights
        self.weights.check()
        self.dims = self.weights.dims
        check_indexer(indexer, self.dims, self.weights.quant, self.numerics)
        self.indexer = indexer.pack(self.n_threads) if isinstance(indexer, IndexerWeights) else indexer
        self._plans = Plans(self.dims, self.weights.quant, settings, self._indexer_dims)
        self._memory: deque[Memory] = deque()

    def __setattr__(self, name: str, value: Any) -> None:
        # Kernels and plans are given what was checked when it was made.
        if name in self.__dict__:
            raise AttributeError(f"{name}: expected to stay as the prolog was made, got an assignment")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        names = ("phase", "tile_config", "options", "n_threads", "check_finite", "numerics")
        usual = {"tile_config": None, "options": None, "check_finite": False, "numerics": "pypto"}
        settings = {name: getattr(self, name) for name in names}
        shown = {name: value for name, value in settings.items() if name not in usual or value != usual[name]}
        quant, n_bytes = f"quant={self.weights.quant!r}", self.weights.nbytes
        indexer = ""
        if self.indexer is not None:
            indexer, n_bytes = f"indexer=({indexer_dims_text(self.indexer.dims)})", n_bytes + self.indexer.nbytes
        return short_repr(self, dims_text(self.dims), quant, fields_text(shown), indexer, size_text(n_bytes))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        phase: CallPhase = "decode",
        *,
        verify: bool = False,
        indexer: IndexerWeights | PackedIndexer | None = None,
        **settings: Unpack[PrologSettings],
    ) -> Self:
        """A prolog on packed weights that `PackedWeights.save` or `mla-numba pack` wrote. The file is mapped, not read.

        Args:
            path: The file.
            phase: As for the class.
            verify: Compare the checksums of the weights, which reads all of them.
            indexer: As for the class.
            **settings: Those of the class: `tile_config`, `options`, `n_threads`, `check_finite`, `numerics`.

        Returns:
            The prolog of that layer.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file does not fit this machine's kernels or is damaged, see `PackedWeights.load`; or a
                setting does not fit, see the class.

        Examples:
            >>> import mla_numba as mla
            >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
            >>> mla.MlaWeights.random(dims).pack().save("layer.mla")
            >>> mla.MlaProlog.load("layer.mla", "prefill", numerics="cann").phase
            'prefill'
        """
        return cls(PackedWeights.load(path, verify=verify), phase, indexer=indexer, **settings)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: the weights and settings, with as many of the threads as there are where it is read."""
        settings = ("tile_config", "options", "n_threads", "check_finite", "numerics", "indexer")
        return _unpickled, (type(self), self.weights, self.phase, {name: getattr(self, name) for name in settings})

    @cached_property
    def _layers(self) -> Layers:
        self.weights.check()  # once more: an array's shape may have been assigned meanwhile
        prolog = plain(self.weights.arguments_for(self.numerics))
        if self.indexer is None:
            return Layers(prolog, None)
        self.indexer.check("indexer")
        return Layers(prolog, plain(self.indexer.as_argument()))

    @property
    def _indexer_dims(self) -> IndexerDims | None:
        return None if self.indexer is None else self.indexer.dims

    @property
    def quantized(self) -> bool:
        """Whether w_uq_qr is int8, and with it q_norm and the cache."""
        return "b" in self.weights.quant

    def plan(self, t: int) -> PrologPlan:
        """How `t` tokens are computed; `print(prolog.plan(8))`, `print(prolog.plan(8).explain())`.

        Args:
            t: Tokens of a call, from 0 on.

        Returns:
            The plan of such a call; made once and kept.

        Raises:
            TypeError: `t` is no int.
            ValueError: `t` is below 0 or above 2^22.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32))
            >>> plan = mla.MlaProlog(weights, n_threads=1).plan(700)
            >>> plan.t, plan.phase, plan.n_workers
            (700, 'decode', 1)
            >>> sum(n_tokens for _, n_tokens in plan.tiles)
            700
        """
        return self._plans.plan(check.check_int("t", t, 0), self.n_threads)

    @property
    def machine(self) -> Machine:
        """The machine that the plans are made for: this one."""
        return self._plans.machine

    @property
    def isa(self) -> str:
        """The instruction set of its kernels, as `MLA_NUMBA_ISA` names it; one for the whole process."""
        return self.machine.isa

    def allocate_output(self, t: int) -> PrologOutput:
        """Uninitialised outputs, to be passed as `out`.

        Args:
            t: Tokens of the call.

        Returns:
            Arrays with the shapes and dtypes of `PrologOutput`, in memory that asks for huge pages; with an indexer,
            an `IndexedOutput`.

        Raises:
            TypeError: `t` is no int.
            ValueError: `t` is below 0 or above 2^22.

        Examples:
            >>> import mla_numba as mla
            >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), quant="none")
            >>> out = mla.MlaProlog(weights).allocate_output(8)
            >>> out.query_nope.shape, out.q_norm.dtype, out.q_norm_scale
            ((8, 4, 64), dtype(bfloat16), None)
        """
        d, t = self.dims, check.check_int("t", t, 0, MAX_TOKENS)
        out = PrologOutput(
            query_nope=aligned_empty((t, d.num_attention_heads, d.kv_lora_rank), BF16),
            query_rope=aligned_empty((t, d.num_attention_heads, d.qk_rope_head_dim), BF16),
            q_norm=aligned_empty((t, d.q_lora_rank), INT8 if self.quantized else BF16),
            q_norm_scale=aligned_empty((t, 1), FP32) if self.quantized else None,
        )
        return out if self.indexer is None else IndexedOutput(out, allocate_indexer_output(self.indexer.dims, t))

    def __call__(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
        *,
        indexer_cache: IndexerCache | None = None,
    ) -> PrologOutput:
        """Computes T tokens and writes their cache rows.

        Args:
            x: Hidden states (T, H) bf16.
            cos: Cosines of the tokens' positions (T, R) bf16, both halves alike; see `RopeTable`.
            sin: Sines of them (T, R) bf16.
            cache_index: Flat slots (T,) int64 or int32. -1 writes no row. Where several tokens name one slot, the last
                one wins. With a BSND or TND cache it is None, and token t writes row t.
            cache: The cache, whose rows are written in place: int8 in the modes "b" and "ab", else bf16.
            out: Outputs to write to (`allocate_output`); the call then allocates no arrays.
            indexer_cache: With an indexer, the cache of its keys, which are written in place to the same slots.

        Returns:
            Queries and normalised queries: `out`, or new arrays. With an indexer, an `IndexedOutput`.

        Raises:
            TypeError: An argument, named in the message, is of another type or dtype; outputs and cache are unchanged.
            ValueError: An argument, named in the message, has another shape, layout or value, or memory that overlaps
                with another's; outputs and cache are unchanged.
        """
        call = self.bind(x, cos, sin, cache_index, cache, out, indexer_cache=indexer_cache)
        return self._run(call, call.tokens)

    def profile(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
        *,
        products: bool = False,
        indexer_cache: IndexerCache | None = None,
    ) -> tuple[PrologOutput, Trace]:
        """A call, and when each thread began and ended each phase of it.

        Args:
            x: As for a call.
            cos: As for a call.
            sin: As for a call.
            cache_index: As for a call.
            cache: As for a call.
            out: As for a call.
            products: Note, too, when each task began and ended each of its products, which takes some microseconds.
            indexer_cache: As for a call.

        Returns:
            What a call returns, and its trace. `trace.to_chrome(path)` writes it for Perfetto.

        Raises:
            TypeError: As for a call.
            ValueError: As for a call.

        Examples:
            >>> import mla_numba as mla
            >>> from mla_numba.inputs import random_inputs
            >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
            >>> prolog = mla.MlaProlog(mla.MlaWeights.random(dims))
            >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
            >>> out, trace = prolog.profile(*random_inputs(dims, t=3, seed=0, capacity=32), cache)
            >>> list(trace.seconds)
            ['down', 'rows', 'heads']
        """
        call = self.bind(x, cos, sin, cache_index, cache, out, indexer_cache=indexer_cache)
        check.check_flag("products", products)
        trace = Trace()
        return self._run(call, call.tokens, trace, products=products), trace

    def bind(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
        also_read: Mapping[str, Array] = MappingProxyType({}),
        *,
        indexer_cache: IndexerCache | None = None,
    ) -> BoundCall:
        """Checks the arguments of a call and holds them for `run`; nothing is written yet.

        The arrays of the call are not copied: `run` reads the values that they hold then, those of cache_index too.

        Args:
            x: As for a call.
            cos: As for a call.
            sin: As for a call.
            cache_index: As for a call.
            cache: As for a call.
            out: As for a call.
            also_read: Arrays by name that must not share memory with an output or a cache.
            indexer_cache: As for a call.

        Returns:
            What `run` takes.

        Raises:
            TypeError: As for a call.
            ValueError: As for a call.

        Examples:
            >>> import mla_numba as mla
            >>> from mla_numba.inputs import random_inputs
            >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
            >>> layers = [mla.MlaProlog(mla.MlaWeights.random(dims, seed)) for seed in range(2)]
            >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
            >>> call = layers[0].bind(*random_inputs(dims, t=3, seed=0, capacity=32), cache)
            >>> [layer.run(call) is call.out for layer in layers]  # each with its own weights
            [True, True]
        """
        given = CallInputs(x, cos, sin, cache_index, cache, indexer_cache)
        dims, quant, indexer = self.dims, self.weights.quant, self._indexer_dims
        slots = check_inputs(given, dims, quant)
        check_beside(given, indexer)
        if self.check_finite:
            check.check_finite("x", x)
        t = x.shape[0]
        written = {}
        if out is None:
            out = self.allocate_output(t)
        else:
            written = writable_outputs(out, t, dims, quant)
            if indexer is not None:
                written |= writable_indexer_outputs("out.indexer", out.indexer, t, indexer)
        read = {"x": x, "cos": cos, "sin": sin, **also_read}
        if cache_index is not None:
            read["cache_index"] = cache_index
        if indexer_cache is not None:
            written |= {f"indexer_cache.{name}": array for name, array in indexer_cache.arrays().items()}
        check.check_disjoint(written | cache.arrays(), read)
        call = hold(given, slots, out, dims, quant)
        if indexer is None or indexer_cache is None:
            return call
        return hold_beside(call, indexer_cache, indexer)

    def run(self, call: BoundCall, *, most_threads: int | None = None) -> PrologOutput:
        """Computes a bound call. It may be run again, and computes what its arrays hold at that time.

        Any prolog of the same dimensions and mode may run it, such as another layer's, and computes with its own
        weights and numerics. `check_finite` checked the hidden states in `bind` only.

        Args:
            call: What `bind` returned.
            most_threads: Lowers the number of threads of this run.

        Returns:
            The outputs of the bound call.

        Raises:
            TypeError: `call` is not a bound call.
            ValueError: A prolog of other dimensions or another mode bound it, or a slot is outside the cache; nothing
                is written then.
        """
        check.expect_type("call", call, BoundCall)
        call.check_fits(self.dims, self.weights.quant, self._indexer_dims)
        if most_threads is not None:
            check.check_int("most_threads", most_threads, 1)
        return self._run(call, call.tokens_now(), most_threads=most_threads)

    def _run(
        self,
        call: BoundCall,
        tokens: Tokens,
        trace: Trace | None = None,
        *,
        products: bool = False,
        most_threads: int | None = None,
    ) -> PrologOutput:
        n_threads = self.n_threads if most_threads is None else min(most_threads, self.n_threads)
        plan = self._plans.plan(tokens.x.shape[0], n_threads)
        memory = Memory.taken_from(self._memory, plan)
        try:
            run_tiles(call, tokens, self._layers, plan, memory, trace, products)
        finally:
            self._memory.append(memory)
        return call.out


def _unpickled(cls: type[MlaProlog], weights: PackedWeights, phase: CallPhase, settings: dict[str, Any]) -> MlaProlog:
    settings["n_threads"] = min(settings["n_threads"], max_threads())
    return cls(weights, phase, **settings)


def __getattr__(name: str) -> Any:
    """The reference operator's entry points, which lay here in 0.1, and what `call.planning` has of it."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_HOMES = {
    "mla_numba.pypto.entry_points": ("mla_prolog_quant_compute", "mla_prolog_quant_d", "mla_prolog_quant_p"),
    "mla_numba.pypto.pre_compute": ("pre_compute_2d",),
    "mla_numba.call.planning": ("MICRO_TILES", "stored_choice", "this_machine"),
}
