"""The closed lists of names that arguments choose from: a type of each for checkers, and its names as a tuple."""

from typing import Literal, get_args

__all__ = [
    "CALL_PHASES",
    "DTYPES",
    "ISA_NAMES",
    "NPU_ARCHS",
    "ORIGINS",
    "PRESETS",
    "QUANT_MODES",
    "CallPhase",
    "Dtype",
    "IsaName",
    "NpuArch",
    "Origin",
    "PresetName",
    "QuantMode",
]

QuantMode = Literal["none", "a", "b", "ab"]
"""What is int8: nothing, the down projections ("a"), the query's up projection and the cache ("b"), or all of them."""
QUANT_MODES: tuple[QuantMode, ...] = get_args(QuantMode)

CallPhase = Literal["decode", "prefill"]
"""What a call is for; the reference operator pairs each with scheduling settings."""
CALL_PHASES: tuple[CallPhase, ...] = get_args(CallPhase)

Dtype = Literal["bf16", "int8"]
"""What a product multiplies."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

PresetName = Literal[
    "default", "prefill_b128_s1", "decode_b4_s2", "decode_b64_s2", "decode_b4_s2_bf16", "decode_b64_s2_bf16"
]
"""The reference operator's tile settings: phase, batch, tokens of a sequence; `_bf16` is the mode without int8."""
PRESETS: tuple[PresetName, ...] = get_args(PresetName)

NpuArch = Literal["DAV_3510", "950", "DAV_2201", "910"]
"""Generations of the NPU, by both of their names."""
NPU_ARCHS: tuple[NpuArch, ...] = get_args(NpuArch)

Origin = Literal["planner", "config", "tiling", "tuned"]
"""Where the blocks of a plan come from."""
ORIGINS: tuple[Origin, ...] = get_args(Origin)

IsaName = Literal["avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "neoni8mm", "neondot", "neon", "portable"]
"""Instruction sets that the kernels are written for, the best first."""
ISA_NAMES: tuple[IsaName, ...] = get_args(IsaName)
