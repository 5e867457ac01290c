"""What a study varies: fields with their values, restrictions, and the candidates that follow."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from simpleeval import DEFAULT_OPERATORS, InvalidExpression, SimpleEval

from tiling import CpuTiling, CubeTile, MlaTileConfig

from ..kernels import ISA
from .fields import CONFIG_FIELDS, CPU_FIELDS, CUBE_ENTRIES, CUBES, unknown_field

__all__ = [
    "CONFIG_FIELDS",
    "CPU_FIELDS",
    "MAX_CANDIDATES",
    "Candidate",
    "Grid",
    "check_restriction",
    "holds",
    "parse_values",
]

MAX_CANDIDATES = 100_000
_MAX_TEXT = 100_000  # characters of values
_MAX_RESTRICTION = 1000  # characters, so that it is neither long nor deep
_MAX_BITS = 256  # of the integers of a restriction: what follows from two of them is soon computed
_RANGE = re.compile(r"(?<!\d)(\d{1,18})\s*:\s*(\d{1,18})(?:\s*:\s*([*]?)(\d{1,18}))?(?!\d)", re.ASCII)


def parse_values(text: str) -> list[Any]:
    """Values with commas: integers, `first:last:step`, `first:last:*factor`, lists, mappings, None.

    Raises `ValueError` for another text, for one of more than 100,000 characters, and for more than 100,000 values.

    >>> parse_values("12, 24:48:12, 64:256:*2, [8,4,2], None")
    [12, 24, 36, 48, 64, 128, 256, [8, 4, 2], None]
    """
    if len(text) > _MAX_TEXT:
        raise ValueError(f"values: expected at most {_MAX_TEXT} characters, got {len(text)}")
    n_spelled_out = 0

    def spelled_out(match: re.Match[str]) -> str:
        nonlocal n_spelled_out
        numbers = _numbers_of(match)
        n_spelled_out += len(numbers)
        if n_spelled_out > MAX_CANDIDATES:
            raise ValueError(f"values: expected at most {MAX_CANDIDATES}, got more in {match[0]!r}")
        return ",".join(map(str, numbers))

    # A colon within braces is a mapping's, any other a range's.
    parts = re.split(r"({[^{}]*})", text)
    parts[::2] = [_RANGE.sub(spelled_out, part) for part in parts[::2]]
    try:
        values = ast.literal_eval(f"[{''.join(parts)}]")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"values: expected integers, ranges, lists, mappings or None, got {text[:200]!r}") from error
    if not values:
        raise ValueError("values: expected at least one, got none")
    if len(values) > MAX_CANDIDATES:
        raise ValueError(f"values: expected at most {MAX_CANDIDATES}, got {len(values)}")
    return list({repr(value): value for value in values}.values())


def _numbers_of(match: re.Match[str]) -> list[int]:
    """A range's numbers, or one more than there may be."""
    first, last, step = int(match[1]), int(match[2]), int(match[4] or 1)
    grows = match[3] == "*"
    if first > last or step < 1 or (grows and (step < 2 or first < 1)):
        raise ValueError(f"values: expected a range that ends, got {match[0]!r}")
    if not grows:
        return list(range(first, last + 1, step)[: MAX_CANDIDATES + 1])
    numbers = []
    while first <= last:
        numbers.append(first)
        first *= step
    return numbers


@dataclass(frozen=True)
class Candidate:
    """Settings to be tried: `values` by field, and the config that they make; None with the reason against."""

    values: tuple[tuple[str, Any], ...]
    config: MlaTileConfig | CpuTiling | None
    refused: str = ""

    def __str__(self) -> str:
        """One line."""
        return ", ".join(f"{name} {value}" for name, value in self.values)


