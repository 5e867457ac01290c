"""A round of tokens and heads through attention, in one parallel region.

| phase   | a task                            | waits for | what                                                    |
|---------|-----------------------------------|-----------|---------------------------------------------------------|
| PACK    | a token's panel of heads          |           | queries as columns                                      |
| SCORES  | some positions of a token         | PACK      | keys dequantised, times all queries                     |
| SOFTMAX | a token's panel of heads          | SCORES    | probabilities, as rows                                  |
| VALUES  | some columns of a token's latents | SOFTMAX   | latents dequantised, all probabilities times them       |

Keys are read twice, each time dequantised for one product, and never held as a whole. Scores are: a probability is
divided by the sum over all positions before it is rounded.
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int64
from ..launch import kernel
from ..scalars import window
from ..sweeps.phase import NO_LAPS, Team, wait
from ..threads.tasks import linger
from .arguments import Lists, Work
from .latents import VALUES, latent_tasks, latents
from .scores import ask_for_first_keys, pack_queries, pack_tasks, score_tasks, scores
from .softmax import softmax, softmax_tasks

__all__ = ["N_PHASES", "attend", "check_positions"]

N_PHASES = 4


@kernel
def attend(worker: Index, work: Work, spans: Int64) -> None:
    """One worker's way through the phases of a round. spans: see `phase.Team`; empty if nobody asks."""
    part = work.round
    team = Team(part.cut.n_workers, part.scratch.counters, spans, len(spans) > 0, NO_LAPS)
    of_pack, of_scores = pack_tasks(part), score_tasks(work)
    of_softmax, of_latents = softmax_tasks(part), latent_tasks(work)
    ask_for_first_keys(worker, of_scores, work)
    pack_queries(worker, team, of_pack, part)
    wait(team, of_pack)
    scores(worker, team, of_scores, work)
    wait(team, of_scores)
    softmax(worker, team, of_softmax, part)
    wait(team, of_softmax)
    latents(worker, team, of_latents, work)
    if worker == 0:
        linger(team.counters, VALUES, team.n_workers, of_latents.n)


@callee
def _count(lists: Lists, token: Index, limit: Index, n_blocks: Index) -> tuple[Index, Index]:
    """(positions, place of the first that is wrong or -1) of a token that sees `limit` keys."""
    k, width, size = lists.positions.shape[1], lists.block_table.shape[1], np.int64(lists.block_size)
    most = min(limit, np.int64(k))
    positions = window(lists.positions, token * k, most)
    blocks = window(lists.block_table, lists.sequences[token] * width, width)
    for place in range(most):
        position = np.int64(positions[place])
        if position < 0:
            return np.int64(place), np.int64(-1)
        at = position // size
        if position >= limit or at >= width or blocks[at] < 0 or blocks[at] >= n_blocks:
            return np.int64(place), np.int64(place)
    return np.int64(most), np.int64(-1)


@kernel
def check_positions(index: Index, lists: Lists, limits: Int64, n_blocks: Index, counts: Int64, wrong: Int64) -> None:
    """counts[t]: how many positions token t attends to; wrong[t]: the place of the first wrong one, or -1.

    A position below 0 ends a list. One is wrong that the token does not see (limits (T,)), or that lies in no block.
    """
    for token in range(len(limits)):
        counts[token], wrong[token] = _count(lists, token, limits[token], n_blocks)
