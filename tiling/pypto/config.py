"""Tile settings under the reference operator's names (hicann/pypto, models/deepseek_v32_exp)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Self

from tiling.check import (
    check_flag,
    check_int,
    check_ints,
    check_setting,
    check_str,
)
from tiling.json import parse_object
from tiling.short_repr import changed_repr

__all__ = ["CubeTile", "MlaTileConfig", "PassOptions", "RopeTileShapeConfig"]


@dataclass(frozen=True)
class CubeTile:
    """Tile of a matrix product: an inner (L0) block and the L1 block around it along m, k and n, in elements.

    ``0 < L0 <= L1`` and ``L1 % L0 == 0`` along each axis. Iterates, indexes and measures as its six ints do.

    Args:
        m_l0: Inner block along m.
        m_l1: Block around it.
        k_l0: Inner block along k.
        k_l1: Block around it.
        n_l0: Inner block along n.
        n_l1: Block around it.

    Raises:
        TypeError: One is no int.
        ValueError: One is below 1, or an L1 is no multiple of its L0.

    Examples:
        >>> from tiling import CubeTile
        >>> tile = CubeTile.of([16, 16, 256, 512, 128, 128])
        >>> tile.k_l1, list(tile)
        (512, [16, 16, 256, 512, 128, 128])
    """

    m_l0: int
    m_l1: int
    k_l0: int
    k_l1: int
    n_l0: int
    n_l1: int

    def __post_init__(self) -> None:
        """Check the six ints."""
        _check_cube("CubeTile", astuple(self))

    def __repr__(self) -> str:
        """The six ints without their names."""
        return f"{type(self).__name__}{astuple(self)}"

    @classmethod
    def of(cls, values: Iterable[int], name: str = "CubeTile") -> Self:
        """Build from a sequence.

        Args:
            values: Six ints ``[m_l0, m_l1, k_l0, k_l1, n_l0, n_l1]``.
            name: What errors begin with.

        Returns:
            The tile.

        Raises:
            TypeError: It is no sequence of ints.
            ValueError: There are not six, or they do not fit.
        """
        values = check_ints(name, values, 1, 6)
        _check_cube(name, values)
        return cls(*values)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the six ints."""
        return iter(astuple(self))

    def __len__(self) -> int:
        """Six."""
        return 6

    def __getitem__(self, i: int) -> int:
        """The i-th of the six ints."""
        values: tuple[int, ...] = astuple(self)
        return values[i]


def _check_cube(name: str, values: Sequence[int]) -> None:
    for axis, l0, l1 in zip("mkn", values[::2], values[1::2], strict=True):
        check_int(f"{name}.{axis}_l0", l0, 1)
        check_int(f"{name}.{axis}_l1", l1, 1)
        if l1 % l0 != 0:
            raise ValueError(f"{name}.{axis}_l1: expected a multiple of {axis}_l0 = {l0}, got {l1}")


def _count(name: str, value: object) -> int:
    return check_int(name, value, 1)


def _counts(name: str, value: object) -> list[int]:
    return check_ints(name, value, 1)


def _cube(name: str, value: Any) -> CubeTile:
    return CubeTile.of(value, name)


def _cube_setting(name: str, value: object) -> dict[int, int]:
    return check_setting(name, value, -1)


def _vec_setting(name: str, value: object) -> dict[int, int]:
    return check_setting(name, value, -2)


