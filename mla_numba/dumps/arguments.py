"""The arguments of each operator that a folder of dumps may hold: what they are called, in the operator's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from ..base.modes import DumpOperator

__all__ = ["ARGUMENTS", "Argument", "Arguments", "word_of"]


class Argument(NamedTuple):
    """An array that an operator takes or gives.

    `key` is this library's name for it, `name` the reference operator's. `others` are further names of files, the first
    of them that of the reference's test data. An argument that is `optional` may be missing, and one that `may_be_nz`
    be in FRACTAL_NZ.
    """

    key: str
    name: str
    others: tuple[str, ...]
    optional: bool = False
    may_be_nz: bool = False


@dataclass(frozen=True)
class Arguments:
    """All arguments of an operator: `inputs` and `outputs` are counted in this order, others are not."""

    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    unnumbered_inputs: tuple[Argument, ...] = ()
    unnumbered_outputs: tuple[Argument, ...] = ()

    @property
    def all_inputs(self) -> tuple[Argument, ...]:
        """Those with a number, and the others."""
        return self.inputs + self.unnumbered_inputs

    @property
    def all_outputs(self) -> tuple[Argument, ...]:
        """Those with a number, and the others."""
        return self.outputs + self.unnumbered_outputs

    @cached_property
    def by_key(self) -> dict[str, Argument]:
        """Each argument by its key."""
        return {argument.key: argument for argument in self.all_inputs + self.all_outputs}

    @cached_property
    def by_name(self) -> dict[str, Argument]:
        """Each argument by its name."""
        return {argument.name: argument for argument in self.all_inputs + self.all_outputs}

    @cached_property
    def input_words(self) -> dict[str, Argument]:
        """What inputs are called, as `word_of` shortens it; the first argument of a name has it."""
        words: dict[str, Argument] = {}
        for argument in self.all_inputs:
            for name in (argument.name, argument.name.removesuffix("_in"), *argument.others):
                words.setdefault(word_of(name), argument)
        return words

    @cached_property
    def output_words(self) -> dict[str, Argument]:
        """The same of outputs, without "out" at the end."""
        words: dict[str, Argument] = {}
        for argument in self.all_outputs:
            for name in (argument.name, *argument.others):
                words.setdefault(word_of(name).removesuffix("out"), argument)
        return words


def word_of(name: str) -> str:
    """A name in lower case, without the signs between its words."""
    return "".join(c for c in name.lower() if c.isascii() and c.isalnum())


_PROLOG = Arguments(
    inputs=(
        Argument("x", "token_x", ("x",)),
        Argument("w_dq", "w_dq", ("wDq", "weight_dq"), may_be_nz=True),
        Argument("w_uq_qr", "w_uq_qr", ("wUqQr", "weight_uq_qr"), may_be_nz=True),
        Argument("dequant_scale", "dequant_scale", ("w_qb_scale", "dequant_scale_w_uq_qr"), optional=True),
        Argument("w_uk", "w_uk", ("wUk", "weight_uk")),
        Argument("w_dkv_kr", "w_dkv_kr", ("wDkvKr", "weight_dkv_kr"), may_be_nz=True),
        Argument("gamma_cq", "gamma_cq", ("gamma_cq", "rmsnorm_gamma_cq")),
        Argument("gamma_ckv", "gamma_ckv", ("gamma_ckv", "rmsnorm_gamma_ckv")),
        Argument("cos", "cos", ("cos", "rope_cos")),
        Argument("sin", "sin", ("sin", "rope_sin")),
        Argument("cache_index", "cache_index", ("kv_len",), optional=True),
        Argument("kv_cache", "kv_cache", ("kv_cache", "kv_cache_ref")),
        Argument("kr_cache", "kr_cache", ("kr_cache", "kr_cache_ref")),
        Argument("k_scale_cache", "k_scale_cache", ("kv_quant_scale_cache",), optional=True),
    ),
    outputs=(
        Argument("q_norm_out", "q_norm_out", ("rms_norm", "q_norm")),
        Argument(
            "q_norm_scale_out", "q_norm_scale_out", ("rms_norm_scale", "q_norm_scale", "dequant_scale_q_norm"),
            optional=True,
        ),
        Argument("query_nope_out", "query_nope_out", ("q", "query_nope", "q_nope", "query")),
        Argument("query_rope_out", "query_rope_out", ("q_rope", "query_rope")),
        Argument("kv_cache_out", "kv_cache_out", ("kv_cache", "kv")),
        Argument("kr_cache_out", "kr_cache_out", ("kr_cache", "kr")),
        Argument("k_scale_cache_out", "k_scale_cache_out", ("kv_quant_scale_cache", "k_scale_cache"), optional=True),
    ),
    # Of other modes: they have no place in the operator's order.
    unnumbered_inputs=(
        Argument("dequant_scale_w_dq", "dequant_scale_w_dq", ("w_qa_scale",), optional=True),
        Argument("dequant_scale_w_dkv_kr", "dequant_scale_w_dkv_kr", ("w_kva_scale",), optional=True),
        Argument("smooth_scales_cq", "smooth_scales_cq", ("smooth_cq",), optional=True),
    ),
)  # fmt: skip

_INDEXER_WEIGHTS = (
    Argument("w_qb", "w_qb_in", ("w_idx_qb", "wq_b", "wq_b_in"), may_be_nz=True),
    Argument("w_qb_scale", "w_qb_scale_in", ("w_idx_qb_scale",)),
    Argument("wk", "wk_in", ("w_idx_k",), may_be_nz=True),
    Argument("w_proj", "w_proj_in", ("w_idx_proj", "weights_proj"), may_be_nz=True),
    Argument("ln_gamma_k", "ln_gamma_k_in", ("layer_norm_gamma",)),
    Argument("ln_beta_k", "ln_beta_k_in", ("layer_norm_beta",)),
)
_HADAMARD = (
    Argument("hadamard_q", "hadamard_q_in", ("hadamard_q",)),
    Argument("hadamard_k", "hadamard_k_in", ("hadamard_k",)),
)
_INDEXER_OUTPUTS = (
    Argument("index_query_out", "q_int8_out", ("query",)),
    Argument("index_query_scale_out", "q_scale_out", ("query_scale",)),
    Argument("index_k_out", "k_int8_out", ("idx_k_cache", "k_cache")),
    Argument("index_k_scale_out", "k_scale_out", ("idx_k_scale_cache", "k_scale_cache")),
    Argument("index_weights_out", "weights_out", ("weights",)),
)
_INDEXER_PROLOG = Arguments(
    inputs=(
        Argument("x", "x_in", ("token_x",)),
        Argument("q_norm", "q_norm_in", ("q_norm",)),
        Argument("q_norm_scale", "q_norm_scale_in", ("q_norm_scale",)),
        *_INDEXER_WEIGHTS,
        Argument("cos", "cos_idx_rope_in", ("cos_idx_rope", "cos")),
        Argument("sin", "sin_idx_rope_in", ("sin_idx_rope", "sin")),
        *_HADAMARD,
        Argument("index_k", "k_int8_in", ("idx_k_cache", "k_cache")),
        Argument("index_k_scale", "k_scale_in", ("idx_k_scale_cache", "k_scale_cache")),
        Argument("cache_index", "k_cache_index_in", ("idx_k_cache_index", "cache_index")),
    ),
    outputs=_INDEXER_OUTPUTS,
)


def _in_both(part: str, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Arguments as the operator of both prologs calls them: with `part` before the name."""
    return tuple(a._replace(name=f"{part}_{a.name}", others=(*a.others, a.name)) for a in arguments)