@dataclass(frozen=True)
class Grid:
    """All combinations of the values of some fields, of `CpuTiling` or of `MlaTileConfig`, over the settings of `base`.

    Raises `ValueError` for a field that is neither's, or where fields of both are mixed.
    """

    axes: Mapping[str, Sequence[Any]]
    base: MlaTileConfig | CpuTiling

    def __post_init__(self) -> None:
        is_cpu = isinstance(self.base, CpuTiling)
        own, others = (CPU_FIELDS, CONFIG_FIELDS) if is_cpu else (CONFIG_FIELDS, CPU_FIELDS)
        for name in self.axes:
            if name in own:
                continue
            if name not in others:
                raise ValueError(unknown_field(name))
            kinds = ("MlaTileConfig", "CpuTiling") if is_cpu else ("CpuTiling", "MlaTileConfig")
            raise ValueError(
                f"{name}: expected one of {', '.join(own)}, got a field of {kinds[0]} beside those of {kinds[1]}"
            )
        n = 1
        for values in self.axes.values():
            n *= len(values)
        if n > MAX_CANDIDATES:
            raise ValueError(f"values: expected at most {MAX_CANDIDATES} combinations, got {n}")

    @staticmethod
    def base_of(names: Sequence[str]) -> MlaTileConfig | CpuTiling:
        """What the fields belong to by their names: the reference operator's defaults, or a tiling without a field."""
        return CpuTiling() if all(name in CPU_FIELDS for name in names) else MlaTileConfig()

    def candidates(self) -> Iterator[Candidate]:
        """Every combination; one that its config refuses comes with the reason."""
        for combination in product(*self.axes.values()):
            values = tuple(zip(self.axes, combination, strict=True))
            try:
                yield Candidate(values, self._config(dict(values)))
            except (TypeError, ValueError) as error:
                yield Candidate(values, None, str(error))

    def _config(self, values: dict[str, Any]) -> MlaTileConfig | CpuTiling:
        if isinstance(self.base, CpuTiling):
            return self.base.replace(**values)
        changes: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
        for cube in CUBES:
            entries = {name.partition(".")[2]: v for name, v in values.items() if name.startswith(f"{cube}.")}
            if entries:
                tile = CubeTile.of(changes.get(cube, getattr(self.base, cube)), cube)
                changes[cube] = [entries.get(entry, getattr(tile, entry)) for entry in CUBE_ENTRIES]
        return self.base.replace(**changes)


def _bounded(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The function of two numbers, for integers that are not large: lists are not repeated, nor texts formatted."""

    def apply(a: Any, b: Any) -> Any:
        for value in (a, b):
            if not isinstance(value, (int, float)) or (isinstance(value, int) and value.bit_length() > _MAX_BITS):
                raise TypeError(f"expected numbers of at most {_MAX_BITS} bits")
        if function in (operator.pow, operator.lshift) and abs(b) > _MAX_BITS:
            raise TypeError(f"expected an exponent of at most {_MAX_BITS}")
        return function(a, b)

    return apply


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
_OPERATORS = DEFAULT_OPERATORS | {node: _bounded(function) for node, function in _ARITHMETIC.items()}
_NODES = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, *_ARITHMETIC, ast.Compare, ast.cmpop,
    ast.IfExp, ast.Name, ast.expr_context, ast.Attribute, ast.Subscript,
)  # fmt: skip


def check_restriction(text: str, names: Sequence[str]) -> str:
    """`text` if it is arithmetic, comparisons and logic on numbers and on nothing but `names` and t, mr, nr.

    Else `ValueError`, also for more than 1000 characters and for an integer of more than 256 bits.
    """
    if len(text) > _MAX_RESTRICTION:
        raise ValueError(f"restriction: expected at most {_MAX_RESTRICTION} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"restriction: expected an expression such as down_mc % 12 == 0, got {text!r}") from None
    known = {name.partition(".")[0] for name in names} | {"t", "mr", "nr", "True", "False", "None"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in known:
            raise ValueError(f"restriction: expected names of {', '.join(sorted(known))}, got {node.id!r} in {text!r}")
        if isinstance(node, ast.Call):
            raise ValueError(f"restriction: expected no call, got one in {text!r}")
        if isinstance(node, ast.Constant):
            if node.value is not None and not isinstance(node.value, (int, float)):
                raise ValueError(f"restriction: expected numbers, got {str(node.value)[:80]!r} in {text!r}")
            if isinstance(node.value, int) and node.value.bit_length() > _MAX_BITS:
                raise ValueError(f"restriction: expected integers of at most {_MAX_BITS} bits, got more in {text!r}")
        elif not isinstance(node, _NODES):
            raise ValueError(
                f"restriction: expected arithmetic, comparisons and logic, got {type(node).__name__} in {text!r}"
            )
    return text


@lru_cache
def _parsed(restriction: str) -> Any:
    return SimpleEval.parse(restriction.strip())


def holds(restriction: str, candidate: Candidate, t: int) -> bool:
    """Whether a candidate at `t` tokens meets a restriction that `check_restriction` let pass.

    Evaluated by simpleeval, with bounds on every operation. Raises `ValueError` where it has no value.
    """
    names: dict[str, Any] = {"t": t, "mr": ISA.mr, "nr": ISA.nr}
    for name, value in candidate.values:
        cube, _, entry = name.partition(".")
        if entry:
            names.setdefault(cube, {})[entry] = value
        else:
            names[name] = value
    try:
        evaluator = SimpleEval(names=names, functions={}, operators=_OPERATORS)
        return bool(evaluator.eval(restriction, previously_parsed=_parsed(restriction)))
    except (
        InvalidExpression, ArithmeticError, TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError,
        MemoryError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"restriction: expected {restriction!r} to have a value for {str(candidate)[:200]}: {str(error)[:200]}"
        ) from None
