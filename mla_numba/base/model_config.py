"""What a model's configuration says of its attention: its family, the order of rope columns, reasons to refuse it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_epsilon, check_flag
from .json_file import read_object
from .modes import RopeStyle

__all__ = ["FAMILIES", "MAX_DIM", "Family", "ModelConfig", "is_set", "read_config_file", "read_model_config", "shown"]

MAX_DIM = 2**31 - 1  # products of two, in bytes, stay far below what int64 holds
_MAX_BYTES = 16 << 20  # of a config.json: the longest published ones have some 40 KB


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one `model_type` have in common.

    | field           |                                                                                     |
    |-----------------|-------------------------------------------------------------------------------------|
    | rope_interleave | whether rope columns are pairs, or halves; None: the setting of that name, or true   |
    | rms_norm_eps    | where the configuration has none                                                    |
    | part_of_head    | `partial_rotary_factor` counts the D + R columns of a head, not the R of the rope    |
    | splits_hidden   | a head has `hidden_size // num_attention_heads` values where no `v_head_dim` is given |
    | index_rope      | how rope columns of an indexer come, without `indexer_rope_interleave`               |
    """

    rope_interleave: bool | None = None
    rms_norm_eps: float = 1e-6
    part_of_head: bool = False
    splits_hidden: bool = False
    index_rope: RopeStyle = "half"


FAMILIES: Mapping[str, Family] = {
    "deepseek_v2": Family(rope_interleave=True),
    "deepseek_v3": Family(),
    "deepseek_v32": Family(rope_interleave=True),
    "kimi_k2": Family(),
    "kimi_k25": Family(),
    "glm_moe_dsa": Family(rope_interleave=True, rms_norm_eps=1e-5, index_rope="interleaved"),
    "glm4_moe_lite": Family(rms_norm_eps=1e-5),
    "youtu": Family(),
    "mistral4": Family(part_of_head=True),
    "minicpm3": Family(rope_interleave=False, rms_norm_eps=1e-5, splits_hidden=True),
}
_PLAIN = Family()  # of a configuration that names no model
_OTHERS = {  # models with latents of another attention, and why
    "deepseek_v4": "its keys are compressed over tokens",
    "kimi_linear": "its keys have no rope",
    "longcat_flash": "it multiplies queries and latents by mla_scale_q_lora and mla_scale_kv_lora",
}
_ARCHITECTURES = {
    "DeepseekV2": "deepseek_v2",
    "DeepseekV3": "deepseek_v3",
    "DeepseekV32": "deepseek_v32",
    "DeepseekV4": "deepseek_v4",
    "Glm4MoeLite": "glm4_moe_lite",
    "GlmMoeDsa": "glm_moe_dsa",
    "KimiK25": "kimi_k25",
    "KimiLinear": "kimi_linear",
    "LongcatFlash": "longcat_flash",
    "MiniCPM3": "minicpm3",
    "Mistral4": "mistral4",
    "Youtu": "youtu",
}
_HEAD = re.compile(r"(For[A-Z]\w*|Model)$")  # of an architecture's name: what stands on the model itself

