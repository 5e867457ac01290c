"""Names of an attention's tensors in checkpoints: which are read, which are passed over, which are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = [
    "LINEARS",
    "PREFIXES",
    "SCALES",
    "AttentionNames",
    "check_format",
    "check_names",
    "find_attentions",
    "summary",
]

LINEARS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
NORMS = ("q_a_layernorm", "kv_a_layernorm")
SCALES = ("weight_scale_inv", "weight_scale", "scale")  # by which the codes of a weight are multiplied

PREFIXES = (  # N is the layer
    "model.layers.N.self_attn.",
    "language_model.model.layers.N.self_attn.",
    "language_model.layers.N.self_attn.",
    "model.language_model.layers.N.self_attn.",
    "layers.N.self_attn.",
    "layers.N.attn.",  # DeepSeek's own
)
_OWN = {
    "wq_a": "q_a_proj",
    "q_norm": "q_a_layernorm",
    "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj",
}
_PATTERNS = tuple(
    (re.compile(re.escape(prefix).replace("N", "(0|[1-9][0-9]{0,8})") + "(.+)", re.DOTALL), prefix.endswith(".attn."))
    for prefix in PREFIXES
)

# What the prolog does not compute: the product after the attention, the indexer, tables, and by what others quantise
# their caches.
_PASSED = re.compile(
    r"(o_proj|wo|indexer|indexers_proj|rotary_emb)(\..+)?"
    r"|k_proj\.k_scale|v_proj\.v_scale|((attn|attn_mqa|mla_attn|mla_attn\.mla_attn)\.)?[qkv]_scale"
)

# Formats by the first of these that one of the tensors beside a weight, or in its place, matches from its beginning.
_FORMATS = (
    ("bitsandbytes 4-bit", re.compile(r"weight\.(absmax|quant_map|nested|quant_state)")),
    ("bitsandbytes int8", re.compile(r"SCB|weight_format")),
    ("NVFP4", re.compile(r"weight_scale_2|weight_global_scale")),
    ("packed weights of compressed-tensors", re.compile(r"weight_packed")),
    ("MXFP4", re.compile(r"(weight_)?blocks")),
    ("GPTQ", re.compile(r"g_idx")),
    ("AWQ or GPTQ", re.compile(r"qweight|qzeros")),
    ("HQQ", re.compile(r"W_q")),
    ("AQLM", re.compile(r"codebooks")),
    ("W8A8 of ModelSlim, whose activations have static scales,", re.compile(r"deq_scale|quant_bias|input_offset")),
    ("W4A8 of ModelSlim", re.compile(r"weight_scale_second|scale_bias")),
    ("activations with static scales", re.compile(r"(input|activation)_(global_)?(scale|zero_point)")),
    ("asymmetric codes", re.compile(r"weight_zero_point")),
    ("a LoRA adapter", re.compile(r"lora_|base_layer\.")),
)


@dataclass(frozen=True, slots=True)
class AttentionNames:
    """The tensors of one attention: for each module that is read, under transformers' name of it, what is there.

    `modules["q_a_proj"]["weight"]` is the name of that tensor in the file; `others` are the names of all other
    tensors of the attention.
    """

    prefix: str
    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def any_layer(self) -> str:
        """The prefix with N for the layer's number."""
        return re.sub(r"layers\.[0-9]+\.", "layers.N.", self.prefix)

    def module(self, module: str) -> str:
        """The module's name in the file, for errors."""
        own = {ours: theirs for theirs, ours in _OWN.items()} if self.prefix.endswith(".attn.") else {}
        return self.prefix + own.get(module, module)

    def add(self, name: str, rest: str, is_own: bool) -> None:
        """Takes in a tensor that is `rest` behind the prefix; `is_own` where DeepSeek's own names are in use."""
        module, _, kind = rest.partition(".")
        module = _OWN.get(module, "") if is_own else module
        if kind and module in (*LINEARS, *NORMS):
            self.modules.setdefault(module, {})[kind] = name
        else:
            self.others.append(name)


def find_attentions(names: Iterable[str]) -> dict[int, list[AttentionNames]]:
    """The attentions of each layer that has at least one module of those that are read; one for each prefix."""
    found: dict[tuple[int, str], AttentionNames] = {}
    for name in names:
        for pattern, is_own in _PATTERNS if "attn." in name else ():
            match = pattern.fullmatch(name)
            if match:
                layer, rest = int(match[1]), match[2]
                prefix = name[: len(name) - len(rest)]
                found.setdefault((layer, prefix), AttentionNames(prefix)).add(name, rest, is_own)
    layers: dict[int, list[AttentionNames]] = {}
    for (layer, _), attention in sorted(found.items()):
        if attention.modules:
            layers.setdefault(layer, []).append(attention)
    return layers


def check_names(names: AttentionNames, method: str) -> None:
    """Raises `ValueError`, naming module or tensor, unless all is there and nothing else that the prolog would have to
    compute. `method` is what the configuration says of the quantisation, for errors.
    """
    for module, kinds in names.modules.items():
        check_format(names.module(module), kinds, method)
    for module, kinds in names.modules.items():
        known = ("weight", *SCALES, "weight_offset") if module in LINEARS else ("weight",)
        for kind in sorted(kinds.keys() - set(known)):
            raise ValueError(
                f"{kinds[kind]}: expected no tensor of {names.module(module)} but {', '.join(known)}, "
                "got one that the prolog does not apply"
            )
    for name in sorted(names.others):
        if not _PASSED.fullmatch(name[len(names.prefix) :]):
            modules = ", ".join(names.module(module).removeprefix(names.prefix) for module in (*LINEARS, *NORMS))
            raise ValueError(
                f"{name}: expected tensors of {modules}, o_proj and the indexer, "
                "got one that the prolog does not compute"
            )
    for module in (*LINEARS, *NORMS):
        if "weight" not in names.modules.get(module, {}):
            raise ValueError(f"{names.module(module)}.weight: expected a tensor of that name, got none")


def check_format(module: str, kinds: Iterable[str], method: str) -> None:
    """Raises `ValueError` where the tensors of a module, by the last parts of their names, are of a format that is not
    read. `method` is what the configuration says of the quantisation.
    """
    for format_name, pattern in _FORMATS:
        if any(pattern.match(kind) for kind in kinds):
            said = f"; config.quantization_config: {method}" if method else ""
            raise ValueError(
                f"{module}: expected a weight in bf16, float32, float16, FP8 or int8, "
                f"got {format_name} ({', '.join(sorted(kinds))}){said}"
            )


def summary(names: Iterable[str], n_shown: int = 4) -> str:
    """Some of the names, numbers as N, those of attentions first."""
    kinds = {re.sub(r"(?<![^.])[0-9]+(?![^.])", "N", name) for name in names}
    ordered = sorted(kinds, key=lambda kind: (not re.search(r"kv_b|attn|attention", kind), kind))
    more = f" and {len(ordered) - n_shown} other kinds" if len(ordered) > n_shown else ""
    return ", ".join(ordered[:n_shown]) + more if ordered else "no tensors"
