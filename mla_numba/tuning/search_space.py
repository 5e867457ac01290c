"""What a search may choose: a point is an index of each axis, and stands for a tiling."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tiling import CpuTiling, PrologPlan, ceil_div

__all__ = ["Space"]


class Space:
    """What the search may choose for `t` tokens on up to `n_threads` threads, as indices of lists in order.

    Blocks of rows are counts of blocks, so that they mean the same for every tile of tokens.
    """

    def __init__(self, own: PrologPlan, n_threads: int) -> None:
        self._t = own.t
        tile = own.tile_plans[0]
        part = tile.down.qa.k // tile.down.qa.k_parts
        kp_up = tile.heads.qb.kp
        n_up, n_uk = tile.heads.qb.n_panels, tile.heads.wuk.n_panels
        mr = tile.heads.wuk.micro.mr
        sizes = dict.fromkeys([*(size for size in (32, 64, 128, 256, 512) if size < own.t), own.t])
        self.axes: dict[str, list[int]] = {
            "tile": list(sizes)[-4:],
            "n_threads": list(range(1, n_threads + 1)),
            "down_blocks": [1, 2, 3, 4, 6, 8, 12],
            "down_kc": sorted({ceil_div(part, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 20, 28)}),
            "down_walk": [1, 2, 3, 4, 6, 8],
            "down_grain": [1, 2, 4],
            "down_legs": [1, 2, 4, 8, 16] if n_threads > 2 else [1],
            "rows_q": [1, 2, 4, 8, 16, 32],
            "rows_k": [1, 2, 4, 8, 16, 32],
            "qb_blocks": [1, 2, 3, 4, 6, 8],
            "qb_kc": sorted({ceil_div(kp_up, n) for n in (1, 2, 3, 4, 6, 8)}),
            "qb_walk": sorted({min(walk, n_up) for walk in (1, 2, 3, 4, 6)}),
            "wuk_mc": [mr, 2 * mr, 4 * mr, 8 * mr],
            "wuk_walk": sorted({min(walk, n_uk) for walk in (1, 2, 4, 8, 16)}),
            "heads_grain": [1, 2, 4],
        }
        self.axes = {name: values for name, values in self.axes.items() if len(values) > 1}

    def tiling(self, index: Callable[[str, int], int]) -> CpuTiling:
        """The tiling of a point: `index(name, n)` chooses one of the n values of an axis."""
        at = {name: values[index(name, len(values))] for name, values in self.axes.items()}
        size = at.pop("tile", self._t)
        blocks = {name: ceil_div(size, at.pop(f"{name[:-3]}_blocks")) for name in ("down_mc", "qb_mc")}
        return CpuTiling(unroll_list=_tiles(self._t, size), **blocks, **at)

    def at(self, point: Mapping[str, int]) -> CpuTiling:
        """The tiling of a point that is given by name."""
        return self.tiling(lambda name, n: point[name])

    def nearest(self, own: PrologPlan) -> dict[str, int]:
        """The point that is nearest to the planner's own plan."""
        tile = own.tile_plans[0]
        qa, qb, _, wuk = tile.gemms
        wanted = {
            "tile": tile.t, "n_threads": tile.n_workers, "down_blocks": qa.n_row_blocks, "down_kc": qa.kc,
            "down_walk": qa.walk, "down_grain": tile.down.grain, "down_legs": tile.down.legs,
            "rows_q": tile.rows.rows_q, "rows_k": tile.rows.rows_k, "qb_blocks": qb.n_row_blocks, "qb_kc": qb.kc,
            "qb_walk": qb.walk, "wuk_mc": wuk.mc, "wuk_walk": wuk.walk, "heads_grain": tile.heads.grain,
        }  # fmt: skip

        def closest(values: list[int], value: int) -> int:
            return min(range(len(values)), key=lambda i: abs(values[i] - value))

        return {name: closest(values, wanted[name]) for name, values in self.axes.items()}


def _tiles(t: int, size: int) -> tuple[int, ...]:
    """Nearly even tiles of at most `size` tokens."""
    n_tiles = ceil_div(t, size)
    even = ceil_div(t, n_tiles)
    return tuple(dict.fromkeys((even, t - (n_tiles - 1) * even)))
