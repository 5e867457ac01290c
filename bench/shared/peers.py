"""The prolog as PyTorch users build it today, five ways, each doing all that `MlaProlog` does in quant mode "b".

| peer | products                                                                                              |
|------|-------------------------------------------------------------------------------------------------------|
| P1   | eager, weights as they come: bf16 `@`, `torch._int_mm`                                                |
| P1t  | eager, w_dq and w_dkv_kr joined, the int8 weight stored transposed                                    |
| P2   | P1t with fp32 copies of the bf16 weights                                                              |
| P2p  | eager over prepacked operators (oneDNN, FBGEMM, MKL): for each product the fastest that is right here |
| P3w  | P2p's operators in one `torch.compile` graph, which fuses all that lies between them                  |

`P3w(n_tokens).prepare(weights)` gives a callable `(x, cos, sin, cache_index, caches) -> PeerOutput`; caches are the
tensors (kv, kr, k_scale) of a PA_BSND cache, written in place. Letters: T tokens, H hidden, Rq q_lora_rank, N heads,
D nope, R rope, C kv_lora_rank. Where a peer may choose, it has the benefit: query_nope is a transposed view of what
`torch.bmm` returns, and slots have to be distinct and 0 or more, so that no peer pays for -1 or for an order of writes.

Without `emulate_precision_casts` inductor drops the bf16 roundings between fused operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mla_numba import MlaWeights

from .torch_glue import Caches, Glue, PeerOutput, dequant, prolog
from .torch_machine import int8_caveat, separate_compiler_cache
from .torch_operators import (
    DOWN,
    HEADS,
    UP,
    Operator,
    Product,
    Timings,
    TorchWeights,
    codes_for,
    named,
    time_operators,
)

__all__ = ["P1", "P2", "PEERS", "P1t", "P2p", "P3w", "Peer"]


class Operators(NamedTuple):
    """The operator of each product."""

    down: Operator
    up: Operator
    heads: Operator

    def __str__(self) -> str:
        return ", ".join(f"{stage}: {operator.name}" for stage, operator in zip(self._fields, self, strict=True))


class Peer:
    """A composition for calls of n_tokens tokens."""

    name: str
    what: str

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def prepare(self, weights: MlaWeights) -> Callable[..., PeerOutput]:
        """Pack the weights of a layer; the result computes the layer's prolog."""
        raise NotImplementedError

    def chosen(self) -> str:
        """The operators of its products, and why others were not to be had; empty before the first prepare."""
        return ""

    def caveat(self) -> str:
        """Why its results may be wrong on this machine, in front of what was found; else empty."""
        raise NotImplementedError


class P1(Peer):
    name = "P1"
    what = "torch eager, weights as they come"

    def prepare(self, weights: MlaWeights) -> Callable[..., PeerOutput]:
        w = TorchWeights(weights)
        glue = Glue.of(w)

        def down(x: Tensor) -> tuple[Tensor, Tensor]:
            return x @ w.w_dq, x @ w.w_dkv_kr

        def up(codes: Tensor, scale: Tensor) -> Tensor:
            return dequant(torch._int_mm(codes, w.w_uq_qr), scale, w.up_scale)

        def heads(q: Tensor) -> Tensor:
            return torch.bmm(q.transpose(0, 1), w.w_uk).transpose(0, 1)

        @torch.inference_mode()
        def call(x: Tensor, cos: Tensor, sin: Tensor, cache_index: Tensor, caches: Caches) -> PeerOutput:
            return prolog(x, cos, sin, cache_index, caches, glue, down, up, heads)

        return call

    def chosen(self) -> str:
        return "down: bf16 @ twice, up: _int_mm, heads: bmm bf16"

    def caveat(self) -> str:
        return int8_caveat(torch.int8)