def _both_prologs() -> Arguments:
    shared = ("x", "cos", "sin", "cache_index")
    inputs = [a if a.key in shared else _in_both("mla", (a,))[0] for a in _PROLOG.inputs]
    # The test data's "query" is the indexer's here. The operator's caches are quantised and paged.
    outputs = [
        a._replace(others=tuple(n for n in a.others if n != "query"), optional=False)
        for a in _in_both("mla", _PROLOG.outputs)
    ]
    norm = ("q_norm_out", "q_norm_scale_out")
    return Arguments(
        inputs=(
            *(a._replace(optional=False) for a in inputs),
            *_in_both("ip", _INDEXER_WEIGHTS + _HADAMARD),
            Argument("index_k", "ip_k_cache", ("idx_k_cache", "ip_k_int8_in")),
            Argument("index_k_scale", "ip_k_cache_scale", ("idx_k_scale_cache", "ip_k_scale_in")),
        ),
        outputs=(*(a for a in outputs if a.key not in norm), *_in_both("ip", _INDEXER_OUTPUTS)),
        unnumbered_inputs=_PROLOG.unnumbered_inputs,
        # Of the reference's function, but not of its compiled operator.
        unnumbered_outputs=tuple(a._replace(optional=True) for a in outputs if a.key in norm),
    )


_STARTS = Argument("query_start_loc", "query_start_loc", ("query_start_loc",), optional=True)
_INDEX = Arguments(
    inputs=(
        Argument("query", "idx_query", ("query",)),
        Argument("query_scale", "idx_query_scale", ("q_scale", "query_scale")),
        Argument("index_k", "idx_key_cache", ("key", "idx_k_cache", "k_cache")),
        Argument("index_k_scale", "idx_key_scale", ("k_scale", "idx_k_scale_cache", "k_scale_cache")),
        Argument("weights", "idx_weight", ("weights",)),
        Argument("act_seq", "act_seq_key", ("act_seq",)),
        Argument("block_table", "block_table", ("block_table",)),
    ),
    outputs=(Argument("index_out", "topk_res", ("topk_res", "index", "topk_indices")),),
    unnumbered_inputs=(_STARTS,),
)
_QUERIES = (
    Argument("query_nope", "query_nope", ("q_nope",)),
    Argument("query_rope", "query_rope", ("q_rope",)),
)
_KEYS = (
    Argument("kv_cache", "key_nope_2d", ("kn", "kn_quant", "key_nope", "kv_cache")),
    Argument("kr_cache", "key_rope_2d", ("kr", "key_rope", "kr_cache")),
    Argument("k_scale_cache", "k_nope_scales", ("kn_scales", "k_scale_cache"), optional=True),
)
_RECORDS = (Argument("records", "nope_cache", ("nope_cache", "nope_cache_2d", "records")),)
_LISTS = (
    Argument("index", "topk_indices", ("topk_indices", "index"), optional=True),
    Argument("block_table", "block_table", ("block_table",)),
    Argument("act_seq", "kv_act_seqs", ("actual_seq", "kv_actual_seqs", "act_seq", "act_seqs")),
)
_LATENT = (Argument("latent_out", "attention_out", ("atten_out", "attn", "latent")),)

ARGUMENTS: Mapping[DumpOperator, Arguments] = MappingProxyType(
    {
        "mla_prolog_quant": _PROLOG,
        "lightning_indexer_prolog_quant": _INDEXER_PROLOG,
        "mla_indexer_prolog_quant": _both_prologs(),
        "lightning_indexer_quant": _INDEX,
        "sparse_flash_attention_quant": Arguments(_QUERIES + _KEYS + _LISTS, _LATENT, (_STARTS,)),
        "sparse_attention_antiquant": Arguments(_QUERIES + _RECORDS + _LISTS, _LATENT, (_STARTS,)),
    }
)
