"""What a sweep varies: fields with their values, restrictions, and the candidates that follow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

from tiling import CpuTiling, CubeTile, MlaTileConfig

from .kernels import ISA

__all__ = ["CONFIG_FIELDS", "CPU_FIELDS", "Candidate", "Grid", "check_restriction", "holds", "parse_values"]

_MAX_CANDIDATES = 100_000
_RANGE = re.compile(r"(\d+)\s*:\s*(\d+)(?:\s*:\s*([*]?)(\d+))?")

CPU_FIELDS = tuple(f.name for f in fields(CpuTiling))
_CUBES = tuple(f.name for f in fields(MlaTileConfig) if isinstance(getattr(MlaTileConfig(), f.name), CubeTile))
CONFIG_FIELDS = (
    *(f.name for f in fields(MlaTileConfig)),
    *(f"{cube}.{f.name}" for cube in _CUBES for f in fields(CubeTile)),
)


def parse_values(text: str) -> list[Any]:
    """Values with commas: integers, `first:last:step`, `first:last:*factor`, lists, mappings, None.

    >>> parse_values("12, 24:48:12, 64:256:*2, [8,4,2], None")
    [12, 24, 36, 48, 64, 128, 256, [8, 4, 2], None]
    """

    def spelled_out(match: re.Match[str]) -> str:
        first, last, step = int(match[1]), int(match[2]), int(match[4] or 1)
        grows = match[3] == "*"
        if first > last or step < 1 or (grows and (step < 2 or first < 1)):
            raise ValueError(f"values: expected a range that ends, got {match[0]!r}")
        numbers: list[str] = []
        while first <= last and len(numbers) <= _MAX_CANDIDATES:
            numbers.append(str(first))
            first = first * step if grows else first + step
        return ",".join(numbers)

    # A mapping's colons stand in braces, a range's do not.
    parts = re.split(r"({[^}]*})", text)
    parts[::2] = [_RANGE.sub(spelled_out, part) for part in parts[::2]]
    try:
        values = ast.literal_eval(f"[{''.join(parts)}]")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"values: expected integers, ranges, lists, mappings or None, got {text!r}") from error
    if not values:
        raise ValueError("values: expected at least one, got none")
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


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
            kinds = ("MlaTileConfig", "CpuTiling") if is_cpu else ("CpuTiling", "MlaTileConfig")
            got = f"a field of {kinds[0]} beside those of {kinds[1]}" if name in others else "no field"
            raise ValueError(f"{name}: expected one of {', '.join(own)}, got {got}")
        n = 1
        for values in self.axes.values():
            n *= len(values)
        if n > _MAX_CANDIDATES:
            raise ValueError(f"values: expected at most {_MAX_CANDIDATES} combinations, got {n}")

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
        for cube in _CUBES:
            entries = {name.partition(".")[2]: v for name, v in values.items() if name.startswith(f"{cube}.")}
            if entries:
                tile = CubeTile.of(changes.get(cube, getattr(self.base, cube)), cube)
                changes[cube] = [entries.get(f.name, getattr(tile, f.name)) for f in fields(CubeTile)]
        return self.base.replace(**changes)


def check_restriction(text: str, names: Sequence[str]) -> str:
    """`text` if it parses and names nothing but `names` and t, mr, nr; else `ValueError`."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        raise ValueError(f"restriction: expected an expression such as down_mc % 12 == 0, got {text!r}") from None
    known = {name.partition(".")[0] for name in names} | {"t", "mr", "nr", "True", "False", "None"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in known:
            raise ValueError(f"restriction: expected names of {', '.join(sorted(known))}, got {node.id!r} in {text!r}")
        if isinstance(node, ast.Call):
            raise ValueError(f"restriction: expected no call, got one in {text!r}")
    return text


def holds(restriction: str, candidate: Candidate, t: int) -> bool:
    """Whether a candidate at `t` tokens meets a restriction: arithmetic, comparisons and logic on its values.

    Evaluated by simpleeval, which knows no calls, imports or large powers. Raises `ValueError` where it has no value.
    """
    names: dict[str, Any] = {"t": t, "mr": ISA.mr, "nr": ISA.nr}
    for name, value in candidate.values:
        cube, _, entry = name.partition(".")
        if entry:
            names.setdefault(cube, {})[entry] = value
        else:
            names[name] = value
    try:
        return bool(SimpleEval(names=names, functions={}).eval(restriction))
    except (InvalidExpression, ArithmeticError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"restriction: expected {restriction!r} to have a value for {candidate}: {error}") from None
