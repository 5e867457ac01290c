"""The closed lists of names that arguments choose from: a type of each for checkers, and its names as a tuple."""

from typing import Literal, get_args

__all__ = [
    "CALL_PHASES",
    "DTYPES",
    "NPU_ARCHS",
    "ORIGINS",
    "PRESETS",
    "QUANT_MODES",
    "CallPhase",
    "Dtype",
    "NpuArch",
    "Origin",
    "PresetName",
    "QuantMode",
]

# What is int8: nothing, the down projections (a), the query's up projection and the cache (b), or all of them.
QuantMode = Literal["none", "a", "b", "ab"]
QUANT_MODES: tuple[QuantMode, ...] = get_args(QuantMode)

# What a call is for; the reference operator pairs each with scheduling settings.
CallPhase = Literal["decode", "prefill"]
CALL_PHASES: tuple[CallPhase, ...] = get_args(CallPhase)

# What a product multiplies.
Dtype = Literal["bf16", "int8"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

# The reference operator's tile settings: phase, batch, tokens of a sequence; _bf16 is the mode without int8.
PresetName = Literal[
    "default", "prefill_b128_s1", "decode_b4_s2", "decode_b64_s2", "decode_b4_s2_bf16", "decode_b64_s2_bf16"
]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)

# Generations of the NPU, by both of their names.
NpuArch = Literal["DAV_3510", "950", "DAV_2201", "910"]
NPU_ARCHS: tuple[NpuArch, ...] = get_args(NpuArch)

# Where the blocks of a plan come from.
Origin = Literal["planner", "config", "tiling", "tuned"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