class _Composed(Peer):
    """A peer over one operator a product."""

    operators: Operators | None = None
    heads_contiguous = False  # hand the operator of heads a contiguous operand

    def choose(self, w: TorchWeights) -> Operators:
        """The operators, settled at the first prepare."""
        raise NotImplementedError

    def prepare(self, weights: MlaWeights) -> Callable[..., PeerOutput]:
        w = TorchWeights(weights)
        if self.operators is None:
            self.operators = self.choose(w)
        products = [operator.make(w, self.n_tokens) for operator in self.operators]
        return self.compose(w, products)

    def compose(self, w: TorchWeights, products: Sequence[Product]) -> Callable[..., PeerOutput]:
        """The callable over the prepared products, eagerly."""
        glue, stages = Glue.of(w), self.stages(w, products, w.up_scale)

        @torch.inference_mode()
        def call(x: Tensor, cos: Tensor, sin: Tensor, cache_index: Tensor, caches: Caches) -> PeerOutput:
            return prolog(x, cos, sin, cache_index, caches, glue, *stages)

        return call

    def stages(self, w: TorchWeights, products: Sequence[Product], up_scale: Tensor) -> tuple[Any, Any, Any]:
        """The products with the casts that their operators need around them."""
        assert self.operators is not None
        q_rank = w.w_dq.shape[1]
        op_down, op_up, op_heads = self.operators
        product_down, product_up, product_heads = products
        scale_left = None if op_up.scales else up_scale

        def down(x: Tensor) -> tuple[Tensor, Tensor]:
            joined = product_down(x.to(op_down.takes)).bfloat16()
            return joined[:, :q_rank], joined[:, q_rank:]

        def up(codes: Tensor, scale: Tensor) -> Tensor:
            return dequant(product_up(codes_for(codes, op_up)), scale, scale_left)

        def heads(q: Tensor) -> Tensor:
            operand = q.to(op_heads.takes).transpose(0, 1)
            if self.heads_contiguous:
                operand = operand.contiguous()
            return product_heads(operand).bfloat16().transpose(0, 1)

        return down, up, heads

    def chosen(self) -> str:
        return "" if self.operators is None else str(self.operators)

    def caveat(self) -> str:
        return "" if self.operators is None else int8_caveat(self.operators.up.takes)


class P1t(_Composed):
    name = "P1t"
    what = "torch eager, down projections joined, int8 weight transposed"

    def choose(self, w: TorchWeights) -> Operators:
        return Operators(named(DOWN, "bf16 @"), named(UP, "_int_mm transposed"), named(HEADS, "bmm bf16"))


class P2(_Composed):
    name = "P2"
    what = "torch eager, fp32 copies of the bf16 weights"

    def choose(self, w: TorchWeights) -> Operators:
        return Operators(named(DOWN, "fp32 @"), named(UP, "_int_mm transposed"), named(HEADS, "bmm fp32"))


