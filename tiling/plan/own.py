"""The planner's own choice: tiles of tokens, and blocks within one, with the reason of each.

The blocks to choose among are in ``candidates``, their modelled times in ``model``.
"""

from collections.abc import Callable

from tiling.arith import ceil_div
from tiling.choose.candidates import Choice
from tiling.plan.assemble import Blocks, Tasks, TileContext, assemble_tile
from tiling.plan.tile import TilePlan
from tiling.plan.unroll import loop_unroll

__all__ = ["TILE_CAPS", "Reasons", "own_tile", "own_unroll_list"]

# More tokens a tile would keep ever larger activations between the sweeps and read weights hardly less often.
TILE_CAPS = (512, 256)

Reasons = list[tuple[str, str]]


def own_unroll_list(t: int, chosen: Callable[[int], Choice]) -> tuple[list[int], Reasons]:
    """Nearly even tiles of at most the one of ``TILE_CAPS`` tokens with which the model takes the least time."""
    if t == 0:
        return [1], [("unroll_list = [1]", "there are no tokens")]
    lists = {cap: even_tiles(t, cap) for cap in TILE_CAPS}
    lists = {cap: sizes for cap, sizes in lists.items() if sizes not in [lists[c] for c in TILE_CAPS if c > cap]}
    if len(lists) == 1:
        sizes = lists[TILE_CAPS[0]]
        return sizes, [(f"unroll_list = {sizes}", f"{t} tokens are one tile of at most {TILE_CAPS[-1]}")]
    seconds = {
        cap: sum(chosen(factor).seconds for _, factor in loop_unroll(0, t, 1, sizes)) for cap, sizes in lists.items()
    }
    best = min(lists, key=lambda cap: seconds[cap])
    compared = ", ".join(f"{seconds[cap] * 1e3:.3f} ms with at most {cap}" for cap in lists)
    n_tiles = ceil_div(t, best)
    return lists[best], [(f"unroll_list = {lists[best]}", f"{t} tokens in {n_tiles} nearly even tiles: {compared}")]


def even_tiles(t: int, cap: int) -> list[int]:
    """The sizes of the fewest nearly even tiles of at most ``cap`` tokens, for t >= 1."""
    n_tiles = ceil_div(t, cap)
    size = ceil_div(t, n_tiles)
    return list(dict.fromkeys([size, t - (n_tiles - 1) * size]))


def own_tile(context: TileContext, choice: Choice, t: int) -> tuple[TilePlan, Reasons]:
    """Plan of one tile of ``t`` tokens with the blocks of ``choice``."""
    v = choice.values
    nr = [context.micro_of(ordinal).nr for ordinal in range(4)]
    down = Blocks(v["down_mc"], v["down_kc"], v["down_walk"] * nr[0])
    tile = assemble_tile(
        context,
        t,
        blocks=(
            down,
            Blocks(v["qb_mc"], v["qb_kc"], v["qb_walk"] * nr[1]),
            down,
            Blocks(v["wuk_mc"], v["wuk_kc"], v["wuk_walk"] * nr[3]),
        ),
        rows=(v["rows_q"], v["rows_k"]),
        down=Tasks(v["down_grain"], v["down_legs"]),
        heads=Tasks(v["heads_grain"], v["heads_legs"]),
    )
    given = context.given.given()

    def why(reason: str, *names: str) -> str:
        prescribed = [name for name in names if name in given]
        return reason + (f"; {', '.join(prescribed)} prescribed" if prescribed else "")

    qa, qb, _, wuk = tile.gemms
    shared = f"down: mc = {qa.mc}, kc = {qa.kc}, {qa.walk} panels a task, {tile.down.grain} at a time"
    shared += f", in {tile.down.legs} legs" if tile.down.legs > 1 else ""
    heads = (
        f"heads: mc = {qb.mc}; kc = {qb.kc}, walk {qb.walk} of {qb.stage}; mc = {wuk.mc}, kc = {wuk.kc}, "
        f"walk {wuk.walk} of {wuk.stage}; {tile.heads.grain} at a time"
    )
    heads += f", in {tile.heads.legs} legs" if tile.heads.legs > 1 else ""
    rows_reason = f"{choice.rows_s * 1e3:.4f} ms by the model"
    if (tile.rows.rows_q, tile.rows.rows_k) != (v["rows_q"], v["rows_k"]):
        rows_reason = "vec_nbuffer_setting"
    return tile, [
        (shared, why(f"{choice.down.seconds * 1e3:.4f} ms by the model", *_fields_of("down"))),
        (f"rows_q = {tile.rows.rows_q}, rows_k = {tile.rows.rows_k}", why(rows_reason, "rows_q", "rows_k")),
        (heads, why(f"{choice.heads.seconds * 1e3:.4f} ms by the model", *_fields_of("qb"), *_fields_of("wuk"))),
    ]


def _fields_of(prefix: str) -> list[str]:
    last = {"down": ("down_grain", "down_legs"), "qb": ("heads_grain", "heads_legs")}.get(prefix, ())
    return [f"{prefix}_mc", f"{prefix}_kc", f"{prefix}_walk", *last]
