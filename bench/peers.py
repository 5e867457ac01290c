"""The prolog as PyTorch users build it today, five ways, each doing all that `MlaProlog` does in quant mode "b".

| peer | products                                                                                              |
|------|-------------------------------------------------------------------------------------------------------|
| P1   | eager, weights as they come: bf16 `@`, `torch._int_mm`                                                |
| P1t  | eager, w_dq and w_dkv_kr joined, the int8 weight stored transposed                                    |
| P2   | P1t with fp32 copies of the bf16 weights                                                              |
| P2p  | eager over prepacked operators (oneDNN, FBGEMM, MKL): for each product the fastest on this machine    |
| P3w  | P2p's operators in one `torch.compile` graph, which fuses all that lies between them                  |

`P3w(n_tokens).prepare(weights)` gives a callable `(x, cos, sin, cache_index, caches) -> PeerOutput`; caches are the
tensors (kv, kr, k_scale) of a PA_BSND cache, written in place. Letters: T tokens, H hidden, Rq q_lora_rank, N heads,
D nope, R rope, C kv_lora_rank. Where a peer may choose, it has the benefit: query_nope is a transposed view of what
`torch.bmm` returns, and slots have to be distinct and 0 or more, so that no peer pays for -1 or for an order of writes.

Two settings that look right and aren't: without `emulate_precision_casts` inductor drops the bf16 roundings between
fused operations; and int8 x int8 in oneDNN's linear has no VNNI kernel (hundreds of times slower), hence u8 codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from mla_numba import MlaWeights

__all__ = ["P1", "P2", "PEERS", "Caches", "P1t", "P2p", "P3w", "PeerOutput", "as_torch"]

Product = Callable[[Tensor], Tensor]
Caches = tuple[Tensor, Tensor, Tensor]
N_GROUPS = 4  # quantisation groups of the latent key
EVICT_BYTES = 128 << 20  # more than a last-level cache holds: every candidate starts with cold weights
N_SAMPLES = 9


class PeerOutput(NamedTuple):
    """query_nope (T, N, C) and query_rope (T, N, R) bf16, q_norm (T, Rq) int8, q_norm_scale (T, 1) fp32."""

    query_nope: Tensor
    query_rope: Tensor
    q_norm: Tensor
    q_norm_scale: Tensor


def as_torch(array: np.ndarray[Any, Any]) -> Tensor:
    """The array's own memory as a tensor."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class TorchWeights:
    """The weights as tensors under the names of `MlaWeights`, on its memory."""

    def __init__(self, weights: MlaWeights) -> None:
        if weights.quant != "b" or weights.smooth_scales_cq is not None:
            raise ValueError(f"weights: expected quant 'b' without smooth scales, got quant {weights.quant!r}")
        self.w_dq = as_torch(weights.w_dq)
        self.w_uq_qr = as_torch(weights.w_uq_qr)
        self.w_uk = as_torch(weights.w_uk)
        self.w_dkv_kr = as_torch(weights.w_dkv_kr)
        self.gamma_cq = as_torch(weights.gamma_cq)
        self.gamma_ckv = as_torch(weights.gamma_ckv)
        self.up_scale = as_torch(np.asarray(weights.dequant_scale_w_uq_qr)).reshape(1, -1)
        self.eps_cq, self.eps_ckv = weights.epsilon_cq, weights.epsilon_ckv

    def joined(self) -> Tensor:
        """A new tensor [w_dq | w_dkv_kr] (H, Rq + C + R)."""
        return torch.cat([self.w_dq, self.w_dkv_kr], dim=1)


# What lies between the products: the same text for all peers, run eagerly or compiled.


def rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """RMSNorm in fp32 of x (T, n) bf16, rounded to bf16."""
    x_fp32 = x.float()
    r = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return (gamma.float() * (x_fp32 * r)).bfloat16()


def quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 and scale fp32 (..., 1) of x (..., n) bf16, one scale a row."""
    y = x.float()
    scale_quant = 127.0 / y.abs().amax(-1, keepdim=True)
    return torch.round(y * scale_quant).to(torch.int8), 1.0 / scale_quant


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (..., R) bf16 in fp32: pairs come interleaved and leave as halves."""
    x1, x2 = x[..., 0::2].float(), x[..., 1::2].float()
    half = x.shape[-1] // 2
    cos, sin = cos.float(), sin.float()
    first = x1 * cos[..., :half] - x2 * sin[..., :half]
    second = x2 * cos[..., half:] + x1 * sin[..., half:]
    return torch.cat([first.bfloat16(), second.bfloat16()], dim=-1)


def prolog(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache_index: Tensor,
    caches: Caches,
    weights: Glue,
    down: Callable[[Tensor], tuple[Tensor, Tensor]],
    up: Callable[[Tensor, Tensor], Tensor],
    heads: Product,
) -> PeerOutput:
    """The whole prolog over three products.

    down: x (T, H) to q_a (T, Rq) and kv_a (T, C+R). up: codes (T, Rq) and scale (T, 1) to (T, N*(D+R)).
    heads: (T, N, D) to (T, N, C). All bf16 but the codes and the scale.
    """
    t = x.shape[0]
    kv, kr, k_scale = caches
    latent = kv.shape[-1]
    q_a, kv_a = down(x)
    q_norm, q_norm_scale = quant(rms_norm(q_a, weights.gamma_cq, weights.eps_cq))
    query = up(q_norm, q_norm_scale).view(t, weights.n_heads, -1)
    query_nope = heads(query[..., : weights.nope_dim])
    query_rope = rope(query[..., weights.nope_dim :], cos[:, None], sin[:, None])

    k_nope = rms_norm(kv_a[:, :latent], weights.gamma_ckv, weights.eps_ckv)
    codes, scale = quant(k_nope.view(t, N_GROUPS, -1))
    kv.view(-1, latent).index_copy_(0, cache_index, codes.view(t, latent))
    kr.view(-1, kr.shape[-1]).index_copy_(0, cache_index, rope(kv_a[:, latent:], cos, sin))
    k_scale.view(-1, N_GROUPS).index_copy_(0, cache_index, scale.view(t, N_GROUPS))
    return PeerOutput(query_nope, query_rope, q_norm, q_norm_scale)


class Glue(NamedTuple):
    """What the operations between the products read."""

    gamma_cq: Tensor
    gamma_ckv: Tensor
    eps_cq: float
    eps_ckv: float
    n_heads: int
    nope_dim: int

    @classmethod
    def of(cls, w: TorchWeights) -> Glue:
        n_heads, nope_dim, _ = w.w_uk.shape
        return cls(w.gamma_cq, w.gamma_ckv, w.eps_cq, w.eps_ckv, n_heads, nope_dim)


def dequant(acc: Tensor, scale: Tensor, up_scale: Tensor | None) -> Tensor:
    """(fp32(acc) * scale) * up_scale, in bf16; up_scale None where the product has multiplied it in."""
    result = acc * scale
    return (result if up_scale is None else result * up_scale).bfloat16()


# The operators a user may take for each product, prepacked for n_tokens rows.


@dataclass(frozen=True)
class Operator:
    """One way to compute a product: `make(weights, n_tokens)` packs, and gives a callable on tensors of dtype `takes`.

    down: (T, H) to (T, Rq+C+R). up: (T, Rq) to (T, N*(D+R)), in int32 or, with `scales`, in fp32 times the channel
    scale; for `takes` uint8 the codes are shifted by 128. heads: (N, T, D) to (N, T, C).
    """

    name: str
    takes: torch.dtype
    gives: torch.dtype
    make: Callable[[TorchWeights, int], Product]
    scales: bool = False


def _down_plain(w: TorchWeights, n_tokens: int) -> Product:
    joined = w.joined()
    return lambda x: x @ joined


def _down_plain_transposed(w: TorchWeights, n_tokens: int) -> Product:
    joined = w.joined().t().contiguous()
    return lambda x: x @ joined.t()


def _down_fp32(w: TorchWeights, n_tokens: int) -> Product:
    joined = w.joined().float()
    return lambda x: x @ joined


