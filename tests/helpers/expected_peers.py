"""Which operators and peers have to be right on this CPU. Others may be left out of a bench, which says why."""

import platform

from shared.torch_machine import cpu_has, onednn_has_vnni, onednn_limit
from suite.product_cases import OPERATORS

from .calls import HAS_CXX

X86 = platform.machine() in ("x86_64", "AMD64")
NO_AVX512 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"}  # limits of oneDNN


def onednn_has_bf16():
    """oneDNN's bf16 linear is built for AVX-512 alone, or for AVX-NE-CONVERT."""
    if cpu_has("avx512_bw", "avx512_vl", "avx512_dq") and onednn_limit() not in NO_AVX512:
        return True
    return cpu_has("avx_ne_convert") and onednn_limit() not in NO_AVX512 - {"AVX2_VNNI_2"}


def int_mm_is_right():
    """`_int_mm` goes to oneDNN on a CPU with VNNI: it is wrong where the environment hides the VNNI of such a CPU."""
    return onednn_has_vnni() or not (cpu_has("avx512_vnni") or cpu_has("avx_vnni"))


def right_operators():
    names = {"bf16 @", "bf16 @ transposed", "fp32 @", "bmm bf16", "bmm bf16 transposed", "bmm fp32"}
    if int_mm_is_right():
        names |= {"_int_mm", "_int_mm transposed"}
    if not X86:
        return names
    names |= {"fbgemm fp16 prepacked", "mkl fp32 prepacked", "onednn fp32 prepacked"}
    if onednn_has_vnni():
        names.add("onednn u8s8 prepacked")
    if onednn_has_bf16():
        names.add("onednn bf16 prepacked")
    return names


RIGHT_OPERATORS = right_operators()
RIGHT_PEERS = {"P2p"} | ({"P3w"} if HAS_CXX else set()) | ({"P1", "P1t", "P2"} if int_mm_is_right() else set())


def right_implementations():
    """By the names of the suite's benches."""
    names = {"numpy", "onnxruntime", "numba", "torch", *(f"torch-{name}" for name in RIGHT_PEERS)}
    for operators in OPERATORS.values():
        names |= {name for name, operator in operators.items() if operator in RIGHT_OPERATORS}
    if X86 and onednn_has_bf16():  # packed only, so that a wrong int8 product does not matter
        names.add("torch-onednn")
    return names
