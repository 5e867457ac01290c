"""Which places of its list a token has in a round, and the tiles of these that are merged."""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index
from ..threads.tasks import ceil_div
from .arguments import ALL, Cut, Round

__all__ = ["LANES", "is_whole", "places_of", "tile_of", "tile_step"]

LANES = 16


@callee
def places_of(part: Round, token: Index) -> Index:
    """How many places of a token, counted in the round, are in it."""
    left = part.counts[part.cut.t0 + token] - part.cut.place0
    return np.int64(max(min(part.cut.n, left), 0))


@callee
def is_whole(cut: Cut) -> bool:
    """Whether a round has all places of its tokens and merges no tiles: nothing is carried on."""
    return cut.tile == 0 and cut.stage == ALL


@callee
def tile_of(cut: Cut) -> Index:
    """Places of a tile: all of the round's where none are merged."""
    return np.int64(cut.tile if cut.tile > 0 else max(cut.n, 1))


@callee
def tile_step(cut: Cut) -> Index:
    """Distance of tiles in a row of probabilities: whole lanes."""
    return np.int64(ceil_div(tile_of(cut), LANES) * LANES)