_GATE = "the prolog has no gates"
_LATENT_SCALE = "the prolog multiplies no normalised latent by a factor"
_NORM = "the prolog norms latents, not heads"
_POSITION = "the prolog multiplies no query by a factor of its position"
_COMPRESSED = "the prolog computes keys of single tokens"
_ROPE_ITEM = "scaling belongs into rope_scaling, under the names of transformers"
_REFUSED = {  # settings that change the arithmetic; refused unless they are null, false or 0
    "attention_bias": "the prolog adds no bias",
    "attention_gate": _GATE,
    "attn_output_gate": _GATE,
    "beta_fast": _ROPE_ITEM,
    "beta_slow": _ROPE_ITEM,
    "compress_rates": _COMPRESSED,
    "compress_ratios": _COMPRESSED,
    "gated_attention": _GATE,
    "llama_4_scaling": _POSITION,
    "llama_4_scaling_beta": _POSITION,
    "mla_scale_kv_lora": _LATENT_SCALE,
    "mla_scale_q_lora": _LATENT_SCALE,
    "mla_use_nope": "the prolog rotates the rope columns",
    "mla_use_output_gate": _GATE,
    "mscale": _ROPE_ITEM,
    "mscale_all_dim": _ROPE_ITEM,
    "original_seq_len": _ROPE_ITEM,
    "qk_layernorm": _NORM,
    "qk_norm": _NORM,
    "qkv_bias": "the prolog adds no bias",
    "rope_factor": _ROPE_ITEM,
    "use_output_gate": _GATE,
    "use_qk_layernorm": _NORM,
    "use_qk_norm": _NORM,
}
# Any other setting of that kind is refused as well, so that a new one of a later model is not ignored.
_OF_ATTENTION = re.compile(
    r"(attention|attn|kv|mla|no_rope|nope|q|qk|qkv|query|rope|rotary|softmax|use_(attention|attn|gate|nope|qk|rope)|yarn)_\w+"
)
_KNOWN = {
    "attention_dropout", "attn_implementation", "kv_lora_rank", "q_lora_rank", "qk_head_dim", "qk_nope_head_dim",
    "qk_rope_head_dim", "rope_interleave", "rope_parameters", "rope_scaling", "rope_theta",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A configuration whose attention this prolog computes.

    | field           |                                                                                        |
    |-----------------|----------------------------------------------------------------------------------------|
    | name            | what errors call it: "config", or "config.text_config" where its settings are there     |
    | source          | the mapping or object that has the settings                                            |
    | model_type      | its family in `FAMILIES`; None for a configuration that names no model                   |
    | rope_interleave | whether the rope columns of the weights are interleaved pairs, not two halves           |
    """

    name: str
    source: Any
    model_type: str | None
    rope_interleave: bool

    def get(self, setting: str) -> Any:
        """A setting's value, None where there is none."""
        return _get(self.source, setting)

    @property
    def settings(self) -> Iterable[str]:
        """The names of the settings that it has; of an object, its own attributes."""
        return _names(self.source)

    @property
    def family(self) -> Family:
        """What its `model_type` means."""
        return _PLAIN if self.model_type is None else FAMILIES[self.model_type]

    @property
    def epsilon(self) -> float:
        """Of both norms: `rms_norm_eps`, or what the family has without one.

        Raises `TypeError` or `ValueError` for one that is no number of at least 0, finite in float32.
        """
        given = self.get("rms_norm_eps")
        if given is None:
            return self.family.rms_norm_eps
        check_epsilon(f"{self.name}.rms_norm_eps", given)
        return float(given)

    @property
    def index_rope(self) -> RopeStyle:
        """How the rope columns of an indexer come: as `indexer_rope_interleave` says, or as in the family.

        Raises `TypeError` where that setting is no bool.
        """
        given = self.get("indexer_rope_interleave")
        if given is None:
            return self.family.index_rope
        return "interleaved" if check_flag(f"{self.name}.indexer_rope_interleave", given) else "half"

    @property
    def v_head_dim(self) -> Any:
        """Columns of a head's values, as the configuration has them or its family counts them; None for neither."""
        given, hidden, heads = (self.get(name) for name in ("v_head_dim", "hidden_size", "num_attention_heads"))
        if given is not None or not self.family.splits_hidden:
            return given
        return hidden // heads if type(hidden) is int and type(heads) is int and heads > 0 else None


def read_config_file(path: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model. Raises as `json_file.read_object` does, also above 16 MiB."""
    return read_object(path, _MAX_BYTES)


def read_model_config(config: Any, name: str = "config") -> ModelConfig:
    """What a model's configuration says: a mapping (the parsed `config.json`) or an object with those attributes.

    A model of text and pictures has its settings under `text_config`, as mapping or object. A configuration that names
    no model, by `model_type` or `architectures`, is taken for one of DeepSeek-V3's kind; nothing else has to be there.
    `name` is what errors call the configuration.

    Raises `ValueError` naming the setting for a model that is not in `FAMILIES`, and for every setting that changes
    queries, keys or the cache's rows and that this prolog does not compute, known or not; `TypeError` for a setting of
    another type.
    """
    source, outer = config, None
    nested = _get(config, "text_config")
    if nested is not None:
        source, outer, name = nested, config, f"{name}.text_config"
        if not isinstance(nested, Mapping) and not hasattr(nested, "__dict__"):
            raise TypeError(f"{name}: expected a mapping, got {type(nested).__name__}")
    _refuse_settings(source, name)
    model_type = _model_type(source, name)
    if model_type is None and outer is not None:
        model_type = _model_type(outer, name.removesuffix(".text_config"))
    family = _PLAIN if model_type is None else FAMILIES[model_type]
    _check_widths(source, family, name)
    return ModelConfig(name, source, model_type, _rope_interleave(source, family, model_type, name))


def shown(value: Any) -> str:
    """A value of a configuration as an error shows it: as JSON has it, and short."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return {None: "none", True: "true", False: "false"}[value if value is None else bool(value)]
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r} and {len(value) - 60} more characters"
    if isinstance(value, (list, tuple, Mapping)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _get(source: Any, setting: str) -> Any:
    return source.get(setting) if isinstance(source, Mapping) else getattr(source, setting, None)


def _names(source: Any) -> Iterable[str]:
    """The settings that a configuration has; of an object, its own attributes."""
    names = source if isinstance(source, Mapping) else getattr(source, "__dict__", {})
    return [name for name in names if isinstance(name, str) and not name.startswith("_")]


def is_set(value: Any) -> bool:
    """Whether a setting is more than null, false, 0 or empty."""
    return bool(value) if isinstance(value, (int, float, str, list, tuple, Mapping)) else value is not None


def _refuse_settings(source: Any, name: str) -> None:
    """Raises for a setting that the prolog does not compute, in the configuration or in its rope's."""
    for setting in [*_REFUSED, *_names(source)]:
        value = _get(source, setting)
        if not is_set(value):
            continue
        if setting in _REFUSED:
            _refuse(f"{name}.{setting}", value, _REFUSED[setting])
        if _OF_ATTENTION.fullmatch(setting) and setting not in _KNOWN:
            _refuse(f"{name}.{setting[:60]}", value, "this prolog knows no such setting of an attention")
    for rope in ("rope_scaling", "rope_parameters"):
        scaling = _get(source, rope)
        for setting in ("llama_4_scaling_beta", "mla_use_nope"):
            if isinstance(scaling, Mapping) and is_set(scaling.get(setting)):
                _refuse(f"{name}.{rope}.{setting}", scaling[setting], _REFUSED[setting])


def _refuse(where: str, value: Any, reason: str) -> None:
    wanted = "false" if isinstance(value, (bool, np.bool_)) else "none"
    raise ValueError(f"{where}: expected {wanted} ({reason}), got {shown(value)}")


def _model_type(source: Any, name: str) -> str | None:
    """The family that `model_type` names, or `architectures` without it; None where there is neither."""
    given = _get(source, "model_type")
    if given is not None and not isinstance(given, str):
        raise TypeError(f"{name}.model_type: expected a string, got {type(given).__name__}")
    classes = _get(source, "architectures")
    classes = () if classes is None else classes
    if not isinstance(classes, (list, tuple)) or not all(isinstance(each, str) for each in classes):
        raise TypeError(f"{name}.architectures: expected a list of strings, got {shown(classes)}")
    if given:
        found = _known(given, f"{name}.model_type", given)
    elif classes:
        found = _known(_ARCHITECTURES.get(_HEAD.sub("", classes[0])), f"{name}.architectures", classes[0])
    else:
        return None
    for each in classes:
        other = _ARCHITECTURES.get(_HEAD.sub("", each), found)
        if FAMILIES.get(other) != FAMILIES[found]:
            raise ValueError(f"{name}.architectures: expected those of model_type {found}, got {each!r}")
    return found


def _known(model_type: str | None, where: str, given: str) -> str:
    if model_type in FAMILIES:
        return str(model_type)
    reason = f" ({_OTHERS[model_type]})" if model_type in _OTHERS else ""
    raise ValueError(f"{where}: expected a model that this prolog computes, {', '.join(FAMILIES)}, "
                     f"got {shown(given)}{reason}")  # fmt: skip


def _check_widths(source: Any, family: Family, name: str) -> None:
    """Raises where a head's width is not D + R, or not all R of its rope columns are rotated."""
    nope, rope, width = (_get(source, f"qk_{part}head_dim") for part in ("nope_", "rope_", ""))
    if not all(type(n) is int and 0 < n <= MAX_DIM for n in (nope, rope)):
        return  # whoever needs them says so
    if width is not None and (not isinstance(width, int) or width != nope + rope):
        raise ValueError(
            f"{name}.qk_head_dim: expected {shown(nope + rope)}, qk_nope_head_dim + qk_rope_head_dim, "
            f"got {shown(width)}"
        )
    for where in (None, "rope_scaling", "rope_parameters"):
        place = source if where is None else _get(source, where)
        part = None if place is None else _get(place, "partial_rotary_factor")
        if part is None:
            continue
        whole = nope + rope if family.part_of_head else rope
        if isinstance(part, bool) or not isinstance(part, (int, float)):
            raise TypeError(f"{name}.partial_rotary_factor: expected a number, got {type(part).__name__}")
        if not 0 < part <= 1 or int(whole * part) != rope:
            raise ValueError(
                f"{name}.partial_rotary_factor: expected {shown(rope)} of {shown(whole)} columns, "
                f"all of qk_rope_head_dim, got {shown(part)} of them"
            )


def _rope_interleave(source: Any, family: Family, model_type: str | None, name: str) -> bool:
    given = _get(source, "rope_interleave")
    if given is None:
        return family.rope_interleave is not False
    value = check_flag(f"{name}.rope_interleave", given)
    if family.rope_interleave not in (None, value):
        raise ValueError(
            f"{name}.rope_interleave: expected {shown(family.rope_interleave)}, which {model_type} always has, "
            f"got {shown(value)}"
        )
    return value
