"""Folders of dumped arguments of the reference operator: read, checked against the oracle, written.

A file is a `.npy`, a `.bin` with the bare elements (little-endian, in C order), or a `.pt` that `torch.save` wrote.
`mla_numba.dump_names` has the names of files. They lie in the folder or in its subfolders `input`, `output` and
`golden`.

| argument                          | shape                         | elements                                      |
|-----------------------------------|-------------------------------|-----------------------------------------------|
| token_x                           | (T, H), or (B, S, H)          | bf16                                          |
| w_dq, w_dkv_kr                    | (H, Rq), (H, C+R); FRACTAL_NZ | bf16, int8 with scales                        |
| w_uq_qr                           | (Rq, N*(D+R)); FRACTAL_NZ     | bf16, int8 with dequant_scale                 |
| w_uk, gamma_cq, gamma_ckv         | (N, D, C), (Rq,), (C,)        | bf16                                          |
| dequant_scale and the scales of a | (n,), (n, 1) or (1, n)        | float32, float16; a file of no elements: none |
| cos, sin                          | (T, R), or (B, S, R)          | bf16                                          |
| cache_index                       | (T,), or (B, S)               | int64, int32                                  |
| kv_cache, kr_cache, k_scale_cache | those of `PagedCache`         | int8 or bf16, bf16, float32 or float16        |
| query_nope_out, query_rope_out    | (T, N, C), (T, N, R)          | bf16                                          |
| q_norm_out, q_norm_scale_out      | (T, Rq), (T, 1)               | int8 or bf16, float32 or float16              |

In a `.npy`, bf16 is what `ml_dtypes` saves (`|V2`), uint16 or int16 holding the bits, or float32 whose values bf16
holds. The shape of a `.bin` follows from the dimensions and its size.
"""

from .call import DumpedOutput, ListsAgreement
from .check import check_dump
from .read import Dump, read_dump
from .settings import DumpSettings, dump_settings
from .write import FORMATS, write_dump

__all__ = [
    "FORMATS",
    "Dump",
    "DumpSettings",
    "DumpedOutput",
    "ListsAgreement",
    "check_dump",
    "dump_settings",
    "read_dump",
    "write_dump",
]
