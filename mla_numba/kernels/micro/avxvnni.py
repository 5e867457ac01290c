"""AVX2 with AVX-VNNI: int8 products four k at once by vpdpbusd, bf16 ones as on AVX2."""

from __future__ import annotations

from dataclasses import replace

from ..isa import Isa
from .avx2 import AVX2, round_two
from .vpdpbusd import INT8_VPDPBUSD, KEYS_BY_VPDPBUSD, KEYS_WITHOUT_SIGN

__all__ = ["AVXVNNI"]

# 12 accumulators, 2 of B and a broadcast fill 15 of 16 registers. vpdpbusd wants u8 x s8, hence the offset.
AVXVNNI = Isa(
    "avxvnni",
    lanes=8,
    mr=6,
    nr=16,
    kr_bf16=AVX2.kr_bf16,
    kr_int8=4,
    a_offset=128,
    a_int8_bytes=1,
    features=AVX2.features | {"avxvnni"},
    tune="alderlake",
    bf16_order=AVX2.bf16_order,
    int8=replace(INT8_VPDPBUSD, round_two=round_two),
    int8_keys=KEYS_BY_VPDPBUSD,
    keys_order=KEYS_WITHOUT_SIGN,
    bf16=AVX2.bf16,
)
