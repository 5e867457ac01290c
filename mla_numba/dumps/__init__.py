"""Folders of dumped arguments of the reference's operators: read, checked against the oracle, written.

| operator                         | computes                           | attributes of a `Dump`                     |
|----------------------------------|------------------------------------|--------------------------------------------|
| `mla_prolog_quant`               | the prolog                         | weights, x, cos, sin, cache_index, cache   |
| `lightning_indexer_prolog_quant` | the indexer's prolog               | the same, and q_norm, q_norm_scale         |
| `mla_indexer_prolog_quant`       | both prologs                       | prolog (with those above), indexer, keys   |
| `lightning_indexer_quant`        | the lightning index                | out, cache, sequences                      |
| `sparse_flash_attention_quant`   | sparse attention over int8 or bf16 | out, index, sequences, cache               |
| `sparse_attention_antiquant`     | sparse attention over records      | out, index, sequences, records             |

`sequences` is a tuple of block_table, act_seq and query_start_loc, which may be None. `index` is None where attention
is over all keys.

A file is a `.npy`, a `.bin` with the bare elements (little-endian, in C order), or a `.pt` that `torch.save` wrote.
`mla_numba.dump_names` has the names of files. They lie in the folder or in its subfolders `input`, `output` and
`golden`.

| argument of the prolog            | shape                         | elements                                      |
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

Both prologs in one operator have these arguments with `mla_` before the name, but for token_x, cos, sin and
cache_index, and those of the indexer's prolog with `ip_`; its cache is there called `ip_k_cache`, `ip_k_cache_scale`.

| argument of the indexer's prolog             | shape                          | elements         |
|----------------------------------------------|--------------------------------|------------------|
| x_in, q_norm_in                              | (T, H), (T, Rq)                | bf16, int8       |
| q_norm_scale_in                              | (T, 1)                         | float32, float16 |
| w_qb_in                                      | (Rq, Ni*Di); FRACTAL_NZ        | int8             |
| w_qb_scale_in                                | (Ni*Di, 1), (n,) or (1, n)     | float32, float16 |
| wk_in, w_proj_in                             | (H, Di), (H, Ni); FRACTAL_NZ   | bf16             |
| ln_gamma_k_in, ln_beta_k_in                  | (Di,)                          | bf16             |
| cos_idx_rope_in, sin_idx_rope_in             | (T, R)                         | bf16             |
| hadamard_q_in, hadamard_k_in                 | (Di, Di)                       | bf16             |
| k_int8_in, k_scale_in; k_int8_out, ...       | those of `IndexerCache`        | int8, float16    |
| k_cache_index_in                             | (T,)                           | int64, int32     |
| q_int8_out, q_scale_out, weights_out         | (T, Ni, Di), (T, Ni, 1), (T, Ni) | int8, float16  |

| argument of the lightning index              | shape                              | elements      |
|----------------------------------------------|------------------------------------|---------------|
| idx_query, idx_query_scale, idx_weight       | (T, Ni, Di), (T, Ni), (T, Ni)      | int8, float16 |
| idx_key_cache, idx_key_scale                 | (blocks, BS, 1, Di), (blocks, BS, 1) | int8, float16 |
| act_seq_key, block_table                     | (B,), (B, any)                     | int32, int64  |
| query_start_loc, which may be missing        | (B + 1,)                           | int32, int64  |
| topk_res                                     | (T, 1, k)                          | int32, int64  |

| argument of sparse attention                 | shape                              | elements         |
|----------------------------------------------|------------------------------------|------------------|
| query_nope, query_rope                       | (T * N, C), (T * N, R), or (T, N, any) | bf16             |
| key_nope_2d, key_rope_2d                     | (slots, C), (slots, R), or blocks  | int8 or bf16, bf16 |
| k_nope_scales, none beside bf16              | (slots, 4), or blocks              | float32, float16 |
| nope_cache, of records                       | (slots, 656), or blocks            | int8, uint8      |
| topk_indices                                 | (T, K)                             | int32, int64     |
| block_table, kv_act_seqs, query_start_loc    | as above                           | int32, int64     |
| attention_out                                | (B, S, N, C), or (T, N, C)         | bf16             |

In a `.npy`, bf16 is what `ml_dtypes` saves (`|V2`), uint16 or int16 holding the bits, or float32 whose values bf16
holds. The shape of a `.bin` follows from the dimensions and its size; where that leaves int32 and int64, it is int32.
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
