"""The prolog: plan once, run often."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from tiling import (
    Costs,
    CpuTiling,
    Machine,
    MicroTile,
    MlaTileConfig,
    PassOptions,
    PrologPlan,
    pass_options,
    plan_prolog,
    store,
)

from . import _checks as check
from ._checks import BF16, FP32, INT8, Array
from ._version import __version__
from .cache import PagedCache
from .dims import MlaDims
from .kernels import ISA, max_threads, tile
from .memory import aligned_empty, as_bits, unlocked
from .packed import PackedWeights
from .reference import NUMERICS
from .trace import Trace
from .weights import MlaWeights
from .workspace import Memory

__all__ = ["MICRO_TILES", "BoundCall", "MlaProlog", "PrologOutput", "stored_choice", "this_machine"]

MICRO_TILES = {
    "bf16": MicroTile(mr=ISA.mr, nr=ISA.nr, kr=ISA.kr_bf16, a_bytes=ISA.a_bf16_bytes),
    "int8": MicroTile(mr=ISA.mr, nr=ISA.nr, kr=ISA.kr_int8, a_bytes=ISA.a_int8_bytes),
}
_PLANS_KEPT = 64
_NO_SCALES = np.zeros(0, np.float32)
_NO_LAYOUT = np.zeros(5, np.int64)


def this_machine() -> Machine:
    """This machine, with the instruction set that the kernels are built for."""
    return replace(Machine.detect(), isa=ISA.name)


def stored_choice(
    machine: Machine, dims: MlaDims, quant: str, n_threads: int, t: int
) -> tuple[CpuTiling | None, Costs | None, str]:
    """What "auto" plans `t` tokens with: the tuned tiling, or None for the planner to choose; the model's constants
    with the rates measured on this machine, or None where they were not; and what to say of it.
    """
    rates = store.load_rates(machine, __version__, n_threads)
    costs = None if rates is None else Costs.of_isa(machine.isa).with_rates(rates, n_threads)
    found = store.load_tuned(machine, __version__, dims, quant, n_threads, t) if t else None
    if found is None:
        return None, costs, "nothing is stored for so many tokens, so the planner chose (mla-numba tune searches)"
    return found.tiling if found.tiling.given() else None, costs, str(found)


class PrologOutput(NamedTuple):
    """What attention and the indexer take from a call.

    | field        | shape     | dtype                                       |
    |--------------|-----------|---------------------------------------------|
    | query_nope   | (T, N, C) | bf16                                        |
    | query_rope   | (T, N, R) | bf16                                        |
    | q_norm       | (T, Rq)   | int8, bf16 when w_uq_qr is not quantised    |
    | q_norm_scale | (T, 1)    | float32, None when w_uq_qr is not quantised |
    """

    query_nope: Array
    query_rope: Array
    q_norm: Array
    q_norm_scale: Array | None


class BoundCall(NamedTuple):
    """A checked call: its outputs, all its arrays as the kernels take them, and the slots of its cache."""

    out: PrologOutput
    tokens: tile.Tokens
    caches: tile.Caches
    capacity: int


class MlaProlog:
    """The MLA prolog of one layer on this CPU.

    - `weights`: `MlaWeights`, packed here, or `PackedWeights`.
    - `phase`: "decode" or "prefill". Decides which scheduling settings of the reference operator go with a
      `MlaTileConfig`.
    - `tile_config`: None lets the planner choose. An `MlaTileConfig` holds the reference operator's tile settings,
      which are reproduced as far as they mean something on a CPU. The fields of a `CpuTiling` are taken as given, and
      the planner chooses the others. "auto" takes what `mla-numba tune` found on this machine, or else the planner's
      choice with the rates that `tune` measured.
    - `options`: scheduling settings in place of those of the phase; None with a `CpuTiling` or "auto".
    - `n_threads`: at most Numba's thread count, which is the default.
    - `check_finite`: raise `ValueError` if a hidden state is NaN or Inf.
    - `numerics`: how rows are quantised. "pypto", the reference operator's way, quantises the norm rounded to bf16 with
      the scale `1 / (127 / amax)`. "cann" quantises the norm in float32 with the scale `amax / 127`. Values that are
      not quantised are the same in both.

    A call computes a token's bits from that token alone: batch, tiles, threads and instruction set never change them.
    Several threads may call one instance at once.

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
        phase: str = "decode",
        *,
        tile_config: MlaTileConfig | CpuTiling | str | None = None,
        options: PassOptions | None = None,
        n_threads: int | None = None,
        check_finite: bool = False,
        numerics: str = "pypto",
    ) -> None:
        if not isinstance(weights, (MlaWeights, PackedWeights)):
            raise TypeError(f"weights: expected MlaWeights or PackedWeights, got {type(weights).__name__}")
        self.numerics = check.check_choice("numerics", numerics, NUMERICS)
        self.phase = check.check_choice("phase", phase, ("decode", "prefill"))
        if isinstance(tile_config, str):
            check.check_choice("tile_config", tile_config, ("auto",))
        elif tile_config is not None and not isinstance(tile_config, (MlaTileConfig, CpuTiling)):
            raise TypeError(
                f"tile_config: expected MlaTileConfig, CpuTiling, 'auto' or None, got {type(tile_config).__name__}"
            )
        if options is not None and not isinstance(options, PassOptions):
            raise TypeError(f"options: expected PassOptions or None, got {type(options).__name__}")
        if options is not None and isinstance(tile_config, (CpuTiling, str)):
            raise ValueError("options: expected None with a CpuTiling or 'auto', got PassOptions")
        self.n_threads = check.check_threads("n_threads", n_threads, max_threads())
        self.check_finite = check.check_flag("check_finite", check_finite)
        self.tile_config = tile_config.replace() if isinstance(tile_config, MlaTileConfig) else tile_config
        self.options = options
        self.weights = weights.pack(self.n_threads) if isinstance(weights, MlaWeights) else weights
        self.dims = self.weights.dims
        self.machine = this_machine()
        self._memory: deque[Memory] = deque()
        self._plans: dict[tuple[int, int], PrologPlan] = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        phase: str = "decode",
        *,
        tile_config: MlaTileConfig | None = None,
        options: PassOptions | None = None,
        n_threads: int | None = None,
        check_finite: bool = False,
        numerics: str = "pypto",
        verify: bool = False,
    ) -> Self:
        """A prolog on packed weights that `PackedWeights.save` or `mla-numba pack` wrote. The file is mapped, not read.

        `verify` compares the checksums of the weights. The other arguments are those of the class. Raises what
        `PackedWeights.load` raises.
        """
        return cls(
            PackedWeights.load(path, verify=verify), phase, tile_config=tile_config, options=options,
            n_threads=n_threads, check_finite=check_finite, numerics=numerics,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: the weights and settings, with as many of the threads as there are where it is read."""
        settings = ("tile_config", "options", "n_threads", "check_finite", "numerics")
        return _unpickled, (type(self), self.weights, self.phase, {name: getattr(self, name) for name in settings})

    @cached_property
    def _arguments(self) -> tuple[tile.Product, tile.Product, tile.Product, tile.Vectors]:
        return self.weights.arguments_for(self.numerics)

    @property
    def quantized(self) -> bool:
        """Whether w_uq_qr is int8, and with it q_norm and the cache."""
        return "b" in self.weights.quant

    def plan(self, t: int) -> PrologPlan:
        """How `t` tokens are computed; `print(prolog.plan(8))`, `print(prolog.plan(8).explain())`."""
        return self._planned(check.check_int("t", t, 0), self.n_threads)

    def _planned(self, t: int, n_threads: int) -> PrologPlan:
        # No lru_cache of a bound method, a cycle that would keep the weights until the garbage collector finds it.
        plan = self._plans.get((t, n_threads))
        if plan is None:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            plan = self._plans[t, n_threads] = self._make_plan(t, n_threads)
        return plan

    def _make_plan(self, t: int, n_threads: int) -> PrologPlan:
        config, options = self.tile_config, self.options
        if options is None and isinstance(config, MlaTileConfig):
            options = pass_options(self.phase, t)
        costs, note = None, ""
        if isinstance(config, str):
            config, costs, note = stored_choice(self.machine, self.dims, self.weights.quant, n_threads, t)
        return plan_prolog(
            self.dims, t, config, self.machine, micro=MICRO_TILES, phase=self.phase, quant=self.weights.quant,
            n_threads=n_threads, options=options, costs=costs, note=note,
        )  # fmt: skip

    def allocate_output(self, t: int) -> PrologOutput:
        """Uninitialised outputs for `t` tokens, to be passed as `out`."""
        d = self.dims
        return PrologOutput(
            query_nope=aligned_empty((t, d.num_attention_heads, d.kv_lora_rank), BF16),
            query_rope=aligned_empty((t, d.num_attention_heads, d.qk_rope_head_dim), BF16),
            q_norm=aligned_empty((t, d.q_lora_rank), INT8 if self.quantized else BF16),
            q_norm_scale=aligned_empty((t, 1), FP32) if self.quantized else None,
        )

    def __call__(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
    ) -> PrologOutput:
        """Computes T tokens and writes their cache rows.

        - x (T, H), cos and sin (T, R): bf16.
        - cache_index (T,): int64 or int32 flat slots. -1 writes no row. Where several tokens name one slot, the last
          one wins. With a BSND or TND cache it is None, and token t writes row t.
        - `out`: outputs to write to (`allocate_output`); the call then allocates no arrays.

        Raises `TypeError` or `ValueError` naming the argument, what was expected and what it got. Outputs and cache are
        then unchanged.
        """
        return self._run(self.bind(x, cos, sin, cache_index, cache, out))

    def profile(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
    ) -> tuple[PrologOutput, Trace]:
        """A call, and when each thread began and ended each phase of it."""
        call = self.bind(x, cos, sin, cache_index, cache, out)
        trace = Trace()
        return self._run(call, trace), trace

    def bind(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array | None,
        cache: PagedCache,
        out: PrologOutput | None = None,
        also_read: Mapping[str, Array] = MappingProxyType({}),
    ) -> BoundCall:
        """Checks the arguments of a call and holds them for `run`; nothing is written yet.

        An int32 cache_index is copied: `run` sees later values of an int64 one only.
        `also_read`: arrays by name that must not share memory with an output or a cache.
        """
        slots = self._check_inputs(x, cos, sin, cache_index, cache)
        t = x.shape[0]
        written = {}
        if out is None:
            out = self.allocate_output(t)
        else:
            written = self._check_output(out, t)
        read = {"x": x, "cos": cos, "sin": sin, **also_read}
        if cache_index is not None:
            read["cache_index"] = cache_index
        check.check_disjoint(written | cache.arrays(), read)
        views = cache.views
        kv, kr = views["kv_cache"], views["kr_cache"]
        k_scale = views["k_scale_cache"] if self.quantized else None
        return BoundCall(
            out,
            tile.Tokens(
                x=as_bits(x),
                cos=as_bits(cos),
                sin=as_bits(sin),
                cache_index=unlocked(slots),
                query_nope=out.query_nope.view(np.uint16),
                query_rope=out.query_rope.view(np.uint16),
                q_norm=out.q_norm if self.quantized else out.q_norm.view(np.uint16),
                q_norm_scale=_NO_SCALES if out.q_norm_scale is None else out.q_norm_scale.reshape(-1),
            ),
            tile.Caches(
                kv.flat,
                kv.layout,
                kr.flat,
                kr.layout,
                *((k_scale.flat, k_scale.layout) if k_scale else (_NO_SCALES, _NO_LAYOUT)),
            ),
            cache.capacity,
        )

    def run(self, call: BoundCall, *, most_threads: int | None = None) -> PrologOutput:
        """Computes a bound call. It may be run again, and computes what its arrays hold at that time.

        `most_threads` lowers the number of threads of this run. Raises `ValueError` for a slot outside the cache, before
        anything is written. `check_finite` checked the hidden states in `bind` only.
        """
        check.check_slot_range(call.tokens.cache_index, call.capacity)
        return self._run(call, most_threads=most_threads)

    def _run(self, call: BoundCall, trace: Trace | None = None, most_threads: int | None = None) -> PrologOutput:
        n_threads = self.n_threads if most_threads is None else min(most_threads, self.n_threads)
        plan = self._planned(call.tokens.x.shape[0], n_threads)
        memory = self._take_memory(plan)
        try:
            for offset, factor in plan.tiles:
                blocks, buffers = memory.prepare(plan.tile_plan(factor))
                begin = time.perf_counter_ns()
                tile.prolog_tile(
                    blocks.n_workers, call.tokens, call.caches, *self._arguments, buffers, blocks, offset,
                    factor, tile.HEADS, trace is not None,
                )  # fmt: skip
                if trace is not None:
                    trace.add(begin, time.perf_counter_ns(), offset, factor, buffers.spans)
        finally:
            self._memory.append(memory)
        return call.out

    def _check_inputs(self, x: Array, cos: Array, sin: Array, cache_index: Array | None, cache: PagedCache) -> Array:
        d = self.dims
        check.check_array("x", x, (BF16,), (None, d.hidden_size))
        t = x.shape[0]
        check.check_array("cos", cos, (BF16,), (t, d.qk_rope_head_dim))
        check.check_array("sin", sin, (BF16,), (t, d.qk_rope_head_dim))
        if not isinstance(cache, PagedCache):
            raise TypeError(f"cache: expected PagedCache, got {type(cache).__name__}")
        if cache.quantized != self.quantized:
            kinds = ("bfloat16", "int8")
            raise TypeError(
                f"kv_cache: expected dtype {kinds[self.quantized]} for quant {self.weights.quant!r}, "
                f"got {kinds[cache.quantized]}"
            )
        for name, array, width in (("kv_cache", cache.kv, d.kv_lora_rank), ("kr_cache", cache.kr, d.qk_rope_head_dim)):
            if array.shape[-1] != width:
                raise ValueError(f"{name}: expected rows of {width} elements, got {array.shape[-1]}")
        for name, array in cache.arrays().items():
            check.check_writable(name, array)
        if self.check_finite:
            check.check_finite("x", x)
        return _slots(cache, cache_index, t)

    def _check_output(self, out: PrologOutput, t: int) -> dict[str, Array]:
        d = self.dims
        if not isinstance(out, PrologOutput):
            raise TypeError(f"out: expected PrologOutput, got {type(out).__name__}")
        wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "query_nope": (BF16, (t, d.num_attention_heads, d.kv_lora_rank)),
            "query_rope": (BF16, (t, d.num_attention_heads, d.qk_rope_head_dim)),
            "q_norm": (INT8 if self.quantized else BF16, (t, d.q_lora_rank)),
        }
        if self.quantized:
            wanted["q_norm_scale"] = (FP32, (t, 1))
        elif out.q_norm_scale is not None:
            raise ValueError("out.q_norm_scale: expected None where w_uq_qr is not quantised, got an array")
        arrays = {}
        for name, (dtype, shape) in wanted.items():
            arrays[f"out.{name}"] = check.check_array(f"out.{name}", getattr(out, name), (dtype,), shape)
            check.check_writable(f"out.{name}", arrays[f"out.{name}"])
        return arrays

    def _take_memory(self, plan: PrologPlan) -> Memory:
        """Working memory that no other thread holds: one kept from an earlier call, or a new one if too small."""
        try:
            memory = self._memory.pop()
        except IndexError:
            return Memory(plan)
        return memory if memory.holds(plan) else Memory(plan)


def _unpickled(cls: type[MlaProlog], weights: PackedWeights, phase: str, settings: dict[str, Any]) -> MlaProlog:
    settings["n_threads"] = min(settings["n_threads"], max_threads())
    return cls(weights, phase, **settings)


def _slots(cache: PagedCache, cache_index: Array | None, t: int) -> Array:
    """The slot of each of t tokens, int64 (t,)."""
    mode = cache.cache_mode
    if cache.row_slots is None:
        if cache_index is None:
            raise TypeError(f"cache_index: expected a NumPy array with a {mode} cache, got NoneType")
        return check.check_slots(cache_index, t, cache.capacity)
    if cache_index is not None:
        kind = type(cache_index).__name__
        raise ValueError(f"cache_index: expected None with a {mode} cache, where token t writes row t, got {kind}")
    if t > cache.capacity:
        raise ValueError(f"x: expected at most {cache.capacity} tokens, the rows of the {mode} cache, got {t}")
    return cache.row_slots[:t]
