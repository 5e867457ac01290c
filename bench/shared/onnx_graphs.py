"""ONNX models of the prolog's products and of the whole prolog in quant mode "b", and how ONNX Runtime runs them.

Models are built here, without files. bf16 products are fp32 ones on fp32 copies of the weights, for ONNX Runtime has no
bf16 product on a CPU; int8 ones are `MatMulInteger` with activations as code + 128, the kind that CPUs have
instructions for. Letters: T tokens, H hidden, Rq q_lora_rank, N heads, D nope, R rope, C kv_lora_rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mla_numba import MlaWeights, PagedCache, PrologOutput
from mla_numba.oracle.inputs import Inputs

__all__ = ["bf16_product", "int8_product", "prepare"]

Array = np.ndarray[Any, Any]
OPSET = 21
IR_VERSION = 10
N_GROUPS = 4  # quantisation groups of the latent key
_TYPES = {
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int8): TensorProto.INT8,
}
_BF16, _FP32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)


@cache
def _share_threads(n_threads: int) -> None:
    """One pool for all sessions: threads of their own would still spin when the next weight set's session runs."""
    ort.set_global_thread_pool_sizes(n_threads, 1)


class _Graph:
    """A graph under construction: each method adds a node and gives the name of its result."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, values: Any) -> str:
        """Values that the model holds."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One operator with one result."""
        return self.add_many(kind, 1, *inputs, **attributes)[0]

    def add_many(self, kind: str, n_outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """One operator with several results."""
        names = [f"n{len(self._nodes)}_{i}" for i in range(n_outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def cast(self, x: str, dtype: int) -> str:
        """Another type."""
        return self.add("Cast", x, to=dtype)

    def rounded(self, x: str) -> str:
        """fp32 values rounded to bf16, in fp32."""
        return self.cast(self.cast(x, TensorProto.BFLOAT16), TensorProto.FLOAT)

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Parts of the last axis."""
        return self.add_many("Split", len(sizes), x, self.constant(np.array(sizes, np.int64)), axis=-1)

    def reshape(self, x: str, *shape: int) -> str:
        """The same values in another shape."""
        return self.add("Reshape", x, self.constant(np.array(shape, np.int64)))

    def rms_norm(self, x: str, gamma: Array, eps: float) -> str:
        """RMSNorm of the last axis, rounded to bf16."""
        mean = self.add("ReduceMean", self.add("Mul", x, x), self.constant(np.array([-1])), keepdims=1)
        r = self.add("Reciprocal", self.add("Sqrt", self.add("Add", mean, self.constant(np.float32(eps)))))
        return self.rounded(self.add("Mul", self.add("Mul", x, r), self.constant(gamma.astype(np.float32))))

    def quant(self, y: str) -> tuple[str, str]:
        """fp32 codes and the scale of each row of the last axis."""
        amax = self.add("ReduceMax", self.add("Abs", y), self.constant(np.array([-1])), keepdims=1)
        scale_quant = self.add("Div", self.constant(np.float32(127)), amax)
        return self.add("Round", self.add("Mul", y, scale_quant)), self.add("Reciprocal", scale_quant)

    def matmul_codes(self, codes: str, scale: str, weight: Array, w_scale: Array) -> str:
        """fp32 codes (T, K) with a scale a row, times int8 (K, N): fp32 (T, N)."""
        shifted = self.cast(self.add("Add", codes, self.constant(np.float32(128))), TensorProto.UINT8)
        acc = self.add("MatMulInteger", shifted, self.constant(weight), self.constant(np.uint8(128)))
        real = self.add("Mul", self.cast(acc, TensorProto.FLOAT), scale)
        return self.add("Mul", real, self.constant(np.asarray(w_scale, np.float32).reshape(1, -1)))

    def rope(self, x: str, cos: Sequence[str], sin: Sequence[str]) -> str:
        """Interleaved pairs rotated to halves; cos and sin by halves."""
        x1, x2 = (self.add("Slice", x, *(self.constant(np.array([v])) for v in (i, 2**31 - 1, -1, 2))) for i in (0, 1))
        first = self.add("Sub", self.add("Mul", x1, cos[0]), self.add("Mul", x2, sin[0]))
        second = self.add("Add", self.add("Mul", x2, cos[1]), self.add("Mul", x1, sin[1]))
        return self.cast(self.add("Concat", first, second, axis=-1), TensorProto.BFLOAT16)

    def session(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, tuple[str, Array]], n_threads: int
    ) -> Callable[[], None]:
        """A call that runs the graph from the memory of `inputs` into that of `outputs`, each name of the graph's own
        with its array.
        """
        for name, (node, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [node], [name]))
        graph = helper.make_graph(
            self._nodes,
            "prolog",
            [helper.make_tensor_value_info(n, _TYPES[a.dtype], a.shape) for n, a in inputs.items()],
            [helper.make_tensor_value_info(n, _TYPES[a.dtype], a.shape) for n, (_, a) in outputs.items()],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        _share_threads(n_threads)
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        # Where the CPU has no VNNI its u8 x s8 saturates: then u8 x u8, which is slower and right.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in inputs.items():
            where = (name, "cpu", 0, _TYPES[array.dtype], array.shape, array.__array_interface__["data"][0])
            binding.bind_input(*where)
        for name, (_, array) in outputs.items():
            where = (name, "cpu", 0, _TYPES[array.dtype], array.shape, array.__array_interface__["data"][0])
            binding.bind_output(*where)
        held = (dict(inputs), dict(outputs))  # the session knows addresses only

        def run() -> None:
            session.run_with_iobinding(binding)

        run.held = held  # type: ignore[attr-defined]  # keeps them alive as long as the call
        return run


def bf16_product(x: Array, weight: Array, n_threads: int) -> tuple[Callable[[], None], Array]:
    """A call that multiplies x (..., T, K) by weight (..., K, N), both bf16, and the bf16 array that it writes."""
    g = _Graph()
    product = g.add("MatMul", g.cast("x", TensorProto.FLOAT), g.constant(weight.astype(np.float32)))
    y = np.empty((*x.shape[:-1], weight.shape[-1]), x.dtype)
    return g.session({"x": x}, {"y": (g.cast(product, TensorProto.BFLOAT16), y)}, n_threads), y


def int8_product(
    codes: Array, scale: Array, weight: Array, w_scale: Array, n_threads: int
) -> tuple[Callable[[], None], Array]:
    """A call that multiplies codes (T, K) by weight (K, N), both int8, scales by (T, 1) and (N,) fp32, and the bf16
    array that it writes.
    """
    g = _Graph()
    product = g.matmul_codes(g.cast("codes", TensorProto.FLOAT), "scale", weight, w_scale)
    y = np.empty((len(codes), weight.shape[1]), _BF16)
    outputs = {"y": (g.cast(product, TensorProto.BFLOAT16), y)}
    return g.session({"codes": codes, "scale": scale}, outputs, n_threads), y


def prepare(
    weights: MlaWeights, inputs: Inputs, cache: PagedCache, n_threads: int
) -> tuple[Callable[[], None], PrologOutput]:
    """A call that computes the prolog of these arrays, and its outputs.

    Cache rows leave the graph as outputs and are put in their slots by NumPy; slots have to be distinct and 0 or more.
    query_nope is a transposed view.
    """
    if weights.quant != "b" or weights.smooth_scales_cq is not None:
        raise ValueError(f"weights: expected quant 'b' without smooth scales, got quant {weights.quant!r}")
    d, t, slots = weights.dims, len(inputs.x), inputs.cache_index
    rope_dim, half, latent_dim = d.qk_rope_head_dim, d.qk_rope_head_dim // 2, d.kv_lora_rank
    g = _Graph()
    w_down = np.concatenate([weights.w_dq, weights.w_dkv_kr], axis=1).astype(np.float32)
    down = g.rounded(g.add("MatMul", g.cast("x", TensorProto.FLOAT), g.constant(w_down)))
    q_a, latent, key = g.split(down, (d.q_lora_rank, latent_dim, rope_dim))
    codes, scale = g.quant(g.rms_norm(q_a, weights.gamma_cq, weights.epsilon_cq))
    query = g.rounded(g.matmul_codes(codes, scale, weights.w_uq_qr, weights.dequant_scale_w_uq_qr))
    query = g.reshape(query, t, d.num_attention_heads, d.q_head_dim)
    nope, rope = g.split(query, (d.qk_nope_head_dim, rope_dim))
    w_uk = g.constant(weights.w_uk.astype(np.float32))
    query_nope = g.cast(g.add("MatMul", g.add("Transpose", nope, perm=(1, 0, 2)), w_uk), TensorProto.BFLOAT16)
    cos, sin = (g.split(g.cast(name, TensorProto.FLOAT), (half, half)) for name in ("cos", "sin"))
    cos3, sin3 = ([g.reshape(part, t, 1, half) for part in parts] for parts in (cos, sin))
    k_norm = g.reshape(g.rms_norm(latent, weights.gamma_ckv, weights.epsilon_ckv), t, N_GROUPS, -1)
    k_codes, k_scale = g.quant(k_norm)
    shapes = {
        "query_nope": (query_nope, _BF16, (d.num_attention_heads, t, latent_dim)),
        "query_rope": (g.rope(rope, cos3, sin3), _BF16, (t, d.num_attention_heads, rope_dim)),
        "q_norm": (g.cast(codes, TensorProto.INT8), np.dtype(np.int8), (t, d.q_lora_rank)),
        "q_norm_scale": (scale, _FP32, (t, 1)),
        "kv": (g.reshape(g.cast(k_codes, TensorProto.INT8), t, latent_dim), np.dtype(np.int8), (t, latent_dim)),
        "kr": (g.rope(key, cos, sin), _BF16, (t, rope_dim)),
        "k_scale": (g.reshape(k_scale, t, N_GROUPS), _FP32, (t, N_GROUPS)),
    }
    outputs = {name: (node, np.empty(shape, dtype)) for name, (node, dtype, shape) in shapes.items()}
    run = g.session({"x": inputs.x, "cos": inputs.cos, "sin": inputs.sin}, outputs, n_threads)
    rows = [(getattr(cache, name).reshape(-1, outputs[name][1].shape[1]), outputs[name][1]) for name in ("kv", "kr")]
    rows.append((cache.k_scale.reshape(-1, N_GROUPS), outputs["k_scale"][1]))

    def call() -> None:
        run()
        for flat, new in rows:
            flat[slots] = new

    arrays = {name: outputs[name][1] for name in PrologOutput._fields}
    return call, PrologOutput(**arrays | {"query_nope": arrays["query_nope"].transpose(1, 0, 2)})
