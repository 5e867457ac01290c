"""What a folder of dumps is about: a call of an operator, its arguments, and how outputs are held against it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self, TypedDict

import numpy as np

from ..base.checks import Array, check_choice, check_int
from ..base.modes import SCALE_DTYPES, DumpOperator, QuantMode, ScaleDtype
from ..base.short_repr import array_text, short_repr
from ..layouts import pa_nz_to_pa_bsnd
from ..oracle.bits import Mismatch
from ..oracle.index_agreement import IndexAgreement
from ..oracle.tolerance import Agreement, Tolerance, compare_within
from .arguments import ARGUMENTS, Arguments
from .kinds import Kind
from .reader import InputReader
from .settings import DumpSettings

__all__ = [
    "Call",
    "CallChoices",
    "CallOfArrays",
    "Choices",
    "DumpedOutput",
    "ListsAgreement",
    "Verdict",
    "Wanted",
]


class DumpedOutput(NamedTuple):
    """An output that a folder holds: `name` of the argument, its `file`, and its `array` in the oracle's shape.

    `write_dump` has an example.
    """

    name: str
    file: str
    array: Array

    def __repr__(self) -> str:
        return short_repr(self, self.name, array_text(self.array), f"of {self.file}")


@dataclass(frozen=True, slots=True)
class ListsAgreement:
    """How lists of positions that an operator wrote agree with the oracle's. `write_dump` has an example.

    | field                        | meaning                                                           |
    |------------------------------|-------------------------------------------------------------------|
    | `name`, `file`, `n_elements` | the output, where it is from, and how many positions it has       |
    | `mismatch`                   | which positions are not the oracle's; None where all are          |
    | `lists`                      | how the list of each token agrees, see `compare_index`            |
    | `passed`                     | the verdict: no list is wrong, or, if that is demanded, all equal |
    """

    name: str
    file: str
    n_elements: int
    mismatch: Mismatch | None
    lists: IndexAgreement
    passed: bool

    def __repr__(self) -> str:
        return short_repr(self, str(self), "passed" if self.passed else "failed")

    def __str__(self) -> str:
        return f"{self.name}: {self.lists}"

    @property
    def exact(self) -> bool:
        """Whether every position is the oracle's."""
        return self.mismatch is None

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self) | {"exact": self.exact}


Verdict = Agreement | ListsAgreement


class CallChoices(TypedDict, total=False):
    """What may be chosen of a random call; see `write_dump`."""

    smooth: bool
    seed: int
    n_blocks: int | None
    scale_dtype: ScaleDtype
    sequences: int
    context: int | None


@dataclass(frozen=True)
class Choices:
    """A random call: `t` tokens, the mode `quant`, and the rest of `CallChoices`."""

    t: int
    quant: QuantMode
    smooth: bool = False
    seed: int = 0
    n_blocks: int | None = None
    scale_dtype: ScaleDtype = "float32"
    sequences: int = 1
    context: int | None = None

    def check(self, operator: DumpOperator, modes: tuple[QuantMode, ...], read: tuple[str, ...]) -> None:
        """Raises unless the operator has this mode, and no choice is made beside those that it reads."""
        check_choice("quant", self.quant, modes)
        check_int("t", self.t, 1)
        check_int("seed", self.seed, 0)
        check_choice("scale_dtype", self.scale_dtype, SCALE_DTYPES)
        check_int("sequences", self.sequences, 1, self.t)
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name not in ("seed", *read) and value != field.default:
                raise ValueError(f"{field.name}: expected {field.default!r}, since {operator} has none, got {value!r}")


class Wanted(NamedTuple):
    """What an output should be, in the order of its file, and how far it may be from that.

    Of a cache, `before` is the array before the call, and rows of the slots `unnamed` are still as they were there.
    """

    array: Array
    tolerance: Tolerance
    before: Array | None = None
    unnamed: Array | None = None
    is_nz: bool = False


class Call(ABC):
    """A call of an operator. Its fields are `settings` and its arguments.

    A class of calls is what is known of an operator: `ARGUMENTS` has what its arrays are called; `settings_read` are
    the fields of `DumpSettings`, `choices_read` those of `Choices` that concern it, and `modes` the values of `quant`.
    Arrays go by their keys.
    """

    __slots__ = ()
    operator: ClassVar[DumpOperator]
    settings_read: ClassVar[tuple[str, ...]]
    choices_read: ClassVar[tuple[str, ...]]
    modes: ClassVar[tuple[QuantMode, ...]] = ("b",)
    settings: DumpSettings

    @classmethod
    @abstractmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """A call at random, whose caches hold earlier tokens. Raises `ValueError` for what does not go together."""

    @classmethod
    @abstractmethod
    def read(cls, reader: InputReader) -> Self:
        """The call whose inputs a folder holds. Raises `TypeError` and `ValueError` for inputs that don't fit."""

    @abstractmethod
    def inputs(self) -> dict[str, Array | None]:
        """The arguments in the operator's order and in the shapes of the reference's test."""

    @abstractmethod
    def reference(self) -> Any:
        """What the oracle makes of the call."""

    @abstractmethod
    def goldens(self) -> dict[str, Array]:
        """The oracle's outputs in the operator's order and in the shapes of the reference's test."""

    @abstractmethod
    def compare(self, outputs: Iterable[DumpedOutput], exact: bool) -> Sequence[Verdict]:
        """How outputs agree with the oracle's; `exact` demands equal bits."""

    @abstractmethod
    def expected(self) -> dict[str, list[Kind]]:
        """What each output may be, in the operator's order."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a report says of the call beside its settings, as JSON holds it."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The call in one line."""

    @classmethod
    def arguments(cls) -> Arguments:
        """What the operator's arrays are called."""
        return ARGUMENTS[cls.operator]


class CallOfArrays(Call):
    """A call whose outputs are compared element by element."""

    __slots__ = ()

    @abstractmethod
    def wanted(self) -> dict[str, Wanted]:
        """The oracle's outputs in the operator's order."""

    def goldens(self) -> dict[str, Array]:
        """The oracle's outputs."""
        return {key: wanted.array for key, wanted in self.wanted().items()}

    def compare(self, outputs: Iterable[DumpedOutput], exact: bool) -> Sequence[Verdict]:
        """How outputs agree with the oracle's. Places in PA_NZ caches are blocks and slots."""
        wanted = self.wanted()
        keys = {argument.name: argument.key for argument in self.arguments().all_outputs}
        return [_compare(output, wanted[keys[output.name]], exact) for output in outputs]


def _compare(output: DumpedOutput, wanted: Wanted, exact: bool) -> Agreement:
    got = output.array
    with np.errstate(over="ignore"):
        want = wanted.array.astype(got.dtype)  # float16 scales are the oracle's float32 ones, rounded
    arrays = [got, want] if wanted.before is None else [got, want, wanted.before]
    if wanted.is_nz:
        arrays = [pa_nz_to_pa_bsnd(array) for array in arrays]
    untouched = None if wanted.unnamed is None else (arrays[2], wanted.unnamed)
    return compare_within(
        output.name, arrays[0], arrays[1], tolerance=wanted.tolerance, file=output.file, exact=exact,
        untouched=untouched,
    )  # fmt: skip
