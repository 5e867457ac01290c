"""The prolog: plan once, run often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tiling import Machine, MicroTile, MlaTileConfig, PassOptions, PrologPlan, pass_options, plan_prolog

from . import _checks as check
from ._checks import BF16, FP32, INT8, Array
from .cache import PagedCache
from .kernels import ISA, max_threads
from .memory import aligned_empty, as_bits, unlocked
from .packed import PackedWeights
from .sweeps import Bindings, run_tile
from .weights import MlaWeights
from .workspace import Memory

__all__ = ["MICRO_TILES", "BoundCall", "MlaProlog", "PrologOutput", "this_machine"]

MICRO_TILES = {
    "bf16": MicroTile(mr=ISA.mr, nr=ISA.nr, kr=ISA.kr_bf16, a_bytes=ISA.a_bf16_bytes),
    "int8": MicroTile(mr=ISA.mr, nr=ISA.nr, kr=ISA.kr_int8, a_bytes=ISA.a_int8_bytes),
}
_PLANS_KEPT = 64
_NO_SCALES = np.zeros(0, np.float32)


def this_machine() -> Machine:
    """This machine, with the instruction set that the kernels are built for."""
    return replace(Machine.detect(), isa=ISA.name)


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
    """A checked call: its outputs, and all its arrays as the kernels take them."""

    out: PrologOutput
    arrays: Bindings


class MlaProlog:
    """The MLA prolog of one layer on this CPU.

    - `weights`: `MlaWeights`, packed here, or `PackedWeights`.
    - `phase`: "decode" or "prefill"; which scheduling settings the reference operator pairs with a `tile_config`.
    - `tile_config`: the reference operator's tile settings, reproduced as far as they mean something on a CPU; None
      lets the planner choose. `options`: scheduling settings instead of those of the phase.
    - `n_threads`: at most Numba's thread count, which is the default.
    - `check_finite`: raise where a hidden state is NaN or Inf.

    A call computes a token's bits from that token alone: batch, tiles, threads and instruction set never change them.
    Several threads may call one instance at once.
    """

    def __init__(
        self,
        weights: MlaWeights | PackedWeights,
        phase: str = "decode",
        *,
        tile_config: MlaTileConfig | None = None,
        options: PassOptions | None = None,
        n_threads: int | None = None,
        check_finite: bool = False,
    ) -> None:
        if not isinstance(weights, (MlaWeights, PackedWeights)):
            raise TypeError(f"weights: expected MlaWeights or PackedWeights, got {type(weights).__name__}")
        self.phase = check.check_choice("phase", phase, ("decode", "prefill"))
        if tile_config is not None and not isinstance(tile_config, MlaTileConfig):
            raise TypeError(f"tile_config: expected MlaTileConfig or None, got {type(tile_config).__name__}")
        if options is not None and not isinstance(options, PassOptions):
            raise TypeError(f"options: expected PassOptions or None, got {type(options).__name__}")
        self.n_threads = check.check_threads("n_threads", n_threads, max_threads())
        self.check_finite = check.check_flag("check_finite", check_finite)
        self.tile_config = None if tile_config is None else tile_config.replace()
        self.options = options
        self.weights = weights.pack(self.n_threads) if isinstance(weights, MlaWeights) else weights
        self.dims = self.weights.dims
        self.machine = this_machine()
        self._memory: deque[Memory] = deque()
        self._planned: Callable[[int], PrologPlan] = lru_cache(_PLANS_KEPT)(self._make_plan)

    @property
    def quantized(self) -> bool:
        """Whether w_uq_qr, and with it q_norm and the cache, is int8."""
        return "b" in self.weights.quant

    def plan(self, t: int) -> PrologPlan:
        """How `t` tokens are computed; `print(prolog.plan(8))`, `print(prolog.plan(8).explain())`."""
        return self._planned(check.check_int("t", t, 0))

    def _make_plan(self, t: int) -> PrologPlan:
        options = self.options
        if options is None and self.tile_config is not None:
            options = pass_options(self.phase, t)
        return plan_prolog(
            self.dims, t, self.tile_config, self.machine, micro=MICRO_TILES, phase=self.phase,
            quant=self.weights.quant, n_threads=self.n_threads, options=options,
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
        cache_index: Array,
        cache: PagedCache,
        out: PrologOutput | None = None,
    ) -> PrologOutput:
        """Computes T tokens and writes their cache rows.

        x (T, H), cos and sin (T, R): bf16. cache_index (T,): int64 or int32 flat slots; -1 writes no row, and of tokens
        that name one slot the last one wins. `out`: where to write the outputs (`allocate_output`); the call then
        allocates no arrays.

        Raises `TypeError` or `ValueError` naming the argument, what was expected and what came; outputs and cache are
        then as they were.
        """
        return self.run(self.bind(x, cos, sin, cache_index, cache, out))

    def profile(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array,
        cache: PagedCache,
        out: PrologOutput | None = None,
        *,
        finished: Callable[[str], None],
    ) -> PrologOutput:
        """A call that reports each sweep's end: `finished("down")`, `("rows")`, `("heads")` for each tile of tokens."""
        return self.run(self.bind(x, cos, sin, cache_index, cache, out), finished)

    def bind(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        cache_index: Array,
        cache: PagedCache,
        out: PrologOutput | None = None,
        also_read: Mapping[str, Array] = MappingProxyType({}),
    ) -> BoundCall:
        """Checks the arguments of a call and holds them for `run`; nothing is written yet.

        `also_read`: arrays by name that must not share memory with an output or a cache.
        """
        slots = self._check_inputs(x, cos, sin, cache_index, cache)
        t = x.shape[0]
        written = cache.arrays()
        if out is None:
            out = self.allocate_output(t)
        else:
            written = self._check_output(out, t) | written
        check.check_disjoint(written, {"x": x, "cos": cos, "sin": sin, "cache_index": cache_index, **also_read})
        return BoundCall(
            out,
            Bindings(
                x=as_bits(x),
                cos=as_bits(cos),
                sin=as_bits(sin),
                cache_index=unlocked(slots),
                query_nope=out.query_nope.view(np.uint16),
                query_rope=out.query_rope.view(np.uint16),
                q_norm=out.q_norm if self.quantized else out.q_norm.view(np.uint16),
                q_norm_scale=_NO_SCALES if out.q_norm_scale is None else out.q_norm_scale.reshape(-1),
                caches=cache.views,
            ),
        )

    def run(self, call: BoundCall, finished: Callable[[str], None] | None = None) -> PrologOutput:
        """Computes a bound call; the same one may be run again, on the values that its arrays hold then."""
        plan = self._planned(call.arrays.x.shape[0])
        memory = self._take_memory(plan)
        try:
            for offset, factor in plan.tiles:
                tile = plan.tile_plan(factor)
                run_tile(self.weights, tile, memory.buffers(tile), call.arrays, offset, finished)
        finally:
            self._memory.append(memory)
        return call.out

    def _check_inputs(self, x: Array, cos: Array, sin: Array, cache_index: Array, cache: PagedCache) -> Array:
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
            if array.shape[3] != width:
                raise ValueError(f"{name}: expected rows of {width} elements, got {array.shape[3]}")
        for name, array in cache.arrays().items():
            check.check_writable(name, array)
        if self.check_finite:
            check.check_finite("x", x)
        return check.check_slots(cache_index, t, cache.capacity)

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
