"""Which argument of the reference operator a dumped file holds, by its name or by its number.

`mla_numba.dump_names` has the order in which numbers count.

| form                                      | example                                     | in use by                  |
|-------------------------------------------|---------------------------------------------|----------------------------|
| the argument's name                       | `token_x.bin`, `kv_cache_out.npy`           | the reference operators    |
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

from ..base.modes import DUMP_OPERATORS, DUMP_STYLES, DumpOperator, DumpStyle
from .arguments import ARGUMENTS, Argument, Arguments, word_of

__all__ = ["INPUTS", "NZ_WEIGHTS", "OUTPUTS", "SCALES", "STYLES", "FileMeaning", "meaning_of", "name_in"]

_OF_PROLOG = ARGUMENTS["mla_prolog_quant"]
# Of the prolog, as an argument: its name in the data of pypto's tests, and further names.
INPUTS: dict[str, tuple[str, ...]] = {argument.name: argument.others for argument in _OF_PROLOG.inputs}
# Arguments of other modes. They have no place in the operator's order, so no number names them.
SCALES: dict[str, tuple[str, ...]] = {argument.name: argument.others for argument in _OF_PROLOG.unnumbered_inputs}
OUTPUTS: dict[str, tuple[str, ...]] = {argument.name: argument.others for argument in _OF_PROLOG.outputs}
STYLES = DUMP_STYLES
NZ_WEIGHTS = tuple(argument.name for argument in _OF_PROLOG.inputs if argument.may_be_nz)

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


def name_in(style: DumpStyle, argument: str, operator: DumpOperator = "mla_prolog_quant") -> str:
    """The name, without a suffix, that a golden folder gives to an argument.

    | style     | input     | output            |
    |-----------|-----------|-------------------|
    | reference | `token_x` | `q_norm_golden`   |
    | pypto     | `x`       | `rms_norm_golden` |
    | numbers   | `input_0` | `golden_0`        |

    Args:
        style: "reference", "pypto" or "numbers".
        argument: The operator's name for it: one of `INPUTS`, `SCALES` and `OUTPUTS` for the prolog.
        operator: One of `mla_numba.modes.DUMP_OPERATORS`.

    Returns:
        The name.

    Raises:
        TypeError: One of them is no string.
        ValueError: There is no such style, argument or operator.

    Examples:
        >>> from mla_numba.dump_names import name_in
        >>> name_in("pypto", "w_uq_qr"), name_in("reference", "q_norm_out")
        ('wUqQr', 'q_norm_golden')
        >>> name_in("numbers", "topk_res", "lightning_indexer_quant")
        'golden_0'
    """
    check_choice("style", style, DUMP_STYLES)
    of = ARGUMENTS[check_choice("operator", operator, DUMP_OPERATORS)]
    known = of.by_name[check_choice("argument", argument, of.by_name)]
    is_output = known in of.all_outputs
    if style == "numbers" and known in of.inputs + of.outputs:
        return f"golden_{of.outputs.index(known)}" if is_output else f"input_{of.inputs.index(known)}"
    name = known.others[0] if style == "pypto" else argument.removesuffix("_out")
    return f"{name}_golden" if is_output else name


def meaning_of(stem: str, folder: str = "", operator: DumpOperator = "mla_prolog_quant") -> FileMeaning | None:
    """What a file holds, by its name.

    Args:
        stem: The name without suffix.
        folder: The subfolder that it lies in: `input`, `output`, `golden`, or none.
        operator: One of `mla_numba.modes.DUMP_OPERATORS`.

    Returns:
        The argument; None where nothing tells.

    Raises:
        TypeError: One of them is no string.
        ValueError: There is no such operator.

    Examples:
        >>> from mla_numba.dump_names import meaning_of
        >>> meaning_of("weightUqQr_nz")
        FileMeaning(argument='w_uq_qr', is_golden=False, is_nz=True)
        >>> meaning_of("0", "golden").argument
        'q_norm_out'
    """
    folder = check_str("folder", folder).lower().removesuffix("s")
    check_str("stem", stem)
    of = ARGUMENTS[check_choice("operator", operator, DUMP_OPERATORS)]
    text = f"{folder}.{stem.lower()}" if folder else stem.lower()
    numbered = _NUMBERED.fullmatch(text)
    if numbered:
        arguments = of.inputs if numbered[1] == "input" else of.outputs
        return _by_number(arguments, int(numbered[2]), numbered[1] == "golden")
    plain = _PLAIN_NUMBER.fullmatch(stem.lower())
    if plain:
        return _by_number(of.inputs + of.outputs, int(plain[1]), False)
    return _by_word(of, word_of(re.sub(r"^(?:(?:input|output|golden)s?[._-]?)?\d+[._-]", "", stem)), folder)


def _by_number(arguments: tuple[Argument, ...], number: int, is_golden: bool) -> FileMeaning | None:
    return FileMeaning(arguments[number].name, is_golden) if number < len(arguments) else None


def _by_word(of: Arguments, word: str, folder: str) -> FileMeaning | None:
    is_golden = folder == "golden" or word.endswith("golden")
    word = word.removesuffix("golden")
    is_output = is_golden or folder == "output" or word.endswith(("out", "output")) or word.startswith("output")
    word = word.removesuffix("put").removesuffix("out") if is_output else word
    word = word.removeprefix("output").removeprefix("input")
    if is_output:
        return FileMeaning(of.output_words[word].name, is_golden) if word in of.output_words else None
    bare = word.removeprefix("nz").removesuffix("nz")
    if bare != word:
        weight = of.input_words.get(bare)
        return FileMeaning(weight.name, is_nz=True) if weight is not None and weight.may_be_nz else None
    if word in of.input_words:
        return FileMeaning(of.input_words[word].name)
    return FileMeaning(of.output_words[word].name) if word in of.output_words and folder != "input" else None