class P2p(_Composed):
    name = "P2p"
    what = "torch eager, fastest prepacked operators"

    def __init__(self, n_tokens: int) -> None:
        super().__init__(n_tokens)
        self.timings: dict[str, Timings] = {}

    def choose(self, w: TorchWeights) -> Operators:
        hidden, q_rank = w.w_dq.shape
        n_heads, nope_dim, _ = w.w_uk.shape
        t = self.n_tokens
        x = torch.randn(t, hidden, dtype=torch.bfloat16)
        codes = torch.randint(-127, 128, (t, q_rank), dtype=torch.int8)
        query = torch.randn(t, n_heads, w.w_uq_qr.shape[1] // n_heads, dtype=torch.bfloat16)
        q_nope = query[..., :nope_dim]

        def run_down(op: Operator, product: Product) -> Tensor:
            return product(x.to(op.takes)).bfloat16()

        def run_up(op: Operator, product: Product) -> Tensor:
            return product(codes_for(codes, op))

        def run_heads(op: Operator, product: Product) -> Tensor:
            return product(q_nope.to(op.takes).transpose(0, 1)).bfloat16()

        stages = (
            ("down", DOWN, run_down, x.float() @ w.joined().float()),
            ("up", UP, run_up, codes.float() @ w.w_uq_qr.float()),
            ("heads", HEADS, run_heads, torch.bmm(q_nope.float().transpose(0, 1), w.w_uk.float())),
        )
        picked = []
        for stage, candidates, run, want in stages:
            self.timings[stage] = time_operators(candidates, run, w, t, want)
            picked.append(self.timings[stage].fastest(stage))
        return Operators(*picked)

    def chosen(self) -> str:
        """The operators with their times, the runner-up's, and what could not run or was wrong."""
        return ", ".join(f"{stage}: {timings}" for stage, timings in self.timings.items())


# Operators over packed weights can't be traced. To the compiler they are one opaque operator that finds its product by
# a key, which is a tensor: a number would be a constant of the graph, and each layer's weights would compile anew.

_products: WeakValueDictionary[int, Product] = WeakValueDictionary()
_next_key = count()
_library = torch.library.Library("mla_peers", "DEF")
_library.define("product(Tensor a, Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor")


def _run_product(a: Tensor, key: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return _products[key.item()](a)


_library.impl("product", _run_product, "CPU")


@torch.library.register_fake("mla_peers::product", lib=_library)
def _fake_product(a: Tensor, key: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return a.new_empty(shape, dtype=dtype)


class P3w(P2p):
    name = "P3w"
    what = "one torch.compile graph over the fastest prepacked operators"
    heads_contiguous = True  # the graph writes the order that bmm would otherwise copy into

    def __init__(self, n_tokens: int) -> None:
        super().__init__(n_tokens)
        self._compiled: Callable[..., PeerOutput] | None = None

    def compose(self, w: TorchWeights, products: Sequence[Product]) -> Callable[..., PeerOutput]:
        if self._compiled is None:
            self._compiled = self._compile(w)
        compiled, owned, n_tokens = self._compiled, tuple(products), self.n_tokens
        keys = []
        for product in owned:
            keys.append(torch.tensor(next(_next_key)))
            _products[int(keys[-1])] = product
        gamma_cq, gamma_ckv, up_scale = w.gamma_cq, w.gamma_ckv, w.up_scale

        @torch.inference_mode()
        def call(x: Tensor, cos: Tensor, sin: Tensor, cache_index: Tensor, caches: Caches) -> PeerOutput:
            if x.shape[0] != n_tokens:
                raise ValueError(f"x: expected the {n_tokens} tokens that the graph was compiled for, got {x.shape[0]}")
            return compiled(x, cos, sin, cache_index, *caches, gamma_cq, gamma_ckv, up_scale, *keys)

        call.products = owned  # type: ignore[attr-defined]  # keeps them alive as long as the call
        return call

    def _compile(self, w: TorchWeights) -> Callable[..., PeerOutput]:
        assert self.operators is not None
        op_down, op_up, op_heads = self.operators
        t = self.n_tokens
        n_down = w.w_dq.shape[1] + w.w_dkv_kr.shape[1]
        n_up = w.w_uq_qr.shape[1]
        n_heads, _, latent = w.w_uk.shape
        glue = Glue.of(w)
        product = torch.ops.mla_peers.product.default

        def graph(
            x: Tensor, cos: Tensor, sin: Tensor, cache_index: Tensor, kv: Tensor, kr: Tensor, k_scale: Tensor,
            gamma_cq: Tensor, gamma_ckv: Tensor, up_scale: Tensor, key_down: Tensor, key_up: Tensor, key_heads: Tensor,
        ) -> PeerOutput:  # fmt: skip
            products = (
                lambda a: product(a, key_down, (t, n_down), op_down.gives),
                lambda a: product(a, key_up, (t, n_up), op_up.gives),
                lambda a: product(a, key_heads, (n_heads, t, latent), op_heads.gives),
            )
            weights = glue._replace(gamma_cq=gamma_cq, gamma_ckv=gamma_ckv)
            stages = self.stages(w, products, up_scale)
            return prolog(x, cos, sin, cache_index, (kv, kr, k_scale), weights, *stages)

        # The compiler keeps graphs by code object: without one of its own this peer would be given another's graph.
        graph.__code__ = graph.__code__.replace(co_name=f"prolog_{t}_tokens")
        options = {
            "emulate_precision_casts": True,
            # Waking a sleeping worker costs more than a small loop: by default 1536 elements make a parallel region.
            "cpp.min_chunk_size": 16384,
            # Nothing but the shapes could change, and the number of tokens is checked: spare every call the guards.
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        }
        separate_compiler_cache()
        return torch.compile(graph, fullgraph=True, dynamic=False, options=options)


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (P1, P1t, P2, P2p, P3w)}
