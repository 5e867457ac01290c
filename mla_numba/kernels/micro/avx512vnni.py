"""AVX-512 with VNNI: int8 products four k at once by vpdpbusd, bf16 ones by multiply-adds."""

from __future__ import annotations

from ..isa import Isa
from .avx512 import AVX512
from .multiply_adds import bf16_multiply_adds
from .vpdpbusd import INT8_VPDPBUSD, KEYS_BY_VPDPBUSD, KEYS_WITHOUT_SIGN

__all__ = ["AVX512VNNI"]

# vpdpbusd wants u8 x s8, hence the offset. 10 rows reach the peak, 12 come no nearer to it.
AVX512VNNI = Isa(
    "avx512vnni",
    lanes=16,
    mr=10,
    nr=32,
    kr_bf16=2,
    kr_int8=4,
    a_offset=128,
    a_int8_bytes=1,
    features=AVX512.features | {"avx512vnni"},
    int8=INT8_VPDPBUSD,
    int8_keys=KEYS_BY_VPDPBUSD,
    keys_order=KEYS_WITHOUT_SIGN,
    bf16=bf16_multiply_adds(a_in_pairs=False),
)
