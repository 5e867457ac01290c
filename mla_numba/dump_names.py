"""The names of dumped files, and the order in which they are numbered.

Inputs and outputs of an operator are each counted from 0 in this order, and in one count of all arguments outputs
follow the inputs: those of `mla_prolog_quant` are 0 to 13, and 0 to 6 or 14 to 20.

- `mla_prolog_quant`: token_x, w_dq, w_uq_qr, dequant_scale, w_uk, w_dkv_kr, gamma_cq, gamma_ckv, cos, sin,
  cache_index, kv_cache, kr_cache, k_scale_cache; outputs q_norm_out, q_norm_scale_out, query_nope_out,
  query_rope_out, kv_cache_out, kr_cache_out, k_scale_cache_out.
- `lightning_indexer_prolog_quant`: x_in, q_norm_in, q_norm_scale_in, w_qb_in, w_qb_scale_in, wk_in, w_proj_in,
  ln_gamma_k_in, ln_beta_k_in, cos_idx_rope_in, sin_idx_rope_in, hadamard_q_in, hadamard_k_in, k_int8_in, k_scale_in,
  k_cache_index_in; outputs q_int8_out, q_scale_out, k_int8_out, k_scale_out, weights_out.
- `mla_indexer_prolog_quant`: token_x, mla_w_dq, mla_w_uq_qr, mla_dequant_scale, mla_w_uk, mla_w_dkv_kr, mla_gamma_cq,
  mla_gamma_ckv, cos, sin, cache_index, mla_kv_cache, mla_kr_cache, mla_k_scale_cache, ip_w_qb_in, ip_w_qb_scale_in,
  ip_wk_in, ip_w_proj_in, ip_ln_gamma_k_in, ip_ln_beta_k_in, ip_hadamard_q_in, ip_hadamard_k_in, ip_k_cache,
  ip_k_cache_scale; outputs mla_query_nope_out, mla_query_rope_out, mla_kv_cache_out, mla_kr_cache_out,
  mla_k_scale_cache_out, ip_q_int8_out, ip_q_scale_out, ip_k_int8_out, ip_k_scale_out, ip_weights_out.
- `lightning_indexer_quant`: idx_query, idx_query_scale, idx_key_cache, idx_key_scale, idx_weight, act_seq_key,
  block_table; outputs topk_res.
- `sparse_flash_attention_quant`: query_nope, query_rope, key_nope_2d, key_rope_2d, k_nope_scales, topk_indices,
  block_table, kv_act_seqs; outputs attention_out.
- `sparse_attention_antiquant`: query_nope, query_rope, nope_cache, topk_indices, block_table, kv_act_seqs; outputs
  attention_out.

The module itself is `mla_numba.dumps.names`.
"""

from .dumps.names import INPUTS, NZ_WEIGHTS, OUTPUTS, SCALES, STYLES, FileMeaning, meaning_of, name_in

__all__ = ["INPUTS", "NZ_WEIGHTS", "OUTPUTS", "SCALES", "STYLES", "FileMeaning", "meaning_of", "name_in"]
