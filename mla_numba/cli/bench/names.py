"""What the implementations of the suite are, for a reader who does not know their short names."""

from __future__ import annotations

__all__ = ["COMPOSITIONS", "full_name"]

# Of bench/shared/peers.py: how the operators of PyTorch are put together.
COMPOSITIONS = {
    "P1": "eager, weights as they come",
    "P1t": "eager, best weight layout",
    "P2": "eager, float32 weights",
    "P2p": "eager, prepacked weights",
    "P3w": "compiled, prepacked weights",
}
_OURS = {"b": "mode b", "none": "mode none: bf16 alone", "a": "mode a", "ab": "mode ab"}
_OTHERS = {
    **{f"torch-{name}": f"PyTorch {what}" for name, what in COMPOSITIONS.items()},
    "torch": "PyTorch",
    "torch-bf16": "PyTorch @, bf16",
    "torch-onednn": "PyTorch oneDNN",
    "torch-onednn-bf16": "PyTorch oneDNN, bf16 prepacked",
    "torch-onednn-u8s8": "PyTorch oneDNN, int8 prepacked",
    "torch-fbgemm-fp16": "PyTorch FBGEMM, float16 prepacked",
    "torch-mkl-fp32": "PyTorch MKL, float32 prepacked",
    "torch-int_mm": "PyTorch _int_mm, int8",
    "torch-bmm-bf16": "PyTorch bmm, bf16",
    "torch-bmm-fp32": "PyTorch bmm, float32",
    "torch-index-fp32": "PyTorch @, float32, and topk",
    "torch-index-int8": "PyTorch _int_mm, int8, and topk",
    "torch-attention-fp32": "PyTorch @, float32",
    "torch-attention-mixed": "PyTorch @, scores float32, latents bf16",
    "torch-attention-sdpa": "PyTorch scaled_dot_product_attention",
    "onnxruntime": "ONNX Runtime",
    "numpy": "NumPy",
    "numba": "Numba",
}


def full_name(name: str) -> str:
    """The implementation in words; a name that is not known stays as it is."""
    library, _, mode = name.partition("-")
    if library == "mla_numba" and mode in _OURS:
        return f"{library}, {_OURS[mode]}"
    return _OTHERS.get(name, name)
