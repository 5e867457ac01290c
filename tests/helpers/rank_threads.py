"""Ranks that are threads of this process: any number of them, without a launcher."""

import threading
from collections import defaultdict

import numpy as np

SECONDS = 60  # far more than any waits for another


class LeftAloneError(Exception):
    """A rank ended without a part that this one waits for."""


class _World:
    def __init__(self, size):
        self.size = size
        self.changed = threading.Condition()
        self.gathers = defaultdict(dict)
        self.ended = set()


class _Rank:
    """The communicator of one rank."""

    def __init__(self, world, rank):
        self.rank, self.size = rank, world.size
        self._world = world
        self._n_gathers = 0

    def all_gather(self, part, n_bytes):
        world = self._world
        with world.changed:
            parts = world.gathers[self._n_gathers]
            parts[self.rank] = part.copy()
            world.changed.notify_all()
            world.changed.wait_for(lambda: len(parts) == self.size or world.ended - set(parts), SECONDS)
        self._n_gathers += 1
        if len(parts) < self.size:
            raise LeftAloneError(f"ranks {sorted(set(range(self.size)) - set(parts))} sent nothing")
        assert [len(parts[rank]) for rank in range(self.size)] == list(n_bytes)
        return np.concatenate([parts[rank] for rank in range(self.size)])


def on_ranks(size, run):
    """What `run(comm)` returns on each rank, or the exception that it raised there. Let prologs have one thread."""
    world, results = _World(size), [None] * size

    def on_rank(rank):
        try:
            results[rank] = run(_Rank(world, rank))
        except Exception as error:
            results[rank] = error
        with world.changed:
            world.ended.add(rank)
            world.changed.notify_all()

    threads = [threading.Thread(target=on_rank, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