@dataclass
class MlaTileConfig:
    """Tile settings of the prolog, with the reference operator's names and defaults.

    Mutable: settings may be given as keywords or assigned afterwards, and each assignment is checked. A cube tile may
    be any sequence of six ints and is kept as a ``CubeTile``; lists and mappings are copied. The planner checks again
    whatever was changed in place. ``PrologPlan.explain`` says what each setting does on a CPU. A count is from 1 to
    2^31 - 1, and ``unroll_list`` has at most 4096 sizes; else ``ValueError`` names the setting.

    - ``tile_b, tile_s, tile_bs``: tokens along batch, sequence and both.
    - ``m_tile``: token rows of the per-head product with w_uk; ``mv_tile``: token rows of the elementwise query steps.
    - ``pre_quant_cube_tile, cube_qb_tile, cube_wuk_tile``: tiles of the down projections, of the query's up projection
      and of the per-head product.
    - ``unroll_list``: numbers of tokens a tile may have, see ``loop_unroll``.
    - ``q_vec_tile0, q_vec_tile1, k_vec_tile0, k_vec_tile1``: elementwise tiles (rows, columns or heads) of query and
      key.
    - ``cube_l1_reuse_setting, cube_nbuffer_setting, vec_nbuffer_setting``: stage ordinal -> count, -1 for the rest.
    - ``dynamic_unaligned_enable``: allow tiles that are not full.

    Examples:
        >>> from tiling import MlaTileConfig
        >>> config = MlaTileConfig(tile_bs=32, cube_qb_tile=[128, 128, 128, 256, 256, 256])
        >>> config.m_tile = 32
        >>> config
        MlaTileConfig(tile_bs=32, m_tile=32, cube_qb_tile=CubeTile(128, 128, 128, 256, 256, 256))
    """

    tile_b: int = 8
    tile_s: int = 1
    tile_bs: int = 8
    m_tile: int = 16
    mv_tile: int = 16
    pre_quant_cube_tile: CubeTile = CubeTile(16, 16, 256, 256, 128, 128)
    cube_qb_tile: CubeTile = CubeTile(16, 16, 256, 256, 128, 128)
    cube_wuk_tile: CubeTile = CubeTile(32, 32, 256, 256, 256, 256)
    unroll_list: list[int] = field(default_factory=lambda: [32, 16, 8, 4, 2, 1])
    q_vec_tile0: int = 16
    q_vec_tile1: int = 16
    k_vec_tile0: int = 16
    k_vec_tile1: int = 16
    cube_l1_reuse_setting: dict[int, int] = field(default_factory=lambda: {-1: 4})
    cube_nbuffer_setting: dict[int, int] = field(default_factory=lambda: {3: 4})
    vec_nbuffer_setting: dict[int, int] = field(default_factory=dict)
    dynamic_unaligned_enable: bool = False

    def __repr__(self) -> str:
        """The settings that differ from the defaults, as Python makes the same config of them."""
        return changed_repr(self)

    def __setattr__(self, name: str, value: object) -> None:
        """Check and set one setting; a name that is no setting is an error."""
        if name not in _CONFIG_CHECKS:
            raise AttributeError(f"MlaTileConfig: expected a setting of {', '.join(_CONFIG_CHECKS)}, got {name!r}")
        object.__setattr__(self, name, _CONFIG_CHECKS[name](name, value))

    def replace(self, **changes: Any) -> Self:
        """A checked copy.

        Args:
            **changes: Settings that are to differ.

        Returns:
            A new config.

        Raises:
            TypeError: There is no such setting, or it is of another type.
            ValueError: A setting has another value.
        """
        return dataclass_replace(self, **changes)

    def to_json(self) -> str:
        """JSON text of every setting; cube tiles are lists of six."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({name: list(v) if isinstance(v, CubeTile) else v for name, v in values.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that ``to_json`` wrote.

        Args:
            text: JSON; settings that are missing keep their defaults.

        Returns:
            An equal config.

        Raises:
            TypeError: A setting is of another type.
            ValueError: The text is no JSON, has other settings, or one with another value.
        """
        values = parse_object(check_str("text", text), "text")
        unknown = sorted(set(values) - set(_CONFIG_CHECKS))
        if unknown:
            raise ValueError(f"text: expected settings of {', '.join(_CONFIG_CHECKS)}, got {', '.join(unknown)}")
        settings: dict[str, Any] = {
            name: {_json_key(name, key): count for key, count in value.items()} if isinstance(value, dict) else value
            for name, value in values.items()
        }
        return cls(**settings)


