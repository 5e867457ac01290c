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

from ..kinds import Index, Int64
from ..launch import kernel
from ..sweeps.phase import NO_LAPS, Team, wait
from ..threads.tasks import linger
from .arguments import Work
from .latents import VALUES, latent_tasks, latents
from .scores import ask_for_first_keys, pack_queries, pack_tasks, score_tasks, scores
from .softmax import softmax, softmax_tasks

__all__ = ["N_PHASES", "attend"]

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
