"""Bit-exact CPU kernels for the quantised MLA prolog of DeepSeek-V3.2."""

from tiling import CpuTiling, MlaTileConfig, PassOptions, RopeTileShapeConfig, options_list, pass_options, preset

from ._version import __version__
from .cache import PagedCache
from .dims import MlaDims
from .ops import (
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
from .packed import PackedWeights
from .prolog import (
    MlaProlog,
    PrologOutput,
    mla_prolog_quant_compute,
    mla_prolog_quant_d,
    mla_prolog_quant_p,
    pre_compute_2d,
)
from .weights import MlaWeights

__all__ = [
    "CpuTiling",
    "MlaDims",
    "MlaProlog",
    "MlaQuantInputs",
    "MlaTileConfig",
    "MlaWeights",
    "PackedWeights",
    "PagedCache",
    "PassOptions",
    "PrologOutput",
    "RopeTileShapeConfig",
    "__version__",
    "dequant",
    "dequant_asymmetric",
    "k_nope_quant",
    "mla_prolog_quant_compute",
    "mla_prolog_quant_d",
    "mla_prolog_quant_p",
    "options_list",
    "pass_options",
    "pre_compute_2d",
    "preset",
    "quant",
    "rms_norm",
    "rope_3d_v2",
    "rope_v2",
    "rotate_half",
    "scalar_div",
]
