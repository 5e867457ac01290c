"""The reference operator's single operations; they live in `pypto`."""

from .pypto.operations import (
    MlaQuantInputs,
    dequant,
    dequant_asymmetric,
    k_nope_quant,
    quant,
    rms_norm,
    rope_3d_v2,
    rope_v2,
    rotate_half,
    scalar_div,
)

__all__ = [
    "MlaQuantInputs",
    "dequant",
    "dequant_asymmetric",
    "k_nope_quant",
    "quant",
    "rms_norm",
    "rope_3d_v2",
    "rope_v2",
    "rotate_half",
    "scalar_div",
]