def _down_onednn(dtype: torch.dtype) -> Callable[[TorchWeights, int], Product]:
    def make(w: TorchWeights, n_tokens: int) -> Product:
        packed = torch.ops.mkldnn._reorder_linear_weight(w.joined().t().to(dtype).contiguous(), n_tokens)
        linear = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: linear(x, packed, None, "none", [], "")

    return make


def _down_fbgemm_fp16(w: TorchWeights, n_tokens: int) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(w.joined().t().float().contiguous(), None)
    linear = torch.ops.quantized.linear_dynamic_fp16.default
    return lambda x: linear(x, packed)


def _down_mkl(w: TorchWeights, n_tokens: int) -> Product:
    joined = w.joined().t().float().contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(joined, n_tokens)
    linear = torch.ops.mkl._mkl_linear.default
    return lambda x: linear(x, packed, joined, None, n_tokens)


def _up_int_mm(w: TorchWeights, n_tokens: int) -> Product:
    return lambda codes: torch._int_mm(codes, w.w_uq_qr)


def _up_int_mm_transposed(w: TorchWeights, n_tokens: int) -> Product:
    transposed = w.w_uq_qr.t().contiguous()
    return lambda codes: torch._int_mm(codes, transposed.t())


def _up_onednn(w: TorchWeights, n_tokens: int) -> Product:
    q_rank, n = w.w_uq_qr.shape
    packed = torch.ops.onednn.qlinear_prepack(w.w_uq_qr.t().contiguous(), [n_tokens, q_rank])
    scale, zero = w.up_scale.reshape(-1).clone(), torch.zeros(n, dtype=torch.int64)
    linear = torch.ops.onednn.qlinear_pointwise.default
    return lambda codes: linear(codes, 1.0, 128, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")


def _heads_bmm(w: TorchWeights, n_tokens: int) -> Product:
    return lambda q: torch.bmm(q, w.w_uk)


def _heads_bmm_transposed(w: TorchWeights, n_tokens: int) -> Product:
    transposed = w.w_uk.transpose(1, 2).contiguous()
    return lambda q: torch.bmm(q, transposed.transpose(1, 2))


def _heads_bmm_fp32(w: TorchWeights, n_tokens: int) -> Product:
    w_uk = w.w_uk.float()
    return lambda q: torch.bmm(q, w_uk)


_BF16, _FP32 = torch.bfloat16, torch.float32
DOWN = (
    Operator("onednn bf16 prepacked", _BF16, _BF16, _down_onednn(_BF16)),
    Operator("onednn fp32 prepacked", _FP32, _FP32, _down_onednn(_FP32)),
    Operator("fbgemm fp16 prepacked", _FP32, _FP32, _down_fbgemm_fp16),
    Operator("mkl fp32 prepacked", _FP32, _FP32, _down_mkl),
    Operator("bf16 @", _BF16, _BF16, _down_plain),
    Operator("bf16 @ transposed", _BF16, _BF16, _down_plain_transposed),
    Operator("fp32 @", _FP32, _FP32, _down_fp32),
)
UP = (
    Operator("onednn u8s8 prepacked", torch.uint8, _FP32, _up_onednn, scales=True),
    Operator("_int_mm transposed", torch.int8, torch.int32, _up_int_mm_transposed),
    Operator("_int_mm", torch.int8, torch.int32, _up_int_mm),
)
HEADS = (
    Operator("bmm bf16", _BF16, _BF16, _heads_bmm),
    Operator("bmm bf16 transposed", _BF16, _BF16, _heads_bmm_transposed),
    Operator("bmm fp32", _FP32, _FP32, _heads_bmm_fp32),
)


class Operators(NamedTuple):
    """The operator of each product."""

    down: Operator
    up: Operator
    heads: Operator

    def __str__(self) -> str:
        return ", ".join(f"{stage}: {operator.name}" for stage, operator in zip(self._fields, self, strict=True))


def _named(operators: Sequence[Operator], name: str) -> Operator:
    return next(operator for operator in operators if operator.name == name)


def _codes_for(codes: Tensor, operator: Operator) -> Tensor:
    return codes if operator.takes == torch.int8 else codes.view(torch.uint8) ^ 128


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
            return dequant(product_up(_codes_for(codes, op_up)), scale, scale_left)

        def heads(q: Tensor) -> Tensor:
            operand = q.to(op_heads.takes).transpose(0, 1)
            if self.heads_contiguous:
                operand = operand.contiguous()
            return product_heads(operand).bfloat16().transpose(0, 1)

        return down, up, heads

    def chosen(self) -> str:
        return "" if self.operators is None else str(self.operators)


class P1t(_Composed):
    name = "P1t"
    what = "torch eager, down projections joined, int8 weight transposed"

    def choose(self, w: TorchWeights) -> Operators:
        return Operators(_named(DOWN, "bf16 @"), _named(UP, "_int_mm transposed"), _named(HEADS, "bmm bf16"))


class P2(_Composed):
    name = "P2"
    what = "torch eager, fp32 copies of the bf16 weights"

    def choose(self, w: TorchWeights) -> Operators:
        return Operators(_named(DOWN, "fp32 @"), _named(UP, "_int_mm transposed"), _named(HEADS, "bmm fp32"))


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
        x = torch.randn(t, hidden, dtype=_BF16)
        codes = torch.randint(-127, 128, (t, q_rank), dtype=torch.int8)
        query = torch.randn(t, n_heads, w.w_uq_qr.shape[1] // n_heads, dtype=_BF16)
        q_nope = query[..., :nope_dim]

        def run_down(op: Operator, product: Product) -> Tensor:
            return product(x.to(op.takes)).bfloat16()

        def run_up(op: Operator, product: Product) -> Tensor:
            return product(_codes_for(codes, op))

        def run_heads(op: Operator, product: Product) -> Tensor:
            return product(q_nope.to(op.takes).transpose(0, 1)).bfloat16()

        picked = []
        for stage, candidates, run in (("down", DOWN, run_down), ("up", UP, run_up), ("heads", HEADS, run_heads)):
            self.timings[stage] = time_operators(candidates, run, w, t)
            picked.append(self.timings[stage].fastest(stage))
        return Operators(*picked)

    def chosen(self) -> str:
        """The operators with their times, the runner-up's, and what could not run."""
        return ", ".join(f"{stage}: {timings}" for stage, timings in self.timings.items())


@dataclass
class Timings:
    """Least milliseconds of each operator that ran, and why others did not."""

    ms: dict[Operator, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ranked(self) -> list[Operator]:
        """The operators that ran, fastest first."""
        return sorted(self.ms, key=self.ms.__getitem__)

    def fastest(self, stage: str) -> Operator:
        """The fastest operator; raises RuntimeError where none ran."""
        if not self.ms:
            raise RuntimeError(f"{stage}: expected an operator that runs on this machine, got {self.failed}")
        return self.ranked()[0]

    def __str__(self) -> str:
        first, *others = (f"{op.name} ({self.ms[op]:.3g} ms)" for op in self.ranked())
        said = first + (f" before {others[0]}" if others else "")
        return said + "".join(f"; no {name}: {reason}" for name, reason in self.failed.items())


@torch.inference_mode()
def time_operators(
    candidates: Sequence[Operator], run: Callable[[Operator, Product], Tensor], w: TorchWeights, n_tokens: int
) -> Timings:
    """Time every operator on cold weights, all of them in turn; one that can't run is noted with its reason."""
    timings = Timings()
    evict = torch.zeros(EVICT_BYTES // 4)
    products = {}
    for op in candidates:
        try:
            products[op] = op.make(w, n_tokens)
            run(op, products[op])
            timings.ms[op] = float("inf")
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            timings.failed[op.name] = str(error).strip().splitlines()[0][:120]
    for sample in range(N_SAMPLES):
        for op in list(timings.ms):
            if sample > 2 and timings.ms[op] > 2 * min(timings.ms.values()):
                continue  # out of the race; at many tokens it costs seconds
            evict.add_(1)
            start = time.perf_counter()
            run(op, products[op])
            timings.ms[op] = min(timings.ms[op], (time.perf_counter() - start) * 1e3)
    return timings


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
        return torch.compile(graph, fullgraph=True, dynamic=False, options=options)


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (P1, P1t, P2, P2p, P3w)}
