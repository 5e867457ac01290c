"""What plans of calls have in common: tokens cut into tiles, and a plan for each size of tile."""

from functools import cached_property
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from tiling.check import check_int

__all__ = ["TiledPlan"]


class _Tile(Protocol):
    @property
    def t(self) -> int:
        """Tokens."""

    @property
    def n_workers(self) -> int:
        """Threads."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of its buffers."""


TileT = TypeVar("TileT", bound=_Tile)


class TiledPlan(Generic[TileT]):
    """A plan of ``t`` tokens: ``tiles`` are ``(offset, factor)`` of each, ``tile_plans`` one per distinct factor."""

    t: int
    tiles: tuple[tuple[int, int], ...]
    tile_plans: tuple[TileT, ...]

    def _check_tiles(self) -> None:
        """Raise unless the tiles cover the tokens in order and each has its plan."""
        end = 0
        for offset, factor in self.tiles:
            if offset != end:
                raise ValueError(f"tiles: expected one that begins at token {end}, got {offset}")
            end += check_int("tiles: factor", factor, 1)
        if end != self.t:
            raise ValueError(f"tiles: expected {self.t} tokens, got {end}")
        factors = list(dict.fromkeys(factor for _, factor in self.tiles))
        if [tile.t for tile in self.tile_plans] != factors:
            raise ValueError(f"tile_plans: expected one for each of {factors}, got {[p.t for p in self.tile_plans]}")

    @cached_property
    def _plan_of(self) -> dict[int, TileT]:
        return {tile.t: tile for tile in self.tile_plans}

    def tile_plan(self, factor: int) -> TileT:
        """The plan of the tiles of one size.

        Args:
            factor: Their tokens.

        Returns:
            The plan of such a tile.

        Raises:
            ValueError: No tile of this plan has so many tokens.
        """
        if factor not in self._plan_of:
            raise ValueError(f"factor: expected one of {sorted(self._plan_of)}, got {factor}")
        return self._plan_of[factor]

    @property
    def n_workers(self) -> int:
        """Most threads any tile uses, 1 if there is no tile."""
        return max((tile.n_workers for tile in self.tile_plans), default=1)

    @cached_property
    def workspace_bytes(self) -> int:
        """Bytes of the largest tile's buffers; the tiles use them one after the other."""
        return max((tile.workspace_bytes for tile in self.tile_plans), default=0)

    def _tiles_text(self) -> str:
        """How many tiles of each size, in order."""
        sizes = [(factor, len(list(same))) for factor, same in groupby(factor for _, factor in self.tiles)]
        return " + ".join(f"{n} x {factor}" for factor, n in sizes) or "none"