def _json_key(name: str, key: str) -> int:
    """The stage ordinal that JSON made a string of."""
    try:
        return int(key)
    except ValueError:
        raise ValueError(f"{name} key: expected an int, got {key[:80]!r}") from None


_CONFIG_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "tile_b": _count,
    "tile_s": _count,
    "tile_bs": _count,
    "m_tile": _count,
    "mv_tile": _count,
    "pre_quant_cube_tile": _cube,
    "cube_qb_tile": _cube,
    "cube_wuk_tile": _cube,
    "unroll_list": _counts,
    "q_vec_tile0": _count,
    "q_vec_tile1": _count,
    "k_vec_tile0": _count,
    "k_vec_tile1": _count,
    "cube_l1_reuse_setting": _cube_setting,
    "cube_nbuffer_setting": _cube_setting,
    "vec_nbuffer_setting": _vec_setting,
    "dynamic_unaligned_enable": check_flag,
}


@dataclass(frozen=True)
class RopeTileShapeConfig:
    """Tiles of the rotary embedding for operands of two, three and four axes, in elements; kept as tuples.

    Args:
        two_dim: Two ints.
        three_dim: Three ints.
        four_dim: Four ints.

    Raises:
        TypeError: One is no sequence of ints.
        ValueError: It has another length, or an int below 1.

    Examples:
        >>> from tiling import RopeTileShapeConfig
        >>> RopeTileShapeConfig([32, 64], [32, 32, 128], [16, 128, 128, 128]).two_dim
        (32, 64)
    """

    two_dim: Sequence[int]
    three_dim: Sequence[int]
    four_dim: Sequence[int]

    def __post_init__(self) -> None:
        """Check for 2, 3 and 4 positive ints; keep them as tuples."""
        for length, f in enumerate(fields(self), start=2):
            object.__setattr__(self, f.name, tuple(check_ints(f.name, getattr(self, f.name), 1, length)))


@dataclass(frozen=True)
class PassOptions:
    """Scheduling settings: stage ordinal -> count, key -1 for the stages that are not named.

    An empty mapping says nothing. Counts are at most 2^31 - 1.

    Args:
        cube_l1_reuse_setting: Tiles of a product that share one block of A in cache.
        cube_nbuffer_setting: Tasks of a product that a worker takes at a time.
        vec_nbuffer_setting: Rows of an elementwise task; key -2 is a mode flag.
        stitch_function_max_num: Of the NPU's scheduler.
        device_sched_mode: Of the NPU's scheduler.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A key or a count is out of range.

    Examples:
        >>> from tiling import PassOptions
        >>> PassOptions(cube_l1_reuse_setting={-1: 4, 3: 1})
        PassOptions(cube_l1_reuse_setting={-1: 4, 3: 1})
    """

    cube_l1_reuse_setting: Mapping[int, int] = field(default_factory=dict)
    cube_nbuffer_setting: Mapping[int, int] = field(default_factory=dict)
    vec_nbuffer_setting: Mapping[int, int] = field(default_factory=dict)
    stitch_function_max_num: int | None = None
    device_sched_mode: int | None = None

    def __repr__(self) -> str:
        """The settings that are given, as Python makes the same options of them."""
        return changed_repr(self)

    def __post_init__(self) -> None:
        """Check every setting; keep copies of the mappings."""
        for name in ("cube_l1_reuse_setting", "cube_nbuffer_setting", "vec_nbuffer_setting"):
            object.__setattr__(self, name, _CONFIG_CHECKS[name](name, getattr(self, name)))
        if self.stitch_function_max_num is not None:
            check_int("stitch_function_max_num", self.stitch_function_max_num, 1)
        if self.device_sched_mode is not None:
            check_int("device_sched_mode", self.device_sched_mode, 0)
