"""Which argument of the reference operator a dumped file holds, by its name or by its number.

The order is that of `mla_prolog_quant_p`: inputs 0 to 13, outputs 0 to 6 (14 to 20 in one count of all arguments).

| form                                      | example                                     | in use by                  |
|-------------------------------------------|---------------------------------------------|----------------------------|
| the argument's name                       | `token_x.bin`, `kv_cache_out.npy`           | the reference operator     |
| the names of its test data                | `x.bin`, `wUqQr.bin`, `rms_norm_golden.bin` | pypto's golden generators  |
| the names of the aclnn operator           | `weightUqQr.bin`, `ropeCos.bin`             | aclnnMlaProlog             |
| a number, alone or before a name          | `0.npy`, `0_token_x.npy`                    | scripts that count         |
| `input` or `output` and a number or name  | `input_0.bin`, `output/output_3.bin`        | samples of Ascend C        |
| the same at the end of an operator's name | `Op.name.3.7.1700000000000000.input.0.npy`  | msaccucmp, msprobe         |

Case and the signs between words don't count. `_golden` marks the output of another oracle, `nz_` or `_nz` a weight in
FRACTAL_NZ. A name decides where a number stands before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tiling.check import check_choice, check_str

from ..base.modes import DUMP_STYLES, DumpStyle

__all__ = ["INPUTS", "NZ_WEIGHTS", "OUTPUTS", "SCALES", "STYLES", "FileMeaning", "meaning_of", "name_in"]

# Argument: its name in the data of pypto's tests, and further names.
INPUTS: dict[str, tuple[str, ...]] = {
    "token_x": ("x",),
    "w_dq": ("wDq", "weight_dq"),
    "w_uq_qr": ("wUqQr", "weight_uq_qr"),
    "dequant_scale": ("w_qb_scale", "dequant_scale_w_uq_qr"),
    "w_uk": ("wUk", "weight_uk"),
    "w_dkv_kr": ("wDkvKr", "weight_dkv_kr"),
    "gamma_cq": ("gamma_cq", "rmsnorm_gamma_cq"),
    "gamma_ckv": ("gamma_ckv", "rmsnorm_gamma_ckv"),
    "cos": ("cos", "rope_cos"),
    "sin": ("sin", "rope_sin"),
    "cache_index": ("kv_len",),
    "kv_cache": ("kv_cache", "kv_cache_ref"),
    "kr_cache": ("kr_cache", "kr_cache_ref"),
    "k_scale_cache": ("kv_quant_scale_cache",),
}
# Arguments of other modes. They have no place in the operator's order, so no number names them.
SCALES: dict[str, tuple[str, ...]] = {
    "dequant_scale_w_dq": ("w_qa_scale",),
    "dequant_scale_w_dkv_kr": ("w_kva_scale",),
    "smooth_scales_cq": ("smooth_cq",),
}
OUTPUTS: dict[str, tuple[str, ...]] = {
    "q_norm_out": ("rms_norm", "q_norm"),
    "q_norm_scale_out": ("rms_norm_scale", "q_norm_scale", "dequant_scale_q_norm"),
    "query_nope_out": ("q", "query_nope", "q_nope", "query"),
    "query_rope_out": ("q_rope", "query_rope"),
    "kv_cache_out": ("kv_cache", "kv"),
    "kr_cache_out": ("kr_cache", "kr"),
    "k_scale_cache_out": ("kv_quant_scale_cache", "k_scale_cache"),
}
STYLES = DUMP_STYLES
NZ_WEIGHTS = ("w_dq", "w_uq_qr", "w_dkv_kr")

_NUMBERED = re.compile(r"(?:.*\.)?(input|output|golden)s?[._-]?(\d+)(?:\.\d+(?:x\d+)*)?")
_PLAIN_NUMBER = re.compile(r"(?:arg[._-]?)?(\d+)")


@dataclass(frozen=True, slots=True)
class FileMeaning:
    """What a file holds: an argument of the reference operator. `meaning_of` has an example.

    Args:
        argument: Its name.
        is_golden: For outputs, whether another oracle's.
        is_nz: For weights, whether in FRACTAL_NZ.
    """

    argument: str
    is_golden: bool = False
    is_nz: bool = False


def name_in(style: DumpStyle, argument: str) -> str:
    """The name, without a suffix, that a golden folder gives to an argument.

    | style     | input     | output            |
    |-----------|-----------|-------------------|
    | reference | `token_x` | `q_norm_golden`   |
    | pypto     | `x`       | `rms_norm_golden` |
    | numbers   | `input_0` | `golden_0`        |

    Args:
        style: "reference", "pypto" or "numbers".
        argument: One of `INPUTS`, `SCALES` and `OUTPUTS`.

    Returns:
        The name.

    Raises:
        TypeError: One of them is no string.
        ValueError: There is no such style or argument.

    Examples:
        >>> from mla_numba.dump_names import name_in
        >>> name_in("pypto", "w_uq_qr"), name_in("reference", "q_norm_out")
        ('wUqQr', 'q_norm_golden')
    """
    check_choice("style", style, DUMP_STYLES)
    check_choice("argument", argument, INPUTS | SCALES | OUTPUTS)
    is_output = argument in OUTPUTS
    if style == "numbers" and argument not in SCALES:
        return f"golden_{list(OUTPUTS).index(argument)}" if is_output else f"input_{list(INPUTS).index(argument)}"
    name = (INPUTS | SCALES | OUTPUTS)[argument][0] if style == "pypto" else argument.removesuffix("_out")
    return f"{name}_golden" if is_output else name


def meaning_of(stem: str, folder: str = "") -> FileMeaning | None:
    """What a file holds, by its name.

    Args:
        stem: The name without suffix.
        folder: The subfolder that it lies in: `input`, `output`, `golden`, or none.

    Returns:
        The argument; None where nothing tells.

    Raises:
        TypeError: One of them is no string.

    Examples:
        >>> from mla_numba.dump_names import meaning_of
        >>> meaning_of("weightUqQr_nz")
        FileMeaning(argument='w_uq_qr', is_golden=False, is_nz=True)
        >>> meaning_of("0", "golden").argument
        'q_norm_out'
    """
    folder = check_str("folder", folder).lower().removesuffix("s")
    check_str("stem", stem)
    text = f"{folder}.{stem.lower()}" if folder else stem.lower()
    numbered = _NUMBERED.fullmatch(text)
    if numbered:
        return _by_number(int(numbered[2]), numbered[1] != "input", numbered[1] == "golden")
    plain = _PLAIN_NUMBER.fullmatch(stem.lower())
    if plain:
        number = int(plain[1])
        return _by_number(number, False, False) or _by_number(number - len(INPUTS), True, False)
    word = _word(re.sub(r"^(?:(?:input|output|golden)s?[._-]?)?\d+[._-]", "", stem))
    is_golden = folder == "golden" or word.endswith("golden")
    word = word.removesuffix("golden")
    is_output = is_golden or folder == "output" or word.endswith(("out", "output")) or word.startswith("output")
    word = word.removesuffix("put").removesuffix("out") if is_output else word
    word = word.removeprefix("output").removeprefix("input")
    if is_output:
        return FileMeaning(_OUTPUT_WORDS[word], is_golden) if word in _OUTPUT_WORDS else None
    bare = word.removeprefix("nz").removesuffix("nz")
    if bare != word:
        return FileMeaning(_INPUT_WORDS[bare], is_nz=True) if _INPUT_WORDS.get(bare) in NZ_WEIGHTS else None
    if word in _INPUT_WORDS:
        return FileMeaning(_INPUT_WORDS[word])
    return FileMeaning(_OUTPUT_WORDS[word]) if word in _OUTPUT_WORDS and folder != "input" else None


def _by_number(number: int, is_output: bool, is_golden: bool) -> FileMeaning | None:
    arguments = list(OUTPUTS if is_output else INPUTS)
    return FileMeaning(arguments[number], is_golden) if 0 <= number < len(arguments) else None


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _words(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {_word(name): argument for argument, names in table.items() for name in (argument, *names)}


_INPUT_WORDS = _words(INPUTS | SCALES)
_OUTPUT_WORDS = {word.removesuffix("out"): argument for word, argument in _words(OUTPUTS).items()}
