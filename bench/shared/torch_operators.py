"""The operators that PyTorch offers for each of the prolog's products, and how to find the fastest.

Letters: T tokens, H hidden, Rq q_lora_rank, N heads, D nope, R rope, C kv_lora_rank. int8 x int8 in oneDNN's linear has
no VNNI kernel (hundreds of times slower), hence u8 codes there. Without VNNI its u8 x s8 saturates: an operator that is
wrong is as good as none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from mla_numba import MlaWeights

from .left_out import first_line
from .torch_machine import int8_caveat

__all__ = [
    "DOWN",
    "HEADS",
    "UP",
    "Operator",
    "Product",
    "Timings",
    "TorchWeights",
    "as_torch",
    "codes_for",
    "from_torch",
    "named",
    "time_operators",
]

Product = Callable[[Tensor], Tensor]
EVICT_BYTES = 128 << 20  # more than a last-level cache holds: every candidate starts with cold weights
N_SAMPLES = 9
MOST_ERROR = 2.0**-7  # of a product's largest value
_BF16, _FP32 = torch.bfloat16, torch.float32


def as_torch(array: np.ndarray[Any, Any]) -> Tensor:
    """The array's own memory as a tensor."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A copy of the tensor as an array."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


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


@dataclass(frozen=True)
class Operator:
    """One way to compute a product: `make(weights, n_tokens)` packs, and gives a callable on tensors of dtype `takes`.

    down: (T, H) to (T, Rq+C+R). up: (T, Rq) to (T, N*(D+R)), in int32 or, with `scales`, in fp32 times the channel
    scale; codes are shifted by 128 for `takes` uint8, and as they are for int8 and fp32. heads: (N, T, D) to (N, T, C).
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


def _mkl(weight: Tensor, n_tokens: int) -> Product:
    transposed = weight.t().float().contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(transposed, n_tokens)
    linear = torch.ops.mkl._mkl_linear.default
    return lambda x: linear(x, packed, transposed, None, n_tokens)


def _down_mkl(w: TorchWeights, n_tokens: int) -> Product:
    return _mkl(w.joined(), n_tokens)


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


def _up_fbgemm_fp16(w: TorchWeights, n_tokens: int) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(w.w_uq_qr.t().float().contiguous(), None)
    linear = torch.ops.quantized.linear_dynamic_fp16.default
    return lambda codes: linear(codes, packed)


def _up_mkl(w: TorchWeights, n_tokens: int) -> Product:
    return _mkl(w.w_uq_qr, n_tokens)


def _up_fp32(w: TorchWeights, n_tokens: int) -> Product:
    w_uq_qr = w.w_uq_qr.float()
    return lambda codes: codes @ w_uq_qr


def _heads_bmm(w: TorchWeights, n_tokens: int) -> Product:
    return lambda q: torch.bmm(q, w.w_uk)


def _heads_bmm_transposed(w: TorchWeights, n_tokens: int) -> Product:
    transposed = w.w_uk.transpose(1, 2).contiguous()
    return lambda q: torch.bmm(q, transposed.transpose(1, 2))


def _heads_bmm_fp32(w: TorchWeights, n_tokens: int) -> Product:
    w_uk = w.w_uk.float()
    return lambda q: torch.bmm(q, w_uk)


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
    # Without integers, and so right on a CPU whose int8 products saturate; exact while sums stay below 2^24.
    Operator("fbgemm fp16 prepacked", _FP32, _FP32, _up_fbgemm_fp16),
    Operator("mkl fp32 prepacked", _FP32, _FP32, _up_mkl),
    Operator("fp32 @", _FP32, _FP32, _up_fp32),
)
HEADS = (
    Operator("bmm bf16", _BF16, _BF16, _heads_bmm),
    Operator("bmm bf16 transposed", _BF16, _BF16, _heads_bmm_transposed),
    Operator("bmm fp32", _FP32, _FP32, _heads_bmm_fp32),
)


def named(operators: Sequence[Operator], name: str) -> Operator:
    return next(operator for operator in operators if operator.name == name)


def codes_for(codes: Tensor, operator: Operator) -> Tensor:
    return codes.view(torch.uint8) ^ 128 if operator.takes == torch.uint8 else codes.to(operator.takes)


def beyond(got: Tensor, want: Tensor) -> str:
    """How many values of a product are not `want`, in a sentence; empty where all are."""
    limit = MOST_ERROR * want.abs().max()
    n_wrong = int(((got.float() - want).abs() <= limit).logical_not().sum())  # NaN is no less than any limit
    return f"{n_wrong} of {want.numel()} values beyond {MOST_ERROR:g} of the largest" if n_wrong else ""


@dataclass
class Timings:
    """Least milliseconds of each operator that is right, and why others could not run or were wrong."""

    ms: dict[Operator, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ranked(self) -> list[Operator]:
        """The operators that are right, fastest first."""
        return sorted(self.ms, key=self.ms.__getitem__)

    def fastest(self, stage: str) -> Operator:
        """The fastest operator; raises RuntimeError where none is right."""
        if not self.ms:
            raise RuntimeError(f"{stage}: expected an operator that is right on this machine, got {self.failed}")
        return self.ranked()[0]

    def __str__(self) -> str:
        first, *others = (f"{op.name} ({self.ms[op]:.3g} ms)" for op in self.ranked())
        said = first + (f" before {others[0]}" if others else "")
        return said + "".join(f"; no {name}: {reason}" for name, reason in self.failed.items())


@torch.inference_mode()
def time_operators(
    candidates: Sequence[Operator],
    run: Callable[[Operator, Product], Tensor],
    w: TorchWeights,
    n_tokens: int,
    want: Tensor,
) -> Timings:
    """Time every operator on cold weights, all of them in turn; of one that can't run or is wrong the reason is noted.

    want: the product in fp32, without the channel scale.
    """
    timings = Timings()
    evict = torch.zeros(EVICT_BYTES // 4)
    products = {}
    for op in candidates:
        try:
            products[op] = op.make(w, n_tokens)
            got = run(op, products[op])
            wrong = beyond(got / w.up_scale if op.scales else got, want)
        except Exception as error:  # it is one candidate of several, whatever is the matter with it
            timings.failed[op.name] = first_line(error)[:120]
            continue
        if wrong:
            timings.failed[op.name] = int8_caveat(op.takes) + wrong
        else:
            timings.ms[op] = float("inf")
    for sample in range(N_SAMPLES):
        for op in list(timings.ms):
            if sample > 2 and timings.ms[op] > 2 * min(timings.ms.values()):
                continue  # out of the race; at many tokens it costs seconds
            evict.add_(1)
            start = time.perf_counter()
            run(op, products[op])
            timings.ms[op] = min(timings.ms[op], (time.perf_counter() - start) * 1e3)
    return timings
