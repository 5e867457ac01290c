"""The prolog's four weights as single products for the suite: ours and the peers', checked.

| product | shape at full size   | activations                                   |
|---------|----------------------|-----------------------------------------------|
| down    | 2112 x 7168, bf16    | x (T, 7168) bf16; w_dq and w_dkv_kr joined    |
| key     | 576 x 7168, bf16     | x (T, 7168) bf16; w_dkv_kr alone              |
| up      | 24576 x 1536, int8   | codes (T, 1536) int8, a scale a row; w_uq_qr  |
| heads   | 128 x (128 x 512)    | (T, 128, 128) bf16, a head each; w_uk         |

The result is bf16 in all of them, with all scales multiplied in: casts and scales count as part of the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shared.contenders import OURS, Contender, DisagreementError, check_ours, make_inputs, ours
from shared.left_out import or_skipped

import mla_numba as mla
from mla_numba.oracle.bits import compare_bits, reference_run
from mla_numba.reference import (
    dequant,
    matmul_int8,
    quant,
    sum_of_products,
)
from mla_numba.tolerance import TOLERANCES, compare_within
from tiling import Work

from . import our_products
from .session import Suite

__all__ = ["OPERATORS", "PRODUCTS", "ProductCases"]

Array = np.ndarray[Any, Any]

_DOWN_OPERATORS = {
    "torch-bf16": "bf16 @",
    "torch-onednn-bf16": "onednn bf16 prepacked",
    "torch-fbgemm-fp16": "fbgemm fp16 prepacked",
    "torch-mkl-fp32": "mkl fp32 prepacked",
}
OPERATORS = {
    "down": _DOWN_OPERATORS,
    "key": _DOWN_OPERATORS,
    "up": {
        "torch-int_mm": "_int_mm transposed",
        "torch-onednn-u8s8": "onednn u8s8 prepacked",
        "torch-fbgemm-fp16": "fbgemm fp16 prepacked",
    },
    "heads": {"torch-bmm-bf16": "bmm bf16", "torch-bmm-fp32": "bmm fp32"},
}
MOST_TOKENS = 512  # of a tile
PRODUCTS = {product: (OURS, *operators, "onnxruntime", "numpy") for product, operators in OPERATORS.items()}


@dataclass(frozen=True)
class Case:
    """A product's operands for T tokens, and what its result has to be.

    `a`: bf16 activations, or int8 codes with `scale` (T, 1). `want`: of a's leading axes and the weight's columns,
    heads first for "heads".
    """

    a: Array
    weight: Array
    want: Array
    work: Work
    scale: Array | None = None
    w_scale: Array | None = None


class ProductCases:
    """Contenders by product, name and number of tokens."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.case: Callable[[str, int], Case] = lru_cache(1)(self._case)
        self.contender: Callable[[str, str, int], Contender] = lru_cache(1)(self._contender)

    @cached_property
    def weights(self) -> mla.MlaWeights:
        """All four weights."""
        return mla.MlaWeights.random(self.suite.dims, seed=1, quant="b")

    def weight(self, product: str) -> Array:
        """The weight of a product: (K, N), or (heads, K, N)."""
        w = self.weights
        if product == "down":
            return np.concatenate([w.w_dq, w.w_dkv_kr], axis=1)
        return {"key": w.w_dkv_kr, "up": w.w_uq_qr, "heads": w.w_uk}[product]

    def title(self, product: str) -> str:
        """Its weight, type and shape."""
        weight = self.weight(product)
        *batch, k, n = weight.shape
        shape = f"{batch[0]} x ({k} x {n})" if batch else f"{n} x {k}"
        return f"{product} product, {shape} {weight.dtype.name.replace('bfloat16', 'bf16')}"

    def n_copies(self, product: str) -> int:
        """Copies of the weight for the state "cold"."""
        return self.suite.copies(self.weight(product).nbytes)

    def _case(self, product: str, t: int) -> Case:
        weight = self.weight(product)
        rng = np.random.default_rng((t, 2))
        *batch, k, n = weight.shape
        shape = (t, *batch, k)
        a = rng.standard_normal(shape, dtype=np.float32).astype(self.weights.w_uk.dtype)
        moved = weight.nbytes + 2 * a.size + 2 * t * n * (batch[0] if batch else 1)
        ops = 2 * t * weight.size
        if product == "up":
            codes, scale = quant(a)
            w_scale = self.weights.dequant_scale_w_uq_qr
            want = dequant(a.dtype, matmul_int8(codes, weight), scale, w_scale.reshape(1, -1))
            work = Work(moved - a.size + 4 * (t + n), int8_ops=ops)
            return Case(codes, weight, want, work, scale, w_scale)
        if product == "heads":
            want = (a.astype(np.float64).transpose(1, 0, 2) @ weight.astype(np.float64)).astype(a.dtype)
        else:
            want = sum_of_products(a, weight).astype(a.dtype)
        if product == "down":  # the contract sums the columns of w_dq over halves of k
            rank, half = self.weights.w_dq.shape[1], k // 2
            first, second = (sum_of_products(a[:, s], weight[s, :rank]) for s in (slice(half), slice(half, None)))
            want[:, :rank] = (first + second).astype(a.dtype)
        return Case(a, weight, want, Work(moved, flops=ops))

    def _contender(self, product: str, implementation: str, t: int) -> Contender:
        if t > MOST_TOKENS:
            pytest.skip(f"products left out: more than {MOST_TOKENS} tokens go through a call in tiles, got {t}")
        if implementation == OURS:
            return self._our_heads(t) if product == "heads" else self._ours(product, t)
        library = implementation.partition("-")[0]
        for needed in {"torch": ["torch"], "onnxruntime": ["onnxruntime", "onnx"], "numpy": []}[library]:
            pytest.importorskip(needed)
        case = self.case(product, t)
        with or_skipped(implementation):
            made = getattr(self, f"_{library}")(product, implementation, case)
            for i in range(len(made.calls)):
                # A library may give float32 where bf16 is wanted.
                got, want = (array.astype(np.float32) for array in (made.read(i)["y"], case.want))
                found = compare_within("y", got, want, tolerance=TOLERANCES["query_nope_out", "float"])
                if not found.passed:
                    raise DisagreementError(f"{product} product, {t} tokens, copy {i}: {made.caveat}{found}")
        return made

    def _ours(self, product: str, t: int) -> Contender:
        case, n, threads = self.case(product, t), self.n_copies(product), self.suite.n_threads
        if product == "up":
            made = our_products.up_product(case.a, case.scale.reshape(-1), case.weight, case.w_scale, n, threads)
        elif product == "key":
            made = our_products.key_product(case.a, case.weight, n, threads)
        else:
            made = our_products.down_product(case.a, self.weights.w_dq, self.weights.w_dkv_kr, n, threads)

        def read(i: int) -> dict[str, Array]:
            made.y.fill(np.nan)
            made.calls[i]()
            if product != "down":
                return {"y": made.y.copy()}
            cut = t * self.weights.w_dq.shape[1]
            return {"y": np.concatenate([made.y[:cut].reshape(t, -1), made.y[cut:].reshape(t, -1)], axis=1)}

        for i in range(n):
            mismatch = compare_bits("y", read(i)["y"], case.want)
            if mismatch:
                raise DisagreementError(f"{OURS}, {product} product, {t} tokens, copy {i}: {mismatch}")
        return Contender(OURS, made.plan, made.calls, read)

    def _our_heads(self, t: int) -> Contender:
        """Calls that give the seconds of the heads sweep."""
        weights, prologs = our_products.heads_prologs(
            self.weight("heads"), self.n_copies("heads"), self.suite.n_threads
        )
        inputs, empty = make_inputs(weights.dims, t, 0, quantized=False)
        whole = ours(prologs, inputs, empty)
        want = reference_run(weights, *inputs, empty)
        for i in range(len(prologs)):
            check_ours(whole, i, want, empty)
        cache, out = empty.copy(), prologs[0].allocate_output(t)

        def call_of(prolog: mla.MlaProlog) -> Callable[[], float]:
            return lambda: our_products.heads_seconds(prolog, inputs, cache, out)

        made_of = our_products.heads_plan(prologs[0].plan(t))
        return Contender(OURS, made_of, [call_of(prolog) for prolog in prologs], whole.read)

    def _torch(self, product: str, implementation: str, case: Case) -> Contender:
        import torch
        from shared.torch_glue import dequant as scaled
        from shared.torch_machine import int8_caveat
        from shared.torch_operators import DOWN, HEADS, UP, as_torch, codes_for, from_torch, named

        torch.set_num_threads(self.suite.n_threads)
        op = named({"up": UP, "heads": HEADS}.get(product, DOWN), OPERATORS[product][implementation])
        a, t = as_torch(case.a), len(case.a)
        if product == "up":
            scale, up_scale = as_torch(case.scale), as_torch(case.w_scale).reshape(1, -1)
            scale_left = None if op.scales else up_scale

        def call_of(run: Callable[..., Any]) -> Callable[[], Any]:
            @torch.inference_mode()
            def call() -> Any:
                if product == "up":
                    return scaled(run(codes_for(a, op)), scale, scale_left)
                operand = a.to(op.takes)
                return run(operand.transpose(0, 1) if product == "heads" else operand).bfloat16()

            return call

        calls = []
        for _ in range(self.n_copies(product)):
            weight = as_torch(case.weight.copy())  # each its own, for an operator may work on what it is given
            holder = SimpleNamespace(joined=lambda w=weight: w, w_uq_qr=weight, w_uk=weight)
            if product == "up":
                holder.up_scale = up_scale
            calls.append(call_of(op.make(holder, t)))
        return Contender(implementation, op.name, calls, lambda i: {"y": from_torch(calls[i]())}, int8_caveat(op.takes))

    def _onnxruntime(self, product: str, implementation: str, case: Case) -> Contender:
        from shared.onnx_graphs import bf16_product, int8_product

        threads = self.suite.n_threads
        a = np.ascontiguousarray(case.a.transpose(1, 0, 2)) if product == "heads" else case.a
        made = []
        for _ in range(self.n_copies(product)):
            if product == "up":
                made.append(int8_product(a, case.scale, case.weight, case.w_scale, threads))
            else:
                made.append(bf16_product(a, case.weight, threads))

        def read(i: int) -> dict[str, Array]:
            made[i][0]()
            return {"y": made[i][1]}

        made_of = "MatMulInteger u8s8" if product == "up" else "fp32 MatMul"
        return Contender(implementation, made_of, [call for call, _ in made], read)

    def _numpy(self, product: str, implementation: str, case: Case) -> Contender:
        dtype = case.want.dtype

        def call_of(weight: Array) -> Callable[[], Array]:
            def call() -> Array:
                a = case.a.astype(np.float32)
                y = (a.transpose(1, 0, 2) if product == "heads" else a) @ weight
                if product == "up":
                    y = y * case.scale * case.w_scale.reshape(1, -1)
                return y.astype(dtype)

            return call

        calls = [call_of(case.weight.astype(np.float32)) for _ in range(self.n_copies(product))]
        return Contender(implementation, "fp32 copy, BLAS", calls, lambda i: {"y": calls[i]()})
